"""One-to-one matching against trying everything."""

import itertools

import numpy as np
import pytest

from pixel_align.evaluation import matching


def tables(count: int = 40) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    sizes = random.integers(0, 6, (count, 2))
    # Rounded, so that there are equal gains and gains of 0.
    return [np.round(random.random(tuple(size)), 1) * (random.random(tuple(size)) < 0.7) for size in sizes]


def every_matching(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    if rows > columns:
        return [[(i, j) for j, i in pairs] for pairs in every_matching(columns, rows)]
    return [list(enumerate(chosen)) for chosen in itertools.permutations(range(columns), rows)]


def test_optimal_is_the_best_of_all() -> None:
    for gains in tables():
        pairs = matching.optimal(gains)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        assert all(gains[pair] > 0 for pair in pairs)
        best = max(sum(gains[pair] for pair in pairs) for pairs in every_matching(*gains.shape))
        assert sum(gains[pair] for pair in pairs) == pytest.approx(best)


def test_greedy_is_the_list_of_all_pairs_from_the_top() -> None:
    for gains in tables():
        expected, rows, columns = [], set(), set()
        for i, j in sorted(np.ndindex(gains.shape), key=lambda pair: -gains[pair]):
            if gains[i, j] > 0 and i not in rows and j not in columns:
                expected.append((i, j))
                rows.add(i)
                columns.add(j)
        assert matching.greedy(gains) == expected


def test_greedy_is_not_optimal() -> None:
    gains = np.array([[0.9, 0.8], [0.8, 0.0]])
    assert matching.greedy(gains) == [(0, 0)]
    assert sorted(matching.optimal(gains)) == [(0, 1), (1, 0)]
    assert gains[1, 1] == 0.0  # the argument is left as it was


@pytest.mark.parametrize("window", [0, 1, 2, 9])
def test_local_is_the_cheapest_of_all_that_stay_near(window: int) -> None:
    random = np.random.default_rng(window)
    for n, m in ((1, 1), (3, 3), (2, 5), (3, 7), (5, 5), (4, 6), (5, 2), (0, 4), (4, 0)):
        costs = random.random((n, m))
        few, many = min(n, m), max(n, m)

        def near(
            pairs: list[tuple[int, int]],
            few: int = few,
            many: int = many,
            swap: bool = n > m,
        ) -> bool:
            placed = [(j, i) if swap else (i, j) for i, j in pairs]
            ratio = many / few if few else 0
            return all((i - window) * ratio <= j < (i + 1 + window) * ratio for i, j in placed)

        best = min(sum(costs[pair] for pair in pairs) for pairs in every_matching(n, m) if near(pairs))
        rows, columns = matching.local(costs, window)
        pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
        assert near(pairs) and len(pairs) == few
        assert sum(costs[pair] for pair in pairs) == pytest.approx(best)


def test_local_without_window_is_the_diagonal() -> None:
    rows, columns = matching.local(np.random.default_rng(0).random((6, 6)), 0)
    assert rows.tolist() == columns.tolist() == list(range(6))
