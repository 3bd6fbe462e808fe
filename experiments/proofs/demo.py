"""Proof: what the demo reaches, in the README.

    make proof NAME=demo                                             # the whole demo, then its tables
    make proof NAME=demo ARGS="--workdir runs/quickstart --made"     # the tables of a demo that was made

Writes docs/proof/demo.json, docs/demo.png and the tables of README.md.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import PIL.Image
import typer

from experiments import quickstart, record

WIDTH = 1600  # pixels of docs/demo.png
ROWS = {
    "demo": "**all tasks, dense objective on**",
    "dense_off": "narratives alone, no dense objective and no alignment after the first stage",
    "no_first_stage": "the same without the first stage",
}
CONTROLS = {
    "shuffled/": "its words, other pictures",
    "swapped/": "its words, another word's place",
    "center/": "a reader without eyes: the centre",
    "mean/": "a reader without eyes: mean of all objects",
}


def main(
    workdir: Annotated[Path, typer.Option(help="The demo's folder.")] = Path("runs/quickstart"),
    made: Annotated[bool, typer.Option("--made", help="The demo was made there.")] = False,
) -> None:
    """Make the demo, or read the one that was made; fill the README."""
    if not made:
        quickstart.run(workdir, changes=None)
    report = json.loads((workdir / "report.json").read_text(encoding="utf-8"))
    record.write("demo", report)
    sheet = PIL.Image.open(workdir / "demo.png").convert("RGB")
    small = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), PIL.Image.Resampling.LANCZOS)
    small.quantize(256).save(record.ROOT / "docs" / "demo.png", optimize=True)
    record.fill(record.ROOT / "README.md", tables(report), mark="demo")


def tables(report: dict[str, Any]) -> str:
    """The figures of a demo: narratives with their controls and rows, the other tasks beside `shuffled`."""
    tasks = dict(report["tasks"])
    narratives = tasks.pop(quickstart.NARRATIVES)
    keys = quickstart.KEYS[quickstart.NARRATIVES]
    lines = [
        f"`{report['command']}`, commit {report['commit']}, {report['machine']}, {report['seconds'] / 60:.1f} min "
        f"without the installation: {report['scenes']['train']:,} drawn scenes to train on, "
        f"{report['scenes']['unseen']} unseen ones to score, a first stage of {report['first_stage']['steps']} steps.",
        "",
        f"| narratives | steps | {' | '.join(f'`{key}`' for key in keys)} |",
        "|---" * (len(keys) + 2) + "|",
    ]
    for row in narratives["rows"]:
        for prefix, label in {"": ROWS[row["row"]], **CONTROLS}.items():
            figures = [row["metrics"].get(prefix + key) for key in keys]
            if any(figure is not None for figure in figures):
                cells = ["" if figure is None else f"{figure:.4f}" for figure in figures]
                lines.append(f"| {label} | {'' if prefix else row['steps']} | {' | '.join(cells)} |")
    lines += ["", "| the other tasks | figure | unseen scenes | other pictures |", "|---|---|---|---|"]
    for name, task in tasks.items():
        metrics = task["rows"][0]["metrics"]
        for key in filter(metrics.__contains__, quickstart.KEYS[name]):
            lines.append(f"| {task['mode']} | `{key}` | {metrics[key]:.4f} | {metrics[f'shuffled/{key}']:.4f} |")
    missed = [
        f"{bar} ({task['mode']})"
        for task in report["tasks"].values()
        for bar, reached in task["bars"].items()
        if not reached
    ]
    lines += ["", f"Missed: {', '.join(missed)}." if missed else "All bars that the demo sets itself are reached."]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
