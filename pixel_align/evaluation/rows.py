"""Rows of metrics put together: what `row` made small, `summary` reads as columns."""

from collections.abc import Sequence

import numpy as np

Row = dict[str, np.ndarray]


def column(rows: Sequence[Row], key: str) -> np.ndarray:
    """The arrays [n_i, ...] under one key of all rows -> [sum of n_i, ...]; float64[0] where there are no rows."""
    return np.concatenate([row[key] for row in rows]) if rows else np.zeros(0)


def mean(values: np.ndarray) -> float:
    """The mean of all values, NaN of none."""
    return float(values.mean()) if values.size else float("nan")
