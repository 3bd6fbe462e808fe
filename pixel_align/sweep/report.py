"""What came of a sweep: rows, a table for people, sweep.json, and a plot of figures over the axes."""

import difflib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table

from pixel_align.sweep import runs
from pixel_align.sweep.points import Point, as_text, axes, short
from pixel_align.sweep.runs import Ended

Row = dict[str, Any]  # point, state, step, axes {short name: value}, figures {name: value}, why

_LOG_RATIO = 8  # an axis of positive numbers that spread further is drawn logarithmic


def rows(points: Sequence[Point], folder: Path, ended: Sequence[Ended] | None = None) -> list[Row]:
    """A row for each point: what it is, where it stands, its newest figures by name.

    Args:
      ended: how each ended just now; None to look at the folders alone.
    """
    columns = axes(points)
    labels = short(list(columns))
    found = []
    for index, point in enumerate(points):
        at = folder / point.name
        steps = runs.metrics(at)
        newest = {name: value for step in sorted(steps) for name, value in steps[step].items()}
        failure = at / runs.FAILURE
        found.append(
            {
                "point": point.name,
                "state": ended[index].state if ended else runs.state(point, at),
                "step": max(steps, default=0),
                "axes": {labels[key]: column[index] for key, column in columns.items()},
                "overrides": point.overrides,
                "figures": newest,
                "why": failure.read_text(encoding="utf-8").strip() if failure.is_file() else "",
            }
        )
    return found


def check_metrics(asked: Sequence[str], found: Sequence[Row]) -> str:
    """What to say of asked figures that no run has, "" where each has some."""
    known = list(dict.fromkeys(name for row in found for name in row["figures"]))
    for name in asked:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known) or 'none'}."
            return f"metric is {name!r}, expected one that a run has written. {hint}"
    return ""


def table(found: Sequence[Row], metrics: Sequence[str], title: str) -> rich.table.Table:
    """Axes, state and figures, a line for each point; the failed ones say why below."""
    names = list(found[0]["axes"]) or ["point"]
    failed = [f"{row['point']} failed: {row['why']}" for row in found if row["state"] == "failed"]
    result = rich.table.Table(*names, "state", "step", *metrics, title=title, caption="\n".join(failed) or None)
    for row in found:
        cells = [as_text(value) for value in row["axes"].values()] or [row["point"]]
        figures = (f"{row['figures'][name]:.4g}" if name in row["figures"] else "" for name in metrics)
        result.add_row(*cells, row["state"], str(row["step"]), *figures)
    return result


def write(found: Sequence[Row], sweep: str, folder: Path) -> Path:
    """sweep.json in the folder of the sweep, whole or as it was."""
    path = folder / "sweep.json"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"sweep": sweep, "rows": list(found)}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def plot(found: Sequence[Row], metrics: Sequence[str], path: Path, title: str = "") -> None:
    """A PNG with a panel for each figure: over the axis with most values, a line for each combination of the others.

    Points without that figure are left out; lines go through what is there.

    Raises:
      ModuleNotFoundError: matplotlib, the extra [plots].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    along, others = _axes_of(found)
    values = _ordered([_place(row, along) for row in found])
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    figure = Figure(figsize=(1.0 + 5.0 * len(metrics), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for label, line in _lines(found, along, others).items():
            drawn = {_key(_place(row, along)): row for row in line if name in row["figures"]}
            kept = [value for value in values if _key(value) in drawn]
            xs = kept if numbers else [values.index(value) for value in kept]
            ys = [drawn[_key(value)]["figures"][name] for value in kept]
            panel.plot(xs, ys, marker="o", linewidth=1.2, label=label or None)
        if numbers and min(values) > 0 and max(values) > _LOG_RATIO * min(values):
            panel.set_xscale("log")
        if not numbers:
            panel.set_xticks(range(len(values)), [_label(value) for value in values], rotation=20, ha="right")
        panel.set_xlabel(along or "point")
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.3)
        if others and any(panel.get_legend_handles_labels()[0]):
            panel.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(path)


def _axes_of(found: Sequence[Row]) -> tuple[str, list[str]]:
    """The axis to draw along, numbers before names, then that with most values; and the others."""
    names = list(found[0]["axes"])

    def rank(name: str) -> tuple[bool, int]:
        column = [row["axes"][name] for row in found]
        return all(isinstance(value, int | float) for value in column), len({_key(value) for value in column})

    along = max(names, key=rank, default="")
    return along, [name for name in names if name != along]


def _lines(found: Sequence[Row], along: str, others: Sequence[str]) -> dict[str, list[Row]]:
    """Legend -> the rows of a line."""
    lines: dict[str, list[Row]] = {}
    for row in found:
        lines.setdefault(", ".join(f"{name}={_label(row['axes'][name])}" for name in others), []).append(row)
    return lines


def _place(row: Row, along: str) -> Any:
    return row["axes"][along] if along else row["point"]


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Different values, numbers by size, others as they come."""
    different = list({_key(value): value for value in values}.values())
    if all(isinstance(value, int | float) and math.isfinite(value) for value in different):
        return sorted(different)
    return different


def _key(value: Any) -> str:
    return json.dumps(value)


def _label(value: Any) -> str:
    text = as_text(value)
    return text if len(text) <= 24 else text[:23] + "…"


def unfinished(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the points that are not done; those that run elsewhere may still come."""
    return [row["point"] for row in found if row["state"] not in ("done", "running")]
