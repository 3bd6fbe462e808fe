"""How much a figure would move with other pictures: percentile intervals from resampling an evaluation set by picture.

Whole pictures are drawn with replacement, not examples: several expressions of one picture are not independent. A
figure is a function of weights, Float[R, n] -> Float[R]: how often each of n cases counts in each of R sets, so that
the sets are computed together. Source: Efron 1979; percentile intervals.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Figures = Callable[[np.ndarray], Mapping[str, np.ndarray]]

RESAMPLES = 1_000
_BLOCK = 2_000_000  # weights at a time: 16 MB


class Interval(NamedTuple):
    """The middle `level` of a figure over the resampled sets; NaN where none of them has the figure."""

    low: float
    high: float


def intervals(
    figures: Figures, groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """An interval for each figure.

    Args:
        figures: weights Float64[R, n] -> {name: Float[R]}; see `of_ratios`, `of_rows`.
        groups: the picture of each of the n cases.
        resamples: number of resampled sets.
        seed: the same seed gives the same intervals.

    Raises:
        ValueError: no case, or settings that make no sense.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples is {resamples} at level {level}, expected at least 1 and a level between 0 and 1. Correct it."
        )
    if not len(groups):
        raise ValueError("number of cases is 0, expected at least 1. Give cases to resample.")
    pictures, of_case = np.unique(np.asarray(groups, str), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {}
    per_block = max(1, _BLOCK // max(len(groups), len(pictures)))
    for start in range(0, resamples, per_block):
        chosen = rng.integers(len(pictures), size=(min(per_block, resamples - start), len(pictures)))
        counts = np.stack([np.bincount(row, minlength=len(pictures)) for row in chosen])
        for name, values in figures(counts[:, of_case].astype(np.float64)).items():
            drawn.setdefault(name, []).append(np.asarray(values, np.float64))
    return {name: _middle(np.concatenate(parts), level) for name, parts in drawn.items()}


def of_ratios(parts: Mapping[str, tuple[Any, Any]]) -> Figures:
    """Figures that are a sum over cases divided by another, {name: (Float[n], Float[n])}: means, cIoU, precision.

    A set in which the divisor is 0 has no figure (NaN).
    """
    names = list(parts)
    above = np.stack([np.asarray(parts[name][0], np.float64) for name in names], axis=1) if names else None
    below = np.stack([np.asarray(parts[name][1], np.float64) for name in names], axis=1) if names else None

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        if above is None or below is None:
            return {}
        with np.errstate(invalid="ignore", divide="ignore"):
            values = (weights @ above) / (weights @ below)
        return {name: values[:, k] for k, name in enumerate(names)}

    return figures


def of_rows(rows: Sequence[Any], summary: Callable[[Sequence[Any]], Mapping[str, float]]) -> Figures:
    """Any metric's `summary`, called on the rows of each resampled set: right for all, slow for most."""

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [
            summary([rows[i] for i in np.repeat(np.arange(len(rows)), row.astype(int)).tolist()]) for row in weights
        ]
        return {name: np.array([one.get(name, np.nan) for one in found]) for name in found[0]}

    return figures


def _middle(values: np.ndarray, level: float) -> Interval:
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
