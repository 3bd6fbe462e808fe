"""Rotary positions in two dimensions: pairs of channels turn by angles that grow with the row, or with the column.

Source: Su et al., RoFormer (arXiv 2104.09864), in the form of EVA-02 (arXiv 2303.11331): the first half of a head's
channels follows the row, the second the column, and neighbouring channels make a pair.
"""

import jax
import jax.numpy as jnp


def rotary_angles(height: int, width: int, channels: int, reference: int = 0, theta: float = 10_000.0) -> jax.Array:
    """Angles in radians, Float32[height * width, channels / 2], of the cells of a grid, row by row.

    channels: of one head. reference: side of the grid that positions are counted on: 0 counts the cells of the grid at
    hand (the published PixelLLM); EVA-02 counts on the grid that it was pretrained on, 16, so that a finer grid falls
    between its positions. theta: the longest wave is 2 pi theta cells, nearly.
    Raises ValueError where the channels do not make pairs for two axes.
    """
    if channels % 4:
        raise ValueError(
            f"channels of a head is {channels}, expected a multiple of 4 (pairs for rows and for columns). "
            "Change width or num_heads."
        )
    count = channels // 4
    frequencies = theta ** (-jnp.arange(count, dtype=jnp.float32) / count)

    def along(size: int) -> jax.Array:
        positions = jnp.arange(size, dtype=jnp.float32)
        return (positions * (reference / size) if reference else positions)[:, None] * frequencies

    rows = jnp.broadcast_to(along(height)[:, None], (height, width, count))
    columns = jnp.broadcast_to(along(width)[None], (height, width, count))
    return jnp.concatenate([rows, columns], axis=-1).reshape(height * width, 2 * count)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Float[B, S, H, D] and angles Float32[S, D / 2]: channels (2i, 2i + 1) of position s turned by angles[s, i].

    In float32, whatever the type of x: at half precision the angles of far cells would be off by whole cells.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
