"""Picture files of a data set: found by image id, brought to rest as upright RGB JPEG."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from data_pipelines import DataError
from pixel_align.image import read_image

MAX_SIDE = 1024  # larger pictures are stored reduced to this; models see a few hundred pixels of it
QUALITY = 95  # of the JPEGs that are written anew

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
_COCO_2014 = re.compile(r"COCO_(?:train|val|test)2014_(?=\d{12}$)")
_EXIF_ORIENTATION = 0x0112


class PictureIndex:
    """Where the picture of an image id lies, for one or several folders, looked up once.

    An id is found as its path below a folder without suffix (`000025`, `a/b/000025`), as COCO's twelve digits (`25`
    finds `000000000025.jpg`, also with `COCO_val2014_` before it), or by the bare file name in whatever subfolder, as
    long as only one file has it. Earlier folders win over later ones.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._by_path: dict[str, Path] = {}
        self._by_name: dict[str, Path | None] = {}  # None: several files have the name
        for folder in self.folders:
            if not folder.is_dir():
                raise DataError(f"image folder is {str(folder)!r}, expected a folder that exists. Check --images.")
            by_name: dict[str, Path | None] = {}
            visited: set[str] = set()
            for parent, below, names in os.walk(folder, followlinks=True):
                real = os.path.realpath(parent)
                if real in visited:  # links can lead in circles
                    below.clear()
                    continue
                visited.add(real)
                # In a fixed order, on every disk; folders before links to them.
                below.sort(key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
                for name in sorted(names):
                    path = Path(parent, name)
                    if path.suffix.lower() not in _SUFFIXES:
                        continue
                    self._by_path.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
                    for alias in {path.stem, _COCO_2014.sub("", path.stem)}:
                        by_name[alias] = None if alias in by_name else path
            for alias, path_or_none in by_name.items():
                self._by_name.setdefault(alias, path_or_none)

    def __len__(self) -> int:
        return len(self._by_path)

    def find(self, image_id: str) -> Path | None:
        """The file of an image id, or None."""
        names = [image_id, image_id.zfill(12)] if image_id.isascii() and image_id.isdigit() else [image_id]
        for index in (self._by_path, self._by_name):
            for name in names:
                path = index.get(name)
                if path is not None:
                    return path
        return None


def upright_jpeg(path: str | os.PathLike[str], max_pixels: int, max_side: int) -> tuple[bytes, tuple[int, int]]:
    """A picture file -> (bytes of an upright RGB JPEG, its (height, width) in pixels).

    A file that already is that, and no larger than `max_side`, keeps its bytes; it is decoded all the same, so that
    what is stored is known to be whole. Everything else is converted (see `read_image`), reduced and written anew.

    Raises:
      pixel_align.image.ImageError: not a whole picture of at most `max_pixels` pixels; the message names the file.
    """
    pixels = read_image(path, max_pixels)
    height, width = pixels.shape[:2]
    content = Path(path).read_bytes()
    if max(height, width) <= max_side and _is_upright_rgb_jpeg(content):
        return content, (height, width)
    return encode_jpeg(pixels, max_side)


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in pixels of a picture file that is known to be whole, as it stands upright; reads its header."""
    with PIL.Image.open(path) as image:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def encode_jpeg(pixels: np.ndarray, max_side: int = MAX_SIDE) -> tuple[bytes, tuple[int, int]]:
    """uint8[H, W, 3] -> (JPEG bytes, (height, width)), the longest side reduced to at most `max_side` pixels."""
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue(), (image.height, image.width)


def _is_upright_rgb_jpeg(content: bytes) -> bool:
    """Whether encoded bytes, known to be a picture, are one plain JPEG with three channels and no rotation to apply."""
    with PIL.Image.open(io.BytesIO(content)) as image:
        return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_EXIF_ORIENTATION, 1) in (0, 1)
