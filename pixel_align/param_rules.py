"""Ordered rules over parameter paths: what is trained, decayed, scaled and where it lies is decided here and by name.

A rule is `(regex, value)`. A path is the keys of a parameter joined by "/", as in `text/decoder/layers/mlp/wi/kernel`.
A regex must match the WHOLE path (`re.fullmatch`), the first rule that does gives the value, every parameter must be
matched, and a rule that decides nothing is an error: most likely it is misspelt.

A value may be a function of the layer number (0 for the first). In a stack that is written out (`.../layers_3/...`) it
is called with that number; on a leaf that holds all layers stacked along axis 0 (`.../layers/...`) it is called for
each, and the value is an array [layers, 1, ..., 1] that broadcasts against the leaf.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

Rules = Sequence[tuple[str, Any]]


@dataclasses.dataclass(frozen=True)
class PartRules:
    """What a part of a network says about its own parameters, by their paths inside the part.

    No list ends in a rule for everything unless everything is meant: a parameter that nobody thought of is an error.

    Attributes:
      sharding: tuple of mesh axes (or None) for the last axes of a parameter after a leading Ellipsis, () = replicated.
      weight_decay: factor on the optimizer's weight decay.
      trainable: bool.
      lr_multiplier: factor on the learning rate.
    """

    sharding: Rules
    weight_decay: Rules
    trainable: Rules = ((r".*", True),)
    lr_multiplier: Rules = ((r".*", 1.0),)


def join(parts: Mapping[str, PartRules]) -> dict[str, list[tuple[str, Any]]]:
    """Rules of parts by the path of each -> the four rule lists of the whole, by the names of PartRules' fields."""
    return {
        field.name: [
            (rf"{re.escape(path)}/(?:{pattern})", value)
            for path, part in parts.items()
            for pattern, value in getattr(part, field.name)
        ]
        for field in dataclasses.fields(PartRules)
    }


def is_stacked(path: str) -> bool:
    """Whether a parameter holds all layers of a stack along its axis 0."""
    layer = _LAYER.search(path)
    return layer is not None and layer[1] is None


_LAYER = re.compile(r"(?:^|/)layers(?:_(\d+))?(?=/)")
_SHOWN = 10  # names listed in an error before it only counts


def paths(params: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by their paths, in the tree's order. None is no leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def match(rules: Rules, params: Any, *, dead: Literal["error", "ignore"] = "error") -> Any:
    """The value of the first matching rule for every parameter.

    Args:
      rules: ordered (regex, value or function of the layer number).
      params: tree of arrays or shapes.
      dead: whether a rule that no parameter takes its value from is an error. Ignore it for half a tree.

    Returns:
      A tree like params whose leaves are the values. A value may be a tuple: give `params` first to `jax.tree.map`.

    Raises:
      ValueError: all uncovered parameters and all dead rules, named at once; a function of the layer number on a
        parameter that is in no layer.
    """
    compiled = [re.compile(pattern) for pattern, _ in rules]
    leaves = paths(params)
    winners = {path: next((i for i, regex in enumerate(compiled) if regex.fullmatch(path)), None) for path in leaves}
    problems = []
    if uncovered := [path for path, winner in winners.items() if winner is None]:
        problems.append(
            f"{_count(uncovered, 'parameter')} matched by no rule, expected every one to be: {_listed(uncovered)}. "
            "Add a rule, or end the list with a rule for '.*'."
        )
    if dead == "error":
        alive = set(winners.values())
        problems += [_obituary(rules, compiled, i, leaves) for i in range(len(rules)) if i not in alive]
    if problems:
        raise ValueError("\n".join(problems))
    values = [_value(rules[winners[path]], path, leaf) for path, leaf in leaves.items()]  # type: ignore[index]
    return jax.tree.unflatten(jax.tree.structure(params), values)


def split(params: Any, mask: Any) -> tuple[Any, Any]:
    """Two trees like params: the leaves where mask is True and those where it is False, None in each other's places.

    Raises:
      ValueError: a value of mask is not a bool (layers of one stacked leaf cannot go to different halves).
    """
    for path, value in paths(mask).items():
        if not isinstance(value, bool):
            raise ValueError(f"mask of {path} is {value!r}, expected True or False. Decide for the whole parameter.")
    chosen = jax.tree.map(lambda leaf, keep: leaf if keep else None, params, mask)
    others = jax.tree.map(lambda leaf, keep: None if keep else leaf, params, mask)
    return chosen, others


def merge(first: Any, second: Any) -> Any:
    """The inverse of `split`, in either order.

    Raises:
      ValueError: a parameter is in both halves or in neither.
    """

    def either(path: Any, a: Any, b: Any) -> Any:
        if (a is None) == (b is None):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"parameter {name} is in {'neither half' if a is None else 'both halves'}, expected exactly one. "
                "Merge the two halves that one call of split gave."
            )
        return b if a is None else a

    return jax.tree_util.tree_map_with_path(either, first, second, is_leaf=lambda leaf: leaf is None)


def _value(rule: tuple[str, Any], path: str, leaf: Any) -> Any:
    """The rule's value for one parameter, with functions of the layer number called."""
    pattern, value = rule
    if not callable(value):
        return value
    layer = _LAYER.search(path)
    if layer is None:
        raise ValueError(
            f"value of rule {pattern!r} is a function of the layer number, expected a plain value for "
            f"{path}, which is in no layer. Put a rule for it before this one."
        )
    if layer[1] is not None:
        return value(int(layer[1]))
    return np.asarray([value(i) for i in range(leaf.shape[0])]).reshape(-1, *[1] * (len(leaf.shape) - 1))


def _obituary(rules: Rules, compiled: list[re.Pattern[str]], index: int, leaves: dict[str, Any]) -> str:
    """Why a rule is dead: earlier rules take all that it matches, or it matches nothing."""
    pattern = rules[index][0]
    matched = [path for path in leaves if compiled[index].fullmatch(path)]
    if matched:
        earlier = next(rules[i][0] for i in range(index) if compiled[i].fullmatch(matched[0]))
        return (
            f"rule {index} {pattern!r} decides nothing, expected at least one parameter: earlier rules "
            f"as {earlier!r} take all that it matches. Put it before them or remove it."
        )
    literal = re.sub(r"\\(.)", r"\1", pattern.replace(".*", ""))
    close = difflib.get_close_matches(literal, leaves, n=3, cutoff=0.3)
    return (
        f"rule {index} {pattern!r} matches no parameter, expected at least one. "
        + (f"Did you mean {_listed(close)}? " if close else "")
        + "A rule must match the whole path."
    )


def _count(names: list[str], noun: str) -> str:
    return f"1 {noun} is" if len(names) == 1 else f"{len(names)} {noun}s are"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
