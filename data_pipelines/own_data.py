"""Your own pictures: one file of JSON lines, one line for each picture -> a set for each task -> seqio Tasks.

    python -m data_pipelines build own --annotations my.jsonl --images DIR --out DATA --split train

A line names its picture and holds any of captions, narratives with traces, expressions, regions, questions;
docs/own_data.md describes them with an example. Each kind becomes a set of its own, built by the same code as the
public ones: `own_captions`, `own_narratives`, `own_expressions` (refer), `own_regions` (describe), `own_questions`. The
whole file is checked before anything is built. Importing this module registers the Tasks of these names.
"""

import argparse
import dataclasses
import difflib
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import seqio
import tensorflow_datasets as tfds

from data_pipelines import DataError, building, coco_captions, options, questions, regions, sources
from data_pipelines import localized_narratives as ln
from data_pipelines.narratives import BadRecord, Skipped, annotation_files, read_lines
from data_pipelines.regions import Picture, Region

Line = Mapping[str, Any]
Lines = Iterator[tuple[str, bytes]]

_FIELDS = ("file", "captions", "narratives", "expressions", "regions", "questions")
_PARTS = {
    "narratives": ("caption", "timed_caption", "traces"),
    "expressions": ("text", "box", "mask", "object"),
    "regions": ("phrase", "box", "mask", "object"),
    "questions": ("question", "answer"),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of annotation: its set, who builds it, and its lines in a line of the file."""

    builder: type[building.PictureSet]
    lines: Callable[[str, str, Line, str], Lines]  # (where, image id, fields, collection)


def read(patterns: Sequence[str]) -> Iterator[tuple[str, str, Line]]:
    """(where, image id, fields) of each line of one or several files. Raises DataError at the first that is none.

    The image id is the file's path below its folder, without suffix.
    """
    seen: dict[str, str] = {}
    for where, line in read_lines(patterns):
        fields = _fields(where, line)
        file = fields["file"]
        image_id = PurePosixPath(file).with_suffix("").as_posix()
        if seen.setdefault(image_id, file) != file:
            raise DataError(
                f"{where}: file is {file!r} beside {seen[image_id]!r}, expected names that differ in more than the "
                "suffix. Rename one."
            )
        yield where, image_id, fields


def _fields(where: str, line: bytes) -> Line:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}), expected an object in each line. Correct the line.") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where} is a {type(fields).__name__}, expected an object in each line. Correct the line.")
    _check_keys(where, fields, _FIELDS)
    file = fields.get("file")
    if not isinstance(file, str) or not file.strip() or file.startswith("/") or ".." in PurePosixPath(file).parts:
        raise DataError(f"{where}: file is {file!r:.100}, expected a path below --images. Correct the line.")
    for key in _FIELDS[1:]:
        found = fields.get(key, [])
        form = str if key == "captions" else dict
        if not isinstance(found, list) or not all(isinstance(item, form) for item in found):
            expected = "texts" if key == "captions" else "objects"
            raise DataError(f"{where}: {key} is {found!r:.100}, expected a list of {expected}. Correct the line.")
        for k, item in enumerate(found):
            if key in _PARTS:
                _check_keys(f"{where}, {key}[{k}]", item, _PARTS[key])
    return fields


def _check_keys(where: str, fields: Line, known: Sequence[str]) -> None:
    for key in fields:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Take it out."
            raise DataError(f"{where} has the field {key!r:.50}, expected {', '.join(known)}. {hint}")


def _captions(where: str, image_id: str, fields: Line, collection: str) -> Lines:
    for k, caption in enumerate(fields.get("captions", [])):
        told = {"caption": caption.strip(), "timed_caption": [], "traces": []}
        yield f"{where}, captions[{k}]", _narrative(image_id, told, collection)


def _narratives(where: str, image_id: str, fields: Line, collection: str) -> Lines:
    for k, told in enumerate(fields.get("narratives", [])):
        yield f"{where}, narratives[{k}]", _narrative(image_id, {"timed_caption": [], "traces": [], **told}, collection)


def _narrative(image_id: str, told: Line, collection: str) -> bytes:
    return json.dumps({**told, "image_id": image_id, "dataset_id": collection, "annotator_id": 0}).encode()


def _regions(where: str, image_id: str, fields: Line, collection: str, key: str, text: str) -> Lines:
    for k, item in enumerate(fields.get(key, [])):
        told = item.get("object", "")
        problem = "" if isinstance(told, str | int) else f"object is {told!r:.50}, expected a name or a number"
        object_id = "" if told == "" or problem else f"{image_id}:{told}"
        region = Region(f"{image_id}#{k}", item.get(text), item.get("box"), item.get("mask"), object_id, problem)
        picture = Picture(image_id, fields["file"], None, [region], collection)
        for _, line in regions.lines([picture]):
            yield f"{where}, {key}[{k}]", line


def _questions(where: str, image_id: str, fields: Line, collection: str) -> Lines:
    for k, item in enumerate(fields.get("questions", [])):
        line = {"image_id": image_id, "dataset_id": collection, **item}
        yield f"{where}, questions[{k}]", json.dumps(line).encode()


KINDS = {
    "captions": Kind(ln.LocalizedNarratives, _captions),
    "narratives": Kind(ln.LocalizedNarratives, _narratives),
    "expressions": Kind(regions.RegionSet, functools.partial(_regions, key="expressions", text="text")),
    "regions": Kind(regions.RegionSet, functools.partial(_regions, key="regions", text="phrase")),
    "questions": Kind(questions.QuestionSet, _questions),
}


def build(
    out: str | Path,
    split: str,
    inputs: building.Inputs,
    *,
    collection: str = "own",
    shards: int | None = None,
    overwrite: bool = False,
) -> dict[str, building.Built]:
    """Builds the sets of all kinds that the files hold, {kind: what was built}; see `building.build`.

    Args:
      collection: where the pictures are from, if that is a public one (see `pixel_align.evaluation.seen`).

    Raises DataError, before anything is built, where a line is wrong or too many annotations are.
    """
    files = [str(path) for path in annotation_files(inputs.annotations)]
    found = check(files, inputs, collection)
    built = {}
    for kind in found:

        def lines(kind: str = kind) -> Lines:
            for where, image_id, fields in read(files):
                yield from KINDS[kind].lines(where, image_id, fields, collection)

        own = dataclasses.replace(inputs, lines=lines, settings=f"{kind} {collection}")
        built[kind] = building.build(
            out, split, own, name=f"own_{kind}", kind=KINDS[kind].builder, shards=shards, overwrite=overwrite
        )
    return built


def check(patterns: Sequence[str], inputs: building.Inputs, collection: str = "own") -> dict[str, int]:
    """How many annotations of each kind the files hold. Raises DataError where a line is wrong, or too many of them."""
    counts, skipped = Counter[str](), {kind: Skipped() for kind in KINDS}
    for where, image_id, fields in read(patterns):
        for name, kind in KINDS.items():
            for at, line in kind.lines(where, image_id, fields, collection):
                counts[name] += 1
                try:
                    kind.builder.parse(line)
                except BadRecord as error:
                    skipped[name].add("bad record", at, str(error))
    if not counts:
        raise DataError(
            f"annotation files {', '.join(patterns)} hold no annotation, expected some of {', '.join(KINDS)}. Add them."
        )
    for name in KINDS:
        if counts[name] and skipped[name].total == counts[name]:
            first = skipped[name].named[0]
            raise DataError(
                f"number of good {name} is 0 of {counts[name]}, expected some. Correct them. First: {first}"
            )
        building.check_skipped(skipped[name], counts[name], inputs, name)
    return {name: counts[name] for name in KINDS if counts[name]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m data_pipelines build own`."""
    parser.add_argument(
        "--annotations", nargs="+", required=True, metavar="FILE", help="jsonl files, plain or gzipped; globs"
    )
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument(
        "--collection", default="own", help="coco, flickr30k ...: whose pictures these are (default: %(default)s)"
    )
    options.add_arguments(parser, "annotations")


def main(args: argparse.Namespace) -> None:
    """Builds as the options say and prints what came of it."""
    inputs = building.Inputs(tuple(args.annotations), **options.settings(args))
    built = build(
        args.out, args.split, inputs, collection=args.collection, shards=args.shards, overwrite=args.overwrite
    )
    for kind, found in built.items():
        counts = {key: (found.report[key], "") for key in KINDS[kind].builder.COUNTS}
        print(options.describe(found, KINDS[kind].builder.UNIT, counts))


if "own_captions" not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
        "own_captions",
        source=sources.TfdsFolder("own_captions", decoders={"image": tfds.decode.SkipDecoding()}),
        preprocessors=[
            ln.one_example_per_narrative,
            functools.partial(ln.give_words_places, rule="text", instructions=coco_captions.INSTRUCTIONS),
        ],
        output_features=ln.OUTPUT_FEATURES,
        metric_fns=[],  # nothing to locate
    )
ln.register("own_narratives")
regions.register("own_expressions", "refer")
regions.register("own_regions", "describe")
regions.register("own_densecap", "densecap", "own_regions")
questions.register("own_questions")
