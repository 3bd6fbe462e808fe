"""What a model says about a picture, for people: in words and in pixels of the original."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of a picture and its words.

    Attributes:
      text: what names or describes it.
      box: Float[4], xyxy. mask: Bool[H, W], None where none was asked for.
      score: of the mask, the IoU that the model expects of it; 1 where there is none.
    """

    text: str
    box: np.ndarray
    mask: np.ndarray | None = None
    score: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; a mask as uncompressed COCO run lengths."""
        document = {"text": self.text, "box": _hundredths(np.asarray(self.box)), "score": round(self.score, 4)}
        return document if self.mask is None else document | {"mask": run_lengths(self.mask)}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says about a picture, in pixels of the original.

    Attributes:
      text: the sentence.
      size: (height, width) of the picture.
      logprob: natural log-probability of the whole text, its end included.
      words: its words in order; word_spans: Int[W, 2], their [start, end) characters in text.
      points: Float[W, P, 2], the predicted points of each word, xy. Empty where words have no places.
      boxes: Float[W, 4], xyxy, the smallest box around a word's points. Empty as points are.
      placed: Bool[W], whether the model says that the word has a place at all (always, for models that do not say it).
      regions: parts of the picture with words of their own, in modes that speak of parts.
      scores: Float[W], the probability of each word given what was said before it, in 0..1.
    """

    text: str
    size: tuple[int, int]
    logprob: float = 0.0
    words: list[str] = dataclasses.field(default_factory=list)
    word_spans: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2, 2), np.float32))
    boxes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4), np.float32))
    placed: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    scores: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    regions: list[Region] = dataclasses.field(default_factory=list)

    def marks(self) -> tuple[list[str], list[Any], list[Any], list[Any] | None]:
        """(words, points, boxes, masks) to be drawn: regions where there are any, else words; see `draw.annotate`."""
        if self.regions:
            corners = [np.asarray(region.box).reshape(2, 2).mean(axis=0, keepdims=True) for region in self.regions]
            boxes, masks = [region.box for region in self.regions], [region.mask for region in self.regions]
            return [region.text for region in self.regions], corners, boxes, masks
        return self.words, *self.places(), None

    def places(self) -> tuple[list[np.ndarray | None], list[np.ndarray | None]]:
        """(points, boxes) of each word, None for words without a place: what `draw.annotate` takes."""
        if not len(self.points):
            return [None] * len(self.words), [None] * len(self.words)
        points = [place if told else None for place, told in zip(self.points, self.placed, strict=True)]
        return points, [box if told else None for box, told in zip(self.boxes, self.placed, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, rounded to a hundredth of a pixel."""
        placed = len(self.points) == len(self.words)
        words = []
        for i, word in enumerate(self.words):
            entry: dict[str, Any] = {"word": word, "score": round(float(self.scores[i]), 4)}
            if placed:
                entry |= {"points": _hundredths(self.points[i]), "box": _hundredths(self.boxes[i])}
                entry["placed"] = bool(self.placed[i])
            words.append(entry)
        height, width = self.size
        document = {"text": self.text, "words": words, "logprob": round(self.logprob, 4)}
        if self.regions:
            document["regions"] = [region.to_json() for region in self.regions]
        return document | {"width": width, "height": height}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Bool[H, W] -> {"size": [H, W], "counts": [...]}: lengths of runs down the columns, the first of False (COCO)."""
    cells = np.asarray(mask, bool).T.reshape(-1)
    edges = np.flatnonzero(cells[1:] != cells[:-1]) + 1
    counts = np.diff([0, *edges, len(cells)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(cells) and cells[0] else counts}


def _hundredths(pixels: np.ndarray) -> Any:
    # As float64: the float32 nearest to 0.1 is written with 17 digits.
    return np.round(pixels.astype(np.float64), 2).tolist()
