"""Referring expressions in MDETR's form: COCO json in which every expression is an image of its own.

An image entry has `caption` (the expression) and `original_id` or `original_img_id` (the picture); its annotation has
`bbox` (x, y, width, height) and, in some copies, `segmentation`. Here the expressions come back to their pictures.
Source: Kamath et al. 2021 (arXiv 2104.12763), https://github.com/ashkamath/mdetr.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines import json_input
from data_pipelines.regions import Picture, Region


def read(path: str | Path, name: str) -> Iterator[Picture]:
    """The expressions of a file, each as a picture with its regions. Raises DataError where it is broken.

    Where a caption has several annotations, each is of the piece of it that `tokens_positive` tells, else of the whole.
    """
    content = json_input.load(path, "MDETR file")
    with json_input.expected(path, "MDETR file", "images with captions, annotations"):
        by_image: dict[int, list[dict[str, object]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        for image in content["images"]:
            own = by_image[image["id"]]
            found = []
            for k, annotation in enumerate(own):
                several = len(own) > 1
                text = _piece(image["caption"], annotation.get("tokens_positive")) if several else image["caption"]
                object_id = str(annotation.get("original_id", ""))
                region_id = f"{image['id']}#{k}" if several else str(image["id"])
                found.append(Region.of_coco(region_id, text, annotation, object_id))
            if not own:
                problem = f"expression {image['caption']!r:.100} has no annotation, expected one"
                found.append(Region(str(image["id"]), image["caption"], None, problem=problem))
            original = image.get("original_img_id", image.get("original_id"))
            if original is None:
                raise KeyError("original_id")
            size = (int(image["height"]), int(image["width"]))
            yield Picture(str(original), str(image["file_name"]), size, found, name)


def _piece(caption: str, spans: object) -> str:
    """The part of a caption from the first to the last of some [start, end) spans of characters."""
    if not isinstance(spans, list) or not spans:
        return caption
    return caption[min(start for start, _ in spans) : max(end for _, end in spans)]
