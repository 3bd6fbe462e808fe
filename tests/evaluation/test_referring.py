"""Referring expressions: counted by hand and by loops, and against pycocotools."""

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from pixel_align.evaluation import masks, referring


def expression(seed: int, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A target and a prediction near it, each with a box and a mask that is drawn in it."""
    random = np.random.default_rng(seed)
    x0, y0, width, height = random.integers(1, 12, 4)
    box = np.array([x0, y0, x0 + width, y0 + height])
    guess = box + random.integers(-2, 3, 4) * [1, 1, 0, 0]
    target = {"text": "one two three " * (1 + seed % 4), "split": f"test{'AB'[seed % 2]}", "box": box}
    return (
        {**target, "mask": filled(box, random), **changes},
        {"box": guess.astype(float), "mask": filled(guess, random)},
    )


def filled(box: np.ndarray, random: np.random.Generator) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros((24, 30), bool)
    mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return mask & (random.random(mask.shape) < 0.9)


def rows_of(count: int) -> list[referring.Row]:
    return [referring.row(*expression(seed)) for seed in range(count)]


def test_the_threshold_is_strict() -> None:
    """IoU of exactly 0.5, as of one box that is half of the other, is not right."""
    target = {"text": "it", "box": [0, 0, 10, 10]}
    half, more = referring.row(target, {"box": [0, 0, 10, 5]}), referring.row(target, {"box": [0, 0, 10, 5.1]})
    assert referring.summary([half])["P@0.5"] == 0.0
    assert referring.summary([more])["P@0.5"] == 1.0
    assert referring.summary([more])["P@0.5:0.95"] == pytest.approx(0.1)


def test_figures_by_loops() -> None:
    pairs = [expression(seed) for seed in range(40)]
    figures = referring.summary([referring.row(*pair) for pair in pairs])
    both = [int((t["mask"] & p["mask"]).sum()) for t, p in pairs]
    either = [int((t["mask"] | p["mask"]).sum()) for t, p in pairs]
    ious = [b / e for b, e in zip(both, either, strict=True)]
    assert figures["cIoU"] == sum(both) / sum(either)
    assert figures["cIoU_pixel_llm"] == pytest.approx(np.mean(both) / (np.mean(either) + 1e-5), abs=1e-15)
    assert figures["cIoU"] != figures["cIoU_pixel_llm"]
    assert figures["gIoU"] == pytest.approx(np.mean(ious))
    boxes = [coco_iou(t["box"], p["box"]) for t, p in pairs]
    for step in range(10):
        threshold = (50 + 5 * step) / 100
        assert figures[f"P@{threshold:g}"] == np.mean([iou > threshold for iou in boxes])
        assert figures[f"mask_P@{threshold:g}"] == np.mean([iou > threshold for iou in ious])
    assert 0 < figures["P@0.5:0.95"] < figures["P@0.5"] < 1
    assert math.isnan(figures["N-acc"]) and math.isnan(figures["T-acc"])


def coco_iou(a: Any, b: Any) -> float:
    first, second = ([box[0], box[1], box[2] - box[0], box[3] - box[1]] for box in (a, b))
    return float(coco.iou(np.array([first], float), np.array([second], float), [0])[0, 0])


def test_masks_in_any_form_give_the_same_row() -> None:
    for seed in range(8):
        target, prediction = expression(seed)
        rle = {key: masks.as_rle(value["mask"], "mask") for key, value in (("t", target), ("p", prediction))}
        expected = referring.row(target, prediction)
        for t, p in ((rle["t"], rle["p"]), (rle["t"], prediction["mask"]), (target["mask"], rle["p"])):
            got = referring.row({**target, "mask": t}, {**prediction, "mask": p})
            assert all((got[key] == expected[key]).all() for key in expected)
        iou = coco.iou([dict(rle["p"])], [dict(rle["t"])], [0])[0, 0]
        assert expected["mask_iou"][0] == pytest.approx(iou, abs=1e-15)


def test_order_and_duplicates_do_not_matter() -> None:
    rows = rows_of(30)
    whole = referring.summary(rows)
    mixed = [rows[i] for i in np.random.default_rng(1).permutation(30)]
    for same in (referring.summary(mixed), referring.summary(rows + rows)):
        assert same == pytest.approx(whole, abs=1e-12, nan_ok=True)


def test_nothing_predicted_is_wrong_and_nothing_to_predict_is_nan() -> None:
    target, _ = expression(3)
    figures = referring.summary([referring.row(target, {})])
    assert figures["P@0.5"] == figures["cIoU"] == figures["gIoU"] == figures["mask_P@0.5"] == 0.0
    assert referring.row(target, {})["union"][0] == target["mask"].sum()
    assert all(math.isnan(value) for value in referring.summary([]).values())
    boxes_only = referring.summary([referring.row({"text": "it", "box": target["box"]}, {"box": target["box"]})])
    assert boxes_only["P@0.95"] == 1.0 and math.isnan(boxes_only["cIoU"])


def test_expressions_that_name_nothing() -> None:
    """The four cases of gRefCOCO's evaluator, by hand."""
    blank, some = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    some[:2] = True  # 10 pixels
    nothing = {"text": "a unicorn", "no_target": True}
    there = {"text": "a horse", "mask": some}
    cases = [
        (nothing, {"mask": blank}, (1.0, 0, 0)),
        (nothing, {"mask": some}, (0.0, 0, 10)),
        (nothing, {}, (0.0, 0, 0)),  # no answer is no right answer
        (nothing, {"mask": some, "no_target": True}, (1.0, 0, 0)),
        (there, {"mask": some}, (1.0, 10, 10)),
        (there, {"mask": some, "no_target": True}, (0.0, 0, 10)),
        (there, {"mask": blank}, (0.0, 0, 10)),
    ]
    rows = []
    for target, prediction, (iou, both, either) in cases:
        row = referring.row(target, prediction)
        assert (row["mask_iou"][0], row["intersection"][0], row["union"][0]) == (iou, both, either)
        rows.append(row)
    figures = referring.summary(rows)
    assert figures["N-acc"] == 2 / 4 and figures["T-acc"] == 1 / 3
    assert figures["gIoU"] == pytest.approx(3 / 7) and figures["cIoU"] == 10 / 40
    assert figures["mask_P@0.5"] == figures["Pr@0.7"] == 1 / 3  # of the expressions that name something


def test_published_precision_of_grefcoco_includes_the_threshold() -> None:
    target, found = np.zeros((1, 10), bool), np.zeros((1, 10), bool)
    target[:], found[:, :7] = True, True
    figures = referring.summary([referring.row({"text": "it", "mask": target}, {"mask": found})])
    assert figures["Pr@0.7"] == 1.0 and figures["mask_P@0.7"] == 0.0 and figures["Pr@0.8"] == 0.0


def test_splits_and_lengths_are_parts_of_the_whole() -> None:
    rows = rows_of(24)
    splits = referring.by_split(rows)
    assert list(splits) == ["testA", "testB"]
    assert splits["testA"] == pytest.approx(referring.summary(rows[::2]), abs=0, nan_ok=True)
    lengths = referring.by_length(rows)
    assert list(lengths) == ["3-5", "6-7", "8-10", "11+"]
    parts = [referring.summary([r for r in rows if r["words"][0] == words])["P@0.5"] for words in (3, 6, 9, 12)]
    assert [figures["P@0.5"] for figures in lengths.values()] == parts
    assert list(referring.by_length(rows, (3, 4))) == ["3", "4+"]


@pytest.mark.parametrize(
    ("target", "prediction", "said"),
    [
        ({"box": [5, 0, 1, 5]}, {}, "target box is"),
        ({"box": [0, 0, 5, 5]}, {"box": [0, 0, math.nan, 5]}, "predicted box is"),
        ({"box": [0, 0, 5, 5]}, {"box": 3}, "predicted box is 3, expected four numbers"),
        ({"box": [0, 0, 5, 5], "no_target": True}, {}, "expected none with no_target"),
        ({"mask": np.ones((2, 3), bool)}, {"mask": np.ones((3, 2), bool)}, "size of predicted mask"),
        # pycocotools would not come to an end, or find ten pixels among nine.
        ({"mask": {"size": [3, 3], "counts": "99999"}}, {"mask": np.ones((3, 3), bool)}, "counts of target mask is 63"),
        ({"mask": {"size": [3, 3], "counts": b"zzz"}}, {}, "counts of target mask is unreadable"),
        ({"mask": np.ones((3, 3), bool)}, {"mask": {"size": [3, 3], "counts": "4"}}, "counts of predicted mask is 4"),
    ],
)
def test_what_is_no_prediction_is_refused(target: Any, prediction: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        referring.row({"text": "it", **target}, prediction)
