"""One sheet: unseen scenes, each asked about in every task that the model has learned, answered by the model."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from pixel_align import data, draw
from pixel_align.converter import string
from pixel_align.experiment import Experiment
from pixel_align.image import read_image
from pixel_align.predict import Predictor
from pixel_align.prediction import Prediction

SIDE = 480  # pixels of a picture on the sheet
LEAST_SCORE = 0.3  # of what is shown of dense captions


def sheet(checkpoint: Path, config: Experiment, tasks: Mapping[str, str], scenes: int = 4) -> PIL.Image.Image:
    """A row for each scene, a column for each task.

    Args:
      checkpoint: a run's work folder. config: its experiment: where the sets lie.
      tasks: mode -> the task whose unseen examples say what to ask: trace, segment, describe, densecap, answer, as many
        of them as the model has learned.

    Raises:
      ValueError: no picture is in all of the tasks.
    """
    predictor = Predictor.from_checkpoint(checkpoint)
    asked = {mode: _examples(config, task) for mode, task in tasks.items()}
    first, *others = asked.values()
    pages = []
    for image in [image for image in first if all(image in examples for examples in others)][:scenes]:
        pixels = read_image(bytes(first[image]["image"]))
        predictor.set_image(pixels)
        for mode, examples in asked.items():
            title, told = _ASK[mode](predictor, examples[image], pixels.shape[:2])
            # Parts that lie close are still several.
            merge = {} if mode == "trace" else {"merge": 0.0}
            pages.append(draw.annotate(pixels, *_joined(told), title=title, side=SIDE, **merge))
    return draw.sheet(pages, columns=len(asked))


def _examples(config: Experiment, task: str) -> dict[str, Any]:
    """Picture -> the first unseen example about it."""
    found: dict[str, Any] = {}
    for example in data.dataset(config.data, task, "validation", (0, 1)).as_numpy_iterator():
        # LLaVA's ids are paths, COCO's are numbers of twelve digits without their zeros.
        found.setdefault(string(example["image_id"]).lstrip("0"), example)
    return found


def _joined(told: list[Prediction]) -> tuple[list[str], list[Any], list[Any], list[Any] | None]:
    """What several predictions about a picture mark."""
    words, points, boxes, masks = zip(*(one.marks() for one in told), strict=True)

    def flat(parts: Iterable[Sequence[Any]]) -> list[Any]:
        return list(itertools.chain.from_iterable(parts))

    return flat(words), flat(points), flat(boxes), None if None in masks else flat(masks)


def _trace(predictor: Predictor, example: Any, size: tuple[int, int]) -> tuple[str, list[Prediction]]:
    return "trace", [predictor.trace()]


def _segment(predictor: Predictor, example: Any, size: tuple[int, int]) -> tuple[str, list[Prediction]]:
    texts = [string(text) for text in example["region_text"]]
    apart = [text for k, text in enumerate(texts) if example["object_id"][k] not in example["object_id"][:k]]
    return "refer, segment", [predictor.predict("segment", text=text) for text in apart[:3]]


def _describe(predictor: Predictor, example: Any, size: tuple[int, int]) -> tuple[str, list[Prediction]]:
    height, width = size
    boxes = np.asarray(example["region_box"], np.float32)[:3] * [width, height, width, height]
    return "describe", [predictor.predict("describe", box=box.tolist()) for box in boxes]


def _densecap(predictor: Predictor, example: Any, size: tuple[int, int]) -> tuple[str, list[Prediction]]:
    told = predictor.predict("densecap")
    return "densecap", [dataclasses.replace(told, regions=[one for one in told.regions if one.score >= LEAST_SCORE])]


def _answer(predictor: Predictor, example: Any, size: tuple[int, int]) -> tuple[str, list[Prediction]]:
    questions = [string(question) for question in example["region_question"][:3]]
    answers = [predictor.predict("answer", text=question) for question in questions]
    words = [f"{question} {told.text}." for question, told in zip(questions, answers, strict=True)]
    height, width = size
    return "answer", [Prediction(" ".join(words), (height, width), words=" ".join(words).split())]


_ASK = {"trace": _trace, "segment": _segment, "describe": _describe, "densecap": _densecap, "answer": _answer}
