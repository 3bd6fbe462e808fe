"""The very batches that a run saw at a step, as a picture: what was asked, what was to be said, and where."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from pixel_align import data, draw, geometry, models
from pixel_align.batch import Batch
from pixel_align.checkpoints import store
from pixel_align.experiment import Experiment
from pixel_align.settings import from_json, override
from pixel_align.text import Vocabulary

EXAMPLES = 8  # of each batch on a sheet


def batches_of(
    run: str | os.PathLike[str], step: int, changes: Sequence[str] = ()
) -> tuple[tuple[Any, ...], Vocabulary]:
    """The batches that step `step` of a run took, drawn again from its config, its vocabulary and its data.

    Args:
      changes: settings to change, such as where the data lie now.

    Raises:
      FileNotFoundError: not a run. ValueError: a step below 1; a run whose model has batches of another form.
    """
    if step < 1:
        raise ValueError(f"--step is {step}, expected at least 1, the first step of a run. Correct it.")
    folder, _ = store.find(run)
    config = override(from_json(Experiment, store.read_config(folder)), changes)
    vocabulary = store.read_vocabulary(folder)
    family = models.family_of(config.model)
    converters = [(read, family.converter(model, vocabulary, read.augment)) for model, read in config.batches()]
    positions = None
    if step > 1:
        # Examples are counted, not looked at: what only leads to the step is not decoded.
        with data.Steps([(read, _Skip(converter.regions)) for read, converter in converters], None) as steps:
            for _ in range(step - 1):
                _, positions = next(steps)
    with data.Steps(converters, positions) as steps:
        return next(steps)[0], vocabulary


class _Skip:
    """Stands in for a converter where only the order counts."""

    def __init__(self, regions: int) -> None:
        self.regions = regions

    def __call__(self, example: Any, rng: Any = None) -> tuple[Any, Any]:
        return {}, None


def sheet(batches: Sequence[Any], vocabulary: Vocabulary, columns: int = 4) -> PIL.Image.Image:
    """The first examples of each batch, one below the other.

    Raises:
      ValueError: batches of a family of another form.
    """
    if not all(isinstance(batch, Batch) for batch in batches):
        raise ValueError(
            f"batches are {', '.join(type(batch).__name__ for batch in batches)}, expected Batch. Draw such a family's "
            "batches yourself."
        )
    pictures = [_example(batch, k, vocabulary) for batch in batches for k in range(min(EXAMPLES, len(batch.images)))]
    return draw.sheet(pictures, columns=min(columns, len(pictures)))


def write(batches: Sequence[Any], vocabulary: Vocabulary, path: Path) -> None:
    """`sheet` as a PNG, whole or absent."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(batches, vocabulary).save(partial, "PNG")
    partial.replace(path)


def _example(batch: Batch, k: int, vocabulary: Vocabulary) -> PIL.Image.Image:
    """One row: the part of the canvas that holds the picture, its regions or the words of its text."""
    height, width = (int(side) for side in batch.valid_size[k])
    pixels, canvas = np.asarray(batch.images[k][:height, :width]), batch.images.shape[1]
    regions = np.flatnonzero(batch.valid[k])
    asked = [vocabulary.decode_with_spans(batch.instruction_tokens[k, n])[0] for n in regions]
    title = f"{k}: {'; '.join(dict.fromkeys(asked))}"
    if len(regions) == 1 and batch.locate[k, regions[0]].sum() > 1:
        return _words(batch, k, int(regions[0]), vocabulary, pixels, title)
    texts, boxes, masks = [], [], []
    for n in regions:
        texts.append(vocabulary.decode_with_spans(batch.text_tokens[k, n, 1:])[0])
        placed = batch.token_points[k, n][batch.locate[k, n]]
        prompt = batch.prompt_boxes[k, min(n, batch.prompt_boxes.shape[1] - 1)]
        boxes.append((geometry.points_to_boxes(placed[-1]) if len(placed) else prompt) * canvas)
        given = batch.masks is not None and batch.masks.given[k, n]
        masks.append(_enlarged(batch.masks.cells[k, n], canvas, pixels.shape) if given and batch.masks else None)
    middles = [box.reshape(2, 2).mean(axis=0, keepdims=True) for box in boxes]
    return draw.annotate(pixels, texts, middles, boxes, masks if any(m is not None for m in masks) else None, title)


def _words(batch: Batch, k: int, n: int, vocabulary: Vocabulary, pixels: np.ndarray, title: str) -> PIL.Image.Image:
    """A text of which many pieces have places."""
    sentence, spans = vocabulary.decode_with_spans(batch.text_tokens[k, n, 1:])
    pieces = [sentence[a:b] for a, b in spans]
    canvas = batch.images.shape[1]
    places = [
        batch.token_points[k, n, t + 1] * canvas if batch.locate[k, n, t + 1] else None for t in range(len(pieces))
    ]
    return draw.annotate(pixels, pieces, places, title=title)


def _enlarged(cells: np.ndarray, canvas: int, shape: tuple[int, ...]) -> np.ndarray:
    whole = PIL.Image.fromarray(np.asarray(cells)).resize((canvas, canvas), PIL.Image.Resampling.NEAREST)
    return np.asarray(whole)[: shape[0], : shape[1]]
