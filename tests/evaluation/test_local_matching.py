"""LBM against the linear programme that defines it, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from pixel_align.evaluation import local_matching

SIZE = (60, 90)


def trace(seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = np.sort(random.random((count, 2, 2)), axis=1) * [SIZE[1], SIZE[0]]
    return corners.reshape(count, 4)


def score(truth: Any, found: Any, **settings: Any) -> dict[str, float]:
    return local_matching.summary([local_matching.row({"boxes": truth, "size": SIZE}, {"boxes": found}, **settings)])


def by_programme(truth: np.ndarray, found: np.ndarray, window: int) -> float:
    """Minimise the cost of a plan whose rows sum to 1 and whose columns to 1 at most, zero outside the window."""
    scale = np.array([SIZE[1], SIZE[0]] * 2)
    p, m = len(found), len(truth)
    cost = np.array([[np.abs(a / scale - b / scale).mean() for b in truth] for a in found])
    bounds = [(0, 1 if (i - window) * m / p <= j < (i + 1 + window) * m / p else 0) for i in range(p) for j in range(m)]
    rows = np.kron(np.eye(p), np.ones(m))
    columns = np.kron(np.ones(p), np.eye(m))
    plan = linprog(cost.ravel(), A_eq=rows, b_eq=np.ones(p), A_ub=columns, b_ub=np.ones(m), bounds=bounds)
    return float(plan.fun) / p


@pytest.mark.parametrize("window", [0, 1, 3])
def test_the_matching_is_that_of_the_programme(window: int) -> None:
    for seed, (p, m) in enumerate([(5, 5), (8, 8), (3, 7), (4, 6)]):
        truth, found = trace(seed, m), trace(seed + 50, p)
        figure = score(truth, found, windows=(window,))[f"LBM_k{window}"]
        assert figure == pytest.approx(by_programme(truth, found, window), abs=1e-9)


def test_without_window_equal_lengths_are_compared_by_index() -> None:
    truth, found = trace(0, 6), trace(1, 6)
    figures = score(truth, found, windows=(0, 1, 5))
    by_hand = np.abs((truth - found) / ([SIZE[1], SIZE[0]] * 2)).mean()
    assert figures["LBM_k0"] == figures["LBM_index"] == pytest.approx(by_hand)
    assert figures["LBM_k5"] < figures["LBM_k1"] < figures["LBM_k0"]


def test_neighbours_that_change_places_cost_nothing_with_a_window() -> None:
    truth = trace(2, 4)
    figures = score(truth, truth[[1, 0, 3, 2]])
    assert figures["LBM_k1"] == 0.0 and figures["LBM_k0"] > 0.05
    assert score(truth, truth[[3, 1, 2, 0]])["LBM_k1"] > 0.0


def test_whole_pictures_are_matched_and_not_scored() -> None:
    truth = trace(3, 3)
    truth[1] = [0, 0, SIZE[1], SIZE[0]]
    found = trace(4, 3)
    row = local_matching.row({"boxes": truth, "size": SIZE}, {"boxes": found})
    assert row["segments"][0] == 2 and len(row["k0"]) == 2
    moved = found.copy()
    moved[1] = [0, 0, 1, 1]
    assert score(truth, moved)["LBM_k0"] == score(truth, found)["LBM_k0"]


def test_narratives_count_alike_or_by_their_segments() -> None:
    rows = [
        local_matching.row({"boxes": trace(s, n), "size": SIZE}, {"boxes": trace(s + 9, n)})
        for s, n in ((0, 2), (1, 9))
    ]
    figures, means = local_matching.summary(rows), [float(r["k0"].mean()) for r in rows]
    assert figures["LBM_k0"] == pytest.approx(sum(means) / 2)
    assert figures["LBM_k0_pooled"] == pytest.approx((2 * means[0] + 9 * means[1]) / 11)
    assert local_matching.summary(rows[::-1]) == pytest.approx(figures, abs=1e-12)
    assert local_matching.summary(rows * 2) == pytest.approx(figures, abs=1e-12)


def test_nothing_predicted_and_nothing_to_predict() -> None:
    figures = score(trace(0, 3), [])
    assert math.isnan(figures["LBM_k0"]) and figures["LBM_matched_share"] == 0.0
    assert all(math.isnan(value) for value in score([], trace(0, 3)).values())
    assert all(math.isnan(value) for value in local_matching.summary([]).values())
    assert score(trace(0, 4), trace(0, 4)[:1])["LBM_matched_share"] == 0.25
    assert score(trace(0, 2), trace(5, 6))["LBM_matched_share"] == 1.0


def test_what_is_no_trace_is_refused() -> None:
    for found in ([[5, 0, 1, 1]], [[0, 0, math.nan, 1]]):
        with pytest.raises(ValueError, match="box 0 of predicted boxes"):
            score(trace(0, 2), found)
    with pytest.raises(ValueError, match="windows are"):
        score(trace(0, 2), trace(1, 2), windows=(-1,))
    for size in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match="size of the target is"):
            local_matching.row({"boxes": trace(0, 2), "size": size}, {})
