"""One map from one or two encoders: whose channels, on which grid, in whose colours, and where a cell lies."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.batch import Shape, zeros
from pixel_align.models.pixel_llm import PixelLLM, PixelLLMConfig, loss
from pixel_align.nn.eva_vit import EvaVit, EvaVitConfig
from pixel_align.nn.image_features import (
    FusionConfig,
    ImageConfig,
    ImageFeatures,
    encoders,
    extent,
    fuse,
    grid,
    normalize,
    output_width,
)
from pixel_align.nn.prompt_encoder import PromptEncoder
from pixel_align.nn.region_head import RegionHeadConfig, grid_anchors
from pixel_align.nn.sam_vit import SamVit, SamVitConfig

EVA = EvaVitConfig.tiny(patch_size=4, width=16, num_heads=2, mlp_width=16, depth=1)
SAM = SamVitConfig.tiny(
    patch_size=8, width=16, num_heads=2, depth=1, global_blocks=(0,), pretrain_grid=4, output_width=8
)
BOTH = FusionConfig(eva=EVA, sam=SAM)
SIZE = np.asarray([[32, 24], [20, 32]], np.int32)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


def _drawn(config: ImageConfig) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(ImageFeatures(config).init, jax.random.key(0), IMAGES, SIZE)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def _features(config: ImageConfig, params: Any, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.asarray(jax.jit(ImageFeatures(config).apply)({"params": params}, images, SIZE))


def test_the_published_pair_makes_one_map_of_1280_channels() -> None:
    published = FusionConfig()
    features = jax.eval_shape(
        lambda images, size: ImageFeatures(published).init_with_output(jax.random.key(0), images, size)[0],
        jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.uint8),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    assert features.shape == (1, 27, 27, 1280)
    assert (*grid(published, 384), output_width(published)) == features.shape[1:]
    assert {name: encoder.frozen for name, encoder in encoders(published).items()} == {"eva": False, "sam": True}


@pytest.mark.parametrize(
    ("config", "canvas", "side"),
    [
        (SamVitConfig(), 384, 24),
        (EvaVitConfig(), 384, 27),
        (FusionConfig(), 224, 16),
        (SamVitConfig.tiny(patch_size=8, stem="conv"), 64, 8),
        (EvaVitConfig.tiny(), 60, 4),
    ],
)
def test_the_grid_is_that_of_the_map(config: ImageConfig, canvas: int, side: int) -> None:
    assert grid(config, canvas) == (side, side)
    shapes = jax.eval_shape(
        lambda: ImageFeatures(config).init_with_output(
            jax.random.key(0), jnp.zeros((1, canvas, canvas, 3), jnp.uint8), jnp.asarray([[canvas, canvas]])
        )[0]
    )
    assert shapes.shape == (1, side, side, output_width(config))


def test_each_encoder_sees_its_own_colours_and_has_its_own_channels() -> None:
    params = _drawn(BOTH)
    assert sorted(params) == ["eva", "sam"]
    found = _features(BOTH, params)
    assert found.shape == (2, 8, 8, 24)
    eva = jax.jit(EvaVit(EVA).apply)({"params": params["eva"]}, normalize(IMAGES, SIZE, EVA.mean, EVA.std))
    sam = jax.jit(SamVit(SAM).apply)({"params": params["sam"]}, normalize(IMAGES, SIZE, SAM.mean, SAM.std))
    np.testing.assert_allclose(found[..., :16], eva, atol=1e-4)
    assert sam.shape == (2, 4, 4, 8)
    np.testing.assert_allclose(found[..., 16:], jax.image.resize(sam, (2, 8, 8, 8), "cubic"), atol=1e-4)
    np.testing.assert_allclose(found[..., :16], _features(EVA, {"eva": params["eva"]}), atol=1e-4)


def test_what_lies_outside_a_picture_is_not_seen() -> None:
    params = _drawn(BOTH)
    inside = (np.arange(32)[None, :, None] < SIZE[:, :1, None]) & (np.arange(32)[None, None] < SIZE[:, 1:, None])
    others = np.where(inside[..., None], IMAGES, 255 - IMAGES)
    assert (others != IMAGES).any()
    np.testing.assert_array_equal(_features(BOTH, params, others), _features(BOTH, params))


def test_maps_are_laid_on_each_other_corner_to_corner() -> None:
    """A ramp across the canvas is the same ramp on every grid: fused maps agree on where a cell lies, edges aside."""

    def ramp(side: int) -> jax.Array:
        return jnp.broadcast_to(((jnp.arange(side) + 0.5) / side)[None, None, :, None], (1, side, side, 1))

    fused = np.asarray(fuse([ramp(27), ramp(24)]))
    assert fused.shape == (1, 27, 27, 2)
    np.testing.assert_allclose(fused[:, :, 2:-2, 0], fused[:, :, 2:-2, 1], atol=1e-4)


def test_a_map_of_half_precision_is_resized_in_full() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3), jnp.bfloat16)
    fused = fuse([jnp.zeros((1, 9, 9, 1), jnp.bfloat16), x])
    assert fused.dtype == jnp.bfloat16
    exact = jax.image.resize(x.astype(jnp.float32), (1, 9, 9, 3), "cubic").astype(jnp.bfloat16)
    np.testing.assert_array_equal(fused[..., 1:], exact)


def test_drop_path_runs_in_training_and_never_in_a_frozen_encoder() -> None:
    config = dataclasses.replace(BOTH, eva=dataclasses.replace(EVA, depth=2, drop_path=0.9))
    params = _drawn(config)
    frozen = dataclasses.replace(config, eva=dataclasses.replace(config.eva, frozen=True))

    def run(config: ImageConfig, train: bool) -> np.ndarray:
        rngs = {"dropout": jax.random.key(0)}
        apply = jax.jit(ImageFeatures(config).apply, static_argnames="train")
        return np.asarray(apply({"params": params}, IMAGES, SIZE, train=train, rngs=rngs))

    expected = run(config, train=False)
    assert np.abs(run(config, train=True) - expected).max() > 0.01
    np.testing.assert_array_equal(run(frozen, train=True), expected)


@pytest.mark.parametrize(
    ("config", "canvas", "message"),
    [
        (
            SamVitConfig(),
            8,
            "canvas is 8, expected a multiple of 16, the patch of sam_vit. Set model.shape.canvas to 16.",
        ),
        (
            FusionConfig(),
            60,
            "canvas is 60, expected a multiple of 16, the patch of sam_vit. Set model.shape.canvas to 48",
        ),
        (SamVitConfig.tiny(patch_size=8, stem="conv"), 60, "canvas is 60, expected a multiple of 8"),
        (EvaVitConfig(), 5, "canvas is 5, expected 14 or more, the patch of eva_vit. Set model.shape.canvas higher."),
    ],
)
def test_a_canvas_that_an_encoder_cannot_read_is_refused(config: ImageConfig, canvas: int, message: str) -> None:
    for ask in (
        lambda: grid(config, canvas),
        lambda: PixelLLMConfig(image=config, shape=Shape(canvas=canvas)),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            ask()


def test_pictures_that_whole_patches_do_not_cover_are_not_cropped_silently() -> None:
    model = SamVit(SamVitConfig.tiny(patch_size=8))
    with pytest.raises(ValueError, match="canvas is 60, expected a multiple of 8"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 60, 3)))


@pytest.mark.parametrize("whole", [True, False])
def test_a_cell_lies_where_its_pixels_are(whole: bool) -> None:
    """Found by changing pixels: which of them the last cell of EVA's patch layer reads. SAM's map covers the canvas."""
    canvas, patch = 52, 14
    config = EvaVitConfig.tiny(whole_canvas=whole)
    encoder = EvaVit(config)
    side = config.grid(canvas)

    def last_cell(column: jax.Array) -> jax.Array:
        fitted = encoder._fitted(jnp.broadcast_to(column[None, None, :, None], (1, canvas, canvas, 3)))
        return fitted[0, 0, (side - 1) * patch : side * patch, 0].sum()

    read = np.flatnonzero(np.abs(jax.grad(last_cell)(jnp.zeros(canvas))) > 1e-3)
    middle = (read.min() + read.max() + 1) / 2 / canvas
    assert abs(grid_anchors(side, side, extent(config, canvas))[-1, 0] - middle) < 1 / canvas
    assert (read.max() == canvas - 1) == whole
    assert extent(config, canvas) == (1.0 if whole else 42 / 52)
    assert extent(SamVitConfig(), 384) == 1.0
    # As published: what is fused stands for its part of the whole canvas.
    assert extent(FusionConfig(), 384) == 1.0 and not FusionConfig().eva.whole_canvas


def test_all_who_place_cells_take_the_part_of_the_canvas_that_the_map_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors and the code of the grid; the loss asks with the same anchors and with their spacing."""
    config = PixelLLMConfig.tiny(
        shape=Shape(canvas=48, text=4, instruction=2, objects=1, phrase=2),
        image=EvaVitConfig.tiny(whole_canvas=False),
        regions=RegionHeadConfig(enabled=True, on_queries=False),
    )
    part, side, seen = 42 / 48, 3, []

    def anchors(*grid: Any) -> jax.Array:
        seen.append(grid)
        return grid_anchors(*grid)

    def asked(found: Any, told: Any, anchors: Any, spacing: Any, weights: Any) -> Any:
        seen.append(spacing)
        return jnp.zeros(()), jnp.ones(())

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "grid":
            seen.append(args)
        return call(*args, **kwargs)

    monkeypatch.setattr("pixel_align.models.pixel_llm.grid_anchors", anchors)
    monkeypatch.setattr("pixel_align.losses.regions", asked)
    filled = zeros(config.shape, 1)
    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda: loss(PixelLLM(config).init_with_output(jax.random.key(0), filled)[0], filled, config)["map_regions"]
        )
    # The code of the grid, the anchors of the head, those of the loss, their spacing.
    assert seen == [(side, side, part)] * 3 + [(part / side, part / side)]
    np.testing.assert_allclose(grid_anchors(side, side, part)[-1], [2.5 / side * part] * 2, atol=1e-6)
    encoder = PromptEncoder(config.prompt)
    params = encoder.init(jax.random.key(0), 1, 2, method="grid")
    code, whole = (encoder.apply(params, 1, 2, *rest, method="grid") for rest in ((part,), ()))
    at = encoder.bind(params).positions(jnp.asarray([[[0.25, 0.5], [0.75, 0.5]]]) * part)
    np.testing.assert_allclose(code, at, atol=1e-4)
    assert np.abs(code - whole).max() > 0.1
