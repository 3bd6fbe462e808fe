"""Prompts: the random-Fourier code and Segment Anything's tokens, against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.prompt_encoder import PromptEncoder, PromptEncoderConfig, RandomFourier

CANVAS, WIDTH = 32, 12
BOXES = np.asarray([[[0.0, 0.0, 1.0, 1.0], [0.1, 0.4, 0.3, 0.9]]], np.float32)


@pytest.fixture(scope="module")
def encoder() -> tuple[PromptEncoder, dict]:
    module = PromptEncoder(PromptEncoderConfig(width=WIDTH, padding_tokens=3))
    return module, module.init(jax.random.key(0), BOXES, CANVAS, method="boxes")["params"]


def _code(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """Of one point in [0, 1], in the release's order: to [-1, 1], projected, times 2 pi, sines then cosines."""
    angles = 2 * math.pi * ((2 * x - 1) * matrix[0] + (2 * y - 1) * matrix[1])
    return np.concatenate([np.sin(angles), np.cos(angles)])


def test_the_code_is_sines_and_cosines_of_random_projections() -> None:
    xy = np.random.default_rng(0).uniform(size=(2, 3, 2)).astype(np.float32)
    module = RandomFourier(5)
    variables = module.init(jax.random.key(1), xy)
    matrix = np.asarray(variables["params"]["gaussian"])
    expected = [[_code(matrix, *point) for point in row] for row in xy]
    np.testing.assert_allclose(module.apply(variables, xy), expected, atol=1e-4)


def test_a_box_is_its_two_corners_and_padding(encoder: tuple[PromptEncoder, dict]) -> None:
    module, params = encoder
    tokens = np.asarray(module.apply({"params": params}, BOXES, CANVAS, method="boxes"))
    assert tokens.shape == (1, 2, 5, WIDTH)
    matrix, kinds = np.asarray(params["positions"]["gaussian"]), np.asarray(params["point_embeddings"])
    for box, found in zip(BOXES[0], tokens[0], strict=True):
        # In pixels of the canvas, as the release has it: (pixel + 0.5) / size.
        x0, y0, x1, y1 = ((float(c) * CANVAS + 0.5) / CANVAS for c in box)
        np.testing.assert_allclose(found[0], _code(matrix, x0, y0) + kinds[2], atol=1e-4)
        np.testing.assert_allclose(found[1], _code(matrix, x1, y1) + kinds[3], atol=1e-4)
        np.testing.assert_array_equal(found[2:], np.stack([params["no_mask_embedding"]] * 3))


def test_without_padding_a_box_is_two_tokens() -> None:
    module = PromptEncoder(PromptEncoderConfig(width=WIDTH))
    variables = module.init(jax.random.key(0), BOXES, CANVAS, method="boxes")
    assert module.apply(variables, BOXES, CANVAS, method="boxes").shape == (1, 2, 2, WIDTH)
    assert set(variables["params"]) == {"positions", "point_embeddings"}


def test_points_say_whether_they_are_on_the_object(encoder: tuple[PromptEncoder, dict]) -> None:
    module, params = encoder
    points = np.asarray([[0.2, 0.7], [0.5, 0.1]], np.float32)
    tokens = module.apply({"params": params}, points, np.asarray([True, False]), CANVAS, method="points")
    matrix, kinds = np.asarray(params["positions"]["gaussian"]), np.asarray(params["point_embeddings"])
    for (x, y), kind, found in zip(points, (kinds[1], kinds[0]), tokens, strict=True):
        np.testing.assert_allclose(found, _code(matrix, x + 0.5 / CANVAS, y + 0.5 / CANVAS) + kind, atol=1e-4)


def test_the_code_of_the_grid_is_that_of_its_cells_centres(encoder: tuple[PromptEncoder, dict]) -> None:
    module, params = encoder
    found = module.apply({"params": params}, 3, 4, method="grid")
    matrix = np.asarray(params["positions"]["gaussian"])
    expected = [[_code(matrix, (j + 0.5) / 4, (i + 0.5) / 3) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_projection_gets_no_gradient_and_the_kinds_do(encoder: tuple[PromptEncoder, dict]) -> None:
    module, params = encoder
    gradient = jax.grad(lambda p: (module.apply({"params": p}, BOXES, CANVAS, method="boxes") ** 3).sum())(params)
    assert not np.any(gradient["positions"]["gaussian"])
    np.testing.assert_array_equal(np.any(gradient["point_embeddings"], axis=1), [False, False, True, True])


def test_the_published_encoder_has_its_number_of_parameters() -> None:
    """1,792 in the release: ours lacks its "not a point" embedding, which no box prompt reads."""
    module = PromptEncoder(PromptEncoderConfig(padding_tokens=3))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(BOXES), CANVAS, method="boxes"))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == 1792 - 256


# Masks

DRAWN = np.random.default_rng(1).normal(size=(2, 3, 8, 12)).astype(np.float32)
MASKED = PromptEncoder(PromptEncoderConfig(width=WIDTH, masks=True))


@pytest.fixture(scope="module")
def masked() -> dict:
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(lambda: MASKED.init(jax.random.key(0), DRAWN, method="dense"))["params"]
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def _slow_dense(p: dict, mask: np.ndarray) -> np.ndarray:
    """The release's layers on one mask [4h, 4w], patch by patch."""
    x = mask[..., None].astype(np.float64)
    for i in range(2):
        kernel, grown = p[f"conv_{i}"]["kernel"], []
        for y in range(0, x.shape[0], 2):
            for z in range(0, x.shape[1], 2):
                cell = sum(x[y + a, z + b] @ kernel[a, b] for a in range(2) for b in range(2)) + p[f"conv_{i}"]["bias"]
                cell = (cell - cell.mean()) / math.sqrt(cell.var() + 1e-6)
                cell = cell * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"]
                grown.append([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in cell])
        x = np.asarray(grown).reshape(x.shape[0] // 2, x.shape[1] // 2, -1)
    return x @ p["output"]["kernel"] + p["output"]["bias"]


def test_a_mask_becomes_a_map_over_the_cells_of_the_image(masked: dict) -> None:
    found = np.asarray(MASKED.apply({"params": masked}, DRAWN, method="dense"))
    assert found.shape == (2, 3, 2, 3, WIDTH) and found.dtype == np.float32
    for b, m in ((0, 0), (1, 2)):
        np.testing.assert_allclose(found[b, m], _slow_dense(masked["mask_downscaling"], DRAWN[b, m]), atol=1e-4)
    drawn = MASKED.apply({"params": masked}, DRAWN > 0, method="dense")
    np.testing.assert_array_equal(
        drawn, MASKED.apply({"params": masked}, np.float32(np.where(DRAWN > 0, 10, -10)), method="dense")
    )


def test_a_prompt_without_a_mask_says_so_in_every_cell(masked: dict) -> None:
    nothing = MASKED.apply({"params": masked}, method="dense")
    np.testing.assert_array_equal(nothing, masked["no_mask_embedding"])
    given = np.asarray([[True, False, True], [False, False, True]])
    found = MASKED.apply({"params": masked}, DRAWN, given, method="dense")
    all_ = MASKED.apply({"params": masked}, DRAWN, method="dense")
    for b, m in np.ndindex(2, 3):
        expected = all_[b, m] if given[b, m] else np.broadcast_to(nothing, all_[b, m].shape)
        np.testing.assert_array_equal(found[b, m], expected)


def test_masks_off_the_grid_are_refused(masked: dict) -> None:
    with pytest.raises(ValueError, match="masks of prompts have 8 x 10 cells, expected four times the grid"):
        MASKED.apply({"params": masked}, DRAWN[..., :10], method="dense")


def test_reading_masks_brings_the_layers_of_the_release(masked: dict) -> None:
    """4,684 parameters at the published width, and "no mask"."""
    assert set(masked) == {"point_embeddings", "no_mask_embedding", "mask_downscaling"}
    module = PromptEncoder(PromptEncoderConfig(masks=True))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), DRAWN, method="dense"))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["mask_downscaling"])) == 4684
