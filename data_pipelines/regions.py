"""Regions: phrases that each name one place of a picture -> a TFDS set, one record per picture -> seqio Tasks.

Referring expressions and region descriptions are the same thing, asked in several directions: from the words to the
place ("refer"), from the place to the words ("describe"), or for all places and words at once ("densecap"). Readers of
data sets (`refcoco`, `visual_genome`, ...) turn their publishers' files into `Picture`s; `build` writes them,
`register` makes Tasks of them. What a record holds is said at `RegionSet.features`, what an example holds at
`OUTPUT_FEATURES`.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import DataError, building, options, pictures, region_masks, sources
from data_pipelines.building import Built, Inputs, Materials
from data_pipelines.narratives import BadRecord, Skipped
from pixel_align.text import INSTRUCTIONS

Size = tuple[int, int]  # (height, width) in pixels
Asks = Literal["refer", "describe", "densecap"]
_Case = Mapping[str, Any]  # one example, or what is predicted for it

_EDGE = 1.0  # pixels by which a box may pass the edge of its picture before that is worth a word
_INSIDE = 0.5  # share of a box that must lie in its picture
_AGREE = 0.3  # IoU that a box and the extent of its mask have at least
_CUT = "box cut at the edge of the picture"
_MOST_TEXT = 20_000  # characters of a phrase


@dataclasses.dataclass(frozen=True)
class Region:
    """One phrase and its place, in pixels of the picture.

    Attributes:
      region_id: unique in its set.
      text: as published; spaces at its ends are taken off.
      box: (x0, y0, x1, y1); None: the extent of the mask.
      mask: polygons (lists of x, y, x, y ...), COCO run lengths, bool[height, width], or None.
      object_id: phrases of one object share it; "" = not known.
      problem: what its reader found wrong with it: it is left out, counted and named.
    """

    region_id: str
    text: str
    box: Sequence[float] | None
    mask: Any = None
    object_id: str = ""
    problem: str = ""

    @classmethod
    def of_coco(cls, region_id: str, text: str, annotation: Mapping[str, Any], object_id: str = "") -> "Region":
        """From what COCO keeps of an object: `bbox` (x, y, width, height) and, perhaps, `segmentation`."""
        box = annotation.get("bbox")
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(x, int | float) for x in box):
            problem = f"bbox is {box!r:.100}, expected x, y, width, height"
            return cls(region_id, text, None, object_id=object_id, problem=problem)
        x, y, width, height = box
        return cls(region_id, text, (x, y, x + width, y + height), annotation.get("segmentation") or None, object_id)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with its regions; the same picture may come several times, with other regions.

    Attributes:
      image_id: its id in the record.
      file_name: its file is looked for by this name first, then by the id; "" = by the id only.
      size: (height, width) that the regions are of; None: that of the file.
      dataset_id: the publisher's name of the set.
      name: canonical name (see `pixel_align.evaluation.seen`); "" = from dataset_id and image_id.
    """

    image_id: str
    file_name: str
    size: Size | None
    regions: Sequence[Region]
    dataset_id: str
    name: str = ""


@dataclasses.dataclass(frozen=True)
class _Placed:
    """One line: a region and what it says of its picture."""

    image_id: str
    dataset_id: str
    file_name: str
    size: Size | None
    name: str
    region: Region


def lines(found: Iterable[Picture]) -> Iterator[tuple[str, bytes]]:
    """Pictures -> (where, line), one line for each region, as `RegionSet.parse` reads them."""
    for picture in found:
        of_picture = {
            "image_id": picture.image_id,
            "dataset_id": picture.dataset_id,
            "file_name": picture.file_name,
            "size": picture.size,
            "name": picture.name,
        }
        for region in picture.regions:
            of_region = {
                "region_id": region.region_id,
                "text": region.text,
                "box": region.box,
                "object_id": region.object_id,
                "problem": region.problem,
            }
            if region.mask is not None:
                of_region["mask"] = region_masks.as_json(region.mask)
            where = f"image {picture.image_id}, region {region.region_id}"
            yield where, json.dumps({**of_picture, **of_region}, default=_plain).encode()


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays in JSON terms."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


class RegionSet(building.PictureSet):
    """One record per picture: the picture and its regions, in the order in which they came."""

    DESCRIPTION = "Pictures with phrases that each name one place, given as a box and, where known, as a mask."
    UNIT = "regions"
    COUNTS = ("regions", "objects", "masks")
    DISTINCT = False  # the same phrase at the same place counts once

    @staticmethod
    def features() -> tfds.features.FeaturesDict:
        text = tfds.features.Text
        return tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "image_id": text(),
                "dataset_id": text(),
                "regions": tfds.features.Sequence(
                    {
                        "region_id": text(),
                        "object_id": text(),  # "" = not known
                        "text": text(),
                        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),  # xyxy in [0, 1] of the picture
                        "mask": text(),  # bytes of a 1-bit PNG of the picture's size; empty = none
                    }
                ),
            }
        )

    @staticmethod
    def parse(line: bytes) -> _Placed:
        fields = json.loads(line)
        if fields["problem"]:
            raise BadRecord(fields["problem"])
        size = fields["size"]
        if size is not None and not (len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
            raise BadRecord(f"size of the picture is {size}, expected (height, width) in pixels")
        text, box, mask = fields["text"], fields["box"], fields.get("mask")
        if not isinstance(text, str) or not text.strip() or len(text) > _MOST_TEXT:
            raise BadRecord(f"text is {text!r:.100}, expected 1 to {_MOST_TEXT:,} characters")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise BadRecord("text holds half of a surrogate pair, expected text that UTF-8 can spell")
        if box is None and mask is None:
            raise BadRecord("region has neither box nor mask, expected one of them at least")
        if box is not None:
            box = _checked_box(box)
            if size is not None:
                _within(box, size)
        region = Region(fields["region_id"], text, box, mask, fields["object_id"])
        return _Placed(
            fields["image_id"],
            fields["dataset_id"],
            fields["file_name"],
            None if size is None else (size[0], size[1]),
            fields["name"],
            region,
        )

    @staticmethod
    def files(annotation: _Placed) -> tuple[str, ...]:
        bare = os.path.splitext(annotation.file_name)[0]
        return tuple(dict.fromkeys(name for name in (bare, annotation.image_id) if name))

    @classmethod
    def image_name(cls, annotation: _Placed) -> str:
        return annotation.name or super().image_name(annotation)

    def record(
        self,
        picture: building.Picture,
        found: Sequence[_Placed],
        materials: Materials,
        skipped: Skipped,
        mended: Counter[str],
    ) -> dict[str, Any] | None:
        del materials
        actual = pictures.upright_size(picture.path)
        drawn: dict[str, tuple[np.ndarray, bytes]] = {}  # expressions of one object share its mask
        rows: list[dict[str, Any]] = []
        ids, places = set[str](), set[tuple[Any, ...]]()
        for placed in found:
            region = placed.region
            where = f"image {placed.image_id}, region {region.region_id}"
            size = placed.size or actual
            try:
                _check_size(size, actual)
                if region.region_id in ids:
                    raise BadRecord("region id stands there already, expected one of its own for each region")
                box, mask = _place(region, size, picture.size, drawn)
                inside = _within(box, size)
            except BadRecord as error:
                skipped.add("bad region", where, str(error))
                continue
            text = region.text.strip()
            place = (text, region.object_id, *box)
            if self.DISTINCT and place in places:
                mended["exact duplicate dropped"] += 1
                continue
            ids.add(region.region_id)
            places.add(place)
            mended["spaces around the text taken off"] += text != region.text
            mended["mask without a pixel dropped"] += region.mask is not None and not mask
            height, width = size
            mended[_CUT] += max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _EDGE
            rows.append(
                {
                    "region_id": region.region_id,
                    "object_id": region.object_id,
                    "text": text,
                    "box": np.array(inside, np.float32) / np.array([width, height, width, height], np.float32),
                    "mask": mask,
                }
            )
        if not rows:
            return None
        return {
            "image": picture.jpeg,
            "image_id": picture.image_id,
            "dataset_id": found[0].dataset_id,
            "regions": rows,
        }

    @staticmethod
    def count(record: Mapping[str, Any]) -> Mapping[str, int]:
        rows = record["regions"]
        objects = {row["object_id"] for row in rows if row["object_id"]}
        return {"regions": len(rows), "objects": len(objects), "masks": sum(bool(row["mask"]) for row in rows)}

    @staticmethod
    def check(mended: Mapping[str, int], counts: Mapping[str, int]) -> None:
        cut, all_of_them = mended.get(_CUT, 0), counts["regions"]
        if cut > 2 + 0.05 * all_of_them:
            raise DataError(
                f"number of boxes that pass the edge of their picture is {cut} of {all_of_them}, expected hardly any. "
                "Check whether they are x0, y0, x1, y1 or x, y, width, height, and of pictures of this size."
            )


def _checked_box(box: Any) -> tuple[float, float, float, float]:
    """Four numbers -> the same as a box. Raises BadRecord where they are none."""
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e6 for x in box):
        raise BadRecord(f"box is {box!r:.100}, expected four numbers x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = map(float, box)
    if not (x0 < x1 and y0 < y1):
        raise BadRecord(f"box is {box}, expected x0 < x1 and y0 < y1 (is it x, y, width, height?)")
    return x0, y0, x1, y1


def _within(box: Sequence[float], size: Size) -> tuple[float, float, float, float]:
    """The part of a box that lies in the picture. Raises BadRecord where that is not most of it."""
    height, width = size
    x0, y0, x1, y1 = box
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    share = max(cut[2] - cut[0], 0) * max(cut[3] - cut[1], 0) / ((x1 - x0) * (y1 - y0))
    if share < _INSIDE:
        raise BadRecord(f"box is {[*box]}, expected to lie in its picture of {width} x {height} pixels")
    return cut


def _check_size(size: Size, actual: Size) -> None:
    """Refuses a file of another shape than the annotated picture; one that was only made larger or smaller is fine."""
    height, width = size
    if size != actual and abs(height * actual[1] / width - actual[0]) > 1.5 + 0.01 * actual[0]:
        raise BadRecord(
            f"picture file is {actual[1]} x {actual[0]} pixels, expected {width} x {height} or that shape, as annotated"
        )


def _place(
    region: Region, size: Size, stored: Size, drawn: dict[str, tuple[np.ndarray, bytes]]
) -> tuple[Sequence[float], bytes]:
    """The box xyxy in pixels and the mask, as it is stored, of a region of a picture of `size`."""
    if region.mask is None:
        assert region.box is not None  # `parse` has seen to it
        return region.box, b""
    key = json.dumps([region.mask, size])
    if key not in drawn:
        mask = region_masks.draw(region.mask, size)
        drawn[key] = mask, region_masks.png(mask, stored)
    mask, content = drawn[key]
    if not mask.any():
        if region.box is None:
            raise BadRecord("mask has no pixel and there is no box, expected a place")
        return region.box, b""
    extent = region_masks.extent(mask)
    box = extent if region.box is None else region.box
    if _iou(box, extent) < _AGREE:
        raise BadRecord(f"box is {[*box]}, expected to hold its mask, which lies in {[*extent]} (xyxy)")
    return box, content


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    both = math.prod(max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    return both / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - both)


def build(
    out: str | os.PathLike[str],
    name: str,
    split: str,
    found: Iterable[Picture] | Callable[[], Iterable[Picture]],
    images: Sequence[str | os.PathLike[str]],
    *,
    files: Sequence[str | os.PathLike[str]] = (),
    settings: str = "",
    kind: type[RegionSet] = RegionSet,
    shards: int | None = None,
    overwrite: bool = False,
    **limits: Any,
) -> Built:
    """Builds one split of a set of regions; see `building.build`.

    Args:
      found: the pictures; a function of none, where reading them is work that a resumed build can save.
      images: folders.
      files: what `found` is read from: another content, another build. Without them the pictures themselves tell.
      settings: what else `found` depends on.
      kind: RegionSet, or one that says more about the set.
      limits: max_skipped, max_pixels, max_side, threads of `building.Inputs`.
    """

    def read() -> Iterator[tuple[str, bytes]]:
        return lines(found() if callable(found) else found)

    if not files:
        if not callable(found):
            found = list(found)
        digest = hashlib.sha256()
        for _, line in read():
            digest.update(line)
        settings = f"{settings} {digest.hexdigest()}".strip()
    inputs = Inputs(
        tuple(map(str, files)), images=tuple(map(str, images)), lines=read, settings=settings or "regions", **limits
    )
    return building.build(out, split, inputs, name=name, kind=kind, shards=shards, overwrite=overwrite)


def describe(built: Built) -> str:
    """The report of a build as a small table."""
    more = {"regions": "", "objects": "that are told apart", "masks": ""}
    return options.describe(built, "regions", {key: (built.report[key], text) for key, text in more.items()})


# The Tasks

_ANY = seqio.PassThroughVocabulary(size=1)  # Tasks know no vocabulary: text leaves them as text


def _feature(dtype: tf.DType, rank: int) -> seqio.Feature:
    return seqio.Feature(_ANY, add_eos=False, dtype=dtype, rank=rank)


# An example: a picture with its K regions. Frames: [0, 1] of the picture, boxes xyxy.
OUTPUT_FEATURES = {
    "image": _feature(tf.string, 0),  # encoded JPEG, upright RGB
    "image_id": _feature(tf.string, 0),
    "example_id": _feature(tf.string, 0),  # the image id: one example per picture
    "asks": _feature(
        tf.string, 0
    ),  # refer: text -> place; describe: place -> text; densecap: picture -> all places and texts
    "instruction": _feature(tf.string, 0),  # "" = none; {text} stands for each region's text
    "region_id": _feature(tf.string, 1),  # [K]
    "object_id": _feature(tf.string, 1),  # [K], "" = not known
    "region_text": _feature(tf.string, 1),  # [K]
    "region_box": _feature(tf.float32, 2),  # [K, 4]
    "region_mask": _feature(tf.string, 1),  # [K], PNG of the picture's size, "" = none
}


def as_examples(dataset: tf.data.Dataset, asks: Asks, instruction: str) -> tf.data.Dataset:
    """Records -> examples as OUTPUT_FEATURES says."""

    def example(record: dict[str, Any]) -> dict[str, tf.Tensor]:
        found = record["regions"]
        return {
            "image": record["image"],
            "image_id": record["image_id"],
            "example_id": record["image_id"],
            "asks": tf.constant(asks),
            "instruction": tf.constant(instruction),
            "region_id": found["region_id"],
            "object_id": found["object_id"],
            "region_text": found["text"],
            "region_box": found["box"],
            "region_mask": found["mask"],
        }

    return dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def referring_scores(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Metrics of finding what expressions name.

    Args:
      targets: of each example region_text [K], boxes [K, 4] xyxy in pixels of the picture, masks [K] of bool[H, W] or
        None.
      predictions: of each example boxes [K, 4], masks [K] of bool[H, W], or None.

    Returns:
      P@0.5 and P@0.5:0.95 over all expressions; with masks cIoU and gIoU over those whose mask is known.
    """
    from pixel_align.evaluation import referring

    rows = []
    masked = False
    for target, predicted in zip(targets, predictions, strict=True):
        found = predicted.get("masks")
        for k, text in enumerate(target["region_text"]):
            mask = None if found is None else target["masks"][k]
            masked |= mask is not None
            told = {"box": predicted["boxes"][k], **({} if mask is None or found is None else {"mask": found[k]})}
            rows.append(referring.row({"text": text, "box": target["boxes"][k], "mask": mask}, told))
    figures = referring.summary(rows)
    return {key: figures[key] for key in ("P@0.5", "P@0.5:0.95", *(("cIoU", "gIoU") if masked else ()))}


def describe_scores(targets: Sequence[_Case], predictions: Sequence[_Case]) -> dict[str, float]:
    """Metrics of naming regions in a set of few words: of each example region_text [K] in targets, texts [K] in
    predictions.

    Returns:
      exact: share of texts that are the target's, but for case, spaces, and punctuation at the ends.
    """
    equal = [_normal(text) == _normal(told) for text, told in _texts(targets, predictions)]
    return {"exact": float(np.mean(equal)) if equal else float("nan")}


def caption_scores(targets: Sequence[_Case], predictions: Sequence[_Case]) -> dict[str, float]:
    """`describe_scores` and, as published for region captions, CIDEr and METEOR, each text its box's one reference.

    METEOR is left out, with a warning, where its tables are not installed (`pixel_align.evaluation.captioning`).
    """
    from pixel_align.evaluation import captioning

    figures = describe_scores(targets, predictions)
    pairs = [({"captions": [text]}, {"text": told}) for text, told in _texts(targets, predictions)]
    for names in (captioning.ALL_METRICS, captioning.METRICS):
        try:
            found = captioning.summary([captioning.row(*pair, metrics=names) for pair in pairs])
        except ModuleNotFoundError as error:
            warnings.warn(f"region captions are not scored by {names[-1]}: {error}", stacklevel=2)
            continue
        return figures | {key: found[key] for key in ("METEOR", "CIDEr") if key in found}
    return figures


def densecap_scores(targets: Sequence[_Case], predictions: Sequence[_Case]) -> dict[str, float]:
    """Metrics of finding and describing everything, see `pixel_align.evaluation.dense_captioning`.

    Returns:
      mAP and mAP_detection; the latter alone, with a warning, where METEOR's tables are not installed.
    """
    from pixel_align.evaluation import dense_captioning

    pairs = list(zip(targets, predictions, strict=True))
    try:
        figures = dense_captioning.summary([dense_captioning.row(*pair) for pair in pairs])
    except ModuleNotFoundError as error:
        warnings.warn(f"dense captions are scored without mAP: {error}", stacklevel=2)
        rows = [dense_captioning.row(*pair, meteor=lambda references, said: 0.0) for pair in pairs]
        return {"mAP_detection": dense_captioning.summary(rows)["mAP_detection"]}
    return {key: figures[key] for key in ("mAP", "mAP_detection")}


_SCORES = {"refer": referring_scores, "describe": describe_scores, "densecap": densecap_scores}


def _texts(targets: Sequence[_Case], predictions: Sequence[_Case]) -> Iterator[tuple[str, str]]:
    for target, predicted in zip(targets, predictions, strict=True):
        yield from zip(target["region_text"], predicted["texts"], strict=True)


def _normal(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .,;:!?\"'")


def register(
    name: str,
    asks: Asks,
    builder_name: str | None = None,
    instruction: str | None = None,
    score: Callable[[Sequence[_Case], Sequence[_Case]], dict[str, float]] | None = None,
) -> None:
    """Registers the Task `name` over the set `builder_name` (else `name`), once.

    Its metrics are `score`, else those of what it asks: `referring_scores` and so on. A Task is of no folder:
    see `sources.TfdsFolder`.
    """
    if name in seqio.TaskRegistry.names():
        return
    # As prediction asks: a model would be asked otherwise than it was taught.
    instruction = INSTRUCTIONS["describe" if asks == "densecap" else asks] if instruction is None else instruction
    seqio.TaskRegistry.add(
        name,
        source=sources.TfdsFolder(builder_name or name, decoders={"image": tfds.decode.SkipDecoding()}),
        preprocessors=[functools.partial(as_examples, asks=asks, instruction=instruction)],
        output_features=OUTPUT_FEATURES,
        metric_fns=[score or _SCORES[asks]],
    )
