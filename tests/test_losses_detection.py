"""Losses of the detector are their definitions in loops, and what does not count does not count."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from pixel_align import losses_detection as losses
from pixel_align.batch import Described, DetectorOutputs
from pixel_align.detection_targets import HeatTargets
from pixel_align.pyramid import cells_of, pyramid_levels

B, A, K = 2, 12, 5
_rng = np.random.default_rng(0)
LOGITS = (4 * _rng.normal(size=(B, A))).astype(np.float32)
VISIBLE = (_rng.uniform(size=(B, A)) < 0.7) & (np.arange(A) != 5)  # 5 would be a peak
WEIGHTS = np.asarray([1.0, 0.5], np.float32)


def _boxes(*shape: int) -> np.ndarray:
    low, side = _rng.uniform(0, 0.6, (*shape, 2)), _rng.uniform(0.05, 0.4, (*shape, 2))
    return np.concatenate([low, low + side], axis=-1).astype(np.float32)


TARGETS = HeatTargets(
    heat=np.where(_rng.uniform(size=(B, A)) < 0.5, _rng.uniform(size=(B, A)), 0).astype(np.float32),
    peak=np.broadcast_to(np.arange(A) % 5 == 0, (B, A)),
    boxes=_boxes(B, A),
    has_box=_rng.uniform(size=(B, A)) < 0.4,
)
FOUND = _boxes(B, A)


def test_the_heat_loss_is_its_definition() -> None:
    logits = LOGITS.copy()
    logits[0, 0], logits[1, 1] = -30, 30  # beyond what a probability may be
    total, count = jax.jit(losses.heat)(logits, TARGETS, VISIBLE, WEIGHTS)
    expected, peaks = 0.0, 0.0
    for b in range(B):
        mine = 0
        for a in range(A):
            if not VISIBLE[b, a]:
                continue
            p = min(max(1 / (1 + math.exp(-logits[b, a])), 1e-4), 1 - 1e-4)
            if TARGETS.peak[b, a]:
                mine += 1
                expected -= WEIGHTS[b] * 0.25 * (1 - p) ** 2 * math.log(p)
            else:
                expected -= WEIGHTS[b] * 0.75 * p**2 * (1 - TARGETS.heat[b, a]) ** 4 * math.log(1 - p)
        peaks += WEIGHTS[b] * max(mine, 1)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(count, peaks)


def test_a_picture_without_peaks_counts_as_one() -> None:
    cold = dataclasses.replace(TARGETS, peak=np.zeros((B, A), bool), has_box=np.zeros((B, A), bool))
    total, count = losses.heat(LOGITS, cold, VISIBLE, WEIGHTS)
    assert total > 0 and count == 1.5
    total, count = losses.boxes(FOUND, cold, VISIBLE, WEIGHTS)
    assert total == 0 and count == 1.5


def _giou(a: np.ndarray, b: np.ndarray) -> float:
    """On a fine raster instead of by formulas: shares of points that are in both, in one, in the hull."""
    y, x = (np.mgrid[:1000, :1000] + 0.5) / 1000
    in_a, in_b = (((x0 < x) & (x < x1) & (y0 < y) & (y < y1)) for x0, y0, x1, y1 in (a, b))
    (x0, y0), (x1, y1) = np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])
    hull = ((x0 < x) & (x < x1) & (y0 < y) & (y < y1)).sum()
    both, either = (in_a & in_b).sum(), (in_a | in_b).sum()
    return both / either - (hull - either) / hull


def test_giou_is_what_a_raster_counts() -> None:
    pairs = [(FOUND[0, i], TARGETS.boxes[0, i]) for i in range(4)] + [(FOUND[0, 0], FOUND[0, 0])]
    first, second = (np.stack(x) for x in zip(*pairs, strict=True))
    np.testing.assert_allclose(losses.giou(first, second), [_giou(a, b) for a, b in pairs], atol=0.02)
    np.testing.assert_allclose(losses.giou(first, second), losses.giou(second, first), atol=1e-6)
    far = losses.giou(jnp.asarray([0.0, 0, 0.001, 0.001]), jnp.asarray([0.999, 0.999, 1, 1]))
    assert -1 <= far < -0.99


def test_the_loss_of_boxes_is_of_those_that_are_asked() -> None:
    asked = TARGETS.has_box & VISIBLE
    broken = np.where(asked[..., None], FOUND, np.nan).astype(np.float32)
    run = jax.jit(jax.value_and_grad(lambda x: losses.boxes(x, TARGETS, VISIBLE, WEIGHTS)[0]))
    total, gradient = run(broken)
    error = 1 - np.asarray(losses.giou(FOUND, TARGETS.boxes))
    np.testing.assert_allclose(total, (np.where(asked, error, 0).sum(1) * WEIGHTS).sum(), rtol=1e-5)
    assert np.isfinite(gradient).all() and not np.any(np.asarray(gradient)[~asked])
    np.testing.assert_allclose(
        losses.boxes(FOUND, TARGETS, VISIBLE, WEIGHTS)[1], (np.maximum(asked.sum(1), 1) * WEIGHTS).sum()
    )
    # An empty box found has a gradient that is a number: it grows.
    flat = FOUND.copy()
    flat[..., 2:] = flat[..., :2]
    assert np.isfinite(run(flat)[1]).all()


def test_the_refinement_learns_from_its_samples() -> None:
    logits, deltas, targets = _rng.normal(size=(B, K, 2)), _rng.normal(size=(B, K, 4)), _rng.normal(size=(B, K, 4))
    foreground, drawn = np.asarray([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool), np.arange(K) < np.asarray([[4], [2]])
    total, count = losses.foreground(logits, foreground, drawn, WEIGHTS)
    expected = sum(
        WEIGHTS[b] * math.log1p(math.exp(logits[b, k, 1 - is_object] - logits[b, k, is_object]))
        for b in range(B)
        for k in range(K)
        if drawn[b, k]
        for is_object in [int(foreground[b, k])]
    )
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 4 + 0.5 * 2
    broken = np.where(foreground[..., None], targets, np.inf)
    total, count = losses.refinement(deltas, broken, foreground, WEIGHTS)
    np.testing.assert_allclose(
        total, (np.abs(deltas - targets).sum(-1) * foreground * WEIGHTS[:, None]).sum(), rtol=1e-5
    )
    assert count == K * 1.5


def _outputs(cells: int) -> DetectorOutputs:
    return DetectorOutputs(
        heat=jnp.asarray(_rng.normal(size=(B, cells)), jnp.float32),
        boxes=jnp.asarray(_boxes(B, cells)),
        samples=jnp.asarray(_boxes(B, K)),
        drawn=jnp.ones((B, K), bool),
        matched=jnp.asarray(_rng.integers(0, 3, (B, K))),
        foreground=jnp.arange(K) < jnp.asarray([[2], [1]]),
        logits=jnp.asarray(_rng.normal(size=(B, K, 2)), jnp.float32),
        deltas=jnp.asarray(_rng.normal(size=(B, K, 4)), jnp.float32),
    )


def test_all_terms_and_what_the_padding_of_the_canvas_says() -> None:
    levels = pyramid_levels(8, 8)
    found = _outputs(len(cells_of(levels).level))
    mask = np.ones((B, 3), bool)
    regions = Described(boxes=_boxes(B, 3) * 0.5, mask=mask, text_tokens=None, text_mask=None)
    size = np.asarray([[60, 60], [112, 50]])

    @jax.jit
    def run(found: DetectorOutputs, weights: jax.Array) -> dict:
        return losses.terms(found, regions, levels, size, 112, weights)

    terms = run(found, WEIGHTS)
    assert {name: float(weight) for name, (weight, _) in terms.items()} == {
        "heat": 0.5,
        "proposal_boxes": 1.0,
        "foreground": 1.0,
        "refinement": 1.0,
    }
    assert all(total > 0 and count > 0 for _, (total, count) in terms.values())
    # Cells that begin beyond the picture may say what they will.
    cells = cells_of(levels)
    corner = cells.index * cells.size * 112
    outside = np.any(corner[None] >= size[:, None, ::-1], axis=-1)
    hot = dataclasses.replace(found, heat=jnp.where(outside, 20.0, found.heat))
    np.testing.assert_array_equal(run(hot, WEIGHTS)["heat"][1][0], terms["heat"][1][0])
    # A picture of weight 0 may hold anything.
    broken = jax.tree.map(lambda x: x.at[1].set(jnp.nan) if x.dtype == jnp.float32 else x, found)
    for name, (_, sums) in run(broken, np.asarray([1.0, 0.0])).items():
        expected = run(found, np.asarray([1.0, 0.0]))[name][1]
        np.testing.assert_allclose(sums, expected, rtol=1e-6)
