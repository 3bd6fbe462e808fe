"""Real examples of a Task on one PNG sheet: text, boxes, masks and traces as training sees them.

python -m data_pipelines inspect refcoco_unc --data DATA --split train --out sheet.png
"""

import argparse
import io
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import seqio

from data_pipelines import DataError
from pixel_align import draw

_MOST_PLACES = 8  # drawn on one picture: more cover it

Example = Mapping[str, Any]


def examples(task: str, data_dir: str | os.PathLike[str] | None, split: str, number: int) -> Iterator[Example]:
    """The first examples of a Task, one of each picture, in the order of the files.

    Args:
      task: registered name. data_dir: the --out of its build, None: $TFDS_DATA_DIR.

    Raises DataError where the Task, the set or the split does not exist.
    """
    if task not in seqio.TaskRegistry.names():
        known = ", ".join(sorted(seqio.TaskRegistry.names()))
        raise DataError(f"set is {task!r}, expected one of {known}. Choose one of them.")
    found = seqio.TaskRegistry.get(task)
    source = found.source.at(data_dir) if data_dir else found.source
    dataset = found.replace(source=source).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
    )
    for _, of_picture in itertools.islice(
        itertools.groupby(dataset.as_numpy_iterator(), key=lambda example: example["image_id"]), number
    ):
        yield next(of_picture)


def picture(example: Example, side: int = 640) -> PIL.Image.Image:
    """An example as it is drawn: regions in their places, or a sentence whose words have theirs."""
    with PIL.Image.open(io.BytesIO(example["image"])) as opened:
        image = np.asarray(opened.convert("RGB"))
    height, width = image.shape[:2]
    scale = np.array([width, height, width, height], np.float32)
    title = f"{_text(example['image_id'])}: {_text(example['instruction'])}"
    if "region_box" in example:
        return _regions(example, image, scale, side)
    text = _text(example["text"])
    words = [text[start:end] for start, end in example["word_spans"]]
    points = [
        place * scale[:2] if located else None
        for place, located in zip(example["word_points"], example["word_located"], strict=True)
    ]
    return draw.annotate(image, words, points, title=title, side=side)


def _regions(example: Example, image: np.ndarray, scale: np.ndarray, side: int) -> PIL.Image.Image:
    """Each place with its phrases, its box and its mask. Of many places, some are drawn, from the first to the last."""
    places: dict[tuple[float, ...], list[int]] = {}  # one object may have several phrases
    for k, box in enumerate(example["region_box"].tolist()):
        places.setdefault(tuple(box), []).append(k)
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), _MOST_PLACES)).round().astype(int)).tolist()
    every = list(places.items())
    drawn = [(np.array(every[k][0]) * scale, every[k][1]) for k in chosen]
    shown, total = sum(len(own) for _, own in drawn), len(example["region_text"])
    return draw.annotate(
        image,
        [" / ".join(_text(example["region_text"][k]) for k in own) for _, own in drawn],
        [box.reshape(2, 2).mean(0, keepdims=True) for box, _ in drawn],
        [box for box, _ in drawn],
        [_mask(example["region_mask"][own[0]]) for _, own in drawn],
        f"{_text(example['image_id'])}: {_text(example['asks'])}, {shown} of {total} regions",
        side=side,
        merge=0,
    )


def _mask(content: bytes) -> np.ndarray | None:
    if not content:
        return None
    with PIL.Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened.convert("1"))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m data_pipelines inspect`."""
    parser.add_argument("set", metavar="SET", help="a Task: see `list`")
    parser.add_argument(
        "--data", default=os.environ.get("TFDS_DATA_DIR"), metavar="DIR", help="data folder (default: $TFDS_DATA_DIR)"
    )
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=12, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=3, metavar="N", help="on the sheet (default: %(default)s)")
    parser.add_argument("--out", default="sheet.png", metavar="FILE", help="the sheet (default: %(default)s)")


def main(args: argparse.Namespace) -> None:
    """Draws as the options say and prints where."""
    for option, value in (("--examples", args.examples), ("--columns", args.columns)):
        if value < 1:
            raise DataError(f"{option} is {value}, expected at least 1. Correct it.")
    drawn = [picture(example) for example in examples(args.set, args.data, args.split, args.examples)]
    if not drawn:
        raise DataError(f"split {args.split!r} of {args.set} has no example, expected some. Build it again.")
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    draw.sheet(drawn, args.columns).save(args.out, "PNG")
    print(f"{len(drawn)} pictures of {args.set}, split {args.split}: {args.out}")
