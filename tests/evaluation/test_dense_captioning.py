"""Dense captioning against the written protocol, transcribed step by step without NumPy."""

import math
import random
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import dense_captioning

WORDS = ("red", "ball", "cat", "on", "table")


def meteor(references: list[str], hypothesis: str) -> float:
    """Any function of texts with values around the thresholds does here: the share of common words, halved."""
    said = set(hypothesis.split())
    best = max(len(said & set(text.split())) / max(len(said | set(text.split())), 1) for text in references)
    return best / 2


def picture(seed: int, regions: int = 8, found: int = 12) -> tuple[dict[str, Any], dict[str, Any]]:
    """Regions of which many overlap each other, and predictions near them; some phrases and pictures are empty."""
    r = random.Random(seed)

    def box() -> list[float]:
        x, y = r.choice([(0, 0), (30, 5), (8, 40)])
        return [x + r.randint(0, 4), y + r.randint(0, 4), x + r.randint(12, 25), y + r.randint(12, 25)]

    def text() -> str:
        return " ".join(r.sample(WORDS, r.randint(1, 4)))

    truth = [(box(), text()) for _ in range(regions if seed % 5 else 0)]
    guesses = [(box(), text(), r.random()) for _ in range(found if seed % 7 else 0)]
    return (
        {"boxes": [b for b, _ in truth], "captions": [t for _, t in truth]},
        {
            "boxes": [b for b, _, _ in guesses],
            "captions": [t for _, t, _ in guesses],
            "scores": [s for _, _, s in guesses],
        },
    )


def pictures(count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [picture(seed) for seed in range(count)]


def by_the_letter(
    examples: list[tuple[dict[str, Any], dict[str, Any]]], extra: int, strays: bool = False
) -> dict[str, float]:
    """The protocol in plain loops; `extra` is the pixel that the Lua original adds to each side, `strays` its way with
    predictions that touch nothing.
    """

    def overlap(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]) + extra, min(a[3], b[3]) - max(a[1], b[1]) + extra
        if w <= 0 or h <= 0:
            return 0.0
        areas = sum((box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b))
        return w * h / (areas - w * h)

    records, positives = [], 0
    for target, prediction in examples:
        left = list(range(len(target["boxes"])))
        merged = []
        while left:
            groups = [[j for j in left if overlap(target["boxes"][i], target["boxes"][j]) >= 0.7] for i in left]
            group = max(groups, key=len)  # the first of the largest
            corners = zip(*(target["boxes"][i] for i in group), strict=True)
            merged.append(([sum(c) / len(group) for c in corners], [target["captions"][i] for i in group]))
            left = [i for i in left if i not in group]
        positives += len(merged)
        used = set()
        guesses = zip(prediction["scores"], prediction["boxes"], prediction["captions"], strict=True)
        for score, box, text in sorted(guesses, key=lambda guess: -guess[0]):
            best, which = 0.0, None
            for i, (place, _) in enumerate(merged):
                if overlap(box, place) > best:
                    best, which = overlap(box, place), i
            counts = which is not None and which not in used
            used.add(len(merged) - 1 if which is None and strays else which)
            said = 0.0
            if counts and which is not None:
                said = 0.5 if "" in merged[which][1] else meteor(merged[which][1], text)
            records.append((score, best, counts, said))
    records.sort(key=lambda record: -record[0])
    cells: dict[tuple[float, float], float] = {}
    for least in (0.3, 0.4, 0.5, 0.6, 0.7):
        for above in (-1, 0, 0.05, 0.1, 0.15, 0.2, 0.25):
            recalls, precisions, hits = [], [], 0
            for n, (_, iou, counts, said) in enumerate(records, 1):
                hits += counts and iou >= least and said > above
                recalls.append(hits / positives)
                precisions.append(hits / n)
            total = 0.0
            for percent in range(100):
                # Of the quotients, as a recall of 0.29 is not exactly 29 / 100 in binary for every denominator.
                reached = [p for p, r in zip(precisions, recalls, strict=True) if r * 100 >= percent - 1e-9]
                total += max(reached, default=0.0)
            cells[least, above] = total / 100
    wanted = [value for (_, above), value in cells.items() if above >= 0]
    detection = [value for (_, above), value in cells.items() if above < 0]
    assert (len(wanted), len(detection)) == (30, 5)
    named = {f"AP_iou{iou}_meteor{said:.2f}": value for (iou, said), value in cells.items() if said >= 0}
    return {"mAP": sum(wanted) / 30, "mAP_detection": sum(detection) / 5, **named}


def score(examples: list[tuple[dict[str, Any], dict[str, Any]]], **settings: Any) -> dict[str, float]:
    return dense_captioning.summary([dense_captioning.row(*e, meteor=meteor, **settings) for e in examples])


@pytest.mark.parametrize(("plus_one", "strays"), [(False, False), (True, False), (True, True)])
def test_the_protocol_by_the_letter(plus_one: bool, strays: bool) -> None:
    examples = pictures(60)
    for target, _ in examples[1::10]:
        target["captions"][:2] = ["", ""]
    for _, prediction in examples[::2]:
        if prediction["boxes"]:
            prediction["boxes"][0] = [900, 900, 950, 950]
    figures = score(examples, plus_one=plus_one, strays_take_last=strays)
    expected = by_the_letter(examples, int(plus_one), strays)
    assert strays == (figures != score(examples, plus_one=plus_one))
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.01 < figures["mAP"] < figures["mAP_detection"] < 0.99
    assert figures["AP_iou0.7_meteor0.25"] < figures["AP_iou0.3_meteor0.00"]


def test_the_two_conventions_differ() -> None:
    assert score(pictures(60))["mAP"] != score(pictures(60), plus_one=True)["mAP"]
    # 10 x 10 of 10 x 15 is 2/3; of 11 x 11 of 11 x 16 is 0.6875, both below 0.7; 10 x 14 against 11 x 15 lie about it.
    close = [[0, 0, 10, 10], [0, 0, 10, 14.6]]
    assert len(dense_captioning.merge_regions(close, ["a", "b"])[0]) == 2
    assert len(dense_captioning.merge_regions(close, ["a", "b"], plus_one=True)[0]) == 1


def test_the_largest_group_is_merged_first() -> None:
    """The middle box of three is near both others, which are not near each other."""
    row = [[0, 0, 100, 10], [12, 0, 112, 10], [24, 0, 124, 10], [500, 0, 510, 10]]
    merged, captions = dense_captioning.merge_regions(row, ["a", "b\n", "c", "d"])
    assert merged.tolist() == [[12, 0, 112, 10], [500, 0, 510, 10]]
    assert captions == [["a", "b", "c"], ["d"]]


def test_a_prediction_takes_its_best_region_even_if_that_is_taken() -> None:
    target = {"boxes": [[0, 0, 10, 10], [0, 6, 10, 16]], "captions": ["red", "red"]}
    twice = {"boxes": [[0, 0, 10, 10], [0, 1, 10, 11]], "captions": ["red", "red"], "scores": [0.9, 0.8]}
    row = dense_captioning.row(target, twice, meteor=meteor)
    assert row["taken"].tolist() == [True, False] and row["iou"][1] > 0.3
    assert row["meteor"].tolist() == [0.5, 0.0]


def test_meteor_is_asked_only_where_it_can_matter() -> None:
    asked = []

    def counting(references: list[str], hypothesis: str) -> float:
        asked.append(hypothesis)
        return 1.0

    target = {"boxes": [[0, 0, 10, 10]], "captions": ["red"]}
    found = {"boxes": [[0, 0, 10, 9], [0, 0, 10, 8], [50, 50, 60, 60]], "captions": ["a", "b", "c"]}
    dense_captioning.row(target, {**found, "scores": [0.1, 0.2, 0.3]}, meteor=counting)
    assert asked == ["b"]


def test_meteor_thresholds_are_strict() -> None:
    target = {"boxes": [[0, 0, 10, 10]], "captions": ["red"]}
    found = {"boxes": [[0, 0, 10, 10]], "captions": ["red"], "scores": [1.0]}
    for value, cells in ((0.0, 0), (0.05, 1), (0.06, 2), (0.25, 5), (0.26, 6)):
        row = dense_captioning.row(target, found, meteor=lambda *_, value=value: value)
        assert dense_captioning.summary([row])["mAP"] == pytest.approx(cells / 6)
        assert dense_captioning.summary([row])["mAP_detection"] == 1.0


def test_order_shards_and_duplicates() -> None:
    examples = pictures(30)
    figures = score(examples)
    # No two scores are equal: then the order of pictures cannot matter, nor that of predictions.
    shuffled = [examples[i] for i in np.random.default_rng(0).permutation(30)]
    assert score(shuffled) == pytest.approx(figures, abs=1e-12)
    backwards = [(t, {key: values[::-1] for key, values in p.items()}) for t, p in examples]
    assert score(backwards) == pytest.approx(figures, abs=1e-12)
    # A second prediction of each region, behind all others, cannot be right.
    again = []
    for t, p in examples:
        later = {**p, "scores": [s - 2 for s in p["scores"]]}
        again.append((t, {key: [*p[key], *later[key]] for key in p}))
    assert score(again) == pytest.approx(figures, abs=1e-12)


def test_equal_scores_count_in_the_order_of_the_pictures() -> None:
    target = {"boxes": [[0, 0, 10, 10]], "captions": ["red"]}
    right = {"boxes": [[0, 0, 10, 10]], "captions": ["red"], "scores": [0.5]}
    wrong = {**right, "boxes": [[50, 50, 60, 60]]}
    first, second = score([(target, right), (target, wrong)]), score([(target, wrong), (target, right)])
    assert first["mAP_detection"] == 0.51 and second["mAP_detection"] == pytest.approx(0.51 / 2)


def test_nothing_predicted_and_nothing_to_predict() -> None:
    target, found = picture(1)
    assert target["boxes"] and found["boxes"]
    empty = {"boxes": [], "captions": [], "scores": []}
    assert score([(target, empty)])["mAP"] == score([(target, {})])["mAP"] == 0.0
    nowhere = {"boxes": np.zeros((0, 4)), "captions": []}
    assert math.isnan(score([(nowhere, found)])["mAP"]) and math.isnan(score([])["mAP"])
    # A picture without regions still brings wrong predictions.
    assert score([(target, found), (nowhere, found)])["mAP_detection"] < score([(target, found)])["mAP_detection"]


def test_boxes_without_extent() -> None:
    flat = [[5, 5, 5, 9], [0, 0, 10, 10]]
    assert len(dense_captioning.merge_regions(flat, ["a", "b"])[0]) == 1
    assert len(dense_captioning.merge_regions(flat, ["a", "b"], plus_one=True)[0]) == 2


def test_average_precision_of_a_recall_on_the_grid() -> None:
    """29 of 100 found: recalls 0 to 0.29 are reached, also where 29 / 100 is not 0.29 in binary."""
    for positives in (100, 200, 700):
        found = positives * 29 // 100
        right = np.ones(found, bool)
        assert dense_captioning.average_precision(right, positives) == 0.3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boxes": [[0, 0, math.nan, 1]]}, "box 0 of predicted boxes"),
        ({"boxes": [[5, 0, 1, 1]]}, "box 0 of predicted boxes"),
        ({"scores": [math.nan]}, "a score is nan"),
        ({"scores": []}, "number of scores is 0, expected 1"),
        ({"captions": ["a", "b"]}, "number of predicted captions is 2, expected 1"),
        ({"captions": "a"}, "predicted captions is the text 'a', expected a list of 1"),
    ],
)
def test_what_is_no_prediction_is_refused(changes: dict[str, Any], said: str) -> None:
    target = {"boxes": [[0, 0, 10, 10]], "captions": ["red"]}
    found = {"boxes": [[0, 0, 10, 10]], "captions": ["red"], "scores": [1.0], **changes}
    with pytest.raises(ValueError, match=said):
        dense_captioning.row(target, found, meteor=meteor)
    with pytest.raises(ValueError, match="number of target captions is 0"):
        dense_captioning.row({**target, "captions": []}, {}, meteor=meteor)
