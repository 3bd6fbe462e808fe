"""metrics.jsonl and TensorBoard: what a run says about itself, step by step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np


class MetricsLog:
    """metrics.jsonl and TensorBoard. Lines behind the step that a run resumes at are dropped: they happen again.

    writes: False for one that does nothing, in processes that do not write.
    """

    def __init__(self, workdir: Path, first: int, writes: bool = True) -> None:
        self._evaluated: set[tuple[int, str]] = set()
        self._file: TextIO | None = None
        self._writer: Any = None
        if not writes:
            return
        self._path = workdir / "metrics.jsonl"
        workdir.mkdir(parents=True, exist_ok=True)
        if self._path.is_file():
            lines = [line for line in self._path.read_text().splitlines() if _step_of(line) <= first]
            partial = self._path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in lines))
            partial.replace(self._path)
            self._evaluated = {(first, key) for line in lines if _step_of(line) == first for key in json.loads(line)}
        self._file = self._path.open("a")
        self._writer = _tensorboard(workdir)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def holds(self, step: int, name: str) -> bool:
        """Whether the log of a resumed run has metrics of the evaluation `name` at the step that it resumes at."""
        return any(at == step and key.startswith(f"{name}/") for at, key in self._evaluated)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, on disk when this returns; what is undefined is null there."""
        if self._file is None:
            return
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._writer is not None:
            self._writer.write_scalars(step, values)


def _tensorboard(workdir: Path) -> Any:
    """clu's writer of TensorBoard events, which come with the data extra."""
    from clu import metric_writers

    return metric_writers.SummaryWriter(str(workdir / "tensorboard"))


def _step_of(line: str) -> float:
    """The step of a line; a line that a killed run left half-written is behind every step."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
