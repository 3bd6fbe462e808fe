"""A sentence and its places on a picture: each word in a colour, its place marked on the picture in the same colour.

Words in a row that name one place (a phrase, "small red circle") share a colour, a mark and a label; words without a
place are gray. Everything given is in pixels of the picture; everything returned is an RGB picture of PIL.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from pixel_align.geometry import clip_boxes, clip_points

Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]
Places = Sequence[np.ndarray | None] | np.ndarray

# Dark enough to carry white letters; the order keeps neighbours far apart in hue, the first few for most eyes.
PALETTE = (
    (31, 99, 214), (208, 62, 25), (18, 128, 82), (136, 58, 196), (190, 24, 93), (14, 116, 144), (146, 84, 12),
    (77, 104, 16), (79, 70, 229), (178, 34, 34), (15, 118, 110), (134, 25, 143), (107, 68, 50), (71, 85, 105),
)  # fmt: skip
INK, GRAY, PAGE = (31, 35, 40), (128, 134, 142), (255, 255, 255)
# The page is drawn this many times too large and averaged: PIL's lines and discs have no soft edges of their own.
_FINE = 2


@dataclasses.dataclass
class _Mark:
    """One place on the picture, in pixels of the finished picture, and the words that share it."""

    words: list[int]
    colour: tuple[int, int, int]
    path: np.ndarray  # [P, 2]
    # Where its first word is: later ones are compared with that, so that no chain of words drifts.
    first: tuple[float, float]
    target: np.ndarray | None = None  # [2]
    box: np.ndarray | None = None  # [4]
    mask: np.ndarray | None = None  # bool[h, w] of the given picture

    @property
    def at(self) -> tuple[float, float]:
        x, y = self.path.mean(0).tolist()
        return x, y


def annotate(
    image: np.ndarray,
    words: Sequence[str],
    points: Places,
    boxes: Places | None = None,
    masks: Places | None = None,
    title: str | None = None,
    *,
    side: int = 960,
    merge: float = 0.04,
) -> PIL.Image.Image:
    """The picture with the places of the words marked on it, and the sentence below.

    Args:
      image: uint8[H, W, 3] of any size; its longest side becomes `side` pixels.
      words: the words of the sentence, W of them.
      points: W times float[P, 2], or None for a word without a place. The mark sits at their mean; three or more are
        also drawn as a path.
      boxes: W times float[4] xyxy, or None.
      masks: W times bool[H, W], or None.
      title: a line above the picture.
      side: longest side of the picture on the page, in pixels; letters grow with it.
      merge: neighbouring words whose marks are closer than this share of the longest side become one mark; 0 = never.

    Raises:
      ValueError: lengths differ, or a place is not a finite array of its shape.
    """
    scale = _scale(image, side)
    marks = _marks(words, points, scale, merge * side, image.shape, boxes=boxes, masks=masks)
    return _page(image, words, marks, title, None, side)


def comparison(
    image: np.ndarray,
    words: Sequence[str],
    points: Places,
    targets: Places,
    title: str | None = None,
    *,
    side: int = 960,
    merge: float = 0.04,
) -> PIL.Image.Image:
    """Predicted places (discs) beside true ones (rings), joined by a line; other arguments as in `annotate`.

    `targets` are W times float[P, 2], or None; a word with only one of the two places is drawn with that one alone,
    gray if it has no prediction.
    """
    scale = _scale(image, side)
    marks = _marks(words, points, scale, merge * side, image.shape, targets=targets)
    return _page(image, words, marks, title, "disc: predicted   ring: true", side)


def sheet(pictures: Sequence[PIL.Image.Image], columns: int, gap: int = 16) -> PIL.Image.Image:
    """Pictures of any sizes -> one, rows of `columns`, top middle of each cell, on white."""
    if not pictures or columns < 1:
        raise ValueError(
            f"sheet is {len(pictures)} pictures in {columns} columns, expected at least 1 of both. Give pictures."
        )
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(picture.width for picture in pictures)
    heights = [max(picture.height for picture in row) for row in rows]
    columns = min(columns, len(pictures))
    size = (columns * width + gap * (columns + 1), sum(heights) + gap * (len(rows) + 1))
    page = PIL.Image.new("RGB", size, PAGE)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            page.paste(picture, (gap + column * (width + gap) + (width - picture.width) // 2, top))
        top += height + gap
    return page


# From places to marks


def _scale(image: np.ndarray, side: int) -> float:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(
            f"image is {image.dtype}{list(image.shape)}, expected uint8[H, W, 3]. Read it with read_image."
        )
    return side / max(image.shape[:2])


def _marks(
    words: Sequence[str],
    points: Places,
    scale: float,
    near: float,
    shape: tuple[int, ...],
    *,
    boxes: Places | None = None,
    masks: Places | None = None,
    targets: Places | None = None,
) -> list[_Mark]:
    """Places of words -> marks in pixels of the finished picture, neighbours that are `near` joined, colours given."""
    within = (0.0, 0.0, shape[1] * scale, shape[0] * scale)

    def place(values: Places | None, name: str, k: int, last: tuple[int, ...]) -> np.ndarray | None:
        if values is None or values[k] is None:
            return None
        value = np.asarray(values[k], np.float64)
        if (
            value.shape[-len(last) :] != last
            or value.ndim != len(last) + (name in ("points", "targets"))
            or not value.size
        ):
            expected = "[P, 2]" if name in ("points", "targets") else str(list(last))
            raise ValueError(
                f"{name}[{k}] has shape {list(value.shape)}, expected {expected}. Give one place per word."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{name}[{k}] is {value.tolist()}, expected finite numbers. Use None for no place.")
        return value

    for name, values in (("points", points), ("boxes", boxes), ("masks", masks), ("targets", targets)):
        if values is not None and len(values) != len(words):
            raise ValueError(
                f"length of {name} is {len(values)}, expected {len(words)}, one for each word. Pad with None."
            )
    marks: list[_Mark] = []
    for k in range(len(words)):
        path, target = place(points, "points", k, (2,)), place(targets, "targets", k, (2,))
        if path is None and target is None:
            continue
        goal = None if target is None else clip_points(target.mean(0) * scale, within)
        box, mask = place(boxes, "boxes", k, (4,)), place(masks, "masks", k, shape[:2])
        colour = PALETTE[len(marks) % len(PALETTE)] if path is not None else GRAY
        shown = clip_points(path * scale, within) if path is not None else np.asarray([goal])
        x, y = shown.mean(0).tolist()
        mark = _Mark(
            [k],
            colour,
            shown,
            (x, y),
            goal,
            None if box is None else clip_boxes(box * scale, within),
            None if mask is None else mask.astype(bool),
        )
        if marks and marks[-1].words[-1] == k - 1 and _same_place(marks[-1], mark, near):
            # A phrase is marked where its last word is, which has read all of it.
            last = marks[-1]
            last.words.append(k)
            last.path, last.target, last.box, last.mask = mark.path, mark.target, mark.box, mark.mask
        else:
            marks.append(mark)
    return marks


def _same_place(a: _Mark, b: _Mark, near: float) -> bool:
    """Are the two close enough to be one mark, by what is predicted and by what is true."""
    if (a.target is None) != (b.target is None) or (a.colour == GRAY) != (b.colour == GRAY):
        return False
    apart = math.dist(a.first, b.first)
    if a.target is not None and b.target is not None:
        apart = max(apart, math.dist(a.target.tolist(), b.target.tolist()))
    return apart < near


# The page


def _page(
    image: np.ndarray, words: Sequence[str], marks: list[_Mark], title: str | None, legend: str | None, side: int
) -> PIL.Image.Image:
    """Title, picture with marks, sentence and legend, from top to bottom."""
    letter = max(15, round(side * 0.026)) * _FINE
    pad = letter
    height, width = (max(1, round(length * side / max(image.shape[:2]))) for length in image.shape[:2])
    # A tall and thin picture must not squeeze the sentence into a column of single words.
    inner = max(width * _FINE, round(side * 0.6) * _FINE)
    small = round(letter * 0.8)
    texts = [" ".join(word.split()) for word in words]
    owner = {k: mark for mark in marks for k in mark.words}
    lines = _flow(texts, owner, inner, letter)
    titles = _flow((title or "").split(), {}, inner, letter)
    step = round(letter * 1.75)
    picture_top = pad + len(titles) * round(letter * 1.4) + (pad // 2 if titles else 0)
    sentence_top = picture_top + height * _FINE + round(pad * 0.8)
    bottom = sentence_top + len(lines) * step + (round(small * 1.6) if legend else 0) + pad // 2
    page = PIL.Image.new("RGB", (inner + 2 * pad, bottom), PAGE)
    pen = PIL.ImageDraw.Draw(page)
    for row, line in enumerate(titles):
        text = " ".join(text for text, _ in line)
        pen.text((pad, pad + row * round(letter * 1.4)), text, INK, _font(text, letter))
    left = pad + (inner - width * _FINE) // 2
    page.paste(_picture(image, (width, height), texts, marks, letter), (left, picture_top))
    for row, line in enumerate(lines):
        _write(pen, line, owner, pad, sentence_top + row * step, letter, step)
    if legend:
        pen.text((pad, bottom - pad // 2 - round(small * 1.4)), legend, GRAY, _font(legend, small))
    # An odd height would leave half a line.
    return page.resize((page.width // _FINE, page.height // _FINE), PIL.Image.Resampling.BOX)


def _picture(
    image: np.ndarray, size: tuple[int, int], texts: list[str], marks: list[_Mark], letter: int
) -> PIL.Image.Image:
    """The picture, `_FINE` times `size`, with masks, boxes, paths, leaders, dots, labels, from below to above."""
    canvas = PIL.Image.fromarray(image).resize((size[0] * _FINE, size[1] * _FINE), PIL.Image.Resampling.BICUBIC)
    for mark in marks:
        if mark.mask is not None:
            tint = PIL.Image.fromarray(mark.mask * np.uint8(115)).resize(canvas.size, PIL.Image.Resampling.BILINEAR)
            canvas.paste(mark.colour, mask=tint)
    pen = PIL.ImageDraw.Draw(canvas)
    thin = max(1, letter // 10)
    radius = letter * 0.3
    fine = [(mark, mark.path * _FINE, (mark.at[0] * _FINE, mark.at[1] * _FINE)) for mark in marks]
    for mark, path, _ in fine:
        if mark.box is not None:
            x0, y0, x1, y1 = (mark.box * _FINE).tolist()
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
            pen.line(corners, PAGE, thin * 3, joint="curve")
            pen.line(corners, mark.colour, thin * 2, joint="curve")
        if len(path) > 2:
            pen.line([tuple(point) for point in path.tolist()], mark.colour, thin, joint="curve")
    for mark, _, at in fine:
        if mark.target is not None:
            goal = (mark.target[0] * _FINE, mark.target[1] * _FINE)
            pen.line([at, goal], PAGE, thin * 3)
            pen.line([at, goal], mark.colour, thin * 2)
            ring = radius * 1.5
            pen.ellipse(_around(goal, ring + thin), outline=PAGE, width=thin * 4)
            pen.ellipse(_around(goal, ring), outline=mark.colour, width=thin * 2)
    goals = [mark.target * _FINE for mark in marks if mark.target is not None]
    labels = _place_labels(
        [at for _, _, at in fine],
        [_label(texts, mark) for mark in marks],
        canvas.size,
        letter,
        rings=[(x, y) for x, y in np.reshape(goals, (-1, 2)).tolist()],
        boxes=[tuple((mark.box * _FINE).tolist()) for mark in marks if mark.box is not None],
    )
    for (mark, _, at), (rectangle, _) in zip(fine, labels, strict=True):
        end = (min(max(at[0], rectangle[0]), rectangle[2]), min(max(at[1], rectangle[1]), rectangle[3]))
        pen.line([at, end], PAGE, thin * 3)
        pen.line([at, end], mark.colour, thin * 2)
    for mark, _, at in fine:
        if mark.colour != GRAY:
            pen.ellipse(_around(at, radius + thin * 1.5), PAGE)
            pen.ellipse(_around(at, radius), mark.colour)
    for (mark, _, _), (rectangle, text) in zip(fine, labels, strict=True):
        _pill(pen, rectangle, text, mark.colour, letter)
    return canvas


def _around(at: tuple[float, float], radius: float) -> Rectangle:
    return at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius


def _label(texts: list[str], mark: _Mark) -> str:
    text = " ".join(texts[k] for k in mark.words).strip(" .,;:")
    return text if len(text) <= 28 else text[:27].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _place_labels(
    dots: list[tuple[float, float]],
    texts: list[str],
    size: tuple[int, int],
    letter: int,
    *,
    rings: Sequence[tuple[float, float]] = (),
    boxes: Sequence[Rectangle] = (),
) -> list[tuple[Rectangle, str]]:
    """A rectangle for each label: near its dot, inside the picture, off labels, dots and rings, leaders uncrossed.

    Greedy, the most crowded dot first: of some places around the dot, the one that costs least. Boxes are left free
    where that is not far, so that small objects stay in sight.
    """
    height = letter * 1.35
    widths = [_width(text, letter) + letter * 0.8 for text in texts]
    crowd = [sum(math.dist(dot, other) < letter * 5 for other in dots) for dot in dots]
    placed: dict[int, Rectangle] = {}
    for k in sorted(range(len(dots)), key=lambda k: -crowd[k]):
        (x, y), width = dots[k], widths[k]
        best, least = (0.0, 0.0, width, height), math.inf
        for reach in (1.3, 2.2, 3.4, 4.8, 6.5, 8.5):
            for turn in range(16):
                angle = math.tau * turn / 16
                # Along x a label must first clear its own half width.
                middle_x = x + math.cos(angle) * (width / 2 + letter * (reach - 0.7))
                middle_y = y + math.sin(angle) * letter * reach
                left = min(max(middle_x - width / 2, letter * 0.2), max(size[0] - width - letter * 0.2, 0))
                top = min(max(middle_y - height / 2, letter * 0.2), max(size[1] - height - letter * 0.2, 0))
                rectangle = (left, top, left + width, top + height)
                cost = letter * reach
                cost += sum(40 * letter * _share(rectangle, other, letter * 0.15) for other in placed.values())
                cost += sum(15 * letter * (_distance(dot, rectangle) < letter * 0.55) for dot in (*dots, *rings))
                cost += sum(6 * letter * _share(rectangle, box, 0) for box in boxes)
                cost += sum(4 * letter * _crosses((x, y), rectangle, dots[j], other) for j, other in placed.items())
                if cost < least:
                    best, least = rectangle, cost
        placed[k] = best
    return [(placed[k], texts[k]) for k in range(len(dots))]


def _share(a: Rectangle, b: Rectangle, margin: float) -> float:
    """Share of `a` that lies on `b`, with a margin; a mere touch costs something too."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + margin
    height = min(a[3], b[3]) - max(a[1], b[1]) + margin
    if width <= 0 or height <= 0:
        return 0.0
    return 0.2 + width * height / ((a[2] - a[0]) * (a[3] - a[1]))


def _distance(dot: tuple[float, float], rectangle: Rectangle) -> float:
    x, y = dot
    return math.hypot(max(rectangle[0] - x, 0, x - rectangle[2]), max(rectangle[1] - y, 0, y - rectangle[3]))


def _crosses(dot: tuple[float, float], mine: Rectangle, other: tuple[float, float], theirs: Rectangle) -> bool:
    """Do the leaders, from dot to middle of label, cross."""
    a, b = dot, ((mine[0] + mine[2]) / 2, (mine[1] + mine[3]) / 2)
    c, d = other, ((theirs[0] + theirs[2]) / 2, (theirs[1] + theirs[3]) / 2)

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


# Letters


def _flow(texts: Sequence[str], owner: dict[int, _Mark], width: int, letter: int) -> list[list[tuple[str, int]]]:
    """Words -> lines of (text, number of the word) that fit `width`; a word wider than a line is cut to pieces."""
    lines: list[list[tuple[str, int]]] = []
    room = 0.0
    for k, text in enumerate(texts):
        while text:
            piece = text
            while len(piece) > 1 and _width(piece, letter) + letter > width:
                piece = piece[: max(1, len(piece) * 9 // 10)]
            # A word that goes on in a pill needs a space; the first of a pill needs its round ends and the gap after
            # it.
            goes_on = bool(lines and lines[-1]) and owner.get(k) is owner.get(lines[-1][-1][1])
            wide = _width(piece, letter) + letter * (0.35 if goes_on or k not in owner else 1.0)
            if not lines or wide > room:
                lines.append([])
                room = width
                wide = _width(piece, letter) + letter * (1.0 if k in owner else 0.35)
            lines[-1].append((piece, k))
            room -= wide
            text = text[len(piece) :]
    return lines


def _write(
    pen: PIL.ImageDraw.ImageDraw,
    line: list[tuple[str, int]],
    owner: dict[int, _Mark],
    left: float,
    top: float,
    letter: int,
    step: int,
) -> None:
    """One line of the sentence: words of one mark together in a pill of its colour, the others in gray."""
    x, start = left, 0
    while start < len(line):
        mark = owner.get(line[start][1])
        end = start + 1
        while mark is not None and end < len(line) and owner.get(line[end][1]) is mark:
            end += 1
        text = " ".join(piece for piece, _ in line[start:end])
        wide = _width(text, letter)
        if mark is None:
            pen.text((x, top + step * 0.44), text, GRAY, _font(text, letter), anchor="lm")
            x += wide + letter * 0.35
        else:
            _pill(pen, (x, top, x + wide + letter * 0.7, top + letter * 1.45), text, mark.colour, letter)
            x += wide + letter * 1.0
        start = end


def _pill(
    pen: PIL.ImageDraw.ImageDraw, rectangle: Rectangle, text: str, colour: tuple[int, int, int], letter: int
) -> None:
    """A rounded rectangle in `colour`, rimmed in white, with the text in white in its middle."""
    pen.rounded_rectangle(rectangle, letter * 0.4, colour, PAGE, max(1, letter // 14))
    x, y = (rectangle[0] + rectangle[2]) / 2, (rectangle[1] + rectangle[3]) / 2
    pen.text((x, y), text, PAGE, _font(text, letter), anchor="mm")


def _width(text: str, letter: int) -> float:
    return _font(text, letter).getlength(text)


@functools.lru_cache(4096)
def _font(text: str, letter: int) -> Font:
    """The first font that has a glyph for every character of the text, or the last of them."""
    fonts = _fonts(letter)
    return next((font for font in fonts if all(_has(font, character) for character in text)), fonts[-1])


@functools.cache
def _fonts(letter: int) -> tuple[Font, ...]:
    """PIL's own font, always there, then DejaVu, which knows more alphabets, where it is found."""
    fonts: list[Font] = [PIL.ImageFont.load_default(letter)]
    # matplotlib carries DejaVu; it is looked for, not imported: that takes a second.
    found = importlib.util.find_spec("matplotlib")
    home = os.path.dirname(found.origin) if found and found.origin else ""
    carried = os.path.join(home, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
    if os.path.isfile(carried):
        fonts.append(PIL.ImageFont.truetype(carried, letter))
    return tuple(fonts)


@functools.lru_cache(4096)
def _has(font: Font, character: str) -> bool:
    """Whether the font has this character: fonts draw the same empty box for all that they lack."""
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
