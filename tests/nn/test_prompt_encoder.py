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
