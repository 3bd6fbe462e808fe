"""Narratives and pictures -> a TFDS set, one record per picture, built in parts that survive a kill."""

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress
import tensorflow_datasets as tfds

from data_pipelines import DataError, alignment, coco, parts, pictures
from data_pipelines.alignment import NUM_POINTS
from data_pipelines.narratives import (
    BadRecord,
    Narrative,
    Skipped,
    annotation_files,
    is_gzipped,
    parse_narrative,
    read,
    read_lines,
)
from pixel_align.evaluation import seen
from pixel_align.image import MAX_PIXELS, ImageError

NAME = "localized_narratives_coco"  # the set on COCO's pictures: what --name is unless given


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
                    "word_spans": several(tensor(shape=(2,), dtype=np.int32)),  # [start, end) in characters
                    "word_utterance": several(np.int32),  # which utterance spoke the word, -1 = none
                    "utterance_points": several(tensor(shape=(NUM_POINTS, 2), dtype=np.float32)),  # xy, uniform in time
                    "utterance_centers": several(tensor(shape=(2,), dtype=np.float32)),  # average over time
                    "utterance_boxes": several(tensor(shape=(4,), dtype=np.float32)),
                    "utterance_valid": several(np.bool_),  # False: no trace in its span, its rows mean nothing
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
    max_pixels: int = MAX_PIXELS
    max_side: int = pictures.MAX_SIDE
    threads: int = 2  # reading pictures

    def __post_init__(self) -> None:
        # What is stored must be small enough to be read again with the usual limit.
        largest = math.isqrt(MAX_PIXELS)
        if not 1 <= self.max_side <= largest:
            raise DataError(f"--max-side is {self.max_side}, expected 1 to {largest} pixels. Correct it.")
        for option, value in (("--max-pixels", self.max_pixels), ("--threads", self.threads)):
            if value < 1:
                raise DataError(f"{option} is {value}, expected at least 1. Correct it.")

    def limit(self, narratives: int) -> int:
        """How many of so many narratives may be left out. Raises DataError if the setting makes no sense."""
        share = self.max_skipped.removesuffix("%")
        try:
            value = float(share) if share != self.max_skipped else int(share)
        except ValueError:
            value = -1
        if not 0 <= value < math.inf:  # NaN is neither
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
    COLLECTION: str | None = None  # where the pictures are from; None: the dataset_id of each record tells

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

    @classmethod
    def image_name(cls, image_id: str, dataset_id: str) -> str:
        """The canonical name of a picture, by which other sets know it too: see `pixel_align.evaluation.seen`."""
        return seen.canonical(cls.COLLECTION or seen.collection_of(dataset_id), image_id)

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

    def state(self, image_id: str) -> list[Any] | None:
        """What the file of a picture is now, in JSON terms; another state, another try. None: there is no file."""
        path = self.pictures.find(image_id)
        if path is None:
            return None
        stat = path.stat()
        return [str(path), stat.st_size, stat.st_mtime_ns]

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


_BUCKETS = 256  # what narratives are first dealt into, by a hash of the image id; parts are made of whole buckets
_OPEN = 128  # files that hold the buckets, all open at once: systems allow some hundred
_MOST_SHARDS = 10_000  # each part reads one of those files
_LARGE = 10_000  # pictures; above, at least 64 shards
_PER_SHARD = 800  # pictures in a shard where nothing else decides: 100 to 200 MB of photographs


@dataclasses.dataclass(frozen=True)
class Built:
    """What a build leaves and says."""

    folder: Path  # the set
    report: dict[str, Any]
    fresh: bool = True  # False: it was there already


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
      overwrite: build again what is there, also an unfinished build from other inputs. The old split stays until the
        new one is whole.
      kind: whose annotations these are.

    A split that is there already, from the same inputs, is left as it is. Beside the shards lie
    `build_report-<split>.json` and `image_ids-<split>.json`, the canonical name of each picture.

    Raises:
      DataError: inputs that do not exist or fit, more than `inputs.max_skipped` narratives to leave out, a split in the
        way.
    """
    builder = builder_class(name, kind)(data_dir=out)
    _check_name("--split", split)
    if shards is not None and not 1 <= shards <= _MOST_SHARDS:
        least = "at least 1" if shards < 1 else f"at most {_MOST_SHARDS}"
        raise DataError(f"--shards is {shards}, expected {least}. Give a number of files.")
    folder = Path(builder.data_dir)
    report_file = folder / f"build_report-{split}.json"
    work = folder.parent / f"incomplete.{split}_{folder.name}"
    stamp = _stamp(inputs, shards)
    with parts.only_builder(folder.parent):
        if not overwrite:
            _check_stamp(work / "index.json", stamp, f"unfinished build {str(work)!r}")
            if split in parts.existing_splits(folder) and not work.exists():
                _check_stamp(report_file, stamp, f"split {split!r} of {str(folder)!r}")
                return Built(folder, parts.read_json(report_file), fresh=False)
        materials = Materials.open(inputs)
        if overwrite:
            shutil.rmtree(work, ignore_errors=True)
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
        names = dict(sorted(pair for part in reports for pair in part["image_names"].items()))
        # Once only: a build that was ended during the steps below takes them again, and the split may be the new one.
        if not (work / "forgotten").exists():
            _forget(builder, folder, split, report_file)
            (work / "forgotten").touch()
        folder.mkdir(parents=True, exist_ok=True)
        parts.write_json(folder / seen.FILE.format(split=split), names)
        report["image_ids_sha256"] = hashlib.sha256("\n".join(names).encode()).hexdigest()
        parts.write_json(report_file, report)
        parts.join_split(builder, split, work / "parts", reports)
        shutil.rmtree(work)
    return Built(folder, report)


def _index(
    builder: LocalizedNarratives, work: Path, inputs: Inputs, shards: int | None, stamp: Any, materials: Materials
) -> dict[str, Any]:
    """First pass: validates every line and deals the good ones into buckets. Done at once or not at all.

    Raises DataError, before any picture is read, if too many narratives are bad or lack their picture. Those that lack
    it are dealt as well: by the second pass it may be there.
    """
    done = work / "index.json"
    if done.exists():
        return parts.read_json(done)
    shutil.rmtree(work, ignore_errors=True)  # an unfinished first pass
    buckets = shards or _BUCKETS
    (work / "buckets").mkdir(parents=True)
    skipped, missing = Skipped(), Skipped()
    counts = [0] * buckets
    seen: list[set[str]] = [set() for _ in range(buckets)]
    found: dict[str, bool] = {}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_bucket_file(work, i).open("wb")) for i in range(min(buckets, _OPEN))]
        # In bytes of the files, so that the time left is known; of gzipped ones the length is not.
        paths = annotation_files(inputs.annotations)
        known = builder.read_lines is LocalizedNarratives.read_lines and not any(is_gzipped(path) for path in paths)
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
                missing.add("missing picture", f"{where} (image {image_id})", "no file of this id in --images")
            bucket = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) % buckets
            files[bucket % _OPEN].write(b"%d\t%s\n" % (bucket, line.strip()))
            counts[bucket] += 1
            seen[bucket].add(image_id)
    if missing.total and missing.total == sum(counts):
        folders = ", ".join(inputs.images)
        raise DataError(
            f"image folder {folders!r} holds {len(materials.pictures)} pictures but none of the {len(found)} annotated "
            f"ones, expected files named by image id, such as {next(iter(found))}.jpg. Check --images."
        )
    bad = _skipped_record(skipped)
    total = sum(counts) + skipped.total
    skipped.merge(missing)
    _check_skipped(skipped, total, inputs)
    images = [len(ids) for ids in seen]
    number = shards or _number_of_shards(sum(images))
    per_part = buckets // number
    index = {
        "stamp": stamp,
        "narratives": sum(counts),
        "images": [sum(images[i : i + per_part]) for i in range(0, buckets, per_part)],
        "buckets_per_part": per_part,
        "skipped": bad,
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
    if not (work / "forgotten").exists():  # else the parts are becoming shards
        parts.drop(
            work / "parts",
            # Parts of a build that was begun before names were kept are made again.
            lambda report: (
                "image_names" not in report or any(materials.state(key) != old for key, old in report["lost"].items())
            ),
        )
    all_skipped = _skipped([index, *parts.existing_reports(work / "parts")])
    total = index["narratives"] + index["skipped"]["total"]

    def write(part: int, path: Path) -> parts.Report:
        groups: dict[str, list[Narrative]] = {}
        for bucket in range(part * index["buckets_per_part"], (part + 1) * index["buckets_per_part"]):
            prefix = b"%d\t" % bucket
            with _bucket_file(work, bucket).open("rb") as file:
                for line in file:
                    if line.startswith(prefix):
                        narrative = parse_narrative(line[len(prefix) :])
                        groups.setdefault(narrative.image_id, []).append(narrative)
        skipped, totals, names = Skipped(), Counter[str](), dict[str, str]()
        states = {image_id: materials.state(image_id) for image_id in groups}

        def records() -> Iterator[dict[str, Any]]:
            for image_id, record in builder._generate_examples(groups, inputs, materials, skipped):
                names[image_id] = builder.image_name(image_id, record["dataset_id"])
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
            "lost": {image_id: states[image_id] for image_id in sorted(groups.keys() - names.keys())},
            "image_names": names,
        }

    return parts.finish_parts(work / "parts", index["images"], write, "pictures")


def _bucket_file(work: Path, bucket: int) -> Path:
    return work / "buckets" / f"{bucket % _OPEN:05d}.jsonl"


def _skipped_record(skipped: Skipped) -> dict[str, Any]:
    return {"total": skipped.total, "counts": dict(sorted(skipped.counts.items())), "named": list(skipped.named)}


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
    """What a build is of: another stamp, another build. Files count by content: a copy is the same input."""

    def file(path: Path) -> str:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

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
    shards = folder.glob(f"{builder.name}-{split}.tfrecord-*-of-*")
    for path in [*shards, report_file, folder / seen.FILE.format(split=split), folder / f"image_ids-{split}.txt"]:
        path.unlink(missing_ok=True)
