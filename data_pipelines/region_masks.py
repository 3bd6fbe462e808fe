"""Masks of regions: polygons, run lengths or arrays -> the 1-bit PNG that rests in a record."""

import io
from typing import Any

import numpy as np
import PIL.Image

from data_pipelines import DataError
from data_pipelines.narratives import BadRecord
from pixel_align.evaluation import masks

_EDGE = 2.0  # pixels by which a polygon may pass the edge of its picture: real ones do by one


def as_json(mask: Any) -> Any:
    """Polygons, COCO run lengths or bool[H, W] -> the same in JSON terms."""
    if isinstance(mask, np.ndarray):
        mask = _checked(masks.as_rle, mask, "mask")
    if isinstance(mask, dict):
        counts = mask.get("counts")
        return {**mask, "counts": counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts}
    return mask


def draw(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Polygons in pixels, or COCO run lengths, of a picture of (height, width) `size` -> bool[height, width].

    Raises:
      BadRecord: something else, a mask of another size, or polygons that reach out of the picture.
      DataError: pycocotools is not installed.
    """
    height, width = size
    if isinstance(mask, dict):
        found = mask.get("size")
        if found != [height, width]:
            raise BadRecord(f"size of mask is {found}, expected {[height, width]} (height, width), as its picture")
    if isinstance(mask, list):  # a ring of one or two points holds no pixel
        mask = [ring for ring in mask if not isinstance(ring, list) or len(ring) >= 6]
    if mask == []:
        return np.zeros(size, bool)
    rle = _checked(masks.as_rle, mask, "mask", size)
    if isinstance(mask, list):
        corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in mask])
        low, high = corners.min(0).tolist(), corners.max(0).tolist()
        if min(low) < -_EDGE or high[0] > width + _EDGE or high[1] > height + _EDGE:
            reach = [round(value, 2) for value in (*low, *high)]
            raise BadRecord(f"mask reaches over {reach} (xyxy), expected to lie in its picture of {width} x {height}")
    return np.asarray(_checked(masks.decode, rle, "mask"))


def extent(mask: np.ndarray) -> tuple[float, float, float, float]:
    """bool[H, W] with at least one pixel -> its box, xyxy in pixels, edges included."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def png(mask: np.ndarray, size: tuple[int, int]) -> bytes:
    """bool[H, W] -> a 1-bit PNG of (height, width) `size`, b"" where nothing is left."""
    if mask.shape != size:
        gray = PIL.Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], PIL.Image.Resampling.BOX)
        mask = np.asarray(gray) >= 128
    if not mask.any():
        return b""
    buffer = io.BytesIO()
    PIL.Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def _checked(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except ModuleNotFoundError as error:
        raise DataError(str(error)) from error
    except ValueError as error:
        raise BadRecord(str(error)) from error
