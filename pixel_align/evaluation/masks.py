"""Masks as metrics take them: COCO's run lengths, through pycocotools (extra [eval], imported when first used)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_WHOLE = (int, np.integer)
_MOST_PIXELS = 2**28  # a picture of 16,384 x 16,384; more is a broken file


class Rle(dict[str, Any]):
    """{"size": [height, width], "counts": bytes or str} whose runs are known to fill the picture exactly.

    `as_rle` makes them. pycocotools reads, and merges, runs that do not without an end: no other mask is given to it.
    """


@functools.cache
def pycocotools_mask() -> Any:
    """The module pycocotools.mask. Raises ModuleNotFoundError with what to install."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "module 'pycocotools' is not installed, expected it for masks. "
            "Install it: pip install 'pixel-align[eval]'.",
            name="pycocotools",
        ) from None
    return mask


def as_rle(mask: Any, what: str, size: tuple[int, int] | None = None) -> Rle:
    """A mask in any of COCO's forms -> run lengths that pycocotools can be trusted with.

    Args:
        mask: run lengths, compressed or as a list of numbers; polygons, lists of x, y, x, y ...; or an array [H, W] of
            bool or of 0 and 1. What is an `Rle` already was checked when it became one and is returned.
        what: its name in messages.
        size: (height, width), which polygons need.

    Raises:
        ValueError: none of these, or runs that do not fill the picture exactly.
    """
    if type(mask) is Rle:
        return mask
    if isinstance(mask, Mapping):
        return _from_runs(mask.get("counts"), mask.get("size", ()), what)
    if isinstance(mask, np.ndarray):
        return _from_array(mask, what)
    if isinstance(mask, Sequence) and not isinstance(mask, str | bytes):
        return _from_polygons(mask, what, size)
    raise ValueError(f"{what} is a {type(mask).__name__}, expected run lengths, polygons or an array. Convert it.")


def run_lengths(counts: bytes | str) -> np.ndarray | None:
    """COCO's compressed counts -> int64[n] lengths of runs, background first; None where the text is cut or foreign.

    A number stands in groups of 5 bits, low ones first, each in one character from "0" on with bit 32 where more
    follow, and with its sign; from the fourth on it is the difference to the number two before it.
    """
    raw = np.frombuffer(counts.encode("latin-1", "replace") if isinstance(counts, str) else counts, np.uint8)
    codes = raw.astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, last - first + 1))
    if shift.max() > 50:
        return None
    numbers = np.add.reduceat((codes & 31) << shift, first)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (shift[last] + 5), 0)
    if np.abs(numbers).max() > _MOST_PIXELS:  # else their sums could come round to what is expected
        return None
    # The first three stand for themselves: the third adds nothing, as the fourth adds the second.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def overlap(a: Any, b: Any, what: str) -> tuple[int, int, int]:
    """Pixels of (both, a, b) of a target's mask and a predicted one, in any form that `as_rle` reads.

    Raises ValueError as `as_rle` does, and where their sizes differ.
    """
    a, b = as_rle(a, f"target {what}"), as_rle(b, f"predicted {what}")
    # pycocotools merges masks of different sizes to an empty one, without a word.
    height, width = a["size"]
    if (height, width) != tuple(b["size"]):
        raise ValueError(
            f"size of predicted {what} is {[*b['size']]}, expected {[height, width]} (height, width), the target's. "
            "Resize it to the original picture."
        )
    mask = pycocotools_mask()
    both, first, second = mask.area([mask.merge([a, b], True), a, b]).tolist()
    return both, first, second


def iou_table(found: Sequence[Rle], truth: Sequence[Rle], crowd: Sequence[int]) -> np.ndarray:
    """pycocotools' IoU float64[found, truth] of masks as `as_rle` gives them; NaN of two empty ones."""
    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    # It looks for the type dict itself.
    sides = ([dict(one) for one in side] for side in (found, truth))
    return np.asarray(pycocotools_mask().iou(*sides, list(crowd)), np.float64)


def decode(mask: Any, what: str) -> np.ndarray:
    """A mask in any form that `as_rle` reads -> bool[H, W]. In numpy: pycocotools' own decoding warns with numpy 2.

    Raises ValueError as `as_rle` does.
    """
    rle = as_rle(mask, what)
    runs = run_lengths(rle["counts"])
    assert runs is not None  # or as_rle had refused
    return _drawn(runs, *rle["size"])


def area(mask: Any, what: str) -> int:
    """Pixels of a mask in any form that `as_rle` reads. Raises ValueError as it does."""
    return int(pycocotools_mask().area(as_rle(mask, what)))


def array_overlap(a: np.ndarray, b: np.ndarray, what: str) -> tuple[int, int, int]:
    """`overlap` of two arrays [H, W], faster than encoding them."""
    if a.shape != b.shape:
        raise ValueError(
            f"size of predicted {what} is {[*b.shape]}, expected {[*a.shape]} (height, width), the target's. "
            "Resize it to the original picture."
        )
    a, b = _as_bool(a, what), _as_bool(b, what)
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a)), int(np.count_nonzero(b))


def _as_bool(mask: np.ndarray, what: str) -> np.ndarray:
    if mask.ndim != 2:
        raise ValueError(f"shape of {what} is {mask.shape}, expected [height, width]. Give one mask.")
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind not in "iu" or (mask.size and (mask.min() < 0 or mask.max() > 1)):
        raise ValueError(f"{what} is an array of {mask.dtype}, expected bool or 0 and 1. Apply the threshold first.")
    return mask.astype(bool)


def _from_array(mask: np.ndarray, what: str) -> Rle:
    return Rle(pycocotools_mask().encode(np.asfortranarray(_as_bool(mask, what), np.uint8)))


def _from_runs(counts: Any, size: Any, what: str) -> Rle:
    _check_size(size, what)
    height, width = size
    packed = isinstance(counts, bytes | str)
    runs = run_lengths(counts) if packed else _as_runs(counts)
    if runs is None or (runs < 0).any() or int(runs.sum()) != height * width:
        total = "unreadable" if runs is None or (runs < 0).any() else f"{int(runs.sum())} pixels long"
        raise ValueError(f"counts of {what} is {total}, expected {height} x {width} pixels. Encode the mask again.")
    if not runs[1:].all():
        # Runs of no pixels mean nothing, and pycocotools' buffers have no room for them.
        return _from_array(_drawn(runs, height, width), what)
    if packed:
        return Rle(size=[height, width], counts=counts)
    return Rle(pycocotools_mask().frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width))


def _as_runs(counts: Any) -> np.ndarray | None:
    try:
        runs = np.asarray(counts)
    except ValueError:
        return None
    return runs.astype(np.int64) if runs.ndim == 1 and runs.dtype.kind in "iu" else None


def _drawn(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _from_polygons(polygons: Sequence[Any], what: str, size: tuple[int, int] | None) -> Rle:
    if size is None:
        raise ValueError(f"size of {what} is not given, expected (height, width) for polygons. Name the picture's.")
    _check_size(size, what)
    mask = pycocotools_mask()
    height, width = size
    if not len(polygons):
        return Rle(mask.encode(np.zeros((height, width), np.uint8, order="F")))
    rings = []
    for polygon in polygons:
        try:
            ring = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            ring = np.zeros(0)
        if ring.ndim != 1 or len(ring) < 6 or len(ring) % 2 or not np.isfinite(ring).all():
            raise ValueError(f"a polygon of {what} is no list of three or more finite x, y. Give it in pixels.")
        # Coordinates far outside overflow pycocotools' integers.
        rings.append(np.clip(ring, -1e5, 1e5).tolist())
    return Rle(mask.merge(mask.frPyObjects(rings, height, width)))


def _check_size(size: Any, what: str) -> None:
    try:
        height, width = size
        known = isinstance(height, _WHOLE) and isinstance(width, _WHOLE) and height > 0 and width > 0
    except (TypeError, ValueError):
        known = False
    if not known or height * width > _MOST_PIXELS:
        raise ValueError(f"size of {what} is {size!r}, expected [height, width] in pixels. Encode the mask again.")
