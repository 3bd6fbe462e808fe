"""The mask decoder: prompts do not see each other, any grid, one mask or several. Its numbers are held by goldens."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import param_rules
from pixel_align.nn import mask_decoder
from pixel_align.nn.mask_decoder import MaskDecoder, MaskDecoderConfig, Upscale, best

CONFIG = MaskDecoderConfig(width=16, depth=1, num_heads=2, mlp_width=12, quality_width=6)
MODEL = MaskDecoder(CONFIG)
_keys = jax.random.split(jax.random.key(0), 4)
IMAGE = jax.random.normal(_keys[0], (2, 3, 2, 16))
CODE = jax.random.normal(_keys[1], (3, 2, 16))
PROMPT = jax.random.normal(_keys[2], (2, 3, 2, 16))
DENSE = jax.random.normal(_keys[3], (2, 3, 3, 2, 16))


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGE, CODE, PROMPT)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)


_apply = jax.jit(MODEL.apply, static_argnames="several")


def _run(
    params: dict,
    prompt: jax.Array = PROMPT,
    mask: jax.Array | None = None,
    dense: jax.Array | None = None,
    image: jax.Array = IMAGE,
    several: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    logits, iou = _apply({"params": params}, image, CODE, prompt, mask, dense, several=several)
    return np.asarray(logits), np.asarray(iou)


def test_the_published_decoder_has_its_number_of_parameters() -> None:
    """Of the release, to the last one."""
    model = MaskDecoder(MaskDecoderConfig.published())
    inputs = jnp.zeros((1, 2, 2, 256)), jnp.zeros((2, 2, 256)), jnp.zeros((1, 1, 2, 256))
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == 4_058_340


def test_every_prompt_is_answered_as_if_it_were_alone(params: dict) -> None:
    together = _run(params, dense=DENSE)
    assert together[0].shape == (2, 3, 3, 12, 8) and together[1].shape == (2, 3, 3)
    for n in range(3):
        alone = _run(params, PROMPT[:, n : n + 1], dense=DENSE[:, n : n + 1])
        for one, all_ in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[:, 0], all_[:, n], atol=1e-4)
    assert np.abs(together[0][:, 0] - together[0][:, 1]).max() > 1e-2
    # And every picture.
    other = _run(params, dense=DENSE, image=IMAGE.at[1].set(0.0))
    np.testing.assert_array_equal(other[0][0], together[0][0])
    assert np.abs(other[0][1] - together[0][1]).max() > 1e-2


def test_prompt_tokens_that_do_not_exist_are_read_by_nobody(params: dict) -> None:
    mask = jnp.asarray([True, False]) & jnp.ones((2, 3, 1), bool)
    found, iou = _run(params, mask=mask)
    expected, expected_iou = _run(params, PROMPT[:, :, :1])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(iou, expected_iou, atol=1e-4)
    np.testing.assert_array_equal(found, _run(params, PROMPT.at[:, :, 1].set(9.0), mask)[0])
    # Not one of them: the picture alone is asked.
    nothing, _ = _run(params, mask=jnp.zeros((2, 3, 2), bool))
    np.testing.assert_allclose(nothing, _run(params, PROMPT[:, :, :0])[0], atol=1e-4)


def test_one_mask_and_several_are_those_of_different_tokens(params: dict) -> None:
    """Each mask has a network of its own; the first one answers alone."""
    straight = {several: _run(params, several=several) for several in (False, True)}
    assert straight[False][0].shape == (2, 3, 1, 12, 8) and straight[False][1].shape == (2, 3, 1)
    for token in range(4):
        vectors = {**params["mask_vectors"]}
        vectors["output"] = {**vectors["output"], "bias": vectors["output"]["bias"].at[token].add(1.0)}
        quality = {**params["quality"]}
        quality["output"] = {**quality["output"], "bias": quality["output"]["bias"].at[token].add(1.0)}
        changed = {**params, "mask_vectors": vectors, "quality": quality}
        moved = [
            np.any(after != before, axis=tuple(i for i in range(after.ndim) if i != 2))
            for several in (False, True)
            for after, before in zip(_run(changed, several=several), straight[several], strict=True)
        ]
        first, others = np.arange(1) == token, np.arange(1, 4) == token
        for found, expected in zip(moved, (first, first, others, others), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_what_is_dense_may_be_shared(params: dict) -> None:
    """One vector for all cells (no mask) says what it says repeated; nothing is zero."""
    for shared in (DENSE[0, 0, 0, 0], DENSE[:, :1]):
        whole = jnp.broadcast_to(shared, DENSE.shape)
        np.testing.assert_allclose(_run(params, dense=shared)[0], _run(params, dense=whole)[0], atol=1e-5)
    np.testing.assert_array_equal(_run(params)[0], _run(params, dense=jnp.zeros(16))[0])


def test_upscaling_writes_each_cell_into_its_own_four() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 2, 3, 4))
    module = Upscale(5)
    variables = module.init(jax.random.key(2), x)
    kernel = np.asarray(variables["params"]["kernel"])
    np.testing.assert_allclose(kernel.std(), 0.5, rtol=0.3)  # of 4 channels, each cell reads one
    variables = {"params": {"kernel": kernel, "bias": jnp.arange(5.0)}}
    found = np.asarray(module.apply(variables, x))
    assert found.shape == (2, 4, 6, 5)
    for b, y, x_, e in np.ndindex(found.shape):
        expected = np.asarray(x)[b, y // 2, x_ // 2] @ kernel[y % 2, x_ % 2, :, e] + e
        np.testing.assert_allclose(found[b, y, x_, e], expected, atol=1e-5)


def test_the_best_is_that_of_the_highest_predicted_iou() -> None:
    logits = jnp.arange(2 * 1 * 3 * 2 * 2.0).reshape(2, 1, 3, 2, 2)
    chosen, iou = best(logits, jnp.asarray([[[0.1, 0.9, 0.3]], [[0.5, 0.2, 0.6]]]))
    np.testing.assert_array_equal(chosen, np.stack([logits[0, :, 1], logits[1, :, 2]]))
    np.testing.assert_allclose(iou, [[0.9], [0.6]])


def test_half_precision_answers_in_full(params: dict) -> None:
    model = MaskDecoder(dataclasses.replace(CONFIG, dtype="bfloat16"))
    small = jax.tree.map(lambda x: 0.5 * x, params)
    logits, iou = jax.jit(model.apply)({"params": small}, IMAGE, CODE, PROMPT)
    assert logits.dtype == iou.dtype == jnp.float32
    expected = _run(small, several=False)[0]
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_every_parameter_has_its_rules(params: dict) -> None:
    rules = mask_decoder.rules(CONFIG)
    for field in dataclasses.fields(param_rules.PartRules):
        param_rules.match(getattr(rules, field.name), params)
    frozen = mask_decoder.rules(MaskDecoderConfig.published(frozen=True))
    assert not any(jax.tree.leaves(param_rules.match(frozen.trainable, params)))
    decay = param_rules.paths(param_rules.match(rules.weight_decay, params))
    kernels = {path: leaf for path, leaf in decay.items() if path.endswith("kernel")}
    assert set(kernels.values()) == {1.0} and not any(v for path, v in decay.items() if path not in kernels)


def test_widths_that_do_not_fit_are_named() -> None:
    for name, changed in (("image", (IMAGE[..., :8], CODE, PROMPT)), ("prompt", (IMAGE, CODE, PROMPT[..., :8]))):
        with pytest.raises(ValueError, match=f"width of {name} is 8, expected 16"):
            jax.eval_shape(MODEL.init, jax.random.key(0), *changed)
    with pytest.raises(ValueError, match="masks.decoder.width is 20, expected a multiple of 8"):
        MaskDecoderConfig(width=20, num_heads=2)
