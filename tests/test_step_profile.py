"""Steps that are asked for are traced, no others; a trace that is left open is written."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pixel_align.experiment import Train
from pixel_align.step_profile import StepProfile


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    said: list[Any] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: said.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: said.append("stop"))
    return said


def steps(told: list[Any], profile: StepProfile, first: int, last: int) -> None:
    def step(number: int) -> jax.Array:
        told.append(number)
        return jnp.asarray(number)

    for number in range(first, last + 1):
        assert profile(number, step, number) == number


@pytest.mark.parametrize(
    ("asked", "first", "wanted"),
    [
        ((), 1, [1, 2, 3, 4]),
        ((2, 3), 1, [1, "start", 2, 3, "stop", 4]),
        ((2, 2), 1, [1, "start", 2, "stop", 3, 4]),
        ((2, 9), 1, [1, "start", 2, 3, 4, "stop"]),  # the run ends before
        ((2, 3), 3, ["start", 3, "stop", 4]),  # resumed in the middle
        ((1, 2), 3, [3, 4]),  # resumed behind
    ],
)
def test_exactly_these_steps(asked: tuple[int, ...], first: int, wanted: list[Any], told: list[Any]) -> None:
    with StepProfile(Path("nowhere"), asked) as profile:
        steps(told, profile, first, 4)
    assert told == wanted


def test_a_step_that_fails_leaves_its_trace(told: list[Any]) -> None:
    def fails() -> None:
        raise FloatingPointError("nan")

    with pytest.raises(FloatingPointError), StepProfile(Path("nowhere"), (1, 5)) as profile:
        profile(1, fails)
    assert told == ["start", "stop"]


@pytest.mark.parametrize("asked", [(3,), (0, 2), (4, 3), (1, 2, 3)])
def test_steps_that_cannot_be_are_refused(asked: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"train\.profile_steps is .*, expected the first and the last step"):
        Train(profile_steps=asked)
