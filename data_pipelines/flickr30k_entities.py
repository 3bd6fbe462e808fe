"""Flickr30k Entities: the phrases of five captions for each picture, with their boxes.

    python -m data_pipelines build flickr30k_entities --entities DIR --images flickr30k-images --out DATA

DIR is the publisher's folder: `Sentences/<id>.txt`, `Annotations/<id>.xml`, and `train.txt`, `val.txt`, `test.txt` with
the ids of the splits (29,783 / 1,000 / 1,000 pictures). A phrase that several boxes answer to gets the box around them
all, as the publisher's own evaluation merges them; phrases without a box (scenes, things not seen) are left out and
counted among neither good nor bad. Importing this module registers the Tasks `flickr30k_entities` (refer) and
`flickr30k_entities_regions` (describe). Source: Plummer et al. 2015 (arXiv 1505.04870),
https://github.com/BryanPlummer/flickr30k_entities.
"""

import argparse
import re
import xml.parsers.expat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.etree import ElementTree

from data_pipelines import DataError, options, regions
from data_pipelines.regions import Picture, Region, Size

NAME = "flickr30k_entities"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # as the publisher calls them, as we do
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/\w+)+) ([^\[\]]+)\]")
_MOST_BYTES = 4 * 1024**2  # of one file; real ones have a few thousand

Box = tuple[float, float, float, float]


class FlickrEntities(regions.RegionSet):
    """Phrases of captions, each with the box around what it names."""

    HOMEPAGE = "https://bryanplummer.com/Flickr30kEntities"
    COLLECTION = "flickr30k"


class Phrase(NamedTuple):
    """A piece of a caption that names an entity: `entity` is its id, `kinds` such as ("people",)."""

    entity: str
    kinds: tuple[str, ...]
    text: str


def phrases(line: str) -> list[Phrase]:
    """The phrases of one line of Sentences/<id>.txt: `[/EN#283585/people Two young guys] with ...`."""
    return [Phrase(entity, tuple(kinds[1:].split("/")), text) for entity, kinds, text in _PHRASE.findall(line)]


def boxes(content: bytes) -> tuple[Size, dict[str, list[Box]]]:
    """Annotations/<id>.xml -> (size of the picture, {entity: its boxes xyxy in pixels}). Raises ValueError."""
    root = _parse(content)
    size = int(_text(root, "size/height")), int(_text(root, "size/width"))
    found: dict[str, list[Box]] = {}
    for item in root.iterfind("object"):
        for corner in item.iterfind("bndbox"):
            x0, y0, x1, y1 = (float(_text(corner, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
            for name in item.iterfind("name"):
                found.setdefault(str(name.text).strip(), []).append((x0, y0, x1, y1))
    return size, found


def read(folder: str | Path, ids: Iterable[str]) -> Iterator[Picture]:
    """The pictures of some ids with their phrases that have boxes. Raises DataError where a file is missing or broken.

    A phrase is named <image id>#<caption>:<place in the caption>, both from 0.
    """
    for image_id in ids:
        sentences = _read(Path(folder) / "Sentences" / f"{image_id}.txt").decode("utf-8", "replace")
        path = Path(folder) / "Annotations" / f"{image_id}.xml"
        try:
            size, places = boxes(_read(path))
        except (ValueError, ElementTree.ParseError, xml.parsers.expat.ExpatError) as error:
            raise DataError(
                f"annotation {str(path)!r} is broken ({error}), expected size, objects with bndbox. Fetch it again."
            ) from error
        found = []
        for number, line in enumerate(sentences.splitlines()):
            for k, phrase in enumerate(phrases(line)):
                if own := places.get(phrase.entity):
                    x0, y0, x1, y1 = zip(*own, strict=True)
                    around = (min(x0), min(y0), max(x1), max(y1))
                    region_id = f"{image_id}#{number}:{k}"
                    found.append(Region(region_id, phrase.text, around, object_id=f"{image_id}:{phrase.entity}"))
        yield Picture(image_id, f"{image_id}.jpg", size, found, NAME)


def split_ids(folder: str | Path, split: str) -> list[str]:
    """The image ids of a split, as the publisher calls it. Raises DataError where its file is missing or odd."""
    path = Path(folder) / f"{split}.txt"
    ids = _read(path).decode("utf-8", "replace").split()
    odd = next((i for i in ids if not i.isdigit()), None)
    if odd is not None or not ids:
        raise DataError(f"split file {str(path)!r} holds {odd!r:.50}, expected one image id, a number, in each line.")
    return ids


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"file of Flickr30k Entities is {str(path)!r}, expected one that exists. Check --entities.")
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"{str(path)!r} has {path.stat().st_size:,} bytes, expected at most {_MOST_BYTES:,}. Check it.")
    return path.read_bytes()


def _parse(content: bytes) -> ElementTree.Element:
    """XML from strangers: no document types, so no entities that grow or that read other files."""
    builder = ElementTree.TreeBuilder()
    parser = xml.parsers.expat.ParserCreate()

    def refuse(*_: object) -> NoReturn:
        raise ValueError("it declares a document type or an entity")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"{path} is missing")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m data_pipelines build flickr30k_entities`."""
    parser.add_argument(
        "--entities", required=True, metavar="DIR", help="folder with Sentences, Annotations, train.txt"
    )
    parser.add_argument(
        "--splits", nargs="+", choices=_SPLITS.values(), metavar="SPLIT", help="which to build (default: all)"
    )
    parser.add_argument("--name", default=NAME, help="name of the set (default: %(default)s)")
    options.add_arguments(parser, FlickrEntities.UNIT)


def main(args: argparse.Namespace) -> None:
    """Builds as the options say and prints what came of it."""
    for theirs, split in _SPLITS.items():
        if args.splits and split not in args.splits:
            continue
        ids = split_ids(args.entities, theirs)
        files = [Path(args.entities) / f"{theirs}.txt"]
        files += [
            Path(args.entities) / kind / f"{i}.{suffix}"
            for i in ids
            for kind, suffix in (("Sentences", "txt"), ("Annotations", "xml"))
        ]
        built = regions.build(
            args.out,
            args.name,
            split,
            lambda ids=ids: read(args.entities, ids),  # type: ignore[misc]
            files=[path for path in files if path.is_file()],
            settings=split,
            kind=FlickrEntities,
            shards=args.shards,
            overwrite=args.overwrite,
            **options.settings(args),
        )
        print(regions.describe(built))


regions.register(NAME, "refer")
regions.register(f"{NAME}_regions", "describe", NAME, score=regions.caption_scores)
