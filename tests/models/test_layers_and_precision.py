"""Two ways to compute the same model: layers scanned or written out, products at full or at half precision."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from pixel_align import param_rules
from pixel_align.batch import Batch, Shape, spec
from pixel_align.models.pixel_llm import PixelLLM, PixelLLMConfig, loss, rules
from pixel_align.nn.stack import stack_params, unstack_params
from pixel_align.optim import Optim, optimizer
from pixel_align.settings import override

STACKS = ("windowed", "groups", "layers")  # innermost first
SCANNED = override(
    PixelLLMConfig.tiny(shape=Shape(canvas=64, text=6, instruction=2)),
    [
        *("image.eva.layer_decay=0.5", "image.eva.drop_path=0", "text.dropout_rate=0"),
        *("image.sam.frozen=false", "text.frozen=false", "prompt.frozen=false"),
    ],
)
WRITTEN_OUT = override(
    SCANNED, ["image.eva.scan=false", "image.sam.scan=false", "text.scan=false", "extractor.scan=false"]
)
HALF = ["image.eva.dtype=bfloat16", "image.sam.dtype=bfloat16", "extractor.dtype=bfloat16", "text.dtype=bfloat16"]


def _batch(shape: Shape) -> Batch:
    """Numbers that could be a batch: tokens of the vocabulary, the whole picture, all masks on."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == np.bool_:
            return np.ones(leaf.shape, bool)
        if np.issubdtype(leaf.dtype, np.integer):
            return rng.integers(2, 200, leaf.shape).astype(leaf.dtype)
        return rng.uniform(size=leaf.shape).astype(leaf.dtype)

    drawn = jax.tree.map(draw, spec(shape, 2))
    return dataclasses.replace(drawn, valid_size=np.full((2, 2), shape.canvas, np.int32))


def _drawn(config: PixelLLMConfig) -> Any:
    shapes = jax.eval_shape(lambda: PixelLLM(config).init(jax.random.key(0), _batch(config.shape)))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def _total(config: PixelLLMConfig, params: Any, batch: Batch) -> jax.Array:
    outputs = PixelLLM(config).apply({"params": params}, batch)
    terms = loss(outputs, batch, config).values()
    return sum((weight * total / count for weight, (total, count) in terms), jnp.zeros(()))


def _restack(params: Any, change: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        params = {**params, **{part: change(params[part], name) for part in ("image", "text", "extractor")}}
    return params


def test_scanned_and_written_out_layers_make_the_same_update() -> None:
    """Loss, weight decay, and a learning rate that falls with depth: on a stacked leaf each layer gets its own."""
    batch = _batch(SCANNED.shape)
    # With Adam's own epsilon a gradient is divided by itself: where it is next to nothing, rounding would decide.
    optim = Optim(peak_lr=0.1, warmup_steps=0, weight_decay=0.1, clip_norm=0.0, epsilon=1e-2)

    def update(config: PixelLLMConfig, params: Any) -> tuple[Any, Any]:
        listed = rules(config)
        transformation = optimizer(optim, 10, params, listed)
        params, frozen = param_rules.split(params, param_rules.match(listed["trainable"], params))

        @jax.jit
        def step(params: Any) -> tuple[jax.Array, Any]:
            value, gradient = jax.value_and_grad(lambda p: _total(config, param_rules.merge(p, frozen), batch))(params)
            return value, transformation.update(gradient, transformation.init(params), params)[0]

        return step(params)

    params = _drawn(SCANNED)
    value, updates = update(SCANNED, params)
    apart = _restack(params, unstack_params, STACKS[::-1])
    other_value, others = update(WRITTEN_OUT, apart)
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    together = param_rules.paths(_restack(others, stack_params, STACKS))
    found = param_rules.paths(updates)
    assert found.keys() == together.keys()
    for path, leaf in found.items():
        largest = np.abs(leaf).max()
        np.testing.assert_allclose(leaf, together[path], atol=1e-3 * largest + 1e-7, err_msg=path)
        assert largest > 1e-5 or not path.endswith("/mlp/wo/kernel"), f"{path} should learn something"


# What stays float32 in a model that computes in bfloat16, by where it stands; "" is a resize of a table or a map.
FLOAT32 = r"|.*attention/bhwnd,[hw]kd->bnhwk|.*positions|.*/location/(hidden_\d|output)|.*rotary.*"


def test_half_precision_computes_its_products_in_half_precision() -> None:
    config = override(SCANNED, HALF)
    batch = _batch(config.shape)
    params = jax.eval_shape(lambda: PixelLLM(config).init(jax.random.key(0), batch))["params"]
    found: dict[bool, list[str]] = {True: [], False: []}

    def walk(jaxpr: Jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                half = all(value.aval.dtype == jnp.bfloat16 for value in equation.invars)
                found[half].append(str(equation.source_info.name_stack))
            for inner in jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(lambda params: PixelLLM(config).apply({"params": params}, batch))(params).jaxpr)
    assert [name for name in found[False] if not re.fullmatch(FLOAT32, name)] == []
    assert len(found[True]) > 50
    outputs = jax.eval_shape(lambda params: PixelLLM(config).apply({"params": params}, batch), params)
    assert (outputs.text_features.dtype, outputs.points.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_half_precision_stays_near_and_frozen_parts_may_rest_in_it() -> None:
    config = override(SCANNED, [*HALF, "image.sam.frozen=true", "text.frozen=true"])
    params, batch = _drawn(config), _batch(config.shape)
    trained = param_rules.match(rules(config)["trainable"], params)
    resting = jax.tree.map(lambda leaf, keep: leaf if keep else leaf.astype(jnp.bfloat16), params, trained)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(resting)} == {"float32", "bfloat16"}
    exact = jax.jit(PixelLLM(SCANNED).apply)({"params": params}, batch)
    half, rested = (jax.jit(PixelLLM(config).apply)({"params": p}, batch) for p in (params, resting))
    for outputs in (half, rested):
        for name in ("points", "text_features"):
            found, expected = (np.asarray(getattr(x, name), np.float32) for x in (outputs, exact))
            assert np.abs(found - expected).mean() < 0.03 * expected.std(), name
