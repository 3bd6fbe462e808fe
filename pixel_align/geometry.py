"""Points and boxes: the only file in which a coordinate changes frame.

Three frames exist. *Pixels* are those of the original picture, upright, x to the right and y down, (0, 0) the outer
corner of the first pixel and (width, height) the outer corner of the last. *Fractions* are pixels divided by (width,
height): the frame at rest in a data set. *Canvas* coordinates are in [0, 1] of the square canvas that the model sees:
the frame of batches and of the model. Points are [..., 2] as xy, boxes are [..., 4] as xyxy. Every function takes NumPy
or JAX arrays and answers in kind.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

Array = Any  # a numpy.ndarray or a jax.Array; the array API of either is found through __array_namespace__
Size = tuple[int, int]  # (height, width) in pixels


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a picture lies on the canvas: the rectangle `crop` of it, resized to `valid_size`, top-left, or mirrored.

    The scales of x and y are those of the resize that really happened: the rounding of the shorter side to whole pixels
    is in them.
    """

    original_size: Size  # (height, width) of the upright picture, in pixels
    crop: tuple[float, float, float, float]  # xyxy in pixels of the original: the part of the picture that is seen
    valid_size: Size  # (height, width) of what the picture covers, in canvas pixels; the rest is padding
    canvas: int  # side of the square canvas, in canvas pixels
    flip: bool = False  # mirrored left to right, inside the valid part

    def __post_init__(self) -> None:
        """Raises ValueError where the crop is empty or the picture does not fit the canvas."""
        x0, y0, x1, y1 = self.crop
        height, width = self.valid_size
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"crop is {self.crop}, expected x0 < x1 and y0 < y1. Give the corners in xyxy order.")
        if not (0 < height <= self.canvas and 0 < width <= self.canvas):
            raise ValueError(
                f"valid_size is {self.valid_size}, expected 1 to {self.canvas} (the canvas side) in both. "
                "Resize the picture to fit the canvas."
            )

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per pixel of the original, (along x, along y)."""
        x0, y0, x1, y1 = self.crop
        return self.valid_size[1] / (x1 - x0), self.valid_size[0] / (y1 - y0)

    @property
    def valid_box(self) -> np.ndarray:
        """float32[4]: the covered part of the canvas as a box in canvas coordinates."""
        height, width = self.valid_size
        return np.asarray([0.0, 0.0, width / self.canvas, height / self.canvas], np.float32)

    def of_size(self, size: Size) -> Placement:
        """How a picture of another size (height, width) would lie, of which the same part covers the same canvas."""
        by_y, by_x = size[0] / self.original_size[0], size[1] / self.original_size[1]
        x0, y0, x1, y1 = self.crop
        return dataclasses.replace(self, original_size=size, crop=(x0 * by_x, y0 * by_y, x1 * by_x, y1 * by_y))

    def to_canvas(self, xy: Array) -> Array:
        """Points [..., 2] or boxes [..., 4] in pixels of the original -> in canvas coordinates, unclipped."""
        x0, y0, _, _ = self.crop
        scale_x, scale_y = (scale / self.canvas for scale in self.scale)
        mirror = self.valid_size[1] / self.canvas
        points = _as_points(xy)
        x, y = (points[..., 0] - x0) * scale_x, (points[..., 1] - y0) * scale_y
        return _like(xy, mirror - x if self.flip else x, y, self.flip)

    def to_original(self, xy: Array) -> Array:
        """Points [..., 2] or boxes [..., 4] in canvas coordinates -> in pixels of the original, unclipped."""
        x0, y0, _, _ = self.crop
        scale_x, scale_y = (scale / self.canvas for scale in self.scale)
        mirror = self.valid_size[1] / self.canvas
        points = _as_points(xy)
        x = mirror - points[..., 0] if self.flip else points[..., 0]
        return _like(xy, x / scale_x + x0, points[..., 1] / scale_y + y0, self.flip)


def masks_to_original(logits: Array, placement: Placement) -> np.ndarray:
    """Mask logits Float[..., h, w] over the whole canvas -> bool[..., H, W] at the size of the original.

    A pixel is inside where the logits, interpolated linearly at its centre, are positive; what the crop left out is
    outside. Published code cuts whole cells and stretches them over the picture, which moves a mask by up to a cell.
    """
    logits = np.asarray(logits, np.float32)
    seen = []
    for axis in (0, 1):  # y, then x: pictures lie straight, so that neither depends on the other
        size, cells = placement.original_size[axis], logits.shape[axis - 2]
        xy = np.zeros((size, 2))
        xy[:, 1 - axis] = np.arange(size) + 0.5
        seen.append((xy[:, 1 - axis] > placement.crop[1 - axis]) & (xy[:, 1 - axis] < placement.crop[3 - axis]))
        at = np.clip(placement.to_canvas(xy)[:, 1 - axis] * cells - 0.5, 0, cells - 1)
        low = at.astype(int)
        share = (at - low).astype(np.float32).reshape(-1, *([1] * (1 - axis)))
        below, above = (np.take(logits, i, axis=axis - 2) for i in (low, np.minimum(low + 1, cells - 1)))
        logits = below + (above - below) * share
    return (logits > 0) & seen[0][:, None] & seen[1]


def to_pixels(xy: Array, size: Size) -> Array:
    """Points [..., 2] or boxes [..., 4] in fractions of a picture of `size` (height, width) -> pixels of it."""
    points = _as_points(xy)
    return _like(xy, points[..., 0] * size[1], points[..., 1] * size[0])


def to_fractions(xy: Array, size: Size) -> Array:
    """Points [..., 2] or boxes [..., 4] in pixels of a picture of `size` (height, width) -> fractions of it."""
    points = _as_points(xy)
    return _like(xy, points[..., 0] / size[1], points[..., 1] / size[0])


def boxes_to_points(boxes: Array, kind: Literal["corner", "solid", "donut"] = "corner", per_side: int = 3) -> Array:
    """Boxes [..., 4] -> points [..., P, 2] that span them, any frame; `points_to_boxes` is the inverse for every kind.

    corner: the two corners (x0, y0), (x1, y1), P = 2, the published target. solid: a grid of per_side x per_side points
    from edge to edge, row by row, P = per_side^2. donut: the border of that grid, P = 4 (per_side - 1). Raises
    ValueError on per_side < 2.
    """
    _check_last(boxes, (4,), "boxes")
    if per_side < 2:
        raise ValueError(f"per_side is {per_side}, expected at least 2. A grid from edge to edge needs both edges.")
    if kind == "corner":
        at = np.asarray([[0.0, 0.0], [1.0, 1.0]])
    elif kind in ("solid", "donut"):
        step = np.arange(per_side)
        rows, columns = (index.reshape(-1) for index in np.meshgrid(step, step, indexing="ij"))
        at = np.stack([columns, rows], -1) / (per_side - 1)
        if kind == "donut":
            at = at[(at == 0).any(-1) | (at == 1).any(-1)]
    else:
        raise ValueError(f"kind is {kind!r}, expected 'corner', 'solid' or 'donut'. Choose one of these.")
    at = boxes.__array_namespace__().asarray(at, dtype=boxes.dtype)
    # a (1 - t) + b t, not a + (b - a) t: exact at both edges, so that the way back gives the very same box.
    return boxes[..., None, :2] * (1 - at) + boxes[..., None, 2:] * at


def points_per_side(kind: str, points: int) -> int:
    """The per_side with which `boxes_to_points` of this kind gives `points` points (corner: 2, its two corners).

    Raises ValueError where no grid of this kind has so many.
    """
    found = {"corner": 2, "solid": math.isqrt(points), "donut": points // 4 + 1}[kind]
    has = {"corner": 2, "solid": found**2, "donut": 4 * (found - 1)}[kind]
    if has != points or found < 2:
        counts = {"corner": "2", "solid": "a square number from 4", "donut": "a multiple of 4"}[kind]
        raise ValueError(f"points is {points}, expected {counts} for a {kind} grid. Change points or the kind of grid.")
    return found


def points_to_boxes(points: Array) -> Array:
    """Points [..., P, 2] -> the smallest boxes [..., 4] that hold them, any frame."""
    _check_last(points, (2,), "points")
    xp = points.__array_namespace__()
    return xp.concatenate([xp.min(points, axis=-2), xp.max(points, axis=-2)], axis=-1)


def box_area(boxes: Array) -> Array:
    """Boxes [..., 4] -> areas [...]; a box whose corners are in the wrong order has area 0."""
    _check_last(boxes, (4,), "boxes")
    xp = boxes.__array_namespace__()
    return xp.prod(xp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def box_intersection(a: Array, b: Array) -> Array:
    """Boxes [..., 4] and [..., 4], broadcast against each other -> area of what both cover [...]."""
    xp = a.__array_namespace__()
    low, high = xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])
    return box_area(xp.concatenate([low, high], axis=-1))


def box_iou(a: Array, b: Array) -> Array:
    """Intersection over union [...] of boxes, broadcast; `box_iou(a[:, None], b[None])` is a table. 0 / 0 is 0."""
    xp = a.__array_namespace__()
    intersection = box_intersection(a, b)
    union = box_area(a) + box_area(b) - intersection
    # The inner where keeps gradients finite where both boxes are empty.
    return xp.where(union > 0, intersection / xp.where(union > 0, union, 1), 0)


def box_centers(boxes: Array) -> Array:
    """Boxes [..., 4] -> their middles [..., 2], any frame."""
    _check_last(boxes, (4,), "boxes")
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def clip_boxes(boxes: Array, within: Any) -> Array:
    """Boxes [..., 4] cut to one box `within` of the same frame; what lies outside becomes empty, on its edge."""
    _check_last(boxes, (4,), "boxes")
    xp = boxes.__array_namespace__()
    x0, y0, x1, y1 = within
    low = xp.asarray([x0, y0, x0, y0], dtype=boxes.dtype)
    high = xp.asarray([x1, y1, x1, y1], dtype=boxes.dtype)
    return xp.minimum(xp.maximum(boxes, low), high)


def clip_points(points: Array, within: Any) -> Array:
    """Points [..., 2] moved to the nearest point of one box `within` of the same frame."""
    _check_last(points, (2,), "points")
    xp = points.__array_namespace__()
    x0, y0, x1, y1 = within
    return xp.minimum(
        xp.maximum(points, xp.asarray([x0, y0], dtype=points.dtype)), xp.asarray([x1, y1], dtype=points.dtype)
    )


def points_inside(points: Array, boxes: Array) -> Array:
    """Points [..., 2] and boxes [..., 4], broadcast -> bool [...]: is the point in the box, edges included."""
    _check_last(points, (2,), "points")
    _check_last(boxes, (4,), "boxes")
    xp = points.__array_namespace__()
    return xp.all((points >= boxes[..., :2]) & (points <= boxes[..., 2:]), axis=-1)


def along(path: Array, count: int) -> np.ndarray:
    """A line of corners [k, 2], k at least 1 -> `count` points Float64[count, 2] on it at equal distances.

    Its ends are the first and the last; one point alone is its middle.
    """
    corners = np.asarray(path, np.float64)
    _check_last(corners, (2,), "path")
    gone = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=-1))])
    at = np.linspace(0, gone[-1], count) if count > 1 else gone[-1:] / 2
    return np.stack([np.interp(at, gone, corners[:, axis]) for axis in (0, 1)], axis=-1)


def visible_share(boxes: Array, within: Any) -> Array:
    """Boxes [..., 4], one box `within` of the same frame -> the share [...] in [0, 1] of each that lies inside.

    After a crop, `visible_share(placement.to_canvas(boxes), placement.valid_box) >= 0.5` says which boxes survive. The
    share is one of area; a box without extent along an axis (a trace that is a line or a point) counts along that axis
    as all inside or all outside.
    """
    xp = boxes.__array_namespace__()
    cut = clip_boxes(boxes, within)
    side, kept = boxes[..., 2:] - boxes[..., :2], cut[..., 2:] - cut[..., :2]
    flat_inside = cut[..., :2] == boxes[..., :2]
    return xp.prod(xp.where(side > 0, kept / xp.where(side > 0, side, 1), flat_inside), axis=-1)


def fit_size(size: Size, longest: float) -> Size:
    """(height, width) -> the same shape with the longest side `longest`, in whole pixels, none below 1."""
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}, expected at least 1 by 1 pixel. Skip empty pictures.")
    scale = longest / max(height, width)
    # Half up, not Python's half to even: the longest side must never depend on the parity of the canvas.
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def _as_points(xy: Array) -> Array:
    """Points [..., 2] or boxes [..., 4] -> points [..., k, 2], k = 1 or 2."""
    _check_last(xy, (2, 4), "coordinates")
    xp = xy.__array_namespace__()
    return xp.reshape(xy, (*xy.shape[:-1], xy.shape[-1] // 2, 2))


def _like(xy: Array, x: Array, y: Array, mirrored: bool = False) -> Array:
    """x, y [..., k] -> the shape of `xy`; a mirrored box has its left and right edges exchanged again."""
    xp = xy.__array_namespace__()
    if mirrored:
        x = xp.flip(x, axis=-1)
    return xp.reshape(xp.stack([x, y], axis=-1), xy.shape)


def _check_last(array: Array, sizes: tuple[int, ...], what: str) -> None:
    if not array.ndim or array.shape[-1] not in sizes:
        expected = " or ".join(f"[..., {size}]" for size in sizes)
        raise ValueError(
            f"shape of {what} is {tuple(array.shape)}, expected {expected}. Points are xy, boxes are xyxy."
        )
