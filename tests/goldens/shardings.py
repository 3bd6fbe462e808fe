"""Where every parameter of the recipes lies on three TPU topologies, as tables that `make test` compares.

    python -m tests.goldens.shardings

shardings_leaves.txt: the axes of every parameter. shardings_TOPOLOGY.txt: of every recipe the mesh that is chosen, and
what parameters and optimizer take of each chip. All from shapes: no parameter, no TPU and no compiler is needed.
"""

import functools
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from experiments.proofs import recipes
from pixel_align import models, optim, param_rules, sharding, state
from pixel_align.config import load
from pixel_align.experiment import Experiment
from pixel_align.sharding import MeshConfig

FOLDER = Path(__file__).parent
EXPERIMENTS = FOLDER.parents[1] / "experiments"
TOPOLOGIES = {"v5e:2x4": 8, "v5e:16x16": 256, "v5p:4x4x4": 64}  # name -> chips
RECIPES = [f"{stage}.py:{preset}" for stage in recipes.STAGES for preset in recipes.PRESETS]
WHOLE = {preset: f"multitask_masks.py:{preset}" for preset in recipes.PRESETS}  # these have all parts
MOST_TENSOR = 8
WIDTH = 118
Axes = tuple[tuple[int, ...], tuple[str | None, ...]]  # shape, mesh axis or None for each axis of it


def path_of(name: str) -> Path:
    """The file of "leaves" or of a topology."""
    return FOLDER / f"shardings_{name.replace(':', '_')}.txt"


@functools.cache
def experiment(name: str) -> Experiment:
    return load(f"{EXPERIMENTS}/{name}")


class Laid(NamedTuple):
    """A recipe on a topology: its mesh, what its batches are multiplied with, its state as shapes and where it lies."""

    mesh: AbstractMesh
    times: int
    abstract: state.TrainState
    lies: state.TrainState


@functools.cache
def abstract_state(name: str) -> tuple[Any, Any, state.TrainState]:
    """(rules, optimizer, the state as shapes) of a recipe."""
    config = experiment(name)
    params, rules = recipes.shapes(config), models.family_of(config.model).rules(config.model)
    optimizer = optim.optimizer(config.optim, config.train.steps, params, rules)
    return rules, optimizer, jax.eval_shape(lambda p: state.make_state(config, p, rules, optimizer), params)


def lay(name: str, chips: int) -> Laid:
    """A recipe on so many chips: `tensor` as its batches need it, MOST_TENSOR at most; the rest is chosen."""
    rules, optimizer, abstract = abstract_state(name)
    common = math.gcd(*(read.batch_size for _, read in experiment(name).batches()))

    def held(mesh: AbstractMesh) -> int:
        return sharding.bytes_per_chip(abstract, state.state_shardings(abstract, rules, optimizer, mesh))

    tensor = min(MOST_TENSOR, chips // math.gcd(chips, common))
    sizes = sharding.choose(MeshConfig(tensor=tensor), chips, held=held)
    mesh = AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))
    readers = sharding.readers(mesh)
    times = readers // math.gcd(readers, common)
    return Laid(mesh, times, abstract, state.state_shardings(abstract, rules, optimizer, mesh))


def topology(name: str) -> str:
    """The table of a topology."""
    chips = TOPOLOGIES[name]
    states = [
        f"State of the recipes on {name}, {chips} chips, in MiB of each chip.",
        "Batches: examples of each batch of a step; x 4: four times the recipe's, as fewer do not fill the mesh.\n",
        f"{'recipe':30} {'data fsdp tensor':>18} {'trained':>9} {'frozen':>9} {'optimizer':>9} {'all':>9}  batches",
    ]
    parts = [f"\n{'parameters by part':30} " + " ".join(f"{part:>9}" for part in recipes.PARTS)]
    for recipe in RECIPES:
        laid = lay(recipe, chips)
        held = [
            sharding.bytes_per_chip(getattr(laid.abstract, half), getattr(laid.lies, half))
            for half in ("trainable", "frozen", "optimizer")
        ]
        sizes = " x ".join(str(laid.mesh.shape[axis]) for axis in sharding.AXES)
        batches = ", ".join(str(read.batch_size) for _, read in experiment(recipe).batches())
        numbers = " ".join(f"{mebibytes(count):>9}" for count in (*held, sum(held)))
        states.append(f"{recipe:30} {sizes:>18} {numbers}  {batches}{f' x {laid.times}' * (laid.times > 1)}")
        by_part = " ".join(f"{mebibytes(count):>{max(9, len(part))}}" for part, count in parts_of(laid).items())
        parts.append(f"{recipe:30} {by_part}".rstrip())
    return "\n".join([*states, *parts]) + "\n"


def parts_of(laid: Laid) -> dict[str, int]:
    """Part -> bytes of its parameters on each chip."""
    params = laid.abstract.params
    part = param_rules.paths(
        param_rules.match([(regex, key) for key, regex in recipes.PARTS.items()], params, dead="ignore")
    )
    lies = param_rules.paths(laid.lies.params)
    counts = dict.fromkeys(recipes.PARTS, 0)
    for path, leaf in param_rules.paths(params).items():
        counts[part[path]] += sharding.bytes_per_chip(leaf, lies[path])
    return counts


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f}" if count else ""


def leaves() -> str:
    """The axes of every parameter, by part, and which of the meshes of the recipes do not divide it."""
    meshes = {laid.mesh.axis_sizes: laid.mesh for chips in TOPOLOGIES.values() for laid in map(_on(chips), RECIPES)}
    lines = [
        "Mesh axes of every parameter of the recipes, a name for each of its axes, - for none; those without any are",
        "named behind the others. An axis is whole where its mesh (data x fsdp x tensor) does not divide it: uneven.",
    ]
    shown: dict[str, Axes] = {}
    for preset, recipe in WHOLE.items():
        found = axes_of(recipe)
        new = {path: leaf for path, leaf in found.items() if shown.get(path) != leaf}
        shown |= new
        lines.append(f"\n==== {preset}{', where it differs' if len(new) < len(found) else ''}")
        for part in dict.fromkeys(path.split("/")[0] for path in new):
            lines += _part({path: leaf for path, leaf in new.items() if path.split("/")[0] == part}, meshes.values())
    return "\n".join(lines) + "\n"


def _on(chips: int) -> Any:
    return lambda recipe: lay(recipe, chips)


def axes_of(recipe: str) -> dict[str, Axes]:
    """Path of each parameter -> its shape, and a mesh axis or None for each axis of it."""
    rules, _, abstract = abstract_state(recipe)
    one = AbstractMesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)  # divides everything
    found = {}

    def note(path: Any, leaf: Any, axes: tuple[Any, ...]) -> None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = leaf.shape, tuple(sharding.resolve(axes, leaf.shape, one).spec)

    jax.tree_util.tree_map_with_path(note, abstract.params, param_rules.match(rules["sharding"], abstract.params))
    return found


def _part(
    found: dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]], meshes: Iterable[AbstractMesh]
) -> list[str]:
    lines, whole = [""], []
    for path, (shape, axes) in found.items():
        if not any(axes):
            whole.append(path.split("/", 1)[-1])
            continue
        sizes, names = " ".join(map(str, shape)), " ".join(name or "-" for name in axes)
        uneven = [
            " x ".join(map(str, mesh.axis_sizes))
            for mesh in meshes
            if any(name and size % mesh.shape[name] for size, name in zip(shape, axes, strict=True))
        ]
        lines.append(f"{path:66} {sizes:>18}  {names}" + f"; uneven on {', '.join(uneven)}" * bool(uneven))
    if whole:
        start = f"{next(iter(found)).split('/')[0]}, {len(whole)} whole on every chip: "
        lines += textwrap.wrap(start + ", ".join(whole), WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    return lines


def tables() -> dict[str, str]:
    """Name -> content of each file."""
    return {"leaves": leaves(), **{name: topology(name) for name in TOPOLOGIES}}


def main() -> None:
    for name, content in tables().items():
        path_of(name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
