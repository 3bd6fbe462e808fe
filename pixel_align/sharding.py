"""Where arrays lie: the device mesh, and shardings of parameters, optimizer state and batches by rules."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# What the state of a run may take of a chip before more chips share it: a quarter of the smallest one (v5e, 16 GiB).
STATE_BYTES = 4 * 2**30

Held = Callable[[AbstractMesh], int]  # mesh -> bytes of each device


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 is chosen, see `choose`."""

    data: int = -1  # examples
    fsdp: int = -1  # examples, and parameters
    tensor: int = 1  # heads and hidden widths
    slices: int = -1  # parts of data that only the data-centre network joins; -1: as many as the devices say


def choose(config: MeshConfig, devices: int, *, slices: int = 1, held: Held | None = None) -> tuple[int, int, int]:
    """The sizes (data, fsdp, tensor) of a mesh. Of those that the config leaves open `tensor` is as small as it can be,
    `fsdp` the fewest devices of which the state takes at most STATE_BYTES each, and `data` takes the rest.

    Args:
      slices: parts of the devices; fsdp and tensor stay inside one.
      held: what the state of the run takes of each device of a mesh; nothing by default.

    Raises:
      ValueError: sizes that do not multiply to the number of devices, or slices that do not divide `data`.
    """
    asked = (config.data, config.fsdp, config.tensor)
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    products = [(devices // (f * t), f, t) for t in divisors for f in divisors if devices % (f * t) == 0]
    fitting = [
        sizes
        for sizes in products
        if sizes[0] % slices == 0 and all(want in (-1, size) for want, size in zip(asked, sizes, strict=True))
    ]
    if not fitting:
        within = f", with data a multiple of {slices}, the number of slices" if slices > 1 else ""
        raise ValueError(
            f"mesh is data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}, expected a product of "
            f"{devices}, the number of devices{within}. Change the config's mesh; -1 is chosen."
        )
    least = [sizes for sizes in fitting if sizes[2] == fitting[0][2]]
    if held is None:
        return least[0]
    return next((sizes for sizes in least if held(_abstract(sizes)) <= STATE_BYTES), least[-1])


def _abstract(sizes: tuple[int, int, int]) -> AbstractMesh:
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_mesh(config: MeshConfig, devices: list[Any] | None = None, *, held: Held | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor over all devices (or those given). Axes are Auto: Linen needs them so.

    Slices of a TPU, which only the data-centre network joins, each hold one part of `data` after the other. Devices
    that know no slices (CPUs) are cut into as many as the config says, in their order.

    Args:
      held: as for `choose`.

    Raises:
      ValueError: what `choose` raises; slices that are not those of the devices.
    """
    devices = jax.devices() if devices is None else devices
    groups: dict[int, list[Any]] = collections.defaultdict(list)
    for device in devices:
        groups[getattr(device, "slice_index", 0)].append(device)
    known = hasattr(devices[0], "slice_index")
    slices = config.slices if config.slices != -1 else len(groups)
    if slices < 1 or (known and slices != len(groups)) or len(devices) % slices:
        expected = f"{len(groups)}, as the devices say" if known else f"a divisor of {len(devices)} devices"
        raise ValueError(f"mesh.slices is {slices}, expected {expected}. Set it, or leave it at -1.")
    shape = choose(config, len(devices), slices=slices, held=held)
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        # Not jax.make_mesh: it refuses axes that split an axis of the torus, as fsdp=8 does on 4x4x4.
        laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(laid, AXES, axis_types=types)
    if not known:
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=types)
    inner = (shape[0] // slices, *shape[1:])
    laid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=types)


def readers(mesh: Mesh | AbstractMesh) -> int:
    """The number of devices that see different examples."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batches(sizes: Iterable[tuple[str, int]], mesh: Mesh | AbstractMesh, accumulate: int = 1) -> None:
    """Raises ValueError for a batch (its name, its examples) that does not divide over the mesh and a step's parts."""
    for name, size in sizes:
        if size % (readers(mesh) * accumulate):
            parts = f" times train.accumulate={accumulate}" if accumulate > 1 else ""
            raise ValueError(
                f"data.batch_size of {name} is {size}, expected a multiple of {readers(mesh) * accumulate}, the "
                f"devices that see different examples{parts}. Change it or the mesh."
            )


def bytes_per_chip(tree: Any, shardings: Any) -> int:
    """What a tree of arrays or shapes takes of each device where it lies as `shardings`, a like tree, say."""
    parts = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize, tree, shardings)
    return sum(jax.tree.leaves(parts))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The leading axis split over all devices that see different examples."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def resolve(names: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding rule -> sharding of an array of `shape`.

    Args:
      names: mesh axis or None for each axis of the array; a leading Ellipsis aligns them to the last axes.
      An axis whose size does not divide is replicated; `indivisible` lists them.
    """
    aligned = _aligned(names, shape)
    kept = (n if n is not None and s % mesh.shape[n] == 0 else None for n, s in zip(aligned, shape, strict=True))
    return NamedSharding(mesh, PartitionSpec(*kept))


def indivisible(params: Any, names: Any, mesh: Mesh | AbstractMesh) -> list[str]:
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
