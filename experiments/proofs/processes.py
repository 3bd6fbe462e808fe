"""Proof: one, two and four processes over localhost, eight CPU devices in all: the same run; and how it fails.

    make proof NAME=processes         # resumable: a row that was measured is not measured again

Real processes of `pixel-align train` on the tiny experiment of the tests, in their own environments, joined by jax's
coordination service with gloo collectives. Rows of numbers: losses of all steps and figures of all evaluations against
those of one process; a run of four that was stopped by SIGTERM and gone on with by two, then by one. Rows of failures:
a process killed -9 (not the first, the first), a data folder that one process lacks, a setting, a vocabulary and a data
set that differ: the seconds until the last process has ended, and its first line. Writes docs/proof/processes.json and
the tables of docs/distributed.md.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import record
from pixel_align import distributed
from pixel_align.checkpoints import store

os.environ.setdefault("JAX_PLATFORMS", "cpu")

DEVICES = 8
WITHIN = 60  # seconds in which all processes must have ended
WORK = record.ROOT / "runs" / "proofs" / "processes"
RECORD = record.ROOT / "docs" / "proof" / "processes.json"

# The tiny experiment. The preset names a step in whose log line the last process gets a signal, and the signal.
EXPERIMENT = """
import os, time
import jax
from pixel_align import train
from tests import tiny

def get_config(preset=""):
    step_and_signal = [int(part) for part in preset.split("_")] if preset else [0, 0]
    if preset:
        write = train.MetricsLog.write
        def told(self, step, values):
            write(self, step, values)
            who = 0 if len(step_and_signal) > 2 else jax.process_count() - 1
            if step == step_and_signal[0] and "loss" in values and jax.process_index() == who:
                os.kill(os.getpid(), step_and_signal[1])
            if step >= step_and_signal[0]:
                time.sleep(1)
        train.MetricsLog.write = told
    return tiny.get_config()
"""


def main() -> None:
    done = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    rows: dict[str, dict[str, Any]] = done.get("rows", {})
    prepare()
    for name, measure in (*NUMBERS.items(), *FAILURES.items()):
        if name not in rows:
            rows[name] = measure() | {"commit": record.commit()}
            record.write(
                "processes",
                {"command": "python -m experiments.proofs.processes", "machine": record.machine(), "rows": rows},
            )
        print(name, rows[name], flush=True)
    record.fill(record.ROOT / "docs" / "distributed.md", table(rows), "processes")
    late = [name for name in FAILURES if rows[name]["seconds"] > WITHIN or not rows[name]["line"].startswith("error: ")]
    other = [name for name in NUMBERS if rows[name]["largest_difference"] > 2e-5]
    if late or other:
        sys.exit(f"error: {', '.join(late + other)} is not as promised. Read docs/proof/processes.json.")


def prepare() -> None:
    """The world, a second one with other pictures, and the run in one process that all are compared with."""
    from tests import tiny

    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "experiment.py").write_text(EXPERIMENT, encoding="utf-8")
    if not (WORK / "world" / "vocabulary.model").is_file():
        shutil.rmtree(WORK / "world", ignore_errors=True)
        tiny.make_world(WORK / "world")
    if not (WORK / "other" / "data").is_dir():
        shutil.copytree(WORK / "world", WORK / "other")
        # As a copy that broke off leaves it.
        first = min(path for path in (WORK / "other" / "data").rglob("*train.tfrecord*"))
        first.write_bytes(first.read_bytes()[:-100])
        (WORK / "other" / "vocabulary.model").write_bytes(b"")
    one = WORK / "one"
    if not one.is_dir() or (12, "loss") not in figures(one):
        shutil.rmtree(one, ignore_errors=True)
        assert begin_and_end(1, one)[1] == [0]


def begin_and_end(
    count: int, workdir: Path, preset: str = "", own: Callable[[int], Sequence[str]] = lambda process: ()
) -> tuple[float, list[int], list[str]]:
    """A run of `count` processes: (seconds until the last has ended, exit codes, standard errors).

    own: further arguments of a process. Where a process is killed the seconds are those after its end.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        where = f"localhost:{probe.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={DEVICES // count} --xla_backend_optimization_level=0"
    settings = {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(WORK / "cache")}
    world = (
        "--set",
        f"data.dir={WORK / 'world' / 'data'}",
        "--set",
        f"data.vocabulary={WORK / 'world' / 'vocabulary.model'}",
    )
    arguments = [f"{WORK / 'experiment.py'}{f':{preset}' if preset else ''}", "--workdir", str(workdir), *world]
    begun = []
    for process in range(count):
        several = ["--coordinator", where, "--processes", str(count), "--process", str(process)]
        command = [sys.executable, "-m", "pixel_align", "train", *arguments, "--set", "data.readers=4", *own(process)]
        command += several if count > 1 else []
        log = (WORK / f"{workdir.name}-{process}.log").open("w+", encoding="utf-8")
        begun.append((subprocess.Popen(command, cwd=record.ROOT, env=os.environ | settings, stderr=log), log))
    ended: list[float] = []
    while len(ended) < count:
        time.sleep(0.1)
        ended += [time.monotonic()] * (sum(process.poll() is not None for process, _ in begun) - len(ended))
    said = []
    for _, log in begun:
        with log:
            log.seek(0)
            said.append(log.read())
    return max(ended) - min(ended), [process.returncode for process, _ in begun], said


def figures(workdir: Path) -> dict[tuple[int, str], float]:
    """(step, name) -> loss or figure of an evaluation."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = {"steps_per_second", "data_wait", "step", "learning_rate"}
    return {(line["step"], name): value for line in lines for name, value in line.items() if name not in timed}


def compared(workdir: Path) -> dict[str, Any]:
    """How far a run is from that of one process: the largest difference over max(1, what is expected)."""
    expected, found = figures(WORK / "one"), figures(workdir)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    undefined = {key for key, value in expected.items() if value is None}  # of phrases that the model did not say
    assert undefined == {key for key, value in found.items() if value is None}
    defined = {key: value for key, value in expected.items() if key not in undefined}
    largest = max(abs(found[key] - value) / max(1.0, abs(value)) for key, value in defined.items())
    return {"figures": len(defined), "largest_difference": largest}


def alike(count: int) -> dict[str, Any]:
    """A run of `count` processes from its beginning to its end."""
    workdir = WORK / f"run_of_{count}"
    shutil.rmtree(workdir, ignore_errors=True)
    _, codes, said = begin_and_end(count, workdir)
    assert codes == [0] * count, said
    return compared(workdir)


def handed_on() -> dict[str, Any]:
    """Four processes stopped by SIGTERM, then two stopped by it, then one."""
    workdir = WORK / "handed_on"
    shutil.rmtree(workdir, ignore_errors=True)
    reached = []
    for count, preset in ((4, f"3_{signal.SIGTERM.value}"), (2, f"7_{signal.SIGTERM.value}")):
        _, codes, said = begin_and_end(count, workdir, preset)
        assert codes == [distributed.STOPPED] * count, said
        reached.append(store.find(workdir)[1])
    _, codes, said = begin_and_end(1, workdir)
    assert codes == [0], said
    return {"stopped_at": reached, **compared(workdir)}


def failing(preset: str = "", own: Callable[[int], Sequence[str]] = lambda process: ()) -> dict[str, Any]:
    """A run of two processes that cannot go on."""
    workdir = WORK / "failing"
    shutil.rmtree(workdir, ignore_errors=True)
    seconds, codes, said = begin_and_end(2, workdir, preset, own)
    assert 0 not in codes, said
    survivor = codes.index(-signal.SIGKILL) ^ 1 if -signal.SIGKILL in codes else 0
    # Ours, unless jax was first.
    first = next((line for line in said[survivor].splitlines() if line.startswith("error: ") or "JAX dist" in line), "")
    return {"seconds": round(seconds, 1), "exit_codes": codes, "line": first}


def of_second(*changes: str) -> Callable[[int], Sequence[str]]:
    return lambda process: [part for change in changes for part in ("--set", change)] if process else ()


NUMBERS: dict[str, Callable[[], dict[str, Any]]] = {
    "2 processes": lambda: alike(2),
    "4 processes": lambda: alike(4),
    "4 processes, stopped, 2, stopped, 1": handed_on,
}
FAILURES: dict[str, Callable[[], dict[str, Any]]] = {
    "process 1 killed -9": lambda: failing(f"3_{signal.SIGKILL.value}"),
    "process 0 killed -9": lambda: failing(f"3_{signal.SIGKILL.value}_0"),
    "a data folder that process 1 lacks": lambda: failing("", of_second("data.dir=/nowhere")),
    "a setting that differs": lambda: failing("", of_second("optim.peak_lr=0.1")),
    "a data set that differs": lambda: failing("", of_second(f"data.dir={WORK / 'other' / 'data'}")),
    "a vocabulary that process 1 lacks": lambda: failing(
        "", of_second(f"data.vocabulary={WORK / 'other' / 'vocabulary.model'}")
    ),
}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Two tables: the runs that are alike, and those that fail."""
    numbers = [
        f"| {name} | {rows[name]['figures']} | {rows[name]['largest_difference']:.1e} |"
        for name in NUMBERS
        if name in rows
    ]
    ends = [
        f"| {name} | {rows[name]['seconds']} | `{_short(rows[name]['line'])}` |" for name in FAILURES if name in rows
    ]
    head = f"Of `make proof NAME=processes`, {record.machine()}, {DEVICES} CPU devices in all. Against one process:"
    return "\n".join(
        [
            *(head, "", "| run | losses and figures | largest difference |", "| --- | ---: | ---: |", *numbers, ""),
            "Seconds from the first end of a process to the last, and what the others said first:",
            *("", "| what | seconds | line |", "| --- | ---: | --- |", *ends),
        ]
    )


def _short(line: str) -> str:
    line = line.replace(socket.gethostname(), "host").replace(str(record.ROOT), "...")
    return line if len(line) < 160 else f"{line[:157]}..."


if __name__ == "__main__":
    main()
