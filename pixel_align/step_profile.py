"""A trace of some steps of a run by jax's profiler: what devices and host did when, to be looked at in XProf."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax


class StepProfile:
    """Runs the steps of a training and traces those that are asked for. A context: what is left open is written."""

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        """steps: (first, last), both traced, or () for none. folder: where the trace goes; each process writes its
        own, under plugins/profile.
        """
        self._folder, self._steps = folder, range(steps[0], steps[1] + 1) if steps else range(0)
        self._running = False

    def __call__(self, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), which is what the run does in `step`; the last traced step is waited for."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(result)
            self._stop()
        return result

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
