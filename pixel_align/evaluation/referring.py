"""Metrics of referring expressions: comprehension (a box) and segmentation (a mask), with expressions without target.

A target is a dict, in pixels of the original picture:
    text: the expression. box: xyxy, or None. mask: COCO run lengths or array [H, W], or None: not scored then.
    no_target: True where it names nothing in the picture (gRefCOCO). split: name of the part of the set, optional.
A prediction is a dict in the same frame, {} where there is none, which counts as wrong:
    box, mask: as above. no_target: True where the model says that there is nothing; without the key a prediction says
    so by a mask that is None or empty, or where it has no mask by a box that is None.

P@t is the share of expressions whose box has IoU > t, strictly, as all published evaluators have it. cIoU divides the
summed intersections by the summed unions, gIoU averages IoU over expressions; an expression without target adds
intersection 0 and the pixels of a wrong mask as union, and IoU 1 where the model says nothing is there, else 0; a model
that says so where something is has intersection 0 (Liu et al. 2023, "GRES", as its evaluator has it).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation import boxes, masks
from pixel_align.evaluation.rows import Row, column, mean

THRESHOLDS = tuple((50 + 5 * i) / 100 for i in range(10))  # 0.5, 0.55 ... 0.95

PUBLISHED_PRECISIONS = (0.7, 0.8, 0.9)  # gRefCOCO's

# Shortest lengths of the groups of expressions, in words.
LENGTHS = (1, 3, 6, 8, 11)

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]


def row(target: Target, prediction: Prediction) -> Row:
    """One expression -> small arrays.

    Returns:
        iou float64[b]: of the boxes, b = 1 where the target has one, else 0.
        mask_iou float64[m], intersection int64[m], union int64[m]: pixels; m = 1 where the target has a mask or is
            known to be without one, else 0.
        no_target bool[1], said_no_target bool[1], words int64[1], split str[1].

    Raises:
        ValueError: a box or a mask that is none.
    """
    nothing = bool(target.get("no_target", False))
    box, mask = target.get("box"), target.get("mask")
    if nothing and box is not None:
        raise ValueError(f"box of {target.get('text')!r} is {box}, expected none with no_target. Correct the targets.")
    overlap = _overlap(mask, prediction.get("mask")) if nothing or mask is not None else None
    said = prediction.get("no_target")
    if said is None:
        by_mask = overlap is not None and "mask" in prediction
        said = overlap[2] == 0 if by_mask and overlap else prediction.get("box", ()) is None
    return {
        "iou": np.array([_box_iou(box, prediction.get("box"))] if box is not None else (), np.float64),
        **_mask_figures(overlap, nothing, bool(said)),
        "no_target": np.array([nothing]),
        "said_no_target": np.array([bool(said)]),
        "words": np.array([len(str(target.get("text", "")).split())]),
        "split": np.array([str(target.get("split", ""))]),
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures over all expressions; NaN where nothing could be measured.

    Returns:
        P@0.5 ... P@0.95, P@0.5:0.95: of boxes, and the mean of the ten.
        cIoU, gIoU, mask_P@0.5 ... mask_P@0.95: of masks; P over expressions that have a target.
        cIoU_pixel_llm: mean intersection / (mean union + 1e-5), as PixelLLM's evaluator has it.
        Pr@0.7, Pr@0.8, Pr@0.9: IoU >= t, as gRefCOCO's evaluator has it.
        N-acc, T-acc: share of the expressions without target, with target, that were taken for such.
    """
    iou, mask_iou = column(rows, "iou"), column(rows, "mask_iou")
    both, either = column(rows, "intersection"), column(rows, "union")
    nothing, said = column(rows, "no_target").astype(bool), column(rows, "said_no_target").astype(bool)
    with_mask = [r for r in rows if len(r["mask_iou"]) and not r["no_target"][0]]
    present = column(with_mask, "mask_iou")
    curve = {f"P@{t:g}": mean(iou > t) for t in THRESHOLDS}
    return {
        **curve,
        "P@0.5:0.95": float(np.mean(list(curve.values()))),
        "cIoU": _ratio(both.sum(), either.sum()),
        "gIoU": mean(mask_iou),
        **{f"mask_P@{t:g}": mean(present > t) for t in THRESHOLDS},
        "cIoU_pixel_llm": mean(both) / (mean(either) + 1e-5),
        **{f"Pr@{t:g}": mean(present >= t) for t in PUBLISHED_PRECISIONS},
        # A set that has no expressions without target measures neither.
        "N-acc": mean(said[nothing]),
        "T-acc": mean(~said[~nothing]) if nothing.any() else float("nan"),
    }


def by_split(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Name of the split -> its figures, in the order of the names."""
    return {name: summary(part) for name, part in splits(rows).items()}


def by_length(rows: Sequence[Row], shortest: Sequence[int] = LENGTHS) -> dict[str, dict[str, float]]:
    """Words of the expression, "1-2", "3-5" ... "11+" -> figures; lengths that do not occur are left out."""
    return {name: summary(part) for name, part in lengths(rows, shortest).items()}


def splits(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each split."""
    names = column(rows, "split")
    return {str(name): _where(rows, names == name) for name in np.unique(names)}


def lengths(rows: Sequence[Row], shortest: Sequence[int] = LENGTHS) -> dict[str, list[Row]]:
    """The rows of expressions of similar length; see `by_length`."""
    words = column(rows, "words")
    result = {}
    for low, above in zip(shortest, [*shortest[1:], None], strict=True):
        chosen = (words >= low) & (words < above) if above is not None else words >= low
        if chosen.any():
            name = f"{low}+" if above is None else f"{low}" if above == low + 1 else f"{low}-{above - 1}"
            result[name] = _where(rows, chosen)
    return result


def _box_iou(target: Any, predicted: Any) -> float:
    known = boxes.checked_one(target, "target box")
    return boxes.iou(known, boxes.checked_one(predicted, "predicted box")) if predicted is not None else 0.0


def _overlap(target: Any, predicted: Any) -> tuple[int, int, int]:
    """Pixels of (both, target, predicted) masks; a missing one is empty."""
    if target is None or predicted is None:
        known, found = (
            0 if mask is None else masks.area(mask, f"{what} mask")
            for what, mask in (("target", target), ("predicted", predicted))
        )
        return 0, known, found
    if isinstance(target, np.ndarray) and isinstance(predicted, np.ndarray):
        return masks.array_overlap(target, predicted, "mask")
    return masks.overlap(target, predicted, "mask")


def _mask_figures(overlap: tuple[int, int, int] | None, nothing: bool, said: bool) -> Row:
    if overlap is None:
        none = np.zeros(0, np.int64)
        return {"mask_iou": np.zeros(0), "intersection": none, "union": none}
    both, known, found = overlap
    either = known + found - both
    if nothing or said:
        both = 0
    if nothing and said:
        either = 0
    iou = float(said) if nothing else both / either if either else 0.0
    return {"mask_iou": np.array([iou]), "intersection": np.array([both]), "union": np.array([either])}


def _where(rows: Sequence[Row], chosen: np.ndarray) -> list[Row]:
    return [row for row, take in zip(rows, chosen, strict=True) if take]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
