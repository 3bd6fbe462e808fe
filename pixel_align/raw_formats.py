"""Answers about a folder of pictures in the publishers' raw formats, so that the builders of data sets read them.

| mode                               | localized_narratives       | coco                                              |
|------------------------------------|----------------------------|---------------------------------------------------|
| trace                              | localized_narratives.jsonl |                                                   |
| caption                            |                            | captions.json: images, annotations with `caption` |
| refer, segment, describe, densecap |                            | instances.json: images, annotations, categories   |

localized_narratives: a line of the publisher's seven fields for each picture. Nobody spoke, so the clock is ours: word
k of the text (from 0) is said from second k to second k + 1, and while it is said the trace goes through the points of
the word, evenly in time, as one stroke. Points outside the picture are moved to its edge. A word that the model gives
no place has its second and no stroke. There is no recording: `voice_recording` is "".

instances.json: an annotation for each region. Its `caption` is the text, in GRiT's spelling; its category, by name, is
the text too. With a mask, `segmentation` is that in run lengths and `bbox` the mask's extent, as COCO means it; without
one, or where the mask has no pixel, `bbox` is the box, cut to the picture. Boxes are x, y, width, height in pixels.
`describe` tells of the mask or else of the box that was asked about. `score` is the model's, as in COCO's results.

Pictures keep the publisher's numbers: COCO's twelve digits, with COCO_<split>2014_ before them or not, and names that
are a number. Else a narrative has the file's name without suffix, and COCO's files, which want a number, have a hash of
it, the same in every folder; their `images` say the file. Sources: https://google.github.io/localized-narratives,
https://cocodataset.org, Wu et al. 2022 (GRiT, arXiv 2212.00280).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixel_align.prediction import run_lengths

Line = Mapping[str, Any]  # of predictions.jsonl: `file` and what `Prediction.to_json` says
LeftOut = dict[str, str]  # file of a picture -> why not all that was said of it is written

_COCO = re.compile(r"(?:COCO_(?:train|val|test)2014_)?([0-9]{12})")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")  # every reader of JSON holds 15 digits exactly
_PLACES = {"box": "--box", "points": "--point", "scribble": "--scribble", "mask": "--mask"}  # as users say them


@dataclasses.dataclass(frozen=True)
class RawFormat:
    """What the answers of one mode become.

    Attributes:
      file: its name.
      document: (lines, what the user said, what is left out) -> the pieces of the file; fills the last.
      identity: file of a picture -> its id.
    """

    file: str
    document: Callable[[Sequence[Line], Mapping[str, Any], LeftOut], Iterator[str]]
    identity: Callable[[str], str | int]

    def check(self, files: Iterable[str]) -> None:
        """Raises ValueError where two pictures, by the names of their files, would have one id."""
        known: dict[str | int, str] = {}
        for file in files:
            if known.setdefault(self.identity(file), file) != file:
                raise ValueError(
                    f"image id of {file!r} is {self.identity(file)!r}, expected another than that of "
                    f"{known[self.identity(file)]!r}. Rename one of them."
                )

    def write(self, lines: Sequence[Line], said: Mapping[str, Any], folder: Path) -> LeftOut:
        """Writes FOLDER/<file>, whole or not at all, and gives the pictures of which something has no text or no place.

        Raises ValueError as `check` does.
        """
        self.check(line["file"] for line in lines)
        left_out: LeftOut = {}
        partial = folder / f".{self.file}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(self.document(lines, said, left_out))
        partial.replace(folder / self.file)
        return left_out


def raw_format(name: str, mode: str, said: Mapping[str, Any]) -> RawFormat:
    """What writes the answers of a mode in the format `name`; said: what the user said, None for what was not.

    Raises:
      ValueError: unknown format, or answers that it cannot hold.
    """
    if name not in FORMATS:
        raise ValueError(f"--format is {name!r}, expected one of {', '.join(FORMATS)}. Choose one of them.")
    if mode not in FORMATS[name]:
        raise ValueError(
            f"--mode is {mode!r}, expected one that --format {name} can hold: {', '.join(FORMATS[name])}. "
            "Choose another of either."
        )
    given = [option for place, option in _PLACES.items() if said.get(place) is not None]
    if mode == "caption" and given:
        raise ValueError(
            f"{given[0]} is given, expected none: a caption in --format {name} is of the whole picture. Use --mode "
            "describe."
        )
    if mode == "describe" and not {"--box", "--mask"} & set(given):
        raise ValueError(
            f"--box and --mask are missing, expected one of them: a region in --format {name} has an extent. Give one."
        )
    return FORMATS[name][mode]


def image_id(file: str) -> str:
    """COCO's number of a picture, without leading zeros, where its file has COCO's name; else the name without suffix.

    So `000000000025.jpg` and `COCO_val2014_000000000025.jpg` are both "25".
    """
    stem = Path(file).stem
    match = _COCO.fullmatch(stem)
    return str(int(match[1])) if match else stem


def image_number(file: str) -> int:
    """`image_id` where that is a number, else a number of 48 bits that is a hash of it."""
    name = image_id(file)
    digest = hashlib.blake2b(name.encode(), digest_size=6).digest()
    return int(name) if _NUMBER.fullmatch(name) else int.from_bytes(digest)


def _narratives(lines: Sequence[Line], said: Mapping[str, Any], left_out: LeftOut) -> Iterator[str]:
    del said  # whatever was asked, the words and their places are the answer
    for line in lines:
        if not line["text"].strip():
            left_out[line["file"]] = "it has no text"
            continue
        words = list(enumerate(line["words"]))
        narrative = {
            # It tells readers which pictures these are.
            "dataset_id": "mscoco_predicted" if _COCO.fullmatch(Path(line["file"]).stem) else "predicted",
            "image_id": image_id(line["file"]),
            "annotator_id": 0,
            "caption": line["text"],
            "timed_caption": [
                {"utterance": word["word"], "start_time": float(second), "end_time": second + 1.0}
                for second, word in words
            ],
            "traces": [
                _stroke(word["points"], second, (line["width"], line["height"]))
                for second, word in words
                if word.get("placed")
            ],
            "voice_recording": "",
        }
        yield json.dumps(narrative, ensure_ascii=False) + "\n"


def _stroke(points: Sequence[Sequence[float]], second: int, size: tuple[int, int]) -> list[dict[str, float]]:
    """Points [P, 2] in pixels of a picture of (width, height) `size` -> the trace through them in a second."""
    # From edge to edge: strokes of neighbours touch, and a moment in which they do belongs to neither reader.
    times = np.linspace(second, second + 1, len(points)) if len(points) > 1 else [second + 0.5]
    xy = np.clip(np.asarray(points, np.float64) / size, 0, 1).round(7).tolist()
    return [{"x": x, "y": y, "t": round(float(t), 6)} for (x, y), t in zip(xy, times, strict=True)]


def _captions(lines: Sequence[Line], said: Mapping[str, Any], left_out: LeftOut) -> Iterator[str]:
    del said
    told = [line for line in lines if line["text"].strip()]
    left_out |= {line["file"]: "it has no text" for line in lines if not line["text"].strip()}
    annotations = [
        {"id": number, "image_id": image_number(line["file"]), "caption": line["text"]}
        for number, line in enumerate(told, 1)
    ]
    yield _coco(lines, annotations=annotations)


def _instances(lines: Sequence[Line], said: Mapping[str, Any], left_out: LeftOut) -> Iterator[str]:
    asked = said.get("mask")
    found = []
    for line in lines:
        regions = line.get("regions", ())
        if asked is not None:  # and is no part of the answer
            regions = [{"text": line["text"], "mask": run_lengths(asked)}]
        for region in regions:
            place, text = _place(region, (line["width"], line["height"])), region["text"].strip()
            if place is None or not text:
                left_out[line["file"]] = "a region has no text" if place is not None else "a region has no extent"
            else:
                scored = {"score": region["score"]} if "score" in region else {}
                found.append((line["file"], text, place | scored))
    names = sorted({text for _, text, _ in found})
    categories = {name: number for number, name in enumerate(names, 1)}
    annotations = [
        {
            "id": number,
            "image_id": image_number(file),
            "category_id": categories[text],
            "caption": text,
            "iscrowd": 0,
            **place,
        }
        for number, (file, text, place) in enumerate(found, 1)
    ]
    listed = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
    yield _coco(lines, annotations=annotations, categories=listed)


def _place(region: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """`bbox`, `area` and, where there is a mask with pixels, `segmentation`; None where there is no extent."""
    mask = region.get("mask")
    if mask is not None and (area := sum(mask["counts"][1::2])):
        extent = _extent(mask)
        return {"bbox": _xywh(extent), "area": area, "segmentation": mask}
    if "box" not in region:
        return None
    box = np.clip(np.asarray(region["box"], np.float64), 0, [*size, *size])
    x, y, width, height = _xywh(box)
    return {"bbox": [x, y, width, height], "area": round(width * height, 4)} if width > 0 and height > 0 else None


def _extent(mask: Mapping[str, Any]) -> np.ndarray:
    """COCO's uncompressed run lengths of a mask with pixels -> its box, xyxy, edges included."""
    height, width = mask["size"]
    columns = np.repeat(np.arange(len(mask["counts"])) % 2 == 1, mask["counts"]).reshape(width, height)
    x, y = np.flatnonzero(columns.any(axis=1)), np.flatnonzero(columns.any(axis=0))
    return np.asarray([x[0], y[0], x[-1] + 1, y[-1] + 1], np.float64)


def _xywh(box: np.ndarray) -> list[float]:
    """A box xyxy -> x, y, width, height, to a hundredth of a pixel."""
    return [round(float(value), 2) for value in (*box[:2], *(box[2:] - box[:2]))]


def _coco(lines: Sequence[Line], **parts: Any) -> str:
    images = [
        {"id": image_number(line["file"]), "file_name": line["file"], "height": line["height"], "width": line["width"]}
        for line in lines
    ]
    document = {"info": {"description": "predictions of pixel_align"}, "licenses": [], "images": images, **parts}
    return json.dumps(document, ensure_ascii=False) + "\n"


_REGIONS = RawFormat("instances.json", _instances, image_number)
# Format -> mode -> what the answers become.
FORMATS: Mapping[str, Mapping[str, RawFormat]] = {
    "localized_narratives": {"trace": RawFormat("localized_narratives.jsonl", _narratives, image_id)},
    "coco": {
        "caption": RawFormat("captions.json", _captions, image_number),
        **dict.fromkeys(("refer", "segment", "describe", "densecap"), _REGIONS),
    },
}
