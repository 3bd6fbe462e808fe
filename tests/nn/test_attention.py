"""Attention against its definition in NumPy float64, and what it does where there is nothing to attend to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.attention import attention

B, T, S, H, D = 2, 5, 7, 3, 4


def _inputs(value_width: int = D) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = rng.random((B, 1, T, S)) < 0.6
    mask[..., 0] = True
    return {
        "query": rng.normal(size=(B, T, H, D)).astype(np.float32),
        "key": rng.normal(size=(B, S, H, D)).astype(np.float32),
        "value": rng.normal(size=(B, S, H, value_width)).astype(np.float32),
        "bias": rng.normal(size=(1, H, T, S)).astype(np.float32),
        "mask": mask,
    }


def _definition(query, key, value, bias, mask, scale) -> np.ndarray:
    """One query, one head at a time, over the keys that it may attend to."""
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    for b, t, h in np.ndindex(B, T, H):
        seen = mask[b, 0, t]
        logits = key[b, seen, h].astype(np.float64) @ query[b, t, h] * scale + bias[0, h, t, seen]
        weights = np.exp(logits) / np.exp(logits).sum()
        out[b, t, h] = weights @ value[b, seen, h]
    return out


@pytest.mark.parametrize("value_width", [D, 6])
@pytest.mark.parametrize("scale", [1.0, None])
def test_is_its_definition(value_width: int, scale: float | None) -> None:
    inputs = _inputs(value_width)
    expected = _definition(**inputs, scale=0.5 if scale is None else scale)
    np.testing.assert_allclose(attention(**inputs, scale=scale), expected, atol=1e-5)


@pytest.mark.parametrize("value_width", [D, 6])
def test_a_query_without_keys_gets_zeros_and_finite_gradients(value_width: int) -> None:
    inputs = _inputs(value_width)
    inputs["mask"][0, 0, 2] = False
    out = attention(**inputs)
    assert (out[0, 2] == 0).all()
    assert (out[0, 1] != 0).all()
    arrays = {name: inputs.pop(name) for name in ("query", "key", "value")}
    for gradient in jax.tree.leaves(jax.jit(jax.grad(lambda a: attention(**a, **inputs).sum()))(arrays)):
        assert np.isfinite(gradient).all()


def test_what_is_masked_has_no_influence() -> None:
    inputs = _inputs()
    inputs["mask"][:, :, :, 3] = False
    changed = dict(inputs)
    changed["key"], changed["value"] = inputs["key"].copy(), inputs["value"].copy()
    changed["key"][:, 3] += 100.0
    changed["value"][:, 3] += 100.0
    np.testing.assert_array_equal(attention(**inputs), attention(**changed))


def test_bfloat16_inputs_keep_their_softmax_in_float32() -> None:
    inputs = {name: jnp.asarray(array) for name, array in _inputs().items()}
    # A large common offset: in bfloat16 logits (8 bits) the differences between keys would be gone.
    inputs["bias"] = inputs["bias"] + 1000.0
    half = {name: inputs[name].astype(jnp.bfloat16) for name in ("query", "key", "value")}
    out = attention(**{**inputs, **half})
    assert out.dtype == jnp.bfloat16
    exact = attention(**{**inputs, **{name: array.astype(jnp.float32) for name, array in half.items()}})
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


def test_dropout_drops_keys_for_all_queries_and_keeps_the_mean() -> None:
    value = jnp.eye(S)[None, :, None, :]  # the output is the attention weights themselves
    query, key = jnp.zeros((1, T, 1, D)), jnp.zeros((1, S, 1, D))
    drop = jax.jit(lambda seed: attention(query, key, value, dropout_rate=0.5, dropout_rng=jax.random.key(seed)))
    weights = np.stack([drop(seed) for seed in range(200)])[:, 0, :, 0] * S
    assert set(np.unique(np.round(weights, 5))) == {0.0, 2.0}
    np.testing.assert_array_equal(weights, np.broadcast_to(weights[:, :1], weights.shape))
    assert abs(weights.mean() - 1.0) < 0.1
    no_rng = attention(query, key, value, dropout_rate=0.5)
    np.testing.assert_allclose(no_rng * S, 1.0, atol=1e-6)


def test_wrong_inputs_are_refused() -> None:
    inputs = _inputs()
    with pytest.raises(ValueError, match=r"mask of attention is float32, expected bool"):
        attention(**{**inputs, "mask": inputs["mask"].astype(np.float32)})
    with pytest.raises(ValueError, match=r"bias of attention has shape \(3, 5, 7\), expected four axes"):
        attention(**{**inputs, "bias": inputs["bias"][0]})
