"""RoIAlign: what a map holds inside a box, as a small grid of features.

Source: He et al., Mask R-CNN (arXiv 1703.06870), section 3, with half-pixel centres; choice of the level: Lin et al.,
Feature Pyramid Networks (arXiv 1612.03144), equation 1. A sample is the bilinear mean of the four cells around it, so
each axis is a small matrix [bins, cells] and a box is two products. Those fit matrix units, backwards as well, where a
gather would become a scatter.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pixel_align import geometry
from pixel_align.pyramid import Level

# What stands between the two products of a chunk of boxes stays under this for each picture.
_CHUNK_BYTES = 16 * 2**20


def roi_align(features: jax.Array, boxes: jax.Array, covered: float = 1.0, size: int = 7, ratio: int = 2) -> jax.Array:
    """The inside of boxes on one map.

    Args:
      features: Float[B, h, w, C]; outside the map all is zero.
      boxes: Float[B, K, 4], xyxy in [0, 1] of the canvas. They get no gradient.
      covered: fraction of the canvas, from its top left corner, that the map covers in each direction.
      size: bins of a side. ratio: samples of a bin in each direction, evenly spaced.

    Returns:
      [B, K, size, size, C], of the features' dtype.
    """
    h, w = features.shape[1:3]
    level = Level((h, w), (covered / h, covered / w))
    return _align([features], boxes, [level], jnp.zeros(boxes.shape[:2], jnp.int32), size, ratio)


def roi_align_levels(
    maps: Sequence[jax.Array],
    boxes: jax.Array,
    levels: Sequence[Level],
    canvas: int,
    size: int = 7,
    ratio: int = 2,
    canonical: float = 224.0,
) -> jax.Array:
    """As `roi_align`, each box on the level of its size.

    Levels that no box on the canvas can ask for (all but the first two up to 447 px) cost nothing.

    Args:
      maps: Float[B, ., ., C] each. levels: where their cells lie (`pyramid.pyramid_levels`).
      canvas: side of the canvas in pixels.
      canonical: side in pixels of the boxes that begin the second level; each level takes twice the side.
    """
    reached = 1 + sum(canvas >= canonical * 2**i for i in range(len(maps) - 1))
    level = jnp.minimum(level_of(boxes, canvas, len(maps), canonical), reached - 1)
    return _align(maps[:reached], boxes, levels[:reached], level, size, ratio)


def level_of(boxes: jax.Array, canvas: int, count: int, canonical: float = 224.0) -> jax.Array:
    """Boxes [..., 4] in [0, 1] of the canvas -> Int[...], which of `count` levels each is read from."""
    side = jnp.sqrt(geometry.box_area(boxes)) * canvas
    # Compared and not by a logarithm: at the thresholds themselves log2 rounds as it likes.
    thresholds = canonical * 2.0 ** jnp.arange(count - 1)
    return jnp.sum(side[..., None] >= thresholds, axis=-1)


def _align(
    maps: Sequence[jax.Array], boxes: jax.Array, levels: Sequence[Level], level: jax.Array, size: int, ratio: int
) -> jax.Array:
    boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32))
    b, k = level.shape
    channels = maps[0].shape[-1]
    widest = max(x.shape[2] for x in maps)
    chunk = max(1, min(k, _CHUNK_BYTES // (size * widest * channels * maps[0].dtype.itemsize)))
    chunks = -(-k // chunk)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk - k)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, chunks, chunk, *x.shape[2:]), 1, 0)

    def align_chunk(xs: tuple[jax.Array, jax.Array]) -> jax.Array:
        some, at = xs
        total = jnp.zeros((b, chunk, size, size, channels), jnp.float32)
        for i, (x, where) in enumerate(zip(maps, levels, strict=True)):
            rows = _weights(some[..., 1], some[..., 3], where.cell[0], x.shape[1], size, ratio)
            columns = _weights(some[..., 0], some[..., 2], where.cell[1], x.shape[2], size, ratio)
            rows = rows * (at == i)[..., None, None]
            across = jnp.einsum("bkyh,bhwc->bkywc", rows.astype(x.dtype), x)
            total += jnp.einsum("bkxw,bkywc->bkyxc", columns.astype(x.dtype), across).astype(jnp.float32)
        return total.astype(maps[0].dtype)

    found = jax.lax.map(align_chunk, (split(boxes), split(level)))
    return jnp.moveaxis(found, 0, 1).reshape(b, chunks * chunk, size, size, channels)[:, :k]


def _weights(low: jax.Array, high: jax.Array, cell: float, cells: int, size: int, ratio: int) -> jax.Array:
    """Float32[..., size, cells]: how much each cell counts in each bin of the stretches from low to high [...]."""
    samples = (jnp.arange(size * ratio) + 0.5) / (size * ratio)
    at = (low[..., None] + samples * (high - low)[..., None]) / cell - 0.5  # 0 is the middle of the first cell
    share = jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(cells)), 0)
    return share.reshape(*share.shape[:-2], size, ratio, cells).mean(axis=-2)
