"""Building a TFDS set in atomic parts: a killed build, started again, redoes at most the part it was in.

A part is one file of records. It is written under another name, renamed when whole, and then described in a small JSON
file beside it: a part is done if and only if its description is there. When all are done they are renamed into the
set's folder as the shards of one split, and last of all the set's metadata is replaced, which makes the split visible.
Every step can be repeated.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import DataError

Report = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Holds a folder for one building process; the system lets go when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{str(folder)!r} is being built by another process. Wait for it, or choose another --out."
            ) from error
        yield


def write_records(path: Path, features: tfds.features.FeaturesDict, examples: Iterable[Any]) -> tuple[int, int]:
    """Writes examples as one TFRecord file. Returns (number of examples, bytes of the encoded examples).

    Raises DataError where the file cannot be written: a full disk, a folder that allows no writing.
    """
    count = size = 0
    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in examples:
                record = features.serialize_example(example)
                writer.write(record)
                count, size = count + 1, size + len(record)
    except tf.errors.OpError as error:
        raise DataError(
            f"writing {str(path)!r} failed ({error.message}), expected a disk with room. Make room, or choose another "
            "--out."
        ) from error
    return count, size


def progress(*columns: rich.progress.ProgressColumn) -> rich.progress.Progress:
    """A bar on the error stream with the time left; `columns` say how far it is."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        *columns,
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
    )


def finish_parts(folder: Path, weights: list[int], write: Callable[[int, Path], Report], unit: str) -> list[Report]:
    """Writes the parts that are not there yet, one after the other, and returns the descriptions of all.

    Args:
        folder: where the parts rest until they are joined.
        weights: expected number of things in each part, for the progress bar; a part with none is written too.
        write: writes part i to the given path and describes it in JSON terms, with at least `examples` and `bytes`.
        unit: what is counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    descriptions = [folder / f"{part:05d}.json" for part in range(len(weights))]
    # What an earlier run did counts as done, not as speed.
    done = sum(weight for weight, description in zip(weights, descriptions, strict=True) if description.exists())
    with progress(rich.progress.MofNCompleteColumn(), rich.progress.TextColumn(unit)) as bar:
        task = bar.add_task("building", total=sum(weights), completed=done)
        for part, (weight, description) in enumerate(zip(weights, descriptions, strict=True)):
            if description.exists():
                reports.append(read_json(description))
            else:
                partial = folder / f"{part:05d}.partial"
                report = write(part, partial)
                os.replace(partial, folder / f"{part:05d}.tfrecord")
                write_json(description, report)
                reports.append(report)
                bar.advance(task, weight)
    return reports


def existing_reports(folder: Path) -> list[Report]:
    """The descriptions of the parts that are done."""
    return [read_json(path) for path in sorted(folder.glob("[0-9]*.json"))]


def drop(folder: Path, outdated: Callable[[Report], bool]) -> None:
    """Parts whose description is `outdated` are no longer done."""
    for path in sorted(folder.glob("[0-9]*.json")):
        if outdated(read_json(path)):
            path.unlink()


def join_split(builder: tfds.core.DatasetBuilder, split: str, folder: Path, reports: list[Report]) -> None:
    """Makes the parts of a folder the shards of `split` in the builder's set, beside the splits that are there already.

    Empty parts become no shard. Files of an older build of the same split are removed.
    """
    out = Path(builder.data_dir)
    out.mkdir(parents=True, exist_ok=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=out, dataset_name=builder.name, split=split, filetype_suffix="tfrecord"
    )
    filled = [part for part, report in enumerate(reports) if report["examples"]]
    shards = [Path(template.sharded_filepath(shard_index=i, num_shards=len(filled))) for i in range(len(filled))]
    for part, shard in zip(filled, shards, strict=True):
        resting = folder / f"{part:05d}.tfrecord"
        if resting.exists():  # else an earlier run was ended right here, between two renames
            os.replace(resting, shard)
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[reports[part]["examples"] for part in filled],
        num_bytes=sum(reports[part]["bytes"] for part in filled),
        filename_template=template,
    )
    write_split_infos(builder, {**existing_splits(out), split: info})
    for old in set(out.glob(f"{builder.name}-{split}.tfrecord-*-of-*")) - set(shards):
        old.unlink()


def existing_splits(out: Path) -> dict[str, tfds.core.SplitInfo]:
    """The splits of the set in a folder, none where there is no set."""
    if not (out / "dataset_info.json").exists():
        return {}
    return dict(tfds.builder_from_directory(out).info.splits)


def write_split_infos(builder: tfds.core.DatasetBuilder, splits: dict[str, tfds.core.SplitInfo]) -> None:
    """Replaces a set's metadata: what is read first, `dataset_info.json`, is replaced last."""
    out = Path(builder.data_dir)
    fresh = out / "metadata.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    builder.info.set_splits(tfds.core.splits.SplitDict(list(splits.values())))
    builder.info.write_to_directory(fresh)
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == "dataset_info.json"):
        os.replace(path, out / path.name)
    fresh.rmdir()
