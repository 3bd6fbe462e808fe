"""Checkpoints on disk: parameters, optimizer, data position, config and vocabulary, in one folder that can be moved.

    FOLDER/config.json          the experiment, resolved
    FOLDER/vocabulary.model     the vocabulary that the tokens are of (.model SentencePiece, .txt WordPiece)
    FOLDER/<step>/params        all parameters
    FOLDER/<step>/average       their moving average, if the run keeps one (prediction prefers it)
    FOLDER/<step>/optimizer     optimizer state
    FOLDER/<step>/position      where the data stood, JSON

orbax writes a step into a temporary folder and renames it: a step is whole or absent. Saving runs in the background.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pixel_align import param_rules
from pixel_align.text import Vocabulary, load_vocabulary, vocabulary_files

CONFIG = "config.json"


class Store:
    """The checkpoints of one run, for writing and resuming."""

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        # What a copy that broke off left would stand in the way of the steps that are saved next.
        whole = self.steps()
        for path in self.folder.iterdir():
            if path.name.isdigit() and int(path.name) not in whole:
                shutil.rmtree(path)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """The whole steps, oldest first."""
        return steps_of(self.folder)

    def latest(self) -> int | None:
        """The newest whole step, None before the first."""
        return max(self.steps(), default=None)

    def save(self, step: int, arrays: dict[str, Any], positions: list[dict[str, Any]]) -> None:
        """Starts saving; returns when the arrays have been copied and may be donated.

        Args:
          arrays: "params", "optimizer" and perhaps "average", each a tree of global arrays.
          positions: of the data streams, JSON.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        self._manager.save(step, args=ocp.args.Composite(**items, position=ocp.args.JsonSave(positions)))

    def restore(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(arrays, positions) of a step, laid out by the shardings of `abstract`, which has the form of `save`'s
        arrays.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items, position=ocp.args.JsonRestore()))
        return {name: restored[name] for name in abstract}, restored["position"]

    def wait(self) -> None:
        """Until what was started is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self._manager.close()


def write_header(folder: str | os.PathLike[str], config_json: str, vocabulary: Vocabulary) -> None:
    """Writes config and vocabulary beside the steps, whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    saved = vocabulary.save(folder)
    for other in set(vocabulary_files(folder)) - {saved}:
        other.unlink(missing_ok=True)  # of a run that was begun here and left nothing else
    partial = folder / f".{CONFIG}.{os.getpid()}"
    partial.write_text(config_json, encoding="utf-8")
    partial.replace(folder / CONFIG)


def steps_of(folder: Path) -> list[int]:
    """The steps in a checkpoint folder that are whole, oldest first."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "params" / "_METADATA").is_file())


def find(path: str | os.PathLike[str]) -> tuple[Path, int]:
    """A run folder, a checkpoint folder or one step of it -> (checkpoint folder, step), the newest step where none is
    named.

    Raises:
      FileNotFoundError: no such folder, or none that holds a checkpoint.
    """
    given = Path(path).expanduser().absolute()
    step = int(given.name) if given.name.isdigit() and (given.parent / CONFIG).is_file() else None
    folders = [given.parent] if step is not None else [given, given / "checkpoints"]
    for folder in folders:
        if (folder / CONFIG).is_file():
            steps = steps_of(folder)
            if step in steps or (step is None and steps):
                return folder, max(steps) if step is None else step
    raise FileNotFoundError(
        f"checkpoint is {str(path)!r}, expected a run folder or a checkpoint folder that holds {CONFIG} and at "
        "least one step. Give the --workdir of a training run."
    )


def read_config(folder: Path) -> str:
    """The experiment of a checkpoint folder, as JSON text."""
    return (folder / CONFIG).read_text(encoding="utf-8")


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary that lies in a checkpoint folder."""
    return load_vocabulary(folder)


def read_params(folder: Path, step: int, abstract: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    """The parameters of a step, the moving average where there is one.

    Args:
      abstract: tree of jax.ShapeDtypeStruct that the parameters must have.
      sharding: where every parameter goes; the first device by default.

    Raises:
      ValueError: paths, shapes or dtypes differ from `abstract`; all differences are named.
    """
    item = "average" if (folder / str(step) / "average").is_dir() else "params"
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        path = folder / str(step) / item
        saved = param_rules.paths(_metadata(path))
        wanted = param_rules.paths(abstract)
        faults = [f"{p} is missing" for p in wanted.keys() - saved.keys()]
        faults += [f"{p} is not expected" for p in saved.keys() - wanted.keys()]
        faults += [
            f"{p} is {tuple(saved[p].shape)}, expected {tuple(wanted[p].shape)}"
            for p in wanted.keys() & saved.keys()
            if tuple(saved[p].shape) != tuple(wanted[p].shape)
        ]
        if faults:
            raise ValueError(
                f"the parameters of {path} do not fit the model: {'; '.join(sorted(faults))}. "
                "Use the config that lies beside the checkpoint, or name new and unused parameters in init."
            )
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
        return checkpointer.restore(path, placed)


def saved_shapes(folder: Path, step: int) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a step."""
    metadata = _metadata(folder / str(step) / "params")
    return {path: tuple(leaf.shape) for path, leaf in param_rules.paths(metadata).items()}


def _metadata(item: Path) -> Any:
    """The tree of shapes and dtypes of one item of a step."""
    # By the handler: a checkpointer would look for the metadata of a whole step here and warn that there are none.
    return ocp.StandardCheckpointHandler().metadata(item).tree


def read_some(folder: Path, step: int, wanted: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters at the paths of `wanted`, with its dtypes, laid out as its arrays are."""
    item = "average" if (folder / str(step) / "average").is_dir() else "params"
    with ocp.StandardCheckpointer() as checkpointer:
        path = folder / str(step) / item
        metadata = _metadata(path)
        anywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = {name: wanted[name].sharding if name in wanted else anywhere for name in param_rules.paths(metadata)}
        leaves = [
            jax.ShapeDtypeStruct(
                leaf.shape, wanted[name].dtype if name in wanted else leaf.dtype, sharding=placed[name]
            )
            for name, leaf in param_rules.paths(metadata).items()
        ]
        restored = checkpointer.restore(path, jax.tree.unflatten(jax.tree.structure(metadata), leaves))
    return {name: leaf for name, leaf in param_rules.paths(restored).items() if name in wanted}
