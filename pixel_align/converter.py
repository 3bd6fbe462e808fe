"""An example of a Task -> one row of a batch: a picture on the canvas, tokens, places. numpy and PIL only: training,
evaluating and predicting take the same path.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from pixel_align import geometry, image, text
from pixel_align.batch import Batch, Described, Masks, PromptPoints, RegionTargets, Shape, Weights

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Augment:
    """How a picture becomes a view: random changes in training, none in evaluation."""

    scale: tuple[float, float] = (1.0, 1.0)  # longest side to canvas * this, then a random crop; (1, 1) for none
    flip_rate: float = 0.0  # mirrored left to right; never where the text names a side
    evaluation: Literal["fit", "center_crop"] = "fit"  # without randomness: the whole picture, or its middle
    point_prompts: float = 0.0  # share of the regions to describe that are asked about by points inside them
    scribble_prompts: float = 0.0  # by points along a line drawn over them
    mask_prompts: float = 0.0  # by their masks, where they have one; the rest by their boxes
    keep: float = 0.5  # a word keeps its place, a region its text, if this share of its box is still seen


class Converter(Protocol):
    """What makes rows of batches.

    Attributes:
      regions: N; examples with more regions are cut into several before they come here.
    """

    @property
    def regions(self) -> int: ...

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> tuple[Any, geometry.Placement]:
        """One example -> a batch without its leading axis, and how its picture lies on the canvas.

        rng: given in training, where pictures are augmented and choices drawn; None in evaluation, which never is.
        """


def picture(
    example: Example, canvas: int, augment: Augment, rng: np.random.Generator | None
) -> tuple[np.ndarray, geometry.Placement]:
    """The picture of an example on the canvas, uint8[canvas, canvas, 3], augmented where `rng` is given.

    Raises:
      ValueError: it cannot be read, with the example's id.
    """
    try:
        pixels = image.read_image(example["image"])
    except image.ImageError as error:
        raise ValueError(
            f"the picture of example {string(example['example_id'])!r} cannot be read: {error}. Build the set again."
        ) from error
    if rng is not None and (augment.scale != (1.0, 1.0) or augment.flip_rate):
        # A mirrored picture makes a text wrong that names a side.
        flip_rate = 0.0 if names_a_side(example) else augment.flip_rate
        return image.random_resize_crop(pixels, canvas, rng, scale=augment.scale, flip_rate=flip_rate)
    return (image.center_crop if augment.evaluation == "center_crop" else image.fit_to_canvas)(pixels, canvas)


_SIDE = re.compile(r"\b(left|right)(most|hand|side)?\b", re.IGNORECASE)


def names_a_side(example: Example) -> bool:
    """Whether a text of an example says left or right."""
    texts = (example.get("text", ""), *example.get("region_text", ()), *example.get("region_question", ()))
    return any(_SIDE.search(string(words)) for words in texts)


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """What says which part of the picture is meant."""

    box: np.ndarray  # [4] on the canvas
    boxed: bool = True  # False: the box says nothing
    xy: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.float32))  # points, on the canvas
    foreground: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))  # of each point
    png: bytes = b""  # its mask, empty for none


@dataclasses.dataclass(frozen=True)
class _Region:
    """What is asked and told about one region of an example."""

    instruction: str
    prompt: _Prompt
    tokens: np.ndarray  # [T]
    mask: np.ndarray  # [T]
    points: np.ndarray  # [T, P, 2] on the canvas
    locate: np.ndarray  # [T]
    png: bytes = b""  # its mask, empty for none


class PixelFeatureConverter:
    """Turns an example of a Task into one row of a batch; it alone knows the canvas, T, C, N and the vocabulary."""

    def __init__(self, shape: Shape, vocabulary: text.Vocabulary, augment: Augment | None = None) -> None:
        self.shape, self.vocabulary, self.augment = shape, vocabulary, augment or Augment()
        # What a detector has to find stands in the example whole: a part of it would make the rest background.
        self.regions = 0 if shape.described else shape.regions

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> tuple[Batch, geometry.Placement]:
        """One example -> a Batch without its leading axis, and how the picture lies on the canvas.

        With `rng`, which training gives, the picture is augmented and one of the example's `instructions`, where it has
        several, is drawn. Without, it is asked by its `instruction`.

        Raises:
          ValueError: a picture that cannot be read.
        """
        pixels, placement = picture(example, self.shape.canvas, self.augment, rng)
        asks = string(example.get("asks", ""))
        if (asks == "densecap") != (self.shape.described > 0):
            raise ValueError(
                f"model.shape.described is {self.shape.described} for an example that asks {asks or 'for a text'!r}, "
                "expected 1 or more for 'densecap' and else 0. Set it in a batch of its own, in data.further."
            )
        asked = self._told if "region_text" in example else self._narrated
        regions, weights = (self._found if asks == "densecap" else asked)(example, placement, rng)
        instructions, instruction_masks = self._padded(
            [self.vocabulary.encode(region.instruction) for region in regions], self.shape.instruction
        )
        # Prompts of regions that do not exist are of the whole picture.
        prompts = [region.prompt for region in regions] + [_Prompt(placement.valid_box)] * self.shape.prompts
        row = Batch(
            images=pixels,
            valid_size=np.asarray(placement.valid_size, np.int32),
            prompt_boxes=np.stack([prompt.box for prompt in prompts[: self.shape.prompts]]).astype(np.float32),
            instruction_tokens=self._regions(instructions),
            instruction_mask=self._regions(instruction_masks),
            text_tokens=self._regions(_stacked([region.tokens for region in regions], (self.shape.text,), np.int32)),
            text_mask=self._regions(_stacked([region.mask for region in regions], (self.shape.text,), bool)),
            token_points=self._regions(
                _stacked([region.points for region in regions], (self.shape.text, self.shape.points, 2), np.float32)
            ),
            locate=self._regions(_stacked([region.locate for region in regions], (self.shape.text,), bool)),
            valid=self._regions(np.ones(len(regions), bool)),
            weights=weights,
            prompt_points=self._prompt_points(prompts[: self.shape.prompts]),
            regions=self._objects(example, placement),
            masks=self._masks([region.png for region in regions], placement, self.shape.regions, self.shape.mask),
            prompt_masks=self._masks(
                [prompt.png for prompt in prompts], placement, self.shape.prompts, self.shape.prompt_mask
            ),
            described=self._described(example, placement, rng) if self.shape.described else None,
        )
        return row, placement

    def _narrated(
        self, example: Example, placement: geometry.Placement, rng: np.random.Generator | None
    ) -> tuple[list[_Region], Weights]:
        """The one region of a narrative or a caption: the whole picture, with a place for each word that has one."""
        instruction = example["instruction"]
        if rng is not None and len(several := example.get("instructions", ())):
            instruction = several[rng.integers(len(several))]
        region = _Region(
            string(instruction), self._asked_by_points(example, placement), *self._text(example, placement)
        )
        return [region], Weights(
            text=np.float32(1),
            point=np.float32(region.locate.any()),
            region=np.float32(len(example["object_boxes"]) > 0),
            mask=np.float32(0),
        )

    def _told(
        self, example: Example, placement: geometry.Placement, rng: np.random.Generator | None
    ) -> tuple[list[_Region], Weights]:
        """The regions of a region set that the view still holds; all of them in evaluation.

        Asked to "refer", the text is read and its last word says the place; asked to "describe", the text is written
        about the box; asked to "answer", it is written about the whole picture and the region's question.
        """
        asks = string(example["asks"])
        if asks not in ("refer", "describe", "answer"):
            raise ValueError(
                f"asks is {asks!r}, expected 'refer', 'describe', 'answer' or 'densecap'. Correct the Task."
            )
        count = len(example["region_text"])
        if count > self.shape.regions:
            raise ValueError(
                f"example {string(example['example_id'])!r} has {count} regions, expected at most "
                f"{self.shape.regions}. Cut it as data.dataset does."
            )
        if asks == "describe" and self.shape.prompts != self.shape.regions:
            raise ValueError(
                f"model.shape.prompts is {self.shape.prompts}, expected {self.shape.regions}: each region is asked "
                "about by a box of its own. Set it, or give these tasks a batch of their own in data.further."
            )
        boxes, kept = self._seen(np.asarray(example["region_box"], np.float32).reshape(-1, 4), placement)
        regions = []
        for k in np.flatnonzero(kept | (rng is None)):
            words = string(example["region_text"][k])
            tokens, mask, last = self._tokens(self.vocabulary.encode(words))
            points = np.zeros((self.shape.text, self.shape.points, 2), np.float32)
            locate = np.zeros(self.shape.text, bool)
            if asks == "refer":
                points[last], locate[last] = self._grid(boxes[k]), True
            regions.append(
                _Region(
                    # The words may be asked about by themselves, as in "where is {text}"; an answer never tells itself.
                    string(example["instruction"]).replace("{text}", words)
                    if asks != "answer"
                    else string(example["instruction"]).replace("{question}", string(example["region_question"][k])),
                    self._asked(boxes[k], example["region_mask"][k], placement, rng)
                    if asks == "describe"
                    else _Prompt(placement.valid_box),
                    tokens,
                    mask,
                    points,
                    locate,
                    bytes(example["region_mask"][k]),
                )
            )
        masked = asks == "refer" and any(region.png for region in regions)
        return regions, Weights(
            text=np.float32(asks != "refer"),
            point=np.float32(asks == "refer"),
            region=np.float32(0),
            mask=np.float32(masked),
        )

    def _found(
        self, example: Example, placement: geometry.Placement, rng: np.random.Generator | None
    ) -> tuple[list[_Region], Weights]:
        """N regions that the detector will choose; only what asks about each of them is known."""
        del rng
        length = self.shape.text
        unknown = _Region(
            string(example["instruction"]),
            _Prompt(placement.valid_box),
            tokens=np.full(length, self.vocabulary.pad_id, np.int32),
            mask=np.zeros(length, bool),
            points=np.zeros((length, self.shape.points, 2), np.float32),
            locate=np.zeros(length, bool),
        )
        return [unknown] * self.shape.regions, Weights(
            text=np.float32(1), point=np.float32(0), region=np.float32(1), mask=np.float32(0)
        )

    def _described(self, example: Example, placement: geometry.Placement, rng: np.random.Generator | None) -> Described:
        """All that is described and seen, if only a little of it is: it is no background. Words are told of what is
        seen well enough.

        Raises:
          ValueError: more than there is room for, in training; evaluation does not read it.
        """
        room = self.shape.described
        boxes, told = self._seen(np.asarray(example["region_box"], np.float32).reshape(-1, 4), placement)
        chosen = np.flatnonzero(geometry.box_area(boxes) > 0)
        if rng is None:
            chosen = chosen[:room]
        elif len(chosen) > room:
            raise ValueError(
                f"example {string(example['example_id'])!r} has {len(chosen)} descriptions, expected at most {room}. "
                "Set shape.described of this batch: what is left out would be taught as background."
            )
        texts = [self._tokens(self.vocabulary.encode(string(example["region_text"][k])))[:2] for k in chosen]
        tokens = _stacked([ids for ids, _ in texts], (self.shape.text,), np.int32)
        return Described(
            boxes=_pad(boxes[chosen].astype(np.float32), room),
            mask=_pad(np.ones(len(chosen), bool), room),
            text_tokens=_pad(tokens, room),
            text_mask=_pad(_stacked([mask for _, mask in texts], (self.shape.text,), bool) & told[chosen, None], room),
        )

    def _tokens(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Pieces of a text -> tokens [T], their mask [T], and where the last piece stands.

        A text that is cut does not end where it was cut: no end token then.
        """
        length = self.shape.text
        spoken = [self.vocabulary.bos_id, *ids.tolist(), self.vocabulary.eos_id][:length]
        tokens, mask = np.full(length, self.vocabulary.pad_id, np.int32), np.zeros(length, bool)
        tokens[: len(spoken)], mask[: len(spoken)] = spoken, True
        return tokens, mask, min(len(ids), length - 1)

    def _grid(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] -> the points [..., P, 2] that are predicted for them."""
        grid = self.shape.point_grid
        return geometry.boxes_to_points(boxes, grid, geometry.points_per_side(grid, self.shape.points))

    def _text(
        self, example: Example, placement: geometry.Placement
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [T], their mask [T], points [T, P, 2] and which of them have a place [T]."""
        length = self.shape.text
        ids, spans = self.vocabulary.encode_with_spans(string(example["text"]))
        tokens, mask, _ = self._tokens(ids)
        points, locate = np.zeros((length, self.shape.points, 2), np.float32), np.zeros(length, bool)
        words = text.tokens_of_words(spans, example["word_spans"])[: length - 1]
        if len(example["word_boxes"]) and len(words):
            boxes, kept = self._seen(np.asarray(example["word_boxes"], np.float32), placement)
            kept &= np.asarray(example["word_located"], bool)
            known = words >= 0
            # Token t stands at t + 1, behind BOS.
            locate[1 : len(words) + 1] = known & kept[words]
            points[1 : len(words) + 1] = self._grid(boxes)[words]
            points[~locate] = 0
        return tokens, mask, points, locate

    def _masks(self, pngs: Sequence[bytes], placement: geometry.Placement, count: int, side: int) -> Masks | None:
        """The first masks as the view shows them, in `side` cells a side; None where there are none."""
        if not side:
            return None
        masks = Masks(np.zeros((count, side, side), bool), np.zeros(count, bool))
        for row, png in enumerate(pngs[:count]):
            if png:
                masks.cells[row] = image.mask_to_cells(image.read_mask(png), placement, side)
                masks.given[row] = True
        return masks

    def _asked(
        self, box: np.ndarray, png: bytes, placement: geometry.Placement, rng: np.random.Generator | None
    ) -> _Prompt:
        """How a region is asked about: by its box; in training at some rates by points in it, a line or its mask."""
        if rng is None:
            return _Prompt(box)
        rates = (self.augment.point_prompts, self.augment.scribble_prompts, self.augment.mask_prompts)
        kind = int(np.searchsorted(np.cumsum(rates), rng.random(), side="right"))
        room = self.shape.prompt_points
        if kind == 0 and room:
            return self._by_points(
                self._points_inside(box, png, placement, rng, int(rng.integers(1, room + 1))), placement
            )
        if kind == 1 and room:
            # A line through a few places of it is what a hand draws; it may leave a hollow shape on its way.
            corners = self._points_inside(box, png, placement, rng, int(rng.integers(2, 5)))
            return self._by_points(geometry.along(corners, room), placement)
        if kind == 2 and self.shape.prompt_mask and png:
            return _Prompt(placement.valid_box, boxed=False, png=bytes(png))
        return _Prompt(box)

    @staticmethod
    def _by_points(xy: np.ndarray, placement: geometry.Placement) -> _Prompt:
        return _Prompt(placement.valid_box, boxed=False, xy=xy.astype(np.float32), foreground=np.ones(len(xy), bool))

    def _points_inside(
        self, box: np.ndarray, png: bytes, placement: geometry.Placement, rng: np.random.Generator, count: int
    ) -> np.ndarray:
        """Some points [count, 2] of the mask, or of the box where there is none or the view leaves nothing of it."""
        xy = box[:2] + rng.random((count, 2)) * (box[2:] - box[:2])
        if png:
            canvas = placement.canvas
            cells = np.argwhere(image.mask_to_cells(image.read_mask(bytes(png)), placement, canvas))
            if len(cells):
                xy = (cells[rng.integers(len(cells), size=count)][:, ::-1] + 0.5) / canvas
        return xy

    def _asked_by_points(self, example: Example, placement: geometry.Placement) -> _Prompt:
        """The points that an example may ask with: prompt_points [k, 2] in fractions of the picture and
        prompt_foreground [k], in place of the box. Without them, or where all are cut away, the whole picture.
        """
        given = np.asarray(example.get("prompt_points", ()), np.float32).reshape(-1, 2)
        xy = placement.to_canvas(geometry.to_pixels(given, placement.original_size)).astype(np.float32)
        seen = np.flatnonzero(geometry.points_inside(xy, placement.valid_box))[: self.shape.prompt_points]
        foreground = np.asarray(example.get("prompt_foreground", np.ones(len(given), bool)), bool)
        return _Prompt(placement.valid_box, boxed=not len(seen), xy=xy[seen], foreground=foreground[seen])

    def _prompt_points(self, prompts: Sequence[_Prompt]) -> PromptPoints | None:
        """The points of the prompts, None where the model reads none."""
        k = self.shape.prompt_points
        if not k:
            return None
        return PromptPoints(
            xy=np.stack([_pad(prompt.xy, k) for prompt in prompts]),
            mask=np.stack([_pad(np.ones(len(prompt.xy), bool), k) for prompt in prompts]),
            foreground=np.stack([_pad(prompt.foreground, k) for prompt in prompts]),
            boxed=np.asarray([prompt.boxed for prompt in prompts]),
        )

    def _objects(self, example: Example, placement: geometry.Placement) -> RegionTargets | None:
        """The object targets of the dense first stage, None where the model reads none."""
        r, phrase = self.shape.objects, self.shape.phrase
        if not r:
            return None
        boxes, kept = self._seen(np.asarray(example.get("object_boxes", ()), np.float32).reshape(-1, 4), placement)
        chosen = np.flatnonzero(kept)[:r]
        names = [string(example["object_names"][i]) for i in chosen]
        # A phrase is a set of pieces here: each counts once.
        ids = [np.asarray(list(dict.fromkeys(self.vocabulary.encode(name).tolist())), np.int32) for name in names]
        tokens, mask = self._padded(ids, phrase)
        return RegionTargets(
            boxes=_pad(boxes[chosen], r),
            mask=_pad(np.ones(len(chosen), bool), r),
            tokens=_pad(tokens, r),
            token_mask=_pad(mask, r),
        )

    def _seen(self, boxes: np.ndarray, placement: geometry.Placement) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [K, 4] in fractions -> boxes in canvas coordinates, cut to what is seen, and which are seen enough."""
        boxes = placement.to_canvas(geometry.to_pixels(boxes, placement.original_size))
        kept = geometry.visible_share(boxes, placement.valid_box) >= self.augment.keep
        return geometry.clip_boxes(boxes, placement.valid_box).astype(np.float32), kept

    def _padded(self, ids: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token lists -> Int32[K, length] cut and padded, and their mask."""
        tokens = np.full((len(ids), length), self.vocabulary.pad_id, np.int32)
        mask = np.zeros((len(ids), length), bool)
        for row, one in enumerate(ids):
            one = one[:length]
            tokens[row, : len(one)], mask[row, : len(one)] = one, True
        return tokens, mask

    def _regions(self, rows: np.ndarray) -> np.ndarray:
        """[k, ...] -> [N, ...], padded with zeros."""
        return _pad(rows, self.shape.regions)


def _stacked(rows: Sequence[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Rows -> [k, *shape], also where there is none: a crop may leave no region."""
    return np.stack(rows) if rows else np.zeros((0, *shape), dtype)


def _pad(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)])


def string(value: Any) -> str:
    """A text of an example, which TensorFlow gives as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
