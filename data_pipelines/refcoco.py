"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that each name one object of a COCO picture.

    python -m data_pipelines build refcoco --name refcoco_unc --refer REFER/data --images train2014 --out DATA

The annotations come in four forms: the publisher's `refs(<by>).p` with `instances.json` (--refer), the json that TFDS
asks for (--tfds), and those of MDETR and UNINEXT (--mdetr, --uninext; see those modules). All official splits of a set
are built at once. `refcoco_mixed` is the training expressions of RefCOCO, RefCOCO+ and RefCOCOg (umd) on pictures that
none of the three evaluates on. Importing this module registers the Tasks: each set by its name (refer), and
`refcocog_umd_regions` (describe).

Sources: Yu et al. 2016 (arXiv 1608.00272; RefCOCO, RefCOCO+), Mao et al. 2016 (1511.02283; RefCOCOg, google), Nagaraja
et al. 2016 (1608.00525; RefCOCOg, umd); https://github.com/lichengunc/refer.
"""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines import DataError, json_input, mdetr, options, pickles, regions, uninext
from data_pipelines.regions import Picture, Region

# Set -> (data set, who split it), as the publisher's folders and files are called.
SETS = {
    "refcoco_unc": ("refcoco", "unc"),
    "refcoco_google": ("refcoco", "google"),
    "refcocoplus_unc": ("refcoco+", "unc"),
    "refcocoplus_google": ("refcoco+", "google"),
    "refcocog_umd": ("refcocog", "umd"),
    "refcocog_google": ("refcocog", "google"),
}
MIXED = "refcoco_mixed"
_IN_MIXED = ("refcoco_unc", "refcocoplus_unc", "refcocog_umd")
_SPLITS = {"val": "validation"}  # the others keep their names: train, test, testA, testB


class Counts(NamedTuple):
    """Of one split."""

    expressions: int
    objects: int
    pictures: int

    def __str__(self) -> str:
        return f"{self.expressions:,} expressions of {self.objects:,} objects on {self.pictures:,} pictures"


# What the published files hold. The paper of RefCOCOg counts 104,560 expressions of 54,822 objects on 26,711 pictures;
# its test part was never published.
PUBLISHED = {
    "refcoco_unc": {
        "train": Counts(120_624, 42_404, 16_994),
        "validation": Counts(10_834, 3_811, 1_500),
        "testA": Counts(5_657, 1_975, 750),
        "testB": Counts(5_095, 1_810, 750),
    },
    "refcocoplus_unc": {
        "train": Counts(120_191, 42_278, 16_992),
        "validation": Counts(10_758, 3_805, 1_500),
        "testA": Counts(5_726, 1_975, 750),
        "testB": Counts(4_889, 1_798, 750),
    },
    "refcocog_umd": {
        "train": Counts(80_512, 42_226, 21_899),
        "validation": Counts(4_896, 2_573, 1_300),
        "test": Counts(9_602, 5_023, 2_600),
    },
    "refcocog_google": {
        "train": Counts(85_474, 44_822, 24_698),
        "validation": Counts(9_536, 5_000, 4_650),
    },
}

Splits = dict[str, list[Picture]]


class RefCoco(regions.RegionSet):
    """Expressions of one of the sets, each with the box and the mask of its object."""

    HOMEPAGE = "https://github.com/lichengunc/refer"
    COLLECTION = "coco"  # whatever the set is called


def read_refer(folder: str | Path, name: str, text: str = "sent") -> Splits:
    """The publisher's files of a set, in `folder`/<data set> or in `folder` itself.

    Args:
      text: "sent", the expressions as the publisher cleaned them, lower-case, which published results use; or "raw".

    Raises DataError where a file is missing or broken.
    """
    refs_file, instances_file = refer_files(folder, name)
    refs = pickles.load(refs_file, "refs file")
    instances = json_input.load(instances_file, "instances file")
    with json_input.expected(instances_file, "instances file", "COCO instances: images, annotations"):
        images = {image["id"]: image for image in instances["images"]}
        annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    with json_input.expected(refs_file, "refs file", "a list of refs: ref_id, ann_id, image_id, split, sentences"):
        return _splits(refs, images, annotations, name, text)


def refer_files(folder: str | Path, name: str) -> tuple[Path, Path]:
    """refs(<by>).p and instances.json of a set. Raises DataError where they are not there."""
    data_set, by = SETS[name]
    places = [Path(folder) / data_set, Path(folder)]
    for place in places:
        found = place / f"refs({by}).p", place / "instances.json"
        if all(path.is_file() for path in found):
            return found
    raise DataError(
        f"folder of {name} is {str(folder)!r}, expected {data_set}/refs({by}).p and {data_set}/instances.json in it. "
        "Check --refer."
    )


def read_tfds(path: str | Path, name: str, text: str = "sent") -> Splits:
    """The file that TFDS's `ref_coco` asks for: the refs of all sets, each with its annotation; it tells no sizes."""
    content = json_input.load(path, "ref_coco file")
    with json_input.expected(path, "ref_coco file", 'refs with their annotations: {"ref": [...]}'):
        refs = [ref for ref in content["ref"] if (ref["dataset"], ref["dataset_partition"]) == SETS[name]]
        annotations = {ref["ann_id"]: ref["ann"] for ref in refs}
        images = {image["id"]: image for image in content.get("images", ())}
        found = _splits(refs, images, annotations, name, text)
    if not found:
        held = sorted({f"{ref.get('dataset')} ({ref.get('dataset_partition')})" for ref in content["ref"]})
        raise DataError(
            f"ref_coco file {str(path)!r} holds no expression of {name}, expected some; it holds {', '.join(held)}. "
            "Check --name."
        )
    return found


def _splits(
    refs: Sequence[Mapping[str, Any]],
    images: Mapping[Any, Mapping[str, Any]],
    annotations: Mapping[Any, Mapping[str, Any]],
    name: str,
    text: str,
) -> Splits:
    """Refs, each with one picture, to their splits. `images` empty: their sizes are those of the files."""
    found: Splits = {}
    for ref in refs:
        annotation = annotations.get(ref["ann_id"])
        image = images.get(ref["image_id"], {})
        problem = ""
        if annotation is None:
            problem = f"annotation {ref['ann_id']} of ref {ref['ref_id']} is missing, expected it among the instances"
        elif images and not image:
            problem = f"image {ref['image_id']} of ref {ref['ref_id']} is missing, expected it among the instances"
        elif annotation.get("image_id", ref["image_id"]) != ref["image_id"]:
            problem = f"image of ref {ref['ref_id']} is {ref['image_id']}, expected {annotation['image_id']}"
        told = [(str(sentence["sent_id"]), sentence[text]) for sentence in ref["sentences"]]
        object_id = str(ref["ann_id"])
        of_ref = [
            Region(region_id, words, None, object_id=object_id, problem=problem)
            if problem
            else Region.of_coco(region_id, words, annotation or {}, object_id)
            for region_id, words in told
        ]
        split = str(ref["split"])
        found.setdefault(_SPLITS.get(split, split), []).append(
            Picture(
                image_id=str(ref["image_id"]),
                file_name=str(image.get("file_name", "")),
                size=(image["height"], image["width"]) if image else None,
                regions=of_ref,
                dataset_id=name,
            )
        )
    return found


def mixed(sets: Mapping[str, Splits]) -> list[Picture]:
    """The training expressions of several sets, without the pictures that any of them evaluates on.

    Expressions keep their set's name in their ids, objects are the same in all sets.
    """
    held_out = {p.image_id for splits in sets.values() for split in splits if split != "train" for p in splits[split]}
    return [
        dataclasses.replace(
            picture,
            regions=[dataclasses.replace(region, region_id=f"{name}:{region.region_id}") for region in picture.regions],
            dataset_id=MIXED,
        )
        for name, splits in sets.items()
        for picture in splits.get("train", ())
        if picture.image_id not in held_out
    ]


def counts(found: Sequence[Picture]) -> Counts:
    """What the pictures of a split hold."""
    per_image = Counter(picture.image_id for picture in found)
    all_of_them = [region for picture in found for region in picture.regions]
    objects = {region.object_id for region in all_of_them} - {""}
    return Counts(len(all_of_them), len(objects), len(per_image))


def compare(name: str, split: str, held: Counts) -> str:
    """One line where a split does not hold what was published, else ""."""
    published = PUBLISHED.get(name, {}).get(split)
    if published is None:
        return ""
    # Some forms do not tell objects apart.
    if held == published or (not held.objects and held._replace(objects=published.objects) == published):
        return ""
    return f"note: {name}, split {split} holds {held}, published {published}. It is a part of the set, or another one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m data_pipelines build refcoco`."""
    parser.add_argument(
        "--name", required=True, metavar="SET", help=f"{', '.join([*SETS, MIXED])}, or any name with --mdetr, --uninext"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--refer", metavar="DIR", help="folder with <data set>/refs(<by>).p and instances.json")
    source.add_argument("--tfds", metavar="FILE", help="the json that TFDS's ref_coco asks for")
    source.add_argument("--mdetr", metavar="FILE", help="json in MDETR's form, of one split: name it with --splits")
    source.add_argument("--uninext", metavar="FILE", help="instances.json in UNINEXT's form")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="which to build (default: all that are there)")
    parser.add_argument(
        "--text",
        choices=("sent", "raw"),
        default="sent",
        help="expressions as cleaned, or as typed (default: %(default)s)",
    )
    options.add_arguments(parser, RefCoco.UNIT)


def main(args: argparse.Namespace) -> None:
    """Builds as the options say and prints what came of it."""
    found, files = _read(args)
    chosen = args.splits or list(found)
    for split in chosen:
        if split not in found:
            raise DataError(f"--splits has {split!r}, expected some of {', '.join(found)}. Choose one of them.")
    for split in chosen:
        if note := compare(args.name, split, counts(found[split])):
            print(note)
        built = regions.build(
            args.out,
            args.name,
            split,
            lambda split=split: found[split],  # type: ignore[misc]
            files=files,
            settings=f"{split} {args.text}",
            kind=RefCoco,
            shards=args.shards,
            overwrite=args.overwrite,
            **options.settings(args),
        )
        print(regions.describe(built))


def _read(args: argparse.Namespace) -> tuple[Splits, list[Path]]:
    """The splits that the options name, and the files that they are read from."""
    if args.mdetr:
        if len(args.splits or ()) != 1:
            raise DataError(f"--splits is {args.splits}, expected the one split that a file of MDETR's holds. Name it.")
        return {args.splits[0]: list(mdetr.read(args.mdetr, args.name))}, [Path(args.mdetr)]
    if args.uninext:
        splits = uninext.read(args.uninext, args.name)
        return {_SPLITS.get(split, split): pictures for split, pictures in splits.items()}, [Path(args.uninext)]
    if args.name not in (*SETS, MIXED):
        raise DataError(f"--name is {args.name!r}, expected one of {', '.join([*SETS, MIXED])}. Choose one of them.")
    names = _IN_MIXED if args.name == MIXED else (args.name,)
    if args.tfds:
        sets = {name: read_tfds(args.tfds, name, args.text) for name in names}
        files = [Path(args.tfds)]
    else:
        sets = {name: read_refer(args.refer, name, args.text) for name in names}
        files = [path for name in names for path in refer_files(args.refer, name)]
    return ({"train": mixed(sets)} if args.name == MIXED else sets[args.name]), files


for _name in (*SETS, MIXED):
    regions.register(_name, "refer")
regions.register("refcocog_umd_regions", "describe", "refcocog_umd", score=regions.caption_scores)
