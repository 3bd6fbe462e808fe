"""Non-maximum suppression is the greedy loop, whatever the order, the chains and the ties."""

import jax
import numpy as np
import pytest

from pixel_align.nms import nms, select

NMS = jax.jit(nms)
SELECT = jax.jit(select, static_argnums=(3, 4))


def _iou(a: list[float], b: list[float]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(width, 0.0) * max(height, 0.0)
    either = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - both
    return both / either if either else 0.0


def _greedy(boxes: np.ndarray, scores: np.ndarray, iou: float) -> list[int]:
    """Indices of what is kept, best first: one after the other, compared with all that were kept."""
    kept: list[int] = []
    places = boxes.tolist()
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] > -np.inf and all(_iou(places[i], places[j]) <= iou for j in kept):
            kept.append(i)
    return kept


def _crowd(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap much, some of them the same, some empty, some that do not exist; scores with ties."""
    rng = np.random.default_rng(seed)
    center, side = rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.1, 0.5, (count, 2))
    boxes = np.concatenate([center - side / 2, center + side / 2], axis=1).astype(np.float32)
    boxes[5:8] = boxes[4]
    boxes[8, 2:] = boxes[8, :2]
    scores = rng.choice(np.linspace(0, 1, 15), count).astype(np.float32)
    scores[rng.integers(0, count, 5)] = -np.inf
    return boxes, scores


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 0.9])
def test_it_is_the_greedy_loop(iou: float) -> None:
    for seed in range(3):
        boxes, scores = _crowd(seed)
        expected = _greedy(boxes, scores, iou)
        np.testing.assert_array_equal(np.flatnonzero(NMS(boxes, scores, iou)), sorted(expected))
        for keep in (3, 50):  # fewer than are kept, and more than there are boxes
            found, found_scores, valid = SELECT(boxes, scores, iou, keep, None)
            n = min(keep, len(expected))
            np.testing.assert_array_equal(valid, np.arange(keep) < n)
            np.testing.assert_array_equal(found[:n], boxes[expected[:n]])
            np.testing.assert_array_equal(found_scores[:n], scores[expected[:n]])
            assert not np.any(found[n:]) and not np.any(found_scores[n:])


def test_a_long_chain_of_suppressions_is_followed_to_its_end() -> None:
    """Each box overlaps only its neighbours: the second goes, so the third stays, and so on, round by round."""
    low = np.arange(30, dtype=np.float32)[:, None] * 0.4
    boxes = np.concatenate([low, low * 0, low + 1, low * 0 + 1], axis=1)
    kept = NMS(boxes, np.linspace(1, 0.5, 30).astype(np.float32), 0.3)  # neighbours: 0.43, next but one: 0.11
    np.testing.assert_array_equal(kept, np.arange(30) % 2 == 0)


def test_only_the_best_candidates_enter() -> None:
    boxes, scores = _crowd(11)
    best = np.argsort(-scores, kind="stable")[:10]
    expected = [best[i] for i in _greedy(boxes[best], scores[best], 0.5)]
    found, _, valid = SELECT(boxes, scores, 0.5, 20, 10)
    np.testing.assert_array_equal(found[: len(expected)], boxes[expected])
    assert valid.sum() == len(expected) < len(_greedy(boxes, scores, 0.5))


def test_nothing_is_kept_of_nothing() -> None:
    boxes, nothing = np.zeros((40, 4), np.float32), np.full(40, -np.inf, np.float32)
    assert not NMS(boxes, nothing, 0.5).any() and not SELECT(boxes, nothing, 0.5, 3, None)[2].any()


def test_a_batch_is_its_pictures() -> None:
    crowds = [_crowd(seed) for seed in (1, 2, 3)]
    boxes, scores = (np.stack(x) for x in zip(*crowds, strict=True))
    together = jax.jit(jax.vmap(nms, in_axes=(0, 0, None)))(boxes, scores, 0.4)
    for row, (b, s) in zip(together, crowds, strict=True):
        np.testing.assert_array_equal(row, NMS(b, s, 0.4))
