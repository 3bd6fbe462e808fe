"""The synthetic world on disk: scenes written in the publishers' own raw formats.

    python -m data_pipelines.synthetic --out DIR --scenes 1000 --also expressions regions questions

`write` lays scenes down as Localized Narratives (jsonl of 7 fields), JPEG and COCO instances (the name of a category is
the full name of an object, "small red circle"; masks are of what can be seen), so that they take the same road through
the builders as real data. On demand it adds, each in the form of those who made it up:

- expressions: `refs(unc).p` as RefCOCO has it; `kind_of(sent_id)` tells what it takes to understand an expression;
- regions: `region_descriptions.json` and `image_data.json` as Visual Genome has them, each object by its full name;
- questions: `questions.json`, conversations as LLaVA has them, answers of one word.

What scenes hold and what is said of them is in `synthetic_scenes`, `synthetic_expressions`, `synthetic_questions`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import rich.progress

from data_pipelines import pickles
from data_pipelines.synthetic_expressions import KINDS, Kind, expressions, phrase
from data_pipelines.synthetic_questions import questions
from data_pipelines.synthetic_scenes import (
    COLOURS,
    MISHEARD,
    PRESETS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    Thing,
    Word,
    World,
    draw,
    easy,
    generator,
    polygon_area,
    scene,
    visible,
)
from pixel_align.text import INSTRUCTIONS

__all__ = [
    "ALSO",
    "COLOURS",
    "KINDS",
    "MISHEARD",
    "PRESETS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Files",
    "Scene",
    "Thing",
    "Word",
    "World",
    "draw",
    "easy",
    "encode",
    "kind_of",
    "main",
    "polygon_area",
    "polygons_of",
    "scene",
    "texts",
    "visible",
    "write",
]

ALSO = ("expressions", "regions", "questions")  # what can be written beside narratives and instances


@dataclasses.dataclass(frozen=True)
class Files:
    """Where a written split lies."""

    narratives: pathlib.Path  # Localized Narratives, one record a line
    images: pathlib.Path  # folder of <12 digits>.jpg, as COCO names them
    instances: pathlib.Path  # COCO instances
    refs: pathlib.Path | None = None  # RefCOCO's refs(unc).p: its folder is what `refcoco.read_refer` reads
    region_descriptions: pathlib.Path | None = None  # Visual Genome's
    image_data: pathlib.Path | None = None  # Visual Genome's
    questions: pathlib.Path | None = None  # LLaVA's conversations

    @classmethod
    def of(cls, folder: pathlib.Path, also: Sequence[str]) -> Files:
        """The names of the files of a split in its folder."""
        return cls(
            folder / "narratives.jsonl",
            folder / "images",
            folder / "instances.json",
            refs=folder / "refs(unc).p" if "expressions" in also else None,
            region_descriptions=folder / "region_descriptions.json" if "regions" in also else None,
            image_data=folder / "image_data.json" if "regions" in also else None,
            questions=folder / "questions.json" if "questions" in also else None,
        )


def write(
    world: World,
    out_dir: str | os.PathLike[str],
    scenes: int,
    seed: int,
    split: str = "train",
    *,
    also: Sequence[str] = (),
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Files:
    """Writes scenes 0 to `scenes` - 1 of a split to `out_dir`/`split`.

    The folder appears when it is whole. One that is there and was written with the same settings is left as it is.

    Args:
      also: some of ALSO, written beside narratives, pictures and instances.
      progress: hears of each run of scenes done.

    Raises:
      FileExistsError: the folder is there and holds something else.
      ValueError: `scenes` is below 1, `split` is not one of SPLITS, `also` not some of ALSO, or the world has no room
        for its objects.
    """
    if not set(also) <= set(ALSO):
        raise ValueError(f"also is {tuple(also)}, expected some of {ALSO}. Choose from these.")
    also = tuple(name for name in ALSO if name in also)
    if scenes < 1:
        raise ValueError(f"scenes is {scenes}, expected at least 1. Say how many to draw.")
    generator(seed, split, 0, "scene")  # an unknown split is named before anything is written
    folder = pathlib.Path(out_dir) / split
    settings = json.dumps(
        {"world": dataclasses.asdict(world), "scenes": scenes, "seed": seed, "split": split, "also": also}, indent=1
    )
    files = Files.of(folder, also)
    if folder.exists():
        written = folder / "world.json"
        if not written.is_file() or written.read_text() != settings:
            raise FileExistsError(
                f"output folder is {folder}, which holds something else, expected none or these very scenes. "
                "Remove it or choose another --out."
            )
        return files
    partial = folder.with_name(f".{split}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    (partial / "images").mkdir(parents=True)
    (partial / "world.json").write_text(settings)
    records: dict[str, list[Any]] = {}
    with open(partial / "narratives.jsonl", "w", encoding="utf-8") as narratives:
        for part in _parts(world, seed, split, partial / "images", also, scenes, processes):
            lines = part.pop("narratives")
            narratives.writelines(lines)
            for name, rows in part.items():
                records.setdefault(name, []).extend(rows)
            if progress:
                progress(len(lines))
    description = f"pixel_align synthetic scenes, {split}, seed {seed}"
    _finish(Files.of(partial, also), world, description, records)
    partial.rename(folder)
    return files


def _finish(files: Files, world: World, description: str, records: Mapping[str, list[Any]]) -> None:
    """Writes the files that are one JSON or one pickle."""
    instances = {
        "info": {"description": description},
        "licenses": [],
        "images": records["images"],
        "annotations": records["annotations"],
        "categories": [
            {"id": number, "name": name, "supercategory": name.split()[-1]}
            for number, name in enumerate(world.names, 1)
        ],
    }
    for path, content in (
        (files.instances, instances),
        (files.region_descriptions, records.get("regions")),
        (files.image_data, records.get("image_data")),
        (files.questions, records.get("questions")),
    ):
        if path:
            path.write_text(json.dumps(content, separators=(",", ":")))
    if files.refs:
        # Through JSON: a pickle tells equal texts from the same text, and which they are depends on the processes.
        files.refs.write_bytes(pickle.dumps(json.loads(json.dumps(records["refs"])), protocol=2))


_Part = dict[str, list[Any]]  # file -> its records


def _parts(
    world: World, seed: int, split: str, images: pathlib.Path, also: Sequence[str], scenes: int, processes: int
) -> Iterator[_Part]:
    """Scenes in runs of 250, in order, in this process or in several."""
    work = functools.partial(_write_part, world, seed, split, images, also)
    runs = [range(start, min(start + 250, scenes)) for start in range(0, scenes, 250)]
    if processes <= 1:
        yield from map(work, runs)
        return
    # A fresh interpreter for each: a fork of a process in which JAX or TensorFlow runs threads can hang.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, runs)


def _write_part(
    world: World, seed: int, split: str, folder: pathlib.Path, also: Sequence[str], indices: range
) -> _Part:
    """Writes the pictures of these scenes; gives what the files say of them."""
    numbers = {name: number for number, name in enumerate(world.names, 1)}
    part: _Part = {"narratives": [], "images": [], "annotations": []}
    part |= {name: [] for name in ("refs",) if "expressions" in also}
    part |= {name: [] for name in ("regions", "image_data") if "regions" in also}
    part |= {name: [] for name in ("questions",) if "questions" in also}
    for index in indices:
        told = scene(world, seed, index, split)
        name = f"{told.image_id:012d}.jpg"
        (folder / name).write_bytes(encode(draw(told)))
        part["narratives"].append(json.dumps(told.record) + "\n")
        part["images"].append({"id": told.image_id, "file_name": name, "width": world.size, "height": world.size})
        annotations = [_annotation(told, k, numbers[thing.name]) for k, thing in enumerate(told.things)]
        part["annotations"] += annotations
        if "expressions" in also:
            part["refs"] += _refs(told, annotations)
        if "regions" in also:
            part["regions"].append(_regions(told, annotations))
            size = {"width": world.size, "height": world.size}
            part["image_data"].append(
                {"image_id": told.image_id, **size, "url": "", "coco_id": None, "flickr_id": None}
            )
        if "questions" in also:
            part["questions"].append(_conversation(told, name))
    return part


def encode(picture: np.ndarray) -> bytes:
    """uint8[H, W, 3] -> JPEG with full colour resolution: at half of it, small shapes bleed into the background."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _annotation(told: Scene, k: int, category: int) -> dict[str, Any]:
    """COCO's annotation of object `k`, in pixels, xywh; where others lie on it, of what can be seen of it."""
    thing, side = told.things[k], told.world.size
    polygons: list[list[float]] = [np.round(thing.outline * side, 2).reshape(-1).tolist()]
    x0, y0, x1, y1 = (edge * side for edge in thing.box)
    area = thing.area * side * side
    shown = visible(told, k)
    if shown is not None:
        mask = shown >= 0.5
        polygons, area = polygons_of(mask), float(mask.sum())
        # Less than a quarter: a rim of mixed colours beside what hides it.
        rows, columns = (np.flatnonzero((shown >= 0.25).any(axis)) for axis in (1, 0))
        if len(rows):
            x0, x1 = max(x0, float(columns[0])), min(x1, float(columns[-1] + 1))
            y0, y1 = max(y0, float(rows[0])), min(y1, float(rows[-1] + 1))
    return {
        "id": told.image_id * 100 + k,
        "image_id": told.image_id,
        "category_id": category,
        "segmentation": polygons,
        "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
        "area": round(area, 2),
        "iscrowd": 0,
    }


def polygons_of(mask: np.ndarray) -> list[list[float]]:
    """bool[H, W] -> polygons [x, y, x, y ...] along the edges of its pixels, which together cover exactly these.

    COCO's polygons have no holes. From the top, a polygon goes on from row to row as long as its run of pixels touches
    one run and that one no other; where runs part or meet, new polygons begin.
    """
    polygons: list[list[float]] = []
    open_runs: dict[tuple[int, int], list[tuple[int, int]]] = {}  # last run -> runs of the polygon, one for each row
    for y in range(len(mask) + 1):
        row = np.zeros(mask.shape[1] + 2, np.int8)
        row[1:-1] = mask[y] if y < len(mask) else 0
        edges = np.flatnonzero(np.diff(row)).reshape(-1, 2).tolist()
        runs = [(left, right) for left, right in edges]
        above = {run: [one for one in open_runs if one[0] < run[1] and run[0] < one[1]] for run in runs}
        below = {one: [run for run in runs if one in above[run]] for one in open_runs}
        going: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for run in runs:
            alone = len(above[run]) == 1 and len(below[above[run][0]]) == 1
            going[run] = [*(open_runs.pop(above[run][0]) if alone else []), run]
        polygons += [_around(rows, y) for rows in open_runs.values()]
        open_runs = going
    return polygons


def _around(rows: list[tuple[int, int]], bottom: int) -> list[float]:
    """Runs (left, right) of successive rows, the last one above `bottom` -> the polygon around them, clockwise."""
    top = bottom - len(rows)
    down = [corner for y, (_, right) in enumerate(rows, top) for corner in ((right, y), (right, y + 1))]
    up = [corner for y, (left, _) in enumerate(rows, top) for corner in ((left, y), (left, y + 1))]
    ring = down + up[::-1]
    # On a straight edge only its ends count.
    kept = [
        b for a, b, c in zip(ring[-1:] + ring[:-1], ring, ring[1:] + ring[:1], strict=True) if not _straight(a, b, c)
    ]
    return [value for corner in kept for value in corner]


def _straight(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return b in (a, c) or (a[0] == b[0] == c[0]) or (a[1] == b[1] == c[1])


def _refs(told: Scene, annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """RefCOCO's refs of a scene: one for each object that expressions name."""
    by_thing: dict[int, list[dict[str, Any]]] = {}
    for number, expression in enumerate(expressions(told)):
        sentence = {
            "sent_id": (told.image_id * 1000 + number) * 10 + KINDS.index(expression.meaning.kind),
            "sent": expression.text,
            "raw": expression.text,
            "tokens": expression.text.split(),
        }
        by_thing.setdefault(expression.thing, []).append(sentence)
    return [
        {
            "ref_id": annotations[k]["id"],
            "ann_id": annotations[k]["id"],
            "image_id": told.image_id,
            "category_id": annotations[k]["category_id"],
            "file_name": f"{told.image_id:012d}_{annotations[k]['id']}.jpg",
            "split": {"validation": "val"}.get(told.split, told.split),
            "sent_ids": [sentence["sent_id"] for sentence in sentences],
            "sentences": sentences,
        }
        for k, sentences in by_thing.items()
    ]


def kind_of(sent_id: str | int) -> Kind:
    """What it takes to understand an expression that `write` wrote: its last digit tells."""
    return KINDS[int(sent_id) % 10]


def _regions(told: Scene, annotations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Visual Genome's regions of a scene: each object by its full name, its box in whole pixels."""
    regions = []
    for thing, annotation in zip(told.things, annotations, strict=True):
        x, y, width, height = annotation["bbox"]
        x0, y0, x1, y1 = round(x), round(y), round(x + width), round(y + height)
        box = {"x": x0, "y": y0, "width": max(1, x1 - x0), "height": max(1, y1 - y0)}
        regions.append({"region_id": annotation["id"], "image_id": told.image_id, **box, "phrase": phrase(thing)})
    return {"id": told.image_id, "regions": regions}


def _conversation(told: Scene, file_name: str) -> dict[str, Any]:
    """LLaVA's conversation about a scene: the picture is shown with the first question."""
    turns = []
    for number, question in enumerate(questions(told)):
        turns.append({"from": "human", "value": question.text if number else f"<image>\n{question.text}"})
        turns.append({"from": "gpt", "value": question.answer})
    return {"id": str(told.image_id), "image": file_name, "conversations": turns}


def texts(files: Files, most: int = 5000) -> list[str]:
    """What a model says and is asked about written scenes, at most so many of each: what a vocabulary is trained on.

    Expressions and questions stand in what asks, as in training, so that the words around them get pieces of their own.
    """
    with files.narratives.open(encoding="utf-8") as lines:
        found = [json.loads(line)["caption"] for line in itertools.islice(lines, most)]
    if files.refs:
        refs = pickles.load(files.refs, "refs")
        sentences = itertools.islice((sentence["sent"] for ref in refs for sentence in ref["sentences"]), most)
        found += [INSTRUCTIONS["refer"].replace("{text}", sentence) for sentence in sentences]
    if files.region_descriptions:
        pictures = json.loads(files.region_descriptions.read_text(encoding="utf-8"))
        phrases = itertools.islice((region["phrase"] for one in pictures for region in one["regions"]), most)
        found += [text for phrase in phrases for text in (phrase, INSTRUCTIONS["describe"])]
    if files.questions:
        talks = json.loads(files.questions.read_text(encoding="utf-8"))
        for turn in itertools.islice((turn for talk in talks for turn in talk["conversations"]), 2 * most):
            said = turn["value"].removeprefix("<image>\n")
            found.append(INSTRUCTIONS["answer"].replace("{question}", said) if turn["from"] == "human" else said)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m data_pipelines.synthetic --out DIR --scenes N --seed S --split train --preset easy`."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.synthetic", description=main.__doc__)
    parser.add_argument("--out", required=True, help="folder; the split is written to a folder of its name in it")
    parser.add_argument("--scenes", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels, instead of the preset's")
    parser.add_argument("--also", nargs="+", choices=ALSO, default=(), help="more to write (default: nothing)")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    world = PRESETS[options.preset]()
    if options.size:
        world = dataclasses.replace(world, size=options.size)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn(), transient=True
    ) as bar:
        task = bar.add_task(f"drawing {options.split}", total=options.scenes)
        try:
            files = write(
                world,
                options.out,
                options.scenes,
                options.seed,
                options.split,
                also=options.also,
                processes=options.processes,
                progress=lambda done: bar.advance(task, done),
            )
        except (ValueError, FileExistsError) as error:
            parser.error(str(error))
    for field in dataclasses.fields(files):
        if path := getattr(files, field.name):
            print(f"{field.name:>19}  {path}")


if __name__ == "__main__":
    main()
