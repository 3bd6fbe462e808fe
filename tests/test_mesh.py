"""One device or many: the same losses and gradients, whatever the mesh and whatever is random.

A sample of `make proof NAME=meshes`, which holds every task and every metric.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from experiments.proofs import meshes
from pixel_align import data, optim, sharding
from pixel_align.batch import Batch, Shape, zeros
from pixel_align.experiment import Experiment, Train
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.t5 import T5Config

# Trained, so that dropout runs.
TEXTS = {"t5": T5Config.tiny(vocab_size=256), "bert": BertConfig.tiny()}


def experiment(text: str) -> Experiment:
    return Experiment(
        model=PixelLLMConfig.tiny(text=TEXTS[text]),
        data=data.DataConfig(),
        optim=optim.Optim(warmup_steps=0),
        train=Train(steps=4),
    )


def batch(shape: Shape, size: int = 8) -> Batch:
    """Random pictures, texts and places; some words and places absent, one row is only there to fill the batch."""
    rng, empty = np.random.default_rng(0), zeros(shape, size)
    text_mask = np.arange(shape.text) < rng.integers(3, shape.text + 1, (size, 1, 1))
    valid = np.ones_like(empty.valid)
    valid[-1] = False
    return dataclasses.replace(
        empty,
        images=rng.integers(0, 256, empty.images.shape, dtype=np.uint8),
        valid_size=rng.integers(20, shape.canvas + 1, (size, 2)).astype(np.int32),
        prompt_boxes=np.tile(np.asarray([0, 0, 1, 1], np.float32), (size, 1, 1)),
        instruction_tokens=rng.integers(3, 200, empty.instruction_tokens.shape).astype(np.int32),
        instruction_mask=np.ones_like(empty.instruction_mask),
        text_tokens=rng.integers(3, 200, empty.text_tokens.shape).astype(np.int32) * text_mask,
        text_mask=text_mask,
        token_points=rng.uniform(0, 1, empty.token_points.shape).astype(np.float32),
        locate=text_mask & (rng.uniform(size=text_mask.shape) < 0.5),
        valid=valid,
        weights=jax.tree.map(np.ones_like, empty.weights),
    )


@functools.cache
def step(text: str, sizes: meshes.Sizes) -> meshes.Step:
    config = experiment(text)
    return meshes.step(config, (batch(config.model.shape),), sizes)


@pytest.mark.parametrize(("text", "sizes"), [("t5", (2, 2, 2)), ("bert", (1, 8, 1))])
def test_a_mesh_changes_no_number(text: str, sizes: meshes.Sizes) -> None:
    apart = meshes.compare(step(text, meshes.ALONE), step(text, sizes))
    assert apart["metric"] < 1e-5 and apart["gradient"] < 1e-5 and apart["entries"] > 1e5, apart
    # Without parameters that really lie apart the test would prove nothing about fsdp and tensor.
    lies = jax.tree.leaves(meshes.place(experiment(text), sizes)[2])
    assert sum(not where.is_fully_replicated for where in lies) > 50


def test_differences_are_found() -> None:
    gradient = {"a": np.asarray([1.0, -4.0]), "b": np.asarray([[2.0]])}
    one = meshes.Step({"loss": 2.0, "nothing": 0.0}, gradient)
    assert meshes.compare(one, one) == {
        **{"metrics": 2, "metric": 0.0, "gradient": 0.0, "gradient_norm": 0.0, "entries": 3, "beyond": 0}
    }
    other = meshes.Step({"loss": 2.5, "nothing": 0.0}, gradient | {"b": np.asarray([[2.4]])})
    apart = meshes.compare(one, other)
    assert apart["metric"] == pytest.approx(0.2) and apart["gradient"] == pytest.approx(0.1) and apart["beyond"] == 1
    assert apart["gradient_norm"] == pytest.approx(0.4 / math.sqrt(21))
    assert meshes.relative({"a": math.nan}, {"a": math.nan}) == 0.0
    for wrong in ({"a": 1.0}, {"b": math.nan}):
        with pytest.raises(ValueError, match="expected"):
            meshes.relative({"a": math.nan}, wrong)


def test_what_does_not_divide_is_whole_on_every_device_and_is_named() -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 8, 1))
    shapes = {"kernel": jax.ShapeDtypeStruct((3, 6), np.float32), "other": jax.ShapeDtypeStruct((8, 16), np.float32)}
    names = {"kernel": (..., "fsdp"), "other": ("fsdp", None)}
    assert sharding.resolve(names["kernel"], (3, 6), mesh).is_fully_replicated
    assert not sharding.resolve(names["other"], (8, 16), mesh).is_fully_replicated
    assert sharding.indivisible(shapes, names, mesh) == ["kernel: axis 1 of (3, 6) by fsdp=8"]
