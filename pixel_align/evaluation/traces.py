"""Metrics of traces: does each word of a sentence have its point at what the word means?

`row(target, prediction)` -> small arrays, `summary(rows)` -> the figures of the house's keys. NumPy only.

A target is a dict, in pixels of the original picture, boxes xyxy:
    text; word_spans [W, 2] characters; word_boxes [W, 4], word_located [W]: places from the trace;
    object_boxes [K, 4], object_names list of K; size (height, width).
A prediction is a dict in the same frame:
    points [W, P, 2]: for the target's own words, the text being given (teacher-forced);
    text, word_spans [W2, 2], word_points [W2, P, 2]: the model's own text (free-running).
Distances are divided by the longer side of the picture, which is the side of the canvas it is fitted to.
A missing prediction is {}: each word counts as outside its box and as far away as a point of the picture can be from
what it means, at the farthest corner; of its own text nothing was said.

What a word means: in a picture with named objects, the one object that the word's phrase describes (`named_objects`),
and words that describe none are not scored; in a picture without, the place that the trace gives the word.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pixel_align.evaluation.boxes import checked
from pixel_align.text_alignment import align, normalize_word

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]
Row = dict[str, np.ndarray]

# Two words of different texts count as the same where their likeness is at least this: "tree" and "trees", not "car"
# and "cat".
_SAME_WORD = 0.75


class Truth(NamedTuple):
    """What each of W words means, pixels of the original. Rows of `known` False mean nothing."""

    centers: np.ndarray  # float[W, 2]
    boxes: np.ndarray  # float[W, 4]
    known: np.ndarray  # bool[W]


def named_objects(words: Sequence[str], object_names: Sequence[str], all_names: Collection[str] = ()) -> np.ndarray:
    """int[W]: the one object that each word, with the words around it, describes; -1 for none or several.

    Args:
        words: of a text, in order.
        object_names: of the K objects in the picture, such as "small red circle"; case and order of words do not
            matter.
        all_names: names of the whole data set. With them, "blue circle" is a phrase even where nothing is blue, and
            describes nothing; without them "blue" is just another word there, and "circle" is taken for any circle.

    A phrase is a maximal run of words that occur in names; it also ends after a word that ends names and begins none
    ("circle"), so that two things named side by side stay two. A phrase describes the objects whose names have all its
    words.
    """
    names = [_words_of_name(name) for name in object_names]
    every = [*names, *(_words_of_name(name) for name in all_names)]
    vocabulary = {word for name in every for word in name}
    # A word that also stands inside some name ("bear" never, "sports" always) does not end a phrase.
    heads = {name[-1] for name in every if name} - {word for name in every for word in name[:-1]}
    sets = [frozenset(name) for name in names]
    result = np.full(len(words), -1)
    start = 0
    plain = [normalize_word(word) for word in words]
    for i, word in enumerate(plain):
        if word not in vocabulary:
            start = i + 1
        elif word in heads or i + 1 == len(plain) or plain[i + 1] not in vocabulary:
            phrase = set(plain[start : i + 1])
            described = [k for k, name in enumerate(sets) if phrase <= name]
            if len(described) == 1:
                result[start : i + 1] = described[0]
            start = i + 1
    return result


def name_words(names: Collection[str]) -> frozenset[str]:
    """Normal forms of all words of some names."""
    return frozenset(word for name in names for word in _words_of_name(name))


def truth(target: Target, all_names: Collection[str] = ()) -> Truth:
    """What each word of the target's text means."""
    names = list(target["object_names"])
    if not names:
        # The middle of the trace's box, not its average over time: it is what a model is taught, so that a perfect one
        # scores 0.
        boxes = np.asarray(target["word_boxes"], float).reshape(-1, 4)
        return Truth(_centers(boxes), boxes, np.asarray(target["word_located"], bool).reshape(-1))
    return _means(named_objects(words_of(target), names, all_names), target)


def row(target: Target, prediction: Prediction, all_names: Collection[str] = ()) -> Row:
    """One narrative -> small arrays that `summary` adds up.

    Args:
        target, prediction: see the module's text.
        all_names: names of objects in the whole data set; see `named_objects`. With named objects they decide which
            words of the model's own text should have meant something.

    Returns:
        distance float[n], inside bool[n]: teacher-forced.
        distance_free float[m], inside_free bool[m]: for the m words of the model's own text that found what they mean.
        bearing int[1]: how many should have.

    Raises:
        ValueError: a box that is none, or points that are not finite or not one list for each word.
    """
    for key in ("word_boxes", "object_boxes"):
        checked(target[key], f"{key} of the target")
    means = truth(target, all_names)
    scored = np.flatnonzero(means.known)
    points = prediction.get("points")
    if points is None:
        distance, inside = _farthest(means.centers[scored], target["size"]), np.zeros(len(scored), bool)
    else:
        points = _mean_points(points, len(means.known), "points")
        distance, inside = _compare(points[scored], means, scored, target)
    partner, bearing = _free_partners(target, prediction, means, all_names)
    matched = np.flatnonzero(partner >= 0)
    own = means if not len(target["object_names"]) else _means(np.arange(len(target["object_names"])), target)
    points = _mean_points(prediction.get("word_points", ()), len(partner), "word_points")
    distance_free, inside_free = _compare(points[matched], own, partner[matched], target)
    return {
        "distance": distance,
        "inside": inside,
        "distance_free": distance_free,
        "inside_free": inside_free,
        "bearing": np.array([bearing]),
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures over all words of all rows; NaN where nothing could be measured.

    Returns:
        point_distance: mean distance of a word's predicted points (their mean) from the centre of what it means, as a
            share of the canvas side.
        inside_box: share of those points inside its box.
        point_distance_free: the same on the model's own text, over the words that found what they mean.
        inside_box_free: over all words that should have found it, so that an unmatched word never counts as right.
        matched_words: share of the words that found it; 0 where the model named nothing.
    """
    distance, inside, distance_free, inside_free, bearing = (
        np.concatenate([row[key] for row in rows]) if rows else np.zeros(0)
        for key in ("distance", "inside", "distance_free", "inside_free", "bearing")
    )
    total = float(bearing.sum())
    return {
        "point_distance": _mean(distance),
        "inside_box": _mean(inside),
        "point_distance_free": _mean(distance_free),
        "inside_box_free": float(inside_free.sum()) / total if total else float("nan"),
        "matched_words": len(distance_free) / total if total else 0.0,
    }


def score(targets: Sequence[Target], predictions: Sequence[Prediction]) -> dict[str, float]:
    """The figures of a whole evaluation; the names of all its objects are what its words may name."""
    if len(targets) != len(predictions):
        raise ValueError(
            f"number of predictions is {len(predictions)}, expected {len(targets)}, one per target. Predict each once."
        )
    all_names = sorted({name for target in targets for name in target["object_names"]})
    return summary(
        [row(target, prediction, all_names) for target, prediction in zip(targets, predictions, strict=True)]
    )


# Controls: what a model would score that says the same and does not know which word means what, or does not look.


def swapped(target: Target, prediction: Prediction, all_names: Collection[str] = ()) -> dict[str, Any]:
    """The prediction with the points of each scored word given to another scored word of the same narrative.

    Of n scored words each takes the points of the one n // 2 further on, which mostly is about another thing. A single
    scored word has no other to swap with and keeps its own.
    """
    means = truth(target, all_names)
    partner, _ = _free_partners(target, prediction, means, all_names)
    return {
        **prediction,
        "points": _rotate(np.asarray(prediction["points"], float), np.flatnonzero(means.known)),
        "word_points": _rotate(np.asarray(prediction["word_points"], float), np.flatnonzero(partner >= 0)),
    }


def center_reader(target: Target, all_names: Collection[str] = ()) -> dict[str, Any]:
    """A reader without eyes that puts every word in the middle of the picture."""
    del all_names
    height, width = target["size"]
    return _everywhere(target, np.array([width / 2, height / 2]))


def mean_reader(target: Target, all_names: Collection[str] = ()) -> dict[str, Any]:
    """A reader that puts every word at the mean of all objects of this picture, or of all located words where none are
    named.
    """
    boxes = np.asarray(target["object_boxes"], float).reshape(-1, 4)
    if len(boxes):
        return _everywhere(target, _centers(boxes).mean(axis=0))
    means = truth(target, all_names)
    if not means.known.any():
        return center_reader(target)
    return _everywhere(target, means.centers[means.known].mean(axis=0))


READERS: dict[str, Callable[..., dict[str, Any]]] = {"center": center_reader, "mean": mean_reader}


def _free_partners(
    target: Target, prediction: Prediction, means: Truth, all_names: Collection[str]
) -> tuple[np.ndarray, int]:
    """What each word of the model's own text means, and how many words should have meant something.

    With named objects: the object's number, -1 for none; every word that occurs in names should mean one. Without: the
    word of the reference that it is, among those with a place, -1 for none; every such word of the reference should be
    found.
    """
    words = words_of(prediction)
    if len(target["object_names"]):
        bearing = name_words([*target["object_names"], *all_names])
        partner = named_objects(words, target["object_names"], all_names)
        return partner, sum(normalize_word(word) in bearing for word in words)
    partner = np.full(len(words), -1)
    for i, j in align(words, words_of(target), min_similarity=_SAME_WORD):
        if means.known[j]:
            partner[i] = j
    return partner, int(means.known.sum())


def _means(objects: np.ndarray, target: Target) -> Truth:
    """The objects int[W] of words, -1 for none -> Truth."""
    boxes = np.asarray(target["object_boxes"], float).reshape(-1, 4)[objects]
    return Truth(_centers(boxes), boxes, objects >= 0)


def _compare(points: np.ndarray, means: Truth, index: np.ndarray, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 2] against the rows `index` of the truth -> (distances / canvas side [n], inside the box [n])."""
    centers, boxes = means.centers[index], means.boxes[index]
    distance = np.linalg.norm(points - centers, axis=-1) / max(target["size"])
    inside = ((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(axis=-1)
    return distance, inside


def _farthest(centers: np.ndarray, size: Any) -> np.ndarray:
    """Distance [n] of centres [n, 2] from the farthest corner of a picture (height, width), / canvas side."""
    height, width = size
    return np.linalg.norm(np.maximum(centers, np.array([width, height]) - centers), axis=-1) / max(size)


def _mean_points(points: Any, words: int, what: str) -> np.ndarray:
    """[W, P, 2] -> [W, 2]. Raises ValueError for other shapes, and for points that are not finite."""
    array = np.asarray(points, float)
    if not words and not array.size:
        return np.zeros((0, 2))
    if array.ndim != 3 or array.shape[0] != words or not array.shape[1] or array.shape[2] != 2:
        raise ValueError(
            f"shape of {what} is {array.shape}, expected [{words}, P, 2]. Give xy in pixels for each word."
        )
    if not np.isfinite(array).all():
        word = int(np.argmin(np.isfinite(array).all(axis=(1, 2))))
        raise ValueError(
            f"{what} of word {word} is {array[word].tolist()}, expected finite numbers. Give xy in pixels."
        )
    return array.mean(axis=1)


def _centers(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _rotate(points: np.ndarray, index: np.ndarray) -> np.ndarray:
    rotated = points.copy()
    rotated[index] = points[np.roll(index, -(len(index) // 2))]
    return rotated


def _everywhere(target: Target, point: np.ndarray) -> dict[str, Any]:
    """The prediction that says the reference and puts every word at one point [2]."""
    spans = np.asarray(target["word_spans"]).reshape(-1, 2)
    points = np.broadcast_to(point, (len(spans), 1, 2))
    return {"points": points, "text": target["text"], "word_spans": spans, "word_points": points}


def words_of(text: Mapping[str, Any]) -> list[str]:
    """The words of a target's or a prediction's text."""
    spans = np.asarray(text.get("word_spans", ()), int).reshape(-1, 2)
    return [text["text"][start:end] for start, end in spans]


def _words_of_name(name: str) -> list[str]:
    return [normalize_word(word) for word in name.split()]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
