"""What a run compiles, as shapes on a mesh: its train step, an evaluation, writing text. Nothing is allocated.

Evaluation: pictures are encoded and the words of a batch are read once, all positions at once, in the mode of the
experiment's first evaluation that reads (refer, segment) or else `refer`; decode: pictures are encoded and texts are
written, token by token, in mode `caption`. Their batch is that of the evaluation, filled up to a multiple of the
devices that see different examples.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from pixel_align import models, optim, sharding
from pixel_align.experiment import Eval, Experiment
from pixel_align.models import ModelConfig
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.plan import model_flops
from pixel_align.state import TrainState, init_params, make_state, state_shardings
from pixel_align.train import make_train_step

READING = ("refer", "segment")


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One compiled function of a run.

    Attributes:
      trace: () -> its `jax.stages.Traced`, on the mesh.
      examples: pictures in one run of it.
      model_flops: of it by the formula, None for a family without one.
    """

    name: str
    trace: Callable[[], Any]
    examples: int
    model_flops: model_flops.Flops | None


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """An experiment on a mesh. state: the abstract train state, each leaf with where it lies."""

    config: Experiment
    mesh: Mesh
    state: TrainState
    optimizer: Any

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda x: x.sharding, self.state)


def on_mesh(config: Experiment, devices: list[Any]) -> Run:
    """The experiment on these devices, laid out as `train` does it.

    Raises:
      ValueError: a mesh or batches that do not fit the devices.
    """
    rules = models.family_of(config.model).rules(config.model)
    params = jax.eval_shape(lambda: init_params(config))
    optimizer = optim.optimizer(config.optim, config.train.steps, params, rules)
    abstract = jax.eval_shape(lambda params: make_state(config, params, rules, optimizer), params)
    mesh = sharding.make_mesh(
        config.mesh,
        devices,
        held=lambda mesh: sharding.bytes_per_chip(abstract, state_shardings(abstract, rules, optimizer, mesh)),
    )
    batches = [(read.mixture, read.batch_size) for _, read in config.batches()]
    sharding.check_batches(batches, mesh, config.train.accumulate)
    placed = state_shardings(abstract, rules, optimizer, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed)
    return Run(config, mesh, state, optimizer)


def train_step(run: Run) -> Program:
    """The step as `train` compiles it: the state is donated."""
    batches = run.config.batches()
    inputs = tuple(_batch(run, model, read.batch_size) for model, read in batches)
    step = jax.jit(
        make_train_step(run.config, run.optimizer),
        donate_argnums=0,
        out_shardings=(run.shardings, sharding.replicated(run.mesh)),
    )
    known = [(model, read.batch_size) for model, read in batches if isinstance(model, PixelLLMConfig)]
    flops = model_flops.of_step(known) if len(known) == len(batches) else None
    return Program("train", lambda: step.trace(run.state, inputs), sum(read.batch_size for _, read in batches), flops)


def evaluation(run: Run) -> Program:
    """One batch of an evaluation that reads what it is given."""
    asked = next((one for one in run.config.evals if one.mode in READING), Eval(mode=READING[0]))
    return _answers(run, "evaluate", asked, asked.mode)


def decode(run: Run) -> Program:
    """One batch of texts that are written: every text as long as there is room."""
    asked = run.config.evals[0] if run.config.evals else Eval()
    return _answers(run, "decode", asked, "caption")


def _answers(run: Run, name: str, asked: Eval, mode: str) -> Program:
    config = run.config.model if asked.shape is None else dataclasses.replace(run.config.model, shape=asked.shape)
    family, readers = models.family_of(config), sharding.readers(run.mesh)
    module, scoring = family.module(config), family.modes[mode].scoring
    assert scoring is not None  # these modes are scored
    size = -(-asked.batch_size // readers) * readers
    batch = _batch(run, config, size)

    @jax.jit
    def answers(params: Any, batch: Any) -> Any:
        maps = family.encode_images(module, params, batch.images, batch.valid_size)
        return scoring.answer(module, params, maps, scoring.request(batch, batch))

    flops = None
    if isinstance(config, PixelLLMConfig):
        flops = model_flops.of_answers(config, size, spoken=mode == "caption", masks=mode == "segment")
    return Program(name, lambda: answers.trace(run.state.best_params, batch), size, flops)


def _batch(run: Run, config: ModelConfig, size: int) -> Any:
    """The abstract batch, its examples over the mesh."""
    where = sharding.over_batch(run.mesh)
    spec = models.family_of(config).batch_spec(config, size)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), spec)
