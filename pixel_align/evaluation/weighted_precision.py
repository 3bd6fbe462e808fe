"""Average precision of resampled sets of pictures, from one matching of predictions and targets.

A picture that is drawn k times counts k times: its predictions and targets get the weight k, and no prediction has to
be matched again. Equal to the metric on a list in which each picture stands k times in a row where the scores of a
picture differ. Equal ones then come as often one after the other, where the list has all of a picture, then all again.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_BLOCK = 2_000_000  # weights at a time: 16 MB


@dataclasses.dataclass(frozen=True)
class Curve:
    """One precision and recall curve over n cases with d predictions, by falling score.

    Attributes:
      case: int[d], the case of each prediction.
      hits: int[h], which predictions found something, rising.
      counted: bool[d], predictions that are right or wrong; the others (COCO's ignored ones) are as if not there. None
        for all.
      positives: Float64[n], what could be found in each case.
      recalls: Float64[k], where precision is read, rising.
    """

    case: np.ndarray
    hits: np.ndarray
    counted: np.ndarray | None
    positives: np.ndarray
    recalls: np.ndarray


def average(curves: Sequence[Curve], weights: np.ndarray) -> np.ndarray:
    """Average precision of each curve in each resampled set: Float64[R, len(curves)], NaN where nothing can be found.

    Precision at a recall is the best that this recall or more is reached with, 0 where it is not reached.

    Args:
        weights: Float64[R, n], whole numbers; see `bootstrap`.
    """
    rows = max(1, _BLOCK // max(1, max((len(curve.case) for curve in curves), default=1)))
    parts = [_average(curves, weights[start : start + rows]) for start in range(0, len(weights), rows)]
    return np.concatenate(parts) if parts else np.zeros((0, len(curves)))


def _average(curves: Sequence[Curve], weights: np.ndarray) -> np.ndarray:
    # Sets are the last axis here: sums along the predictions then run over all sets at once.
    weights = np.ascontiguousarray(weights.T)
    sets = weights.shape[1]
    result = np.full((sets, len(curves)), np.nan)
    shared, total = None, np.zeros((0, sets))
    for c, curve in enumerate(curves):
        if shared != (id(curve.case), id(curve.counted)):  # neighbours mostly share their predictions
            each = weights.take(curve.case, axis=0)
            total = np.cumsum(each if curve.counted is None else each * curve.counted[:, None], axis=0)
            shared = id(curve.case), id(curve.counted)
        hits = np.cumsum(weights.take(curve.case[curve.hits], axis=0), axis=0)
        found = total.take(curve.hits, axis=0)
        best = np.zeros((len(hits) + 1, sets))
        np.divide(hits, found, out=best[:-1], where=found > 0)
        best = np.maximum.accumulate(best[::-1], axis=0)[::-1]
        positives = curve.positives @ weights
        some = np.flatnonzero(positives)
        first = _reached(np.ascontiguousarray(hits.T)[some], positives[some, None], curve.recalls)
        result[some, c] = best[first, some[:, None]].mean(axis=1)
    return result


def _reached(hits: np.ndarray, positives: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """int[R, k]: at which of the rising hits [R, h] each recall is reached, h for never; positives are [R, 1]."""
    count = np.ceil(recalls * positives)
    # A recall is a quotient of floats: rounding can ask for one too many or too few.
    count -= (count - 1) / positives >= recalls
    count += count / positives < recalls
    # All rows in one search: each is lifted above the one before.
    row = np.arange(len(hits))[:, None]
    lift = row * (max(hits.max(initial=0), count.max(initial=0)) + 1)
    return (
        np.searchsorted((hits + lift).reshape(-1), (count + lift).reshape(-1)).reshape(count.shape)
        - row * hits.shape[1]
    )
