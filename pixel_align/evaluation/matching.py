"""One-to-one matching: greedy as published evaluators do it, optimal, and local as traces are compared."""

import numpy as np


def greedy(gains: np.ndarray) -> list[tuple[int, int]]:
    """Gains float[n, m] -> pairs (row, column), the largest gain first, until none above 0 is left.

    Of equal gains the first in reading order goes first.
    """
    left = np.array(gains, np.float64)
    pairs = []
    while left.size and (best := int(left.argmax())) >= 0:
        i, j = divmod(best, left.shape[1])
        if not left[i, j] > 0:
            break
        pairs.append((i, j))
        left[i, :] = left[:, j] = 0
    return pairs


def optimal(gains: np.ndarray) -> list[tuple[int, int]]:
    """Gains float[n, m] -> the pairs (row, column) with the largest sum, those above 0 only."""
    gains = np.maximum(np.asarray(gains, np.float64), 0)
    return [(int(i), int(j)) for i, j in zip(*_cheapest(-gains), strict=True) if gains[i, j]]


def local(costs: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest one-to-one matching of the shorter of two sequences into the longer, partners near in order.

    Row i of n may only go to a column j with (i - window) m / n <= j < (i + 1 + window) m / n, as in Meng et al. 2021,
    "Connecting What to Say With Where to Look" (LBM); with window 0 and n = m that is the diagonal.

    Args:
        costs: float[n, m], finite; where n > m the roles are exchanged.
        window: 0 or more.

    Returns:
        (rows, columns), int[min(n, m)] each, in the order of the shorter.
    """
    n, m = costs.shape
    if n > m:
        columns, rows = local(costs.T, window)
        return rows, columns
    i, j = np.ogrid[:n, :m]
    near = (j * n >= (i - window) * m) & (j * n < (i + 1 + window) * m)
    return _cheapest(np.where(near, costs, np.inf))


def _cheapest(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the complete matching of least cost."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    return linear_sum_assignment(costs)
