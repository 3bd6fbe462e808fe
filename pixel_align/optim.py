"""The optimizer: AdamW with warm-up and cosine; weight decay and learning-rate multipliers are param_rules."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pixel_align import param_rules


@dataclasses.dataclass(frozen=True)
class Optim:
    """Published values (trace stage) are the defaults, but for clipping, which the published recipe lacks."""

    peak_lr: float = 5e-5
    warmup_steps: int = 250  # linear from 0
    final_lr: float = 0.0  # as a share of peak_lr, at the end of the cosine
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # decoupled, multiplied with the learning rate
    clip_norm: float = 1.0  # global norm of the gradient; 0 for no clipping (published)
    average: float = 0.0  # decay of a moving average of the parameters, which evaluation then uses; 0 for none


def schedule(config: Optim, steps: int) -> optax.Schedule:
    """Learning rate over `steps` steps: linear warm-up from 0 to peak_lr, cosine to final_lr * peak_lr."""
    if config.warmup_steps >= steps:
        raise ValueError(
            f"optim.warmup_steps is {config.warmup_steps}, expected fewer than train.steps, which is {steps}. "
            "Change one."
        )
    return optax.warmup_cosine_decay_schedule(
        0.0, config.peak_lr, config.warmup_steps, steps, config.final_lr * config.peak_lr
    )


def optimizer(
    config: Optim, steps: int, params: Any, rules: Mapping[str, param_rules.Rules]
) -> optax.GradientTransformation:
    """The gradient transformation for the trainable half of a model.

    Args:
      params: all parameters, arrays or shapes.
      rules: the lists "trainable", "weight_decay" and "lr_multiplier"; see `param_rules.PartRules`.

    Raises:
      ValueError: a parameter that a list does not cover, or a rule that decides nothing.
    """
    trainable = param_rules.match(rules["trainable"], params)
    decay, _ = param_rules.split(param_rules.match(rules["weight_decay"], params), trainable)
    multiplier, _ = param_rules.split(param_rules.match(rules["lr_multiplier"], params), trainable)

    def decayed(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, p, d: u + config.weight_decay * d * p, updates, params, decay)

    def multiplied(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, m: u * m, updates, multiplier)

    # The same parts in every run, some of them idle: a run can be resumed with other settings.
    parts = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        adam(config.b1, config.b2, config.epsilon),
        optax.stateless(decayed) if config.weight_decay else optax.identity(),
        optax.stateless(multiplied),
        optax.scale_by_learning_rate(schedule(config, steps)),
    ]
    return where_used(optax.chain(*parts))


def adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam whose moments of a parameter stand still in steps that do not use it: its gradient is zero everywhere.

    Else a head that few tasks use would forget its moments in the steps of the others. Steps are counted for all
    together: what is first used late starts with moments that are too small for its count, up to 4 times too fast.
    """
    every = optax.scale_by_adam(b1, b2, epsilon)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, after = every.update(gradient, state, params)
        used = _used(gradient)
        mu, nu = (jax.tree.map(jnp.where, used, new, old) for new, old in ((after.mu, state.mu), (after.nu, state.nu)))
        return updates, after._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(every.init, update)


def where_used(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, but a parameter that a step does not use does not move for its sake: not by momentum, nor by decay."""

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(gradient, state, params)
        return jax.tree.map(lambda used, u: jnp.where(used, u, 0), _used(gradient), updates), state

    return optax.GradientTransformation(inner.init, update)


def _used(gradient: Any) -> Any:
    """Of each parameter whether this step used it, broadcastable to it; of a stack, for each layer."""

    def used(path: Any, g: jax.Array) -> jax.Array:
        stacked = param_rules.is_stacked(jax.tree_util.keystr(path, simple=True, separator="/"))
        return jnp.any(g != 0, axis=tuple(range(1, g.ndim)), keepdims=True) if stacked else jnp.any(g != 0)

    return jax.tree_util.tree_map_with_path(used, gradient)
