"""A sweep as it is written -> its points: whole experiments, each with a name for its folder.

A sweep is a function without arguments that yields points; a point is a mapping from settings to values, what `--set`
would change. `grid` makes those of a product:

    def rates():
        yield from grid({"optim.peak_lr": (1e-4, 3e-4), "train.seed": (0, 1, 2)})
"""

import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixel_align import config
from pixel_align.experiment import Experiment
from pixel_align.settings import ConfigError, override, to_plain

Overrides = Mapping[str, Any]

_NAME = 60  # characters of a name before its digest


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: of its folder: what it changes, for people, and a digest of all that it changes, which makes it unique and
        keeps it the same wherever the point stands in its sweep.
      digest: that part of the name: 6 hexadecimal digits.
      overrides: what it changes, as JSON has it.
      texts: the same as texts for `--set`, after those of the whole sweep.
      config: the whole experiment.
    """

    name: str
    digest: str
    overrides: dict[str, Any]
    texts: tuple[str, ...]
    config: Experiment


def grid(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of some settings, the last setting changing fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def load(sweep: str, experiment: Experiment, changes: Sequence[str] = ()) -> list[Point]:
    """The points of a sweep, all of them checked.

    Args:
      sweep: "experiments/sweeps.py:lora_ranks", a file and its function.
      experiment: what the points change.
      changes: texts as of `--set` that come before those of each point.

    Raises:
      ConfigError: no such sweep; a point that is no mapping, that is another one's twin, or that makes no experiment.
    """
    points: list[Point] = []
    for index, overrides in enumerate(_function(sweep)()):
        where = f"point {index} of {sweep}"
        if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
            raise ConfigError(f"{where} is {overrides!r}, expected settings and their values. Yield a dict.")
        try:
            point = _point(overrides, experiment, changes)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        if twins := [number for number, other in enumerate(points) if other.config == point.config]:
            raise ConfigError(f"{where} is {dict(overrides)!r}, expected no twin of point {twins[0]}. Leave one out.")
        points.append(point)
    if not points:
        raise ConfigError(f"sweep {sweep} has no point, expected one or more. Let it yield them.")
    return points


def axes(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Setting -> its value in each point, of the settings in which points differ; None where a point has no such
    setting. Those of `init` only say what of a checkpoint fits, and are no axes.
    """
    keys = dict.fromkeys(key for point in points for key in point.overrides if not key.startswith("init."))
    values = {key: [_value(to_plain(point.config), key.split(".")) for point in points] for key in keys}
    return {key: column for key, column in values.items() if len({json.dumps(value) for value in column}) > 1}


def short(names: Sequence[str]) -> dict[str, str]:
    """Dotted name -> its last parts, as many as tell it from the others."""
    parts = {name: name.split(".") for name in names}

    def tail(name: str) -> str:
        for count in range(1, len(parts[name])):
            end = parts[name][-count:]
            if not any(other != name and parts[other][-count:] == end for other in names):
                return ".".join(end)
        return name

    return {name: tail(name) for name in names}


def as_text(value: Any) -> str:
    """A value as `--set` takes it."""
    plain = to_plain(value)
    if isinstance(plain, str):
        return plain
    if plain is None:
        return "none"
    return json.dumps(plain)


def _point(overrides: Overrides, experiment: Experiment, changes: Sequence[str]) -> Point:
    plain = {key.removeprefix("config."): json.loads(json.dumps(to_plain(value))) for key, value in overrides.items()}
    texts = tuple(f"{key}={as_text(value)}" for key, value in plain.items())
    # A run is started by texts: they must say what was yielded.
    if override(experiment, texts) != override(experiment, plain):
        raise ConfigError(f"{list(texts)} is read as something else, expected the values. Write them otherwise.")
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:6]
    names = short([key for key in plain if not key.startswith("init.")])
    told = ",".join(f"{names[key]}={as_text(plain[key])}" for key in names) or "as_it_is"
    readable = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", told)[:_NAME].rstrip("._,-")
    return Point(f"{readable}-{digest}", digest, plain, texts, override(experiment, [*changes, *texts]))


def _function(sweep: str) -> Any:
    """The function that a sweep's text names."""
    file, colon, name = sweep.rpartition(".py:")
    path = Path(f"{file}.py")
    if not colon or not path.is_file():
        raise ConfigError(f"SWEEP is {sweep!r}, expected FILE.py:NAME of an existing file. Check the path.")
    module = config.import_file(path)
    found = getattr(module, name, None)
    if not inspect.isfunction(found):
        known = [
            key
            for key, value in vars(module).items()
            if inspect.isgeneratorfunction(value) and value.__module__ == module.__name__
        ]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known) or 'none'}."
        raise ConfigError(f"sweep is {name!r}, expected a function of {path} that yields points. {hint}")
    if inspect.signature(found).parameters:
        raise ConfigError(f"sweep {name!r} takes arguments, expected none. Give it defaults inside.")
    return found


def _value(plain: Any, names: Sequence[str]) -> Any:
    """What stands at a dotted name of a tree of dicts and lists, None where nothing does."""
    for name in names:
        if isinstance(plain, dict):
            plain = plain.get(name)
        elif isinstance(plain, list) and name.isdecimal() and int(name) < len(plain):
            plain = plain[int(name)]
        else:
            return None
    return plain
