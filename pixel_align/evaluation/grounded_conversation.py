"""Grounded conversation: a text whose phrases have masks (Rasheed et al. 2024, "GLaMM", the task GCG).

A target is a dict of one picture: masks, list of G; phrases, list of the texts they belong to; captions, list of true
texts. A prediction: masks, list of P; text; similarity float[target phrases, predicted phrases] in [-1, 1], the
likeness of their meanings (published: cosine of BERT-base vectors, averaged over words). Masks are COCO run lengths or
arrays.

Published figures: `AP50` is COCO's over one category with all scores 1. `mIoU` pairs masks greedily, largest IoU
first, and averages IoU over the pairs of a picture, then over pictures, 0 where there are none. `mask_recall` pairs
greedily by IoU until the first pair with IoU or similarity below 0.5, and divides the pairs by the target's phrases:
it stops at the first pair whose words do not fit, however many fit after it. The figures named `_optimal` take the best
one-to-one pairing instead, of IoU for `mIoU`, and of the number of pairs that satisfy both for `mask_recall`. METEOR
and CIDEr are those of `evaluation.captioning`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation import detection, masks, matching
from pixel_align.evaluation.rows import Row, column, mean

IOU = 0.5
SIMILARITY = 0.5
TEXT_METRICS = ("METEOR", "CIDEr")
_AP, _TEXT = "ap_", "text_"

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]


def row(target: Target, prediction: Prediction, *, metrics: Sequence[str] = TEXT_METRICS) -> Row:
    """One picture -> small arrays.

    Args:
        prediction: {} where there is none. Without `similarity` no phrase is recalled.
        metrics: of the text, for targets with `captions`; METEOR needs pycocoevalcap's tables.

    Returns:
        miou, miou_optimal float64[1]; recalled, recalled_optimal, phrases int64[1]; those of `detection.row` under
        names with "ap_" before, of `captioning.row` with "text_".

    Raises:
        ValueError: a mask that is none, masks of different sizes, or a similarity that is no table of finite numbers.
    """
    shapes = [masks.as_rle(mask, f"target mask {i}") for i, mask in enumerate(target["masks"])]
    found = [masks.as_rle(mask, f"predicted mask {i}") for i, mask in enumerate(prediction.get("masks", ()))]
    ap = detection.row({"masks": shapes}, {"masks": found})
    table = iou_table(shapes, found)
    phrases = len(target["phrases"])
    similarity = _similarity(prediction.get("similarity"), phrases)
    inside = table[: similarity.shape[0], : similarity.shape[1]]
    fits = (inside >= IOU) & (similarity[: inside.shape[0], : inside.shape[1]] >= SIMILARITY)
    return {
        # The published table has predictions as rows, which decides between equal IoU.
        "miou": np.array([_mean_gain(table.T, matching.greedy(table.T))]),
        "miou_optimal": np.array([_mean_gain(table, matching.optimal(table))]),
        "recalled": np.array([_recalled(table, similarity)]),
        "recalled_optimal": np.array([len(matching.optimal(fits))]),
        "phrases": np.array([phrases]),
        **{_AP + key: value for key, value in ap.items()},
        **{_TEXT + key: value for key, value in _text(target.get("captions"), prediction, metrics).items()},
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures over all pictures: AP50, mIoU, mIoU_optimal, mask_recall, mask_recall_optimal, NaN where nothing could be
    measured; and METEOR, CIDEr of the texts of those pictures that have true ones, where any has.
    """
    phrases = float(column(rows, "phrases").sum())
    recall = {
        name: float(column(rows, key).sum()) / phrases if phrases else float("nan")
        for name, key in (("mask_recall", "recalled"), ("mask_recall_optimal", "recalled_optimal"))
    }
    return {
        "AP50": detection.summary([_part(r, _AP) for r in rows])["AP50"],
        "mIoU": mean(column(rows, "miou")),
        "mIoU_optimal": mean(column(rows, "miou_optimal")),
        **recall,
        **_text_figures([part for r in rows if (part := _part(r, _TEXT))]),
    }


def iou_table(shapes: Sequence[masks.Rle], found: Sequence[masks.Rle]) -> np.ndarray:
    """Masks of one picture -> IoU float64[G, P]; of two empty ones 0."""
    table = masks.iou_table(found, shapes, [0] * len(shapes)).T
    return np.where(np.isfinite(table), table, 0.0)


def _text(captions: Sequence[str] | None, prediction: Prediction, metrics: Sequence[str]) -> Row:
    if not captions or not metrics:
        return {}
    from pixel_align.evaluation import captioning

    return captioning.row({"captions": captions}, {"text": prediction.get("text", "")}, metrics=metrics)


def _text_figures(rows: Sequence[Row]) -> dict[str, float]:
    if not rows:
        return {}
    from pixel_align.evaluation import captioning

    return {name: value for name, value in captioning.summary(rows).items() if name in TEXT_METRICS}


def _part(row: Row, prefix: str) -> Row:
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}


def _mean_gain(table: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    return float(np.mean([table[pair] for pair in pairs])) if pairs else 0.0


def _recalled(table: np.ndarray, similarity: np.ndarray) -> int:
    """Pairs of the published greedy recall."""
    pairs = 0
    for pair in matching.greedy(table):
        if table[pair] < IOU:
            break
        if pair[0] >= similarity.shape[0] or pair[1] >= similarity.shape[1]:
            # A mask without a phrase of its own: the published evaluator fails there and drops the whole picture.
            return 0
        if similarity[pair] < SIMILARITY:
            break
        pairs += 1
    return pairs


def _similarity(similarity: Any, phrases: int) -> np.ndarray:
    if similarity is None:
        return np.zeros((phrases, 0))
    array = np.asarray(similarity, np.float64)
    if array.size == 0:
        return np.zeros((phrases, 0))
    if array.ndim != 2 or len(array) != phrases or not np.isfinite(array).all():
        raise ValueError(
            f"similarity is an array of shape {array.shape}, expected finite numbers [{phrases}, predicted phrases]. "
            "Compare each phrase of the target with each predicted one."
        )
    return array
