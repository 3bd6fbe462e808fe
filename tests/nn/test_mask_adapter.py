"""The mask adapter: nothing at the start, reads what exists and nothing else, in no order."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import param_rules
from pixel_align.nn import mask_adapter
from pixel_align.nn.mask_adapter import MaskAdapter, MaskAdapterConfig

CONFIG = MaskAdapterConfig(width=16, depth=1, num_heads=2, mlp_width=12)
MODEL = MaskAdapter(CONFIG)
_keys = jax.random.split(jax.random.key(0), 2)
VISUAL = jax.random.normal(_keys[0], (2, 1, 4, 6))
TEXT = jax.random.normal(_keys[1], (2, 3, 5, 10))
MASK = jnp.arange(5) < jnp.asarray([[5, 3, 1], [2, 4, 0]])[..., None]


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), VISUAL, TEXT)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@jax.jit
def _run(params: dict, visual: jax.Array = VISUAL, text: jax.Array = TEXT, mask: jax.Array | None = None) -> jax.Array:
    return MODEL.apply({"params": params}, visual, text, mask)


@pytest.mark.parametrize(("visual", "text", "published"), [(2048, 2048, 4.35), (1024, 768, 3.76)])
def test_the_published_adapter_has_its_number_of_parameters(visual: int, text: int, published: float) -> None:
    model = MaskAdapter(MaskAdapterConfig.published())
    inputs = jnp.zeros((1, 1, 2, visual)), jnp.zeros((1, 1, 2, text))
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert round(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) / 1e6, 2) == published


def test_the_gate_starts_closed_and_opens(params: dict) -> None:
    closed = {**params, "gate": jnp.zeros((2, 16))}
    assert not np.any(_run(closed)) and _run(closed).shape == (2, 3, 2, 16)
    assert not np.any(jax.jit(MODEL.init)(jax.random.key(0), VISUAL, TEXT)["params"]["gate"])
    # The gate itself learns from the first step on; once it has moved, so does what is behind it.
    target = jax.random.normal(jax.random.key(2), (2, 3, 2, 16))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(_run(p) - target))))
    at_start = param_rules.paths(gradient(closed))
    assert [path for path, leaf in at_start.items() if np.any(leaf)] == ["gate"]
    # The image side of the last block is read by the last attention; all others are read, too. Biases of keys cancel.
    later = param_rules.paths(gradient(params))
    assert all(np.abs(leaf).max() > 1e-6 for path, leaf in later.items() if not path.endswith("key/bias"))


def test_the_gate_is_a_factor_below_one(params: dict) -> None:
    one, two = (_run({**params, "gate": jnp.full((2, 16), gate)}) for gate in (0.5, 100.0))
    np.testing.assert_allclose(one, math.tanh(0.5) * two, rtol=1e-4, atol=1e-5)


def test_the_padding_of_a_text_is_never_read(params: dict) -> None:
    found = _run(params, mask=MASK)
    padded = TEXT * jnp.where(MASK[..., None], 1, -jnp.arange(10.0))
    np.testing.assert_allclose(found, _run(params, text=padded, mask=MASK), atol=1e-6)
    for b, n in np.ndindex(2, 3):
        length = int(MASK[b, n].sum())
        alone = _run(params, VISUAL[b : b + 1], TEXT[b : b + 1, n : n + 1, :length])
        np.testing.assert_allclose(alone[0, 0], found[b, n], atol=1e-4)
    assert np.abs(found - _run(params)).max() > 5e-3


def test_regions_that_share_a_prompt_read_it_as_if_each_had_it(params: dict) -> None:
    np.testing.assert_allclose(_run(params), _run(params, visual=VISUAL.repeat(3, 1)), atol=1e-5)


def test_what_is_read_has_no_order(params: dict) -> None:
    """Zero positions, as published; but what stands in it is read, of each region its own."""
    straight = _run(params)
    np.testing.assert_allclose(_run(params, visual=VISUAL[:, :, ::-1]), straight, atol=1e-4)
    np.testing.assert_allclose(_run(params, text=TEXT[:, :, ::-1]), straight, atol=1e-4)
    assert np.abs(_run(params, visual=VISUAL + jnp.arange(6.0) * 3) - straight).max() > 5e-3
    other = _run(params, text=TEXT.at[1, 2].multiply(jnp.arange(10.0)))
    moved = np.abs(other - straight).max(axis=(2, 3)) > 1e-3
    np.testing.assert_array_equal(moved, [[False, False, False], [False, False, True]])


def test_every_parameter_has_its_rules(params: dict) -> None:
    rules = mask_adapter.rules(CONFIG)
    for field in dataclasses.fields(param_rules.PartRules):
        param_rules.match(getattr(rules, field.name), params)
    decay = param_rules.paths(param_rules.match(rules.weight_decay, params))
    assert {path.rpartition("/")[2] for path, value in decay.items() if value} == {"kernel"}
