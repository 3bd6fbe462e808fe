"""Segment Anything's encoder: its published size, its definition in slow loops, and who sees whom."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.image_features import ImageFeatures, normalize
from pixel_align.nn.positions import resize_positions
from pixel_align.nn.sam_vit import (
    RelativeAttention,
    SamBlock,
    SamVit,
    SamVitConfig,
    merge_windows,
    relative_positions,
    split_windows,
)
from pixel_align.nn.stack import stack_params

CONFIG = SamVitConfig(
    patch_size=4,
    width=8,
    depth=4,
    num_heads=2,
    mlp_ratio=2,
    window=3,
    global_blocks=(1, 3),
    pretrain_grid=5,
    output_width=6,
    scan=False,
)
IMAGES = jax.random.normal(jax.random.key(3), (2, 16, 16, 3))


def _drawn(module, *inputs, seed: int = 0) -> dict:
    """Parameters far from their initial values: tables and biases are not zero, scales not one."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({}, 637_026_048),
        ({"width": 1024, "depth": 24, "global_blocks": (5, 11, 17, 23)}, 308_278_272),
        ({"width": 768, "depth": 12, "num_heads": 12, "global_blocks": (2, 5, 8, 11)}, 89_670_912),
    ],
)
def test_the_published_encoders_have_their_number_of_parameters(sizes: dict, count: int) -> None:
    model = SamVit(SamVitConfig(**sizes))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_blocks": (0, 3)}, "expected evenly spaced blocks"),
        ({"depth": 5}, "expected evenly spaced blocks"),  # the fifth block would be left out in silence
        ({"global_blocks": ()}, "expected evenly spaced blocks"),
        ({"stem": "conv", "patch_size": 14}, "expected 'patch', or 'conv' with a power of two"),
        ({"stem": "linear"}, "expected 'patch', or 'conv'"),
    ],
)
def test_settings_that_no_encoder_can_have_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 5), (2, 3)])
def test_windows_are_pieces_of_the_grid_and_come_together_again(height: int, width: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, height, width, 4)).astype(np.float32)
    windows = np.asarray(split_windows(x, 3))
    expected = []
    for image in x:
        padded = np.zeros((-(-height // 3) * 3, -(-width // 3) * 3, 4), np.float32)
        padded[:height, :width] = image
        for top in range(0, padded.shape[0], 3):
            expected += [padded[top : top + 3, left : left + 3] for left in range(0, padded.shape[1], 3)]
    np.testing.assert_array_equal(windows, np.stack(expected))
    np.testing.assert_array_equal(merge_windows(windows, 3, 2, height, width), x)


@pytest.mark.parametrize(("side", "size"), [(4, 4), (5, 3), (3, 6)])
def test_relative_positions_are_resized_linearly_and_looked_up_by_query_minus_key(side: int, size: int) -> None:
    table = np.random.default_rng(1).normal(size=(2 * side - 1, 3)).astype(np.float32)
    length = 2 * size - 1
    at = np.clip((np.arange(length) + 0.5) * len(table) / length - 0.5, 0, len(table) - 1)
    resized = np.stack([np.interp(at, np.arange(len(table)), column) for column in table.T], -1)
    expected = [[resized[query - key + size - 1] for key in range(size)] for query in range(size)]
    np.testing.assert_allclose(relative_positions(jnp.asarray(table), size), expected, atol=1e-5)


def _cubic(a: float, x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel of Keys, with its parameter."""
    x = np.abs(x)
    inner, outer = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


@pytest.mark.parametrize(("height", "width"), [(5, 11), (3, 3)])
@pytest.mark.parametrize("antialias", [True, False])
def test_positions_are_resized_by_a_cubic_kernel(height: int, width: int, antialias: bool) -> None:
    """jax's way: a = -1/2, widened on the way down, weights adding to one. torch's: a = -3/4, never, edges repeated."""

    def weights(size: int, new: int) -> np.ndarray:
        at = (np.arange(new)[:, None] + 0.5) * size / new - 0.5
        if antialias:
            table = _cubic(-0.5, (at - np.arange(size)[None]) / max(1, size / new))
            return table / table.sum(axis=1, keepdims=True)
        reach = np.arange(-4, size + 4)  # cells beyond the edge hold what the edge holds
        table = _cubic(-0.75, at - reach[None])
        return np.stack([table[:, np.clip(reach, 0, size - 1) == i].sum(axis=1) for i in range(size)], axis=1)

    table = np.random.default_rng(2).normal(size=(8, 8, 2)).astype(np.float32)
    expected = np.einsum("ah,bw,hwd->abd", weights(8, height), weights(8, width), table)
    np.testing.assert_allclose(resize_positions(jnp.asarray(table), height, width, antialias), expected, atol=1e-5)
    np.testing.assert_array_equal(resize_positions(jnp.asarray(table), 8, 8, antialias), table)


def _slow_attention(params: dict, x: np.ndarray, heads: int) -> np.ndarray:
    """Attention over one grid [h, w, D], one pair of cells at a time."""
    height, width, d = x.shape
    head = d // heads
    qkv = x @ np.asarray(params["qkv"]["kernel"]) + np.asarray(params["qkv"]["bias"])
    rows = np.asarray(relative_positions(params["relative_h"], height))
    columns = np.asarray(relative_positions(params["relative_w"], width))
    result = np.zeros_like(x)
    for n in range(heads):
        q, k, v = (qkv[..., i * d + n * head : i * d + (n + 1) * head] for i in range(3))
        for i in range(height):
            for j in range(width):
                logits = np.zeros((height, width))
                for a in range(height):
                    for b in range(width):
                        logits[a, b] = q[i, j] @ k[a, b] / math.sqrt(head) + q[i, j] @ (rows[i, a] + columns[j, b])
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                result[i, j, n * head : (n + 1) * head] = (weights[..., None] * v).sum((0, 1))
    return result @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])


@pytest.mark.parametrize("side", [4, 3])
def test_attention_is_its_definition_cell_by_cell(side: int) -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, 4, 8)).astype(np.float32)
    module = RelativeAttention(2, side)
    params = _drawn(module, x)
    found = module.apply({"params": params}, x)
    np.testing.assert_allclose(found, [_slow_attention(params, one, 2) for one in x], atol=1e-4, rtol=1e-4)


def test_a_windowed_block_attends_inside_windows_and_to_their_padding() -> None:
    """As published: the zeros that fill a window up are keys like any other (their key and value are the biases)."""
    x = np.random.default_rng(4).normal(size=(1, 4, 4, 8)).astype(np.float32)
    block = SamBlock(CONFIG, 3)
    params = _drawn(block, x, None, None, False)

    def norm(x: np.ndarray, p: dict) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    y = np.zeros((6, 6, 8), np.float32)
    y[:4, :4] = norm(x[0], params["attention_norm"])
    for top in (0, 3):
        for left in (0, 3):
            window = y[top : top + 3, left : left + 3]
            y[top : top + 3, left : left + 3] = _slow_attention(params["attention"], window, 2)
    z = x[0] + y[:4, :4]
    mlp = params["mlp"]
    hidden = gelu(norm(z, params["mlp_norm"]) @ mlp["wi"]["kernel"] + mlp["wi"]["bias"])
    expected = z + hidden @ mlp["wo"]["kernel"] + mlp["wo"]["bias"]
    found, _ = jax.jit(lambda p: block.apply({"params": p}, x, None, None, False))(params)
    np.testing.assert_allclose(found[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [3, 0])
def test_who_sees_whom(window: int) -> None:
    x = jax.random.normal(jax.random.key(5), (1, 6, 6, 8))
    block = SamBlock(CONFIG, window)
    params = _drawn(block, x, None, None, False)
    # By gradient: which cells does the cell (1, 4), in the window of rows 0-2 and columns 3-5, depend on?
    cell = jax.jit(jax.grad(lambda x: block.apply({"params": params}, x, None, None, False)[0][0, 1, 4].sum()))(x)
    seen = np.asarray(jnp.abs(cell[0]).sum(-1) > 0)
    expected = np.zeros((6, 6), bool)
    expected[:3, 3:] = True
    np.testing.assert_array_equal(seen, expected if window else np.ones((6, 6), bool))


@pytest.fixture(scope="module")
def params() -> dict:
    return _drawn(SamVit(CONFIG), IMAGES)


def test_scanned_and_written_out_are_one_function(params: dict) -> None:
    scanned = SamVit(dataclasses.replace(CONFIG, scan=True))
    stacked = stack_params(stack_params(params, "windowed"), "groups")
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), IMAGES)["params"]
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    found = jax.jit(scanned.apply)({"params": stacked}, IMAGES)
    expected = jax.jit(SamVit(CONFIG).apply)({"params": params}, IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialised_is_the_same_function_in_every_block(params: dict, remat: str) -> None:
    def total(params: dict, config: SamVitConfig) -> jax.Array:
        return (SamVit(config).apply({"params": params}, IMAGES[:1]) ** 2).sum()

    remade = dataclasses.replace(CONFIG, remat=remat)
    # The global blocks, whose logits are the largest arrays of the model, above all.
    program = jax.make_jaxpr(lambda p: total(p, remade))(params)
    assert sum("checkpoint" in str(eqn.primitive) or "remat" in str(eqn.primitive) for eqn in program.eqns) == 4
    for one, other in zip(
        jax.tree.leaves(jax.jit(jax.grad(lambda p: total(p, remade)))(params)),
        jax.tree.leaves(jax.jit(jax.grad(lambda p: total(p, CONFIG)))(params)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-3 * float(jnp.abs(other).max()))


def test_a_patch_is_one_linear_layer_and_the_grid_is_row_by_column(params: dict) -> None:
    """A grid with no block in between would be this; the blocks are switched off by zero output layers."""
    images = np.asarray(jax.random.normal(jax.random.key(6), (1, 12, 20, 3)))
    quiet = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if any(key.key in ("out", "wo") for key in path) else leaf, params
    )
    kernel, bias = (np.asarray(quiet["patch_embedding"][name]) for name in ("kernel", "bias"))
    grid = np.zeros((3, 5, 8))
    for i in range(3):
        for j in range(5):
            patch = images[0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            grid[i, j] = (patch[..., None] * kernel).sum((0, 1, 2)) + bias
    grid += np.asarray(resize_positions(quiet["positions"], 3, 5))

    def norm(x: np.ndarray, p: dict) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    x = norm(grid @ np.asarray(quiet["neck_in"]["kernel"])[0, 0], quiet["neck_in_norm"])
    padded, kernel = np.pad(x, ((1, 1), (1, 1), (0, 0))), np.asarray(quiet["neck_out"]["kernel"])
    y = np.zeros_like(x)
    for i in range(3):
        for j in range(5):
            y[i, j] = (padded[i : i + 3, j : j + 3][..., None] * kernel).sum((0, 1, 2))
    found = jax.jit(SamVit(CONFIG).apply)({"params": quiet}, images)
    np.testing.assert_allclose(found[0], norm(y, quiet["neck_out_norm"]), atol=1e-4, rtol=1e-4)


def test_the_convolutional_stem_gives_the_same_grid() -> None:
    model = SamVit(dataclasses.replace(CONFIG, stem="conv", depth=1, global_blocks=(0,)))
    features, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), IMAGES)
    assert features.shape == (2, 4, 4, 6)
    assert set(variables["params"]["patch_embedding"]) == {"conv_0", "norm_0", "conv_1", "norm_1", "output"}


def test_pictures_are_normalised_and_what_lies_outside_is_zero() -> None:
    images = np.random.default_rng(7).integers(0, 256, (2, 6, 8, 3), np.uint8)
    valid = np.asarray([[6, 3], [2, 8]])
    found = np.asarray(normalize(images, valid, CONFIG.mean, CONFIG.std))
    for image, (height, width), one in zip(images, valid, found, strict=True):
        expected = np.zeros((6, 8, 3))
        for y in range(height):
            for x in range(width):
                expected[y, x] = [(float(image[y, x, c]) - CONFIG.mean[c]) / CONFIG.std[c] for c in range(3)]
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_pixels_outside_the_picture_move_no_feature() -> None:
    rng = np.random.default_rng(8)
    images = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    other = images.copy()
    other[:, 9:], other[:, :, 14:] = rng.integers(0, 256, (2,))
    model = ImageFeatures(dataclasses.replace(CONFIG, depth=1, global_blocks=(0,)))
    valid = np.asarray([[9, 14]])
    params = _drawn(model, images, valid)

    @jax.jit
    def run(images, valid):
        return model.apply({"params": params}, images, valid)

    features = run(images, valid)
    np.testing.assert_array_equal(features, run(other, valid))
    assert np.abs(features - run(images, np.asarray([[10, 14]]))).max() > 1e-3
