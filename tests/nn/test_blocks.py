"""Norms against their definitions, also where single precision is at its limits; the forms of the MLP."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.blocks import MLP, LayerNorm, RMSNorm, activation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 16)).astype(np.float32)
SCALE, BIAS = (RNG.normal(size=16).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize(("offset", "epsilon"), [(0.0, 1e-6), (0.0, 0.5), (1000.0, 1e-6)])
def test_layer_norm_is_its_definition_far_from_zero_too(offset: float, epsilon: float) -> None:
    x = (X + offset).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + epsilon)
    params = {"params": {"scale": SCALE, "bias": BIAS}}
    np.testing.assert_allclose(LayerNorm(epsilon).apply(params, x), exact * SCALE + BIAS, atol=1e-3 if offset else 1e-5)
    without = LayerNorm(epsilon, use_bias=False).apply({"params": {"scale": SCALE}}, x)
    np.testing.assert_allclose(without, exact * SCALE, atol=1e-3 if offset else 1e-5)


def test_rms_norm_is_its_definition_and_takes_its_statistics_in_float32() -> None:
    expected = X / np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * SCALE
    np.testing.assert_allclose(RMSNorm(0.1).apply({"params": {"scale": SCALE}}, X), expected, atol=1e-5)
    large = jnp.asarray(X * 1e4, jnp.float16)  # whose squares are beyond float16
    out = RMSNorm(dtype=jnp.float16).apply({"params": {"scale": np.ones(16, np.float32)}}, large)
    np.testing.assert_allclose(np.square(out.astype(jnp.float32)).mean(-1), 1.0, rtol=0.01)


def _params(mlp: MLP) -> dict:
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), X)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), shapes)


def test_plain_mlp() -> None:
    mlp = MLP(32, "gelu", features=5)
    p = _params(mlp)
    hidden = X @ p["wi"]["kernel"] + p["wi"]["bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    expected = hidden @ p["wo"]["kernel"] + p["wo"]["bias"]
    np.testing.assert_allclose(mlp.apply({"params": p}, X), expected, rtol=1e-4, atol=1e-3)


def test_gated_mlp() -> None:
    mlp = MLP(32, "silu", gated=True, use_bias=False)
    p = _params(mlp)
    gate = X @ p["wi_0"]["kernel"]
    expected = (gate / (1 + np.exp(-gate)) * (X @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]
    assert expected.shape == X.shape
    np.testing.assert_allclose(mlp.apply({"params": p}, X), expected, rtol=1e-4, atol=1e-3)


def test_mlp_drops_in_training_only() -> None:
    mlp = MLP(32, "relu", dropout_rate=0.5)
    p = {"params": _params(mlp)}
    quiet = mlp.apply(p, X)
    np.testing.assert_array_equal(mlp.apply(p, X, train=False), quiet)
    assert (mlp.apply(p, X, train=True, rngs={"dropout": jax.random.key(0)}) != quiet).any()


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="activation is 'swish', expected one of"):
        activation("swish")
