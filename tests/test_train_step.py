"""One step: in parts, of batches of several shapes, with frozen tables that rest small it is the same step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixel_align import losses, models, param_rules, state
from pixel_align.batch import Batch, Shape, zeros
from pixel_align.config import override
from pixel_align.data import Group
from pixel_align.experiment import Experiment
from pixel_align.train import make_train_step
from tests import tiny

CONFIG = override(tiny.get_config(), ["model.text.dropout_rate=0", "model.location.presence=true", "optim.average=0"])
LONG, SHORT = CONFIG.model.shape, dataclasses.replace(CONFIG.model.shape, text=12)


def batch(shape: Shape, size: int, seed: int) -> Batch:
    """Random pictures and texts of 3 to 12 tokens, half of them with places."""
    rng, empty = np.random.default_rng(seed), zeros(shape, size)
    mask = np.arange(shape.text) < rng.integers(3, 13, (size, 1, 1))
    return dataclasses.replace(
        empty,
        images=rng.integers(0, 256, empty.images.shape, dtype=np.uint8),
        valid_size=np.full((size, 2), shape.canvas, np.int32),
        prompt_boxes=np.tile(np.asarray([0, 0, 1, 1], np.float32), (size, 1, 1)),
        text_tokens=rng.integers(3, 200, empty.text_tokens.shape).astype(np.int32) * mask,
        text_mask=mask,
        token_points=rng.uniform(0, 1, empty.token_points.shape).astype(np.float32),
        locate=mask & (rng.uniform(size=mask.shape) < 0.5),
        valid=np.ones_like(empty.valid),
        weights=jax.tree.map(np.ones_like, empty.weights),
    )


def lengthened(short: Batch) -> Batch:
    """The same texts with the padding of the longer shape."""

    def pad(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, 0), (0, 0), (0, LONG.text - SHORT.text)] + [(0, 0)] * (x.ndim - 3))

    names = ("text_tokens", "text_mask", "token_points", "locate")
    return dataclasses.replace(short, **{name: pad(getattr(short, name)) for name in names})


def step(config: Experiment, batches: tuple[Batch, ...]) -> tuple[Any, Any]:
    """(metrics, parameters after it), of plain descent."""
    rules, descent = models.family_of(config.model).rules(config.model), optax.sgd(0.1)
    begin = jax.jit(lambda: state.make_state(config, state.init_params(config), rules, descent))()
    after, metrics = jax.jit(make_train_step(config, descent))(begin, batches)
    return metrics, after


def test_a_step_in_parts_and_of_another_shape_is_the_step() -> None:
    """Unequal in words, so that a mean of means would differ; the padding of a longer shape counts nowhere."""
    short = batch(SHORT, 6, 1)
    expected, one = step(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, shape=SHORT)), (short,))
    found, two = step(override(CONFIG, ["train.accumulate=2"]), (lengthened(short),))
    assert found.keys() == expected.keys() >= {"loss_text", "loss_point", "loss_presence"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    others = param_rules.paths(two.params)
    for path, leaf in param_rules.paths(one.params).items():
        np.testing.assert_allclose(others[path], leaf, atol=1e-6, err_msg=path)


def test_batches_count_by_their_weights_and_a_loss_by_its_own_count() -> None:
    terms = [{"a": (2.0, (jnp.float32(6), jnp.float32(3)))}, {"b": (1.0, (jnp.float32(5), jnp.float32(5)))}]
    loss, means = losses.join(terms)
    assert (float(loss), means) == (2.5, {"a": 2.0, "b": 1.0})
    assert float(losses.join(terms, [1.0, 3.0])[0]) == 0.25 * 4 + 0.75 * 1
    nothing = {"a": (1.0, (jnp.float32(0), jnp.float32(0)))}
    assert float(losses.join([nothing])[0]) == 0.0
    assert float(losses.join([nothing, terms[0]])[1]["a"]) == 2.0


def test_the_groups_of_a_step_read_in_orders_of_their_own() -> None:
    data = dataclasses.replace(CONFIG.data, further=(Group("b", 4, SHORT), Group("c", 2)))
    config = dataclasses.replace(CONFIG, data=data)
    (first, own), (second, other), (third, last) = config.batches()
    assert (first, second.shape, third) == (CONFIG.model, SHORT, CONFIG.model)
    assert own == CONFIG.data
    assert [(part.mixture, part.batch_size, part.further) for part in (other, last)] == [("b", 4, ()), ("c", 2, ())]
    assert len({own.seed, other.seed, last.seed}) == 3
    with pytest.raises(ValueError, match="data.further.batch_size is 0, expected at least 1"):
        Group("b", 0)
    with pytest.raises(ValueError, match="model.shape.points is 3 and model.location.points is 2"):
        override(config, ["data.further.0.shape.points=3"]).batches()


def test_frozen_tables_rest_in_bfloat16_and_what_is_trained_does_not() -> None:
    small = override(CONFIG, ["model.text.frozen=true", "model.text.lora.rank=2", "model.image.frozen=true"])
    resting = override(small, ["train.frozen_dtype=bfloat16"])
    given = batch(LONG, 4, 0)
    exact, before = step(small, (given,))
    rested, after = step(resting, (given,))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((after.trainable, after.optimizer))} <= {"float32", "int32"}
    kinds = {path: leaf.dtype.name for path, leaf in param_rules.paths(after.frozen).items()}
    for path, kind in kinds.items():
        table = path.rsplit("/", 1)[-1] in ("kernel", "embedding")
        assert kind == ("bfloat16" if table else "float32"), path
    assert {"text/token_embedder/embedding", "image/encoder/patch_embed/kernel"} & kinds.keys()

    def size(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert size(after.frozen) < 0.55 * size(before.frozen)
    np.testing.assert_allclose(rested["loss"], exact["loss"], rtol=1e-2)
    assert float(rested["loss"]) != float(exact["loss"])  # or it was not what was read
