"""Scenes drawn from a seed and told by an invented person.

A scene is a picture of coloured shapes, a sentence about some of them, the time of each word, and the path of the mouse
that the teller moved meanwhile: hovering over a shape while its words are spoken, travelling or resting in between.

A scene is a function of (world, seed, split, index) alone, whatever the number of processes and the order of work.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "green": (40, 158, 54),
    "blue": (38, 74, 214),
    "yellow": (250, 222, 40),
    "purple": (150, 52, 190),
    "cyan": (52, 208, 226),
    "orange": (250, 132, 20),
    "white": (248, 248, 248),
}
SHAPES = ("circle", "square", "triangle", "cross", "star", "diamond")
SIZES = ("small", "medium", "large")
SPLITS = ("train", "validation", "test")

# What a transcriber hears instead; other words lose their last letter.
MISHEARD = {
    "red": "read", "green": "grin", "blue": "blew", "yellow": "hello", "purple": "people", "cyan": "sign",
    "orange": "range", "white": "wide", "circle": "circus", "square": "squire", "triangle": "tangle", "cross": "crows",
    "star": "start", "diamond": "demand", "small": "smile", "medium": "media", "large": "lodge", "see": "sea",
    "there": "their", "picture": "pitcher", "image": "imagine", "and": "end",
}  # fmt: skip

_OPENINGS = (
    "in this picture i can see", "in this image we can see", "in this picture there is", "this is a picture with",
    "here we have", "i can see", "we can see", "there is",
)  # fmt: skip
_JOINERS = ("and", "and also", "and then", "with", "along with")
_RESTARTS = ("there is also", "i can also see", "we can also see", "then there is", "here is")
_CLOSINGS = (
    "in the background we can see a wall",
    "and that is all",
    "on a textured surface",
    "this is what i can see",
)


@dataclasses.dataclass(frozen=True)
class World:
    """What scenes are like. The defaults are the hard setting; `easy()` is what a small model learns in minutes."""

    size: int = 224  # side of the square picture, in pixels
    objects: tuple[int, int] = (3, 8)  # least and most objects in a scene
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = SIZES  # words for equal bands of log area, with gaps between them; () leaves size unnamed
    area: tuple[float, float] = (0.005, 0.10)  # least and most area of an object, as a share of the picture
    max_overlap: float = 0.1  # share of the smaller of two bounding boxes that the other may cover
    background: Literal["textured", "plain"] = "textured"
    held_out: float = 0.1  # share of the shape-colour pairs that no training scene shows
    # required: some object shares the shape and some the colour of each object mentioned. free: as it falls. none: no
    # two objects of one colour, so that the first colour word of a phrase already tells which object is meant.
    distractors: Literal["required", "free", "none"] = "required"
    mentions: tuple[int, int] = (1, 4)  # least and most objects mentioned; where fewer qualify, all of these
    order: Literal["random", "reading"] = (
        "random"  # in which they are mentioned; reading: rows of a third of the picture
    )
    phrase: Literal["shortest", "full"] = (
        "shortest"  # "red circle" where that is unique in the scene, or always "small red circle"
    )
    punctuation: bool = True  # written sentences with capitals and stops, or bare lower-case words
    wander: float = 0.5  # chance that the mouse moves during words without a place; else it leaves no trace then
    blur: float = 0.15  # chance that an utterance runs on across the border between two phrases
    transcript_noise: float = 0.0  # share of the words of the transcript that are dropped, doubled or misheard
    trace_rate: float = 20.0  # recorded mouse positions per second
    expressions: int = 2  # most referring expressions for each object
    relational: float = 0.85  # chance that an expression names its object by its place, "the circle left of the star"

    def __post_init__(self) -> None:
        """Raises ValueError where no scene can satisfy the settings."""
        for name, known in (("shapes", SHAPES), ("colours", tuple(COLOURS)), ("sizes", SIZES)):
            chosen = getattr(self, name)
            if not set(chosen) <= set(known) or len(set(chosen)) != len(chosen) or (not chosen and name != "sizes"):
                raise ValueError(f"World.{name} is {chosen}, expected distinct ones of {known}. Choose from these.")
        for name in ("objects", "mentions", "area"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"World.{name} is {(low, high)}, expected 0 < least <= most. Order the two numbers.")
        if self.expressions < 1 or not 0 <= self.relational <= 1:
            got = (self.expressions, self.relational)
            raise ValueError(
                f"World.expressions, World.relational is {got}, expected at least 1 and a share. Change them."
            )
        names = len(self.colours) * (1 if self.distractors == "none" else len(self.shapes) * max(1, len(self.sizes)))
        if self.objects[1] > names:
            raise ValueError(
                f"World.objects is {self.objects}, expected at most the {names} that can be told apart. "
                "Add colours, shapes or sizes, or ask for fewer objects."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every full name of an object, "small red circle": the categories, in order."""
        return tuple(
            " ".join(filter(None, words)) for words in itertools.product(self.sizes or ("",), self.colours, self.shapes)
        )

    @property
    def held_out_pairs(self) -> frozenset[tuple[str, str]]:
        """(colour, shape) pairs that only evaluation shows: a function of the world, not of a seed: splits agree.

        They run down the diagonals of the table of pairs, so that training still shows every shape and every colour.
        """
        table = [(c, s) for c in range(len(self.colours)) for s in range(len(self.shapes))]
        table.sort(key=lambda pair: ((pair[0] - pair[1]) % len(self.colours), pair[1]))
        chosen = table[: round(self.held_out * len(table))]
        return frozenset((self.colours[c], self.shapes[s]) for c, s in chosen)


def easy() -> World:
    """The setting of the demo: few, larger, distinct objects, all mentioned, a calm hand, clean utterances.

    Areas are those of circles with a radius of 8% to 17% of the side.
    """
    return World(
        size=64,
        objects=(3, 5),
        shapes=SHAPES[:4],
        colours=tuple(COLOURS)[:6],
        sizes=(),
        area=(0.0201, 0.0908),
        max_overlap=0.0,
        distractors="none",
        mentions=(5, 5),
        punctuation=False,
        wander=0.0,
        blur=0.0,
        relational=0.0,
    )


PRESETS: dict[str, Callable[[], World]] = {"default": World, "easy": easy}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene. Coordinates are fractions of the picture."""

    size: str  # "" where the world has no words for sizes
    colour: str
    shape: str
    area: float  # share of the picture
    outline: np.ndarray  # float64[K, 2], the polygon that is drawn
    box: tuple[float, float, float, float]  # xyxy of the outline

    @property
    def name(self) -> str:
        """The full name, "small red circle"."""
        return " ".join(filter(None, (self.size, self.colour, self.shape)))

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclasses.dataclass(frozen=True)
class Word:
    """One spoken word."""

    text: str  # as in the caption, punctuation included
    start: float  # seconds
    end: float
    thing: int  # index of the object that its phrase describes, -1 = none


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture, told once. `record` is what the publisher's file holds of it; the rest only its maker knows."""

    world: World
    seed: int
    split: str
    index: int
    things: tuple[Thing, ...]  # in drawing order, largest first
    words: tuple[Word, ...]
    record: dict[str, Any]  # the 7 fields of a localized narrative

    @property
    def image_id(self) -> int:
        """Number of the picture, positive, different in every split."""
        return _image_id(self.split, self.index)

    @property
    def mentioned(self) -> tuple[int, ...]:
        """Indices of the objects that are mentioned, in order of mention."""
        return tuple(dict.fromkeys(word.thing for word in self.words if word.thing >= 0))


def scene(world: World, seed: int, index: int, split: str = "train") -> Scene:
    """The scene with this number. Pure: the same answer on every machine and in every process.

    Raises:
      ValueError: `split` is not one of SPLITS, or the world is too crowded for a scene to be found.
    """
    rng = generator(seed, split, index, "scene")
    # Drawn once, outside the trials: full scenes fit less often and must not become rarer for it.
    objects = int(rng.integers(world.objects[0], world.objects[1] + 1))
    for _ in range(1000):
        attributes = _attributes(world, objects, split, rng)
        candidates = _mentionable(world, attributes)
        enough = len(candidates) >= min(world.mentions[0], objects)
        if enough and (things := _place(world, attributes, rng)) is not None:
            break
    else:
        raise ValueError(f"World is {world}, expected one with room for its objects. Ask for fewer or smaller objects.")
    # Placing has sorted the objects by size; names are distinct, so they lead back to the candidates.
    qualified = [k for k, thing in enumerate(things) if (thing.size, thing.colour, thing.shape) in candidates]
    least, most = (min(edge, len(qualified)) for edge in world.mentions)
    count = int(rng.integers(least, most + 1))
    mentioned = [qualified[k] for k in rng.permutation(len(qualified))[:count]]
    if world.order == "reading":
        mentioned.sort(key=lambda k: (int(things[k].center[1] * 3), things[k].center[0]))
    chunks = _sentences(world, [(k, _phrase(world, things[k], things)) for k in mentioned], rng)
    words, spans = _speak(chunks, rng)
    record = {
        "dataset_id": f"synthetic_{split}",
        "image_id": str(_image_id(split, index)),
        "annotator_id": int(rng.integers(1, 200)),
        "caption": " ".join(word.text for word in words),
        "timed_caption": _transcribe(world, words, rng),
        "traces": _trace(world, things, spans, rng),
        "voice_recording": "",
    }
    return Scene(world, seed, split, index, tuple(things), tuple(words), record)


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8[S, S, 3]."""
    world, rng = scene.world, generator(scene.seed, scene.split, scene.index, "picture")
    picture = PIL.Image.fromarray(_background(world, rng))
    shade = rng.integers(-14, 15, (len(scene.things), 3))
    for thing, shift in zip(scene.things, shade.tolist(), strict=True):
        colour = tuple(min(255, max(0, value + by)) for value, by in zip(COLOURS[thing.colour], shift, strict=True))
        left_top, mask = _cover(thing, world.size)
        picture.paste(colour, left_top, mask)
    return np.asarray(picture)


def visible(scene: Scene, k: int) -> np.ndarray | None:
    """How much of each pixel shows object `k`, where others hide some of it: float[S, S]; None where none does."""
    thing, side = scene.things[k], scene.world.size
    hiding = [other for other in scene.things[k + 1 :] if _overlap(thing.box, other.box) > 0]
    if not hiding:
        return None
    own = _covered(thing, side)
    shown: np.ndarray = own * np.prod([1 - _covered(other, side) for other in hiding], axis=0)
    return None if np.array_equal(shown, own) else shown


def _covered(thing: Thing, side: int) -> np.ndarray:
    """float[S, S]: share of each pixel that the object covers."""
    picture = PIL.Image.new("L", (side, side))
    left_top, mask = _cover(thing, side)
    picture.paste(mask, left_top)
    return np.asarray(picture) / 255


def _cover(thing: Thing, side: int) -> tuple[tuple[int, int], PIL.Image.Image]:
    """Where the object is drawn, left and top in pixels, and how much of each pixel it covers there, 0 to 255."""
    left, top = (math.floor(edge * side) for edge in thing.box[:2])
    right, bottom = (math.ceil(edge * side) for edge in thing.box[2:])
    # Drawn 4 times too large and averaged: a pixel on the edge is covered by the share that the polygon covers.
    fine = (thing.outline * side - (left, top)) * 4
    mask = PIL.Image.new("L", ((right - left) * 4, (bottom - top) * 4))
    PIL.ImageDraw.Draw(mask).polygon(fine.reshape(-1).tolist(), fill=255)
    return (left, top), mask.reduce(4)


def _image_id(split: str, index: int) -> int:
    # From 1: several readers of COCO files take 0 for "none".
    return SPLITS.index(split) * 100_000_000 + index + 1


_PURPOSES = ("scene", "picture", "expressions", "questions")


def generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """Random numbers of a scene for one purpose: what is drawn for one leaves the others as they are.

    Raises ValueError where `split` is not one of SPLITS.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {SPLITS}. Choose one of these.")
    return np.random.default_rng((seed, SPLITS.index(split), index, _PURPOSES.index(purpose)))


# What is in the scene


def _attributes(world: World, count: int, split: str, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(size, colour, shape) of each object, all distinct; distractors come from few shapes and colours."""
    colours, shapes = list(world.colours), list(world.shapes)
    if world.distractors == "required":
        colours = _some(colours, int(rng.integers(2, max(2, count // 2) + 1)), rng)
        shapes = _some(shapes, int(rng.integers(2, max(2, count // 2) + 1)), rng)
    hidden = world.held_out_pairs if split == "train" else frozenset()
    cells = [cell for cell in itertools.product(world.sizes or ("",), colours, shapes) if cell[1:] not in hidden]
    chosen = [cells[k] for k in rng.permutation(len(cells)).tolist()]
    if world.distractors == "none":
        chosen = list({cell[1]: cell for cell in chosen}.values())
    return chosen[:count] if len(chosen) >= count else []


def _some(items: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [items[k] for k in rng.permutation(len(items))[:count].tolist()]


def _mentionable(world: World, attributes: list[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
    """The objects that may be mentioned: with distractors, those that share both shape and colour with others."""
    if world.distractors != "required":
        return set(attributes)
    colours = [colour for _, colour, _ in attributes]
    shapes = [shape for _, _, shape in attributes]
    return {cell for cell in attributes if colours.count(cell[1]) > 1 and shapes.count(cell[2]) > 1}


def _place(world: World, attributes: list[tuple[str, str, str]], rng: np.random.Generator) -> list[Thing] | None:
    """Gives each object an area within the band of its size word and a uniform position; None where they do not fit.

    Largest first, each at a uniform position inside the picture where its box and any other's share no more than
    `max_overlap` of the smaller of the two.
    """
    low, high = (math.log(edge) for edge in world.area)
    bands = max(1, len(world.sizes))
    # Bands are parted by gaps a quarter of a band wide: no object lies between "small" and "medium".
    band = (high - low) / (bands + (bands - 1) / 4)
    sized = []
    for cell, at in zip(attributes, rng.random(len(attributes)).tolist(), strict=True):
        rank = world.sizes.index(cell[0]) if world.sizes else 0
        sized.append((math.exp(low + band * (rank * 1.25 + at)), cell))
    sized.sort(reverse=True)
    things: list[Thing] = []
    taken: list[tuple[float, float, float, float]] = []
    for area, (size, colour, shape) in sized:
        outline = _unit_outline(shape) * math.sqrt(area)
        half_x, half_y = outline.max(0).tolist()
        for u, v in rng.random((40, 2)).tolist():
            x, y = half_x + u * (1 - 2 * half_x), half_y + v * (1 - 2 * half_y)
            box = (x - half_x, y - half_y, x + half_x, y + half_y)
            if all(_overlap(box, other) <= world.max_overlap for other in taken):
                break
        else:
            return None
        taken.append(box)
        things.append(Thing(size, colour, shape, area, outline + np.asarray([x, y]), box))
    return things


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area shared by two boxes, as a share of the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


@functools.cache
def _unit_outline(shape: str) -> np.ndarray:
    """float64[K, 2]: the polygon with area 1 whose box is centred on (0, 0); y runs down."""

    def ring(corners: int, radii: Sequence[float], turn: float) -> np.ndarray:
        angle = 2 * math.pi * (np.arange(corners) / corners + turn)
        return np.stack([np.cos(angle), np.sin(angle)], -1) * np.resize(radii, corners)[:, None]

    arm = 0.36  # half the width of a cross's arm, as a share of half its extent
    polygon = {
        "circle": lambda: ring(40, [1], 0),
        "square": lambda: ring(4, [1], 1 / 8),
        "triangle": lambda: ring(3, [1], -1 / 4),
        "diamond": lambda: ring(4, [1], 0) * (0.72, 1),
        "star": lambda: ring(10, [1, 0.42], -1 / 4),
        "cross": lambda: np.asarray(
            [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
             (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
        ),
    }[shape]()  # fmt: skip
    polygon = polygon - (polygon.min(0) + polygon.max(0)) / 2
    polygon = polygon / math.sqrt(polygon_area(polygon))
    polygon.setflags(write=False)
    return polygon


def polygon_area(outline: np.ndarray) -> float:
    """Area of a simple polygon float[K, 2] (the shoelace formula)."""
    x, y = outline.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _background(world: World, rng: np.random.Generator) -> np.ndarray:
    """uint8[S, S, 3], gray with a tint; textured: soft clouds, a weave of two waves, and grain."""
    side, level = world.size, rng.integers(84, 150) + rng.integers(-8, 9, 3)
    if world.background == "plain":
        return np.broadcast_to(level.astype(np.uint8), (side, side, 3)).copy()
    cells = int(rng.integers(3, 8))
    clouds = PIL.Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8)).resize(
        (side, side), PIL.Image.Resampling.BICUBIC
    )
    slope = rng.random((2, 2)) * 2 - 1
    along = np.arange(side) * (2 * math.pi * 9 / side)
    weave = np.sin(along * slope[0, 0] + (along * slope[0, 1])[:, None]) + np.sin(
        along * slope[1, 0] + (along * slope[1, 1])[:, None]
    )
    grain = rng.integers(-9, 10, (side, side), np.int16) + np.rint(7 * weave).astype(np.int16)
    pixels = np.asarray(clouds).astype(np.int16)
    return np.clip((pixels - 128) // 5 + level.astype(np.int16) + grain[..., None], 0, 255).astype(np.uint8)


# What is said, and when


def _phrase(world: World, thing: Thing, things: Sequence[Thing]) -> str:
    """Words that describe this object and no other of the scene."""
    alike = sum(other.colour == thing.colour and other.shape == thing.shape for other in things)
    return thing.name if world.phrase == "full" or alike > 1 else f"{thing.colour} {thing.shape}"


def _sentences(world: World, phrases: list[tuple[int, str]], rng: np.random.Generator) -> list[tuple[int, list[str]]]:
    """Phrases [(object, words)] -> chunks [(object or -1, words)] of a told story, in turn without and with a place."""

    def pick(options: Sequence[str]) -> list[str]:
        return options[int(rng.integers(len(options)))].split()

    chunks: list[tuple[int, list[str]]] = []
    starts = [0]  # chunks that begin a sentence
    for number, (thing, phrase) in enumerate(phrases):
        if not number:
            lead = pick(_OPENINGS)
        elif rng.random() < 0.3:
            starts.append(len(chunks))
            lead = pick(_RESTARTS)
        else:
            lead = pick(_JOINERS)
        chunks.append((-1, [*lead, "an" if phrase[0] in "aeiou" else "a"]))
        chunks.append((thing, phrase.split()))
    if rng.random() < 0.2:
        starts.append(len(chunks))
        chunks.append((-1, pick(_CLOSINGS)))
    if world.punctuation:
        for start in starts:
            words = chunks[start][1]
            words[:] = [word.upper() if word == "i" else word for word in words]
            words[0] = words[0][0].upper() + words[0][1:]
            if start:
                chunks[start - 1][1][-1] += "."
        chunks[-1][1][-1] += "."
    return chunks


def _speak(
    chunks: list[tuple[int, list[str]]], rng: np.random.Generator
) -> tuple[list[Word], list[tuple[int, float, float]]]:
    """Chunks -> words with times, and (object or -1, start, end) of each chunk. A short pause parts the chunks."""
    pace = 0.8 + 0.5 * rng.random()
    clock = 0.3 + 0.7 * rng.random()
    words: list[Word] = []
    spans = []
    for thing, texts in chunks:
        begin = clock
        for text, stretch in zip(texts, rng.random(len(texts)).tolist(), strict=True):
            end = clock + pace * (0.12 + 0.05 * len(text)) * (0.8 + 0.45 * stretch)
            words.append(Word(text, round(clock, 3), round(end, 3), thing))
            clock = end
        spans.append((thing, begin, clock))
        clock += 0.12 + 0.3 * rng.random()
    return words, spans


def _transcribe(world: World, words: list[Word], rng: np.random.Generator) -> list[dict[str, Any]]:
    """The timed transcript: utterances of 1 to 4 words that mostly end where a phrase ends, with its noise."""
    groups: list[list[Word]] = []
    room = 0
    for word in words:
        border = not groups or groups[-1][-1].thing != word.thing
        if room == 0 or (border and rng.random() >= world.blur):
            groups.append([])
            room = int(rng.integers(1, 5))
        groups[-1].append(word)
        room -= 1
    utterances = []
    for group in groups:
        heard = [text for word in group for text in _hear(world, word.text, rng)]
        if heard:
            utterances.append({"utterance": " ".join(heard), "start_time": group[0].start, "end_time": group[-1].end})
    return utterances


def _hear(world: World, text: str, rng: np.random.Generator) -> list[str]:
    """One word of the caption -> what the transcript has for it: itself, nothing, itself twice, or another word."""
    if not world.transcript_noise:
        return [text]
    chance, kind = rng.random(2).tolist()
    if chance >= world.transcript_noise:
        return [text]
    plain = text.lower().strip(".")
    return ([], [text, text], [MISHEARD.get(plain, plain[:-1] or "uh")])[int(kind * 3)]


# Where the mouse is


def _trace(
    world: World, things: Sequence[Thing], spans: list[tuple[int, float, float]], rng: np.random.Generator
) -> list[list[dict[str, float]]]:
    """The recorded path: strokes of points {x, y, t}, x and y in fractions of the picture, t in seconds.

    Over an object the hand goes round inside its outline's box, with a tremor; between objects it travels straight,
    slow at both ends, or, without `wander`, it is lifted, so that the words in between have no trace.
    """
    here = rng.random(2)
    strokes: list[list[dict[str, float]]] = []
    path: list[np.ndarray] = []
    for number, (target, begin, end) in enumerate(spans):
        lead, lag, turn, speed, reach, coin = rng.random(6).tolist()
        if target >= 0:
            # The hand arrives a little before the first word and leaves a little after the last.
            t = np.arange(begin - 0.05 * lead, end + 0.05 * lag, 1 / world.trace_rate)
            x0, y0, x1, y1 = things[target].box
            half = np.asarray([x1 - x0, y1 - y0]) / 2
            angle = 2 * math.pi * (turn + (1.0 + speed) * (t - begin))
            circle = np.stack([np.cos(angle), np.sin(angle)], -1)
            tremor = np.clip(rng.normal(0, 0.08, (len(t), 2)), -0.2, 0.2)
            xy = np.asarray(things[target].center) + half * ((0.45 + 0.3 * reach) * circle + tremor)
            path.append(np.column_stack([xy, t]))
            here = xy[-1]
        elif coin < world.wander:
            after = things[spans[number + 1][0]].center if number + 1 < len(spans) else rng.random(2)
            t = np.arange(begin + 0.06, end + 0.06, 1 / world.trace_rate)
            share = np.linspace(0, 1, len(t))[:, None]
            share = share * share * (3 - 2 * share)
            tremor = np.clip(rng.normal(0, 0.01, (len(t), 2)), -0.03, 0.03)
            path.append(np.column_stack([here * (1 - share) + np.asarray(after) * share + tremor, t]))
        else:
            strokes.append(_stroke(path))
            path = []
    strokes.append(_stroke(path))
    return [stroke for stroke in strokes if stroke]


def _stroke(path: list[np.ndarray]) -> list[dict[str, float]]:
    if not path:
        return []
    points = np.round(np.concatenate(path), 4).tolist()
    return [{"x": x, "y": y, "t": t} for x, y, t in points]
