"""A row of a benchmark: what was done how often in which time and memory, on which machine, at which commit."""

import dataclasses
import functools
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measurement.

    Attributes:
      name: of what was measured.
      cases: how many; `unit` says of what.
      seconds: of all together, without making the inputs.
      against: what the ratio is against, "" for nothing.
      ratio: our rate divided by the other's in the same run, above 1 is faster; None for nothing.
      notes: further figures by name.
    """

    name: str
    cases: int
    unit: str
    seconds: float
    against: str = ""
    ratio: float | None = None
    notes: dict[str, float] = dataclasses.field(default_factory=dict)


def document(measured: Measured) -> dict[str, Any]:
    """A row as JSON, to be made in the process that measured: its peak of memory is in it."""
    return {
        **dataclasses.asdict(measured),
        "rate": measured.cases / measured.seconds,
        "peak_bytes": peak_bytes(),
        "machine": machine(),
        "commit": commit(),
    }


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    # Not ru_maxrss where there is another way: on Linux it begins with what the parent process held.
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """What it runs on, such as "Linux x86_64, 2 cores, Python 3.11.9"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"


@functools.cache
def commit() -> str:
    """Of the checkout, with a plus where the package differs from it; the version where there is no checkout."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        from pixel_align import __version__

        return __version__


def table(documents: Sequence[Mapping[str, Any]]) -> rich.table.Table:
    """Rows for people."""
    note = "ratio: our rate by the other's, in the same run; the JSON says whose"
    result = rich.table.Table("row", "cases", "seconds", "rate", "ratio", "peak", caption=note)
    for row in documents:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        amounts = f"{row['cases']:,}", _figure(row["seconds"]), f"{_figure(row['rate'])}/s"
        result.add_row(row["name"], *amounts, ratio, f"{row['peak_bytes'] / 2**20:,.0f} MiB")
    return result


def _figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write(documents: Sequence[Mapping[str, Any]], path: Path) -> None:
    """JSON lines, whole or absent."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    partial.replace(path)
