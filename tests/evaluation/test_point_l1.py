"""point_l1 against loops, with and without its two faults."""

import math
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import point_l1

SIZE = (50, 100)


def picture(seed: int, tokens: int = 6) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens with 0 to 4 true points each, padded to 4, and 2 predicted points."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 5, tokens) * (seed % 6 > 0)
    valid = np.arange(4) < counts[:, None]
    names = [f"w{i}" for i in random.permutation(tokens)]
    scale = np.array([SIZE[1], SIZE[0]])
    return (
        {"points": random.random((tokens, 4, 2)) * scale, "points_valid": valid, "tokens": names, "size": SIZE},
        {"points": random.random((tokens, 2, 2)) * scale, "tokens": names},
    )


def by_loops(target: dict[str, Any], points: Any, padding: bool) -> list[float]:
    """Distances of the tokens that count, `padding` as published."""
    height, width = SIZE
    result = []
    for true, valid, found in zip(target["points"], target["points_valid"], points, strict=True):
        places = [tuple(p) if v else (0.0, 0.0) for p, v in zip(true, valid, strict=True) if v or padding]
        if not any(max(place) > 0 for place in places):
            continue
        nearest = []
        for x, y in found:
            nearest.append(min((abs(x - u) / width + abs(y - v) / height) / 2 for u, v in places))
        result.append(sum(nearest) / len(nearest))
    return result


def test_figures_by_loops() -> None:
    pictures = [picture(seed) for seed in range(24)]
    figures = point_l1.summary([point_l1.row(*one) for one in pictures])
    padded = [by_loops(t, p["points"], True) for t, p in pictures]
    plain = [by_loops(t, p["points"], False) for t, p in pictures]
    assert figures["point_l1"] == pytest.approx(np.mean([sum(x) / (len(x) + 1e-8) for x in padded]), abs=1e-12)
    expected = np.mean([np.mean(x) for x in plain if x])
    assert figures["point_l1_unpadded"] == pytest.approx(expected, abs=1e-12)
    assert figures["point_l1_matched"] == pytest.approx(expected, abs=1e-12)
    assert figures["point_l1_matched_share"] == 1.0
    assert figures["point_l1"] < figures["point_l1_unpadded"]  # padding and empty pictures only help


def one(points: Any, valid: Any, found: Any, **names: Any) -> dict[str, float]:
    target = {"points": points, "points_valid": valid, "size": SIZE, "tokens": names.get("said")}
    row = point_l1.row(target, {"points": found, "tokens": names.get("heard")})
    return point_l1.summary([row])


def test_padding_rewards_the_corner() -> None:
    figures = one([[[80, 40], [0, 0]]], [[True, False]], [[[0, 0]]])
    assert figures["point_l1"] == 0.0 and figures["point_l1_unpadded"] == pytest.approx(0.8)


def test_a_true_point_in_the_corner_counts() -> None:
    figures = one([[[0, 0]]], [[True]], [[[80, 40]]])
    assert figures["point_l1"] == 0.0 and figures["point_l1_unpadded"] == pytest.approx(0.8)


def test_tokens_are_compared_by_index_or_by_what_they_say() -> None:
    truth, valid = [[[10, 10]], [[90, 40]]], [[True], [True]]
    figures = one(truth, valid, [[[90, 40]], [[50, 25]], [[10, 10]]], said=["a", "b"], heard=["b", "c", "d"])
    assert figures["point_l1_unpadded"] == pytest.approx(((0.8 + 0.6) / 2 + (0.4 + 0.3) / 2) / 2)
    assert figures["point_l1_matched"] == 0.0 and figures["point_l1_matched_share"] == 0.5


def test_a_text_that_ends_early_is_in_the_corner() -> None:
    figures = one([[[10, 10]], [[90, 40]]], [[True], [True]], [[[10, 10]]], said=["a", "b"], heard=["a"])
    assert figures["point_l1_unpadded"] == pytest.approx((0.9 + 0.8) / 4)
    assert figures["point_l1"] == pytest.approx(figures["point_l1_unpadded"])
    assert figures["point_l1_matched"] == 0.0 and figures["point_l1_matched_share"] == 0.5


def test_one_point_for_each_token_needs_no_axis() -> None:
    target, prediction = picture(3)
    flat = {**prediction, "points": prediction["points"][:, 0]}
    row, same = point_l1.row(target, flat), point_l1.row(target, {**flat, "points": prediction["points"][:, :1]})
    assert all((row[key] == same[key]).all() for key in row)


def test_order_and_copies() -> None:
    rows = [point_l1.row(*picture(seed)) for seed in range(12)]
    figures = point_l1.summary(rows)
    assert point_l1.summary(rows[::-1]) == pytest.approx(figures, abs=1e-12)
    assert point_l1.summary(rows * 2) == pytest.approx(figures, abs=1e-12)


def test_nothing_predicted_and_nothing_to_predict() -> None:
    target, prediction = picture(1)
    none = point_l1.row(target, {})
    assert len(none["unpadded"]) and not len(none["matched"])
    # Published: no token to score is a perfect picture.
    nowhere = {**target, "points_valid": np.zeros((6, 4), bool)}
    figures = point_l1.summary([point_l1.row(nowhere, prediction)])
    assert figures["point_l1"] == 0.0 and math.isnan(figures["point_l1_unpadded"])
    empty = {"points": [], "points_valid": [], "tokens": [], "size": SIZE}
    assert point_l1.summary([point_l1.row(empty, prediction)])["point_l1"] == 0.0
    assert all(math.isnan(value) for value in point_l1.summary([]).values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points": [[[math.nan, 1]]]}, "a point is not finite"),
        ({"points": [[1, 2, 3]]}, "shape of predicted points"),
        ({"tokens": ["a", "b"]}, "number of tokens of the prediction is 2, expected 1"),
    ],
)
def test_what_is_no_trace_is_refused(changes: dict[str, Any], said: str) -> None:
    target = {"points": [[[1, 2]]], "points_valid": [[True]], "tokens": ["a"], "size": SIZE}
    with pytest.raises(ValueError, match=said):
        point_l1.row(target, {"points": [[[1, 2]]], "tokens": ["a"], **changes})
    with pytest.raises(ValueError, match="points_valid has 2 values, expected 1"):
        point_l1.row({**target, "points_valid": [[True, True]]}, {})
    for size in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match="size of the target is"):
            point_l1.row({**target, "size": size}, {})
