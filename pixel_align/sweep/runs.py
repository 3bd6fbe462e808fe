"""Runs of a sweep: a folder each, a process each, several at a time.

    WORKDIR/POINT/config.json     the whole experiment
    WORKDIR/POINT/overrides.json  what the point changes, and the command that runs it
    WORKDIR/POINT/log.txt         what its process said
    WORKDIR/POINT/failure.txt     why it ended, if it failed; gone when it is run again
    WORKDIR/POINT/...             what `pixel-align train` leaves

A run that is done is not run again, one that was begun goes on. Each process holds a lock on its folder: of a sweep
that was killed a run that goes on is let be, and two sweeps on one machine share the points.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pixel_align import distributed
from pixel_align.checkpoints import store
from pixel_align.experiment import Experiment
from pixel_align.settings import to_json
from pixel_align.sweep.points import Point

State = Literal["done", "failed", "running", "begun", "not begun"]

CONFIG, OVERRIDES, LOG, FAILURE, LOCK = "config.json", "overrides.json", "log.txt", "failure.txt", ".lock"
_SECONDS_TO_SAVE = 120  # that a run has to save itself when the sweep is stopped


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
      state: "done"; "failed"; "begun", told to stop by somebody else and saved; "running", which is elsewhere.
      seconds: that it took now; 0 where it was done before.
      why: of what is not done, one line.
    """

    state: State
    seconds: float = 0.0
    why: str = ""


def prepare(point: Point, folder: Path, command: Sequence[str]) -> None:
    """Writes what a run is into its folder.

    Raises:
      ValueError: the folder is of another experiment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = to_json(point.config)
    if (folder / CONFIG).is_file() and (before := (folder / CONFIG).read_text(encoding="utf-8")) != given:
        raise ValueError(
            f"run {str(folder)!r} was begun with another {_difference(before, given)}, expected the same experiment. "
            "Choose another --workdir, or remove that run."
        )
    _write(folder / CONFIG, given)
    _write(folder / OVERRIDES, json.dumps({"overrides": point.overrides, "command": list(command)}, indent=2) + "\n")


def state(point: Point, folder: Path) -> State:
    """Where a run stands, by what lies in its folder."""
    if not folder.is_dir():
        return "not begun"
    if _is_done(point.config, folder):
        return "done"
    with _locked(folder) as lock:
        if lock is None:
            return "running"
    if (folder / FAILURE).is_file():
        return "failed"
    return "begun" if (folder / "metrics.jsonl").is_file() else "not begun"


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> figures, of a run's metrics.jsonl; what is undefined there is left out."""
    path = folder / "metrics.jsonl"
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # the last line of a run that was killed
            values = json.loads(line)
            told = {name: value for name, value in values.items() if name != "step" and value is not None}
            found.setdefault(values["step"], {}).update(told)
    return found


def run(
    points: Sequence[Point],
    folder: Path,
    commands: Sequence[Sequence[str]],
    *,
    slots: int = 1,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Ended]:
    """Runs what is not done, in their order, `slots` at a time; none is stopped by another's failure.

    Args:
      folder: of the sweep. commands: of each point, as lists of words.
      environment: further variables of each process; "{slot}" in a value becomes the number of its slot, from 0.
      tell: gets a line whenever a run begins or ends.

    Raises:
      ValueError: before anything runs, a folder of another experiment.
    """
    for point, command in zip(points, commands, strict=True):
        prepare(point, folder / point.name, command)
    ended: dict[int, Ended] = {}
    waiting = list(range(len(points)))
    running: dict[int, tuple[int, _Process]] = {}  # slot -> point, its process

    def report(index: int, found: Ended, what: str) -> None:
        ended[index] = found
        tell(f"{len(ended)}/{len(points)} {points[index].name}: {what}")

    with _stopping_on_sigterm():
        try:
            while waiting or running:
                for slot in range(slots):
                    while waiting and slot not in running:
                        index = waiting.pop(0)
                        at = folder / points[index].name
                        if _is_done(points[index].config, at):
                            report(index, Ended("done"), "done before")
                            continue
                        variables = {k: v.replace("{slot}", str(slot)) for k, v in (environment or {}).items()}
                        with _locked(at) as lock:
                            if lock is None:
                                report(index, Ended("running"), "running elsewhere")
                                continue
                            running[slot] = index, _Process(at, commands[index], variables, lock)
                        tell(f"{points[index].name}: begun in slot {slot}")
                for slot, (index, process) in list(running.items()):
                    code = process.popen.poll()
                    if code is None:
                        continue
                    del running[slot]
                    found = process.end(code, points[index])
                    report(index, found, f"{found.state} after {found.seconds:.0f} s{found.why and ', ' + found.why}")
                if running:
                    time.sleep(0.05)
        finally:
            for _, process in running.values():
                process.stop()
    return [ended[index] for index in range(len(points))]


class _Process:
    """A run's process. It holds the lock on its folder as long as it lives, whatever becomes of the sweep."""

    def __init__(self, folder: Path, command: Sequence[str], variables: Mapping[str, str], lock: int) -> None:
        self._folder, self._begun = folder, time.perf_counter()
        (folder / FAILURE).unlink(missing_ok=True)
        with (folder / LOG).open("a", encoding="utf-8") as log:
            self._log_from = log.tell()
            self.popen = subprocess.Popen(
                list(command), stdout=log, stderr=log, env={**os.environ, **variables}, pass_fds=(lock,)
            )

    def end(self, code: int, point: Point) -> Ended:
        seconds = time.perf_counter() - self._begun
        if code == 0 and _is_done(point.config, self._folder):
            return Ended("done", seconds)
        if code == distributed.STOPPED:
            return Ended("begun", seconds, "it was told to stop and can be resumed")
        with (self._folder / LOG).open("rb") as log:
            log.seek(self._log_from)
            said = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        last = next((line for line in reversed(said) if "rror: " in line), said[-1] if said else "it said nothing")
        why = f"exit code {code}: {last}" if code else f"it ended before its last step: {last}"
        _write(self._folder / FAILURE, why + "\n")
        return Ended("failed", seconds, why)

    def stop(self) -> None:
        """As a machine that is taken away does: the run may save itself."""
        self.popen.terminate()
        try:
            self.popen.wait(_SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


def _is_done(config: Experiment, folder: Path) -> bool:
    """Whether the last step is saved and all evaluations of it are written."""
    last, checkpoints = config.train.steps, folder / "checkpoints"
    if not checkpoints.is_dir() or last not in store.steps_of(checkpoints):
        return False
    figures = metrics(folder).get(last, {})
    return "loss" in figures and all(
        any(name.startswith(f"{evaluation.task}-{evaluation.split}/") for name in figures)
        for evaluation in config.evals
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """A descriptor that holds the lock on a run's folder, None where another process has it."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # a process that was handed the lock still has it


@contextlib.contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as an exception, so that its children are not left behind."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _difference(before: str, now: str) -> str:
    """The first setting in which two experiments differ, with both values."""
    then, new = _leaves(json.loads(before)), _leaves(json.loads(now))
    name = next(name for name in {**new, **then} if then.get(name) != new.get(name))
    return f"{name}, {then.get(name)!r} and not {new.get(name)!r}"


def _leaves(plain: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict):
        return {path: plain}
    return {k: v for key, part in plain.items() for k, v in _leaves(part, f"{path}.{key}".lstrip(".")).items()}


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
