"""The optimizer: its steps are AdamW's as one writes it down, for the trained half only, by rules."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixel_align import param_rules
from pixel_align.optim import Optim, optimizer, schedule

STEPS = 20
RULES = {
    "trainable": [(r"frozen/.*", False), (r".*", True)],
    "weight_decay": [(r".*bias", 0.0), (r".*", 1.0)],
    "lr_multiplier": [(r"slow/.*", 0.25), (r".*", 1.0)],
}
_rng = np.random.default_rng(0)
PARAMS = {
    name: {part: jnp.asarray(_rng.normal(size=shape), jnp.float32) for part, shape in (("kernel", (3, 2)), ("bias", 2))}
    for name in ("plain", "slow", "frozen")
}


def _gradient(step: int) -> Any:
    rng = np.random.default_rng(step + 1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)


def _rate(config: Optim, step: int) -> float:
    if step < config.warmup_steps:
        return config.peak_lr * step / config.warmup_steps
    share = (step - config.warmup_steps) / (STEPS - config.warmup_steps)
    floor = config.final_lr * config.peak_lr
    return floor + (config.peak_lr - floor) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(("warmup", "final"), [(0, 0.0), (5, 0.1), (19, 1.0)])
def test_the_rate_warms_up_and_falls_as_a_cosine(warmup: int, final: float) -> None:
    config = Optim(peak_lr=3e-3, warmup_steps=warmup, final_lr=final)
    rate = schedule(config, STEPS)
    for step in range(STEPS + 1):
        np.testing.assert_allclose(rate(step), _rate(config, step), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(rate(STEPS + 100), final * 3e-3, rtol=1e-5, atol=1e-9)


def test_warming_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.warmup_steps is 20, expected fewer than train.steps, which is 20"):
        schedule(Optim(warmup_steps=20), STEPS)


@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_steps_are_adamw_by_hand(clip: float) -> None:
    config = Optim(peak_lr=1e-2, warmup_steps=2, b1=0.8, b2=0.9, epsilon=1e-3, weight_decay=0.1, clip_norm=clip)
    trainable, _ = param_rules.split(PARAMS, param_rules.match(RULES["trainable"], PARAMS))
    transform = optimizer(config, STEPS, PARAMS, RULES)
    state = transform.init(trainable)
    expected = {path: np.asarray(leaf, np.float64) for path, leaf in param_rules.paths(trainable).items()}
    moments = {path: (np.zeros_like(leaf), np.zeros_like(leaf)) for path, leaf in expected.items()}
    for step in range(4):
        gradient, _ = param_rules.split(_gradient(step), param_rules.match(RULES["trainable"], PARAMS))
        updates, state = transform.update(gradient, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        gradients = {path: np.asarray(leaf, np.float64) for path, leaf in param_rules.paths(gradient).items()}
        # The norm is that of the trained half: what is frozen has no gradient.
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        for path, g in gradients.items():
            g = g * min(1, clip / norm) if clip else g
            m, v = moments[path]
            m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g**2
            moments[path] = m, v
            direction = (
                m / (1 - config.b1 ** (step + 1)) / (np.sqrt(v / (1 - config.b2 ** (step + 1))) + config.epsilon)
            )
            if not path.endswith("bias"):
                direction = direction + config.weight_decay * expected[path]
            rate = _rate(config, step) * (0.25 if path.startswith("slow") else 1)
            expected[path] = expected[path] - rate * direction
    for path, leaf in param_rules.paths(trainable).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_there_are_slots_for_the_trained_half_only() -> None:
    transform = optimizer(Optim(warmup_steps=0), STEPS, PARAMS, RULES)
    trainable, _ = param_rules.split(PARAMS, param_rules.match(RULES["trainable"], PARAMS))
    state = jax.eval_shape(transform.init, trainable)
    slots = [path for path in param_rules.paths(state) if "kernel" in path or "bias" in path]
    assert len(slots) == 2 * 4 and not any("frozen" in path for path in slots)


def test_layers_of_a_stack_stand_still_one_by_one_as_written_out_ones_do() -> None:
    """The second layer is not used in the second step, as drop-path may have it."""
    config = Optim(peak_lr=0.1, warmup_steps=0, weight_decay=0.1, clip_norm=0.0)
    rules = {"trainable": [(".*", True)], "weight_decay": [(".*", 1.0)], "lr_multiplier": [(".*", 1.0)]}
    rng = np.random.default_rng(0)
    values, gradients = (rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))
    stacked = {"layers": {"kernel": jnp.asarray(values)}}
    apart = {f"layers_{i}": {"kernel": jnp.asarray(values[i])} for i in range(2)}
    found = {}
    for name, params in (("stacked", stacked), ("apart", apart)):
        transform = optimizer(config, STEPS, params, rules)
        current = transform.init(params)
        for idle in (1.0, 0.0, 1.0):
            scale = np.asarray([1.0, idle], np.float32)[:, None, None]
            parts = gradients * scale
            gradient = (
                {"layers": {"kernel": parts}}
                if name == "stacked"
                else {f"layers_{i}": {"kernel": parts[i]} for i in range(2)}
            )
            updates, current = transform.update(jax.tree.map(jnp.asarray, gradient), current, params)
            params = optax.apply_updates(params, updates)
        found[name] = params
    together = np.stack([found["apart"][f"layers_{i}"]["kernel"] for i in range(2)])
    np.testing.assert_allclose(found["stacked"]["layers"]["kernel"], together, atol=1e-6)


def test_shapes_are_enough() -> None:
    shapes = jax.eval_shape(lambda: PARAMS)
    assert optimizer(Optim(weight_decay=0.1, warmup_steps=0), STEPS, shapes, RULES).init is not None


@pytest.mark.parametrize("name", ["trainable", "weight_decay", "lr_multiplier"])
def test_a_rule_list_must_cover_every_parameter_and_have_no_dead_rule(name: str) -> None:
    partial = {**RULES, name: [(r"(plain|frozen)/.*", RULES[name][-1][1])]}
    with pytest.raises(ValueError, match=r"2 parameters are matched by no rule, expected every one to be: slow/bias"):
        optimizer(Optim(warmup_steps=0), STEPS, PARAMS, partial)
    dead = {**RULES, name: [(r"sloww/.*", RULES[name][0][1]), *RULES[name]]}
    with pytest.raises(ValueError, match=r"rule 0 'sloww/\.\*' matches no parameter"):
        optimizer(Optim(warmup_steps=0), STEPS, PARAMS, dead)


def test_multipliers_may_differ_by_layer() -> None:
    """Of a stacked leaf: a vector along the layer axis."""
    params = {"layers": {"kernel": jnp.ones((3, 2, 2))}}
    rules = {**RULES, "trainable": [(".*", True)], "weight_decay": [(".*", 0.0)]}
    rules["lr_multiplier"] = [(r"layers/.*", lambda layer: 0.5**layer)]
    config = dataclasses.replace(Optim(warmup_steps=0, clip_norm=0.0), peak_lr=1.0)
    transform = optimizer(config, STEPS, params, rules)
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)
    np.testing.assert_allclose(updates["layers"]["kernel"][:, 0, 0], [-1, -0.5, -0.25], rtol=1e-5)


def test_what_a_step_does_not_use_stands_still_with_its_moments() -> None:
    """Neither momentum nor weight decay moves it; when it is used again it goes on where it was."""
    config = Optim(peak_lr=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=0.0)
    trainable, _ = param_rules.split(PARAMS, param_rules.match(RULES["trainable"], PARAMS))
    transform = optimizer(config, STEPS, PARAMS, RULES)
    gradient, _ = param_rules.split(_gradient(0), param_rules.match(RULES["trainable"], PARAMS))
    idle = {**gradient, "slow": jax.tree.map(jnp.zeros_like, gradient["slow"])}
    _, begun = transform.update(gradient, transform.init(trainable), trainable)
    updates, after = transform.update(idle, begun, trainable)
    for path, leaf in param_rules.paths(updates).items():
        assert bool(jnp.any(leaf)) is not path.startswith("slow"), path
    before, now = param_rules.paths(begun), param_rules.paths(after)
    moments = [path for path in before if "slow" in path]
    assert moments
    for path in moments:
        np.testing.assert_array_equal(now[path], before[path])
