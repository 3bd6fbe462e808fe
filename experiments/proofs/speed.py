"""Proof: how fast a training step and the input pipelines are on this machine, each saving beside its naive twin.

    make proof NAME=speed                             # rows lie in runs/speed; killed, it goes on where it was
    make proof NAME=speed ARGS="--presets quickstart"

Runs `pixel-align benchmark train` and `benchmark input` for the presets, a row or a few at a time, and writes
docs/proof/speed.json and the tables of docs/speed.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import record
from pixel_align.benchmark import train as training

Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/speed"))
    parser.add_argument("--presets", nargs="+", default=["quickstart", "bench"])
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Row]] = {}
    for preset in args.presets:
        jobs = [("train", ["--only", name], name) for name in training.measurements()] + [("input", [], "input")]
        for what, more, name in jobs:
            path = args.workdir / f"{preset}-{name}.jsonl"
            if not path.is_file():
                words = ["benchmark", what, "--preset", preset, *more, "--json", str(path)]
                subprocess.run([sys.executable, "-m", "pixel_align", *words], check=True)
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found.setdefault(preset, []).extend(rows)
    command = f"python -m experiments.proofs.speed --presets {' '.join(args.presets)}"
    record.write("speed", {"command": command, "machine": record.machine(), "rows": found})
    page = record.ROOT / "docs" / "speed.md"
    record.fill(page, steps(found), "steps")
    record.fill(page, savings(found), "savings")
    record.fill(page, pipelines(found), "input")


def steps(found: Mapping[str, Sequence[Row]]) -> str:
    """Steps and their parts."""
    lines = _head("preset, regions", "part", "ms", "of the step", "examples/s", "GFLOP/s", "device MiB", "compiling, s")
    for preset, rows in found.items():
        for row in rows:
            step, _, part = row["name"].partition("/")
            if not step.startswith("step_"):
                continue
            notes = row["notes"]
            share = notes["of_step"] if part else notes["rest_ms"] / notes["ms"]
            lines += _line(
                f"{preset}, {step.removeprefix('step_')}",
                part or "**all**",
                f"{notes['ms']:,.1f}",
                f"{share:.0%}" if part else f"(left: {share:.0%})",
                f"{row['rate']:,.1f}",
                f"{notes['flops_per_second'] / 1e9:,.1f}" if "flops_per_second" in notes else "",
                f"{notes['device_bytes'] / 2**20:,.0f}",
                f"{notes['compile_seconds']:.1f}",
            )
    return "\n".join([*lines, "", _where(found)])


def savings(found: Mapping[str, Sequence[Row]]) -> str:
    """Each saving beside its twin."""
    lines = _head("preset", "saving", "beside", "times as fast", "ms", "its ms", "device MiB", "its MiB", "difference")
    told = []
    for preset, rows in found.items():
        for row in rows:
            notes, name = row["notes"], row["name"].replace("_", " ")
            if row["name"] == "scan":
                times = f"{1e3 * row['seconds']:,.0f}", f"{1e3 * notes['twin_seconds']:,.0f}"
                lines += _line(preset, "scan (compiling)", row["against"], f"{row['ratio']:.2f}", *times, "", "", "")
            elif "twin_ms" in notes:
                times = tuple(f"{notes[key]:,.1f}" for key in ("ms", "twin_ms"))
                sizes = tuple(f"{notes[key] / 2**20:,.0f}" for key in ("device_bytes", "twin_device_bytes"))
                difference = f"{notes['difference']:.0e}"
                lines += _line(preset, name, row["against"], f"{row['ratio']:.2f}", *times, *sizes, difference)
            if "to_one_region" in notes:
                told.append(f"{notes['to_one_region']:.2f} ({preset})")
    said = "Before the language model 16 regions that share the prompt take as long as one region, times"
    return "\n".join([*lines, "", f"{said} {', '.join(told)}."])


def pipelines(found: Mapping[str, Sequence[Row]]) -> str:
    """Both pipelines of each preset, by stage and whole."""
    stages = ("read", "decode", "place", "convert", "stack")
    rates = "decoding alone, images/s per core", "whole, images/s per core", "whole of decoding alone"
    lines = _head("preset, pipeline", *(f"{stage}, ms" for stage in stages), *rates)
    for preset, rows in found.items():
        named = {row["name"]: row for row in rows}
        for name in ("trace", "refer"):
            if f"{name}/whole" in named:
                whole, alone = named[f"{name}/whole"], named[f"{name}/decoding_alone"]
                each = [f"{1e3 / named[f'{name}/{stage}']['rate']:.2f}" for stage in stages]
                both = [f"{row['notes']['per_core']:,.0f}" for row in (alone, whole)]
                lines += _line(f"{preset}, {name}", *each, *both, f"{whole['ratio']:.0%}")
    return "\n".join(lines)


def _head(*cells: str) -> list[str]:
    return [*_line(*cells), "|---" * len(cells) + "|"]


def _line(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _where(found: Mapping[str, Sequence[Row]]) -> str:
    rows = [row for rows in found.values() for row in rows]
    commits = sorted({row["commit"] for row in rows})
    return f"{rows[0]['machine']}, commit {', '.join(commits)}."


if __name__ == "__main__":
    main()
