"""The two-way transformer, against a second formulation: one example and one head at a time, in NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.stack import stack_params
from pixel_align.nn.two_way import TwoWayTransformer

WIDTH, HEADS, K, S = 16, 2, 3, 5
DEPTH = 3
MODEL = TwoWayTransformer(depth=DEPTH, num_heads=HEADS, mlp_width=20, scan=False)
_keys = jax.random.split(jax.random.key(0), 3)
TOKENS, IMAGE, CODE = (
    jax.random.normal(key, shape)
    for key, shape in zip(_keys, [(2, K, WIDTH), (2, S, WIDTH), (2, S, WIDTH)], strict=True)
)
_apply = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS, IMAGE, CODE)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def _linear(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def _norm(p: Any, x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for i, row in enumerate(x):
        out[i] = (row - row.mean()) / math.sqrt(row.var() + 1e-5)
    return out * np.asarray(p["scale"]) + np.asarray(p["bias"])


def _attend(p: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    q, k, v = _linear(p["query"], q), _linear(p["key"], k), _linear(p["value"], v)
    head = q.shape[-1] // HEADS
    heads = []
    for n in range(HEADS):
        part = slice(n * head, (n + 1) * head)
        weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(head))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    return _linear(p["out"], np.concatenate(heads, -1))


def _release(p: Any, point_embedding: np.ndarray, image: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The release's forward pass, for one example: what it calls queries and keys are tokens and image."""
    queries, keys = point_embedding, image
    for i in range(DEPTH):
        layer = p[f"layers_{i}"]
        if i == 0:
            queries = _attend(layer["self_attention"], queries, queries, queries)
        else:
            q = queries + point_embedding
            queries = queries + _attend(layer["self_attention"], q, q, queries)
        queries = _norm(layer["self_attention_norm"], queries)
        q, k = queries + point_embedding, keys + code
        queries = _norm(layer["token_to_image_norm"], queries + _attend(layer["token_to_image"], q, k, keys))
        hidden = np.maximum(_linear(layer["mlp_in"], queries), 0)
        queries = _norm(layer["mlp_norm"], queries + _linear(layer["mlp_out"], hidden))
        q, k = queries + point_embedding, keys + code
        keys = _norm(layer["image_to_token_norm"], keys + _attend(layer["image_to_token"], k, q, queries))
    q, k = queries + point_embedding, keys + code
    return _norm(p["final_norm"], queries + _attend(p["final_token_to_image"], q, k, keys)), keys


def test_it_is_the_releases_forward_pass(params: dict) -> None:
    found = _apply({"params": params}, TOKENS, IMAGE, CODE)
    expected = [_release(params, *(np.asarray(x[b], np.float64) for x in (TOKENS, IMAGE, CODE))) for b in range(2)]
    for part in range(2):
        np.testing.assert_allclose(found[part], [one[part] for one in expected], atol=2e-4)


def test_scanned_and_written_out_layers_have_the_same_output_and_gradient(params: dict) -> None:
    """The first layer, too, which differs from the others, and with its backward pass computed again."""

    def total(params: dict, model: TwoWayTransformer) -> jax.Array:
        mask = jnp.asarray([[True, True, False]] * 2)
        tokens, image = model.apply({"params": params}, TOKENS, IMAGE, CODE, mask)
        return jnp.square(tokens[:, :2]).mean() + jnp.sin(image).mean()

    run = jax.jit(jax.value_and_grad(total), static_argnums=1)
    value, gradient = run(params, MODEL)
    gradient = stack_params(gradient)
    assert gradient["layers"]["mlp_in"]["kernel"].shape == (DEPTH, WIDTH, 20)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient["layers"]["mlp_out"]))
    scanned = TwoWayTransformer(depth=DEPTH, num_heads=HEADS, mlp_width=20, remat="full")
    found, others = run(stack_params(params), scanned)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), others, gradient)


def test_cross_attention_runs_at_half_the_width(params: dict) -> None:
    layer = params["layers_0"]
    widths = {name: layer[name]["query"]["kernel"].shape[1] for name in layer if "query" in layer[name]}
    assert widths == {"self_attention": WIDTH, "token_to_image": WIDTH // 2, "image_to_token": WIDTH // 2}


def test_masked_tokens_are_read_by_nobody(params: dict) -> None:
    """The same as leaving them out, whatever they hold."""
    mask = jnp.asarray([[True, True, False]] * 2)
    short = _apply({"params": params}, TOKENS[:, :2], IMAGE, CODE)
    for other in (TOKENS, TOKENS.at[:, 2].set(7.0)):
        tokens, image = _apply({"params": params}, other, IMAGE, CODE, mask)
        np.testing.assert_allclose(tokens[:, :2], short[0], atol=1e-5)
        np.testing.assert_allclose(image, short[1], atol=1e-5)


def test_cells_of_the_image_that_do_not_exist_are_read_by_nobody(params: dict) -> None:
    """As if they were not there, and whatever they hold; of each example its own."""
    there = jnp.arange(S) < jnp.asarray([[3], [5]])
    tokens, image = _apply({"params": params}, TOKENS, IMAGE, CODE, None, there)
    other, _ = _apply({"params": params}, TOKENS, jnp.where(there[..., None], IMAGE, 9.0), CODE, None, there)
    np.testing.assert_array_equal(tokens, other)
    short, short_image = MODEL.apply({"params": params}, TOKENS[:1], IMAGE[:1, :3], CODE[:1, :3])
    np.testing.assert_allclose(tokens[:1], short, atol=1e-5)
    np.testing.assert_allclose(image[:1, :3], short_image, atol=1e-5)
    straight, _ = _apply({"params": params}, TOKENS, IMAGE, CODE)
    np.testing.assert_allclose(tokens[1], straight[1], atol=1e-6)
    assert np.abs(tokens[0] - straight[0]).max() > 1e-2
