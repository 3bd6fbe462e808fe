"""Proof: the drawn world is not too easy. Readers who know a scene's list of objects and ignore part of what is said.

    make proof NAME=readers

They read the expressions of the scenes that `experiments/synthetic.py` evaluates on; where several objects fit, they
guess. Writes docs/proof/readers.json, and from it and docs/proof/synthetic.json, if that is there, the tables of
docs/synthetic.md.
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
# (task, figure) -> (is it to be at least or at most, the bar)
BARS = {
    ("synthetic_narratives", "point_distance"): ("at most", 0.03),
    ("synthetic_expressions", "P@0.5"): ("at least", 0.90),
    ("synthetic_expressions", "P@0.5_relation"): ("at least", 0.85),
    ("synthetic_expressions", "cIoU"): ("at least", 0.80),
    ("synthetic_regions", "exact"): ("at least", 0.90),
}


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
    trained = ROOT / "docs" / "proof" / "synthetic.json"
    if trained.is_file():
        made = json.loads(trained.read_text(encoding="utf-8"))
        record.fill(ROOT / "docs" / "synthetic.md", tables(made, result))
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


def tables(made: Mapping[str, Any], readers: Mapping[str, Any]) -> str:
    """The tables of docs/synthetic.md."""
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
    for task, (mode, keys) in TASKS.items():
        figures = made["tasks"][task]
        for key in keys:
            bar, other = BARS.get((task, key)), figures.get(f"shuffled/{key}")
            reached = bar and (figures[key] <= bar[1] if bar[0] == "at most" else figures[key] >= bar[1])
            asked = f"{bar[0]} {bar[1]:.2f} | {'reached' if reached else 'missed'}" if bar else "| "
            lines.append(
                f"| {mode} | {key} | {figures[key]:.4f} | {'' if other is None else f'{other:.4f}'} | {asked} |"
            )
    lines += [
        "",
        f"Readers of the list of objects, on the same scenes (`{readers['command']}`, commit {readers['commit']}): "
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
