"""RoIAlign is its definition in loops; boxes on their levels; where a picture's content lies is where it is read."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn import roi_align as module
from pixel_align.nn.roi_align import level_of, roi_align, roi_align_levels
from pixel_align.pyramid import pyramid_levels

BOXES = np.asarray(
    [
        [[0.1, 0.2, 0.7, 0.5], [0.0, 0.0, 1.0, 1.0], [0.31, 0.33, 0.32, 0.35]],
        [[-0.2, 0.6, 0.3, 1.3], [0.5, 0.5, 0.5, 0.5], [0.9, 0.0, 1.0, 1.0]],
    ],
    np.float32,
)
READ = jax.jit(functools.partial(roi_align_levels, size=2), static_argnums=(2, 3))
ALIGN = jax.jit(roi_align, static_argnums=(2, 3, 4))


def _bilinear(x: np.ndarray, row: float, column: float) -> np.ndarray:
    """x [h, w, C] at a place counted from the middle of the first cell; cells outside are zero."""
    total = np.zeros(x.shape[-1])
    for i, j in itertools.product((math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)):
        if 0 <= i < x.shape[0] and 0 <= j < x.shape[1]:
            total += x[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def _slow(x: np.ndarray, box: np.ndarray, cell: tuple[float, float], size: int, ratio: int) -> np.ndarray:
    x0, y0, x1, y1 = box.astype(np.float64)
    out = np.zeros((size, size, x.shape[-1]))
    for i, j, k, m in itertools.product(range(size), range(size), range(ratio), range(ratio)):
        y = y0 + (i + (k + 0.5) / ratio) * (y1 - y0) / size
        at_x = x0 + (j + (m + 0.5) / ratio) * (x1 - x0) / size
        out[i, j] += _bilinear(x, y / cell[0] - 0.5, at_x / cell[1] - 0.5) / ratio**2
    return out


def _map(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape)


@pytest.mark.parametrize(("size", "ratio", "covered"), [(2, 1, 1.0), (3, 2, 0.9)])
def test_it_is_its_definition(size: int, ratio: int, covered: float) -> None:
    features = _map(2, 5, 7, 3)
    found = ALIGN(features, BOXES, covered, size, ratio)
    assert found.shape == (2, 3, size, size, 3)
    for b, k in np.ndindex(2, 3):
        expected = _slow(np.asarray(features[b]), BOXES[b, k], (covered / 5, covered / 7), size, ratio)
        np.testing.assert_allclose(found[b, k], expected, atol=1e-5)


def test_chunks_change_nothing_nor_does_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    features = _map(2, 5, 7, 3)

    def run(x: jax.Array, boxes: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(roi_align(x, boxes, size=2)))

    both = functools.partial(jax.value_and_grad(run, argnums=(0, 1)), features, jnp.asarray(BOXES))
    whole, of_whole = jax.jit(both)()
    monkeypatch.setattr(module, "_CHUNK_BYTES", 2 * (2 * 7 * 3 * 4))  # two boxes, which do not divide three
    chunked, of_chunks = jax.jit(lambda: both())()
    np.testing.assert_allclose(whole, chunked, rtol=1e-6)
    np.testing.assert_allclose(of_whole[0], of_chunks[0], atol=1e-5)
    assert np.abs(of_whole[0]).max() > 0.1 and not np.any(of_whole[1]) and not np.any(of_chunks[1])


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (223.9, 0), (224, 1), (447.9, 1), (448, 2), (896, 3), (1791, 3), (1792, 4), (9000, 4)]
)
def test_the_level_of_a_box_is_the_formula_of_the_paper(side: float, level: int) -> None:
    canvas = 10_000
    box = jnp.asarray([0.1, 0.05, 0.1 + side / canvas * 2, 0.05 + side / canvas / 2])  # twice as wide, half as high
    nudged = box * (1 + 1e-5)
    assert level_of(nudged, canvas, 5) == level
    assert level == min(max(math.floor(4 + math.log2(side / 224)), 3), 7) - 3


@pytest.mark.parametrize("canvas", [300, 1200])
def test_each_box_is_read_from_its_level(canvas: int) -> None:
    levels = pyramid_levels(5, 7)
    maps = [_map(2, *level.shape, 3) for level in levels]
    found = READ(maps, BOXES, levels, canvas)
    seen = set()
    for b, k in np.ndindex(2, 3):
        level = int(level_of(jnp.asarray(BOXES[b, k]), canvas, 5))
        seen.add(level)
        expected = _slow(np.asarray(maps[level][b]), BOXES[b, k], levels[level].cell, 2, 2)
        np.testing.assert_allclose(found[b, k], expected, atol=1e-5)
    assert seen == ({0, 1} if canvas == 300 else {0, 1, 2, 3})


def test_levels_that_no_box_can_ask_for_are_not_read() -> None:
    """They may hold anything: what is not a number would show, even times zero."""
    levels = pyramid_levels(5, 7)
    maps = [_map(2, *level.shape, 3) for level in levels]
    broken = [x if i < 2 else x * jnp.nan for i, x in enumerate(maps)]
    np.testing.assert_array_equal(*(READ(x, BOXES, levels, 300) for x in (maps, broken)))
    assert np.isnan(READ(broken, BOXES, levels, 1200)).any()


def test_content_is_read_where_it_is() -> None:
    """A map that holds its own places is read back as the places of the bins, on every level, whatever is covered."""
    levels = pyramid_levels(8, 8, covered=0.95)
    boxes = jnp.asarray([[[0.2, 0.3, 0.6, 0.45], [0.15, 0.2, 0.7, 0.62]]])
    for level in levels[:3]:
        y, x = ((np.arange(n) + 0.5) * size for n, size in zip(level.shape, level.cell, strict=True))
        places = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1)[None], jnp.float32)
        found = ALIGN(places, boxes, level.cell[0] * level.shape[0], 4)
        for k in range(2):
            x0, y0, x1, y1 = np.asarray(boxes[0, k])
            bins = (np.arange(4) + 0.5) / 4
            expected = np.stack(np.meshgrid(x0 + bins * (x1 - x0), y0 + bins * (y1 - y0)), axis=-1)
            np.testing.assert_allclose(found[0, k], expected, atol=1e-5)
