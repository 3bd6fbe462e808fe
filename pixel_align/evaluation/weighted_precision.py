"""Average precision of resampled sets of pictures, from one matching of predictions and targets.

A picture that is drawn k times counts k times: its predictions and targets get the weight k, and no prediction has to
be matched again. Equal to the metric on a list in which each picture stands k times in a row where the scores of a
picture differ. Equal ones then come as often one after the other, where the list has all of a picture, then all again.
"""

import dataclasses

import numpy as np


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


def average(curves: list[Curve], weights: np.ndarray) -> np.ndarray:
    """Average precision of each curve in each resampled set: Float64[R, len(curves)], NaN where nothing can be found.

    Precision at a recall is the best that this recall or more is reached with, 0 where it is not reached.

    Args:
        weights: Float64[R, n], whole numbers; see `bootstrap`.
    """
    result = np.full((len(weights), len(curves)), np.nan)
    for r, weight in enumerate(weights):
        # Curves of one data set mostly share their predictions: these sums are made once for all.
        shared: dict[tuple[int, int], np.ndarray] = {}
        for c, curve in enumerate(curves):
            positives = float(weight @ curve.positives)
            if not positives:
                continue
            key = id(curve.case), id(curve.counted)
            if key not in shared:
                each = weight[curve.case]
                shared[key] = np.cumsum(each if curve.counted is None else each * curve.counted)
            hits = np.cumsum(weight[curve.case[curve.hits]])
            total = shared[key][curve.hits]
            precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
            best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            result[r, c] = best[np.searchsorted(hits / positives, curve.recalls)].mean()
    return result
