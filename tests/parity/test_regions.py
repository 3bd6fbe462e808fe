"""Metrics of regions and traces against pycocotools and slow formulations: the rows of the parity table.

The formulations and the drawn cases are those of tests/evaluation, which test the same and more without a report.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed (extra eval)")

from pycocotools import mask as coco

from pixel_align.evaluation import boxes, dense_captioning, local_matching, masks, point_l1, referring
from tests.evaluation import test_dense_captioning as dense_cases
from tests.evaluation import test_detection as detection_cases
from tests.evaluation import test_local_matching as trace_cases
from tests.evaluation import test_point_l1 as point_cases
from tests.evaluation import test_referring as referring_cases

_PYCOCOTOOLS = "pycocotools 2"
_EXACT = 1e-9


def _apart(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """(largest difference, largest value) over the figures of `theirs`; where one is NaN so is the other."""
    pairs = [(ours[name], value) for name, value in theirs.items()]
    assert all(math.isnan(a) == math.isnan(b) for a, b in pairs)
    known = [(a, b) for a, b in pairs if not math.isnan(b)]
    assert len(known) > len(pairs) / 2
    return max(abs(a - b) for a, b in known), max(b for _, b in known)


def test_boxes(report: Any) -> None:
    random = np.random.default_rng(0)
    corners = np.sort(random.uniform(0, 100, (400, 2, 2)), axis=1).reshape(400, 4)
    found, truth = corners[:200], corners[200:]
    widths = [np.concatenate([side[:, :2], side[:, 2:] - side[:, :2]], axis=1) for side in (found, truth)]
    theirs = coco.iou(*widths, [0] * 200)
    each = [[boxes.iou(tuple(a), tuple(b)) for b in truth] for a in found]
    difference = max(float(np.abs(ours - theirs).max()) for ours in (boxes.iou_table(found, truth), np.array(each)))
    assert difference < _EXACT
    report("IoU of boxes", "40,000 pairs, as a table and one by one", _PYCOCOTOOLS, difference, float(theirs.max()))


def test_masks(report: Any) -> None:
    random = np.random.default_rng(0)
    difference, largest, count = 0.0, 0.0, 0
    for _ in range(300):
        height, width = random.integers(1, 60, 2).tolist()
        arrays = [random.random((height, width)) < random.random() for _ in range(2)]
        packed = [coco.encode(np.asfortranarray(array, np.uint8)) for array in arrays]
        iou = float(np.nan_to_num(coco.iou(packed[:1], packed[1:], [0])[0, 0]))
        for forms in (arrays, packed, [dict(one, counts=one["counts"].decode()) for one in packed]):
            row = referring.row({"text": "it", "mask": forms[0]}, {"mask": forms[1]})
            union = int(coco.area(coco.merge(packed)))
            apart = (
                row["mask_iou"][0] - iou,
                row["union"][0] - union,
                row["intersection"][0] - int(coco.area(coco.merge(packed, True))),
                masks.area(forms[0], "mask") - int(coco.area(packed[0])),
            )
            difference, largest, count = max(difference, *map(abs, apart)), max(largest, iou, union), count + 1
    assert difference < _EXACT
    setting = f"{count:,} pairs as arrays and run lengths: IoU, areas of both, either and one, in pixels"
    report("masks", setting, _PYCOCOTOOLS, float(difference), largest)


def test_referring_segmentation(report: Any) -> None:
    pairs = [referring_cases.expression(seed) for seed in range(500)]
    for _, prediction in pairs:
        prediction["box"] = np.sort(prediction["box"].reshape(2, 2), axis=0).reshape(4)
    packed = [[coco.encode(np.asfortranarray(side["mask"], np.uint8)) for side in pair] for pair in pairs]
    both = np.array([int(coco.area(coco.merge(one, True))) for one in packed])
    either = np.array([int(coco.area(coco.merge(one))) for one in packed])
    iou = np.array([coco.iou(one[1:], one[:1], [0])[0, 0] for one in packed])
    box_iou = np.array([referring_cases.coco_iou(t["box"], p["box"]) for t, p in pairs])
    theirs = {"cIoU": float(both.sum() / either.sum()), "gIoU": float(iou.mean())}
    for t in referring.THRESHOLDS:
        theirs |= {f"P@{t:g}": float((box_iou > t).mean()), f"mask_P@{t:g}": float((iou > t).mean())}
    difference, largest = _apart(referring.summary([referring.row(*pair) for pair in pairs]), theirs)
    assert difference < _EXACT
    setting = "500 expressions: P@t of boxes and masks, cIoU, gIoU"
    report("referring", setting, "pycocotools 2, IoU counted by hand", difference, largest)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_detection_ap(kind: str, report: Any) -> None:
    difference = largest = 0.0
    for seed in range(6):
        dataset, found = detection_cases.world(seed)
        found = detection_cases.masked(found) if kind == "segm" else found
        ours = detection_cases.score(detection_cases.ours(dataset, found, kind))
        theirs = dict(zip(ours, detection_cases.theirs(dataset, found, kind), strict=True))
        apart, most = _apart(ours, theirs)
        difference, largest = max(difference, apart), max(largest, most)
    assert difference < _EXACT
    setting = f"6 sets of 12 pictures, {'masks' if kind == 'segm' else 'boxes'}: COCO's twelve figures"
    report("detection", setting, "pycocotools 2, COCOeval", difference, largest, f"detection {kind}")


@pytest.mark.parametrize("convention", ["pixel_llm", "plus_one", "lua"])
def test_dense_captioning_protocol(convention: str, report: Any) -> None:
    settings = dense_captioning.CONVENTIONS[convention]
    examples = dense_cases.pictures(120)
    for _, prediction in examples[::2]:
        if prediction["boxes"]:
            prediction["boxes"][0] = [900, 900, 950, 950]  # touches nothing
    theirs = dense_cases.by_the_letter(
        examples, int(settings.get("plus_one", False)), settings.get("strays_take_last", False)
    )
    difference, largest = _apart(dense_cases.score(examples, **settings), theirs)
    assert difference < _EXACT
    setting = f"120 pictures, 8 regions and 12 predictions, convention {convention}: the 30 cells, both means"
    report("dense captioning", setting, "the written protocol in loops", difference, largest, f"dense {convention}")


def test_point_l1(report: Any) -> None:
    pictures = [point_cases.picture(seed) for seed in range(300)]
    padded, plain = (
        [point_cases.by_loops(target, said["points"], padding) for target, said in pictures]
        for padding in (True, False)
    )
    theirs = {
        "point_l1": float(np.mean([sum(one) / (len(one) + 1e-8) for one in padded])),
        "point_l1_unpadded": _mean_of_means(plain),
        "point_l1_matched": _mean_of_means(plain),
    }
    difference, largest = _apart(point_l1.summary([point_l1.row(*one) for one in pictures]), theirs)
    assert difference < _EXACT
    report("point_l1", "300 pictures, with and without its faults", "a formulation in loops", difference, largest)


def test_local_bipartite_matching(report: Any) -> None:
    difference = largest = 0.0
    count = 0
    for seed in range(30):
        random = np.random.default_rng(1_000 + seed)
        p, m = np.sort(random.integers(1, 9, 2)).tolist()
        truth, found = trace_cases.trace(seed, m), trace_cases.trace(500 + seed, p)
        for window in (0, 1, 3):
            theirs = trace_cases.by_programme(truth, found, window)
            ours = trace_cases.score(truth, found, windows=(window,))[f"LBM_k{window}"]
            difference, largest, count = max(difference, abs(ours - theirs)), max(largest, theirs), count + 1
    assert difference < _EXACT
    assert local_matching.WINDOWS == (0, 1)
    report("LBM", f"{count} traces, windows 0, 1 and 3", "the linear programme that defines it", difference, largest)


def _mean_of_means(values: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(one) for one in values if len(one)]))
