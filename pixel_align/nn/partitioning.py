"""Logical sharding constraints: a part names its axes, the mesh in force says where they go, no mesh means nothing."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, PartitionSpec

# Logical name of an activation's axis -> axes of the mesh that may split it. A name that is absent here is not split.
LOGICAL_AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # examples, or examples x regions
    "heads": ("tensor",),  # attention heads
    "mlp": ("tensor",),  # hidden width of an MLP
    "vocabulary": ("tensor",),  # logits
}


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Asks the partitioner to lay x out by the logical names of its axes (None = not split).

    No-op where no mesh is in force (`jax.set_mesh`). A mesh axis is left out where the mesh lacks it, where it is not
    automatic (inside shard_map), and where the array's axis does not divide by it: one picture is predicted on eight
    chips without a word. Raises ValueError where names and axes differ in number.
    """
    if len(names) != x.ndim:
        raise ValueError(
            f"The names are {tuple(names)}, expected {x.ndim}, one for each axis of {x.shape}. Name them all."
        )
    chosen = [_axes(name, size) for size, name in zip(x.shape, names, strict=True)]
    spec = [axes or None for axes in chosen]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec)) if any(spec) else x


def parts(name: str, size: int) -> int:
    """Into how many parts the mesh in force splits an axis of that logical name and size; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in _axes(name, size))


def _axes(name: str | None, size: int) -> tuple[str, ...]:
    """The axes of the mesh in force that split an axis of that logical name and size."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = {axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    chosen: list[str] = []
    for axis in LOGICAL_AXES.get(name, ()) if name else ():
        if axis in automatic and size % mesh.shape[axis] == 0:
            chosen.append(axis)
            size //= mesh.shape[axis]
    return tuple(chosen)
