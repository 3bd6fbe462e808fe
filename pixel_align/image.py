"""Pictures: any common file -> upright RGB -> the square canvas of the model: one path, NumPy and PIL.

Everything here is thread-safe: no state is shared, and the interpreter lock is let go while PIL decodes and resizes.
"""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps

from pixel_align.geometry import Placement, fit_size

MAX_PIXELS = 64_000_000  # 192 MB decoded: above a usual camera's photograph, below what a hostile header can claim

# What PIL's readers are known to raise on files that are broken or no pictures at all.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)
_BOMB = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)


class ImageError(ValueError):
    """A picture that cannot be used; the message says which and why, in one line."""


def read_image(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A path or the encoded bytes of a picture -> uint8[H, W, 3], upright RGB.

    EXIF orientation is applied. Grayscale, palette, CMYK and YCbCr become RGB; 16-bit and floating-point gray is
    brought to 8 bits; what is transparent is laid over white, as a page would show it; of an animation, the first frame
    is taken.

    Raises:
      ImageError: there is no such file, it is not a whole picture of a known format, or it has more than `max_pixels`
        pixels (told from its header: nothing of that size is ever allocated).
    """
    what = "the given bytes" if isinstance(source, bytes) else repr(os.fspath(source))
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise ImageError(f"image is {what}, expected a file that exists. Check the path.")
    too_large = f"expected at most {max_pixels} pixels. Make the picture smaller."
    try:
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"size of {what} is {width} x {height} = {width * height} pixels, {too_large}")
            return to_rgb(PIL.ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except _BOMB as error:
        raise ImageError(f"size of {what} is beyond what is safe to open ({error}), {too_large}") from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"image is {what}, expected a picture (JPEG, PNG, WebP, ...). Check the file.") from error
    except _BROKEN as error:
        raise ImageError(
            f"content of {what} is broken ({error}), expected a whole picture. Fetch the file again."
        ) from error


def to_rgb(image: PIL.Image.Image) -> np.ndarray:
    """A PIL picture of any mode -> uint8[H, W, 3]; see `read_image` for how each mode is brought to RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_to_8_bits(np.asarray(image), image.mode)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def fit_to_canvas(image: np.ndarray, canvas: int) -> tuple[np.ndarray, Placement]:
    """uint8[H, W, 3] -> (uint8[S, S, 3], its Placement): longest side to S = `canvas`, top-left, zeros elsewhere."""
    height, width = _check(image, canvas)
    placement = Placement(
        (height, width), (0.0, 0.0, float(width), float(height)), fit_size((height, width), canvas), canvas
    )
    return _place(image, placement), placement


def center_crop(image: np.ndarray, canvas: int) -> tuple[np.ndarray, Placement]:
    """uint8[H, W, 3] -> (uint8[S, S, 3], its Placement): shortest side to S = `canvas`, the middle of the longer one.

    The published evaluation of COCO captions.
    """
    height, width = _check(image, canvas)
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    placement = Placement((height, width), (left, top, left + side, top + side), (canvas, canvas), canvas)
    return _place(image, placement), placement


def random_resize_crop(
    image: np.ndarray,
    canvas: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.75, 1.25),
    flip_rate: float = 0.0,
) -> tuple[np.ndarray, Placement]:
    """A random view of the picture uint8[H, W, 3] -> (uint8[S, S, 3], its Placement).

    The published augmentation: longest side to S * r, r uniform in `scale`; then a random S x S piece of that where it
    is larger than the canvas, zeros at the right and bottom where it is smaller. Mirrored with probability `flip_rate`
    (never where text says left or right). Boxes and points follow by `Placement.to_canvas`, those that left the view
    are told by `geometry.visible_share`. The same state of `rng` gives the same view, and every call takes the same
    number of draws from it.
    """
    height, width = _check(image, canvas)
    low, high = scale
    if not 0 < low <= high:
        raise ValueError(f"scale is {scale}, expected 0 < low <= high. Give the range of sizes relative to the canvas.")
    ratio, at_x, at_y, coin = rng.random(4)
    resized = fit_size((height, width), canvas * (low + ratio * (high - low)))
    valid = (min(resized[0], canvas), min(resized[1], canvas))
    # Whole pixels of the resized picture, so that the view is a piece of it; then back to pixels of the original, cut
    # at its edge because the division can pass it by a rounding error.
    top, left = (int(at * (full - seen + 1)) for at, full, seen in zip((at_y, at_x), resized, valid, strict=True))
    step_y, step_x = height / resized[0], width / resized[1]
    crop = (left * step_x, top * step_y, min((left + valid[1]) * step_x, width), min((top + valid[0]) * step_y, height))
    placement = Placement((height, width), crop, valid, canvas, flip=bool(coin < flip_rate))
    return _place(image, placement), placement


def _place(image: np.ndarray, placement: Placement) -> np.ndarray:
    """uint8[H, W, 3] -> uint8[S, S, 3] as the placement says: one antialiased resize of the seen part."""
    height, width = placement.valid_size
    # PIL widens the bilinear kernel when it makes a picture smaller (antialias), as tf.image.resize(antialias=True)
    # does.
    view = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR, box=placement.crop)
    pixels = np.asarray(view)
    result = np.zeros((placement.canvas, placement.canvas, 3), np.uint8)
    result[:height, :width] = pixels[:, ::-1] if placement.flip else pixels
    return result


def read_mask(png: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The bytes of a black and white PNG -> Bool[H, W], True where it is not black.

    Raises:
      ImageError: not a PNG of one channel, or too large.
    """
    try:
        with PIL.Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if picture.width * picture.height > max_pixels or picture.mode not in ("1", "L"):
                raise ImageError(
                    f"mask is {picture.width} x {picture.height} in mode {picture.mode}, expected one channel and at "
                    f"most {max_pixels} pixels. Save it as black and white."
                )
            return np.asarray(picture) > 0
    except ImageError:
        raise
    except (*_BROKEN, *_BOMB) as error:
        raise ImageError("mask is not a whole PNG, expected a black and white one. Save it again.") from error


def write_mask(mask: np.ndarray) -> bytes:
    """Bool[H, W] -> the bytes of a PNG of one bit a pixel."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.asarray(mask, bool)).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def mask_to_cells(mask: np.ndarray, placement: Placement, side: int) -> np.ndarray:
    """Bool[H, W] of the original -> Bool[side, side], the canvas in cells: which are more than half inside.

    It goes where the pixels go: the same crop, the same size, the same mirror.
    """
    canvas = _place(np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1), placement)[..., 0]
    small = PIL.Image.fromarray(canvas).resize((side, side), PIL.Image.Resampling.BOX)
    return np.asarray(small) > 127


def _to_8_bits(gray: np.ndarray, mode: str) -> np.ndarray:
    """Gray values [H, W] of a PIL mode I;16, I or F -> uint8[H, W].

    I;16 states its range. I and F do not: they take the smallest of the usual ranges (F: 1; 255; 65535) that holds
    their values.
    """
    top = float(gray.max(initial=0))
    full = 65535.0 if mode.startswith("I;16") or top > 255 else 1.0 if mode == "F" and top <= 1 else 255.0
    return np.clip(np.rint(gray * (255.0 / full)), 0, 255).astype(np.uint8)


def _check(image: np.ndarray, canvas: int) -> tuple[int, int]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(
            f"image is {image.dtype}{list(image.shape)}, expected uint8[H, W, 3]. Read it with read_image."
        )
    if canvas < 1:
        raise ValueError(f"canvas is {canvas}, expected at least 1. Give the side of the square in pixels.")
    return image.shape[0], image.shape[1]
