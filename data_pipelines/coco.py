"""COCO annotations: the objects of a picture with their names and boxes."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import DataError


class Objects(NamedTuple):
    """K named objects of one picture."""

    boxes: np.ndarray  # float32[K, 4], xyxy in [0, 1] of the picture
    names: list[str]  # K category names


NO_OBJECTS = Objects(np.zeros((0, 4), np.float32), [])


class Instances:
    """A COCO instances file, without its masks.

    Crowd regions (`iscrowd`) are left out: they are no one object. Boxes without extent inside their picture are left
    out too.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if not path.is_file():
            raise DataError(f"instances file is {str(path)!r}, expected a file that exists. Check --instances.")
        try:
            with path.open(encoding="utf-8") as file:
                # Masks are most of the file; dropped while parsing, they never fill the memory.
                content = json.load(file, object_hook=_without_masks)
            names = {category["id"]: str(category["name"]) for category in content["categories"]}
            images = {image["id"]: image for image in content["images"]}
            found: dict[Any, list[tuple[list[float], str]]] = {}
            for annotation in content["annotations"]:
                if not annotation.get("iscrowd", 0):
                    found.setdefault(annotation["image_id"], []).append(
                        (annotation["bbox"], names[annotation["category_id"]])
                    )
            self._objects: dict[str, Objects] = {}
            self._sizes: dict[str, tuple[int, int]] = {}
            for image_id, image in images.items():
                size = (int(image["height"]), int(image["width"]))
                objects = _objects(found.get(image_id, []), size)
                for key in {str(image_id), Path(image.get("file_name", str(image_id))).stem}:
                    self._objects[key], self._sizes[key] = objects, size
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"instances file {str(path)!r} is broken ({type(error).__name__}: {error}), expected COCO instances: "
                "images, annotations, categories. Check --instances."
            ) from error
        self.names = sorted(set(names.values()))

    def find(self, image_id: str, size: tuple[int, int]) -> Objects:
        """The objects of a picture whose upright (height, width) is `size`.

        None are given for unknown ids and where the annotations were made on a picture lying on its side (`size`
        transposed).
        """
        key = image_id
        if key not in self._objects and image_id.isascii() and image_id.isdigit():
            key = str(int(image_id))
        if key not in self._objects:
            return NO_OBJECTS
        height, width = self._sizes[key]
        if (height > width) != (size[0] > size[1]) and height != width:
            return NO_OBJECTS
        return self._objects[key]


def _without_masks(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("segmentation", None)
    return record


def _objects(annotations: list[tuple[list[float], str]], size: tuple[int, int]) -> Objects:
    """Boxes xywh in pixels with their names -> boxes xyxy in [0, 1], clipped to the picture, without empty ones."""
    if not annotations:
        return NO_OBJECTS
    height, width = size
    xywh = np.array([box for box, _ in annotations], np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1) / [width, height, width, height]
    boxes = np.clip(boxes, 0.0, 1.0).astype(np.float32)
    whole = np.all(boxes[:, :2] < boxes[:, 2:], axis=1).tolist()
    return Objects(boxes[whole], [name for (_, name), keep in zip(annotations, whole, strict=True) if keep])
