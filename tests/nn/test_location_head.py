"""The location head: its definition in NumPy, its size, and a gradient that never dies."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.location_head import LocationHead, LocationHeadConfig

CONFIG = LocationHeadConfig(points=3, hidden_width=12, hidden_layers=2)
HEAD = LocationHead(CONFIG)
FEATURES = jax.random.normal(jax.random.key(0), (2, 4, 8)) * 3 + 1


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(HEAD.init, jax.random.key(0), FEATURES)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_it_is_its_definition(params: dict) -> None:
    x = np.asarray(FEATURES, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    for name in ("hidden_0", "hidden_1"):
        x = x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        x = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    raw = x @ np.asarray(params["output"]["kernel"]) + np.asarray(params["output"]["bias"])
    found = HEAD.apply({"params": params}, FEATURES)
    assert found.shape == (2, 4, 3, 2) and found.dtype == jnp.float32
    expected = [
        [[[(raw[b, t, 2 * p + i] + 1) / 2 for i in range(2)] for p in range(3)] for t in range(4)] for b in range(2)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("width", "published"), [(768, 0.92), (2048, 1.58)])
def test_the_published_head_has_its_number_of_parameters(width: int, published: float) -> None:
    """With the two outputs per point that nothing reads there."""
    head = LocationHead(LocationHeadConfig())
    variables = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, width)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) + 4 * (512 + 1)
    assert round(count / 1e6, 2) == published


def test_nothing_is_clamped_so_the_gradient_never_dies(params: dict) -> None:
    for bias in (-9.0, 0.0, 9.0):
        far = {**params, "output": {**params["output"], "bias": jnp.full(6, bias)}}
        points, gradient = jax.value_and_grad(lambda p: HEAD.apply({"params": p}, FEATURES).mean())(far)
        if bias:
            assert not 0 <= float(points) <= 1
        np.testing.assert_allclose(gradient["output"]["bias"], 0.5 / 6, rtol=1e-5)
