"""LBM, local bipartite matching: how far a trace of boxes is from the true one, partners chosen among neighbours.

Meng et al. 2021, "Connecting What to Say With Where to Look by Modeling Human Attention Traces" (MITR). A trace is cut
into segments and each segment is a box. A target is a dict of one narrative: boxes [M, 4] xyxy in pixels of the
original, in order; size (height, width). A prediction: boxes [P, 4].

The distance of two boxes is |difference| of their coordinates in fractions of the picture, averaged over the four. With
window k, the shorter trace is matched one-to-one into the longer at least cost, where segment i of n may go to segments
j of m with (i - k) m / n <= j < (i + 1 + k) m / n. Segments of the target that cover the whole picture stand for "no
place": they take part in the matching and are not scored.

With as many segments on both sides, as a model has that is given the text, window 0 is plain comparison by index: what
the published training code reports, its matching being switched off. That code pools the segments of a batch before it
averages batches, so its figure depends on the batch size: `LBM_...` here has batches of one narrative, `LBM_..._pooled`
one batch of all. Its padding takes part in the matching; here there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation import boxes, matching
from pixel_align.evaluation.rows import Row, column, mean

WINDOWS = (0, 1)
_INDEX = "index"

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]


def row(target: Target, prediction: Prediction, windows: Sequence[int] = WINDOWS) -> Row:
    """One narrative -> small arrays.

    Returns:
        k0, k1 ... float64[n]: of each window, the distances of the scored segments of the target that have a partner;
        index float64[n]: of segment i from segment i, as far as the shorter goes; segments int64[1]: how many are
        scored at all.

    Raises:
        ValueError: a box that is none, or a window below 0.
    """
    if any(window < 0 for window in windows):
        raise ValueError(f"windows are {tuple(windows)}, expected 0 or more. With 0 partners are in the same place.")
    height, width = target["size"]
    if not (height > 0 and width > 0):
        raise ValueError(f"size of the target is {target['size']}, expected (height, width) above 0. Give pixels.")
    scale = np.array([width, height, width, height], np.float64)
    truth = boxes.checked(target["boxes"], "target boxes") / scale
    found = boxes.checked(prediction.get("boxes", ()), "predicted boxes") / scale
    scored = ~np.isclose((truth[:, 2:] - truth[:, :2]).prod(axis=1), 1.0)
    costs = np.abs(found[:, None] - truth[None]).mean(axis=-1)
    pairs = {_INDEX: (np.arange(min(costs.shape)),) * 2}
    pairs |= {f"k{window}": matching.local(costs, window) for window in windows}
    distances = {name: costs[i, j][scored[j]] for name, (i, j) in pairs.items()}
    return {**distances, "segments": np.array([scored.sum()])}


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures over all narratives, in [0, 1] of the picture, lower is better; NaN where nothing could be measured.

    Returns:
        LBM_k0, LBM_k1 ..., LBM_index: the mean over narratives; with `_pooled`: over all segments; LBM_matched_share:
        of the scored segments those that have a partner, as a trace too short is not punished otherwise.
    """
    names = [key for key in rows[0] if key != "segments"] if rows else [f"k{k}" for k in WINDOWS] + [_INDEX]
    result = {}
    for name in names:
        means = np.array([r[name].mean() for r in rows if len(r[name])])
        result[f"LBM_{name}"] = mean(means)
        result[f"LBM_{name}_pooled"] = mean(column(rows, name))
    segments = int(column(rows, "segments").sum())
    matched = max((len(column(rows, name)) for name in names), default=0)
    return {**result, "LBM_matched_share": matched / segments if segments else float("nan")}
