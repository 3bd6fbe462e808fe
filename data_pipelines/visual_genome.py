"""Visual Genome: short descriptions of regions, about fifty for each picture.

    python -m data_pipelines build visual_genome --annotations region_descriptions.json --image-data image_data.json
    --densecap densecap_splits.json --images VG_100K VG_100K_2 --out DATA

`region_descriptions.json` is the publisher's, or the one json in COCO's form that GRiT made of it (images; annotations
with bbox and caption). With --densecap the set has the splits of dense captioning (77,398 / 5,000 / 5,000 pictures),
else one split of all pictures. Real files hold boxes that pass the edge of the picture, spaces around phrases and exact
duplicates: they are cut, taken off, dropped, and counted. Importing this module registers the Task
`visual_genome_regions` (describe). Sources: Krishna et al. 2016 (arXiv 1602.07332), Johnson et al. 2016 (1511.07571;
the splits), Wu et al. 2022 (2212.00280; GRiT); https://homes.cs.washington.edu/~ranjay/visualgenome.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines import DataError, json_input, options, regions
from data_pipelines.regions import Picture, Region
from pixel_align.evaluation import seen

NAME = "visual_genome_regions"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # as the densecap file calls them, as we do


class VisualGenome(regions.RegionSet):
    """Descriptions of regions, each with its box."""

    HOMEPAGE = "https://homes.cs.washington.edu/~ranjay/visualgenome"
    COLLECTION = "visual_genome"
    DISTINCT = True


def read(path: str | Path, image_data: str | Path, only: Iterable[int] | None = None) -> Iterator[Picture]:
    """The publisher's region_descriptions.json and image_data.json, one picture after the other.

    Args:
      only: ids of the pictures to give; None: all.

    Raises DataError where a file is missing or broken.
    """
    images = read_image_data(image_data)
    names = seen.visual_genome_names(images.values())
    chosen = None if only is None else frozenset(only)
    form = "pictures with their regions: id, regions of region_id, phrase, x, y, width, height"
    with json_input.expected(path, "region file", form):
        for entry in json_input.elements(path, "region file"):
            number = entry["id"]
            if chosen is not None and number not in chosen:
                continue
            image = images.get(number)
            found = [_region(region, missing=image is None) for region in entry["regions"]]
            size = (image["height"], image["width"]) if image else None
            yield Picture(str(number), "", size, found, NAME, names.get(str(number), ""))


def read_image_data(path: str | Path) -> dict[int, Mapping[str, Any]]:
    """{image id: its entry} of image_data.json. Raises DataError."""
    with json_input.expected(path, "image data file", "pictures: image_id, width, height, coco_id"):
        images = {}
        for image in json_input.elements(path, "image data file"):
            if not all(isinstance(image[key], int) and image[key] > 0 for key in ("image_id", "width", "height")):
                raise ValueError(f"image_id, width or height of picture {image['image_id']} is no positive number")
            images[image["image_id"]] = image
        return images


def _region(region: Mapping[str, Any], missing: bool) -> Region:
    region_id = str(region["region_id"])
    if missing:
        problem = f"image {region.get('image_id')} is missing, expected it in the image data"
        return Region(region_id, region["phrase"], None, problem=problem)
    box = [region[key] for key in ("x", "y", "width", "height")]
    return Region.of_coco(region_id, region["phrase"], {"bbox": box})


def read_grit(path: str | Path, image_data: str | Path | None, only: Iterable[int] | None = None) -> Iterator[Picture]:
    """One json in COCO's form: images (id, file_name, width, height), annotations (image_id, id, bbox, caption).

    Without `image_data` it is not known which pictures are COCO's: all get Visual Genome's names.
    """
    names = seen.visual_genome_names(read_image_data(image_data).values()) if image_data else {}
    content = json_input.load(path, "region file")
    chosen = None if only is None else frozenset(only)
    form = "images (id, file_name, width, height), annotations (image_id, id, bbox, caption)"
    with json_input.expected(path, "region file", form):
        images = {image["id"]: image for image in content["images"]}
        found: dict[int, list[Region]] = {}
        for annotation in content["annotations"]:
            number = annotation["image_id"]
            if chosen is None or number in chosen:
                region_id, text = str(annotation["id"]), annotation["caption"]
                problem = "" if number in images else f"image {number} is missing, expected it among the images"
                region = Region(region_id, text, None, problem=problem)
                found.setdefault(number, []).append(region if problem else Region.of_coco(region_id, text, annotation))
        for number, own in found.items():
            image = images.get(number)
            size = (image["height"], image["width"]) if image else None
            file_name = str(image["file_name"]) if image else ""
            yield Picture(str(number), file_name, size, own, NAME, names.get(str(number), ""))


def densecap_splits(path: str | Path) -> dict[str, frozenset[int]]:
    """{split: image ids} of densecap_splits.json. Raises DataError."""
    content = json_input.load(path, "densecap file")
    with json_input.expected(path, "densecap file", "image ids of train, val and test"):
        found = {ours: frozenset(map(int, content[theirs])) for theirs, ours in _SPLITS.items()}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if both := found[first] & found[second]:
            raise DataError(
                f"densecap file {str(path)!r} has {len(both)} pictures in {first} and in {second}, expected none. "
                "Check the file."
            )
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m data_pipelines build visual_genome`."""
    parser.add_argument(
        "--annotations", required=True, metavar="FILE", help="region_descriptions.json, or GRiT's json in COCO's form"
    )
    parser.add_argument("--image-data", metavar="FILE", help="image_data.json; GRiT's form can do without")
    parser.add_argument("--densecap", metavar="FILE", help="densecap_splits.json: the splits of dense captioning")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="which to build: train, validation, test (default: those there)"
    )
    parser.add_argument("--name", default=NAME, help="name of the set (default: %(default)s)")
    options.add_arguments(parser, VisualGenome.UNIT)


def main(args: argparse.Namespace) -> None:
    """Builds as the options say and prints what came of it."""
    splits: dict[str, frozenset[int] | None] = {"train": None}
    if args.densecap:
        splits = {**densecap_splits(args.densecap)}
    elif args.splits and len(args.splits) == 1:
        splits = {args.splits[0]: None}
    grit = not _is_list(args.annotations)
    if not grit and not args.image_data:
        raise DataError("--image-data is missing, expected image_data.json: it has the sizes of the pictures. Give it.")
    files = [path for path in (args.annotations, args.image_data) if path]
    chosen = args.splits or list(splits)
    for split in chosen:
        if split not in splits:
            raise DataError(f"--splits has {split!r}, expected some of {', '.join(splits)}. Choose one of them.")
    for split in chosen:
        only = splits[split]
        built = regions.build(
            args.out,
            args.name,
            split,
            lambda only=only: (read_grit if grit else read)(args.annotations, args.image_data, only),  # type: ignore[misc]
            files=[*files, *([args.densecap] if args.densecap else [])],
            settings=split,
            kind=VisualGenome,
            shards=args.shards,
            overwrite=args.overwrite,
            **options.settings(args),
        )
        print(regions.describe(built))


def _is_list(path: str) -> bool:
    """Whether a JSON file begins as a list: the publisher's form. Raises DataError where there is no file."""
    if not Path(path).is_file():
        raise DataError(f"region file is {path!r}, expected a file that exists. Check --annotations.")
    with Path(path).open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


regions.register(NAME, "describe", score=regions.caption_scores)
regions.register("visual_genome_densecap", "densecap", NAME)
