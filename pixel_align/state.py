"""The state of a training run: what it is, how it begins, where it lies on a mesh, what of it is saved."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pixel_align import models, param_rules, sharding
from pixel_align.batch import Array
from pixel_align.experiment import Experiment


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
      step: Int32[], steps done.
      trainable, frozen: the two halves of the parameters, None in each other's places. Frozen leaves have no gradient
        and no optimizer state.
      optimizer: optax state of the trainable half.
      average: moving average of the trainable half, None if the run keeps none.
    """

    step: Array
    trainable: Any
    frozen: Any
    optimizer: Any
    average: Any

    @property
    def params(self) -> Any:
        """All parameters as they are trained."""
        return param_rules.merge(self.trainable, self.frozen)

    @property
    def best_params(self) -> Any:
        """All parameters, averaged where the run keeps an average."""
        return self.params if self.average is None else param_rules.merge(self.average, self.frozen)


def init_params(config: Experiment) -> Any:
    """Parameters drawn from the config's seed."""
    return models.family_of(config.model).init(config.model, config.train.seed)


# What of a frozen part rests in train.frozen_dtype: nearly all of it. Biases, norm scales and tables of positions stay
# in float32: they are small, and what they are added to or multiplied with would be rounded twice.
RESTING = ((r".*/(?:kernel|embedding)", True), (r".*", False))


def at_rest(frozen: Any, dtype: str) -> Any:
    """The frozen half with the leaves that RESTING names in `dtype`."""
    rests = param_rules.match(RESTING, frozen, dead="ignore")
    return jax.tree.map(lambda leaf, small: leaf.astype(dtype) if small else leaf, frozen, rests)


def make_state(
    config: Experiment, params: Any, rules: Mapping[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step."""
    trainable, frozen = param_rules.split(params, param_rules.match(rules["trainable"], params))
    frozen = at_rest(frozen, config.train.frozen_dtype)
    # A copy: state and average are both donated.
    average = jax.tree.map(jnp.copy, trainable) if config.optim.average else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable), average)


def state_shardings(
    abstract: TrainState,
    rules: Mapping[str, param_rules.Rules],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Where each array of a state lies; slots of the optimizer lie as their parameters do.

    Raises:
      ValueError: a parameter that no sharding rule covers, or a rule that decides nothing.
    """
    names = param_rules.match(rules["sharding"], abstract.params)
    placed = jax.tree.map(lambda x, n: sharding.resolve(n, x.shape, mesh), abstract.params, names)
    trainable, frozen = param_rules.split(placed, param_rules.match(rules["trainable"], abstract.params))
    whole = sharding.replicated(mesh)
    slots = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, where: where,
        abstract.optimizer,
        trainable,
        transform_non_params=lambda _: whole,
    )
    return TrainState(whole, trainable, frozen, slots, None if abstract.average is None else trainable)


def saved_arrays(state: TrainState) -> dict[str, Any]:
    """What is saved of a state, whether of arrays or of shapes."""
    arrays = {"params": state.params, "optimizer": state.optimizer}
    if state.average is not None:
        arrays["average"] = state.best_params
    return arrays


def from_saved(arrays: dict[str, Any], step: int, abstract: TrainState, rules: Mapping[str, Any]) -> TrainState:
    """The inverse of `saved_arrays`."""
    mask = param_rules.match(rules["trainable"], arrays["params"])
    trainable, frozen = param_rules.split(arrays["params"], mask)
    average = param_rules.split(arrays["average"], mask)[0] if "average" in arrays else None
    step_array = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
    return TrainState(step_array, trainable, frozen, arrays["optimizer"], average)
