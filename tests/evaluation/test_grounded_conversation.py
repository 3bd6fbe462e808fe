"""Grounded conversation: published figures by plain loops, and what a better pairing changes."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import captioning, detection, grounded_conversation


def block(x0: int, x1: int) -> np.ndarray:
    """A mask of 4 x 40 that covers columns x0 to x1."""
    mask = np.zeros((4, 40), bool)
    mask[:, x0:x1] = True
    return mask


def picture(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(seed)
    starts = random.integers(0, 30, 1 + seed % 5)
    truth = [block(x, x + int(random.integers(3, 10))) for x in starts]
    found = [np.roll(mask, int(random.integers(-3, 4)), axis=1) for mask in truth for _ in range(1 + seed % 2)]
    found = [found[i] for i in random.permutation(len(found))][: (seed % 7) * 2]
    similarity = random.random((len(truth), len(found)))
    names = [f"phrase {i}" for i in range(len(truth))]
    return {"masks": truth, "phrases": names}, {"masks": found, "similarity": similarity}


def published(pictures: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """mIoU and mask recall as the release describes them, pair by pair."""
    means, right, phrases = [], 0, 0
    for target, prediction in pictures:
        iou = {
            (i, j): (a & b).sum() / (a | b).sum()
            for i, a in enumerate(target["masks"])
            for j, b in enumerate(prediction["masks"])
        }
        paired, left = [], dict(iou)
        while left and max(left.values()) > 0:
            best = max(left, key=lambda pair: left[pair])
            paired.append(left[best])
            left = {p: v for p, v in left.items() if p[0] != best[0] and p[1] != best[1]}
        means.append(sum(paired) / len(paired) if paired else 0.0)
        phrases += len(target["phrases"])
        left = dict(iou)
        while left:
            best = max(left, key=lambda pair: left[pair])
            if left[best] < 0.5 or prediction["similarity"][best] < 0.5:
                break
            right += 1
            left = {p: v for p, v in left.items() if p[0] != best[0] and p[1] != best[1]}
    return {"mIoU": sum(means) / len(means), "mask_recall": right / phrases}


def score(pictures: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    return grounded_conversation.summary([grounded_conversation.row(*one) for one in pictures])


def test_published_figures_by_loops() -> None:
    pictures = [picture(seed) for seed in range(60)]
    figures = score(pictures)
    assert {k: figures[k] for k in ("mIoU", "mask_recall")} == pytest.approx(published(pictures), abs=1e-12)
    ap = detection.summary([detection.row({"masks": t["masks"]}, {"masks": p["masks"]}) for t, p in pictures])
    assert figures["AP50"] == ap["AP50"]
    assert 0.05 < figures["mask_recall"] < figures["mask_recall_optimal"] < 1
    assert 0.2 < figures["mIoU"] < 1 and 0.1 < figures["AP50"] < 1


def test_greedy_recall_stops_at_the_first_words_that_do_not_fit() -> None:
    masks = [block(0, 10), block(20, 30)]
    wrong_first = {"masks": masks, "similarity": [[0.1, 0.0], [0.0, 0.9]]}
    row = grounded_conversation.row({"masks": masks, "phrases": ["a", "b"]}, wrong_first)
    assert (row["recalled"][0], row["recalled_optimal"][0]) == (0, 1)


def test_the_best_recall_by_trying_everything() -> None:
    for seed in range(40):
        target, prediction = picture(seed)
        fits = [
            {
                j
                for j, b in enumerate(prediction["masks"])
                if (a & b).sum() / (a | b).sum() >= 0.5 and prediction["similarity"][i, j] >= 0.5
            }
            for i, a in enumerate(target["masks"])
        ]
        choices = itertools.product(*[[None, *sorted(options)] for options in fits])
        taken = ([j for j in choice if j is not None] for choice in choices)
        most = max(len(chosen) for chosen in taken if len(set(chosen)) == len(chosen))
        assert grounded_conversation.row(target, prediction)["recalled_optimal"][0] == most


def test_greedy_pairs_are_not_the_best_ones() -> None:
    """The first predicted mask fits the first target best, but is the only one that touches the second."""
    target = {"masks": [block(0, 10), block(8, 18)], "phrases": ["a", "b"]}
    row = grounded_conversation.row(target, {"masks": [block(2, 12), block(0, 6)]})
    assert row["miou"][0] == pytest.approx(8 / 12)
    assert row["miou_optimal"][0] == pytest.approx((6 / 10 + 4 / 16) / 2)  # a larger sum, though not a larger mean


def test_a_mask_without_a_phrase_drops_the_picture_as_published() -> None:
    target = {"masks": [block(0, 10), block(20, 30)], "phrases": ["a", "b"]}
    found = {"masks": [block(0, 10), block(20, 29)], "similarity": [[0.9], [0.9]]}
    row = grounded_conversation.row(target, found)
    assert row["recalled"][0] == 0 and row["recalled_optimal"][0] == 1


def test_texts_are_scored_as_captions() -> None:
    """With CIDEr only: METEOR needs another package's tables."""
    texts = ["a red cat on the mat", "two men near a car", "the sky is blue today"]
    said = ["a red cat on a mat", "two men in a car", ""]
    rows, captions = [], []
    for seed, (true, own) in enumerate(zip(texts, said, strict=True), 1):
        target, prediction = picture(seed)
        pair = {**target, "captions": [true]}, {**prediction, "text": own}
        rows.append(grounded_conversation.row(*pair, metrics=("CIDEr",)))
        captions.append(captioning.row({"captions": [true]}, {"text": own}, metrics=("CIDEr",)))
    without = grounded_conversation.row(*picture(4))
    figures = grounded_conversation.summary([*rows, without])
    assert figures["CIDEr"] == captioning.summary(captions)["CIDEr"] > 0
    assert "METEOR" not in figures and "CIDEr" not in grounded_conversation.summary([without])


def test_order_and_copies() -> None:
    pictures = [picture(seed) for seed in range(20)]
    figures = score(pictures)
    names = ("mIoU", "mIoU_optimal", "mask_recall", "mask_recall_optimal")
    mixed = score([pictures[i] for i in np.random.default_rng(0).permutation(20)])
    twice = score(pictures * 2)
    assert [mixed[n] for n in names] == pytest.approx([figures[n] for n in names], abs=1e-12)
    assert [twice[n] for n in names] == pytest.approx([figures[n] for n in names], abs=1e-12)
    for target, prediction in pictures[:8]:
        order = np.random.default_rng(1).permutation(len(prediction["masks"]))
        turned = {
            "masks": [prediction["masks"][i] for i in order],
            "similarity": prediction["similarity"][:, order],
        }
        rows = [grounded_conversation.row(target, p) for p in (prediction, turned)]
        assert rows[0]["recalled_optimal"] == rows[1]["recalled_optimal"]
        assert rows[0]["miou_optimal"] == pytest.approx(rows[1]["miou_optimal"])


def test_nothing_predicted_and_nothing_to_predict() -> None:
    target = {"masks": [block(0, 10)], "phrases": ["a"]}
    figures = score([(target, {})])
    assert figures == dict.fromkeys(figures, 0.0)
    nowhere: dict[str, Any] = {"masks": [], "phrases": []}
    empty = score([(nowhere, {"masks": [block(0, 3)], "similarity": np.zeros((0, 1))})])
    assert empty["mIoU"] == 0.0 and math.isnan(empty["mask_recall"]) and math.isnan(empty["AP50"])
    assert all(math.isnan(value) for value in score([]).values())
    # Two empty masks are not alike: the published code divides 0 by 0 there and gives the whole picture 0.
    blank = block(0, 0)
    pair = {"masks": [blank, block(0, 5)], "phrases": ["a", "b"]}
    assert grounded_conversation.row(pair, {"masks": [blank, block(0, 5)]})["miou"][0] == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"masks": [np.ones((3, 3), bool)]}, "sizes of the masks"),
        ({"similarity": [[math.nan]]}, "similarity is an array of shape"),
        ({"similarity": [[1.0], [1.0]]}, "similarity is an array of shape"),
        ({"masks": [5]}, "predicted mask 0 is a int"),
    ],
)
def test_what_is_no_answer_is_refused(changes: dict[str, Any], said: str) -> None:
    target = {"masks": [block(0, 10)], "phrases": ["a"]}
    with pytest.raises(ValueError, match=said):
        grounded_conversation.row(target, {"masks": [block(0, 10)], "similarity": [[1.0]], **changes})
