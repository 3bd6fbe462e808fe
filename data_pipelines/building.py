"""Annotations and pictures -> a TFDS set, one record per picture, built in parts that survive a kill.

What the annotations are, and what a record holds, is said by a kind of `PictureSet`: narratives (`narrative_set`),
regions (`regions`). An annotation is one line: it names its picture, and lines of one picture may stand anywhere.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import rich.progress
import tensorflow_datasets as tfds

from data_pipelines import DataError, coco, parts, pictures
from data_pipelines.narratives import BadRecord, Dropped, Skipped, annotation_files, is_gzipped, read_lines
from pixel_align.evaluation import seen
from pixel_align.image import MAX_PIXELS, ImageError

Lines = Callable[[], Iterator[tuple[str, bytes]]]


class Annotation(Protocol):
    """What one line holds."""

    @property
    def image_id(self) -> str: ...
    @property
    def dataset_id(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one split is built from."""

    annotations: tuple[str, ...]  # files or globs; a build from other content is another build
    images: tuple[str, ...]  # folders
    instances: str | None = None  # COCO instances json, for named objects
    max_skipped: str = "1%"  # annotations that may be left out: a share of all, or a number
    max_pixels: int = MAX_PIXELS
    max_side: int = pictures.MAX_SIDE
    threads: int = 2  # reading pictures
    lines: Lines | None = None  # the annotations as (where, line), where one file alone does not say them
    settings: str = ""  # of `lines`: others, another build

    def __post_init__(self) -> None:
        # What is stored must be small enough to be read again with the usual limit.
        largest = math.isqrt(MAX_PIXELS)
        if not 1 <= self.max_side <= largest:
            raise DataError(f"--max-side is {self.max_side}, expected 1 to {largest} pixels. Correct it.")
        for option, value in (("--max-pixels", self.max_pixels), ("--threads", self.threads)):
            if value < 1:
                raise DataError(f"{option} is {value}, expected at least 1. Correct it.")

    def limit(self, annotations: int) -> int:
        """How many of so many annotations may be left out. Raises DataError if the setting makes no sense."""
        share = self.max_skipped.removesuffix("%")
        try:
            value = float(share) if share != self.max_skipped else int(share)
        except ValueError:
            value = -1
        if not 0 <= value < math.inf:  # NaN is neither
            raise DataError(
                f"--max-skipped is {self.max_skipped!r}, expected a number or a share such as 1%. Correct it."
            )
        return int(-(-annotations * value // 100)) if share != self.max_skipped else int(value)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as it will rest in a record."""

    image_id: str
    path: Path  # where it was read
    jpeg: bytes
    size: tuple[int, int]  # (height, width) of the JPEG, in pixels


class PictureSet(tfds.core.GeneratorBasedBuilder):
    """One record per picture, from annotations of one kind; kinds say how they are read and what a record holds.

    Args:
      inputs: what each split is built from; a set that is only read needs none.
      kwargs: of tfds.core.DatasetBuilder, such as data_dir.

    `download_and_prepare` builds small sets in one go. `build` below builds the same in parts, for sets of any size.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: Mapping[str, str] = {"1.0.0": "Initial release."}
    DESCRIPTION = ""
    HOMEPAGE = ""
    COLLECTION: str | None = None  # where the pictures are from; None: the dataset_id of each record tells
    UNIT = "annotations"  # what the lines are
    COUNTS: tuple[str, ...] = ()  # what `count` counts, in the order of the report

    def __init__(self, *, inputs: Mapping[str, Inputs] | None = None, **kwargs: Any) -> None:
        self._inputs = dict(inputs or {})
        super().__init__(**kwargs)

    @staticmethod
    def features() -> tfds.features.FeaturesDict:
        """What a record holds."""
        raise NotImplementedError

    @staticmethod
    def parse(line: bytes) -> Any:
        """A line -> the Annotation it holds. Raises BadRecord or Dropped, and nothing else."""
        raise NotImplementedError

    def record(
        self, picture: Picture, found: Sequence[Any], materials: "Materials", skipped: Skipped, mended: Counter[str]
    ) -> dict[str, Any] | None:
        """The record of a picture with its annotations, None where none of them is left.

        Those that are left out go to `skipped`; what was put right is counted in `mended`.
        """
        raise NotImplementedError

    @staticmethod
    def count(record: Mapping[str, Any]) -> Mapping[str, int]:
        """What a record adds to the report."""
        raise NotImplementedError

    @staticmethod
    def read_lines(patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The annotation files as lines that `parse` reads; kinds whose files are no jsonl replace this."""
        return read_lines(patterns)

    @staticmethod
    def files(annotation: Any) -> tuple[str, ...]:
        """The names under which its picture is looked for, in this order."""
        return (annotation.image_id,)

    @classmethod
    def image_name(cls, annotation: Any) -> str:
        """The canonical name of its picture, by which other sets know it too: see `pixel_align.evaluation.seen`."""
        return seen.canonical(cls.COLLECTION or seen.collection_of(annotation.dataset_id), annotation.image_id)

    @staticmethod
    def check(mended: Mapping[str, int], counts: Mapping[str, int]) -> None:
        """Raises DataError where so much had to be mended that the annotations must mean something else."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=self.features(),
            homepage=self.HOMEPAGE,
        )

    def lines(self, inputs: Inputs) -> Iterator[tuple[str, bytes]]:
        """(where, line) of all annotations."""
        return inputs.lines() if inputs.lines else self.read_lines(inputs.annotations)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, Any]]]:
        del dl_manager  # nothing is downloaded: the pictures have licences of their own
        if not self._inputs:
            raise DataError(
                f"inputs of {self.name} is empty, expected files for each split. Give inputs={{'train': Inputs(...)}}."
            )
        return {split: self._generate_split(inputs) for split, inputs in self._inputs.items()}

    def _generate_split(self, inputs: Inputs) -> Iterator[tuple[str, Any]]:
        skipped, mended = Skipped(), Counter[str]()
        groups: dict[str, list[Any]] = {}
        for where, line in self.lines(inputs):
            try:
                annotation = self.parse(line)
            except BadRecord as error:
                skipped.add("bad record", where, str(error))
            except Dropped as error:
                mended[str(error)] += 1
            else:
                groups.setdefault(annotation.image_id, []).append(annotation)
        total = sum(map(len, groups.values())) + skipped.total
        yield from self._generate_examples(groups, inputs, Materials.open(inputs), skipped, mended)
        check_skipped(skipped, total, inputs, self.UNIT)

    def _generate_examples(
        self,
        groups: Mapping[str, Sequence[Any]],
        inputs: Inputs,
        materials: "Materials",
        skipped: Skipped,
        mended: Counter[str],
    ) -> Iterator[tuple[str, Any]]:
        """(image id, record) for each picture with its annotations, in order of ids; failures go to `skipped`."""

        def picture(image_id: str) -> Picture | ImageError | None:
            path = materials.find(self.files(groups[image_id][0]))
            if path is None:
                return None
            try:
                return Picture(image_id, path, *pictures.upright_jpeg(path, inputs.max_pixels, inputs.max_side))
            except ImageError as error:
                return error

        with ThreadPoolExecutor(inputs.threads) as pool:
            # A few dozen pictures at a time: decoding overlaps with encoding records, and memory stays small.
            for ids in _batched(sorted(groups), 32):
                for image_id, found in zip(ids, pool.map(picture, ids), strict=True):
                    annotations = groups[image_id]
                    if found is None:
                        skipped.add("missing picture", image_id, "no file of this id in --images", len(annotations))
                    elif isinstance(found, ImageError):
                        skipped.add("bad picture", image_id, str(found), len(annotations))
                    else:
                        record = self.record(found, annotations, materials, skipped, mended)
                        if record is not None:
                            yield image_id, record


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

    def find(self, names: Sequence[str]) -> Path | None:
        """The file of a picture under the first of several names that has one."""
        return next((path for path in map(self.pictures.find, names) if path is not None), None)

    def state(self, names: Sequence[str]) -> list[Any] | None:
        """What the file of a picture is now, in JSON terms; another state, another try. None: there is no file."""
        path = self.find(names)
        if path is None:
            return None
        stat = path.stat()
        return [str(path), stat.st_size, stat.st_mtime_ns]

    def objects(self, image_id: str, size: tuple[int, int]) -> coco.Objects:
        return self.instances.find(image_id, size) if self.instances else coco.NO_OBJECTS


def builder_class(name: str, kind: type[PictureSet]) -> type[PictureSet]:
    """The builder for a set of another name: TFDS takes the name from the class."""
    _check_name("--name", name, r"[a-z][a-z0-9_]*", "lower-case letters, digits and underscores")
    return type("Named", (kind,), {"name": name}, skip_registration=True)


def _check_name(option: str, name: str, pattern: str, expected: str) -> None:
    """Names become parts of file names, which TFDS reads apart again. Raises DataError."""
    if not re.fullmatch(pattern, name):
        raise DataError(f"{option} is {name!r}, expected {expected}. Choose another name.")


def _batched(items: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


_BUCKETS = 256  # what annotations are first dealt into, by a hash of the image id; parts are made of whole buckets
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
    name: str,
    kind: type[PictureSet],
    shards: int | None = None,
    overwrite: bool = False,
) -> Built:
    """Builds one split of a set in atomic parts; run again after a kill, it goes on where it was.

    Args:
      out: data folder; the set lies in <out>/<name>/<version>.
      split: train, validation, ...; splits of one set are built one after the other.
      kind: what the annotations are.
      shards: number of files, else chosen by the number of pictures; at least 64 above 10,000 pictures.
      overwrite: build again what is there, also an unfinished build from other inputs. The old split stays until the
        new one is whole.

    A split that is there already, from the same inputs, is left as it is. Beside the shards lie
    `build_report-<split>.json` and `image_ids-<split>.json`, the canonical name of each picture.

    Raises:
      DataError: inputs that do not exist or fit, more than `inputs.max_skipped` annotations to leave out, a split in
        the way.
    """
    builder = builder_class(name, kind)(data_dir=out)
    _check_name("--split", split, r"[a-z][A-Za-z0-9_]*", "letters, digits and underscores, a small letter first")
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
        mended = sum((Counter(part["mended"]) for part in reports), Counter[str](index.get("dropped", {})))
        counts = {key: sum(part[key] for part in reports) for key in kind.COUNTS}
        with _leaving_nothing(work, skipped):
            check_skipped(skipped, index["annotations"] + index["skipped"]["total"], inputs, kind.UNIT)
            kind.check(mended, counts)
            if not any(part["examples"] for part in reports):
                first = f" First: {skipped.named[0]}" if skipped.named else ""
                raise DataError(
                    f"split {split!r} has no pictures left, expected some. Check --annotations and --images.{first}"
                )
        report = {
            "name": builder.name,
            "version": str(builder.version),
            "split": split,
            "stamp": stamp,
            "pictures": sum(part["examples"] for part in reports),
            **counts,
            "shards": sum(part["examples"] > 0 for part in reports),
            "bytes": sum(part["bytes"] for part in reports),
            "skipped": _skipped_record(skipped),
            "mended": dict(sorted(mended.items())),
        }
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
    builder: PictureSet, work: Path, inputs: Inputs, shards: int | None, stamp: Any, materials: Materials
) -> dict[str, Any]:
    """First pass: validates every line and deals the good ones into buckets. Done at once or not at all.

    Raises DataError, before any picture is read, if too many annotations are bad or lack their picture. Those that lack
    it are dealt as well: by the second pass it may be there.
    """
    done = work / "index.json"
    if done.exists():
        return parts.read_json(done)
    shutil.rmtree(work, ignore_errors=True)  # an unfinished first pass
    buckets = shards or _BUCKETS
    (work / "buckets").mkdir(parents=True)
    try:
        counts, images, bad, dropped = _deal(builder, work, inputs, buckets, materials)
    except DataError:
        shutil.rmtree(work)
        raise
    per_part = buckets // (shards or _number_of_shards(sum(images)))
    index = {
        "stamp": stamp,
        "annotations": sum(counts),
        "images": [sum(images[i : i + per_part]) for i in range(0, buckets, per_part)],
        "buckets_per_part": per_part,
        "skipped": bad,
        "dropped": dropped,
    }
    parts.write_json(done, index)
    return index


def _deal(
    builder: PictureSet, work: Path, inputs: Inputs, buckets: int, materials: Materials
) -> tuple[list[int], list[int], dict[str, Any], dict[str, int]]:
    """Good lines into buckets. Returns annotations and pictures in each, what was left out and what was dropped."""
    skipped, missing, dropped = Skipped(), Skipped(), Counter[str]()
    counts = [0] * buckets
    images: list[set[str]] = [set() for _ in range(buckets)]
    found: dict[str, bool] = {}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_bucket_file(work, i).open("wb")) for i in range(min(buckets, _OPEN))]
        # In bytes of the files, so that the time left is known; of gzipped ones the length is not.
        paths = annotation_files(inputs.annotations)
        plain = not inputs.lines and builder.read_lines is PictureSet.read_lines
        known = plain and not any(is_gzipped(path) for path in paths)
        length = sum(path.stat().st_size for path in paths) if known else None
        bar = stack.enter_context(parts.progress(rich.progress.DownloadColumn()))
        task = bar.add_task("reading", total=length)
        for where, line in builder.lines(inputs):
            bar.advance(task, len(line))
            try:
                annotation = builder.parse(line)
            except BadRecord as error:
                skipped.add("bad record", where, str(error))
                continue
            except Dropped as error:
                dropped[str(error)] += 1
                continue
            image_id = annotation.image_id
            if image_id not in found:
                found[image_id] = materials.find(builder.files(annotation)) is not None
            if not found[image_id]:
                missing.add("missing picture", f"{where} (image {image_id})", "no file of this id in --images")
            bucket = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) % buckets
            files[bucket % _OPEN].write(b"%d\t%s\n" % (bucket, line.strip()))
            counts[bucket] += 1
            images[bucket].add(image_id)
    if missing.total and missing.total == sum(counts):
        folders = ", ".join(inputs.images)
        raise DataError(
            f"image folder {folders!r} holds {len(materials.pictures)} pictures but none of the {len(found)} annotated "
            f"ones, expected files named by image id, such as {next(iter(found))}.jpg. Check --images."
        )
    bad = _skipped_record(skipped)
    total = sum(counts) + skipped.total
    skipped.merge(missing)
    check_skipped(skipped, total, inputs, builder.UNIT)
    return counts, [len(ids) for ids in images], bad, dict(dropped)


def _number_of_shards(images: int) -> int:
    """A power of two, so that whole buckets make a part: about 800 pictures in each, at least 64 above 10,000."""
    number = 64 if images > _LARGE else 1
    while number < _BUCKETS and images / number > _PER_SHARD:
        number *= 2
    return number


def _build_parts(
    builder: PictureSet, work: Path, index: dict[str, Any], inputs: Inputs, materials: Materials
) -> list[parts.Report]:
    if not (work / "forgotten").exists():  # else the parts are becoming shards
        parts.drop(
            work / "parts",
            # Parts of a build that was begun before names and mended things were kept are made again.
            lambda report: (
                not {"image_names", "mended"} <= report.keys()
                or any(materials.state(files) != old for files, old in report["lost"].values())
            ),
        )
    all_skipped = _skipped([index, *parts.existing_reports(work / "parts")])
    total = index["annotations"] + index["skipped"]["total"]

    def write(part: int, path: Path) -> parts.Report:
        groups: dict[str, list[Any]] = {}
        for bucket in range(part * index["buckets_per_part"], (part + 1) * index["buckets_per_part"]):
            prefix = b"%d\t" % bucket
            with _bucket_file(work, bucket).open("rb") as file:
                for line in file:
                    if line.startswith(prefix):
                        annotation = builder.parse(line[len(prefix) :])
                        groups.setdefault(annotation.image_id, []).append(annotation)
        skipped, mended, totals, names = Skipped(), Counter[str](), Counter[str](), dict[str, str]()
        files = {image_id: builder.files(found[0]) for image_id, found in groups.items()}
        states = {image_id: materials.state(files[image_id]) for image_id in groups}

        def records() -> Iterator[dict[str, Any]]:
            for image_id, record in builder._generate_examples(groups, inputs, materials, skipped, mended):
                names[image_id] = builder.image_name(groups[image_id][0])
                totals.update(builder.count(record))
                yield record

        count, size = parts.write_records(path, builder.info.features, records())
        # Before the part counts as done: pictures that were mended are read again by the next run.
        all_skipped.merge(skipped)
        with _leaving_nothing(work, all_skipped):
            check_skipped(all_skipped, total, inputs, builder.UNIT)
        return {
            "examples": count,
            "bytes": size,
            **{key: totals[key] for key in builder.COUNTS},
            "skipped": _skipped_record(skipped),
            "mended": dict(mended),
            "lost": {
                image_id: [files[image_id], states[image_id]] for image_id in sorted(groups.keys() - names.keys())
            },
            "image_names": names,
        }

    return parts.finish_parts(work / "parts", index["images"], write, "pictures")


@contextlib.contextmanager
def _leaving_nothing(work: Path, skipped: Skipped) -> Iterator[None]:
    """Removes the work of a build that is refused, unless mended pictures can make it good."""
    try:
        yield
    except DataError:
        if not {"missing picture", "bad picture"} & skipped.counts.keys():
            shutil.rmtree(work)
        raise


def _bucket_file(work: Path, bucket: int) -> Path:
    return work / "buckets" / f"{bucket % _OPEN:05d}.jsonl"


def _skipped_record(skipped: Skipped) -> dict[str, Any]:
    return {"total": skipped.total, "counts": dict(sorted(skipped.counts.items())), "named": list(skipped.named)}


def _skipped(records: Iterable[Mapping[str, Any]]) -> Skipped:
    result = Skipped()
    for record in records:
        result.merge(Skipped(Counter(record["skipped"]["counts"]), list(record["skipped"]["named"])))
    return result


def check_skipped(skipped: Skipped, total: int, inputs: Inputs, unit: str) -> None:
    """Raises DataError where more is left out than the setting allows; `unit` is what is left out."""
    limit = inputs.limit(total)
    if skipped.total > limit:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.counts.items()))
        raise DataError(
            f"number of {unit} to leave out is {skipped.total} of {total} ({counts}), expected at most {limit} "
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
        **({"settings": inputs.settings} if inputs.settings else {}),
    }


def _check_stamp(path: Path, stamp: Any, what: str) -> None:
    if path.exists() and parts.read_json(path)["stamp"] != stamp:
        raise DataError(
            f"{what} is from other inputs or settings. Choose another --out, --name or --split, or pass --overwrite."
        )


def _forget(builder: PictureSet, folder: Path, split: str, report_file: Path) -> None:
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
