"""Boxes as metrics take them: xyxy, pixels of the original picture, refused where they are no boxes."""

import math
from typing import Any

import numpy as np

from pixel_align import geometry

_PLUS_ONE = np.array([0.0, 0.0, 1.0, 1.0])


def checked(boxes: Any, what: str) -> np.ndarray:
    """Boxes [n, 4], in any form that NumPy reads -> float64[n, 4]; an empty list is [0, 4].

    Args:
        what: their name in messages, such as "predicted boxes of image 17".

    Raises:
        ValueError: not [n, 4], not finite, or x1 < x0 or y1 < y0. A box without extent is one.
    """
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is no array of numbers, expected boxes [n, 4]. Give xyxy in pixels.") from None
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"shape of {what} is {array.shape}, expected [n, 4]. Give xyxy in pixels.")
    wrong = ~(np.isfinite(array).all(axis=1) & (array[:, :2] <= array[:, 2:]).all(axis=1))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"box {first} of {what} is {array[first].tolist()}, expected finite x0 <= x1 and y0 <= y1. "
            "Boxes are xyxy: convert xywh first."
        )
    return array


def checked_one(box: Any, what: str) -> tuple[float, float, float, float]:
    """One box [4] -> four floats, as `checked` but at the price of a metric that sees one box at a time."""
    try:
        x0, y0, x1, y1 = map(float, box)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {box!r}, expected four numbers. Give xyxy in pixels.") from None
    # A comparison with NaN is false.
    if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):
        raise ValueError(
            f"{what} is {[x0, y0, x1, y1]}, expected finite x0 <= x1 and y0 <= y1. Boxes are xyxy: convert xywh first."
        )
    return x0, y0, x1, y1


def iou_table(a: np.ndarray, b: np.ndarray, *, plus_one: bool = False) -> np.ndarray:
    """Boxes float64[n, 4], float64[m, 4] -> intersection over union float64[n, m]; 0 / 0 is 0.

    Args:
        plus_one: a box from x0 to x1 covers x1 - x0 + 1 pixels, as in DenseCap's original and in Pascal VOC; depends on
            the scale of the picture.
    """
    if plus_one:
        a, b = a + _PLUS_ONE, b + _PLUS_ONE
    return geometry.box_iou(a[:, None], b[None])


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes; 0 / 0 is 0."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0
