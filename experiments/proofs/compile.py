"""Proof: every recipe compiled for TPUs that are not here, row by row. Needs pixel-align[tpu].

    make proof NAME=compile                        what is not in docs/proof/compile.json yet
    make proof NAME=compile ARGS="joint-v5e-16"    these rows, again if they are there

Each row is one command, `pixel-align compile`, which the record holds. A row of the XL size takes minutes and some
10 GB of memory. Writes docs/proof/compile.json after each, and the tables of docs/compile.md from it: a row that was
not run says so.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import record

GIB = 2**30
# What a run on TPUs sets beside its recipe: bfloat16, frozen tables too, layers computed again instead of kept, and a
# state that 16 chips share.
PARTS = ("text", "extractor", "image.eva", "image.sam")
COMMON = (
    "train.frozen_dtype=bfloat16",
    *(f"model.{part}.dtype=bfloat16" for part in PARTS),
    *(f"model.{part}.remat=full" for part in PARTS if part != "image.sam"),
    "mesh.fsdp=16",
)
DETECTOR = ("model.detector.dtype=bfloat16",)
MASKS = ("model.masks.decoder.dtype=bfloat16", "model.masks.adapter.dtype=bfloat16")
# Of the joint recipes: 128 pictures in batches that 16 chips divide. The recipe's own are multiples of 8; the losses
# are joined by their weights, whatever the batches.
JOINT = (16, 16, 32, 32, 16, 16)


@dataclasses.dataclass(frozen=True)
class Row:
    """One command. fast: compiled with less care for speed, in half of the time."""

    name: str
    experiment: str
    topology: str
    changes: tuple[str, ...]
    programs: tuple[str, ...] = ("train",)
    fast: bool = True

    def command(self, out: str) -> list[str]:
        programs = [part for program in self.programs for part in ("--program", program)]
        changes = [part for change in self.changes for part in ("--set", change)]
        fast = ["--fast"] * self.fast
        where = ["--topology", self.topology]
        return ["pixel-align", "compile", self.experiment, *where, *programs, *fast, "--json", out, *changes]


def joint(times: int) -> tuple[str, ...]:
    """The batches of the joint recipes, so many times 128 pictures."""
    sizes = [times * size for size in JOINT]
    rest = (f"data.further.{i}.batch_size={size}" for i, size in enumerate(sizes[1:]))
    return (*COMMON, *DETECTOR, f"data.batch_size={sizes[0]}", *rest)


def rows() -> list[Row]:
    """All rows: the two joint recipes over topologies, the others on 16 chips, large canvases."""
    slices = (("v5e-16", "v5e:4x4", 1), ("v5e-64", "v5e:8x8", 4), ("v5e-256", "v5e:16x16", 16))
    slices += (("v5p-64", "v5p:4x4x4", 4), ("v6e-64", "v6e:8x8", 4))
    found = [Row(f"joint-{name}", "experiments/multitask.py", where, joint(times)) for name, where, times in slices]
    answers = ("evaluate", "decode")
    found.append(Row("joint-answers-v5e-16", "experiments/multitask.py", "v5e:4x4", joint(1), answers))
    for name, topology, times in slices:
        changes = (*joint(times), *MASKS)
        found.append(Row(f"joint-masks-{name}", "experiments/multitask_masks.py", topology, changes))
    for stage, changes in (
        ("localized_narratives", COMMON),
        ("refcoco", COMMON),
        ("refcoco_masks", (*COMMON, *MASKS)),
        ("visual_genome", (*COMMON, *DETECTOR)),
    ):
        for preset in ("t5_xl", "bert"):
            file = f"experiments/{stage}.py:{preset}"
            found.append(Row(f"{stage}-{preset}-v5e-16", file, "v5e:4x4", changes))
    wide = (*COMMON, "mesh.fsdp=64", "model.shape.canvas=1024")
    found.append(Row("refcoco-1024-v5e-64", "experiments/refcoco.py", "v5e:8x8", wide))
    return found


def main(names: Sequence[str]) -> None:
    path = record.ROOT / "docs" / "proof" / "compile.json"
    done: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if unknown := [name for name in names if name not in {row.name for row in rows()}]:
        raise SystemExit(f"row is {unknown[0]!r}, expected one of {', '.join(row.name for row in rows())}. Correct it.")
    for row in rows():
        if row.name in names or (not names and row.name not in done):
            done[row.name] = run(row)
            record.write("compile", done)
            fill(done)
    fill(done)


def run(row: Row) -> dict[str, Any]:
    """The record of a row: its command, the commit, what the command wrote or why it wrote nothing."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = row.command(str(out))
        print(f"{row.name}: {shlex.join(command)}", file=sys.stderr, flush=True)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        program = [sys.executable, "-m", "pixel_align", *command[1:]]
        done = subprocess.run(program, cwd=record.ROOT, env=environment, check=False)
        said = {"command": shlex.join(row.command("FILE")), "commit": record.commit(), "machine": record.machine()}
        if done.returncode:
            return {**said, "failed": done.returncode}
        return {**said, "programs": json.loads(out.read_text("utf-8"))}


# ---- The tables


def fill(done: dict[str, Any]) -> None:
    """The tables of docs/compile.md."""
    page = record.ROOT / "docs" / "compile.md"
    record.fill(page, memory_table(done), "memory")
    record.fill(page, work_table(done), "work")
    commands = [f"{name}:\n\n    {one['command']}\n" for name, one in done.items() if "programs" in one]
    record.fill(page, "\n".join(commands), "commands")


MEMORY = ("row", "program", "chips: data x fsdp x tensor", "pictures", "GiB of a chip", "arguments", "temporaries")
WORK = ("row", "program", "model TFLOPs of a chip", "again", "compiled / model, again apart")
SENT = "GB sent by a chip: gathering, reducing, other"


def memory_table(done: dict[str, Any]) -> str:
    """What each program takes of a chip, and how long it was compiled."""
    lines = [_line(*MEMORY, "compiled in"), "|---|---|---|---:|---:|---:|---:|---:|"]
    for row in rows():
        for program, one in _programs(row, done):
            if one is None:
                lines.append(_line(row.name, program, row.topology, "", _why(row, done), "", "", ""))
                continue
            mesh = f"{one['chips']}: {' x '.join(map(str, one['mesh']))}"
            taken = f"{one['peak_bytes_per_chip'] / GIB:.2f} of {one['memory_per_chip'] / GIB:.0f}"
            taken = taken if one["fits"] else f"**{taken}: does not fit.** {one['advice']}"
            parts = (f"{one[name] / GIB:.2f}" if one["fits"] else "" for name in ("arguments", "temporaries"))
            compiled = f"{one['seconds']['compile']:.0f} s"
            lines.append(_line(row.name, program, mesh, one["examples"], taken, *parts, compiled))
    return "\n".join(lines)


def work_table(done: dict[str, Any]) -> str:
    """What each program that was compiled computes and sends."""
    lines = [_line(*WORK, SENT, "estimated ms, bound by", "estimated utilisation")]
    lines.append("|---|---|---:|---:|---:|---|---|---:|")
    for row in rows():
        for program, one in _programs(row, done):
            if one is None or not one["fits"] or not one["model_flops"]:
                continue
            sent = dict(one["collective_bytes"])
            gathered = sent.pop("all-gather", 0)
            reduced = sent.pop("all-reduce", 0) + sent.pop("reduce-scatter", 0)
            estimate = one["estimate"]
            bound = max(("products", "memory", "links"), key=estimate.__getitem__)
            lines.append(
                _line(
                    row.name,
                    program,
                    f"{one['model_flops'] / one['chips'] / 1e12:.2f}",
                    f"{one['again'] / one['model_flops']:.0%}" if one["again"] is not None else "",
                    f"{one['compiled_over_model_flops']:.3f}",
                    ", ".join(f"{size / 1e9:.2f}" for size in (gathered, reduced, sum(sent.values()))),
                    f"{1e3 * estimate['step']:.0f}, {bound}",
                    f"{estimate['utilisation']:.0%}",
                )
            )
    return "\n".join(lines)


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _programs(row: Row, done: dict[str, Any]) -> list[tuple[str, Any]]:
    found = {one["program"]: one for one in done.get(row.name, {}).get("programs", ())}
    return [(program, found.get(program)) for program in row.programs]


def _why(row: Row, done: dict[str, Any]) -> str:
    return f"failed, exit code {done[row.name]['failed']}" if row.name in done else "unmeasured"


if __name__ == "__main__":
    main(sys.argv[1:])
