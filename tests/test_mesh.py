"""One device or many: the same losses, gradients and next parameters, whatever the mesh."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest

from pixel_align import models, optim, param_rules, sharding
from pixel_align import state as run_state
from pixel_align.batch import Batch, zeros
from pixel_align.data import DataConfig
from pixel_align.experiment import Experiment, Train
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.train import make_train_step

MODEL = PixelLLMConfig.tiny()
CONFIG = Experiment(
    model=MODEL, data=DataConfig(), optim=optim.Optim(peak_lr=1e-2, warmup_steps=0), train=Train(steps=4)
)
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)]


def batch(seed: int, size: int = 8) -> Batch:
    """Random pictures, texts and places; some regions, words and places absent."""
    rng = np.random.default_rng(seed)
    shape = MODEL.shape
    empty = zeros(shape, size)
    text_mask = np.arange(shape.text) < rng.integers(3, shape.text + 1, (size, 1, 1))
    points = rng.uniform(0, 1, empty.token_points.shape).astype(np.float32)
    return dataclasses.replace(
        empty,
        images=rng.integers(0, 256, empty.images.shape, dtype=np.uint8),
        valid_size=rng.integers(20, shape.canvas + 1, (size, 2)).astype(np.int32),
        prompt_boxes=np.tile(np.asarray([0, 0, 1, 1], np.float32), (size, 1, 1)),
        instruction_tokens=rng.integers(3, 200, empty.instruction_tokens.shape).astype(np.int32),
        instruction_mask=np.ones_like(empty.instruction_mask),
        text_tokens=rng.integers(3, 200, empty.text_tokens.shape).astype(np.int32) * text_mask,
        text_mask=text_mask,
        token_points=points,
        locate=text_mask & (rng.uniform(size=text_mask.shape) < 0.5),
        valid=np.ones_like(empty.valid),
        weights=jax.tree.map(np.ones_like, empty.weights),
    )


def run(mesh_shape: tuple[int, int, int]) -> tuple[dict[str, float], dict[str, np.ndarray], list[str]]:
    """Two steps of gradient descent on a mesh: metrics of the second, all parameters behind it, and which are split."""
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    mesh = sharding.make_mesh(sharding.MeshConfig(*mesh_shape), devices)
    rules = models.family_of(MODEL).rules(MODEL)
    abstract = jax.eval_shape(lambda: run_state.init_params(CONFIG))
    # Plain descent: Adam would blow up the difference of two gradients that are both nearly zero.
    plain = optax.sgd(0.1)
    shapes = jax.eval_shape(lambda: run_state.make_state(CONFIG, run_state.init_params(CONFIG), rules, plain))
    shardings = run_state.state_shardings(shapes, rules, plain, mesh)
    state = jax.jit(
        lambda: run_state.make_state(CONFIG, run_state.init_params(CONFIG), rules, plain), out_shardings=shardings
    )()
    del abstract
    step = jax.jit(make_train_step(CONFIG, plain), out_shardings=(shardings, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        for seed in (0, 1):
            placed: Any = jax.tree.map(lambda x: jax.device_put(x, sharding.over_batch(mesh)), batch(seed))
            state, metrics = step(state, (placed,))
    split = [p for p, x in param_rules.paths(state.params).items() if not x.sharding.is_fully_replicated]
    values = {name: float(value) for name, value in metrics.items()}
    return values, {p: np.asarray(x) for p, x in param_rules.paths(state.params).items()}, split


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, float], dict[str, np.ndarray], list[str]]:
    return run((1, 1, 1))


@pytest.mark.parametrize("mesh_shape", MESHES[1:], ids=lambda shape: "x".join(map(str, shape)))
def test_a_mesh_changes_no_number(mesh_shape: tuple[int, int, int], alone: Any) -> None:
    metrics, params, split = run(mesh_shape)
    expected_metrics, expected_params, _ = alone
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for path, value in expected_params.items():
        # After two steps at a rate of 0.1: of the gradient that is 1e-5.
        np.testing.assert_allclose(params[path], value, atol=1e-6, err_msg=path)
    # Without parameters that really lie apart the test would prove nothing about fsdp and tensor.
    assert bool(split) is (mesh_shape != (8, 1, 1))


def test_what_does_not_divide_is_whole_on_every_device_and_is_named() -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 8, 1))
    shapes = {"kernel": jax.ShapeDtypeStruct((3, 6), np.float32), "other": jax.ShapeDtypeStruct((8, 16), np.float32)}
    names = {"kernel": (..., "fsdp"), "other": ("fsdp", None)}
    assert sharding.resolve(names["kernel"], (3, 6), mesh).is_fully_replicated
    assert not sharding.resolve(names["other"], (8, 16), mesh).is_fully_replicated
    assert sharding.indivisible(shapes, names, mesh) == ["kernel: axis 1 of (3, 6) by fsdp=8"]
