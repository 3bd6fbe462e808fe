"""Intervals hold what they say, resample whole pictures, and are the same however they are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from pixel_align.evaluation import bootstrap


def mean(rows: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(rows))} if rows else {"mean": float("nan")}


def test_blocks_and_slow_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    groups = [str(i // 3) for i in range(30)]
    fast = bootstrap.of_ratios({"mean": (values, np.ones(30))})
    expected = bootstrap.intervals(fast, groups, resamples=200)["mean"]
    slow = bootstrap.intervals(bootstrap.of_rows(values.tolist(), mean), groups, resamples=200)["mean"]
    np.testing.assert_allclose(expected, slow, rtol=1e-12)
    monkeypatch.setattr(bootstrap, "_BLOCK", 30 * 7)
    np.testing.assert_allclose(bootstrap.intervals(fast, groups, resamples=200)["mean"], expected, rtol=1e-12)
    assert bootstrap.intervals(fast, groups, resamples=200, seed=1)["mean"] != expected


def test_the_interval_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    figures = bootstrap.of_ratios({"mean": (values, np.ones(400))})
    low, high = bootstrap.intervals(figures, [str(i) for i in range(400)], resamples=4_000)["mean"]
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=half / 10)
    assert high == pytest.approx(values.mean() + half, abs=half / 10)


def test_sentences_of_one_picture_are_not_independent() -> None:
    """Ten equal copies of each case tell nothing new: the interval stays as wide as that of the pictures."""
    values = np.random.default_rng(2).random(50)
    once = bootstrap.intervals(
        bootstrap.of_ratios({"mean": (values, np.ones(50))}), [str(i) for i in range(50)], resamples=500
    )["mean"]
    copies = bootstrap.of_ratios({"mean": (np.repeat(values, 10), np.ones(500))})
    often = bootstrap.intervals(copies, [str(i // 10) for i in range(500)], resamples=500)["mean"]
    np.testing.assert_allclose(often, once, rtol=1e-9)


def test_a_figure_that_some_sets_lack() -> None:
    """Only one case of five has the figure at all: sets without it are left out; where none has it there is none."""
    figures = bootstrap.of_ratios({"rare": ([1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]), "never": (np.zeros(5), np.zeros(5))})
    found = bootstrap.intervals(figures, list("abcde"), resamples=100)
    assert found["rare"] == (1.0, 1.0)
    assert all(math.isnan(edge) for edge in found["never"])


def test_what_makes_no_sense_is_refused() -> None:
    figures = bootstrap.of_ratios({})
    assert bootstrap.intervals(figures, ["a"]) == {}
    with pytest.raises(ValueError, match="number of cases is 0"):
        bootstrap.intervals(figures, [])
    for resamples, level in ((0, 0.95), (9, 1.0), (9, float("nan"))):
        with pytest.raises(ValueError, match="expected at least 1 and a level"):
            bootstrap.intervals(figures, ["a"], resamples=resamples, level=level)
