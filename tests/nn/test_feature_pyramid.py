"""The feature pyramid: the published grids, and each cell is made of the picture where it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.feature_pyramid import FeaturePyramid
from pixel_align.pyramid import pyramid_levels

MODEL = FeaturePyramid(width=6, up_width=4)


@pytest.mark.parametrize(("h", "w"), [(27, 27), (5, 8), (2, 3)])
def test_the_maps_have_the_cells_that_the_levels_say(h: int, w: int) -> None:
    features = jax.ShapeDtypeStruct((2, h, w, 3), jnp.float32)
    maps, _ = jax.eval_shape(MODEL.init_with_output, jax.random.key(0), features)
    assert [x.shape for x in maps] == [(2, *level.shape, 6) for level in pyramid_levels(h, w)]


def test_a_cell_is_made_of_what_lies_around_it() -> None:
    """A mark in one cell of the image features shows where that cell is, and at most one cell further."""
    grid, (row, column) = 12, (7, 2)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, grid, grid, 3)))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    plain = rng.normal(size=(1, grid, grid, 3)).astype(np.float32)
    marked = plain.copy()
    marked[0, row, column] = 30 * np.abs(plain[0, row, column]) + 5  # the largest of its pool, too
    run = jax.jit(lambda x: MODEL.apply(params, x))
    low, high = np.asarray([row, column]) / grid, np.asarray([row + 1, column + 1]) / grid
    for one, two, level in zip(run(plain), run(marked), pyramid_levels(grid, grid), strict=True):
        changed = np.argwhere(np.abs(one - two)[0].max(-1) > 1e-4)
        assert len(changed)
        cell = np.asarray(level.cell)
        reach = cell * (1 if level.cell[0] < 3 / grid else 2)  # the coarse ones look at what is around cells of others
        assert (changed * cell < high + reach + 1e-6).all() and ((changed + 1) * cell > low - reach - 1e-6).all()
