"""A digest of each array of a checkpoint: the same wherever and on however many devices the array lies.

Every element's bits and its place are mixed to 32 bits, and these are added up modulo 2**32, which no order changes:
each device adds up its own part. Two such sums with different mixing make a digest of 64 bits. It finds accidents of
disks and copies, not forgeries.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_MIXINGS = (
    (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35),
    (0x27D4EB2F, 0x165667B1, 0x2C1B3C6D),
)  # odd, of xxHash and MurmurHash3


def of(tree: Any) -> dict[str, str]:
    """Path -> 16 hexadecimal digits, for every array of a tree; in several processes all of them must call it."""
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        lies = getattr(leaf, "sharding", None)
        mesh = lies.mesh if isinstance(lies, NamedSharding) else None
        sums[jax.tree_util.keystr(path, simple=True, separator="/")] = _sums(mesh)(leaf)
    return {path: "".join(f"{value:08x}" for value in np.asarray(two)) for path, two in sums.items()}


@functools.lru_cache
def _sums(mesh: jax.sharding.Mesh | None) -> Any:
    """The compiled function array -> uint32[2], which every device of the mesh then holds."""
    return jax.jit(_mixed, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def _mixed(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
    bits = bits.astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    sums = []
    for spread, first, second in _MIXINGS:
        mixed = bits + (place + 1) * jnp.uint32(spread)
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(first)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(second)
        sums.append(jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32))
    return jnp.stack(sums)
