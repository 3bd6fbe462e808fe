"""Where arrays lie: the device mesh, and shardings of parameters, optimizer state and batches by rules."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 takes all devices that the other axes leave."""

    data: int = -1  # examples
    fsdp: int = 1  # examples, and parameters
    tensor: int = 1  # heads and hidden widths


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor over all devices (or those given). Axes are Auto: Linen needs them so.

    Raises:
      ValueError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    rest = len(devices) // max(1, int(np.prod([s for s in sizes if s != -1])))
    shape = tuple(rest if s == -1 else s for s in sizes)
    if sizes.count(-1) > 1 or int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh is data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}, expected a product of "
            f"{len(devices)}, the number of devices, with -1 at most once. Change the config's mesh."
        )
    return jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices that see different examples."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def resolve(names: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Sharding rule -> sharding of an array of `shape`.

    Args:
      names: mesh axis or None for each axis of the array; a leading Ellipsis aligns them to the last axes.
      An axis whose size does not divide is replicated; `indivisible` lists them.
    """
    aligned = _aligned(names, shape)
    kept = (n if n is not None and s % mesh.shape[n] == 0 else None for n, s in zip(aligned, shape, strict=True))
    return NamedSharding(mesh, PartitionSpec(*kept))


def indivisible(params: Any, names: Any, mesh: Mesh) -> list[str]:
    """What the rules would split and the mesh cannot: "path: axis 1 of (3, 6) by fsdp=8".

    Args:
      params: tree of arrays or shapes. names: the sharding rule of each, as `param_rules.match` gives them.
    """
    lines: list[str] = []

    def check(path: Any, leaf: Any, rule: tuple[Any, ...]) -> None:
        for axis, name in enumerate(_aligned(rule, leaf.shape)):
            if name is not None and leaf.shape[axis] % mesh.shape[name]:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                lines.append(f"{where}: axis {axis} of {tuple(leaf.shape)} by {name}={mesh.shape[name]}")

    jax.tree_util.tree_map_with_path(check, params, names)
    return lines


def _aligned(names: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """One name or None for each axis."""
    if names and names[0] is Ellipsis:
        return (None,) * (len(shape) - len(names) + 1) + names[1:]
    return names + (None,) * (len(shape) - len(names))
