"""Checkpoints on disk: parameters, optimizer, data position, config and vocabulary, in one folder that can be moved.

    FOLDER/config.json          the experiment, resolved
    FOLDER/vocabulary.model     the vocabulary that the tokens are of (.model SentencePiece, .txt WordPiece)
    FOLDER/<step>/params        all parameters, or the trained ones only
    FOLDER/<step>/average       their moving average, if the run keeps one (prediction prefers it)
    FOLDER/<step>/optimizer     optimizer state
    FOLDER/<step>/position      where the data stood, JSON
    FOLDER/<step>/digests       item/path of an array -> its digest, JSON; base/path for parameters that are left out
    FOLDER/<step>.broken        a step that could not be read

orbax writes a step into a temporary folder and renames it: a step is whole or absent. Saving runs in the background.
What a disk or a copy spoils afterwards is found when it is read, by the digests.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pixel_align import param_rules
from pixel_align.checkpoints import digests
from pixel_align.text import Vocabulary, load_vocabulary, vocabulary_files

CONFIG = "config.json"
BASE = "base"  # the item under which digests of parameters stand that a step leaves out


class Broken(ValueError):
    """A step that cannot be read as it was written."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a step holds.

    Attributes:
      arrays: as `Store.save` took them. positions: of the data streams.
      base: path -> digest of the parameters that it leaves out; empty where it holds all.
    """

    step: int
    arrays: dict[str, Any]
    positions: list[dict[str, Any]]
    base: dict[str, str]


class Store:
    """The checkpoints of one run, for writing and resuming."""

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        self.folder = Path(folder).absolute()
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            # What a copy that broke off left would stand in the way of the steps that are saved next.
            whole = self.steps()
            for path in self.folder.iterdir():
                if path.name.isdigit() and int(path.name) not in whole:
                    shutil.rmtree(path)
        _everyone("the checkpoints are in order")
        if not self.folder.is_dir():
            raise ValueError(
                f"checkpoint folder {str(self.folder)!r} is not there, expected the one that process 0 made. Give a "
                "--workdir that all hosts see."
            )
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """The whole steps, oldest first."""
        return steps_of(self.folder)

    def latest(self) -> int | None:
        """The newest whole step, None before the first."""
        return max(self.steps(), default=None)

    def save(self, step: int, arrays: dict[str, Any], positions: list[dict[str, Any]], base: Any = None) -> None:
        """Starts saving; returns when the arrays have been copied and may be donated.

        Args:
          arrays: "params", "optimizer" and perhaps "average", each a tree of global arrays.
          positions: of the data streams, JSON.
          base: the parameters that are left out of `arrays`, None for none: their digests are kept.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {
            "position": ocp.args.JsonSave(positions),
            "digests": ocp.args.JsonSave(digests.of(arrays | ({} if base is None else {BASE: base}))),
        }
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore_newest(
        self, abstract: Callable[[bool], dict[str, Any]], tell: Callable[[str], None]
    ) -> Restored | None:
        """The newest step that can be read, None where there is none.

        A newer one that cannot be read is named to `tell` and set aside as STEP.broken. All processes agree on it.

        Args:
          abstract: whether a step holds the trained parameters only -> what `restore` takes.

        Raises:
          ValueError: the newest step is of another model or optimizer; there are steps, and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, abstract(bool(base_of(self.folder, step))))
            except Broken as error:
                tell(f"{error}; the step before it is used")
            if jax.process_index() == 0:
                _set_aside(self.folder / str(step))
            _everyone(f"step {step} is set aside")
            self._manager.reload()
        if steps:
            raise ValueError(
                f"checkpoint folder {str(self.folder)!r} has {len(steps)} steps and none can be read, expected one. "
                "Restore it from a copy, or choose another --workdir."
            )
        return None

    def restore(self, step: int, abstract: dict[str, Any]) -> Restored:
        """A step, laid out by the shardings of `abstract`, which has the form of `save`'s arrays.

        Raises:
          Broken: what is there is not what was written.
          ValueError: what was written has another form than `abstract`.
        """
        folder = self.folder / str(step)
        fault: Broken | None = None
        try:
            known = _digests(folder)
            found = {name: _read(folder / name, tree) for name, tree in abstract.items()}
            positions = _read_json(folder / "position")
        except Broken as error:
            fault = error
        # What follows all processes do, or none.
        if _anyone(fault is not None):
            raise fault or Broken(f"step {step} of {self.folder} is broken: another process cannot read it")
        arrays = {name: _checked(folder / name, found[name], tree, known) for name, tree in abstract.items()}
        return Restored(step, arrays, positions, base_of(self.folder, step))

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
      Broken: what is there is not what was written.
      ValueError: paths or shapes differ from `abstract`; all differences are named.
    """
    item = "average" if (folder / str(step) / "average").is_dir() else "params"
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    path = folder / str(step) / item
    return _checked(path, _read(path, placed), placed, _digests(folder / str(step)))


def saved_shapes(folder: Path, step: int) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a step."""
    metadata = _metadata(folder / str(step) / "params")
    return {path: tuple(leaf.shape) for path, leaf in param_rules.paths(metadata).items()}


def _metadata(item: Path) -> Any:
    """The tree of shapes and dtypes of one item of a step."""
    # By the handler: a checkpointer would look for the metadata of a whole step here and warn that there are none.
    return ocp.StandardCheckpointHandler().metadata(item).tree


def read_some(folder: Path, step: int, wanted: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters at the paths of `wanted`, with its dtypes, laid out as its arrays are.

    Raises:
      Broken: what is there is not what was written.
    """
    path = folder / str(step) / ("average" if (folder / str(step) / "average").is_dir() else "params")
    metadata = _metadata(path)
    anywhere = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaves = []
    for name, leaf in param_rules.paths(metadata).items():
        like = wanted.get(name)
        dtype, place = (leaf.dtype, anywhere) if like is None else (like.dtype, like.sharding)
        leaves.append(jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place))
    abstract = jax.tree.unflatten(jax.tree.structure(metadata), leaves)
    restored = _checked(path, _read(path, abstract), abstract, _digests(path.parent))
    return {name: leaf for name, leaf in param_rules.paths(restored).items() if name in wanted}


def base_of(folder: Path, step: int) -> dict[str, str]:
    """Path -> digest of the parameters that a step leaves out; empty where it holds all.

    Raises:
      Broken: its digests cannot be read.
    """
    known = _digests(folder / str(step))
    return {path.removeprefix(f"{BASE}/"): digest for path, digest in known.items() if path.startswith(f"{BASE}/")}


def _digests(step: Path) -> dict[str, str]:
    """The digests of a step; none where it was written without."""
    return _read_json(step / "digests") if (step / "digests").exists() else {}


def _read_json(item: Path) -> Any:
    try:
        return json.loads((item / "metadata").read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError) as error:
        raise Broken(_broken(item, error)) from error


def _read(item: Path, abstract: Any) -> Any:
    """One item of a step, laid out as `abstract`, with the dtypes that were written.

    Each process reads by itself: one that cannot does not leave the others waiting for it.

    Raises:
      Broken: unreadable.
      ValueError: paths or shapes differ from `abstract`; all differences are named.
    """
    try:
        saved = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(_metadata(item))}
    except Exception as error:
        raise Broken(_broken(item, error)) from error
    wanted = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    faults = [f"{p} is missing" for p in wanted.keys() - saved.keys()]
    faults += [f"{p} is not expected" for p in saved.keys() - wanted.keys()]
    faults += [
        f"{p} is {tuple(saved[p].shape)}, expected {tuple(wanted[p].shape)}"
        for p in wanted.keys() & saved.keys()
        if tuple(saved[p].shape) != tuple(wanted[p].shape)
    ]
    if faults:
        raise ValueError(
            f"the {item.name} of {item.parent} do not fit the model: {'; '.join(sorted(faults))}. "
            "Use the config that lies beside the checkpoint, or name new and unused parameters in init."
        )
    written = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, saved[_name(path)].dtype, sharding=x.sharding), abstract
    )
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    try:
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            return checkpointer.restore(item, args=ocp.args.StandardRestore(written))
    except (PermissionError, TimeoutError):
        raise  # it may be whole
    except Exception as error:
        raise Broken(_broken(item, error)) from error


def _checked(item: Path, found: Any, abstract: Any, known: dict[str, str]) -> Any:
    """What was read of an item, with the dtypes of `abstract`. Raises Broken where a digest is of something else."""
    spoilt = [path for path, digest in digests.of(found).items() if known.get(f"{item.name}/{path}", digest) != digest]
    if spoilt:
        more = f" and {len(spoilt) - 1} more" if len(spoilt) > 1 else ""
        raise Broken(_broken(item, f"{spoilt[0]}{more} is not what its digest is of"))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), found, abstract)


def _name(path: Any) -> str:
    return str(jax.tree_util.keystr(path, simple=True, separator="/"))


def _broken(item: Path, why: object) -> str:
    said = str(why).strip().partition("\n")[0][:200] or type(why).__name__
    return f"step {item.parent.name} of {item.parent.parent} is broken: {item.name}: {said}"


def _set_aside(step: Path) -> None:
    target, count = step.with_name(f"{step.name}.broken"), 1
    while target.exists():
        count += 1
        target = step.with_name(f"{step.name}.broken{count}")
    step.rename(target)


def _everyone(reached: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"pixel_align: {reached}")


def _anyone(fault: bool) -> bool:
    """Whether any process has a fault."""
    return bool(np.any(multihost_utils.process_allgather(np.uint8(fault)))) if jax.process_count() > 1 else fault
