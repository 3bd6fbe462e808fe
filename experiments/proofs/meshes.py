"""Proof: one device or eight, however they are laid out, at once or in parts: the same losses, gradients and metrics.

    make proof NAME=meshes         # resumable: a row that was measured is not measured again

Every task of the published joint stage with masks, with T5 and with BERT, at a tiny size with everything trained: a
step's losses and gradient, dropout, drop path and the detector's draws included, on eight simulated devices of the CPU
against one; and the evaluations of all modes, of which no mesh divides a batch and the last is ragged. Float32.
Writes docs/proof/meshes.json and the tables of docs/sharding.md; `make test` samples it (tests/test_mesh.py).
"""

import os

# Half of the compiling is spent on programs that then run for milliseconds.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress

from experiments import record
from experiments.proofs import stages
from pixel_align import data, models, param_rules, sharding, state, text
from pixel_align.config import load, override
from pixel_align.evaluation import evaluator
from pixel_align.experiment import Eval, Experiment
from pixel_align.train import make_train_step

Sizes = tuple[int, int, int]  # data, fsdp, tensor
ALONE: Sizes = (1, 1, 1)
MESHES: tuple[Sizes, ...] = ((8, 1, 1), (1, 8, 1), (2, 2, 2))
TASKS = ("narratives", "captions", "expressions with masks", "dense captions", "short answers", "long answers")
DENSE = TASKS.index("dense captions")
EVALUATIONS = {  # mode -> (task, the batch whose shape it takes)
    "trace": ("synthetic_narratives", 0),
    "caption": ("synthetic_narratives", 1),
    "refer": ("synthetic_expressions", 2),
    "segment": ("synthetic_expressions", 2),
    "densecap": ("synthetic_densecap", 3),
    "answer": ("synthetic_questions", 4),
}
PARTS = ("image.eva", "image.sam", "prompt", "extractor", "text", "text.lora", "location", "detector")
PARTS += ("masks.adapter", "masks.decoder")
TRAINED = [*(f"model.{part}.frozen=false" for part in PARTS), "model.loss.text=1", "model.loss.point=0.1"]
BATCH = 8
NOTED = 1e-5  # what differs by more is counted


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step says: its metrics by name, and its gradient by path."""

    metrics: Mapping[str, float]
    gradient: Mapping[str, np.ndarray]


def keep_gradient() -> optax.GradientTransformation:
    """An optimizer that moves nothing and leaves the gradient as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, _, params=None: (jax.tree.map(jnp.zeros_like, gradient), gradient),
    )


def place(config: Experiment, sizes: Sizes) -> tuple[jax.sharding.Mesh, Any, state.TrainState, state.TrainState]:
    """(mesh, optimizer, shardings, state) of a run on the first devices."""
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    rules, optimizer = models.family_of(config.model).rules(config.model), keep_gradient()

    def begin() -> state.TrainState:
        return state.make_state(config, state.init_params(config), rules, optimizer)

    lies = state.state_shardings(jax.eval_shape(begin), rules, optimizer, mesh)
    return mesh, optimizer, lies, jax.jit(begin, out_shardings=lies)()


def step(config: Experiment, batches: tuple[Any, ...], sizes: Sizes) -> Step:
    """The first step of a run on a mesh."""
    mesh, optimizer, lies, begin = place(config, sizes)
    train_step = jax.jit(make_train_step(config, optimizer), out_shardings=(lies, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        after, metrics = train_step(begin, data.to_device(batches, sharding.over_batch(mesh)))
    gradient = param_rules.paths(after.optimizer)
    return Step({k: float(v) for k, v in metrics.items()}, {k: np.asarray(v, np.float64) for k, v in gradient.items()})


def compare(alone: Step, found: Step) -> dict[str, float]:
    """The largest differences: of metrics, relative; of the gradient, beside its largest entry and beside its norm."""
    largest = max(float(np.abs(leaf).max()) for leaf in alone.gradient.values())
    apart = {path: np.abs(found.gradient[path] - leaf) for path, leaf in alone.gradient.items()}

    def norm(tree: Mapping[str, np.ndarray]) -> float:
        return math.sqrt(sum(float(np.square(leaf).sum()) for leaf in tree.values()))

    return {
        "metrics": len(alone.metrics),
        "metric": relative(alone.metrics, found.metrics),
        "gradient": max(float(leaf.max()) for leaf in apart.values()) / largest,
        "gradient_norm": norm(apart) / norm(alone.gradient),
        "entries": sum(leaf.size for leaf in apart.values()),
        "beyond": sum(int((leaf > NOTED * largest).sum()) for leaf in apart.values()),
    }


def relative(expected: Mapping[str, float], found: Mapping[str, float]) -> float:
    """The largest relative difference of figures; those that are not a number (nothing was matched) must agree in that.

    Raises:
      ValueError: figures of other names, or numbers on one side only.
    """
    if expected.keys() != found.keys():
        raise ValueError(f"metrics are {sorted(found)}, expected {sorted(expected)}. One of the two lost some.")
    largest = 0.0
    for name, value in expected.items():
        if math.isfinite(value) != math.isfinite(found[name]):
            raise ValueError(f"{name} is {found[name]}, expected {value}. A mesh changed it.")
        if value != found[name] and math.isfinite(value):
            largest = max(largest, abs(found[name] - value) / max(abs(value), abs(found[name])))
    return largest


def everything_trained(preset: str, world: Path) -> tuple[Experiment, text.Vocabulary]:
    """The joint stage with masks at a tiny size, no part of it frozen, so that every gradient is compared and whatever
    is random runs.
    """
    vocabulary = text.load_vocabulary(world / ("bert.txt" if preset == "bert" else "t5.model"))
    config = stages.at_tiny_size(load(f"{record.ROOT}/experiments/multitask_masks.py:{preset}"), world, vocabulary)
    further = tuple(dataclasses.replace(group, batch_size=BATCH) for group in config.data.further)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=BATCH, further=further))
    return override(config, TRAINED), vocabulary


def without_randomness(config: Experiment) -> Experiment:
    """The same without dropout and drop path, and without dense captions, whose samples are drawn."""
    further = tuple(group for index, group in enumerate(config.data.further, 1) if index != DENSE)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, further=further))
    return override(config, ["model.text.dropout_rate=0", "model.image.eva.drop_path=0"])


def of_task(config: Experiment, index: int) -> Experiment:
    """The run of one of its tasks alone."""
    model, read = config.batches()[index]
    return dataclasses.replace(config, model=model, data=read)


def read_batches(config: Experiment, vocabulary: text.Vocabulary) -> tuple[Any, ...]:
    """The first batches of a run."""
    family = models.family_of(config.model)
    streams = [(read, family.converter(model, vocabulary, read.augment)) for model, read in config.batches()]
    with data.Steps(streams, None) as steps:
        return next(steps)[0]


def evaluated(config: Experiment, vocabulary: text.Vocabulary, mode: str, sizes: Sizes) -> dict[str, float]:
    """The figures of an evaluation of parameters that lie on a mesh: 12 examples or more in batches of 5."""
    mesh, _, _, begin = place(config, sizes)
    task, index = EVALUATIONS[mode]
    shape = config.batches()[index][0].shape
    asked = Eval(task=task, split="train", mode=mode, batch_size=5, limit=12, pictures=0, shape=shape)
    with jax.set_mesh(mesh):
        return evaluator.evaluate(config, asked, begin.params, vocabulary, mesh=mesh).metrics


def steps_of(config: Experiment, vocabulary: text.Vocabulary, parts: int = 1) -> Callable[[], list[dict[str, Any]]]:
    """Rows of one run: a step on each mesh, in so many parts, against one device at once."""

    def rows() -> list[dict[str, Any]]:
        batches = read_batches(config, vocabulary)
        alone = step(config, batches, ALONE)
        cut = override(config, [f"train.accumulate={parts}"])
        meshes = MESHES if parts == 1 else (ALONE, MESHES[-1])
        return [{"mesh": sizes, **compare(alone, step(cut, batches, sizes))} for sizes in meshes]

    return rows


def evaluations_of(config: Experiment, vocabulary: text.Vocabulary, mode: str) -> Callable[[], list[dict[str, Any]]]:
    """Rows of one evaluation: on each mesh against one device."""

    def rows() -> list[dict[str, Any]]:
        alone = evaluated(config, vocabulary, mode, ALONE)
        return [
            {
                "mesh": sizes,
                "metrics": len(alone),
                "metric": relative(alone, evaluated(config, vocabulary, mode, sizes)),
            }
            for sizes in MESHES
        ]

    return rows


def measurements(world: Path) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Name of a row of the tables -> what measures it."""
    found: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    for preset in stages.PRESETS:
        config, vocabulary = everything_trained(preset, world)
        for index, task in enumerate(TASKS):
            found[f"step, {preset}, {task}"] = steps_of(of_task(config, index), vocabulary)
        found[f"parts, {preset}, all but dense captions"] = steps_of(without_randomness(config), vocabulary, parts=2)
        for mode in EVALUATIONS:
            found[f"evaluation, {preset}, {mode}"] = evaluations_of(config, vocabulary, mode)
    return found


def main() -> None:
    found = record.ROOT / "docs" / "proof" / "meshes.json"
    known = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    rows = known.get("rows", {}) if known.get("commit") == record.commit() else {}
    with tempfile.TemporaryDirectory() as folder, rich.progress.Progress() as progress:
        stages.make_world(Path(folder))
        todo = measurements(Path(folder))
        bar = progress.add_task("meshes", total=len(todo))
        for name, measure in todo.items():
            if name not in rows:
                rows[name] = measure()
                progress.console.print(name, rows[name], highlight=False, soft_wrap=True)
                result = {"command": "make proof NAME=meshes", "commit": record.commit(), "machine": record.machine()}
                record.write("meshes", result | {"rows": rows})
            progress.advance(bar)
    said = f"\n\n`make proof NAME=meshes`, commit {record.commit()}, {record.machine()}."
    page = record.ROOT / "docs" / "sharding.md"
    for kind in ("step", "parts", "evaluation"):
        record.fill(page, table({name: row for name, row in rows.items() if name.startswith(kind)}) + said, kind)
    worst = max(row["metric"] for of_name in rows.values() for row in of_name)
    if worst > NOTED:
        sys.exit(f"error: the largest difference of a loss or metric is {worst:.1e}, expected at most {NOTED:.0e}.")


def table(rows: Mapping[str, Any]) -> str:
    """A line for each row and mesh."""
    graded = any("gradient" in row for of_name in rows.values() for row in of_name)
    lines = ["| language model | what | data, fsdp, tensor | figures | largest relative difference |"]
    lines[0] += " gradient, beside its largest entry | beside its norm | entries beyond 1e-5 |" if graded else ""
    lines.append("|---|---|---|---:|---:|" + "---:|" * (3 * graded))
    for name, of_name in rows.items():
        _, preset, what = name.split(", ")
        for row in of_name:
            mesh = ", ".join(map(str, row["mesh"]))
            lines.append(f"| `{preset}` | {what} | {mesh} | {row['metrics']} | {row['metric']:.1e} |")
            if graded:
                lines[-1] += f" {row['gradient']:.1e} | {row['gradient_norm']:.1e} | "
                lines[-1] += f"{row['beyond']:,} of {row['entries']:,} |"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
