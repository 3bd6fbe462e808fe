"""A seqio DataSource over a TFDS set whose folder is not fixed when the Task is registered."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import DataError


class TfdsFolder(seqio.DataSource):
    """The newest version of the set `name` in a data folder, read as it lies there, pictures still encoded.

    The folder is, in this order: the one given by `at`, the one of `seqio.set_tfds_data_dir_override`,
    `$TFDS_DATA_DIR`. A Task is pointed at a folder, without touching any other, by
    `task.replace(source=task.source.at(folder))`. Without shuffling the order of records is always the same: that of
    the shards, read several at a time in fixed turns.
    """

    def __init__(
        self, name: str, decoders: Mapping[str, tfds.decode.Decoder], data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(splits=(), caching_permitted=False)
        self.name = name
        self._decoders = decoders
        self._data_dir = data_dir

    def at(self, data_dir: str | os.PathLike[str]) -> "TfdsFolder":
        """The same set in another data folder."""
        return TfdsFolder(self.name, self._decoders, data_dir)

    @property
    def data_dir(self) -> Path:
        """The data folder in force now. Raises DataError where none is set."""
        # seqio gives its override away only through a loader; the version is asked for by its constructor and unused.
        override = seqio.LazyTfdsLoader(f"{self.name}:1.0.0").data_dir
        folder = self._data_dir or override or os.environ.get("TFDS_DATA_DIR")
        if not folder:
            raise DataError(f"data folder of {self.name!r} is not set, expected the --out of its build. Set data.dir.")
        return Path(folder)

    @property
    def folder(self) -> Path:
        """The folder of the set's newest version. Raises DataError where it is not built."""
        built = [path.parent for path in (self.data_dir / self.name).glob("*/dataset_info.json")]
        versions = [path for path in built if tfds.core.Version.is_valid(path.name)]
        if not versions:
            raise DataError(
                f"data folder {str(self.data_dir)!r} holds no set {self.name!r}, expected one that is built. Build it "
                "with `python -m data_pipelines build`, or set data.dir."
            )
        return max(versions, key=lambda path: tfds.core.Version(path.name))

    @property
    def builder(self) -> tfds.core.DatasetBuilder:
        return tfds.builder_from_directory(self.folder)

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self.builder.info.splits)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [instruction.filename for instruction in self._split(split).file_instructions]

    def num_input_examples(self, split: str) -> int:
        """Number of records, which are pictures: a Task may make several examples of one."""
        return int(self._split(split).num_examples)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """The records of a split; `shuffle` mixes the order of shards by `seed`. See seqio.DataSource."""
        del sequence_length, use_cached, num_epochs  # a source neither trims, caches nor repeats: the Task does
        self._split(split)
        context = None
        if shard_info is not None:
            context = tf.distribute.InputContext(shard_info.num_shards, shard_info.index)
        read_config = tfds.ReadConfig(
            shuffle_seed=seed,
            input_context=context,
            try_autocache=False,  # pictures of a whole split do not belong into memory
            skip_prefetch=True,
        )
        return self.builder.as_dataset(
            split=split, shuffle_files=shuffle, read_config=read_config, decoders=dict(self._decoders)
        )

    def _split(self, split: str) -> tfds.core.SplitInfo:
        infos = self.builder.info.splits
        try:
            return infos[split]  # also slices such as train[:10%]
        except (KeyError, ValueError) as error:
            raise DataError(
                f"split is {split!r}, expected one of {sorted(infos)} of {self.name!r}. Choose one or build it."
            ) from error
