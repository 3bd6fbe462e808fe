"""Where the cells of a pyramid of maps lie on the canvas.

Only the first map of an image encoder is asked where it lies (`image_features.extent`); the others are counted from it:
each level's cells are exactly twice as wide as those of the level before, and all begin in the top left corner. So the
cells of a 27 x 27 map of a canvas of 384 px are 14.2 px wide and those beside it 7.1, 28.4, 56.9 and 113.8 px.
Published code declares 8 to 128 px instead, one eighth too much (docs/differences.md).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Level:
    """The cells of one map.

    Attributes:
      shape: (rows, columns). A level may have a row or column less than it takes to reach the edge of the canvas, or
        one that reaches beyond it.
      cell: (height, width) of a cell, in [0, 1] of the canvas.
    """

    shape: tuple[int, int]
    cell: tuple[float, float]


def pyramid_levels(height: int, width: int, covered: float = 1.0) -> tuple[Level, ...]:
    """The five levels that `nn.feature_pyramid.FeaturePyramid` makes of a map of height x width cells.

    Args:
      covered: fraction of the canvas, from its top left corner, that the map covers in each direction.

    Raises:
      ValueError: the map is less than two cells high or wide, so that it cannot be halved.
    """
    if min(height, width) < 2:
        raise ValueError(
            f"image features are {height} x {width} cells, expected 2 x 2 or more for a pyramid. Use a larger canvas."
        )
    halves = [(height // 2, width // 2)]
    for _ in range(2):  # convolutions of stride 2 round up, pooling rounds down
        halves.append(((halves[-1][0] + 1) // 2, (halves[-1][1] + 1) // 2))
    shapes = [(2 * height, 2 * width), (height, width), *halves]
    return tuple(
        Level(shape, (covered / height * 2.0**level, covered / width * 2.0**level))
        for level, shape in enumerate(shapes, start=-1)
    )


@dataclasses.dataclass(frozen=True)
class Cells:
    """All A cells of all levels, level by level, row by row; host arrays, constants of a compiled step.

    Attributes:
      level: int32[A]. index: int32[A, 2], (column, row) in its level, and last: int32[A, 2], that of its level's last.
      size: float32[A, 2], (width, height), and center: float32[A, 2], xy, in [0, 1] of the canvas.
    """

    level: np.ndarray
    index: np.ndarray
    last: np.ndarray
    size: np.ndarray
    center: np.ndarray


def cells_of(of: Sequence[Level]) -> Cells:
    """The cells of some levels."""
    level = np.concatenate([np.full(x.shape[0] * x.shape[1], i, np.int32) for i, x in enumerate(of)])
    index = np.concatenate([np.indices(x.shape)[::-1].reshape(2, -1).T for x in of]).astype(np.int32)
    size = np.asarray([x.cell[::-1] for x in of])[level]
    last = np.asarray([[x.shape[1] - 1, x.shape[0] - 1] for x in of], np.int32)[level]
    return Cells(level, index, last, size.astype(np.float32), ((index + 0.5) * size).astype(np.float32))


def visible(of: Cells, valid_size: jax.Array, canvas: int) -> jax.Array:
    """Bool[..., A]: the cells that hold a part of the picture. Whatever has its middle in the picture has it in one.

    Args:
      valid_size: Int[..., 2], (height, width) in canvas pixels of the part that holds the picture.
    """
    # In thousandths of a pixel: a cell that begins where the picture ends holds none of it, however either is rounded.
    begins = np.round(of.index * of.size * canvas, 3)  # [A, 2]
    return jnp.all(begins < valid_size[..., None, ::-1], axis=-1)
