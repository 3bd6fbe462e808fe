"""The ways to write an experiment: a Python file that edits a ConfigDict, gin files, and overrides of single settings.

The truth is the dataclasses, each beside the code that it configures; `Experiment` joins them. `experiments/*.py` edit
a locked ConfigDict made from them, `experiments/gin/**/*.gin` bind their constructors, `--set a.b=c` changes a leaf;
all become the same object through `settings.build`.

gin keeps the habits of T5X: `include`, macros, `%gin.REQUIRED`, `--gin_file=...`, `--gin.Train.steps=7`. It binds the
constructors of the dataclass tree and nothing else:

    include 'experiments/gin/runs/stage.gin'
    STEPS = 10_000                                  # a macro, used as %STEPS
    T5Config.width = 512                            # wherever a T5Config is made, from its defaults or by reference
    PixelLLMConfig.image = @EvaVitConfig()          # a choice; its fields start from that kind's defaults
    Experiment.evals = [@held_out/Eval()]           # several of a kind are told apart by scopes
    held_out/Eval.split = 'validation'
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin.config
from ml_collections import ConfigDict

from pixel_align.experiment import Experiment
from pixel_align.settings import ConfigError, Overrides, build, dataclasses_of, from_json, override, to_json, to_plain

__all__ = ["ConfigError", "from_config_dict", "from_gin", "from_json", "load", "override", "to_config_dict", "to_json"]

T = TypeVar("T")


def load(
    path: str | Path | Sequence[str | Path],
    overrides: Overrides = (),
    cls: type[T] = Experiment,  # type: ignore[assignment]
    *,
    bindings: Sequence[str] = (),
) -> T:
    """Reads an experiment.

    Args:
      path: a Python file with `get_config()`, which returns a ConfigDict (`to_config_dict`) or the object itself;
        "experiments/refcoco.py:bench" calls `get_config("bench")`. Or a .gin file, or several, read in order.
      overrides: "optim.peak_lr=1e-3" texts, read as their fields' types, or a mapping from such names to values.
        They come last.
      cls: what to build.
      bindings: gin bindings that follow the file: "Train.steps = 7".

    Raises:
      ConfigError: no such file, no `get_config`, no preset taken; unknown names and wrong types; gin bindings without
        a gin file, and values that a gin file requires and nobody gave.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    if bindings or len(paths) != 1 or Path(paths[0]).suffix == ".gin":
        if not paths or any(Path(one).suffix != ".gin" for one in paths):
            raise ConfigError(
                f"experiment is {', '.join(map(str, paths)) or 'missing'}, expected one .py file or .gin files only. "
                "Name one; settings of a .py file are changed with --set."
            )
        return override(from_gin(paths, bindings, cls), overrides)
    path = paths[0]
    file, colon, preset = str(path).partition(".py:")
    location = Path(f"{file}.py" if colon else file)
    if location.suffix != ".py" or not location.is_file():
        raise ConfigError(f"experiment is {str(location)!r}, expected an existing .py or .gin file. Check the path.")
    get_config = getattr(import_file(location), "get_config", None)
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


def import_file(path: Path) -> types.ModuleType:
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


def from_gin(files: Sequence[str | Path], bindings: Sequence[str] = (), cls: type[T] = Experiment) -> T:  # type: ignore[assignment]
    """gin files, read in order, then single bindings -> a `cls`.

    An `include` is looked for from the working folder, from the file's folder and from the folders above that.

    Raises:
      ConfigError: no such file, unknown names (with the nearest right one), required values that nobody gave, bindings
        that no constructor uses, values of wrong types.
    """
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"gin file is {str(file)!r}, expected an existing .gin file. Check the path.")
    state = _fresh_gin()
    for file in files:
        for folder in Path(file).resolve().parents:
            state.add_config_file_search_path(str(folder))
    classes = dataclasses_of(cls)
    made: set[tuple[str, str]] = set()  # (active scope, class) of every constructor's call
    constructors: dict[type, Callable[..., Any]] = {}
    for part in classes:
        constructor = _constructor(part, constructors, lambda name: made.add((state.current_scope_str(), name)))
        constructors[part] = state.external_configurable(constructor, part.__name__, part.__module__)
    try:
        for file in files:
            state.parse_config_file(str(file))
        macros = _macros(state)
        state.parse_config(list(bindings))
        _check_macros(bindings, macros, state)
        bound = _bound(state)
        plain = constructors[cls]()
        _check_references(plain, "config")
        _check_scopes(bound, made)
        _check_made(bindings, {name for _, name in made})
    except ConfigError:
        raise
    except (ValueError, SyntaxError, OSError, TypeError, RuntimeError, ImportError) as error:
        raise ConfigError(_gin_message(str(error), {part.__name__: part for part in classes})) from error
    return from_config_dict(cls, plain)


def _fresh_gin() -> Any:
    """gin with nothing registered and nothing bound.

    gin keeps both in its module. A module of its own for each load leaves no trace in the next one, in another thread
    or in the gin that other libraries use.
    """
    spec = gin.config.__spec__
    assert spec is not None and spec.loader is not None  # it was imported from a file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _constructor(
    part: type, constructors: dict[type, Callable[..., Any]], note: Callable[[str], None]
) -> Callable[..., Any]:
    """What gin calls to make a `part`: named settings -> all its settings as a dict.

    Parts that nobody named are made by their own constructors, so that bindings reach them wherever they are.
    """
    fields = {field.name: field for field in dataclasses.fields(part) if field.init}

    def remade(value: Any) -> Any:
        if type(value) in constructors:
            return constructors[type(value)](value)
        return [remade(element) for element in value] if isinstance(value, tuple) else value

    def construct(base: Any = None, /, **given: Any) -> dict[str, Any]:
        note(part.__name__)
        settings = dict(given)
        for name, field in fields.items():
            if name in given:
                continue
            if base is not None:
                settings[name] = remade(getattr(base, name))
            elif field.default is not dataclasses.MISSING:
                settings[name] = remade(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                settings[name] = remade(field.default_factory())
        return settings

    # gin refuses names that the signature lacks. The class says its kind: a choice is made by naming another class.
    names = [name for name in fields if name != "kind"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, keyword, default=None) for name in names])
    construct.__signature__ = signature  # type: ignore[attr-defined]
    construct.__qualname__ = construct.__name__ = part.__name__
    return construct


def _text(state: Any) -> str:
    """What gin has parsed, one binding a line: macros as NAME = value, then scope/Class.field = value."""
    text: str = state.config_str(max_line_length=10_000)  # a longer binding is broken, its name stays in front
    return text


def _macros(state: Any) -> list[str]:
    """The names of macros that files set."""
    return re.findall(r"^(\w+) = ", _text(state), re.MULTILINE)


def _check_macros(bindings: Sequence[str], macros: Sequence[str], state: Any) -> None:
    """Raises ConfigError for a macro among single bindings that no file knows and nothing uses."""
    text = _text(state)
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        if re.fullmatch(r"\w+", name) and name not in macros and not re.search(rf"%{name}\b", text):
            raise ConfigError(f"gin macro {name} is set, expected one that is used. {_advice('', name, macros)}")


def _bound(state: Any) -> list[str]:
    """The names that a parsed gin config binds: "scope/Class.field" and macros.

    Raises:
      ConfigError: imports; values that are required and were not given.
    """
    text = _text(state)
    if imports := re.findall(r"^(?:import|from) .*$", text, re.MULTILINE):
        raise ConfigError(
            f"gin config has {imports[0]!r}, expected bindings of settings only. Leave it out; data.modules names the "
            "modules that register tasks."
        )
    if required := re.findall(r"^(\S+) = %gin\.REQUIRED$", text, re.MULTILINE):
        raise ConfigError(
            f"{', '.join(required)} {'is' if len(required) == 1 else 'are'} not set, expected a value. "
            f"Bind it in a gin file, or give {' '.join(f'--gin.{name}=...' for name in required)}."
        )
    return re.findall(r"^(\S+) = ", text, re.MULTILINE)


def _check_references(plain: Any, path: str) -> None:
    """Raises ConfigError where a class stands in place of the part that it makes."""
    if callable(plain):
        raise ConfigError(
            f"{path} is @{plain.__name__}, expected the part that it makes. Write @{plain.__name__}() with parentheses."
        )
    inner = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list | tuple) else ()
    for name, value in inner:
        _check_references(value, f"{path}.{name}")


def _check_scopes(bound: Sequence[str], made: set[tuple[str, str]]) -> None:
    """Raises ConfigError for a binding in a scope that no constructor ran in, though its class was made elsewhere.

    Bindings of a class that was not made at all are let be: an included file may set what a choice then replaces. Of
    those that stand alone see `_check_made`.
    """
    for name in bound:
        scope, slash, setting = name.rpartition("/")
        part = setting.split(".")[-2] if "." in setting else ""
        scopes = {active for active, made_part in made if made_part == part}
        if slash and scopes and not any(f"{active}/".startswith(f"{scope}/") for active in scopes):
            known = ", ".join(sorted(filter(None, scopes))) or "none"
            raise ConfigError(
                f"gin binding {name} changes nothing: its scope is {scope!r}, expected one that makes {part} "
                f"({known}). Correct the scope, or leave the binding out."
            )


def _check_made(bindings: Sequence[str], made: set[str]) -> None:
    """Raises ConfigError for a single binding of a class that was never made: who gives one wants a change."""
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        part = name.rpartition("/")[2].split(".")[-2:-1]
        if part and part[0] not in made:
            raise ConfigError(
                f"gin binding {name} changes nothing: this config has no {part[0]}, expected one of its parts "
                f"({', '.join(sorted(made))}). Choose that part first, or leave the binding out."
            )


def _gin_message(text: str, classes: dict[str, type]) -> str:
    """What gin says in several lines, as one line of ours, with the nearest right name."""
    place = re.search(r'In file "([^"]+)", line (\d+)', text)
    where = f"gin file {place[1]!r}, line {place[2]}: " if place else "gin: "
    if found := re.search(r"doesn't have a parameter named '([^']+)'", text):
        part = re.search(r"[Cc]onfigurable '(?:[\w.]*\.)?(\w+)'", text)
        assert part is not None  # gin names both
        if found[1] == "kind":
            return (
                f"{where}{part[1]}.kind is set, expected a reference to the class of that kind. "
                f"Write FIELD = @{part[1]}() where the choice stands, with the class that is wanted."
            )
        names = [field.name for field in dataclasses.fields(classes[part[1]]) if field.init and field.name != "kind"]
        return f"{where}{part[1]}.{found[1]} is not a field of {part[1]}. {_advice(part[1] + '.', found[1], names)}"
    if found := re.search(r"No configurable matching (?:reference )?'@?(?:[^']*/)?([\w.]+?)(?:\(\))?'", text):
        given, _, field = found[1].partition(".")
        return f"{where}{found[1]} is not a part of the config. {_advice('', given, list(classes), field)}"
    if found := re.search(r"Unable to open file: (.*?)\. Searched", text):
        return f"{where}included file is {found[1]!r}, expected an existing one. Check the path."
    if found := re.search(r"configurable 'macro'.* in scope '([^']+)'", text):
        return f"gin macro {found[1]} is not set, expected a value. Bind it, or give --gin.{found[1]}=...."
    return where + " ".join(text.split())


def _advice(prefix: str, name: str, names: Sequence[str], rest: str = "") -> str:
    close = difflib.get_close_matches(name, names, n=1)
    if not close:
        return f"Known: {', '.join(names) or 'none'}."
    return f"Did you mean {prefix}{close[0]}{'.' if rest else ''}{rest}?"
