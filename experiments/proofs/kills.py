"""Proof: a run that is killed -9 at any moment loses at most the steps since its last checkpoint, and nothing else.

    make proof NAME=kills         # resumable: kills that were kills are not repeated

The tiny experiment of the tests (drawn scenes, a model of width 16, dropout and augmentation on) is started as a
process, killed by SIGKILL at a random moment after its first step, and started again, until it has done its steps; then
a new run begins, until there were 50 kills. It saves every second step, so that many kills fall into a save. After
every kill: how many steps that were logged have to be done again? At the end of every run: are its losses those of a
run that nobody killed, bit for bit? Writes docs/proof/kills.json and the table of docs/distributed.md.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments import record
from pixel_align.checkpoints import store

os.environ.setdefault("JAX_PLATFORMS", "cpu")

STEPS, EVERY, KILLS_OF_A_RUN = 40, 2, 10
WORK = record.ROOT / "runs" / "proofs" / "kills"
RECORD = record.ROOT / "docs" / "proof" / "kills.json"

# The preset says after how many milliseconds from its first line on the process kills itself; 0 for never.
BOMB = """
import dataclasses, os, signal, threading
from pixel_align import train
from tests import tiny

def get_config(preset):
    write = train.MetricsLog.write
    def lit(self, step, values):
        write(self, step, values)
        if int(preset) and not getattr(self, "lit", False):
            self.lit = True
            threading.Timer(int(preset) / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
    train.MetricsLog.write = lit
    experiment = tiny.without_evaluations(tiny.get_config())
    loop = dataclasses.replace(experiment.train, steps=STEPS, checkpoint_every=EVERY)
    return dataclasses.replace(experiment, train=loop)
"""
BOMB = BOMB.replace("STEPS", str(STEPS)).replace("EVERY", str(EVERY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    done = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    if done.get("commit", record.commit()) != record.commit() and len(done.get("kills", ())) < args.kills:
        print(f"the record was begun at {done['commit']} and goes on at {record.commit()}", file=sys.stderr)
    kills, runs = done.get("kills", []), done.get("runs", [])
    reference = prepare()
    steps = losses(reference)
    assert list(steps) == list(range(1, STEPS + 1))
    while len(kills) < args.kills or kills[-1]["run"] == len(runs):
        workdir = WORK / f"run_{len(runs)}"
        enough = sum(kill["run"] == len(runs) for kill in kills) == KILLS_OF_A_RUN or len(kills) == args.kills
        if not enough and (kill := killed(workdir, f"{len(runs)} {len(kills)}")):
            kills.append({"run": len(runs), **kill})
        else:
            run(workdir, 0)
            runs.append({"equal": losses(workdir) == steps})
            shutil.rmtree(workdir)
        write(kills, runs)
        print(f"{len(kills)} kills, {sum(kill['in_save'] for kill in kills)} of them in a save", flush=True)
    write(kills, runs)
    record.fill(record.ROOT / "docs" / "distributed.md", table(kills, runs), "kills")
    print(table(kills, runs))
    if not all(one["equal"] for one in runs) or any(kill["lost"] > kill["allowed"] for kill in kills):
        sys.exit("error: a run lost more than it may, or went on otherwise. Read docs/proof/kills.json.")


def prepare() -> Path:
    """The world, and a run in it that nobody kills; its folder."""
    from tests import tiny

    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "bomb.py").write_text(BOMB, encoding="utf-8")
    if not (WORK / "world" / "vocabulary.model").is_file():
        shutil.rmtree(WORK / "world", ignore_errors=True)
        tiny.make_world(WORK / "world")
    reference = WORK / "uninterrupted"
    if not reference.is_dir() or len(losses(reference)) < STEPS:
        run(reference, 0)
    return reference


def run(workdir: Path, milliseconds: int) -> int:
    """`pixel-align train` until its end or its death; its exit code."""
    from tests import tiny

    changes = [part for change in tiny.in_world(WORK / "world") for part in ("--set", change)]
    arguments = [f"{WORK / 'bomb.py'}:{milliseconds}", "--workdir", str(workdir), *changes]
    settings = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_COMPILATION_CACHE_DIR": str(WORK / "cache")}
    settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "pixel_align", "train", *arguments],
        cwd=record.ROOT,
        env=os.environ | settings,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, -9):
        sys.exit(f"error: a run ended with {done.returncode}, expected its end or SIGKILL: {done.stderr[-2000:]}")
    return done.returncode


def killed(workdir: Path, seed: str) -> dict[str, Any] | None:
    """Starts a run and kills it at a moment drawn from `seed`; None where it came to its end before."""
    milliseconds = random.Random(seed).randint(1, 3000)
    if run(workdir, milliseconds) == 0:
        return None
    logged, whole = max(losses(workdir), default=0), newest(workdir)
    half = any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    return {
        "milliseconds": milliseconds,
        "logged": logged,
        "whole": whole,
        "lost": logged - whole,
        # While a step is saved it is not whole yet: the last checkpoint is the one before.
        "allowed": EVERY * (2 if half else 1),
        "in_save": half,
    }


def newest(workdir: Path) -> int:
    """The newest whole step, 0 for none."""
    folder = workdir / "checkpoints"
    return max(store.steps_of(folder), default=0) if folder.is_dir() else 0


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss, of the lines that are whole."""
    found = {}
    for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # what a kill left of a line
        found[row["step"]] = row["loss"]
    return found


def write(kills: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    record.write(
        "kills",
        {
            "command": "python -m experiments.proofs.kills",
            "commit": record.commit(),
            "machine": record.machine(),
            "settings": {"steps": STEPS, "checkpoint_every": EVERY},
            "summary": {
                "kills": len(kills),
                "in_save": sum(kill["in_save"] for kill in kills),
                "most_steps_lost": max((kill["lost"] for kill in kills), default=0),
                "runs": len(runs),
                "runs_with_equal_losses": sum(one["equal"] for one in runs),
            },
            "runs": runs,
            "kills": kills,
        },
    )


def table(kills: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """The counts for the page."""
    rows = (
        ("kills -9 at random moments", len(kills)),
        ("of them in the middle of a save", sum(kill["in_save"] for kill in kills)),
        (f"most steps done again (a checkpoint every {EVERY})", max(kill["lost"] for kill in kills)),
        ("runs brought to their end", len(runs)),
        ("of them with the losses of a run that nobody killed, bit for bit", sum(one["equal"] for one in runs)),
    )
    lines = [f"Of `make proof NAME=kills`, {record.machine()}, commit {record.commit()}:", "", "| what | count |"]
    return "\n".join([*lines, "| --- | ---: |", *(f"| {what} | {count} |" for what, count in rows)])


if __name__ == "__main__":
    main()
