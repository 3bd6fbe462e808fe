"""Referring expressions in the form that SeqTR made and UNINEXT took over: `instances.json`, a list for each split.

An entry is an object: `image_id`, `width`, `height`, `bbox` (x, y, width, height), `expressions` (texts), and perhaps
`mask` (polygons or run lengths) and `data_source` ("coco", "vg" or "flickr": whose picture it is). Sources: Zhu et al.
2022 (arXiv 2203.16265), Yan et al. 2023 (arXiv 2303.06674), https://github.com/MasterBin-IIAU/UNINEXT.
"""

from pathlib import Path

from data_pipelines import json_input
from data_pipelines.regions import Picture, Region
from pixel_align.evaluation import seen

# Source -> (collection, how its files are called, how its ids are written).
_SOURCES = {
    "coco": ("coco", "COCO_train2014_{:012d}.jpg", "{}"),
    "vg": ("visual_genome", "{}.jpg", "vg_{}"),
    "flickr": ("flickr30k", "{}.jpg", "flickr_{}"),
}


def read(path: str | Path, name: str) -> dict[str, list[Picture]]:
    """The splits of a file under its own names; each object is a picture with its expressions.

    Pictures of other sources than COCO have the source in their ids: numbers of different sources meet in one file.
    Raises DataError where the file is broken.
    """
    content = json_input.load(path, "UNINEXT file")
    with json_input.expected(path, "UNINEXT file", "a list of objects with image_id, bbox, expressions for each split"):
        return {
            split: [_picture(f"{split}:{k}", entry, name) for k, entry in enumerate(entries)]
            for split, entries in content.items()
        }


def _picture(object_id: str, entry: dict[str, object], name: str) -> Picture:
    source = entry.get("data_source", "coco")
    if source not in _SOURCES:
        raise ValueError(f"data_source is {source!r}, expected {', '.join(_SOURCES)}")
    collection, file_name, image_id = _SOURCES[str(source)]
    number = entry["image_id"]
    height, width, told = entry["height"], entry["width"], entry["expressions"]
    if not isinstance(number, int) or not isinstance(height, int) or not isinstance(width, int):
        raise TypeError(f"image_id, height, width are {number!r}, {height!r}, {width!r}, expected whole numbers")
    if not isinstance(told, list):
        raise TypeError(f"expressions is a {type(told).__name__}, expected a list of texts")
    shape = {"bbox": entry["bbox"], "segmentation": entry.get("mask")}
    return Picture(
        image_id=image_id.format(number),
        file_name=file_name.format(number),
        size=(height, width),
        regions=[Region.of_coco(f"{object_id}:{k}", text, shape, object_id) for k, text in enumerate(told)],
        dataset_id=name,
        name=seen.canonical(collection, number),
    )
