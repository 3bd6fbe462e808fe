"""The dense head: anchors, and what is said relative to them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.region_head import RegionHead, RegionHeadConfig, grid_anchors, query_anchors, query_grid

HEAD = RegionHead(RegionHeadConfig(enabled=True, hidden_width=10), vocabulary=7)
FEATURES = jax.random.normal(jax.random.key(0), (2, 6, 8))
ANCHORS = grid_anchors(2, 3)


def test_anchors_are_the_centres_of_cells_row_by_row() -> None:
    expected = [[(j + 0.5) / 3, (i + 0.5) / 2] for i in range(2) for j in range(3)]
    np.testing.assert_allclose(ANCHORS, expected, atol=1e-6)


@pytest.mark.parametrize(("queries", "grid"), [(1, (1, 1)), (2, (1, 2)), (12, (3, 4)), (16, (4, 4)), (32, (4, 8))])
def test_queries_lie_on_a_grid_as_square_as_can_be(queries: int, grid: tuple[int, int]) -> None:
    assert query_grid(queries) == grid
    np.testing.assert_array_equal(query_anchors(queries), grid_anchors(*grid))


@pytest.mark.parametrize("queries", [5, 31])
def test_a_number_of_queries_that_makes_no_grid_is_refused(queries: int) -> None:
    with pytest.raises(ValueError, match=rf"extractor.queries is {queries}, expected a product of two numbers above 1"):
        query_grid(queries)


def test_boxes_are_said_relative_to_the_anchor() -> None:
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(HEAD.init, jax.random.key(0), FEATURES, ANCHORS)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    objectness, boxes, pieces = HEAD.apply({"params": params}, FEATURES, ANCHORS)

    x = np.asarray(FEATURES, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    x = x @ np.asarray(params["hidden"]["kernel"]) + np.asarray(params["hidden"]["bias"])
    x = np.asarray(jax.nn.gelu(x))
    raw = x @ np.asarray(params["objectness_and_box"]["kernel"]) + np.asarray(params["objectness_and_box"]["bias"])
    np.testing.assert_allclose(objectness, raw[..., 0], atol=1e-4)
    np.testing.assert_allclose(
        pieces, x @ np.asarray(params["pieces"]["kernel"]) + np.asarray(params["pieces"]["bias"]), atol=1e-4
    )
    for b in range(2):
        for k, (x0, y0) in enumerate(np.asarray(ANCHORS)):
            _, dx, dy, w, h = raw[b, k]
            half_w, half_h = math.log1p(math.exp(w - 2)), math.log1p(math.exp(h - 2))
            expected = [x0 + dx - half_w, y0 + dy - half_h, x0 + dx + half_w, y0 + dy + half_h]
            np.testing.assert_allclose(boxes[b, k], expected, atol=1e-4)
    # A box has its corners in order, whatever the head says.
    assert np.all(np.asarray(boxes)[..., 2:] > np.asarray(boxes)[..., :2])


def test_a_fresh_head_says_a_small_box_on_its_anchor() -> None:
    variables = HEAD.init(jax.random.key(0), FEATURES, ANCHORS)
    quiet = jax.tree.map(jnp.zeros_like, variables)
    _, boxes, _ = HEAD.apply(quiet, FEATURES, ANCHORS)
    np.testing.assert_allclose((boxes[..., :2] + boxes[..., 2:]) / 2, np.stack([ANCHORS] * 2), atol=1e-6)
    np.testing.assert_allclose(boxes[..., 2:] - boxes[..., :2], 2 * math.log1p(math.exp(-2)), rtol=1e-5)
