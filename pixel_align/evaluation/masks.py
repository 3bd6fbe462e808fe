"""Masks as metrics take them: COCO's run lengths, through pycocotools (extra [eval], imported when first used)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rle = Mapping[str, Any]  # {"size": [height, width], "counts": bytes or str}

_WHOLE = (int, np.integer)
_MOST_PIXELS = 2**28  # a picture of 16,384 x 16,384; more is a broken file


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
    """A mask in any of COCO's forms -> run lengths as pycocotools takes them, its bytes not yet looked into.

    Args:
        mask: run lengths, compressed or as a list of numbers; polygons, lists of x, y, x, y ...; or an array [H, W] of
            bool or of 0 and 1.
        what: its name in messages.
        size: (height, width), which polygons need.

    Raises:
        ValueError: none of these.
    """
    if type(mask) is dict or isinstance(mask, Mapping):
        counts, shape = mask.get("counts"), mask.get("size", ())
        _check_size(shape, what)
        if isinstance(counts, (bytes, str)):
            return mask
        return _from_list(counts, shape, what)
    if isinstance(mask, np.ndarray):
        return _from_array(mask, what)
    if isinstance(mask, Sequence) and not isinstance(mask, str | bytes):
        return _from_polygons(mask, what, size)
    raise ValueError(f"{what} is a {type(mask).__name__}, expected run lengths, polygons or an array. Convert it.")


def check_runs(rle: Rle, what: str) -> None:
    """Raises ValueError where the compressed runs do not fill the picture exactly: read this before trusting a file."""
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    if runs is None or (runs < 0).any() or int(runs.sum()) != height * width:
        total = "unreadable" if runs is None else f"{int(runs.sum())} pixels long"
        raise ValueError(f"counts of {what} is {total}, expected {height} x {width} pixels. Encode the mask again.")


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
    # The first three stand for themselves: the third adds nothing, as the fourth adds the second.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def overlap(a: Rle, b: Rle, what: str) -> tuple[int, int, int]:
    """Pixels of (both, a, b) of two masks as `as_rle` gives them: a target's and a predicted one's.

    Raises ValueError where their sizes differ.
    """
    # pycocotools merges masks of different sizes to an empty one, without a word.
    height, width = a["size"]
    if (height, width) != tuple(b["size"]):
        raise ValueError(
            f"size of predicted {what} is {[*b['size']]}, expected {[height, width]} (height, width), the target's. "
            "Resize it to the original picture."
        )
    # Its buffer holds one run for each pixel; only a tiny or a broken mask has as many.
    if len(a["counts"]) + len(b["counts"]) > height * width:
        check_runs(a, f"target {what}")
        check_runs(b, f"predicted {what}")
    mask = pycocotools_mask()
    both, first, second = mask.area([mask.merge([a, b], True), a, b]).tolist()
    return both, first, second


def decode(rle: Rle, what: str) -> np.ndarray:
    """A mask as `as_rle` gives it -> bool[H, W]. In numpy: pycocotools' own decoding warns with numpy 2.

    Raises ValueError where the runs do not fill the picture exactly.
    """
    check_runs(rle, what)
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    assert runs is not None  # or the check had refused
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def area(rle: Rle) -> int:
    """Pixels of a mask."""
    return int(pycocotools_mask().area(rle))


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
    return pycocotools_mask().encode(np.asfortranarray(_as_bool(mask, what), np.uint8))


def _from_list(counts: Any, size: Sequence[int], what: str) -> Rle:
    height, width = size
    try:
        runs = np.asarray(counts, np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        runs = np.array([-1])
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"counts of {what} is no list of runs that fills {height} x {width} pixels. Encode it again.")
    return pycocotools_mask().frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def _from_polygons(polygons: Sequence[Any], what: str, size: tuple[int, int] | None) -> Rle:
    if size is None:
        raise ValueError(f"size of {what} is not given, expected (height, width) for polygons. Name the picture's.")
    _check_size(size, what)
    mask = pycocotools_mask()
    height, width = size
    if not len(polygons):
        return mask.encode(np.zeros((height, width), np.uint8, order="F"))
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
    return mask.merge(mask.frPyObjects(rings, height, width))


def _check_size(size: Any, what: str) -> None:
    try:
        height, width = size
        known = isinstance(height, _WHOLE) and isinstance(width, _WHOLE) and height > 0 and width > 0
    except (TypeError, ValueError):
        known = False
    if not known or height * width > _MOST_PIXELS:
        raise ValueError(f"size of {what} is {size!r}, expected [height, width] in pixels. Encode the mask again.")
