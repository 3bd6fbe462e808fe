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
    """A mark in one cell of the image features changes, on each level, the cells over it and their neighbours."""
    grid, mark = 12, (7, 2)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, grid, grid, 3)))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    plain = rng.normal(size=(1, grid, grid, 3)).astype(np.float32)
    marked = plain.copy()
    marked[(0, *mark)] = 30 * np.abs(plain[(0, *mark)]) + 5  # the largest of its pool, too
    run = jax.jit(lambda x: MODEL.apply(params, x))
    halved = [{row for row in range(6) if abs(row - at // 2) <= 1} for at in mark]
    expected = [
        [set(range(2 * at - 1, 2 * at + 3)) for at in mark],
        [set(range(at - 1, at + 2)) for at in mark],
        halved,
    ]
    for cells in (3, 2):  # a convolution of stride 2 reads what is one cell to either side of every second one
        halved = [{i for i in range(cells) if {2 * i - 1, 2 * i, 2 * i + 1} & before} for before in halved]
        expected.append(halved)
    for one, two, places in zip(run(plain), run(marked), expected, strict=True):
        rows, columns = np.nonzero(np.abs(one - two)[0].max(-1) > 1e-4)
        assert [set(rows.tolist()), set(columns.tolist())] == places
