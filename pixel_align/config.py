"""The ways to write an experiment: a Python file that edits a ConfigDict, and overrides from the command line.

The truth is the dataclasses, each beside the code that it configures; `Experiment` joins them. `experiments/*.py` edit
a locked ConfigDict made from them, `--set a.b=c` changes a leaf; both become the same object through `settings.build`.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from pixel_align.experiment import Experiment
from pixel_align.settings import ConfigError, Overrides, build, from_json, override, to_json, to_plain

__all__ = ["ConfigError", "from_config_dict", "from_json", "load", "override", "to_config_dict", "to_json"]

T = TypeVar("T")


def load(path: str | Path, overrides: Overrides = (), cls: type[T] = Experiment) -> T:  # type: ignore[assignment]
    """Reads an experiment.

    Args:
      path: a Python file with `get_config()`, which returns a ConfigDict (`to_config_dict`) or the object itself.
        "experiments/refcoco.py:bench" calls `get_config("bench")`.
      overrides: "optim.peak_lr=1e-3" texts, read as their fields' types, or a mapping from such names to values.
      cls: what to build.

    Raises:
      ConfigError: no such file, no `get_config`, no preset taken; unknown names and wrong types.
    """
    file, colon, preset = str(path).partition(".py:")
    location = Path(f"{file}.py" if colon else file)
    if location.suffix != ".py" or not location.is_file():
        raise ConfigError(f"experiment is {str(location)!r}, expected an existing .py file. Check the path.")
    get_config = getattr(_import_file(location), "get_config", None)
    if get_config is None:
        raise ConfigError(f"experiment {str(location)!r} has no get_config, expected a function of that name. Add it.")
    if preset and not inspect.signature(get_config).parameters:
        raise ConfigError(f"preset is {preset!r}, expected none for {str(location)!r}. Leave out ':{preset}'.")
    config = get_config(preset) if preset else get_config()
    return override(from_config_dict(cls, config), overrides)


def to_config_dict(config: Any) -> ConfigDict:
    """A dataclass tree -> a locked ConfigDict: fields are set by name, none can be added."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return ConfigDict({name: convert(part) for name, part in value.items()})
        if isinstance(value, list):
            return tuple(convert(part) for part in value)
        return value

    return convert(to_plain(config)).lock()


def from_config_dict(cls: type[T], config: Any) -> T:
    """A ConfigDict -> a `cls`. Dataclasses may stand in it, or be given instead of it: they are checked as well.

    Raises:
      ConfigError: unknown names, missing names, values of wrong types.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, ConfigDict):
            return {name: convert(part) for name, part in value.items()}
        if isinstance(value, tuple | list):
            return [convert(part) for part in value]
        return value

    return build(cls, convert(config))


def _import_file(path: Path) -> types.ModuleType:
    """Runs an experiment's file. It may import its neighbours as `experiments.base`, wherever the command is run."""
    name = f"_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    checkout = str(path.resolve().parent.parent)
    sys.path.insert(0, checkout)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(checkout)
    return module
