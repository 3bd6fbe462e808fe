"""How much of what a step computes is padding: text slots, words that ask, prompts and pixels that say nothing.

Counted on the batches that training would read, of each group of tasks and of all of them together. Batch shapes are
settings: what is counted here says which of them to change.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from pixel_align import data, models, text
from pixel_align.batch import Batch
from pixel_align.benchmark.rows import Measured, document
from pixel_align.experiment import Experiment

KINDS = ("text", "instruction", "prompts", "pixels")


def run(config: Experiment, batches: int = 8) -> Iterator[dict[str, Any]]:
    """A row for each group of tasks, by the name of its mixture, and the row "all".

    In the notes the share of each of KINDS that is padding, 0 to 1.

    Args:
      batches: how many of each group are counted.

    Raises:
      ValueError: no vocabulary, unknown tasks, or what does not fit the batches' shapes.
    """
    if not config.data.vocabulary:
        raise ValueError(
            "data.vocabulary is '', expected a SentencePiece .model or WordPiece .txt file. "
            "Give it: --set data.vocabulary=FILE."
        )
    vocabulary = text.load_vocabulary(config.data.vocabulary)
    family = models.family_of(config.model)
    total, seconds, number = np.zeros((len(KINDS), 2)), 0.0, 0
    for model, read in config.batches():
        converter = family.converter(model, vocabulary, read.augment)
        counted, begun = np.zeros((len(KINDS), 2)), time.perf_counter()
        with data.Stream(read, converter) as stream:
            for _ in range(batches):
                counted += slots(next(stream)[0])
        taken = time.perf_counter() - begun
        total, seconds, number = total + counted, seconds + taken, number + batches
        yield document(_measured(read.mixture, batches, taken, counted))
    yield document(_measured("all", number, seconds, total))


def slots(batch: Batch) -> np.ndarray:
    """Float64[len(KINDS), 2]: of each kind how many slots are used and how many there are.

    Dense captioning describes N of the detector's finds, which are not known before it has run: all N are taken to be
    used wherever anything is described, by texts as long as the descriptions of the picture are on average.
    """
    valid, written = batch.valid, batch.text_mask.sum(axis=2) * batch.valid
    if batch.described is not None:
        some = batch.described.mask.sum(axis=1)
        lengths = (batch.described.text_mask.sum(axis=2) * batch.described.mask).sum(axis=1) / np.maximum(some, 1)
        valid = valid & (some > 0)[:, None]
        written = np.broadcast_to(lengths[:, None], valid.shape) * valid
    asked = batch.instruction_mask.sum(axis=2) * valid
    height, width = batch.images.shape[1:3]
    return np.asarray(
        [
            (written.sum(), batch.text_mask.size),
            (asked.sum(), batch.instruction_mask.size),
            (valid.sum(), valid.size),
            (batch.valid_size.prod(axis=1, dtype=np.int64).sum(), len(batch.images) * height * width),
        ],
        np.float64,
    )


def _measured(name: str, batches: int, seconds: float, counted: np.ndarray) -> Measured:
    shares = {kind: 1 - used / max(there, 1) for kind, (used, there) in zip(KINDS, counted, strict=True)}
    return Measured(name, batches, "batches", seconds, notes=shares)
