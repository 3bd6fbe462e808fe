"""Expressions that each name one object of a scene: by colour and shape, by size, by its place among the others.

"the red circle", "largest blue cross", "the red shape left of the blue star", "circle between the red star and the
white cross". Which object is meant does not hang on how the words are taken: an expression is made only where a strict
reading of them (well to the left, and more left than above) accepts its object and a generous one (a little left will
do) accepts no other. What the words say is kept beside the text, so that a `Reader` that knows the scene can be made to
ignore colours, shapes or relations: what it still gets right needs none of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from data_pipelines.synthetic_scenes import Scene, Thing, generator

Kind = Literal["attribute", "size", "relation"]
KINDS: tuple[Kind, ...] = ("attribute", "size", "relation")
Ignored = Literal["", "colours", "shapes", "relations"]
Reading = Literal["strict", "plain", "generous"]
Objects = frozenset[int]  # indices into the objects of a scene
_T = TypeVar("_T")

_SAID = {
    "largest": ("largest", "biggest"),
    "smallest": ("smallest",),
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
    "closest": ("closest to", "nearest to"),
    "between": ("between",),
}
EXTREMES = ("largest", "smallest")
RELATIONS = ("left", "right", "above", "below", "closest", "between")

# How far apart strict and generous readings are. Distances are fractions of the picture, from middle to middle.
_ASIDE = 0.03  # no further than this to the wrong side still passes for "left of"
_FACTOR = 1.25  # sizes and distances closer than this pass for equal
_NEAR = 0.01  # gaps between boxes closer than this pass for equal


class Words(NamedTuple):
    """What is said of one object; "" = left open."""

    size: str = ""
    colour: str = ""
    shape: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.size, self.colour, self.shape or "shape")))

    def fit(self, thing: Thing) -> bool:
        said = zip(self, (thing.size, thing.colour, thing.shape), strict=True)
        return all(word in ("", true) for word, true in said)


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What an expression says: of the object itself, and of where it is."""

    head: Words
    extreme: str = ""  # one of EXTREMES
    relation: str = ""  # one of RELATIONS
    anchors: tuple[Words, ...] = ()  # what it is left of, closest to; the two that it is between

    @property
    def kind(self) -> Kind:
        """What has to be understood: where things are, else how large they are, else colours and shapes."""
        if self.relation:
            return "relation"
        return "size" if self.extreme or self.head.size else "attribute"


@dataclasses.dataclass(frozen=True)
class Expression:
    """A text that names one object of a scene."""

    text: str  # lower-case, no stop
    thing: int  # index of the object
    meaning: Meaning


def phrase(thing: Thing) -> str:
    """What a region is called, with or without a picture around it: "a small red circle"."""
    return f"{'an' if thing.name[0] in 'aeiou' else 'a'} {thing.name}"


def expressions(scene: Scene) -> tuple[Expression, ...]:
    """The expressions of a scene, at most `world.expressions` for each object, in order of the objects. Pure.

    An expression of kind "relation" leaves several objects open without its relation. In worlds with required
    distractors every expression does so without its colours.
    """
    world, things = scene.world, scene.things
    rng = generator(scene.seed, scene.split, scene.index, "expressions")
    by_itself, by_place = _pool(scene, plain), _pool(scene, placed)
    room = dict.fromkeys(range(len(things)), world.expressions)
    found = []
    for _ in range(world.expressions * len(things)):
        pool = by_place if rng.random() < world.relational else by_itself
        # What it goes by is chosen first, then the object: some forms can be said of nearly everything, some rarely.
        forms = {form: [k for k in by_thing if room[k] and by_thing[k]] for form, by_thing in pool.items()}
        open_forms = [form for form, ready in forms.items() if ready]
        if open_forms:
            form = pick(open_forms, rng)
            k = pick(forms[form], rng)
            room[k] -= 1
            meanings = pool[form][k]
            meaning = pick(meanings, rng)
            meanings.remove(meaning)
            found.append(Expression(pick(("the ", ""), rng) + say(meaning, rng), k, meaning))
    return tuple(sorted(found, key=lambda expression: expression.thing))


def _pool(scene: Scene, ways: Callable[[Reader, int], Iterator[Meaning]]) -> dict[str, dict[int, list[Meaning]]]:
    """{what it goes by: {object: what can be said}}, without what would be too easy in this world."""
    reader = Reader(scene.things)
    colour_blind = Reader(scene.things, ignores="colours")
    pool: dict[str, dict[int, list[Meaning]]] = {}
    for k in range(len(scene.things)):
        for meaning in ways(reader, k):
            if scene.world.distractors != "required" or colour_blind.read(meaning) != {k}:
                form = meaning.relation or meaning.extreme or meaning.kind
                pool.setdefault(form, {}).setdefault(k, []).append(meaning)
    return pool


def plain(reader: Reader, k: int) -> Iterator[Meaning]:
    """What names object `k` by itself."""
    size, colour, shape = reader.describe(k)
    for c, s in ((colour, shape), ("", shape), (colour, "")):
        short, long = Words("", c, s), Words(size, c, s)
        if reader.fitting(short) == {k}:
            yield Meaning(short)
            continue
        if size and reader.fitting(long) == {k}:
            yield Meaning(long)
        for extreme in EXTREMES:
            if reader.read(meaning := Meaning(short, extreme), "generous") == {k}:
                yield meaning


def placed(reader: Reader, k: int) -> Iterator[Meaning]:
    """What names object `k` by its place and not without."""
    _, colour, shape = reader.describe(k)
    others = [j for j in range(len(reader)) if j != k]
    around: list[tuple[tuple[int, ...], str]]
    around = [((j,), relation) for j in others for relation in RELATIONS if relation != "between"]
    around += [(pair, "between") for pair in itertools.combinations(others, 2)]
    for head in (Words("", colour, shape), Words("", "", shape), Words("", colour), Words()):
        fitting = reader.fitting(head)
        for anchors, relation in around:
            if len(fitting - set(anchors)) > 1:
                meaning = Meaning(head, relation=relation, anchors=tuple(map(reader.name, anchors)))
                if reader.read(meaning, "generous") == {k} == reader.read(meaning, "strict"):
                    yield meaning


def say(meaning: Meaning, rng: np.random.Generator, noun: str = "shape") -> str:
    """In words, without an article; `noun` stands for an object whose shape is left open."""
    head = meaning.head
    words = [pick(_SAID[meaning.extreme], rng)] if meaning.extreme else []
    words += [head.size, head.colour, head.shape or noun]
    if meaning.relation:
        anchors = [f"the {anchor}" for anchor in meaning.anchors]
        turned = anchors[::-1] if rng.random() < 0.5 else anchors
        words += [pick(_SAID[meaning.relation], rng), " and ".join(turned)]
    return " ".join(filter(None, words))


def pick(items: Sequence[_T], rng: np.random.Generator) -> _T:
    """One of them, each as likely."""
    return items[int(rng.integers(len(items)))]


class Reader:
    """Reads expressions with a scene before its eyes: not its pixels but the list of its objects.

    Args:
      things: the objects of the scene.
      ignores: what of an expression it does not understand and passes over: colours and shapes in all of its words, or
        the relation (then the object may be any that fits, but for the one that it is said to be left of).
    """

    def __init__(self, things: Sequence[Thing], ignores: Ignored = "") -> None:
        self._things, self._ignores = things, ignores
        self._fitting: dict[Words, Objects] = {}
        self._middles = np.asarray([thing.center for thing in things]).reshape(-1, 2)
        boxes = np.asarray([thing.box for thing in things]).reshape(-1, 4)
        apart = np.maximum(boxes[:, None, :2] - boxes[None, :, 2:], boxes[None, :, :2] - boxes[:, None, 2:])
        # Between middles, and between boxes: what a person takes for the distance lies between the two.
        self._distance = np.linalg.norm(self._middles[:, None] - self._middles, axis=-1).tolist()
        self._gap = np.linalg.norm(np.maximum(apart, 0), axis=-1).tolist()
        self._sizes = [
            (thing.area, (b[2] - b[0]) * (b[3] - b[1])) for thing, b in zip(things, boxes.tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return len(self._things)

    def describe(self, k: int) -> Words:
        """All that can be said of object `k` itself."""
        thing = self._things[k]
        return Words(thing.size, thing.colour, thing.shape)

    def name(self, k: int) -> Words:
        """Colour and shape of object `k`, and its size where these are not enough to tell it."""
        full = self.describe(k)
        short = full._replace(size="")
        return short if self.fitting(short) == {k} else full

    def fitting(self, words: Words) -> Objects:
        """The objects that the words fit."""
        if words not in self._fitting:
            known = words
            if self._ignores == "colours":
                known = words._replace(colour="")
            elif self._ignores == "shapes":
                known = words._replace(shape="")
            self._fitting[words] = frozenset(k for k, thing in enumerate(self._things) if known.fit(thing))
        return self._fitting[words]

    def read(self, meaning: Meaning, reading: Reading = "plain") -> Objects:
        """The objects that the expression may mean; a guess among them is right in one of so many cases."""
        found = self.fitting(meaning.head)
        if meaning.extreme:
            found = self._extreme(meaning.extreme, found, reading)
        if not meaning.relation:
            return found
        choices = [self.fitting(anchor) for anchor in meaning.anchors]
        if self._ignores == "relations":
            return found.difference(*choices)
        placed = set[int]()
        for anchors in itertools.product(*choices):
            if len(set(anchors)) == len(anchors):
                placed |= self._placed(meaning.relation, anchors, found.difference(anchors), reading)
        return frozenset(placed)

    def _extreme(self, extreme: str, among: Objects, reading: Reading) -> Objects:
        sign = 1 if extreme == "largest" else -1
        slack = math.log(_FACTOR) if reading == "generous" else 0.0
        found = set[int]()
        for measure in range(2 if reading == "generous" else 1):
            sizes = {k: sign * math.log(self._sizes[k][measure]) for k in among}
            found |= {k for k, size in sizes.items() if size >= max(sizes.values()) - slack}
        return frozenset(found)

    def _placed(self, relation: str, anchors: Sequence[int], among: Objects, reading: Reading) -> set[int]:
        if relation == "closest":
            return self._closest(anchors[0], among, reading)
        if relation == "between":
            return {k for k in among if self._between(k, anchors, reading)}
        return {k for k in among if self._aside(relation, k, anchors[0], reading)}

    def _closest(self, anchor: int, among: Objects, reading: Reading) -> set[int]:
        generous = reading == "generous"
        found = set[int]()
        for measure in (self._distance, self._gap) if generous else (self._distance,):
            apart = {k: measure[anchor][k] for k in among}
            limit = min(apart.values(), default=0.0)
            limit = limit * _FACTOR + _NEAR if generous else limit
            found |= {k for k, distance in apart.items() if distance <= limit}
        return found

    def _aside(self, relation: str, k: int, anchor: int, reading: Reading) -> bool:
        right, down = (self._middles[k] - self._middles[anchor]).tolist()
        along, across = {
            "left": (-right, down),
            "right": (right, down),
            "above": (-down, right),
            "below": (down, right),
        }[relation]
        if reading == "strict":
            return along >= max(_ASIDE, abs(across))
        return along > (-_ASIDE if reading == "generous" else 0)

    def _between(self, k: int, anchors: Sequence[int], reading: Reading) -> bool:
        """Not before one and not after the other, and not far from the straight line from one to the other."""
        first, second = anchors
        x, y = (self._middles[k] - self._middles[first]).tolist()
        to_x, to_y = (self._middles[second] - self._middles[first]).tolist()
        square = to_x * to_x + to_y * to_y or 1e-9
        along, aside = (x * to_x + y * to_y) / square, abs(x * to_y - y * to_x) / square
        margin, width = {"strict": (0.2, 0.15), "plain": (0.0, 0.3), "generous": (-0.1, 0.5)}[reading]
        return margin <= along <= 1 - margin and aside <= width
