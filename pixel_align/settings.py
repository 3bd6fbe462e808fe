"""A tree of frozen dataclasses as settings: changed by dotted names, written as JSON, built by one strict builder.

The builder refuses values of a wrong type, and unknown names with the nearest right one. Fields may be bool, int,
float, str, None, Literal, tuples, dataclasses and unions of these.

A choice between parts is a field annotated with several dataclasses, `image: SamVitConfig | EvaVitConfig`, told apart
by the default of their field `kind`. Setting `kind` takes that kind's defaults. A choice that is open to more is
annotated with a dataclass whose classmethod `kinds` gives them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
Overrides = Sequence[str] | Mapping[str, Any]

_Root = tuple[str, Any]  # a path and the tree of dicts there
_ROOT = "config"  # what the whole tree is called in messages
_NONE = ("none", "null")
_BOOLS = {"true": True, "false": False}


class ConfigError(ValueError):
    """A setting that cannot be: its message names the setting, what was given and what to write."""


def build(cls: type[T], value: Any) -> T:
    """A `cls` from nested dicts and lists, or from a dataclass tree, which is checked in the same way.

    Raises:
      ConfigError: unknown names, missing names, values of wrong types.
    """
    return _build(cls, value, _ROOT, complete=True)


def override(config: T, overrides: Overrides) -> T:
    """A copy of a dataclass tree with some settings changed.

    Choices (`a.kind=...`) come first, whatever their place, since each takes its kind's defaults; the rest in order.
    The tree is built when all are set, so that checks between fields see the result only.

    Raises:
      ConfigError: unknown names, values of wrong types, texts that are no "name=value".
    """
    items: list[tuple[str, Any, bool]] = []
    if isinstance(overrides, Mapping):
        items = [(key, value, False) for key, value in overrides.items()]
    else:
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"override is {text!r}, expected name=value. Write it as optim.peak_lr=1e-3.")
            items.append((key.strip(), value.strip(), True))
    items.sort(key=lambda item: (0, item[0].count(".")) if item[0].split(".")[-1] == "kind" else (1, 0))
    cls = type(config)
    plain = to_plain(config)
    for key, value, is_text in items:
        names = key.removeprefix(f"{_ROOT}.").split(".")
        plain = _set(cls, plain, names, value, is_text, _ROOT, (_ROOT, plain))
    return build(cls, plain)


def to_json(config: Any) -> str:
    """A dataclass tree as JSON text, one setting a line."""
    return json.dumps(to_plain(config), indent=2) + "\n"


def from_json(cls: type[T], text: str) -> T:
    """The inverse of `to_json`, strict: every field must be there and nothing else.

    Raises:
      ConfigError: not JSON; unknown names, missing names, values of wrong types.
    """
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{_ROOT} is no JSON ({error}), expected what to_json wrote. Check the file.") from error
    return build(cls, plain)


def to_plain(config: Any) -> Any:
    """A dataclass tree as nested dicts, with tuples as lists: what JSON holds."""
    if _is_instance(config):
        return {name: to_plain(value) for name, value in _fields(config)}
    if isinstance(config, tuple):
        return [to_plain(value) for value in config]
    return config


def dataclasses_of(cls: type) -> list[type]:
    """The dataclasses that a tree of `cls` may hold, `cls` first, all alternatives of choices included."""
    found: dict[type, None] = {}

    def walk(annotation: Any) -> None:
        for alternative in _alternatives(annotation):
            if typing.get_origin(alternative) is tuple:
                for element in typing.get_args(alternative):
                    if element is not Ellipsis:
                        walk(element)
            elif isinstance(alternative, type) and dataclasses.is_dataclass(alternative) and alternative not in found:
                found[alternative] = None
                for hint in _hints(alternative).values():
                    walk(hint)

    walk(cls)
    return list(found)


# The builder: annotation and plain value -> checked value.


def _build(annotation: Any, value: Any, path: str, *, complete: bool) -> Any:
    """The value that a field of this annotation takes; `complete` demands every field of a dataclass."""
    value = _shallow(value, annotation, path)
    alternatives = _alternatives(annotation)
    classes = _classes(annotation)
    if isinstance(value, dict) and classes:
        cls = _choose(classes, value, path)
        hints = _hints(cls)
        for name in value:
            if name not in hints:
                raise _unknown(cls, name, path, (path, value))
        missing = [name for name in hints if name not in value]
        if complete and missing:
            raise ConfigError(
                f"{path}.{missing[0]} is missing, expected {_describe(hints[missing[0]])}. Add it; "
                f"was this written by another version of {cls.__name__}?"
            )
        return cls(
            **{name: _build(hints[name], part, f"{path}.{name}", complete=complete) for name, part in value.items()}
        )
    if isinstance(value, list):
        for alternative in alternatives:
            if typing.get_origin(alternative) is tuple:
                return tuple(
                    _build(hint, part, f"{path}.{i}", complete=complete)
                    for i, (hint, part) in enumerate(zip(_elements(alternative, value, path), value, strict=True))
                )
    if any(_is_a(value, alternative) for alternative in alternatives):
        return value
    if float in alternatives and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise _wrong(annotation, value, path)


def _shallow(value: Any, annotation: Any, path: str) -> Any:
    """One level of a value as plain data: dataclasses as dicts, tuples as lists."""
    if isinstance(value, tuple):
        return list(value)
    if _is_instance(value):
        if type(value) not in _alternatives(annotation):
            raise _wrong(annotation, value, path)
        return dict(_fields(value))
    return value


def _set(annotation: Any, plain: Any, names: list[str], value: Any, is_text: bool, path: str, root: _Root) -> Any:
    """`plain` with the setting `names` below `path` changed; root: where to look for a name that is not here."""
    if not names:
        value = _parse(annotation, value, path) if is_text else value
        return to_plain(_build(annotation, value, path, complete=False))
    name, rest = names[0], names[1:]
    classes = _classes(annotation)
    if name == "kind" and not rest and classes:
        cls = _choose(classes, {"kind": value}, path)
        return plain if isinstance(plain, dict) and plain["kind"] == value else to_plain(cls())
    if isinstance(plain, dict) and classes:
        cls = _choose(classes, plain, path)
        hints = _hints(cls)
        if name not in hints:
            raise _unknown(cls, ".".join(names), path, root)
        return plain | {name: _set(hints[name], plain[name], rest, value, is_text, f"{path}.{name}", root)}
    if isinstance(plain, list):
        if not name.isdecimal() or int(name) >= len(plain):
            raise ConfigError(
                f"{path}.{name} is not an element of {path}, expected a number below {len(plain)}. Choose one of them."
            )
        tuples = [hint for hint in _alternatives(annotation) if typing.get_origin(hint) is tuple]
        hint = _elements(tuples[0], plain, path)[int(name)]
        changed = _set(hint, plain[int(name)], rest, value, is_text, f"{path}.{name}", root)
        return [*plain[: int(name)], changed, *plain[int(name) + 1 :]]
    raise ConfigError(
        f"{path} is {plain!r}, expected a group of settings to find {'.'.join(names)!r} in. Set {path} itself first."
    )


def _parse(annotation: Any, text: str, path: str) -> Any:
    """A text from the command line as plain data of the annotation's type; text is the last resort of a choice."""
    for alternative in sorted(_alternatives(annotation), key=lambda kind: kind is str):
        parsed = _parse_as(alternative, text, path)
        if parsed is not _UNREADABLE:
            return parsed
    raise _wrong(annotation, text, path)


_UNREADABLE = object()


def _parse_as(kind: Any, text: str, path: str) -> Any:
    """A text as one plain type, or _UNREADABLE."""
    if kind is types.NoneType:
        return None if text.lower() in _NONE else _UNREADABLE
    if kind is str:
        return text
    if kind is bool:
        return _BOOLS.get(text.lower(), _UNREADABLE)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return _UNREADABLE
    if typing.get_origin(kind) is Literal:
        return next((choice for choice in typing.get_args(kind) if str(choice) == text), _UNREADABLE)
    if text[:1] in "[{" and text:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            if dataclasses.is_dataclass(kind):
                return _UNREADABLE
    if typing.get_origin(kind) is tuple:
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        parts = [part.strip() for part in inner.split(",")]
        if parts[-1] == "":
            parts.pop()  # "" is no element, "a," is one
        hints = _elements(kind, parts, path)
        return [_parse(hint, part, f"{path}.{i}") for i, (hint, part) in enumerate(zip(hints, parts, strict=True))]
    return _UNREADABLE


# Annotations.


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Fields of a dataclass that its constructor takes, with their annotations."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation admits. Not cached: an open choice may have grown."""
    members = _members(annotation)
    return tuple(kind for member in members for kind in (member.kinds() if _is_open(member) else (member,)))


def _is_open(member: Any) -> bool:
    # Of the class itself: a subclass that inherits `kinds` is one kind.
    return isinstance(member, type) and "kinds" in vars(member)


@functools.cache
def _members(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation names.

    Raises:
      TypeError: an annotation that no config can hold (a mistake in the dataclass, not in what a user wrote).
    """
    origin = typing.get_origin(annotation)
    members = typing.get_args(annotation) if origin in (Union, types.UnionType) else (annotation,)
    for member in members:
        plain = member in (bool, int, float, str, types.NoneType) or typing.get_origin(member) in (tuple, Literal)
        if not plain and not (isinstance(member, type) and dataclasses.is_dataclass(member)):
            raise TypeError(
                f"a field's annotation is {member!r}, expected bool, int, float, str, None, Literal, tuple, dataclass "
                "or a union of these. Change the dataclass."
            )
    return members


def _classes(annotation: Any) -> list[type]:
    """The dataclasses among the types that an annotation admits."""
    return [kind for kind in _alternatives(annotation) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]


def _choose(classes: Sequence[type], value: Mapping[str, Any], path: str) -> type:
    """The dataclass that `value` is meant for: the one whose default `kind` it names."""
    kinds = {_kind(cls): cls for cls in classes}
    if len(classes) > 1 and (None in kinds or len(kinds) < len(classes)):
        raise TypeError(
            f"{path} is one of {[cls.__name__ for cls in classes]}, expected each to have a field `kind` with a "
            "default of its own. Change the dataclasses."
        )
    given = value.get("kind", next(iter(kinds)) if len(kinds) == 1 else None)
    if given in kinds:
        return kinds[given]
    if None in kinds:
        raise _unknown(classes[0], "kind", path, (path, {}))
    known = ", ".join(repr(kind) for kind in kinds)
    raise ConfigError(
        f"{path}.kind is {given!r}, expected {'one of ' * (len(kinds) > 1)}{known}. Choose one that exists."
    )


def _kind(cls: Any) -> str | None:
    """The default of the field `kind`, which names the class among its alternatives."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    kind = defaults.get("kind")
    return kind if isinstance(kind, str) else None


def _elements(annotation: Any, values: Sequence[Any], path: str) -> list[Any]:
    """The annotation of each element of a tuple."""
    hints = typing.get_args(annotation)
    if len(hints) == 2 and hints[1] is Ellipsis:
        return [hints[0]] * len(values)
    if len(hints) != len(values):
        raise ConfigError(f"{path} is {list(values)!r}, expected {_describe(annotation)}. Give {len(hints)} values.")
    return list(hints)


def _is_a(value: Any, alternative: Any) -> bool:
    """Whether a plain value is of one plain type, exactly: True is no int here."""
    if typing.get_origin(alternative) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(alternative))
    return type(value) is alternative


def _is_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(config: Any) -> Iterator[tuple[str, Any]]:
    cls: Any = type(config)
    return ((name, getattr(config, name)) for name in _hints(cls))


# Messages.


def _describe(annotation: Any) -> str:
    """An annotation in words."""
    words = []
    for alternative in _alternatives(annotation):
        if typing.get_origin(alternative) is tuple:
            hints = typing.get_args(alternative)
            several = len(hints) == 2 and hints[1] is Ellipsis
            inner = f"{_describe(hints[0])}, ..." if several else ", ".join(map(_describe, hints))
            words.append(f"a tuple ({inner})")
        elif typing.get_origin(alternative) is Literal:
            words.append("one of " + ", ".join(map(repr, typing.get_args(alternative))))
        else:
            words.append("None" if alternative is types.NoneType else alternative.__name__)
    return " or ".join(words)


def _wrong(annotation: Any, value: Any, path: str) -> ConfigError:
    examples = {bool: "true or false", int: "8", float: "1e-3", types.NoneType: "none"}
    hints = [examples[kind] for kind in _alternatives(annotation) if kind in examples]
    if any(typing.get_origin(kind) is tuple for kind in _alternatives(annotation)):
        hints.append("a,b,c")
    if any(dataclasses.is_dataclass(kind) for kind in _alternatives(annotation)):
        hints.append('{"field": value}')
    advice = f"Write it as {' or '.join(hints)}." if hints else "Change the value."
    return ConfigError(f"{path} is {value!r}, expected {_describe(annotation)}. {advice}")


def _unknown(cls: type, name: str, path: str, root: _Root) -> ConfigError:
    """No such field: names the nearest one here, else one of such a name anywhere, else what there is."""
    first, _, rest = name.partition(".")
    if close := difflib.get_close_matches(first, _hints(cls), n=1):
        suggestion = f"{path}.{close[0]}" + (f".{rest}" if rest else "")
    else:
        leaves = [leaf for leaf in _leaves(root[1], root[0]) if leaf != f"{path}.{name}"]
        by_name = {leaf.split(".")[-1]: leaf for leaf in reversed(leaves)}
        nearest = difflib.get_close_matches(name.split(".")[-1], by_name, n=1, cutoff=0.75)
        suggestion = by_name[nearest[0]] if nearest else ""
    advice = f"Did you mean {suggestion}?" if suggestion else f"Its fields are {', '.join(_hints(cls))}."
    return ConfigError(f"{path}.{first} is not a field of {cls.__name__}. {advice}")


def _leaves(plain: Any, path: str) -> Iterator[str]:
    """Dotted names of all settings in a tree of dicts at `path`."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield from _leaves(value, f"{path}.{name}")
    else:
        yield path
