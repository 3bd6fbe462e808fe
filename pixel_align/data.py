"""Examples of seqio tasks -> batches of arrays: in an order that is a function of seed and epoch, from a position
that is a count.

A Task ends in encoded pictures, text and places in fractions of the picture. Here they are decoded, augmented, laid on
the canvas, tokenised, cut and padded, by the same numpy code that prediction uses. TensorFlow reads and shuffles
records, which are still encoded: a resumed run skips them without decoding anything.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from pixel_align import geometry
from pixel_align.batch import Shape
from pixel_align.converter import Augment, Converter, Example

# {"drawn": examples so far, "readers": {number of a reader: {task: [epoch, examples of it]}}}, JSON
Position = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """A further batch of every step, for tasks of another shape: they would pay for the first batch's padding."""

    mixture: str = ""  # a seqio task or mixture
    batch_size: int = 256  # over all processes
    shape: Shape | None = None  # of this batch; None for model.shape
    augment: Augment | None = None  # of its pictures; None for data.augment
    weight: float = 1.0  # of its loss, beside 1 for that of the first batch

    def __post_init__(self) -> None:
        positive("data.further", self, ("batch_size",))
        if not 0 < self.weight < float("inf"):
            raise ValueError(
                f"data.further.weight is {self.weight}, expected a positive number. Leave the group out for none."
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run reads."""

    modules: tuple[str, ...] = ("data_pipelines.localized_narratives",)  # register the tasks; imported by name
    mixture: str = "localized_narratives_coco"  # a seqio task or mixture
    split: str = "train"
    dir: str = ""  # folder of the built sets; "" for $TFDS_DATA_DIR
    vocabulary: str = ""  # SentencePiece .model or WordPiece .txt file; a checkpoint folder holds its own copy
    batch_size: int = 256  # over all processes
    further: tuple[Group, ...] = ()  # more batches of every step; the loss is the weighted mean of theirs
    seed: int = 0  # of the order and of the augmentation
    readers: int = 0  # into how many shares the sets are cut, each read by itself; 0 for one a process, at the start
    shuffle_buffer: int = 10_000  # encoded records that each reader holds in memory: 1 GB of photographs of 100 kB
    augment: Augment = dataclasses.field(default_factory=Augment)
    workers: int = 4  # threads that decode
    prefetch: int = 4  # batches held ready

    def __post_init__(self) -> None:
        positive("data", self, ("batch_size", "shuffle_buffer", "workers", "prefetch"))
        if self.readers < 0:
            raise ValueError(f"data.readers is {self.readers}, expected at least 0. Set it.")

    def of_group(self, index: int) -> "DataConfig":
        """The settings of one batch of a step: 0 is the first, index k the k-th of `further`."""
        alone = dataclasses.replace(self, further=())
        if not index:
            return alone
        group = self.further[index - 1]
        # A seed of its own: groups may share a task.
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        return dataclasses.replace(
            alone,
            mixture=group.mixture,
            batch_size=group.batch_size,
            seed=seed,
            augment=group.augment or self.augment,
        )


def positive(part: str, settings: Any, names: Sequence[str]) -> None:
    """Raises ValueError for the first of the named settings of a part that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{part}.{name} is {getattr(settings, name)}, expected at least 1. Set it.")


def check_readers(config: DataConfig) -> None:
    """Raises ValueError for a batch that the readers cannot share."""
    if config.batch_size % max(1, config.readers):
        raise ValueError(
            f"data.batch_size of {config.mixture} is {config.batch_size}, expected a multiple of the {config.readers} "
            "readers. Change it or data.readers."
        )


class Stream:
    """Batches of a mixture for ever, from a position on. Iterate it; close it (or use it as a context) when done.

    Every item is (batch, position): the position to save with the step that consumes this batch.

    A batch is made by `config.readers` readers. Each has a share of every set, the same one always, an order of its
    own, and fills the same rows of every batch: what a batch holds is a function of seed and readers, whoever asks. A
    process runs the readers that fill its rows, and only decodes those. Where processes are as many as readers each
    reads a share of the files and no other; any other number of processes gets the same batches, and reads more or
    fewer shares.
    """

    def __init__(
        self,
        config: DataConfig,
        converter: Converter,
        position: Position | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """rows: those of the batch that this process makes, by number; None for all.

        Raises:
          ValueError: unknown mixture, split or module; a batch size that the readers do not divide.
        """
        check_readers(config)
        readers = max(1, config.readers)
        self._config, self._converter = config, converter
        self._filled = config.batch_size // readers  # rows that each reader fills
        self._rows = frozenset(range(config.batch_size) if rows is None else rows)
        self._readers = sorted({row // self._filled for row in self._rows})
        tasks = rates(config)
        self._names = list(tasks)
        self._probabilities = np.asarray(list(tasks.values()), np.float64) / sum(tasks.values())
        self._sources = {
            (reader, name): dataset(config, name, config.split, (reader, readers), converter.regions)
            for reader in self._readers
            for name in self._names
        }
        self._position = self._begin(position, readers)
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, config.prefetch))
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="pixel_align-data", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[Any, Position]]:
        return self

    def __next__(self) -> tuple[Any, Position]:
        # Behind a failure or a close nothing comes any more: to wait for it would be for ever.
        if self._failure is None and not self._stopped.is_set():
            item = self._queue.get()
            if not isinstance(item, BaseException):
                return item
            self._failure = item
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    @property
    def ready(self) -> bool:
        """Whether the next item is there already."""
        return not self._queue.empty()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the reading thread and drops what it holds ready."""
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.05)
        self._thread.join()

    def _begin(self, position: Position | None, readers: int) -> Position:
        """Where each reader begins. Raises ValueError for a position of other tasks or another number of readers."""
        if position is None:
            nothing = {str(reader): {name: [0, 0] for name in self._names} for reader in range(readers)}
            return {"drawn": 0, "readers": nothing}
        position = with_readers(position)
        if len(position["readers"]) != readers:
            raise ValueError(
                f"data.readers is {readers}, expected {len(position['readers'])}, with which the run began. Set it."
            )
        for tasks in position["readers"].values():
            if set(tasks) != set(self._names):
                raise ValueError(
                    f"the saved position is of tasks {sorted(tasks)}, expected {sorted(self._names)}. "
                    "Resume with the mixture that the run began with, or start a new run with init.checkpoint."
                )
        return position

    def _examples(self, reader: int, name: str) -> Iterator[tuple[Example, int, int]]:
        """Examples of one task for ever, of one reader's share, each with its epoch and its place in the epoch."""
        import tensorflow as tf

        source = self._sources[reader, name]
        if not any(True for _ in source.take(1)):
            raise ValueError(
                f"task {name!r} has no example in split {self._config.split!r} for reader {reader}, expected at least "
                "one. Check data.dir and data.split, or lower data.readers."
            )
        first, skip = self._position["readers"][str(reader)][name]
        seed = int(np.random.SeedSequence([self._config.seed]).generate_state(1)[0])

        def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            order = source.shuffle(self._config.shuffle_buffer, seed=seed + epoch, reshuffle_each_iteration=False)
            # What is skipped is still encoded: it is read, not decoded.
            rest = order.enumerate().skip(tf.where(epoch == first, tf.constant(skip, tf.int64), 0))
            return rest.map(lambda index, example: (example, epoch, index))

        # One graph for all epochs: building one for each would cost a second where an epoch is a few steps.
        epochs = tf.data.Dataset.range(first, tf.int64.max).flat_map(of_epoch)
        for example, epoch, index in epochs.as_numpy_iterator():
            yield example, int(epoch), int(index)

    def _fill(self) -> None:
        try:
            streams = {(r, name): self._examples(r, name) for r in self._readers for name in self._names}
            reached = {str(r): dict(self._position["readers"][str(r)]) for r in self._readers}
            every = max(1, self._config.readers)
            drawn = self._position["drawn"] // every  # by each reader: they keep step
            with concurrent.futures.ThreadPoolExecutor(max(1, self._config.workers)) as pool:
                ready: collections.deque[Any] = collections.deque()
                while not self._stopped.is_set():
                    rows = []
                    for reader, place in itertools.product(self._readers, range(self._filled)):
                        seed = [self._config.seed, reader, drawn + place]
                        name = self._names[0]
                        if len(self._names) > 1:
                            name = np.random.default_rng([*seed, 1]).choice(self._names, p=self._probabilities)
                        example, epoch, index = next(streams[reader, name])
                        reached[str(reader)][name] = [epoch, index + 1]
                        if reader * self._filled + place in self._rows:
                            rows.append(pool.submit(self._converter, example, np.random.default_rng([*seed, 2])))
                    drawn += self._filled
                    position = {"drawn": drawn * every, "readers": {r: dict(tasks) for r, tasks in reached.items()}}
                    ready.append((rows, position))
                    # A second batch is decoded while the first is put together.
                    while len(ready) > 1 or (ready and self._stopped.is_set()):
                        rows, position = ready.popleft()
                        self._put((stack([row.result()[0] for row in rows]), position))
        except Exception as error:  # noqa: BLE001 - whatever it is, the consumer raises it in its own thread
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return


class Steps:
    """What every step takes, for ever: one batch of each group. A context, as `Stream` is.

    Every item is (batches, positions), one of each for every stream.
    """

    def __init__(
        self,
        streams: Sequence[tuple[DataConfig, Converter]],
        positions: Sequence[Position | None] | None,
        sharding: NamedSharding | None = None,
    ) -> None:
        """streams: of each group; positions: of each, None to begin; sharding: of all batches, which says which rows
        this process makes, None for all.

        Raises:
          ValueError: what `Stream` raises; positions of another number of groups.
        """
        if positions is not None and len(positions) != len(streams):
            raise ValueError(
                f"the saved position is of {len(positions)} batches a step, expected {len(streams)}. "
                "Resume with the data.further that the run began with, or start a new run with init.checkpoint."
            )
        begun = positions or [None] * len(streams)
        with contextlib.ExitStack() as opened:
            self._streams = [
                opened.enter_context(Stream(config, converter, position, own_rows(sharding, config.batch_size)))
                for (config, converter), position in zip(streams, begun, strict=True)
            ]
            self._opened = opened.pop_all()

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], list[Position]]]:
        return self

    @property
    def ready(self) -> bool:
        """Whether the next item is there already."""
        return all(stream.ready for stream in self._streams)

    def __next__(self) -> tuple[tuple[Any, ...], list[Position]]:
        items = [next(stream) for stream in self._streams]
        return tuple(batch for batch, _ in items), [position for _, position in items]

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def evaluation_batches(
    config: DataConfig,
    task: str,
    split: str,
    converter: Converter,
    batch_size: int,
    limit: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[Any, list[tuple[Example, geometry.Placement]]]]:
    """Every example of a task once, in order, never augmented: (batch, its examples and how each lies on the canvas).

    The last batch is padded with copies of an example of it: the list says how many rows are examples.

    Args:
      limit: at most so many examples; 0 for all.
      rows: those of each batch that this process makes, ascending, from `batch_size` on for padding; None for all.
        Every process reads all records and decodes its own.
    """
    source = dataset(config, task, split, (0, 1), converter.regions)
    examples = itertools.islice(source.as_numpy_iterator(), limit or None)
    rows = range(batch_size) if rows is None else rows
    with concurrent.futures.ThreadPoolExecutor(max(1, config.workers)) as pool:
        while read := list(itertools.islice(examples, batch_size)):
            group = [read[row] for row in rows if row < len(read)]
            converted = list(pool.map(converter, group or read[:1]))
            made, placements = [row for row, _ in converted], [placement for _, placement in converted]
            yield (
                stack(made + made[:1] * (len(rows) - len(made))),
                list(zip(group, placements[: len(group)], strict=True)),
            )


def with_readers(position: Position) -> Position:
    """A position as it is written now: it was written without its readers when there was one."""
    return {"drawn": position["drawn"], "readers": {"0": position["tasks"]}} if "tasks" in position else position


def joined(parts: Sequence[Sequence[Position]]) -> list[Position]:
    """The positions of all streams as each process knows them -> those of all readers."""
    return [
        {"drawn": same[0]["drawn"], "readers": {r: at for part in same for r, at in part["readers"].items()}}
        for same in zip(*parts, strict=True)
    ]


def own_rows(sharding: NamedSharding | None, batch_size: int) -> list[int] | None:
    """The rows of a batch laid out by `sharding` that this process holds, ascending; None without one: all."""
    if sharding is None:
        return None
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in held if index for row in range(*index[0].indices(batch_size))})


def listing(config: DataConfig, name: str, split: str) -> str:
    """A digest of what a task reads: names and sizes of the files of its set that are of its split; "" for tasks that
    read something else.
    """
    folder = set_folder(config, name)
    if folder is None:
        return ""
    splits = [f"-{part.partition('[')[0].strip()}." for part in split.split("+")]
    records = (path for path in folder.iterdir() if any(part in path.name for part in splits))
    found = sorted((path.name, path.stat().st_size) for path in records if path.suffix != ".json")
    return f"{len(found)} files, {hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]}"


def rates(config: DataConfig) -> dict[str, float]:
    """Task name -> mixing rate of the mixture (or single task) that the config names.

    Raises:
      ValueError: a module that cannot be imported, or a name that none of them registers.
    """
    import seqio

    register(config)
    name = config.mixture
    if name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        return {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
    if name in seqio.TaskRegistry.names():
        return {name: 1.0}
    raise ValueError(unknown_task(name, config))


def register(config: DataConfig) -> None:
    """Imports the modules that register the tasks."""
    for module in config.modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            raise ValueError(
                f"data.modules has {module!r}, expected an importable module. "
                "Install the project, or run from its folder."
            ) from error


def unknown_task(name: str, config: DataConfig) -> str:
    """The message for a task or mixture that does not exist."""
    import difflib

    import seqio

    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
    return f"task is {name!r}, expected one that {', '.join(config.modules)} registers. {hint}"


def dataset(config: DataConfig, name: str, split: str, shard: tuple[int, int], regions: int = 0) -> Any:
    """The tf.data.Dataset of one task's examples of one process, in the order of the files, pictures still encoded.

    regions: an example with more regions than so many is cut into several; 0 leaves them whole.

    Raises:
      ValueError: unknown task or split, or a data folder without the set.
    """
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    register(config)
    if name not in seqio.TaskRegistry.names():
        raise ValueError(unknown_task(name, config))
    task = seqio.TaskRegistry.get(name)
    if config.dir and hasattr(task.source, "at"):
        folder = os.path.expanduser(config.dir)
        if not os.path.isdir(folder):
            raise ValueError(
                f"data.dir is {config.dir!r}, expected the folder that `python -m data_pipelines build --out` wrote. "
                "Set data.dir or $TFDS_DATA_DIR."
            )
        task = task.replace(source=task.source.at(folder))
    index, count = shard
    examples = task.get_dataset(
        sequence_length=None,
        split=split,
        shuffle=False,
        num_epochs=1,
        shard_info=seqio.ShardInfo(index, count) if count > 1 else None,
        try_in_mem_cache=False,
    )
    return _cut(examples, regions) if regions and "region_id" in examples.element_spec else examples


def _cut(examples: Any, regions: int) -> Any:
    """Examples with at most so many regions each; what is of a region has a name that says so."""
    import tensorflow as tf

    def pieces(example: dict[str, Any]) -> Any:
        def piece(index: Any) -> dict[str, Any]:
            part = slice(index * regions, (index + 1) * regions)
            cut = {
                key: value[part] if key.startswith("region_") or key == "object_id" else value
                for key, value in example.items()
            }
            return cut | {"example_id": tf.strings.join([example["example_id"], "/", tf.strings.as_string(index)])}

        count = -(-tf.shape(example["region_id"])[0] // regions)
        return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(lambda index: piece(tf.cast(index, tf.int32)))

    return examples.flat_map(pieces)


def check_task(config: DataConfig, name: str, split: str) -> frozenset[str]:
    """The names of what an example of a task holds. Raises ValueError unless its set is built with this split."""
    return frozenset(dataset(config, name, split, shard=(0, 1)).element_spec)


def set_folder(config: DataConfig, name: str) -> Path | None:
    """The folder of the built set that a registered task reads; None for tasks that read something else."""
    import seqio

    source = seqio.TaskRegistry.get(name).source
    if config.dir and hasattr(source, "at"):
        source = source.at(os.path.expanduser(config.dir))
    folder = getattr(source, "folder", None)
    return None if folder is None else Path(folder)


def count_pictures(config: DataConfig, name: str, split: str) -> int | None:
    """How many records, which are pictures, a task reads; None where its source does not say. For progress."""
    import seqio

    source = seqio.TaskRegistry.get(name).source
    source = source.at(os.path.expanduser(config.dir)) if config.dir and hasattr(source, "at") else source
    return source.num_input_examples(split)


def scorer(name: str) -> Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]:
    """(targets, predictions) -> figures by all metrics of a registered Task.

    Raises:
      ValueError: a Task without metrics.
    """
    import seqio

    functions = seqio.TaskRegistry.get(name).metric_fns
    if not functions:
        raise ValueError(f"task {name!r} has no metrics, expected a task that can be scored. Evaluate another one.")

    def score(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        return {key: value for function in functions for key, value in function(targets, predictions).items()}

    return score


def stack(rows: Sequence[Any]) -> Any:
    """Rows -> one batch with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def to_device(batches: Any, sharding: NamedSharding) -> Any:
    """This process's part of one or more batches -> global arrays laid out by `sharding`."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batches)


def to_host(array: jax.Array, sharding: NamedSharding) -> np.ndarray:
    """The rows of a global array that this process makes: the inverse of `to_device`, wherever the array lies."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = jax.device_put(array, sharding).addressable_shards
    parts = {shard.index[0].start or 0: shard.data for shard in shards}
    return np.concatenate([np.asarray(parts[begin]) for begin in sorted(parts)])
