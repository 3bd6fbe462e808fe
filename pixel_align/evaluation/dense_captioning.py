"""Dense captioning: the protocol of DenseCap (Johnson et al. 2016), as its evaluation and PixelLLM's have it.

A target is a dict of one picture: boxes [G, 4], captions list of G. A prediction: boxes [D, 4], captions list of D,
scores [D]. Boxes are xyxy in pixels of the original picture.

True regions with IoU of 0.7 or more are merged, the largest group first: a region of the mean box and all captions.
Predictions, by falling score, take each the region of largest IoU, whether it is free or not; a region counts for the
first that takes it. For each of five IoU and six METEOR thresholds (IoU at least, METEOR strictly above) precision is
averaged, interpolated, at the recalls 0, 0.01 ... 0.99 over all predictions of all pictures; `mAP` is the mean of the
thirty, `mAP_detection` the mean of the five without METEOR.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation import boxes
from pixel_align.evaluation.rows import Row, column

MERGE_IOU = 0.7
IOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEORS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)

# Settings of `row` by name; the first is what it does by default.
CONVENTIONS: Mapping[str, Mapping[str, bool]] = {
    "pixel_llm": {},
    "lua": {"plus_one": True, "strays_take_last": True},
    "plus_one": {"plus_one": True},
    "strays_take_last": {"strays_take_last": True},
}

# A region that nobody described: PixelLLM's evaluator gives both sides this word, so that it counts for detection.
_EMPTY = "EMPTY"

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]
Meteor = Callable[[list[str], str], float]  # (references, hypothesis) -> score in [0, 1]


def merge_regions(
    region_boxes: Any, captions: Sequence[str], *, plus_one: bool = False
) -> tuple[np.ndarray, list[list[str]]]:
    """Regions that overlap by 0.7 or more become one, the largest group first.

    Args:
        region_boxes: [G, 4]. captions: G texts; their line breaks go, as METEOR's pipe has one text a line.
        plus_one: see `row`.

    Returns:
        (float64[M, 4] mean boxes, M lists of captions). Without `plus_one` a box without extent overlaps nothing, not
        even itself, and is left out, as in PixelLLM's evaluator.
    """
    known = boxes.checked(region_boxes, "target boxes")
    _check_count("target captions", captions, len(known))
    near = boxes.iou_table(known, known, plus_one=plus_one) >= MERGE_IOU
    means, texts = [], []
    while near.any():
        group = np.flatnonzero(near[near.sum(axis=1).argmax()])
        means.append(known[group].mean(axis=0))
        texts.append([captions[i].replace("\n", "") for i in group.tolist()])
        near[group, :] = near[:, group] = False
    return np.array(means).reshape(-1, 4), texts


def row(
    target: Target,
    prediction: Prediction,
    *,
    meteor: Meteor | None = None,
    plus_one: bool = False,
    strays_take_last: bool = False,
) -> Row:
    """One picture -> small arrays.

    Args:
        prediction: {} where there is none.
        meteor: (references, hypothesis) -> score; `meteor_score` by default. Asked only where a prediction could
            count.
        plus_one: a box covers one pixel more along each side, as in the Lua original, which measured on pictures
            scaled to a longer side of 720; without it, as PixelLLM's evaluator.
        strays_take_last: a prediction that touches no region takes the last of the merged ones, as in the Lua original,
            where number -1 of a tensor is its last; without it such a prediction takes none.

    Returns:
        score float64[D], falling; iou float64[D] with the region taken; taken bool[D]: the first to take it; meteor
        float64[D], 0 where not asked; regions int64[1], after merging.

    Raises:
        ValueError: boxes that are none, a score that is not finite, lists of different lengths.
    """
    truth, references = merge_regions(target["boxes"], target["captions"], plus_one=plus_one)
    found = boxes.checked(prediction.get("boxes", ()), "predicted boxes")
    captions = prediction.get("captions", ())
    scores = np.asarray(prediction.get("scores", ()), np.float64)
    _check_count("predicted captions", captions, len(found))
    _check_count("scores", scores, len(found))
    if not np.isfinite(scores).all():
        raise ValueError(f"a score is {scores[~np.isfinite(scores)][0]}, expected finite numbers. Correct the scores.")
    order = np.argsort(-scores, kind="stable")
    table = boxes.iou_table(found[order], truth, plus_one=plus_one)
    best = table.argmax(axis=1) if len(truth) else np.zeros(len(found), int)
    iou = table[np.arange(len(found)), best] if len(truth) else np.zeros(len(found))
    taken = np.zeros(len(found), bool)
    if strays_take_last:
        best[iou == 0] = len(truth) - 1
    touching = np.flatnonzero((iou > 0) | (strays_take_last and len(truth) > 0))
    taken[touching[np.unique(best[touching], return_index=True)[1]]] = True
    said = np.zeros(len(found))
    for i in np.flatnonzero(taken & (iou >= IOUS[0])):
        wanted, caption = references[best[i]], captions[order[i]]
        if "" in wanted:
            wanted, caption = [_EMPTY], _EMPTY
        said[i] = (meteor or meteor_score)(wanted, caption)
    return {
        "score": scores[order],
        "iou": iou,
        "taken": taken,
        "meteor": said,
        "regions": np.array([len(truth)]),
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures over all pictures; NaN where no picture has a region.

    Equal scores of different pictures count in the order of the rows, as published.

    Returns:
        mAP, mAP_detection; AP_iou0.3_meteor0.00 ... and AP_detection_iou0.3 ...: what they are the means of.
    """
    score, iou, meteor = (column(rows, key) for key in ("score", "iou", "meteor"))
    taken = column(rows, "taken").astype(bool)
    regions = int(column(rows, "regions").sum())
    order = np.argsort(-score, kind="stable")
    iou, meteor, taken = iou[order], meteor[order], taken[order]
    detection, both = {}, {}
    for least in IOUS:
        placed = taken & (iou >= least)
        detection[f"AP_detection_iou{least}"] = average_precision(placed, regions)
        for above in METEORS:
            both[f"AP_iou{least}_meteor{above:.2f}"] = average_precision(placed & (meteor > above), regions)
    means = {"mAP": float(np.mean(list(both.values()))), "mAP_detection": float(np.mean(list(detection.values())))}
    return {**means, **both, **detection}


def average_precision(right: np.ndarray, positives: int) -> float:
    """Precision averaged at the recalls 0, 0.01 ... 0.99, at each the best that this recall or more is reached with.

    Args:
        right: bool[n], predictions by falling score.
        positives: what could be found. NaN where it is 0.
    """
    if not positives:
        return float("nan")
    hits = np.cumsum(right)
    best = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    # In whole numbers: a recall of exactly 0.29 reaches 0.29.
    first = np.searchsorted(100 * hits, np.arange(100) * positives)
    return float(np.append(best, 0.0)[first].mean())


def _check_count(what: str, values: Any, count: int) -> None:
    if isinstance(values, str):
        raise ValueError(
            f"{what} is the text {values[:60]!r}, expected a list of {count}, one per box. Put it into one."
        )
    if len(values) != count:
        raise ValueError(f"number of {what} is {len(values)}, expected {count}, one per box. Give one for each box.")


def meteor_score(references: list[str], hypothesis: str) -> float:
    """METEOR 1.5 of a text against the reference that suits it best, in [0, 1]; the last 131,072 answers are kept.

    Phrases of regions come again and again: the score is kept here, not only the counts it is made from.
    """
    return _meteor_score(tuple(references), hypothesis)


@functools.lru_cache(maxsize=1 << 17)
def _meteor_score(references: tuple[str, ...], hypothesis: str) -> float:
    from pixel_align.evaluation import meteor

    return meteor.score(meteor.statistics(references, hypothesis))
