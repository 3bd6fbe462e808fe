"""Intervals of each metric are those of its own summary; figures are those of the metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import bootstrap, dense_captioning, meteor, scoring, weighted_precision
from pixel_align.evaluation.formats import Case, Cases

Make = Callable[[np.random.Generator, int], Case]


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], axis=1)


def mask(rng: np.random.Generator) -> np.ndarray:
    found = np.zeros((12, 16), bool)
    y, x = rng.integers(0, 6, 2)
    found[y : y + 6, x : x + 8] = True
    return found


def expression(rng: np.random.Generator, k: int) -> Case:
    nothing = k % 5 == 0
    box = boxes(rng, 1)[0]
    target = {"text": "a cat", "mask": mask(rng)} | ({"no_target": True, "mask": None} if nothing else {"box": box})
    said = {} if k % 7 == 0 else {"box": box + rng.uniform(0, 15), "mask": mask(rng)}
    if k % 4 == 0:
        said = {"no_target": True}
    return Case(str(k), str(k // 2), target, said)


def regions(rng: np.random.Generator, k: int) -> Case:
    true = boxes(rng, int(rng.integers(0, 6)))
    found = np.concatenate([true + rng.uniform(-4, 4, true.shape[:1])[:, None], boxes(rng, 3)])[: 8 * (k % 4 != 0)]
    captions = [str(rng.choice(["a cat", "a dog", "the red car"])) for _ in range(20)]
    # All different: the order of equal ones is the order of pictures, which a set drawn with repeats changes.
    scores = rng.random(len(found))
    prediction = {"boxes": found, "scores": scores, "captions": captions[: len(found)]}
    return Case(str(k), str(k), {"boxes": true, "captions": captions[: len(true)]}, prediction)


def objects(rng: np.random.Generator, k: int) -> Case:
    one = regions(rng, k)
    target = {"boxes": one.target["boxes"], "categories": rng.integers(1, 4, len(one.target["boxes"]))}
    target["crowd"] = rng.random(len(target["boxes"])) < 0.2
    said = {key: one.prediction[key] for key in ("boxes", "scores")}
    return Case(str(k), str(k), target, {**said, "categories": rng.integers(1, 4, len(said["boxes"]))})


def conversation(rng: np.random.Generator, k: int) -> Case:
    masks, said = ([mask(rng) for _ in range(count)] for count in rng.integers(0, 4, 2))
    likeness = rng.uniform(0, 1, (len(masks), len(said)))
    prediction = {"masks": said, "phrases": ["x"] * len(said), "similarity": likeness}
    one = caption(rng, k)
    target = {"masks": masks, "phrases": ["x"] * len(masks), "captions": one.target["captions"] * (k % 6 != 0)}
    return Case(str(k), str(k), target, {**prediction, **one.prediction})


def trace(rng: np.random.Generator, k: int) -> Case:
    spans = np.array([[0, 1], [2, 5], [6, 8], [9, 13]])
    target = {
        "text": "a cat on snow", "word_spans": spans, "word_boxes": boxes(rng, 4), "word_located": rng.random(4) < 0.7,
        "object_boxes": np.zeros((0, 4)), "object_names": [], "size": (100, 100),
    }  # fmt: skip
    points = rng.uniform(0, 100, (4, 2, 2))
    said = {"points": points, "text": "a cat", "word_spans": spans[:2], "word_points": points[:2]}
    return Case(str(k), str(k // 2), target, said)


TEXTS = ("a cat on the mat", "two dogs run", "the red car is parked", "a man rides a red horse", "dogs and cats")


def caption(rng: np.random.Generator, k: int) -> Case:
    references = rng.choice(TEXTS, int(rng.integers(1, 4))).tolist()
    return Case(str(k), str(k // 2), {"captions": references}, {"text": str(rng.choice((*TEXTS, "")))})


def narrative(rng: np.random.Generator, k: int) -> Case:
    one, found = caption(rng, k), boxes(rng, 3) / 100
    target = {**one.target, "boxes": boxes(rng, 1 + k % 4) / 100, "size": (1, 1)}
    return Case(one.id, one.image_id, target, {**one.prediction, "boxes": found})


def words(references: list[str], said: str) -> float:
    return 1.0 if said in references else 0.12


def letters(references: list[str], said: str) -> np.ndarray:
    """Counts in METEOR's order, of a measure that needs no tables: words that some reference has."""
    best = max(references, key=lambda text: len(set(text.split()) & set(said.split())))
    both = len(set(best.split()) & set(said.split()))
    counts = np.zeros(23, np.int32)
    counts[:2] = len(said.split()), len(best.split())
    counts[[4, 5, 20, 21, 22]] = both, both, min(both, 1), both, both
    return counts


MAKERS: dict[str, Make] = {
    "referring": expression,
    "captions": caption,
    "narratives": narrative,
    "dense_captions": regions,
    "detection": objects,
    "grounded_conversation": conversation,
    "traces": trace,
}


@pytest.fixture(autouse=True)
def quick_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_captioning, "meteor_score", words, raising=False)
    monkeypatch.setattr(meteor, "statistics", letters)


@pytest.mark.parametrize("metrics", list(MAKERS))
def test_resampled_figures_are_those_of_the_resampled_rows(metrics: str) -> None:
    rng = np.random.default_rng(0)
    cases = [MAKERS[metrics](rng, k) for k in range(24)]
    scorer = scoring.SCORERS[metrics]
    rows = scorer.rows(cases)
    weights = np.stack([np.bincount(rng.integers(24, size=24), minlength=24) for _ in range(8)]).astype(float)
    weights[0] = 1
    fast = scorer.resampled(rows)(weights)
    slow = bootstrap.of_rows(rows, scorer.summary)(weights)
    assert fast and fast.keys() <= slow.keys()
    for name, values in fast.items():
        assert np.isfinite(values).any()
        if name.startswith("CIDEr"):
            # Its weights of words are those of the whole set in all sets.
            assert values[0] == pytest.approx(slow[name][0])
            continue
        if (metrics, name) == ("grounded_conversation", "AP50"):
            # All scores are equal: copies of a picture stand in another order.
            assert values[0] == pytest.approx(slow[name][0])
            np.testing.assert_allclose(values, slow[name], atol=0.05)
            continue
        np.testing.assert_allclose(values, slow[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("metrics", list(MAKERS))
def test_a_score_has_the_figures_of_the_metric_inside_its_intervals(metrics: str) -> None:
    rng = np.random.default_rng(1)
    cases = Cases([MAKERS[metrics](rng, k) for k in range(30)])
    found = scoring.score(cases, metrics, resamples=60)
    for name, (low, high) in found.intervals.items():
        assert low <= high and low - 0.1 <= found.figures[name] <= high + 0.1, name
    assert len(found.quality) == 30 and np.isfinite(found.quality).any()
    assert scoring.score(cases, metrics, resamples=60).intervals == found.intervals
    assert scoring.score(cases, metrics, resamples=0).intervals == {}


@pytest.mark.parametrize("metrics", list(MAKERS))
def test_the_order_of_cases_does_not_matter(metrics: str) -> None:
    rng = np.random.default_rng(2)
    made = [MAKERS[metrics](rng, k) for k in range(12)]
    one, other = (scoring.score(Cases(cases), metrics, resamples=0) for cases in (made, made[::-1]))
    for name, value in one.figures.items():
        if (metrics, name) == ("grounded_conversation", "AP50"):
            continue  # published with all scores equal, so that the order of pictures decides
        assert other.figures[name] == pytest.approx(value, nan_ok=True, abs=1e-12), name
    np.testing.assert_array_equal(one.quality, other.quality[::-1])


def test_a_recall_is_reached_where_its_quotient_of_floats_is() -> None:
    for recalls in (np.linspace(0, 1, 101), np.arange(100) / 100):
        for positives in (1, 7, 29, 58, 100, 333):
            hits = np.arange(positives + 1.0)
            twice = np.stack([hits, hits])
            first = weighted_precision._reached(twice, np.full((2, 1), float(positives)), recalls)
            np.testing.assert_array_equal(first, [np.searchsorted(hits / positives, recalls)] * 2)


def test_nothing_predicted_is_wrong_and_the_best_is_right() -> None:
    box = np.array([0.0, 0, 10, 10])
    right = Case("1", "1", {"text": "a", "box": box}, {"box": box})
    wrong = Case("2", "2", {"text": "a", "box": box}, {})
    assert scoring.score(Cases([right, wrong]), "referring").figures["P@0.5"] == 0.5
    assert scoring.score(Cases([right, wrong]), "referring").quality.tolist() == [1.0, 0.0]
    assert math.isnan(scoring.score(Cases([right]), "referring", resamples=0).figures["cIoU"])


def test_a_case_that_the_metric_refuses_is_named() -> None:
    bad: dict[str, Any] = {"box": [9, 9, 1, 1]}
    with pytest.raises(ValueError, match=r"case 'x7' of image '3': predicted box is \[9.0, 9.0, 1.0, 1.0\]"):
        scoring.score(Cases([Case("x7", "3", {"text": "a", "box": [0, 0, 1, 1]}, bad)]), "referring")
    with pytest.raises(ValueError, match="number of cases is 0"):
        scoring.score(Cases([]), "referring")
