"""Proof: the table of recipes, from the experiments as they stand. Parameters are counted as shapes, none is made.

    make proof NAME=recipes

Writes the two tables of docs/recipes.md.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import record
from pixel_align import models, param_rules
from pixel_align.config import load
from pixel_align.experiment import Experiment
from pixel_align.models import ModelConfig
from pixel_align.models.pixel_llm import LossConfig

STAGES = ("localized_narratives", "refcoco", "refcoco_masks", "visual_genome", "multitask", "multitask_masks")
PRESETS = ("t5_xl", "bert")
PARTS = {
    "EVA02-L": "image/eva/.*",
    "SAM ViT-H": "image/sam/.*",
    "prompt encoder": "prompt/.*",
    "extractor": "extractor/.*|visual_.*",
    "language model": "text/(?!.*/lora/).*",
    "LoRA": "text/.*/lora/.*",
    "location": "location/.*",
    "detector": "detector/.*",
    "mask adapter": "mask_adapter/.*",
    "mask decoder": "mask_decoder/.*",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What of an experiment stands in the tables.

    Attributes:
      parts: name -> (number of parameters, how many of them are trained).
    """

    name: str
    config: Experiment
    parts: dict[str, tuple[int, int]]

    @property
    def total(self) -> int:
        return sum(count for count, _ in self.parts.values())

    @property
    def trained(self) -> int:
        return sum(count for _, count in self.parts.values())


# What no parameter's shape depends on.
FREE = {"frozen": False, "layer_decay": 1.0, "lr_multiplier": 1.0, "detections": 8, "loss": LossConfig()}


def shapes(config: Experiment) -> Any:
    """The parameters of an experiment, as shapes; those of models that differ in FREE alone are made once."""
    short = dataclasses.replace(
        config.model.shape, regions=1, prompts=1, text=4, instruction=2, objects=0, mask=0, described=0
    )
    return _shapes(_plain(dataclasses.replace(config.model, shape=short)))


def _plain(part: Any) -> Any:
    """A tree of settings with those of FREE as there."""
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    changed = {name: _plain(value) if dataclasses.is_dataclass(value) else value for name, value in fields.items()}
    return type(part)(**{**changed, **{name: value for name, value in FREE.items() if name in fields}})


@functools.cache
def _shapes(model: ModelConfig) -> Any:
    return jax.eval_shape(lambda: models.family_of(model).init(model))


def row(name: str, config: Experiment) -> Row:
    """The row of an experiment.

    Raises ValueError for a parameter of no part.
    """
    params = shapes(config)
    part = param_rules.paths(param_rules.match([(regex, key) for key, regex in PARTS.items()], params, dead="ignore"))
    rules = models.family_of(config.model).rules(config.model)
    trains = param_rules.paths(param_rules.match(rules["trainable"], params))
    parts = dict.fromkeys(PARTS, (0, 0))
    for path, leaf in param_rules.paths(params).items():
        count, trained = parts[part[path]]
        parts[part[path]] = count + leaf.size, trained + leaf.size * trains[path]
    return Row(name, config, parts)


def tables(rows: Sequence[Row]) -> tuple[str, str]:
    """How each is trained, and how many parameters each part of it has: two tables of Markdown."""
    how = ["| recipe | batch | steps, warm-up | rate | weight decay | shapes: pictures x N x T + C | begins with |"]
    how += ["|---|---|---|---|---|---|---|"]
    for one in rows:
        optim, batches = one.config.optim, one.config.batches()
        groups = "; ".join(
            f"{read.batch_size} x {model.shape.regions} x {model.shape.text} + {model.shape.instruction}"  # type: ignore[attr-defined]
            for model, read in batches
        )
        sizes = sum(read.batch_size for _, read in batches)
        steps = f"{one.config.train.steps:,}, {optim.warmup_steps:,}"
        how.append(
            f"| `{one.name}` | {sizes} | {steps} | {optim.peak_lr:g} | {optim.weight_decay:g} | {groups} "
            f"| `{one.config.init.checkpoint}` |"
        )
    what = [f"| recipe | {' | '.join(PARTS)} | all | trained |", "|---" * (len(PARTS) + 3) + "|"]
    for one in rows:
        cells = [_millions(*counts) for counts in one.parts.values()]
        total, trained = _millions(one.total, 0), _millions(one.trained, 0)
        what.append(f"| `{one.name}` | {' | '.join(cells)} | {total} | {trained} |")
    return "\n".join(how), "\n".join(what)


def _millions(count: int, trained: int) -> str:
    """Millions; bold where they are trained, empty for none."""
    text = f"{count / 1e6:,.2f}"
    return "" if not count else f"**{text}**" if trained == count else text


def main() -> None:
    folder = Path(__file__).resolve().parents[1]
    rows = [row(name, load(f"{folder}/{name}")) for name in (f"{s}.py:{p}" for s in STAGES for p in PRESETS)]
    page = record.ROOT / "docs" / "recipes.md"
    for mark, table in zip(("training", "parameters"), tables(rows), strict=True):
        record.fill(page, table, mark)


if __name__ == "__main__":
    main()
