"""The extractor: one prompt says what its copies say, prompts do not see each other, each query has its own output."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.prompt_extractor import PromptExtractor, PromptExtractorConfig

CONFIG = PromptExtractorConfig(queries=4, width=16, depth=2, num_heads=2, mlp_width=20, output_width=6)
MODEL = PromptExtractor(CONFIG)
_keys = jax.random.split(jax.random.key(0), 3)
IMAGE = jax.random.normal(_keys[0], (2, 3, 4, 10))
CODE = jax.random.normal(_keys[1], (3, 4, 8))
PROMPT = jax.random.normal(_keys[2], (2, 3, 2, 8))


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGE, CODE, PROMPT)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@jax.jit
def _run(params: dict, prompt: jax.Array, mask: jax.Array | None = None, image: jax.Array = IMAGE) -> jax.Array:
    return MODEL.apply({"params": params}, image, CODE, prompt, mask)


def test_the_published_extractor_has_its_number_of_parameters() -> None:
    """44.03M in the release; the dense output layer that nothing reads there is left out here."""
    model = PromptExtractor(PromptExtractorConfig())
    inputs = jnp.zeros((1, 2, 2, 1280)), jnp.zeros((2, 2, 256)), jnp.zeros((1, 1, 5, 256))
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    assert round((count + 512 * 1024 + 1024) / 1e6, 2) == 44.03


def test_every_prompt_is_answered_as_if_it_were_alone(params: dict) -> None:
    together = _run(params, PROMPT)
    assert together.shape == (2, 3, 4, 6)
    for m in range(3):
        np.testing.assert_allclose(_run(params, PROMPT[:, m : m + 1])[:, 0], together[:, m], atol=1e-5)
    assert np.abs(together[:, 0] - together[:, 1]).max() > 1e-2
    # And every picture: its tokens do not depend on its neighbour in the batch.
    other = _run(params, PROMPT, image=IMAGE.at[1].set(0.0))
    np.testing.assert_array_equal(other[0], together[0])
    assert np.abs(other[1] - together[1]).max() > 1e-2


def test_prompt_tokens_that_do_not_exist_are_read_by_nobody(params: dict) -> None:
    mask = jnp.asarray([True, False])[None, None].repeat(2, 0).repeat(3, 1)
    found = _run(params, PROMPT, mask)
    np.testing.assert_allclose(found, _run(params, PROMPT[:, :, :1]), atol=1e-5)
    np.testing.assert_array_equal(found, _run(params, PROMPT.at[:, :, 1].set(9.0), mask))


def test_each_query_has_its_own_output_layer(params: dict) -> None:
    straight = _run(params, PROMPT)
    for q in (0, 3):
        other = {**params, "output_kernel": params["output_kernel"].at[q].add(1.0)}
        moved = np.any(_run(other, PROMPT) != straight, axis=(0, 1, 3))
        np.testing.assert_array_equal(moved, np.arange(4) == q)


def test_the_grid_has_places(params: dict) -> None:
    """The same cells in another order, with their codes, are the same picture; without their codes they are not."""
    order = np.random.default_rng(2).permutation(12)
    image = IMAGE.reshape(2, 12, 10)[:, order].reshape(IMAGE.shape)
    code = CODE.reshape(12, 8)[order].reshape(CODE.shape)
    straight = _run(params, PROMPT)
    np.testing.assert_allclose(jax.jit(MODEL.apply)({"params": params}, image, code, PROMPT), straight, atol=1e-4)
    assert np.abs(_run(params, PROMPT, image=image) - straight).max() > 1e-2


def test_the_image_is_projected_once_whatever_the_number_of_prompts(params: dict) -> None:
    """What prompts add to the work is theirs alone: the cost grows by equal steps, the projections of the picture
    stand outside of them.
    """
    model = PromptExtractor(dataclasses.replace(CONFIG, depth=1))
    shapes = []

    def record(next_method, args, kwargs, context):
        names = ("image_projection", "code_projection", "two_way")
        if context.module.name in names and context.method_name == "__call__":
            shapes.append((context.module.name, args[0].shape))
        return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), IMAGE, CODE, PROMPT)
    assert shapes == [
        ("image_projection", (2, 3, 4, 10)),
        ("code_projection", (3, 4, 8)),
        ("two_way", (2 * 3, 4 + 2, 16)),
    ]
