"""RoIAlign in place of the extractor: each visual token is of its own part of the box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import param_rules
from pixel_align.batch import Shape, zeros
from pixel_align.models import pixel_llm
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.roi_extractor import RoiExtractor, RoiExtractorConfig, rules

CONFIG = RoiExtractorConfig.tiny(output_width=3)


def linear(image: jax.Array, boxes: jax.Array, prompt: jax.Array) -> jax.Array:
    """Tokens where all that is learned is switched off but the projection of the image, which is the identity."""
    params = RoiExtractor(CONFIG).init(jax.random.key(0), image, boxes, prompt)["params"]
    params = jax.tree.map(jnp.zeros_like, params)
    params["image_projection"]["kernel"] = jnp.eye(3)
    params["prompt_projection"]["kernel"] = jnp.ones_like(params["prompt_projection"]["kernel"])
    return RoiExtractor(CONFIG).apply({"params": params}, image, boxes, prompt)


def test_tokens_are_the_quarters_of_the_box_row_by_row_and_the_prompt_is_added() -> None:
    x, y = np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(16) + 0.5) / 16)
    image = jnp.asarray(np.stack([x, y, np.ones_like(x)], axis=-1)[None], jnp.float32)
    boxes = jnp.asarray([[[0.25, 0.25, 0.75, 0.5], [0.1, 0.5, 0.5, 0.9]]])
    tokens = linear(image, boxes, jnp.zeros((1, 2, 2, 5)))
    # Features are the coordinates: a bin's mean is its middle.
    np.testing.assert_allclose(
        tokens[0, 0, :, :2], [[0.375, 0.3125], [0.625, 0.3125], [0.375, 0.4375], [0.625, 0.4375]], atol=1e-5
    )
    np.testing.assert_allclose(tokens[0, 1, :, :2], [[0.2, 0.6], [0.4, 0.6], [0.2, 0.8], [0.4, 0.8]], atol=1e-5)
    told = linear(image, boxes, jnp.ones((1, 2, 2, 5)) * jnp.asarray([1.0, 0.0])[:, None, None])
    np.testing.assert_allclose(told - tokens, np.broadcast_to([[[[10.0]], [[0.0]]]], tokens.shape), atol=1e-5)


def test_a_model_takes_it_and_its_rules_cover_it() -> None:
    config = PixelLLMConfig.tiny(
        extractor=RoiExtractorConfig.tiny(), shape=Shape(canvas=112, regions=2, prompts=2, text=4, instruction=2)
    )
    empty = zeros(config.shape, 1)
    module = pixel_llm.PixelLLM(config)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), empty))["params"]
    assert {"image_projection", "prompt_projection", "positions"} == set(params["extractor"])
    for listed in pixel_llm.rules(config).values():
        param_rules.match(listed, params)
    outputs = jax.eval_shape(lambda p: module.apply({"params": p}, empty), params)
    assert outputs.points.shape == (1, 2, 4, 2, 2)
    frozen = rules(RoiExtractorConfig.tiny(frozen=True)).trainable
    assert not any(jax.tree.leaves(param_rules.match(frozen, params["extractor"])))


def test_prompts_that_are_no_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape.prompt_points is 3 with model.extractor.kind 'roi', expected 0"):
        PixelLLMConfig.tiny(extractor=RoiExtractorConfig.tiny(), shape=Shape(canvas=112, prompt_points=3))
    with pytest.raises(ValueError, match="extractor.side is 0, expected 1 or more"):
        RoiExtractorConfig(side=0)
