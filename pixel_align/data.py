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
import importlib
import itertools
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

Position = dict[str, Any]  # {"drawn": examples so far, "tasks": {task: [epoch, examples of it]}}, JSON


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
    shuffle_buffer: int = 10_000  # encoded records held in memory: 1 GB of photographs of 100 kB
    augment: Augment = dataclasses.field(default_factory=Augment)
    workers: int = 4  # threads that decode
    prefetch: int = 4  # batches held ready

    def __post_init__(self) -> None:
        positive("data", self, ("batch_size", "shuffle_buffer", "workers", "prefetch"))

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


class Stream:
    """Batches of a mixture for ever, from a position on. Iterate it; close it (or use it as a context) when done.

    Every item is (batch, position): the position to save with the step that consumes this batch.
    """

    def __init__(
        self,
        config: DataConfig,
        converter: Converter,
        position: Position | None = None,
        process: tuple[int, int] | None = None,
    ) -> None:
        """process: (index, count) of this process, the real ones by default.

        Raises:
          ValueError: unknown mixture, split or module; a batch size that the processes do not divide.
        """
        self._index, self._count = process or _this_process()
        if config.batch_size % self._count:
            raise ValueError(
                f"data.batch_size of {config.mixture} is {config.batch_size}, expected a multiple of the {self._count} "
                "processes. Change it."
            )
        self._config, self._converter = config, converter
        tasks = rates(config)
        self._names = list(tasks)
        self._probabilities = np.asarray(list(tasks.values()), np.float64) / sum(tasks.values())
        self._sources = {
            name: dataset(config, name, config.split, (self._index, self._count), converter.regions)
            for name in self._names
        }
        self._position: Position = position or {"drawn": 0, "tasks": {name: [0, 0] for name in self._names}}
        if set(self._position["tasks"]) != set(self._names):
            raise ValueError(
                f"the saved position is of tasks {sorted(self._position['tasks'])}, expected {sorted(self._names)}. "
                "Resume with the mixture that the run began with, or start a new run with init.checkpoint."
            )
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

    def _examples(self, name: str) -> Iterator[tuple[Example, int, int]]:
        """Examples of one task for ever, each with its epoch and its place in the epoch."""
        import tensorflow as tf

        source = self._sources[name]
        if not any(True for _ in source.take(1)):
            raise ValueError(
                f"task {name!r} has no example in split {self._config.split!r} for process {self._index}, "
                "expected at least one. Check data.dir and data.split."
            )
        first, skip = self._position["tasks"][name]
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
            streams = {name: self._examples(name) for name in self._names}
            tasks = {name: tuple(at) for name, at in self._position["tasks"].items()}
            drawn = self._position["drawn"]
            per_process = self._config.batch_size // self._count
            with concurrent.futures.ThreadPoolExecutor(max(1, self._config.workers)) as pool:
                ready: collections.deque[Any] = collections.deque()
                while not self._stopped.is_set():
                    rows = []
                    for _ in range(per_process):
                        seed = [self._config.seed, self._index, drawn]
                        name = self._names[0]
                        if len(self._names) > 1:
                            name = np.random.default_rng([*seed, 1]).choice(self._names, p=self._probabilities)
                        example, epoch, index = next(streams[name])
                        tasks[name] = (epoch, index + 1)
                        drawn += 1
                        rows.append(pool.submit(self._converter, example, np.random.default_rng([*seed, 2])))
                    position = {"drawn": drawn, "tasks": {k: list(v) for k, v in tasks.items()}}
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
        self, streams: Sequence[tuple[DataConfig, Converter]], positions: Sequence[Position | None] | None
    ) -> None:
        """streams: of each group; positions: of each, None to begin.

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
                opened.enter_context(Stream(config, converter, position))
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
    process: tuple[int, int] | None = None,
) -> Iterator[tuple[Any, list[tuple[Example, geometry.Placement]]]]:
    """Every example of a task once, in order, never augmented: (batch, its examples and how each lies on the canvas).

    The last batch is padded with copies of its first row: the list says how many rows are examples.

    Args:
      batch_size: per process. limit: at most so many examples per process; 0 for all.
    """
    source = dataset(config, task, split, process or _this_process(), converter.regions)
    examples = itertools.islice(source.as_numpy_iterator(), limit or None)
    with concurrent.futures.ThreadPoolExecutor(max(1, config.workers)) as pool:
        while group := list(itertools.islice(examples, batch_size)):
            converted = list(pool.map(converter, group))
            rows, placements = [row for row, _ in converted], [placement for _, placement in converted]
            yield stack(rows + rows[:1] * (batch_size - len(rows))), list(zip(group, placements, strict=True))


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


def _this_process() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()
