"""EVA-02's encoder: its published size, its definition in plain numpy, drop-path, and what its settings change."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.eva_vit import EvaVit, EvaVitConfig
from pixel_align.nn.positions import resize_positions
from pixel_align.nn.stack import stack_params, unstack_params

CONFIG = EvaVitConfig(
    patch_size=4, width=16, depth=3, num_heads=2, mlp_width=10, pretrain_grid=3, drop_path=0.0, scan=False
)
IMAGES = jax.random.normal(jax.random.key(3), (2, 20, 20, 3))


def _drawn(config: EvaVitConfig, seed: int = 0) -> Any:
    """Parameters far from their initial values: biases are not zero, scales not one."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(EvaVit(config).init, jax.random.key(0), IMAGES)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def _run(
    config: EvaVitConfig, params: Any, images: jax.Array = IMAGES, train: bool = False, **kwargs: Any
) -> np.ndarray:
    apply = jax.jit(lambda params, images: EvaVit(config).apply({"params": params}, images, train=train, **kwargs))
    return np.asarray(apply(params, images))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (EvaVitConfig(), 303_268_800),
        (EvaVitConfig.large(scan=False), 303_268_800),
        (EvaVitConfig.large(attention_norm=True), 303_268_800 + 24 * 2 * 1024),
        (EvaVitConfig.base(), 85_758_720),
        (EvaVitConfig.bench(), 4_961_520),
    ],
)
def test_the_presets_have_their_number_of_parameters(config: EvaVitConfig, count: int) -> None:
    variables = jax.eval_shape(EvaVit(config).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == count


def _slow(params: Any, images: np.ndarray, config: EvaVitConfig) -> np.ndarray:
    """The encoder of one picture [H, W, 3] in float64, token by token and head by head."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    size, d, head = config.patch_size, config.width, config.width // config.num_heads
    side = images.shape[0] // size

    def norm(x: np.ndarray, scales: dict, epsilon: float) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scales["scale"] + scales["bias"]

    table = resize_positions(jnp.asarray(p["positions"][1:].reshape(config.pretrain_grid, -1, d)), side, side)
    tokens = [p["class_token"] + p["positions"][0]]
    for r in range(side):
        for c in range(side):
            patch = images[r * size : (r + 1) * size, c * size : (c + 1) * size]
            kernel, bias = p["patch_embedding"]["kernel"], p["patch_embedding"]["bias"]
            tokens.append(np.einsum("abc,abcd->d", patch, kernel) + bias + np.asarray(table[r, c], np.float64))
    x = np.stack(tokens)

    def turn(y: np.ndarray, token: int) -> np.ndarray:
        """One head of one token: pairs of neighbouring channels, rows first; the class token stays."""
        if token == 0:
            return y
        place = np.divmod(token - 1, side)
        pairs, count = y[0::2] + 1j * y[1::2], head // 4
        for i in range(head // 2):
            pairs[i] *= np.exp(1j * place[i // count] * 10_000.0 ** (-(i % count) / count))
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(-1)

    for number in range(config.depth):
        layer = p[f"layers_{number}"]
        a, y = layer["attention"], norm(x, layer["attention_norm"], 1e-6)
        query = y @ a["query"]["kernel"] + a["query"]["bias"]
        key = y @ a["key"]["kernel"]
        value = y @ a["value"]["kernel"] + a["value"]["bias"]
        out = np.zeros_like(x)
        for h in range(config.num_heads):
            at = slice(h * head, (h + 1) * head)
            keys = np.stack([turn(k, s) for s, k in enumerate(key[:, at])])
            for s in range(len(x)):
                weights = np.exp(keys @ turn(query[s, at], s) / math.sqrt(head))
                out[s, at] = weights @ value[:, at] / weights.sum()
        if config.attention_norm:
            out = norm(out, a["norm"], 1e-6)
        x = x + out @ a["out"]["kernel"] + a["out"]["bias"]
        m, y = layer["mlp"], norm(x, layer["mlp_norm"], 1e-6)
        gate = y @ m["wi_0"]["kernel"] + m["wi_0"]["bias"]
        hidden = gate / (1 + np.exp(-gate)) * (y @ m["wi_1"]["kernel"] + m["wi_1"]["bias"])
        x = x + norm(hidden, m["norm"], 1e-5) @ m["wo"]["kernel"] + m["wo"]["bias"]
    return norm(x[1:], p["norm"], 1e-6).reshape(side, side, d)


@pytest.mark.parametrize("attention_norm", [False, True])
def test_it_computes_its_definition(attention_norm: bool) -> None:
    config = dataclasses.replace(CONFIG, attention_norm=attention_norm)
    params = _drawn(config)
    found = _run(config, params)
    assert found.shape == (2, 5, 5, 16)
    for i in range(2):
        np.testing.assert_allclose(found[i], _slow(params, np.asarray(IMAGES[i]), config), atol=2e-4)


def test_scanned_and_written_out_layers_have_the_same_output_and_gradient() -> None:
    scanned = dataclasses.replace(CONFIG, scan=True, remat="full")
    params = _drawn(CONFIG)

    def loss(params: Any, config: EvaVitConfig) -> jax.Array:
        return jnp.sum(EvaVit(config).apply({"params": params}, IMAGES) ** 2)

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = step(params, CONFIG)
    other, other_gradient = step(stack_params(params), scanned)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient, unstack_params(other_gradient)
    )
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 0, "every parameter takes part"


@pytest.mark.parametrize("scan", [True, False])
def test_drop_path_grows_from_nothing_to_its_rate(scan: bool) -> None:
    """Where the last of two layers is dropped for certain, what is left is the first, never dropped."""
    config = dataclasses.replace(CONFIG, depth=2, drop_path=1 - 1e-6)
    params = _drawn(config)
    first = _run(dataclasses.replace(config, depth=1), {k: v for k, v in params.items() if k != "layers_1"})
    config, params = dataclasses.replace(config, scan=scan), stack_params(params) if scan else params
    found = _run(config, params, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(found, first, atol=1e-4)
    assert np.abs(_run(config, params) - first).max() > 0.1


def test_a_frozen_encoder_drops_nothing() -> None:
    config = dataclasses.replace(CONFIG, drop_path=0.9)
    params, rngs = _drawn(config), {"dropout": jax.random.key(1)}
    expected = _run(config, params)
    assert np.abs(_run(config, params, train=True, rngs=rngs) - expected).max() > 0.1
    frozen = dataclasses.replace(config, frozen=True)
    np.testing.assert_array_equal(_run(frozen, params, train=True), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_the_last_pixels_are_seen_where_the_picture_is_fitted_to_whole_patches(whole: bool) -> None:
    config = dataclasses.replace(CONFIG, whole_canvas=whole)
    params, images = _drawn(config), jax.random.normal(jax.random.key(0), (1, 23, 23, 3))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(EvaVit(config).apply({"params": params}, x) ** 2)))(images)
    seen = np.abs(np.asarray(gradient)).max(axis=(0, 2, 3)) > 0
    assert seen[:20].all()
    assert seen[20:].all() if whole else not seen[20:].any()
    assert _run(config, params, images).shape == (1, 5, 5, 16)


def test_rotary_positions_count_on_the_grid_of_the_setting() -> None:
    params = _drawn(CONFIG)
    as_published, as_pretrained = CONFIG, dataclasses.replace(CONFIG, rotary_grid=3)
    assert np.abs(_run(as_published, params) - _run(as_pretrained, params)).max() > 0.1
    small = IMAGES[:, :12, :12]
    np.testing.assert_allclose(_run(as_published, params, small), _run(as_pretrained, params, small), atol=1e-5)


def test_half_precision_stays_near() -> None:
    params = jax.tree.map(lambda leaf: leaf * 0.5, _drawn(CONFIG))
    half = _run(dataclasses.replace(CONFIG, dtype="bfloat16"), params)
    assert half.dtype == jnp.bfloat16
    difference = np.abs(half.astype(np.float32) - _run(CONFIG, params))
    assert difference.mean() < 0.03


def test_heads_without_pairs_for_two_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"eva_vit.width is 24 with num_heads 4, expected a multiple of 4"):
        EvaVitConfig(width=24, num_heads=4)


@pytest.mark.parametrize(("height", "width"), [(5, 11), (8, 3), (16, 16)])
def test_torch_resizing_is_its_kernel_with_edges_repeated(height: int, width: int) -> None:
    """Against the definition with a = -3/4, pixel by pixel; `make parity` holds it against torch."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    table = np.random.default_rng(2).normal(size=(8, 8, 2)).astype(np.float32)
    expected = np.zeros((height, width, 2))
    for y in range(height):
        for x in range(width):
            at_y, at_x = (y + 0.5) * 8 / height - 0.5, (x + 0.5) * 8 / width - 0.5
            for i in range(math.floor(at_y) - 1, math.floor(at_y) + 3):
                for j in range(math.floor(at_x) - 1, math.floor(at_x) + 3):
                    value = table[min(max(i, 0), 7), min(max(j, 0), 7)]
                    expected[y, x] += kernel(at_y - i) * kernel(at_x - j) * value
    np.testing.assert_allclose(resize_positions(jnp.asarray(table), height, width, False), expected, atol=1e-5)
