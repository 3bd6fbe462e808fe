"""Localized Narratives: spoken captions with a mouse path. The publisher's jsonl -> a TFDS set -> seqio Tasks.

    python -m data_pipelines build localized_narratives --annotations coco_train_*.jsonl --images train2017 --out DATA
    --split train

One record of the set is one picture with all its narratives; one example of a Task is one narrative. What an example
holds is said at `OUTPUT_FEATURES`. Importing this module registers the Tasks. Source:
https://google.github.io/localized-narratives (Pont-Tuset et al., ECCV 2020).
"""

import argparse
import contextlib
import dataclasses
import functools
import glob
import gzip
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import DataError, alignment, coco, parts, pictures, sources
from data_pipelines.alignment import NUM_POINTS, Utterance
from pixel_align.evaluation import traces as trace_metrics
from pixel_align.image import ImageError

NAME = "localized_narratives_coco"  # the set on COCO's pictures: what --name is unless given

# What a user may say to ask for a narrative; evaluation always asks with the first.
INSTRUCTIONS = (
    "Describe the image in detail.",
    "Give a detailed description of the image.",
    "Write a long caption for this picture.",
    "Tell me everything you see in the picture.",
    "Describe every object in the image and where it is.",
    "Explain at length what the photo shows.",
    "Narrate the picture from beginning to end.",
    "What can be seen in this image? Answer in detail.",
    "Walk me through the contents of the picture.",
    "Provide a thorough description of the scene.",
    "Describe this picture to someone who cannot see it.",
)

# ------------------------------------------------------------------------------------------------------------------
# reader


class BadRecord(ValueError):
    """A line that is no narrative; the message says why."""


@dataclasses.dataclass(frozen=True)
class Narrative:
    """One narrative as published. Times are in seconds, x and y in [0, 1] of the picture, now and then outside."""

    dataset_id: str
    image_id: str
    annotator_id: int
    caption: str
    utterances: tuple[Utterance, ...]
    traces: tuple[np.ndarray, ...]  # strokes, each float64[n, 3] of (x, y, t)


@dataclasses.dataclass
class Skipped:
    """Narratives left out, counted by reason; each is named while there are few."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    named: list[str] = dataclasses.field(default_factory=list)
    NAMED = 200  # beyond these, only counted

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, reason: str, name: str, why: str, narratives: int = 1) -> None:
        """Notes `narratives` left out for one `reason` (a few fixed words); `name` says which, `why` what exactly is
        wrong.
        """
        self.counts[reason] += narratives
        if len(self.named) < self.NAMED:
            self.named.append(f"{name}: {why}")

    def merge(self, other: "Skipped") -> None:
        self.counts.update(other.counts)
        self.named.extend(other.named[: self.NAMED - len(self.named)])


def parse_narrative(line: bytes | str) -> Narrative:
    """One line of the publisher's jsonl -> Narrative. Raises BadRecord on anything that is not one.

    The seventh field, `voice_recording`, is not read; unknown fields are let be.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadRecord(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadRecord(f"is a {type(record).__name__}, expected an object")
    image_id = record.get("image_id")
    image_id = str(image_id) if isinstance(image_id, int) and not isinstance(image_id, bool) else image_id
    return Narrative(
        dataset_id=_text(record, "dataset_id"),
        image_id=_text({"image_id": image_id}, "image_id"),
        annotator_id=int(_typed(record, "annotator_id", int)),
        caption=_text(record, "caption"),
        utterances=tuple(_utterance(item) for item in _typed(record, "timed_caption", list)),
        traces=tuple(_stroke(item) for item in _typed(record, "traces", list)),
    )


def read_lines(patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Lines of one or several jsonl files, as (file:line, line); names may be globs, files may be gzipped; empty lines
    are passed over.

    Raises DataError where a name finds no file, a file has no lines, or a gzipped one ends too soon.
    """
    for path in annotation_files(patterns):
        empty = True
        try:
            with gzip.open(path) if _zipped(path) else path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        empty = False
                        yield f"{path.name}:{number}", line
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(
                f"annotation file {str(path)!r} ends too soon ({error}), expected a whole file. Fetch it again."
            ) from error
        if empty:
            raise DataError(
                f"annotation file {str(path)!r} is empty, expected one narrative per line. Check --annotations."
            )


def read(
    patterns: Sequence[str],
    skipped: Skipped,
    lines: Callable[[Sequence[str]], Iterator[tuple[str, bytes]]] = read_lines,
) -> Iterator[tuple[str, Narrative]]:
    """Narratives of one or several files with where each stands (file:line), streaming; bad lines go to `skipped`.

    `lines` is how to read such files, the publisher's jsonl by default.
    """
    for where, line in lines(patterns):
        try:
            yield where, parse_narrative(line)
        except BadRecord as error:
            skipped.add("bad record", where, str(error))


def annotation_files(patterns: Sequence[str]) -> list[Path]:
    """The files that names or globs stand for, in a fixed order, each once. DataError where one stands for none."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = (
            [pattern]
            if os.path.isfile(pattern)
            else sorted(name for name in glob.glob(pattern) if os.path.isfile(name))
        )
        if not found:
            raise DataError(f"annotation file is {pattern!r}, expected a file that exists. Check --annotations.")
        files.update((Path(name), None) for name in found)
    return list(files)


def _zipped(path: Path) -> bool:
    """Whether a file is gzipped, told by its first two bytes: the name does not always say it."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _typed(record: Mapping[str, Any], key: str, kind: type) -> Any:
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "missing" if key not in record else f"a {type(value).__name__}"
        raise BadRecord(f"{key} is {found}, expected a {kind.__name__}")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value: str = _typed(record, key, str)
    if not value.strip():
        raise BadRecord(f"{key} is empty, expected text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRecord(f"{key} holds half of a surrogate pair, expected text that UTF-8 can spell")
    return value


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise BadRecord(f"{key} is {value!r}, expected a finite number")
    return float(value)


def _utterance(item: Any) -> Utterance:
    if not isinstance(item, dict):
        raise BadRecord(f"timed_caption holds a {type(item).__name__}, expected objects")
    return Utterance(_typed(item, "utterance", str), _number(item, "start_time"), _number(item, "end_time"))


def _stroke(points: Any) -> np.ndarray:
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise BadRecord("traces holds something else than lists of objects, expected strokes of points")
    # One conversion for the whole stroke; booleans and texts show in its type. A missing key becomes an object and
    # shows too.
    values = np.array([[point.get("x"), point.get("y"), point.get("t")] for point in points]).reshape(-1, 3)
    if values.size and (values.dtype.kind not in "fiu" or not np.isfinite(values).all()):
        raise BadRecord("a point of traces lacks x, y or t as finite numbers")
    return values.astype(np.float64)


# -----------------------------------------------------------------------------------------------------------------
# builder


def _features() -> tfds.features.FeaturesDict:
    tensor, text = tfds.features.Tensor, tfds.features.Text
    # A tuple of W, U or K things; frames are [0, 1] of the picture, boxes xyxy.
    several = tfds.features.Sequence
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "image_id": text(),
            "dataset_id": text(),
            "narratives": several(
                {
                    "caption": text(),
                    "narrative_id": text(),  # <image_id>#<k>
                    "annotator": np.int64,
                    "word_spans": several(
                        tensor(shape=(2,), dtype=np.int32)
                    ),  # [start, end) in characters of the caption
                    "word_utterance": several(np.int32),  # which utterance spoke the word, -1 = none
                    "utterance_points": several(tensor(shape=(NUM_POINTS, 2), dtype=np.float32)),  # xy, uniform in time
                    "utterance_centers": several(tensor(shape=(2,), dtype=np.float32)),  # average over time
                    "utterance_boxes": several(tensor(shape=(4,), dtype=np.float32)),
                    "utterance_valid": several(
                        np.bool_
                    ),  # False: no trace in its span, the rest of the row means nothing
                }
            ),
            "objects": several({"box": tensor(shape=(4,), dtype=np.float32), "name": text()}),
        }
    )


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one split is built from."""

    annotations: tuple[str, ...]  # files or globs
    images: tuple[str, ...]  # folders
    instances: str | None = None  # COCO instances json, for named objects
    max_skipped: str = "1%"  # narratives that may be left out: a share of all, or a number
    max_pixels: int = pictures.MAX_PIXELS
    max_side: int = pictures.MAX_SIDE
    threads: int = 2  # reading pictures

    def limit(self, narratives: int) -> int:
        """How many of so many narratives may be left out. Raises DataError if the setting makes no sense."""
        share = self.max_skipped.removesuffix("%")
        try:
            value = float(share) if share != self.max_skipped else int(share)
        except ValueError:
            value = -1
        if value < 0:
            raise DataError(
                f"--max-skipped is {self.max_skipped!r}, expected a number or a share such as 1%. Correct it."
            )
        return int(-(-narratives * value // 100)) if share != self.max_skipped else int(value)


class LocalizedNarratives(tfds.core.GeneratorBasedBuilder):
    """One record per picture: the picture, its narratives, its named objects where a COCO instances file is given.

    Args:
      inputs: what each split is built from; a set that is only read needs none.
      kwargs: of tfds.core.DatasetBuilder, such as data_dir.
    `download_and_prepare` builds small sets in one go. `build` below builds the same in parts, for sets of any size.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: Mapping[str, str] = {"1.0.0": "Initial release."}
    DESCRIPTION = "Pictures with spoken captions; each word has the place the mouse was at while it was said."
    HOMEPAGE = "https://google.github.io/localized-narratives"

    def __init__(self, *, inputs: Mapping[str, Inputs] | None = None, **kwargs: Any) -> None:
        self._inputs = dict(inputs or {})
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=_features(),
            homepage=self.HOMEPAGE,
        )

    @staticmethod
    def read_lines(patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The annotation files as lines that `parse_narrative` reads; sets of other publishers replace this."""
        return read_lines(patterns)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, Any]]]:
        del dl_manager  # nothing is downloaded: the pictures have licences of their own
        if not self._inputs:
            raise DataError(
                f"inputs of {self.name} is empty, expected files for each split. Give inputs={{'train': Inputs(...)}}."
            )
        return {split: self._generate_split(inputs) for split, inputs in self._inputs.items()}

    def _generate_split(self, inputs: Inputs) -> Iterator[tuple[str, Any]]:
        skipped = Skipped()
        groups: dict[str, list[Narrative]] = {}
        for _, narrative in read(inputs.annotations, skipped, self.read_lines):
            groups.setdefault(narrative.image_id, []).append(narrative)
        total = sum(map(len, groups.values())) + skipped.total
        yield from self._generate_examples(groups, inputs, Materials.open(inputs), skipped)
        _check_skipped(skipped, total, inputs)

    def _generate_examples(
        self, groups: Mapping[str, Sequence[Narrative]], inputs: Inputs, materials: "Materials", skipped: Skipped
    ) -> Iterator[tuple[str, Any]]:
        """(image id, record) for each picture with its narratives, in order of ids; failures go to `skipped`."""

        def picture(image_id: str) -> tuple[bytes, tuple[int, int]] | ImageError | None:
            path = materials.pictures.find(image_id)
            if path is None:
                return None
            try:
                return pictures.upright_jpeg(path, inputs.max_pixels, inputs.max_side)
            except ImageError as error:
                return error

        with ThreadPoolExecutor(inputs.threads) as pool:
            # A few dozen pictures at a time: decoding overlaps with encoding records, and memory stays small.
            for ids in _batched(sorted(groups), 32):
                for image_id, found in zip(ids, pool.map(picture, ids), strict=True):
                    narratives = groups[image_id]
                    if found is None:
                        skipped.add("missing picture", image_id, "no file of this id in --images", len(narratives))
                    elif isinstance(found, ImageError):
                        skipped.add("bad picture", image_id, str(found), len(narratives))
                    else:
                        content, size = found
                        yield image_id, picture_record(image_id, content, narratives, materials.objects(image_id, size))


@dataclasses.dataclass(frozen=True)
class Materials:
    """The folders and files of Inputs, opened."""

    pictures: pictures.PictureIndex
    instances: coco.Instances | None

    @classmethod
    def open(cls, inputs: Inputs) -> "Materials":
        return cls(
            pictures=pictures.PictureIndex(inputs.images),
            instances=coco.Instances(inputs.instances) if inputs.instances else None,
        )

    def objects(self, image_id: str, size: tuple[int, int]) -> coco.Objects:
        return self.instances.find(image_id, size) if self.instances else coco.NO_OBJECTS


def builder_class(name: str, kind: type[LocalizedNarratives] = LocalizedNarratives) -> type[LocalizedNarratives]:
    """The builder for a set of another name: TFDS takes the name from the class."""
    _check_name("--name", name)
    return type("Named", (kind,), {"name": name}, skip_registration=True)


def _check_name(option: str, name: str) -> None:
    """Names become parts of file names, which TFDS reads apart again. Raises DataError."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(
            f"{option} is {name!r}, expected lower-case letters, digits and underscores. Choose another name."
        )


def picture_record(
    image_id: str, jpeg: bytes, narratives: Sequence[Narrative], objects: coco.Objects
) -> dict[str, Any]:
    """One record of the set, as `_features` says."""
    return {
        "image": jpeg,
        "image_id": image_id,
        "dataset_id": narratives[0].dataset_id,
        "narratives": [_narrative_record(f"{image_id}#{k}", narrative) for k, narrative in enumerate(narratives)],
        "objects": [{"box": box, "name": name} for box, name in zip(objects.boxes, objects.names, strict=True)],
    }


def _narrative_record(narrative_id: str, narrative: Narrative) -> dict[str, Any]:
    places = alignment.utterance_places(narrative.utterances, narrative.traces)
    return {
        "caption": narrative.caption,
        "narrative_id": narrative_id,
        "annotator": narrative.annotator_id,
        "word_spans": alignment.word_spans(narrative.caption),
        "word_utterance": alignment.by_text(narrative.caption, narrative.utterances),
        "utterance_points": places.points,
        "utterance_centers": places.centers,
        "utterance_boxes": places.boxes,
        "utterance_valid": places.valid,
    }


def _batched(items: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


# ------------------------------------------------------------------------------------------------------- building in
# parts

_BUCKETS = 256  # files that narratives are first dealt into, by a hash of the image id; parts are made of whole buckets
_LARGE = 10_000  # pictures; above, at least 64 shards
_PER_SHARD = 800  # pictures in a shard where nothing else decides: 100 to 200 MB of photographs


@dataclasses.dataclass(frozen=True)
class Built:
    """What a build leaves and says."""

    folder: Path  # the set
    report: dict[str, Any]


def build(
    out: str | os.PathLike[str],
    split: str,
    inputs: Inputs,
    *,
    name: str = NAME,
    shards: int | None = None,
    overwrite: bool = False,
    kind: type[LocalizedNarratives] = LocalizedNarratives,
) -> Built:
    """Builds one split of a set in atomic parts; run again after a kill, it goes on where it was.

    Args:
      out: data folder; the set lies in <out>/<name>/<version>.
      split: train, validation, ...; splits of one set are built one after the other.
      shards: number of files, else chosen by the number of pictures; at least 64 above 10,000 pictures.
      overwrite: build again what is there, also an unfinished build from other inputs.
      kind: whose annotations these are.
    A split that is there already, from the same inputs, is left as it is. Beside the shards lie
    `build_report-<split>.json` and `image_ids-<split>.txt`.

    Raises:
      DataError: inputs that do not exist or fit, more than `inputs.max_skipped` narratives to leave out, a split in the
      way.
    """
    builder = builder_class(name, kind)(data_dir=out)
    _check_name("--split", split)
    if shards is not None and shards < 1:
        raise DataError(f"--shards is {shards}, expected at least 1. Give a number of files.")
    folder = Path(builder.data_dir)
    report_file = folder / f"build_report-{split}.json"
    work = folder.parent / f"incomplete.{split}_{folder.name}"
    stamp = _stamp(inputs, shards)
    with parts.only_builder(folder.parent):
        if overwrite:
            shutil.rmtree(work, ignore_errors=True)
            _forget(builder, folder, split, report_file)
        _check_stamp(work / "index.json", stamp, f"unfinished build {str(work)!r}")
        if split in parts.existing_splits(folder) and not work.exists():
            _check_stamp(report_file, stamp, f"split {split!r} of {str(folder)!r}")
            return Built(folder, parts.read_json(report_file))
        materials = Materials.open(inputs)
        index = _index(builder, work, inputs, shards, stamp, materials)
        reports = _build_parts(builder, work, index, inputs, materials)
        skipped = _skipped([index, *reports])
        _check_skipped(skipped, index["narratives"] + index["skipped"]["total"], inputs)
        report = {
            "name": builder.name,
            "version": str(builder.version),
            "split": split,
            "stamp": stamp,
            "pictures": sum(part["examples"] for part in reports),
            "narratives": sum(part["narratives"] for part in reports),
            "words": sum(part["words"] for part in reports),
            "words_located": sum(part["located"] for part in reports),
            "objects": sum(part["objects"] for part in reports),
            "shards": sum(part["examples"] > 0 for part in reports),
            "bytes": sum(part["bytes"] for part in reports),
            "skipped": _skipped_record(skipped),
        }
        if not report["pictures"]:
            raise DataError(f"split {split!r} has no pictures left, expected some. Check --annotations and --images.")
        ids = sorted(image_id for part in reports for image_id in part["image_ids"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"image_ids-{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8")
        report["image_ids_sha256"] = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        parts.write_json(report_file, report)
        parts.join_split(builder, split, work / "parts", reports)
        shutil.rmtree(work)
    return Built(folder, report)


def _index(
    builder: LocalizedNarratives, work: Path, inputs: Inputs, shards: int | None, stamp: Any, materials: Materials
) -> dict[str, Any]:
    """First pass: validates every line and deals the good ones into buckets. Done at once or not at all.

    Raises DataError, before any picture is read, if too many narratives are bad or lack their picture.
    """
    done = work / "index.json"
    if done.exists():
        return parts.read_json(done)
    shutil.rmtree(work, ignore_errors=True)  # an unfinished first pass
    buckets = shards or _BUCKETS
    (work / "buckets").mkdir(parents=True)
    skipped = Skipped()
    counts = [0] * buckets
    seen: list[set[str]] = [set() for _ in range(buckets)]
    found: dict[str, bool] = {}
    with contextlib.ExitStack() as stack:
        names = [work / "buckets" / f"{bucket:05d}.jsonl" for bucket in range(buckets)]
        files = [stack.enter_context(name.open("wb")) for name in names]
        # In bytes of the files, so that the time left is known; of gzipped ones the length is not.
        paths = annotation_files(inputs.annotations)
        known = builder.read_lines is LocalizedNarratives.read_lines and not any(_zipped(path) for path in paths)
        length = sum(path.stat().st_size for path in paths) if known else None
        bar = stack.enter_context(parts.progress(rich.progress.DownloadColumn()))
        task = bar.add_task("reading", total=length)
        for where, line in builder.read_lines(inputs.annotations):
            bar.advance(task, len(line))
            try:
                narrative = parse_narrative(line)
            except BadRecord as error:
                skipped.add("bad record", where, str(error))
                continue
            image_id = narrative.image_id
            if image_id not in found:
                found[image_id] = materials.pictures.find(image_id) is not None
            if not found[image_id]:
                skipped.add("missing picture", f"{where} (image {image_id})", "no file of this id in --images")
                continue
            bucket = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) % buckets
            files[bucket].write(line.strip() + b"\n")
            counts[bucket] += 1
            seen[bucket].add(image_id)
    total = sum(counts) + skipped.total
    if total and not sum(counts) and skipped.counts["missing picture"]:
        folders = ", ".join(inputs.images)
        raise DataError(
            f"image folder {folders!r} holds {len(materials.pictures)} pictures but none of the {len(found)} annotated "
            f"ones, expected files named by image id, such as {next(iter(found))}.jpg. Check --images."
        )
    _check_skipped(skipped, total, inputs)
    images = [len(ids) for ids in seen]
    number = shards or _number_of_shards(sum(images))
    per_part = buckets // number
    index = {
        "stamp": stamp,
        "narratives": sum(counts),
        "images": [sum(images[i : i + per_part]) for i in range(0, buckets, per_part)],
        "buckets_per_part": per_part,
        "skipped": _skipped_record(skipped),
    }
    parts.write_json(done, index)
    return index


def _number_of_shards(images: int) -> int:
    """A power of two, so that whole buckets make a part: about 800 pictures in each, at least 64 above 10,000."""
    number = 64 if images > _LARGE else 1
    while number < _BUCKETS and images / number > _PER_SHARD:
        number *= 2
    return number


def _build_parts(
    builder: LocalizedNarratives, work: Path, index: dict[str, Any], inputs: Inputs, materials: Materials
) -> list[parts.Report]:
    all_skipped = _skipped([index])
    total = index["narratives"] + index["skipped"]["total"]

    def write(part: int, path: Path) -> parts.Report:
        groups: dict[str, list[Narrative]] = {}
        for bucket in range(part * index["buckets_per_part"], (part + 1) * index["buckets_per_part"]):
            with (work / "buckets" / f"{bucket:05d}.jsonl").open("rb") as file:
                for line in file:
                    narrative = parse_narrative(line)
                    groups.setdefault(narrative.image_id, []).append(narrative)
        skipped, totals, ids = Skipped(), Counter[str](), []

        def records() -> Iterator[dict[str, Any]]:
            for image_id, record in builder._generate_examples(groups, inputs, materials, skipped):
                ids.append(image_id)
                totals["objects"] += len(record["objects"])
                for narrative in record["narratives"]:
                    utterance = narrative["word_utterance"]
                    totals["narratives"] += 1
                    totals["words"] += len(utterance)
                    totals["located"] += int(narrative["utterance_valid"][utterance[utterance >= 0]].sum())
                yield record

        count, size = parts.write_records(path, builder.info.features, records())
        # Before the part counts as done: pictures that were mended are read again by the next run.
        all_skipped.merge(skipped)
        _check_skipped(all_skipped, total, inputs)
        return {
            "examples": count,
            "bytes": size,
            **{key: totals[key] for key in ("narratives", "words", "located", "objects")},
            "skipped": _skipped_record(skipped),
            "image_ids": ids,
        }

    return parts.finish_parts(work / "parts", index["images"], write, "pictures")


def _skipped_record(skipped: Skipped) -> dict[str, Any]:
    return {"total": skipped.total, "counts": dict(sorted(skipped.counts.items())), "named": skipped.named}


def _skipped(records: Iterable[Mapping[str, Any]]) -> Skipped:
    result = Skipped()
    for record in records:
        result.merge(Skipped(Counter(record["skipped"]["counts"]), list(record["skipped"]["named"])))
    return result


def _check_skipped(skipped: Skipped, total: int, inputs: Inputs) -> None:
    limit = inputs.limit(total)
    if skipped.total > limit:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.counts.items()))
        raise DataError(
            f"number of narratives to leave out is {skipped.total} of {total} ({counts}), expected at most {limit} "
            f"(--max-skipped {inputs.max_skipped}). Mend the files or raise --max-skipped. First: {skipped.named[0]}"
        )


def _stamp(inputs: Inputs, shards: int | None) -> dict[str, Any]:
    """What a build is of: another stamp, another build. Files count by path, size and time of change."""

    def file(path: Path) -> list[Any]:
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]

    inputs.limit(0)
    instances = Path(inputs.instances) if inputs.instances else None
    if instances is not None and not instances.is_file():
        raise DataError(f"instances file is {inputs.instances!r}, expected a file that exists. Check --instances.")
    return {
        "annotations": [file(path) for path in annotation_files(inputs.annotations)],
        "images": [str(Path(folder).resolve()) for folder in inputs.images],
        "instances": file(instances) if instances else None,
        "max_pixels": inputs.max_pixels,
        "max_side": inputs.max_side,
        "shards": shards,
    }


def _check_stamp(path: Path, stamp: Any, what: str) -> None:
    if path.exists() and parts.read_json(path)["stamp"] != stamp:
        raise DataError(
            f"{what} is from other inputs or settings. Choose another --out, --name or --split, or pass --overwrite."
        )


def _forget(builder: LocalizedNarratives, folder: Path, split: str, report_file: Path) -> None:
    """Takes a split out of a set: first out of its metadata, then its files."""
    splits = parts.existing_splits(folder)
    if splits.pop(split, None) is None:
        return
    if splits:
        parts.write_split_infos(builder, splits)
    else:
        (folder / "dataset_info.json").unlink()
    for path in [*folder.glob(f"{builder.name}-{split}.tfrecord-*-of-*"), report_file]:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ command
# line


def add_arguments(
    parser: argparse.ArgumentParser, files: str = "jsonl files, plain or gzipped; globs", name: str = NAME
) -> None:
    """The options of `python -m data_pipelines build localized_narratives`, and of sets that are built alike."""
    parser.add_argument("--annotations", nargs="+", required=True, metavar="FILE", help=files)
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="DIR", help="folders with the pictures, named by image id"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="data folder; the set goes to DIR/NAME/VERSION")
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--name", default=name, help="name of the set (default: %(default)s)")
    parser.add_argument(
        "--instances", metavar="FILE", help="COCO instances json: stores the named objects of each picture"
    )
    parser.add_argument(
        "--max-skipped",
        default=Inputs.max_skipped,
        metavar="N|N%",
        help="narratives that may be left out, bad or without picture (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels", type=int, default=Inputs.max_pixels, help="larger pictures are refused (default: %(default)s)"
    )
    parser.add_argument(
        "--max-side", type=int, default=Inputs.max_side, help="larger pictures are reduced (default: %(default)s)"
    )
    parser.add_argument("--shards", type=int, help="number of files (default: by the number of pictures)")
    parser.add_argument(
        "--threads", type=int, default=min(8, os.cpu_count() or 1), help="for reading pictures (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")


def main(args: argparse.Namespace, kind: type[LocalizedNarratives] = LocalizedNarratives) -> None:
    """Builds as the options say and prints what came of it."""
    inputs = Inputs(
        annotations=tuple(args.annotations),
        images=tuple(args.images),
        instances=args.instances,
        max_skipped=args.max_skipped,
        max_pixels=args.max_pixels,
        max_side=args.max_side,
        threads=args.threads,
    )
    built = build(args.out, args.split, inputs, name=args.name, shards=args.shards, overwrite=args.overwrite, kind=kind)
    print(describe(built))


def describe(built: Built) -> str:
    """The report of a build as a small table."""
    report = built.report
    located = report["words_located"] / max(report["words"], 1)
    lines = [
        f"{report['name']} {report['version']}, split {report['split']}: {built.folder}",
        f"  pictures    {report['pictures']:>12,}   in {report['shards']} shards, {report['bytes'] / 1e6:,.1f} MB",
        f"  narratives  {report['narratives']:>12,}",
        f"  words       {report['words']:>12,}   {located:.1%} with a place",
        f"  objects     {report['objects']:>12,}",
        f"  left out    {report['skipped']['total']:>12,}   narratives",
    ]
    lines += [f"    {reason}: {count:,}" for reason, count in report["skipped"]["counts"].items()]
    named = report["skipped"]["named"]
    lines += [f"      {name}" for name in named[:10]]
    if len(named) > 10:
        lines.append(f"      ... more in {built.folder}/build_report-{report['split']}.json")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- seqio
# Tasks

_ANY = seqio.PassThroughVocabulary(size=1)  # Tasks know no vocabulary: text leaves them as text


def _feature(dtype: tf.DType, rank: int) -> seqio.Feature:
    return seqio.Feature(_ANY, add_eos=False, dtype=dtype, rank=rank)


# An example: one narrative of W words on a picture with K named objects. Frames: [0, 1] of the picture, boxes xyxy.
OUTPUT_FEATURES = {
    "image": _feature(tf.string, 0),  # encoded JPEG, upright RGB
    "image_id": _feature(tf.string, 0),
    "example_id": _feature(tf.string, 0),  # <image_id>#<k>
    "text": _feature(tf.string, 0),
    "instruction": _feature(tf.string, 0),  # what evaluation asks, "" = none
    "instructions": _feature(tf.string, 1),  # training asks with one of these
    "word_spans": _feature(tf.int32, 2),  # [W, 2], [start, end) in characters of the text
    "word_boxes": _feature(tf.float32, 2),  # [W, 4]
    "word_points": _feature(tf.float32, 3),  # [W, 16, 2]
    "word_centers": _feature(tf.float32, 2),  # [W, 2]
    "word_located": _feature(tf.bool, 1),  # [W], False: the word has no place, its rows above are zeros
    "object_boxes": _feature(tf.float32, 2),  # [K, 4]
    "object_names": _feature(tf.string, 1),  # [K]
}


def one_example_per_narrative(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Records of pictures -> records of narratives, in order; each carries its picture."""

    def narratives(record: dict[str, Any]) -> tf.data.Dataset:
        number = tf.shape(record["narratives"]["narrative_id"], tf.int64)[0]
        return tf.data.Dataset.range(number).map(
            lambda k: {**record, "narratives": {key: value[k] for key, value in record["narratives"].items()}}
        )

    return dataset.flat_map(narratives)


def give_words_places(
    dataset: tf.data.Dataset, rule: str, instructions: Sequence[str] = INSTRUCTIONS
) -> tf.data.Dataset:
    """Records of narratives -> examples as OUTPUT_FEATURES says. `rule`: "text" (ours) or "proportion" (published)."""

    def example(record: dict[str, Any]) -> dict[str, tf.Tensor]:
        narrative = record["narratives"]
        valid = narrative["utterance_valid"]
        utterance = (
            narrative["word_utterance"]
            if rule == "text"
            else _by_proportion(tf.shape(narrative["word_spans"])[0], valid)
        )
        # One more row, of zeros and not valid, stands for "no utterance"; rows without a place are zeros as well.
        nowhere = tf.size(valid)
        row = tf.where(utterance >= 0, utterance, nowhere)

        def of_words(key: str) -> tf.Tensor:
            rows = narrative[key]
            return tf.gather(tf.pad(rows, [[0, 1]] + [[0, 0]] * (rows.shape.rank - 1)), row)

        return {
            "image": record["image"],
            "image_id": record["image_id"],
            "example_id": narrative["narrative_id"],
            "text": narrative["caption"],
            "instruction": tf.constant(instructions[0]),
            "instructions": tf.constant(list(instructions)),
            "word_spans": narrative["word_spans"],
            "word_boxes": of_words("utterance_boxes"),
            "word_points": of_words("utterance_points"),
            "word_centers": of_words("utterance_centers"),
            "word_located": of_words("utterance_valid"),
            "object_boxes": record["objects"]["box"],
            "object_names": record["objects"]["name"],
        }

    return dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _by_proportion(num_words: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """`alignment.by_proportion` in a graph: int32[num_words] from bool[U]. A test holds the two together."""
    candidates = tf.cast(tf.where(valid)[:, 0], tf.int32)
    # A row far away keeps argmin defined where no utterance is valid; its words get -1.
    padded = tf.cond(tf.size(candidates) > 0, lambda: candidates, lambda: tf.constant([-1]))
    first, last = tf.cast(padded[0], tf.float64), tf.cast(padded[-1], tf.float64)
    steps = tf.cast(tf.range(1, num_words + 1), tf.float64) / tf.cast(tf.maximum(num_words, 1), tf.float64)
    distance = tf.abs((first + steps * (last - first))[:, None] - tf.cast(padded, tf.float64)[None, :])
    return tf.gather(padded, tf.argmin(distance, axis=1))


def trace_scores(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The Task's metrics; see `pixel_align.evaluation.traces` for what both hold."""
    return trace_metrics.score(targets, predictions)


def register(name: str, builder_name: str | None = None) -> None:
    """Registers two Tasks over the set `builder_name` (else `name`), once: `name` with our alignment,
    `name`_proportional with the published rule. A Task is of no folder: see `sources.TfdsFolder`.
    """
    known = seqio.TaskRegistry.names()
    for task, rule in ((name, "text"), (f"{name}_proportional", "proportion")):
        if task in known:
            continue
        seqio.TaskRegistry.add(
            task,
            source=sources.TfdsFolder(builder_name or name, decoders={"image": tfds.decode.SkipDecoding()}),
            preprocessors=[one_example_per_narrative, functools.partial(give_words_places, rule=rule)],
            output_features=OUTPUT_FEATURES,
            metric_fns=[trace_scores],
        )


register(NAME)
# Narratives on the pictures of other sets: `build localized_narratives --name localized_narratives_flickr30k ...`.
# Image ids are file names there too: <number>.jpg (Flickr30k), <16 hexadecimal digits>.jpg (Open Images),
# ADE_train_<8 digits>.jpg in folders by scene (ADE20k).
register("localized_narratives_flickr30k")
register("localized_narratives_open_images")
register("localized_narratives_ade20k")
register("synthetic_narratives")  # scenes that `data_pipelines.synthetic` draws and tells
