"""`point_l1`, PixelLLM's distance of traces: of each token's predicted points from the nearest of its true ones.

A target is a dict of one picture: points [T, P, 2], true points of T tokens (or words) in pixels of the original, and
points_valid bool[T, P]: which are real and which pad; tokens: list of T texts, for the matched figure; size (height,
width). Several texts of a picture are put one after the other. A prediction: points [T2, Q, 2]; tokens: list of T2.

A distance is |dx| / width and |dy| / height averaged over the two; it is averaged over the Q predicted points, the
tokens of a picture, and pictures. The published evaluator has two faults, and both are in `point_l1`:

1. Padding is (0, 0) and stays among the true points, so that a prediction near the upper left corner is close to the
   truth of every token that has fewer points than the longest; and a token whose points are all there counts as having
   none. A picture without any token to score counts as 0, which is perfect.
2. Token i of the prediction is compared with token i of the target, whatever they say: the figure means something for
   given text only. A prediction that ends early is at (0, 0) from there on.

`point_l1_unpadded` is without the first, `point_l1_matched` without either: each scored token of the target is compared
with the token of the prediction that it is, by alignment of the texts; `point_l1_matched_share` found one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation.rows import Row, column, mean
from pixel_align.text_alignment import align

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]


def row(target: Target, prediction: Prediction) -> Row:
    """One picture -> small arrays.

    Returns:
        published float64[1]; unpadded float64[n], one distance for each of the n tokens that have a true point; matched
        float64[m] for the m of them that the prediction's text has as well. Without `tokens` on both sides m is 0.

    Raises:
        ValueError: shapes that do not fit, points that are not finite.
    """
    truth, valid, points = _arrays(target, prediction)
    count, scored = len(truth), np.flatnonzero(valid.any(axis=1))
    by_index = np.zeros((count, *points.shape[1:]))
    by_index[: len(points)] = points[:count]
    partner = _partners(target, prediction, count, len(points))[scored]
    met = partner >= 0
    return {
        "published": np.array([_published(truth, valid, by_index)]),
        "unpadded": _distances(truth[scored], valid[scored], by_index[scored]),
        "matched": _distances(truth[scored[met]], valid[scored[met]], points[partner[met]]),
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures over all pictures, in [0, 1] of the picture: point_l1, point_l1_unpadded, point_l1_matched,
    point_l1_matched_share; NaN where nothing could be measured.
    """
    scored, matched = len(column(rows, "unpadded")), len(column(rows, "matched"))
    return {
        "point_l1": mean(column(rows, "published")),
        "point_l1_unpadded": _mean_of_pictures(rows, "unpadded"),
        "point_l1_matched": _mean_of_pictures(rows, "matched"),
        "point_l1_matched_share": matched / scored if scored else float("nan"),
    }


def _published(truth: np.ndarray, valid: np.ndarray, points: np.ndarray) -> float:
    padded = np.where(valid[..., None], truth, 0.0)
    present = padded.max(axis=(1, 2), initial=-np.inf) > 0
    everything = np.ones(valid.shape, bool)
    # The published 1e-8 in the denominator is what makes a picture without tokens perfect.
    return float(_distances(padded[present], everything[present], points[present]).sum() / (present.sum() + 1e-8))


def _distances(truth: np.ndarray, valid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float64[T]: truth [T, P, 2] with at least one valid of P each, points [T, Q, 2], in fractions of the picture."""
    apart = np.abs(points[:, :, None] - truth[:, None]).mean(axis=-1)
    return np.where(valid[:, None], apart, np.inf).min(axis=-1, initial=np.inf).mean(axis=-1)


def _partners(target: Target, prediction: Prediction, count: int, predicted: int) -> np.ndarray:
    """int[T]: the token of the prediction that each of the target is, -1 for none."""
    partner = np.full(count, -1)
    ours, theirs = target.get("tokens"), prediction.get("tokens")
    if ours is None or theirs is None:
        return partner
    for what, tokens, expected in (("target", ours, count), ("prediction", theirs, predicted)):
        if len(tokens) != expected:
            raise ValueError(f"number of tokens of the {what} is {len(tokens)}, expected {expected}, as of its points.")
    # Only the same word is the same token.
    for i, j in align(list(ours), list(theirs), min_similarity=1.0):
        partner[i] = j
    return partner


def _arrays(target: Target, prediction: Prediction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth [T, P, 2], valid [T, P], points [T2, Q, 2]) in fractions of the picture."""
    height, width = target["size"]
    if not (height > 0 and width > 0):
        raise ValueError(f"size of the target is {target['size']}, expected (height, width) above 0. Give pixels.")
    truth = np.asarray(target["points"], np.float64)
    truth = truth if truth.size else np.zeros((len(truth), 1, 2))
    valid: np.ndarray = np.asarray(target["points_valid"], bool).reshape(-1)
    points = np.asarray(prediction.get("points", ()), np.float64)
    points = points[:, None] if points.ndim == 2 else points
    points = points if points.size else np.zeros((0, 1, 2))
    for what, array in (("target", truth), ("predicted", points)):
        if array.ndim != 3 or array.shape[-1] != 2:
            raise ValueError(f"shape of {what} points is {array.shape}, expected [T, P, 2]. Give xy in pixels.")
    valid = valid if valid.size else np.zeros(truth.shape[:2], bool)
    if valid.size != truth.size // 2:
        raise ValueError(f"points_valid has {valid.size} values, expected {truth.size // 2}. Give one for each point.")
    valid = valid.reshape(truth.shape[:2])
    if not np.isfinite(points).all() or not np.isfinite(truth[valid]).all():
        raise ValueError("a point is not finite, expected pixels. Leave out what has no place, by points_valid.")
    size = np.array([width, height])
    return np.where(valid[..., None], truth, 0.0) / size, valid, points / size


def _mean_of_pictures(rows: Sequence[Row], key: str) -> float:
    """Pictures that have nothing to score are left out."""
    means = [r[key].mean() for r in rows if len(r[key])]
    return float(np.mean(means)) if means else float("nan")
