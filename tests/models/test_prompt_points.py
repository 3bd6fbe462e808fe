"""Prompts of points: which tokens exist, what moves the model, and how an example's points reach the batch."""

import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from pixel_align import batch, data, geometry
from pixel_align.batch import PromptPoints, Shape
from pixel_align.converter import PixelFeatureConverter
from pixel_align.models.pixel_llm import PixelLLM, PixelLLMConfig
from pixel_align.nn.prompt_encoder import PromptEncoder, PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig

B, M, K, CANVAS = 2, 3, 4, 32
RNG = np.random.default_rng(0)
BOXES = np.sort(RNG.uniform(size=(B, M, 2, 2)), axis=2).reshape(B, M, 4).astype(np.float32)
POINTS = PromptPoints(
    xy=RNG.uniform(size=(B, M, K, 2)).astype(np.float32),
    mask=np.asarray([[[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], [[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]]], bool),
    foreground=RNG.uniform(size=(B, M, K)) < 0.5,
    boxed=np.asarray([[True, True, False], [False, False, True]]),
)
ENCODER = PromptEncoder(PromptEncoderConfig(width=64, points=True, padding_tokens=2))
MODEL = PixelLLM(
    PixelLLMConfig.tiny(
        shape=Shape(canvas=CANVAS, text=4, prompts=M, regions=M, prompt_points=K),
        image=SamVitConfig.tiny(patch_size=8, depth=1, global_blocks=(0,)),
        prompt=PromptEncoderConfig(width=64, points=True),
        extractor=PromptExtractorConfig.tiny(depth=1),
    )
)
FEATURES = jax.random.normal(jax.random.key(1), (B, 4, 4, 64))


def test_a_prompt_is_its_points_its_box_or_both() -> None:
    params = ENCODER.init(jax.random.key(0), BOXES, CANVAS, POINTS)["params"]
    tokens, mask = ENCODER.apply({"params": params}, BOXES, CANVAS, POINTS)
    assert tokens.shape == (B, M, K + 1 + 2 + 2, 64)
    for i, j in np.ndindex(B, M):
        boxed = POINTS.boxed[i, j]
        assert mask[i, j].tolist() == [*POINTS.mask[i, j], not boxed, boxed, boxed, True, True]
    for k in range(K):
        one = dataclasses.replace(POINTS, xy=POINTS.xy[:, :, k : k + 1], foreground=POINTS.foreground[:, :, k : k + 1])
        alone = ENCODER.apply({"params": params}, one.xy, one.foreground, CANVAS, method="points")
        np.testing.assert_array_equal(tokens[:, :, k], alone[:, :, 0])
    np.testing.assert_array_equal(tokens[:, :, K], np.broadcast_to(params["no_point_embedding"], (B, M, 64)))
    without, none = ENCODER.apply({"params": params}, BOXES, CANVAS)
    assert none is None
    np.testing.assert_array_equal(tokens[:, :, K + 1 :], without)


@pytest.fixture(scope="module")
def params() -> Any:
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), batch.zeros(MODEL.config.shape, B)))["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@jax.jit
def _visual(params: Any, boxes: jax.Array, points: PromptPoints) -> jax.Array:
    return MODEL.apply({"params": params}, FEATURES, boxes, points, method="encode_prompt")


def test_only_what_exists_moves_the_visual_tokens(params: Any) -> None:
    """What lies under a False of a mask can be anything; what lies under a True matters."""
    before = np.asarray(_visual(params, BOXES, POINTS))
    hidden = np.where(POINTS.mask[..., None], POINTS.xy, 1 - POINTS.xy)
    labels = np.where(POINTS.mask, POINTS.foreground, ~POINTS.foreground)
    boxes = np.where(POINTS.boxed[..., None], BOXES, 0.5)
    after = _visual(params, boxes, dataclasses.replace(POINTS, xy=hidden, foreground=labels))
    np.testing.assert_allclose(after, before, atol=1e-5)

    def moved(boxes: np.ndarray, **changes: Any) -> np.ndarray:
        difference = np.abs(np.asarray(_visual(params, boxes, dataclasses.replace(POINTS, **changes))) - before)
        return difference.max(axis=(2, 3)) > 1e-3

    pointed = POINTS.mask.any(axis=-1)
    np.testing.assert_array_equal(moved(BOXES, xy=1 - POINTS.xy), pointed)
    np.testing.assert_array_equal(moved(BOXES, foreground=~POINTS.foreground), pointed)
    np.testing.assert_array_equal(moved(BOXES / 2), POINTS.boxed)
    assert moved(BOXES, boxed=~POINTS.boxed).all()


def test_the_order_of_the_points_says_nothing(params: Any) -> None:
    turned = jax.tree.map(lambda x: x[:, :, ::-1] if x.ndim > 2 else x, POINTS)
    np.testing.assert_allclose(_visual(params, BOXES, turned), _visual(params, BOXES, POINTS), atol=1e-4)


def test_points_without_an_encoder_of_points_are_refused() -> None:
    with pytest.raises(ValueError, match="model.shape.prompt_points is 4 and model.prompt.points is False"):
        PixelLLMConfig(shape=Shape(canvas=384, prompt_points=4))


class _Words:
    """A vocabulary that is never asked for much: every character is a token."""

    pad_id, bos_id, eos_id = 0, 0, 1

    def encode(self, text: str) -> np.ndarray:
        return np.asarray([2 + ord(c) % 60 for c in text], np.int32)

    def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self.encode(text), np.asarray([[i, i + 1] for i in range(len(text))], np.int32).reshape(-1, 2)


def _example(**more: Any) -> dict[str, Any]:
    """A picture of 40 x 20 pixels with one word, said of its left half."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(file, "PNG")
    return {
        "image": file.getvalue(),
        "example_id": "1#0",
        "text": "a",
        "instruction": "",
        "word_spans": np.asarray([[0, 1]]),
        "word_boxes": np.asarray([[0.0, 0.25, 0.5, 0.75]], np.float32),
        "word_located": np.asarray([True]),
        "object_boxes": np.zeros((0, 4), np.float32),
        "object_names": [],
        **more,
    }


def test_points_of_an_example_stand_on_the_canvas() -> None:
    """A picture of 40 x 20 covers the upper half of the canvas: y halves; the points are cut to K."""
    shape = Shape(canvas=32, text=4, regions=2, prompts=2, prompt_points=3)
    converter = PixelFeatureConverter(shape, _Words())  # type: ignore[arg-type]
    given = np.asarray([[0.5, 0.5], [1.5, 0.5], [0.25, 1.0]], np.float32)
    row, _ = converter(_example(prompt_points=given, prompt_foreground=np.asarray([True, True, False])))
    points = row.prompt_points
    assert points is not None
    np.testing.assert_allclose(points.xy[0, :2], [[0.5, 0.25], [0.25, 0.5]], atol=1e-6)
    assert points.mask.tolist() == [[True, True, False], [False] * 3], "a point outside the picture is dropped"
    assert points.foreground[0, :2].tolist() == [True, False]
    # The second prompt is of a region that does not exist: it asks about the whole picture.
    assert points.boxed.tolist() == [False, True]
    batch.check(data.stack([row]), batch.spec(shape, 1))

    row, placement = converter(_example())
    assert row.prompt_points is not None and not row.prompt_points.mask.any() and row.prompt_points.boxed.all()
    np.testing.assert_array_equal(row.prompt_boxes, np.tile(placement.valid_box, (2, 1)))
    boxes_only = PixelFeatureConverter(Shape(canvas=32, text=4), _Words())  # type: ignore[arg-type]
    assert boxes_only(_example())[0].prompt_points is None


@pytest.mark.parametrize(("kind", "points"), [("corner", 2), ("solid", 9), ("solid", 4), ("donut", 8), ("donut", 12)])
def test_the_grid_of_a_box_is_a_setting(kind: str, points: int) -> None:
    shape = Shape(canvas=32, text=4, points=points, point_grid=kind)  # type: ignore[arg-type]
    row, _ = PixelFeatureConverter(shape, _Words())(_example())  # type: ignore[arg-type]
    assert row.token_points.shape == (1, 4, points, 2)
    assert row.locate.tolist() == [[False, True, False, False]]
    box = np.asarray([0.0, 0.125, 0.5, 0.375])
    np.testing.assert_allclose(geometry.points_to_boxes(row.token_points[0, 1]), box, atol=1e-6)
    at = {tuple(np.round((xy - box[:2]) / (box[2:] - box[:2]), 6)) for xy in row.token_points[0, 1]}
    assert len(at) == points
    if kind == "donut":
        assert all(0 in xy or 1 in xy for xy in at)


@pytest.mark.parametrize(("kind", "points"), [("corner", 4), ("solid", 8), ("solid", 1), ("donut", 9), ("donut", 0)])
def test_numbers_of_points_that_no_grid_has_are_refused(kind: str, points: int) -> None:
    with pytest.raises(ValueError, match=f"points is {points}, expected .* for a {kind} grid"):
        geometry.points_per_side(kind, points)
