"""Losses: the chunked text loss is the dense one, first stage and masks are their definitions in slow loops."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr, jaxprs_in_params

from pixel_align import losses
from pixel_align.batch import RegionOutputs, RegionTargets
from pixel_align.nn.region_head import grid_anchors, query_anchors

B, N, T, D, V = 2, 3, 7, 5, 11
_keys = jax.random.split(jax.random.key(0), 4)
FEATURES = jax.random.normal(_keys[0], (B, N, T, D))
KERNEL = jax.random.normal(_keys[1], (D, V))
LABELS = jax.random.randint(_keys[2], (B, N, T), 0, V)
WEIGHTS = jax.random.uniform(_keys[3], (B, N, T)) * (jnp.arange(T) < 5)


# Text


def _dense(features: jax.Array, kernel: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy against the smoothed one-hot distribution itself."""
    logp = jax.nn.log_softmax(features @ kernel)
    target = jax.nn.one_hot(LABELS, V)
    target = target * (1 - smoothing) + (1 - target) * smoothing / (V - 1)
    return -(target * logp * WEIGHTS[..., None]).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 21])  # of N * T = 21 tokens; 4 does not divide it
def test_in_chunks_it_is_the_dense_loss_and_its_gradient(
    monkeypatch: pytest.MonkeyPatch, chunk: int, smoothing: float
) -> None:
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 4 * B * V * chunk)

    def total(features: jax.Array, kernel: jax.Array) -> jax.Array:
        return losses.text(features, kernel, LABELS, WEIGHTS, smoothing)[0]

    value, gradient = jax.value_and_grad(total, argnums=(0, 1))(FEATURES, KERNEL)
    expected, dense_gradient = jax.value_and_grad(_dense, argnums=(0, 1))(FEATURES, KERNEL, smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, other in zip(gradient, dense_gradient, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(losses.text(FEATURES, KERNEL, LABELS, WEIGHTS)[1], WEIGHTS.sum(), rtol=1e-6)


def test_label_smoothing_is_its_formula() -> None:
    """One token, in plain numbers: 1 - s on the right label, s / (V - 1) on each of the others."""
    logits, right, s = [0.3, -1.2, 2.0], 1, 0.3
    log_z = math.log(sum(math.exp(x) for x in logits))
    expected = -sum(((1 - s) if i == right else s / 2) * (x - log_z) for i, x in enumerate(logits))
    one = jnp.ones((1, 1, 1, 1))
    total, count = losses.text(one, jnp.asarray([logits]), jnp.full((1, 1, 1), right), one[..., 0], s)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 1


def test_neither_all_logits_nor_a_one_hot_ever_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of the loss or of its gradient is as large as the logits of two chunks."""
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 4 * B * 97 * 3)
    features, kernel = jnp.zeros((B, N, 12, D)), jnp.zeros((D, 97))
    labels, weights = jnp.zeros((B, N, 12), int), jnp.ones((B, N, 12))
    program = jax.make_jaxpr(jax.grad(lambda f, k: losses.text(f, k, labels, weights, 0.1)[0], argnums=(0, 1)))(
        features, kernel
    )
    sizes = []

    def visit(jaxpr: Jaxpr) -> None:
        for equation in jaxpr.eqns:
            sizes.extend(var.aval.size for var in equation.outvars)
            for sub in jaxprs_in_params(equation.params):
                visit(sub)

    visit(program.jaxpr)
    assert max(sizes) < 2 * B * 97 * 3 and B * 97 * 3 in sizes


def test_half_precision_features_are_summed_in_full() -> None:
    total, _ = losses.text(FEATURES.astype(jnp.bfloat16), KERNEL, LABELS, WEIGHTS, 0.1)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, _dense(FEATURES, KERNEL, 0.1), rtol=0.02)


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    """What lets devices, tasks and micro-batches join: nothing is divided in here."""
    whole = losses.text(FEATURES, KERNEL, LABELS, WEIGHTS, 0.1)
    parts = [losses.text(FEATURES[i : i + 1], KERNEL, LABELS[i : i + 1], WEIGHTS[i : i + 1], 0.1) for i in range(B)]
    for k in range(2):
        np.testing.assert_allclose(sum(part[k] for part in parts), whole[k], rtol=1e-5)


# Places


def test_the_point_loss_is_a_mean_over_coordinates_in_canvas_pixels() -> None:
    rng = np.random.default_rng(1)
    points, targets = rng.uniform(size=(2, B, N, T, 3, 2)).astype(np.float32)
    total, count = losses.point(points, targets, WEIGHTS, 384)
    expected = 0.0
    for index in np.ndindex(B, N, T):
        error = [abs(points[index][p, i] - targets[index][p, i]) * 384 for p in range(3) for i in range(2)]
        expected += float(WEIGHTS[index]) * sum(error) / 6
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    np.testing.assert_allclose(count, WEIGHTS.sum(), rtol=1e-6)


def test_what_stands_at_a_token_without_a_place_is_never_read() -> None:
    points = jax.random.uniform(jax.random.key(1), (B, N, T, 2, 2))
    targets = points + 0.25
    placed = (WEIGHTS > 0)[..., None, None]
    for bad in (jnp.nan, jnp.inf):
        run = jax.value_and_grad(lambda p, t: losses.point(p, t, WEIGHTS, 64)[0])
        value, gradient = run(jnp.where(placed, points, bad), jnp.where(placed, targets, bad))
        np.testing.assert_allclose(value, 16 * WEIGHTS.sum(), rtol=1e-5)
        assert np.isfinite(gradient).all() and not np.any(np.where(placed, 0, gradient))


def test_presence_is_the_cross_entropy_of_a_coin() -> None:
    logits, placed = jnp.asarray([[[2.0, -1.0, 0.5]]]), jnp.asarray([[[True, False, True]]])
    weights = jnp.asarray([[[1.0, 0.5, 0.0]]])
    sigmoid = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0)]
    total, count = losses.presence(logits, placed, weights)
    np.testing.assert_allclose(total, -math.log(sigmoid[0]) - 0.5 * math.log(1 - sigmoid[1]), rtol=1e-5)
    assert count == 1.5


def test_binary_cross_entropy_is_stable() -> None:
    logits = jnp.asarray([-200.0, 0.0, 200.0])
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, jnp.asarray([0.0, 1.0, 1.0])), [0, math.log(2), 0])
    np.testing.assert_allclose(
        losses.binary_cross_entropy(logits, jnp.asarray([True, False, False])), [200, math.log(2), 200]
    )


# The dense first stage

ROWS, COLUMNS, R = 3, 4, 3


def _regions(seed: int = 0) -> tuple[RegionOutputs, RegionTargets]:
    rng = np.random.default_rng(seed)
    k = ROWS * COLUMNS
    low = rng.uniform(0, 0.6, (B, R, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.02, 0.4, (B, R, 2))], -1).astype(np.float32)
    tokens = np.stack([[rng.permutation(V)[:3] for _ in range(R)] for _ in range(B)]).astype(np.int32)
    targets = RegionTargets(
        boxes=boxes,
        mask=np.asarray([[True, True, False], [True, True, True]]),
        tokens=tokens,
        token_mask=rng.uniform(size=(B, R, 3)) < 0.7,
    )
    found = RegionOutputs(*(rng.normal(size=shape).astype(np.float32) for shape in ((B, k), (B, k, 4), (B, k, V))))
    return found, targets


def _slow(found: RegionOutputs, targets: RegionTargets, b: int) -> float:
    """The loss of one example, one anchor at a time."""
    spacing = (1 / COLUMNS, 1 / ROWS)
    covered, positives, extra = [], 0, 0.0
    for index in range(ROWS * COLUMNS):
        anchor = ((index % COLUMNS + 0.5) / COLUMNS, (index // COLUMNS + 0.5) / ROWS)
        best: tuple[float, int, float] | None = None
        for r in range(R):
            if not targets.mask[b, r]:
                continue
            x0, y0, x1, y1 = targets.boxes[b, r]
            outside = max(
                max(x0 - anchor[0], 0, anchor[0] - x1) / spacing[0], max(y0 - anchor[1], 0, anchor[1] - y1) / spacing[1]
            )
            center = math.dist(anchor, ((x0 + x1) / 2, (y0 + y1) / 2))
            if best is None or outside + 1e-3 * center < best[0]:
                best = (outside + 1e-3 * center, r, outside)
        positive = best is not None and best[2] <= 0.5
        p = 1 / (1 + math.exp(-found.objectness[b, index]))
        covered.append(-math.log(p if positive else 1 - p))
        if positive:
            positives += 1
            r = best[1]
            extra += 5 * sum(abs(found.boxes[b, index, i] - targets.boxes[b, r, i]) for i in range(4))
            said = {int(t) for t, there in zip(targets.tokens[b, r], targets.token_mask[b, r], strict=True) if there}
            for piece in range(V):
                q = 1 / (1 + math.exp(-found.pieces[b, index, piece]))
                extra -= math.log(q if piece in said else 1 - q)
    return sum(covered) / len(covered) + extra / max(positives, 1)


_run = jax.jit(functools.partial(losses.regions, anchors=grid_anchors(ROWS, COLUMNS), spacing=(1 / COLUMNS, 1 / ROWS)))


@pytest.mark.parametrize("seed", range(4))
def test_the_dense_first_stage_is_its_definition(seed: int) -> None:
    found, targets = _regions(seed)
    weights = np.float32([0.5, 2.0])
    total, count = _run(found, targets, weights=weights)
    np.testing.assert_allclose(total, sum(weights[b] * _slow(found, targets, b) for b in range(B)), rtol=1e-4)
    assert count == 2.5


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_where_objects_lie_over_each_other_the_nearer_middle_answers(order: list[int]) -> None:
    """The whole picture and a thing in its corner, in either order: both get anchors."""
    found, targets = _regions()
    boxes = np.float32([[0, 0, 1, 1], [0, 0, 0.5, 0.4]])[[*order, 0]]
    both = dataclasses.replace(targets, boxes=np.stack([boxes] * B), mask=np.asarray([[True, True, False]] * B))
    total, _ = _run(found, both, weights=np.float32([1, 0]))
    np.testing.assert_allclose(total, _slow(found, both, 0), rtol=1e-4)


def test_a_picture_without_objects_asks_for_none() -> None:
    found, targets = _regions()
    nothing = RegionTargets(targets.boxes, np.zeros_like(targets.mask), targets.tokens, targets.token_mask)
    total, gradient = jax.value_and_grad(lambda f: _run(f, nothing, weights=np.float32([1, 0]))[0])(found)
    np.testing.assert_allclose(total, np.logaddexp(0, found.objectness[0]).mean(), rtol=1e-5)
    assert not np.any(gradient.boxes) and not np.any(gradient.pieces) and not np.any(gradient.objectness[1])
    assert (np.asarray(gradient.objectness[0]) > 0).all()


def test_an_object_smaller_than_a_cell_has_an_anchor() -> None:
    """Wherever it lies: the boxes of its answer get a gradient."""
    found, targets = _regions()
    for x, y in np.random.default_rng(3).uniform(0.02, 0.98, (20, 2)):
        box = np.asarray([x - 0.01, y - 0.01, x + 0.01, y + 0.01], np.float32)
        alone = RegionTargets(
            np.tile(box, (B, R, 1)), np.asarray([[True, False, False]] * B), targets.tokens, targets.token_mask
        )
        gradient = jax.grad(lambda f, t=alone: _run(f, t, weights=np.ones(B, np.float32))[0])(found)
        responsible = np.flatnonzero(np.any(gradient.boxes[0], axis=-1))
        assert len(responsible) >= 1
        anchors = np.asarray(grid_anchors(ROWS, COLUMNS))[responsible]
        assert (np.abs(anchors - [x, y]) <= np.asarray([0.5 / COLUMNS + 0.011, 0.5 / ROWS + 0.011])).all()


# Alignment


def _slow_alignment(logits: np.ndarray, points: np.ndarray, weights: np.ndarray, rows: int, columns: int) -> float:
    """Token by token, query by query."""
    total = 0.0
    for at in np.argwhere(weights):
        b, n, t = at
        low, high = points[b, n, t].min(axis=0), points[b, n, t].max(axis=0)
        chance = np.exp(logits[b, n, t] - logits[b, n, t].max())
        chance /= chance.sum()
        far = []
        for q in range(rows * columns):
            x, y = (q % columns + 0.5) / columns, (q // columns + 0.5) / rows
            far.append(max(low[0] - x, x - high[0], 0) * columns)
            far[-1] = max(far[-1], max(low[1] - y, y - high[1], 0) * rows)
        right = [q for q, away in enumerate(far) if away <= max(0.5, min(far))]
        total -= float(weights[b, n, t] * np.log(sum(chance[q] for q in right)))
    return total


def test_a_word_chooses_one_of_the_queries_that_lie_over_its_place() -> None:
    rows, columns = 3, 4
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(B, N, 5, 12)).astype(np.float32)
    points = rng.uniform(-0.1, 1.1, size=(B, N, 5, 1, 2)) + rng.uniform(-0.2, 0.2, size=(B, N, 5, 2, 2))
    points[0, 0, 0] = 1.4  # on the padding: the nearest query
    weights = rng.integers(0, 3, size=(B, N, 5)).astype(np.float32)
    weights[0, 0, 0] = 2.0
    anchors, spacing = query_anchors(rows * columns), (1 / columns, 1 / rows)
    run = jax.jit(lambda x: losses.alignment(x, points, anchors, spacing, weights))
    total, count = run(logits)
    np.testing.assert_allclose(total, _slow_alignment(logits, points, weights, rows, columns), rtol=1e-5)
    assert count == weights.sum()
    gradient = np.abs(jax.grad(lambda x: run(x)[0])(logits)).sum(axis=-1)
    np.testing.assert_array_equal(gradient > 0, weights > 0)
    # All that it could be given is enough: which of several queries is chosen is the model's own affair.
    at = np.zeros((1, 1, 1, 12), np.float32)
    at[..., 5] = at[..., 6] = 30.0
    box = np.asarray([[[[[0.3, 0.4], [0.7, 0.6]]]]], np.float32)
    assert float(losses.alignment(at, box, anchors, spacing, np.ones((1, 1, 1)))[0]) < 1e-4


# Masks

K, CANVAS = 2, 24  # masks of a region; pixels
VALID = np.asarray([[24, 15], [17, 24]], np.int32)  # 15 and 17 pixels: cells of 4 and of 2 are cut


def _masks(cells: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits on 6 x 6 cells, predicted IoU, targets on cells x cells, weights."""
    rng = np.random.default_rng(seed)
    logits, iou = rng.normal(size=(B, N, K, 6, 6)) * 2, rng.normal(size=(B, N, K))
    weights = np.float32([[1.0, 0.0, 0.5], [2.0, 1.0, 0.0]])
    return logits.astype(np.float32), iou.astype(np.float32), rng.uniform(size=(B, N, cells, cells)) < 0.4, weights


def _interpolated(logits: np.ndarray, cells: int) -> np.ndarray:
    """[6, 6] -> [cells, cells], a cell's centre at a time, from the four centres around it."""
    result = np.zeros((cells, cells))
    for y, x in np.ndindex(cells, cells):
        at = [min(max((i + 0.5) * 6 / cells - 0.5, 0), 5) for i in (y, x)]
        low = [min(int(a), 4) for a in at]
        for dy, dx in np.ndindex(2, 2):
            share = [abs(1 - d - (a - i)) for a, i, d in zip(at, low, (dy, dx), strict=True)]
            result[y, x] += share[0] * share[1] * logits[low[0] + dy, low[1] + dx]
    return result


def _slow_mask(logits: np.ndarray, iou: np.ndarray, target: np.ndarray, valid: np.ndarray) -> float:
    """The loss of one region: [K, 6, 6], [K], Bool[cells, cells], (height, width)."""
    cells = len(target)
    found, quality = [], []
    for k in range(K):
        x, focal, seen = _interpolated(logits[k], cells), 0.0, 0
        overlap, predicted, true, both, either = 0.0, 0.0, 0, 0, 0
        for i, j in np.ndindex(cells, cells):
            if (i + 0.5) / cells * CANVAS >= valid[0] or (j + 0.5) / cells * CANVAS >= valid[1]:
                continue
            p, t = 1 / (1 + math.exp(-x[i, j])), bool(target[i, j])
            right = p if t else 1 - p
            focal -= 0.5 * (1 - right) ** 2 * math.log(right)
            seen += 1
            overlap, predicted, true = overlap + p * t, predicted + p, true + t
            both, either = both + (t and x[i, j] > 0), either + (t or x[i, j] > 0)
        dice = 1 - (2 * overlap + 1) / (predicted + true + 1)
        found.append(20 * focal / seen + dice)
        quality.append((iou[k] - both / either) ** 2)
    return min(found) + sum(quality) / K


_mask_loss = jax.jit(losses.mask, static_argnums=4)


@pytest.mark.parametrize("cells", [6, 12, 24])
def test_the_mask_loss_is_its_definition(cells: int) -> None:
    """On the decoder's own grid, on a finer one, on the canvas."""
    logits, iou, targets, weights = _masks(cells)
    total, count = _mask_loss(logits, iou, targets, VALID, CANVAS, weights)
    expected = sum(
        float(weights[b, n]) * _slow_mask(logits[b, n], iou[b, n], targets[b, n], VALID[b])
        for b, n in np.ndindex(B, N)
        if weights[b, n]
    )
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == weights.sum()


def test_only_the_better_mask_is_taught_and_all_learn_what_they_are_worth() -> None:
    logits, iou, targets, weights = _masks(6)
    logits[:, :, 1] = np.where(targets, 3, -3)  # far better than what was drawn
    gradient = jax.grad(lambda x, q: _mask_loss(x, q, targets, VALID, CANVAS, weights)[0], argnums=(0, 1))(logits, iou)
    taught = np.any(gradient[0], axis=(-2, -1))
    np.testing.assert_array_equal(taught[:, :, 0], np.zeros((B, N), bool))
    np.testing.assert_array_equal(taught[:, :, 1], weights > 0)
    np.testing.assert_allclose(gradient[1][:, :, 1], (iou[:, :, 1] - 1) * weights, rtol=1e-5)
    np.testing.assert_array_equal(gradient[1][:, :, 0] != 0, weights > 0)


def test_neither_padding_nor_regions_without_a_mask_are_read() -> None:
    """In none of the three parts; the gradient, too."""
    logits, iou, targets, weights = _masks(6)
    run = jax.value_and_grad(lambda x, q, t: _mask_loss(x, q, t, VALID, CANVAS, weights)[0], argnums=(0, 1))
    value, gradient = run(logits, iou, targets)
    centres = (np.arange(6) + 0.5) * 4
    inside = (centres < VALID[:, :1])[:, :, None] & (centres < VALID[:, 1:])[:, None]
    inside = np.broadcast_to(inside[:, None, None], logits.shape) & (weights > 0)[..., None, None, None]
    there = weights[..., None] > 0
    for bad in (np.nan, np.inf, -50.0):
        other = np.where(inside, logits, 1e6), np.where(there, iou, bad)
        other = np.where(there[..., None, None], other[0], bad), other[1]
        found = run(*other, np.where(inside[:, :, 0], targets, ~targets))
        jax.tree.map(np.testing.assert_array_equal, found, (value, gradient))
    assert not np.any(np.where(inside, 0, gradient[0]))


@pytest.mark.parametrize("target", ["nothing", "everything", "one cell"])
@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
def test_no_mask_is_too_empty_too_full_or_too_sure(target: str, logit: float) -> None:
    targets = np.full((1, 1, 12, 12), target == "everything")
    targets[0, 0, 5, 5] |= target == "one cell"
    value, gradient = jax.value_and_grad(
        lambda x: _mask_loss(x, jnp.ones((1, 1, 1)), targets, VALID[:1], CANVAS, jnp.ones((1, 1)))[0]
    )(jnp.full((1, 1, 1, 6, 6), logit))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    right = {"nothing": -1e4, "everything": 1e4}.get(target)
    if logit == right:
        # Focal and dice are zero; the mask of nothing has no overlap, hence an IoU of 0.
        np.testing.assert_allclose(value, target == "nothing", atol=1e-5)
    elif logit:
        assert value > 1


def test_the_masks_of_one_region_exist_at_a_time() -> None:
    """Neither forward nor backward holds all of them on the grid of the targets."""
    cells = 48
    targets = jnp.zeros((B, 5, cells, cells), bool)
    inputs = jnp.zeros((B, 5, K, 6, 6)), jnp.zeros((B, 5, K)), targets, VALID, CANVAS, jnp.ones((B, 5))
    program = jax.make_jaxpr(jax.grad(lambda x: losses.mask(x, *inputs[1:])[0]))(inputs[0])
    sizes = []

    def visit(jaxpr: Jaxpr) -> None:
        for equation in jaxpr.eqns:
            sizes.extend(var.aval.size for var in equation.outvars if var.aval.dtype == jnp.float32)
            for sub in jaxprs_in_params(equation.params):
                visit(sub)

    visit(program.jaxpr)
    assert max(sizes) == B * K * cells * cells


def test_finer_targets_teach_edges_inside_a_cell() -> None:
    """Logits of 12 x 12 cells, fitted to a disc: targets on their own grid end at whole cells, those on the canvas do
    not.
    """
    y, x = (np.mgrid[:96, :96] + 0.5) / 96
    disc = np.hypot(y - 0.52, x - 0.47) < 0.21
    overlap = {}
    for cells in (12, 96):
        targets = disc.reshape(cells, 96 // cells, cells, 96 // cells).mean((1, 3))[None, None] > 0.5
        inputs = jnp.zeros((1, 1, 1)), targets, jnp.full((1, 2), 96), 96, jnp.ones((1, 1))
        descend = jax.grad(lambda x, i=inputs: losses.mask(x, *i)[0])
        logits = jax.jit(lambda x, f=descend: jax.lax.fori_loop(0, 200, lambda _, x: x - 5 * f(x), x))(
            jnp.zeros((1, 1, 1, 12, 12))
        )
        found = np.asarray(jax.image.resize(logits[0, 0, 0], (96, 96), "linear")) > 0
        overlap[cells] = (found & disc).sum() / (found | disc).sum()
    assert overlap[12] < 0.94 and overlap[96] > 0.98


def test_focal_and_dice_of_whole_numbers() -> None:
    """By hand: logits 0 everywhere are a coin, whatever is seen of the mask."""
    targets, visible = np.eye(4, dtype=bool), np.arange(4)[:, None] < 2
    np.testing.assert_allclose(losses.focal(jnp.zeros((4, 4)), targets, visible), 0.5 * 0.25 * math.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        losses.dice(jnp.zeros((4, 4)), targets, visible), 1 - (2 * 1 + 1) / (4 + 2 + 1), rtol=1e-6
    )
    wide = losses.focal(jnp.zeros((4, 4)), targets, visible, alpha=0.25, gamma=0.0)
    np.testing.assert_allclose(wide, (0.25 * 2 + 0.75 * 6) / 8 * math.log(2), rtol=1e-6)


def test_targets_of_a_mask_that_cannot_be_are_refused() -> None:
    logits, iou, targets, weights = _masks(6)
    for bad in (targets.astype(np.float32), targets[..., :5]):
        with pytest.raises(ValueError, match="targets of the mask loss are .*expected bool and at least the grid"):
            losses.mask(logits, iou, bad, VALID, CANVAS, weights)


def test_the_loss_of_a_step_is_the_weighted_mean_of_those_of_its_batches() -> None:
    one = {"text": (1.0, (jnp.asarray(6.0), jnp.asarray(4.0))), "point": (0.1, (jnp.asarray(2.0), jnp.asarray(1.0)))}
    other = {"text": (1.0, (jnp.asarray(1.0), jnp.asarray(2.0))), "mask": (0.5, (jnp.asarray(3.0), jnp.asarray(5.0)))}
    alone = [float(losses.join([terms])[0]) for terms in (one, other)]
    assert alone == pytest.approx([1.5 + 0.2, 0.5 + 0.3])
    loss, means = losses.join([one, other], [1.0, 3.0])
    assert float(loss) == pytest.approx((alone[0] + 3 * alone[1]) / 4)
    # What is shown is the mean over all words.
    assert {name: float(mean) for name, mean in means.items()} == pytest.approx(
        {"text": 7 / 6, "point": 2, "mask": 0.6}
    )
    # However much it counts alone, and without anything to learn.
    assert float(losses.join([other], [0.25])[0]) == pytest.approx(alone[1])
    assert float(losses.join([{"text": (1.0, (jnp.zeros(()), jnp.zeros(())))}], [3.0])[0]) == 0
