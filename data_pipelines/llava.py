"""Conversations about pictures, as LLaVA and ShareGPT4V publish them: every question with its answer is a region.

    python -m data_pipelines build llava --annotations sharegpt4v_mix665k.json --images DATA_OF_LLAVA --out DATA

A file is one JSON list of {id, image, conversations: [{from: human | gpt, value}]}, plain or gzipped. `image` is a path
below one of --images (some of its first folders may be missing there), so ids of several collections do not mix. Turns
are asked one by one, as published: a later one that needs the earlier ones does not see them. "<image>", which says
where the picture is shown, is taken out. Items without a picture are dropped and counted; what is no question with its
answer is left out, counted and named. Importing this module registers the Tasks `sharegpt4v_mix665k` and
`llava_v1_5_mix665k`, each also in two parts that need batches of different shapes: `..._short` (answers of at most 40
characters) and `..._long` (the rest).
Sources: Liu et al. 2023 (arXiv 2310.03744; LLaVA-1.5), Chen et al. 2023 (2311.12793; ShareGPT4V).
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from data_pipelines import building, json_input, options, questions, visual_genome
from data_pipelines.narratives import annotation_files
from pixel_align.evaluation import seen

NAME = "sharegpt4v_mix665k"
NAMES = (NAME, "llava_v1_5_mix665k")
SHORT = 40  # characters

# Folders of the published mixtures whose pictures are those of another collection under its own ids.
_COLLECTIONS = {"coco": "coco", "gqa": "visual_genome", "vg": "visual_genome", "textvqa": "open_images"}
_SHOWN = "<image>"  # where the picture is in a question


class Llava(questions.QuestionSet):
    """Questions about pictures of several collections, with their answers."""

    DESCRIPTION = "Pictures with conversations about them, as separate questions and answers."
    HOMEPAGE = "https://llava-vl.github.io"

    @staticmethod
    def files(annotation: questions.Question) -> tuple[str, ...]:
        # A bare number may be another picture in another folder: a folder stays before it.
        parts = annotation.image_id.split("/")
        return tuple("/".join(parts[k:]) for k in range(max(1, len(parts) - 1)))


def read(
    path: str | os.PathLike[str], dataset_id: str, names: Mapping[str, str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """The questions of one file as lines that `QuestionSet.parse` reads, as (where, line).

    Args:
      dataset_id: the name of the set; also says whose pictures those are that no folder tells.
      names: canonical names of Visual Genome's pictures, {id: name}; without, none is known to be COCO's.

    Raises DataError where the file is missing or no whole JSON list.
    """
    files: dict[str, str] = {}  # image id -> its path
    for number, item in enumerate(json_input.elements(path, "conversation file"), 1):
        where = f"{os.path.basename(path)}: item {number}"
        if not isinstance(item, dict):
            yield where, _problem(f"item is a {type(item).__name__}, expected an object")
            continue
        where += f" (id {item['id']!r:.50})" if "id" in item else ""
        if item.get("image") is None:
            yield where, json.dumps({"dropped": "item without a picture dropped"}).encode()
            continue
        image, turns = item["image"], item.get("conversations")
        image_id = _image_id(image)
        if not image_id:
            yield where, _problem(f"image is {image!r:.100}, expected the path of one picture")
        elif files.setdefault(image_id, image) != image:
            other = files[image_id]
            yield where, _problem(f"image is {image!r:.100} beside {other!r:.100}, expected one of them")
        elif not isinstance(turns, list) or not turns:
            yield where, _problem(f"conversations is {turns!r:.100}, expected a list of turns")
        else:
            of_picture = {"image_id": image_id, "dataset_id": dataset_id, "name": _name(image_id, names or {})}
            for turn, fields in _questions(turns):
                yield f"{where}, turn {turn}", json.dumps({**of_picture, **fields}).encode()


def _problem(problem: str) -> bytes:
    return json.dumps({"problem": problem}).encode()


def _image_id(image: Any) -> str:
    """The path of a picture without suffix, "" for what is none."""
    if not isinstance(image, str):
        return ""
    path = PurePosixPath(image.strip())
    return path.with_suffix("").as_posix() if path.name and path.name != ".." else ""


def _name(image_id: str, names: Mapping[str, str]) -> str:
    folder, number = PurePosixPath(image_id).parts[0], PurePosixPath(image_id).name
    collection = _COLLECTIONS.get(folder) if folder != number else None
    return names.get(number, seen.canonical(collection, number)) if collection else ""


def _questions(turns: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the turn, its fields): a turn of a human and the one of the model that follows it at once."""
    asked: tuple[int, Any] | None = None
    for number, turn in enumerate(turns, 1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if asked is not None and speaker != "gpt":
            yield asked[0], {"problem": "question has no answer behind it, expected a turn from gpt"}
            asked = None
        if speaker == "human":
            asked = number, _without_image(turn.get("value"))
        elif speaker == "gpt" and asked is not None:
            yield asked[0], {"question": asked[1], "answer": turn.get("value")}
            asked = None
        elif speaker == "gpt":
            yield number, {"problem": "answer has no question before it, expected a turn from human"}
        else:
            yield number, {"problem": f"turn is {turn!r:.100}, expected one from human or gpt"}
    if asked is not None:
        yield asked[0], {"problem": "question has no answer behind it, expected a turn from gpt"}


def _without_image(value: Any) -> Any:
    """A question without the word for the picture; what is no text is left to be refused."""
    return " ".join(filter(None, map(str.strip, value.split(_SHOWN)))) if isinstance(value, str) else value


def build(
    out: str | os.PathLike[str],
    name: str,
    split: str,
    files: Sequence[str | os.PathLike[str]],
    *,
    images: Sequence[str | os.PathLike[str]],
    dataset_id: str = "",
    image_data: str | os.PathLike[str] | None = None,
    shards: int | None = None,
    overwrite: bool = False,
    **limits: Any,
) -> building.Built:
    """Builds one split of a set of conversations; see `building.build`.

    Args:
      files: names or globs. images: folders.
      dataset_id: what the set is called in its records, `name` by default; also whose pictures those are that no folder
        of the file tells.
      image_data: Visual Genome's image_data.json: says which of its pictures are COCO's.
      limits: max_skipped, max_pixels, max_side, threads of `building.Inputs`.
    """
    paths = [str(path) for path in annotation_files([str(file) for file in files])]

    def lines() -> Iterator[tuple[str, bytes]]:
        names = seen.visual_genome_names(visual_genome.read_image_data(str(image_data)).values()) if image_data else {}
        for path in paths:
            yield from read(path, dataset_id or name, names)

    read_too = [*paths, *([str(image_data)] if image_data else [])]
    inputs = building.Inputs(
        tuple(read_too), tuple(map(str, images)), lines=lines, settings=f"llava {dataset_id or name}", **limits
    )
    return building.build(out, split, inputs, name=name, kind=Llava, shards=shards, overwrite=overwrite)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m data_pipelines build llava`."""
    parser.add_argument(
        "--annotations", nargs="+", required=True, metavar="FILE", help="JSON lists of conversations; globs"
    )
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--name", default=NAME, help="name of the set (default: %(default)s)")
    parser.add_argument(
        "--collection",
        default="",
        help="coco, flickr30k ...: whose pictures those are that no folder of the published mixtures tells",
    )
    parser.add_argument("--image-data", metavar="FILE", help="Visual Genome's image_data.json: which are COCO's")
    options.add_arguments(parser, Llava.UNIT)


def main(args: argparse.Namespace) -> None:
    """Builds as the options say and prints what came of it."""
    built = build(
        args.out,
        args.name,
        args.split,
        args.annotations,
        dataset_id=args.collection,
        image_data=args.image_data,
        shards=args.shards,
        overwrite=args.overwrite,
        **options.settings(args),
    )
    print(options.describe(built, Llava.UNIT, {"questions": (built.report["questions"], "")}))


for task in NAMES:
    questions.register(task)
    questions.register(f"{task}_short", task, most=SHORT)
    questions.register(f"{task}_long", task, fewest=SHORT + 1)
