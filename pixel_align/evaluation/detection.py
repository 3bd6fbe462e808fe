"""Average precision of detections as COCO computes it, by pycocotools (extra [eval], imported when first used).

A target is a dict of one picture: boxes [G, 4] xyxy or masks, list of G; categories int[G], 1 by default; crowd
bool[G], False by default; areas [G], by default those of the boxes or masks (COCO's own files give the masks' areas
for boxes as well). A prediction: boxes or masks, scores [D], 1 by default; categories.

The row holds the table of IoU and the areas; COCO's matching and its accumulation are pycocotools' own, over all rows.
Equal scores count in the order of the rows; COCO's files are read in the order of image ids.
"""

import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation import boxes, masks
from pixel_align.evaluation.rows import Row

_MOST = 100  # predictions that count, per picture and category

# COCO's twelve figures, in the order of its table.
_NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]


def row(target: Target, prediction: Prediction) -> Row:
    """One picture -> small arrays: the table of IoU, and what COCO's matching asks of its rows and columns.

    Args:
        prediction: {} where there is none.

    Returns:
        table float64[D * G] row by row; score, area float64[D], category int64[D]; target_area float64[G],
        target_category int64[G], target_crowd bool[G]. Predictions beyond the first 100 of a category by score are
        left out, as they are in COCO's figures.

    Raises:
        ValueError: a box or mask that is none, a score that is not finite, lists of different lengths.
    """
    by_mask = target.get("masks") is not None
    key = "masks" if by_mask else "boxes"
    shapes, areas = _shapes(target.get(key, ()), "target", by_mask)
    found, found_areas = _shapes(prediction.get(key, ()), "predicted", by_mask)
    score = _values(prediction, "scores", len(found), 1.0).astype(np.float64)
    if not np.isfinite(score).all():
        raise ValueError(f"a score is {score[~np.isfinite(score)][0]}, expected finite numbers. Correct the scores.")
    category = _values(prediction, "categories", len(found), 1)
    kept = _kept(score, category)
    crowd = _values(target, "crowd", len(shapes), False).astype(bool)
    if by_mask and (sizes := {tuple(m["size"]) for m in (*shapes, *found)}):
        _check_sizes(sizes)
    table = _table([found[i] for i in kept], shapes, crowd.tolist(), by_mask)
    return {
        "table": np.asarray(table, np.float64).reshape(-1),
        "score": score[kept],
        "area": found_areas[kept],
        "category": category[kept],
        "target_area": _values(target, "areas", len(shapes), areas).astype(np.float64),
        "target_category": _values(target, "categories", len(shapes), 1),
        "target_crowd": crowd,
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """COCO's twelve figures over all pictures: AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100,
    AR_small, AR_medium, AR_large; NaN where no target has the size in question (pycocotools says -1).
    """
    if not any(len(r["target_category"]) for r in rows):
        return dict.fromkeys(_NAMES, float("nan"))
    with contextlib.redirect_stdout(io.StringIO()):
        found = evaluation(rows)
        found.evaluate()
        found.accumulate()
        found.summarize()
    return {name: float(value) if value >= 0 else float("nan") for name, value in zip(_NAMES, found.stats, strict=True)}


def evaluation(rows: Sequence[Row]) -> Any:
    """A COCOeval whose pictures are the rows and whose tables of IoU are theirs."""
    from pycocotools.coco import COCO

    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, r in enumerate(rows):
        places = zip(r["target_area"], r["target_category"], r["target_crowd"], strict=True)
        for place, (area, category, crowd) in enumerate(places):
            common = {"image_id": image, "place": place, "bbox": (), "area": float(area)}
            truth.append({**common, "id": len(truth) + 1, "category_id": int(category), "iscrowd": int(crowd)})
        for place, (area, category, score) in enumerate(zip(r["area"], r["category"], r["score"], strict=True)):
            common = {"image_id": image, "place": place, "bbox": (), "area": float(area)}
            found.append({**common, "id": len(found) + 1, "category_id": int(category), "score": float(score)})
    images = [{"id": image} for image in range(len(rows))]
    categories = [{"id": i} for i in sorted({a["category_id"] for a in truth})]
    sides = []
    for annotations in (truth, found):
        coco = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        sides.append(coco)
    evaluation = _with_tables()(*sides, "bbox")
    evaluation.tables = [r["table"].reshape(len(r["score"]), len(r["target_category"])) for r in rows]
    return evaluation


@functools.cache
def _with_tables() -> type:
    from pycocotools.cocoeval import COCOeval

    class WithTables(COCOeval):
        """A COCOeval that is given the IoU of each picture instead of computing it."""

        tables: list[np.ndarray]

        def computeIoU(self, imgId: int, catId: int) -> Any:
            truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
            if not truth and not found:
                return []
            found = sorted(found, key=lambda annotation: -annotation["score"])[: self.params.maxDets[-1]]
            if not truth or not found:
                return []
            return self.tables[imgId][np.ix_([a["place"] for a in found], [a["place"] for a in truth])]

    return WithTables


def _table(found: list[Any], shapes: list[Any], crowd: list[bool], by_mask: bool) -> Any:
    if by_mask or not len(found) or not len(shapes):
        return masks.iou_table(found, shapes, crowd)
    return masks.pycocotools_mask().iou(found, shapes, crowd)


def _shapes(shapes: Any, whose: str, by_mask: bool) -> tuple[list[Any], np.ndarray]:
    """(what pycocotools' iou takes, areas float64[n])."""
    if by_mask:
        encoded = [masks.as_rle(mask, f"{whose} mask {i}") for i, mask in enumerate(shapes)]
        areas = masks.pycocotools_mask().area(encoded) if encoded else ()
        return encoded, np.asarray(areas, np.float64)
    array = boxes.checked(shapes, f"{whose} boxes")
    sides = array[:, 2:] - array[:, :2]
    return list(np.concatenate([array[:, :2], sides], axis=1)), sides.prod(axis=1)


def _kept(score: np.ndarray, category: np.ndarray) -> np.ndarray:
    """int[n]: the predictions that can count, in their own order."""
    order = np.argsort(-score, kind="stable")
    best = [order[category[order] == one][:_MOST] for one in np.unique(category)]
    return np.sort(np.concatenate(best)) if best else np.zeros(0, int)


def _values(holder: Mapping[str, Any], key: str, count: int, default: Any) -> np.ndarray:
    values = holder.get(key)
    array = np.broadcast_to(np.asarray(default), (count,)) if values is None else np.asarray(values)
    if array.shape != (count,):
        raise ValueError(f"shape of {key} is {array.shape}, expected ({count},), one per shape. Give one for each.")
    return array


def _check_sizes(sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        raise ValueError(
            f"sizes of the masks of one picture are {sorted(sizes)}, expected one. Resize them to the original picture."
        )
