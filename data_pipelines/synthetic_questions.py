"""Questions about a scene with answers of one word: how many, is there, what colour, what shape, which side.

Whatever a question asks about is named so that it is that object and no other however the words are taken (see
`synthetic_expressions`). Yes and no come equally often; numbers as evenly as scenes allow.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import numpy as np

from data_pipelines.synthetic_expressions import Meaning, Reader, Words, pick, placed, plain, say
from data_pipelines.synthetic_scenes import Scene, World, generator

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


class Question(NamedTuple):
    """One question and its answer."""

    text: str  # a sentence
    answer: str  # one lower-case word


def questions(scene: Scene) -> tuple[Question, ...]:
    """One question of each form that can be asked of the scene, in a random order. Pure."""
    rng = generator(scene.seed, scene.split, scene.index, "questions")
    reader = Reader(scene.things)
    asked = (
        _how_many(scene.world, reader, rng),
        _is_there(scene.world, reader, rng),
        _which(reader, "colour", rng),
        _which(reader, "shape", rng),
        _side(reader, rng),
    )
    found = [question for question in asked if question is not None]
    return tuple(found[k] for k in rng.permutation(len(found)).tolist())


def _how_many(world: World, reader: Reader, rng: np.random.Generator) -> Question:
    # A number is chosen first, then what is there so often: most colours and shapes are there once or not at all.
    by_number: dict[int, list[Words]] = {}
    for colour, shape in itertools.product(("", *world.colours), ("", *world.shapes)):
        words = Words("", colour, shape)
        by_number.setdefault(len(reader.fitting(words)), []).append(words)
    number = pick([number for number in by_number if number < len(NUMBERS)], rng)
    words = pick(by_number[number], rng)
    noun = f"{words}es" if words.shape == "cross" else f"{words}s"
    return Question(f"How many {noun} are there?", NUMBERS[number])


def _is_there(world: World, reader: Reader, rng: np.random.Generator) -> Question | None:
    pairs = [Words("", colour, shape) for colour, shape in itertools.product(world.colours, world.shapes)]
    there = rng.random() < 0.5
    found = [words for words in pairs if bool(reader.fitting(words)) == there]
    if not found:
        return None
    words = pick(found, rng)
    return Question(f"Is there {'an' if str(words)[0] in 'aeiou' else 'a'} {words}?", "yes" if there else "no")


def _which(reader: Reader, asks: Literal["colour", "shape"], rng: np.random.Generator) -> Question | None:
    """Of an object that can be named without what is asked for."""
    for k in rng.permutation(len(reader)).tolist():
        ways = [[m for m in ways if not getattr(m.head, asks)] for ways in (plain(reader, k), placed(reader, k))]
        if ways := [meanings for meanings in ways if meanings]:
            # "What shape is the red shape" would be odd.
            named = say(pick(pick(ways, rng), rng), rng, noun="one" if asks == "shape" else "shape")
            return Question(f"What {asks} is the {named}?", getattr(reader.describe(k), asks))
    return None


def _side(reader: Reader, rng: np.random.Generator) -> Question | None:
    """Of two objects that clearly lie so, or clearly the other way round."""
    first, second = rng.permutation(len(reader)).tolist()[:2] if len(reader) > 1 else (0, 0)
    one, other = reader.name(first), reader.name(second)
    sides = [side for side in _OPPOSITE if reader.read(Meaning(one, "", side, (other,)), "strict")]
    if first == second or not sides:
        return None
    true = pick(sides, rng)
    said, answer = (true, "yes") if rng.random() < 0.5 else (_OPPOSITE[true], "no")
    return Question(f"Is the {say(Meaning(one, '', said, (other,)), rng)}?", answer)
