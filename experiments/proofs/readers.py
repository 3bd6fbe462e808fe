"""Proof: the drawn world is not too easy. Readers who know a scene's list of objects and ignore part of what is said.

    make proof NAME=readers

They read the expressions of the scenes that `experiments/synthetic.py` evaluates on; where several objects fit, they
guess. Writes docs/proof/readers.json, and from it, docs/proof/synthetic.json and synthetic_everything.json, if they are
there, the tables of docs/synthetic.md.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines import synthetic
from data_pipelines.synthetic_expressions import Ignored, Reader, expressions
from experiments import record
from experiments.record import ROOT

SCENES = 320
IGNORED: tuple[Ignored, ...] = ("", "colours", "shapes", "relations")
TASKS = {
    "synthetic_narratives": ("trace", ("point_distance", "point_distance_free", "matched_words")),
    "synthetic_expressions": (
        "segment",
        ("P@0.5", "P@0.5_attribute", "P@0.5_size", "P@0.5_relation", "P@0.5:0.95", "cIoU", "gIoU"),
    ),
    "synthetic_regions": ("describe", ("exact",)),
}
MORE_TASKS = {
    "synthetic_densecap": ("densecap", ("mAP", "mAP_detection")),
    "synthetic_questions": ("answer", ("exact",)),
}
# (task, figure) -> (is it to be at least or at most, the bar)
BARS = {
    ("synthetic_narratives", "point_distance"): ("at most", 0.03),
    ("synthetic_expressions", "P@0.5"): ("at least", 0.90),
    ("synthetic_expressions", "P@0.5_relation"): ("at least", 0.85),
    ("synthetic_expressions", "cIoU"): ("at least", 0.80),
    ("synthetic_regions", "exact"): ("at least", 0.90),
    ("synthetic_densecap", "mAP"): ("at least", 0.50),
    ("synthetic_questions", "exact"): ("at least", 0.90),
}
KEPT = 0.03  # of a figure with three tasks, with all five


def main() -> None:
    shares = read()
    result = {
        "command": "make proof NAME=readers",
        "commit": record.commit(),
        "machine": record.machine(),
        "scenes": SCENES,
        **shares,
    }
    record.write("readers", result)
    page = ROOT / "docs" / "synthetic.md"
    record.fill(page, reading(result), mark="readers")
    if three := _trained("synthetic"):
        record.fill(page, table(three, TASKS))
        if five := _trained("synthetic_everything"):
            record.fill(page, table(five, TASKS | MORE_TASKS, three), mark="everything")
    print(json.dumps(shares, indent=1))


def read() -> dict[str, Any]:
    """How many expressions there are, and kind -> what is ignored -> the share that is read right."""
    right: dict[str, dict[str, list[float]]] = {kind: {} for kind in ("all", *synthetic.KINDS)}
    for index in range(SCENES):
        told = synthetic.scene(synthetic.World(), 0, index, "validation")
        for ignored in IGNORED:
            reader = Reader(told.things, ignored)
            for expression in expressions(told):
                found = reader.read(expression.meaning)
                share = (expression.thing in found) / max(1, len(found))
                for kind in ("all", expression.meaning.kind):
                    right[kind].setdefault(ignored or "nothing", []).append(share)
    return {
        "expressions": {kind: len(by["nothing"]) for kind, by in right.items()},
        "read": {
            kind: {ignored: round(float(np.mean(shares)), 4) for ignored, shares in by.items()}
            for kind, by in right.items()
        },
    }


def _trained(name: str) -> dict[str, Any] | None:
    path = ROOT / "docs" / "proof" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(
    made: Mapping[str, Any], tasks: Mapping[str, tuple[str, tuple[str, ...]]], before: Mapping[str, Any] | None = None
) -> str:
    """The figures of a run, each with its control and its bar; with `before`, held to those of a run with fewer."""
    lines = [
        f"`{made['command']}`, commit {made['commit']}, {made['machine']}, {made['scenes']['train']:,} scenes to train "
        f"on, {made['scenes']['unseen']} unseen ones; "
        + ", ".join(
            f"{stage} {made['steps'][stage]:,} steps in {seconds / 60:.1f} min"
            for stage, seconds in made["train_seconds"].items()
        )
        + ".",
        "",
        "| mode | figure | unseen scenes | other pictures (`shuffled`) | asked for | |",
        "|---|---|---|---|---|---|",
    ]
    for task, (mode, keys) in tasks.items():
        figures = made["tasks"][task]
        for key in keys:
            way, bar = BARS.get((task, key), ("", 0.0))
            if before and way and task in before["tasks"]:
                known = before["tasks"][task][key]
                bar = known + KEPT if way == "at most" else known - KEPT
            reached = figures[key] <= bar if way == "at most" else figures[key] >= bar
            other, asked = figures.get(f"shuffled/{key}"), f"{way} {bar:.2f} | {'reached' if reached else 'missed'}"
            lines.append(
                f"| {mode} | {key} | {figures[key]:.4f} | {'' if other is None else f'{other:.4f}'} | "
                f"{asked if way else '| '} |"
            )
    return "\n".join(lines)


def reading(readers: Mapping[str, Any]) -> str:
    """What readers of the list of objects get right."""
    lines = [
        f"On the scenes of the table above (`{readers['command']}`, commit {readers['commit']}): "
        "P@0.5 of one who ignores",
        "",
        "| expressions | how many | nothing | colours | shapes | relations |",
        "|---|---|---|---|---|---|",
    ]
    for kind, shares in readers["read"].items():
        row = " | ".join(f"{shares[ignored or 'nothing']:.3f}" for ignored in IGNORED)
        lines.append(f"| {kind} | {readers['expressions'][kind]:,} | {row} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
