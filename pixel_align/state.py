"""The state of a training run: what it is, how it begins, where it lies on a mesh, what of it is saved."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from pixel_align import models, param_rules, sharding
from pixel_align.batch import Array
from pixel_align.checkpoints import digests, store
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


def check_init(config: Experiment, abstract: Any) -> set[str]:
    """The paths of the parameters (arrays or shapes) that init.checkpoint gives.

    Raises:
      FileNotFoundError: init.checkpoint is none.
      ValueError: names or shapes that differ and that init.new and init.unused do not name.
    """
    folder, step = store.find(config.init.checkpoint)
    if store.base_of(folder, step):
        raise ValueError(
            f"init.checkpoint {config.init.checkpoint!r} holds trained parameters only, expected all. Begin with a run "
            'whose train.save is "all".'
        )
    saved, here = store.saved_shapes(folder, step), {k: tuple(v.shape) for k, v in param_rules.paths(abstract).items()}

    def named(path: str, patterns: tuple[str, ...]) -> bool:
        return any(re.fullmatch(pattern, path) for pattern in patterns)

    new = {path for path in here if named(path, config.init.new)}
    faults = [f"{p} is not in it" for p in here.keys() - saved.keys() - new]
    faults += [f"{p} has no place here" for p in saved.keys() - here.keys() if not named(p, config.init.unused)]
    common = (here.keys() & saved.keys()) - new
    faults += [f"{p} is {saved[p]}, expected {here[p]}" for p in common if saved[p] != here[p]]
    if faults:
        raise ValueError(
            f"init.checkpoint {config.init.checkpoint!r} does not fit the model: {'; '.join(sorted(faults)[:10])}"
            f"{f' and {len(faults) - 10} more' if len(faults) > 10 else ''}. Name them in init.new or init.unused."
        )
    return common


def take_over(config: Experiment, params: Any, tell: Callable[[str], None]) -> Any:
    """`params` with those of init.checkpoint in their places, by name. Raises what `check_init` does."""
    here, common = param_rules.paths(params), check_init(config, params)
    folder, step = store.find(config.init.checkpoint)
    theirs = store.read_some(folder, step, {path: leaf for path, leaf in here.items() if path in common})
    tell(f"{len(common)} parameters from {folder} step {step}, {len(here) - len(common)} new")
    return _overlaid(params, theirs)


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
    mesh: Mesh | AbstractMesh,
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


def saved_arrays(state: TrainState, trained_only: bool = False) -> dict[str, Any]:
    """What is saved of a state, whether of arrays or of shapes."""
    arrays = {"params": present(state.trainable) if trained_only else state.params, "optimizer": state.optimizer}
    if state.average is not None:
        arrays["average"] = present(state.average) if trained_only else state.best_params
    return arrays


def from_saved(
    arrays: dict[str, Any], step: int, abstract: TrainState, rules: Mapping[str, Any], base: Any = None
) -> TrainState:
    """The inverse of `saved_arrays`; base: all parameters, for arrays of the trained ones only."""
    if base is not None:
        over = {name: arrays[name] for name in ("params", "average") if name in arrays}
        arrays = arrays | {name: _overlaid(base, param_rules.paths(tree)) for name, tree in over.items()}
    mask = param_rules.match(rules["trainable"], arrays["params"])
    trainable, frozen = param_rules.split(arrays["params"], mask)
    average = param_rules.split(arrays["average"], mask)[0] if "average" in arrays else None
    step_array = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
    return TrainState(step_array, trainable, frozen, arrays["optimizer"], average)


def present(half: Any) -> Any:
    """One of the two halves of parameters without the places of the other."""
    if not isinstance(half, Mapping):
        return half
    parts = {name: present(part) for name, part in half.items()}
    return {name: part for name, part in parts.items() if not (part is None or (isinstance(part, dict) and not part))}


def check_base(frozen: Any, base: Mapping[str, str], where: Any) -> None:
    """Raises ValueError unless the frozen half is what a checkpoint was trained on that holds the trained one only.

    base: path -> digest, `store.base_of`. where: that checkpoint, for the message.
    """
    now = digests.of(present(frozen))
    if other := sorted(path for path in now.keys() | base.keys() if now.get(path) != base.get(path)):
        raise ValueError(
            f"{len(other)} of {len(base)} frozen parameters, {other[0]} first, are not those that {where} was trained "
            "on, expected the same. Point init.checkpoint to the checkpoint that it began with."
        )


def on_base(config: Experiment, base: Mapping[str, str], where: Any, read: Callable[[Any], Any]) -> Any:
    """All parameters of a checkpoint that holds the trained ones only: the others are begun with again, and checked.

    read: the shapes of the trained ones -> these. Raises what `check_base` does.
    """
    rules = models.family_of(config.model).rules(config.model)
    params = jax.jit(lambda: init_params(config))()  # compiled, as a run begins: else some bits differ
    if config.init.checkpoint:
        params = take_over(config, params, lambda said: None)
    trainable, frozen = param_rules.split(params, param_rules.match(rules["trainable"], params))
    check_base(at_rest(frozen, config.train.frozen_dtype), base, where)
    return _overlaid(params, param_rules.paths(read(jax.eval_shape(present, trainable))))


def _overlaid(params: Any, over: Mapping[str, Any]) -> Any:
    """Parameters with some replaced, by path."""
    leaves = [over.get(path, leaf) for path, leaf in param_rules.paths(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
