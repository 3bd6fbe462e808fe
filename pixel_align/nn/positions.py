"""Learned position tables rest as pretrained; here they are brought to the grid of the picture at hand."""

import jax
import jax.numpy as jnp
import numpy as np


def resize_positions(table: jax.Array, height: int, width: int, antialias: bool = True) -> jax.Array:
    """Float[H, W, D] -> Float[height, width, D], bicubic.

    antialias=True is the published PixelLLM's way: jax.image.resize, Keys' kernel (a = -1/2) widened on the way down,
    edge weights renormalised. False is torch's interpolate(mode="bicubic"), which EVA and its kin use: a = -3/4, never
    widened, edges repeated. Both leave a table of the right size as it is.
    """
    if table.shape[:2] == (height, width):
        return table
    if antialias:
        return jax.image.resize(table, (height, width, table.shape[-1]), "cubic", antialias=True)
    rows, columns = _torch_bicubic(table.shape[0], height), _torch_bicubic(table.shape[1], width)
    precise = jax.lax.Precision.HIGHEST
    return jnp.einsum("hH,HWd,wW->hwd", rows, table, columns, precision=precise).astype(table.dtype)


def resize_relative(table: jax.Array, length: int, antialias: bool = True) -> jax.Array:
    """Float[L, d] of relative positions -> Float[length, d], linear; False is torch's interpolate(mode="linear")."""
    if table.shape[0] == length:
        return table
    return jax.image.resize(table, (length, table.shape[1]), "linear", antialias=antialias)


def _torch_bicubic(source: int, target: int) -> np.ndarray:
    """Float32[target, source]: each output as a sum of four neighbours, a = -3/4; outside stands the edge's value."""
    at = (np.arange(target) + 0.5) * source / target - 0.5
    matrix = np.zeros((target, source), np.float32)
    for tap in range(-1, 3):
        index = np.floor(at) + tap
        distance = np.abs(at - index)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(target), np.clip(index, 0, source - 1).astype(int)), weight)
    return matrix
