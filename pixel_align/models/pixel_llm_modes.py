"""What PixelLLM may be asked: its modes, from what a user says or a task holds to words and places in pixels.

Two functions answer all of them, on the device: `write` says the model's own text, `read` reads a given one; in both,
the state that has read a word says where that word is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pixel_align import converter, decoding, geometry, image, text
from pixel_align.batch import Array, Batch, Masks, PromptPoints
from pixel_align.converter import Augment, PixelFeatureConverter
from pixel_align.models.family import Family, Mode, Said, Scoring, register
from pixel_align.models.pixel_llm import (
    ImageMaps,
    PixelLLM,
    PixelLLMConfig,
    batch_spec,
    loss,
    rules,
)
from pixel_align.nn.mask_decoder import best
from pixel_align.prediction import Prediction, Region, run_lengths
from pixel_align.text import INSTRUCTIONS, Vocabulary
from pixel_align.text_alignment import split_words


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of B pictures whose image features are kept. Frames and masks as in `Batch`.

    Attributes:
      valid_size: Int32[B, 2]. prompt_boxes: Float32[B, M, 4].
      instruction_tokens: Int32[B, N, C] and instruction_mask: Bool[B, N, C].
      text_tokens: Int32[B, N, T], BOS w1 .. wn EOS, a text to be read; None where there is none.
      prompt_points, prompt_masks: points and masks of the prompts, None for boxes only.
    """

    valid_size: Array
    prompt_boxes: Array
    instruction_tokens: Array
    instruction_mask: Array
    text_tokens: Array | None = None
    prompt_points: PromptPoints | None = None
    prompt_masks: Masks | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answer:
    """Tokens with their places and scores; BOS is not among them.

    Attributes:
      tokens: Int32[B, N, T - 1].
      points: Float32[B, N, T - 1, P, 2] in [0, 1] of the canvas.
      presence: Float32[B, N, T - 1], the probability that the token has a place; 1 for a model that does not say it.
      logprobs: Float32[B, N, T - 1], natural, of each token given those before it.
    """

    tokens: Array
    points: Array
    presence: Array
    logprobs: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regions:
    """Where the texts of a request are.

    Attributes:
      boxes: Float32[B, N, 4] in [0, 1] of the canvas, ordered, inside the picture.
      masks: Float32[B, N, S, S], logits over the canvas; None where they are not asked for.
      iou: Float32[B, N], the IoU that the model expects of each mask.
    """

    boxes: Array
    masks: Array | None = None
    iou: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseCaptions:
    """Everything that the detector finds and its words, D detections a picture.

    Attributes:
      boxes: Float32[B, D, 4] in [0, 1] of the canvas. scores: Float32[B, D] in [0, 1], what they are ranked by.
      valid: Bool[B, D], which of them exist.
      answer: the words of each, N = D.
    """

    boxes: Array
    scores: Array
    valid: Array
    answer: Answer


def write(model: PixelLLM, params: Any, maps: ImageMaps, request: Request, wanted: jax.Array | None = None) -> Answer:
    """The model's own text, greedily, and the place of each token from the same pass.

    wanted: Bool[B, N], the texts that are written; the others stay empty.
    """
    bound = model.bind({"params": params})
    b, n, _ = request.instruction_tokens.shape
    t = model.config.shape.text
    prefix, mask = _prefix(bound, maps, request)[1:]

    def step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        text_features, cache = bound.text.decode_step(tokens, cache)
        return text_features, bound.text.logits(text_features), cache

    cache, spoken = bound.text.init_cache(prefix, mask, t), model.config.text
    decoded = decoding.greedy(
        step,
        cache,
        bos_id=spoken.begin,
        eos_id=spoken.end,
        length=t - 1,
        batch=b * n,
        wanted=None if wanted is None else wanted.reshape(b * n),
    )
    text_features = decoded.features.reshape(b, n, t - 1, -1)
    return Answer(
        tokens=decoded.tokens.reshape(b, n, t - 1),
        points=bound.locate(text_features, request.valid_size),
        presence=_presence(bound, text_features),
        logprobs=decoded.logprobs.reshape(b, n, t - 1),
    )


def read(model: PixelLLM, params: Any, maps: ImageMaps, request: Request, text_tokens: jax.Array) -> Answer:
    """A given text, read in one parallel pass, and the place of each of its tokens."""
    bound = model.bind({"params": params})
    b, n, t = text_tokens.shape
    prefix, mask = _prefix(bound, maps, request)[1:]
    tokens = text_tokens.reshape(b * n, t)
    text_features = bound.decode_text(tokens, prefix, mask)
    logits = bound.text.logits(text_features[:, :-1])
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    logprobs = picked - jax.nn.logsumexp(logits, axis=-1)
    text_features = text_features.reshape(b, n, t, -1)[:, :, 1:]
    return Answer(
        tokens=text_tokens[:, :, 1:],
        points=bound.locate(text_features, request.valid_size),
        presence=_presence(bound, text_features),
        logprobs=logprobs.reshape(b, n, t - 1),
    )


def _presence(bound: PixelLLM, features: jax.Array) -> jax.Array:
    logits = bound.has_place(features)
    return jnp.ones(features.shape[:-1]) if logits is None else nn.sigmoid(logits)


def _prefix(bound: PixelLLM, maps: ImageMaps, request: Request) -> tuple[jax.Array, Any, jax.Array]:
    """(visual tokens, encoded prefix, its mask)."""
    visual = bound.encode_prompt(maps.fused, request.prompt_boxes, request.prompt_points, request.prompt_masks)
    return visual, *bound.encode_prefix(visual, request.instruction_tokens, request.instruction_mask)


def refer(model: PixelLLM, params: Any, maps: ImageMaps, request: Request) -> Regions:
    """The place of what each given text names, read in one parallel pass."""
    return _regions(model, params, maps, request, masks=False)


def segment(model: PixelLLM, params: Any, maps: ImageMaps, request: Request) -> Regions:
    """The same with masks.

    Raises:
      ValueError: a model that makes none.
    """
    if not model.config.masks.enabled:
        raise ValueError("mode is 'segment', expected a model with model.masks.enabled. Use mode 'refer', or another.")
    return _regions(model, params, maps, request, masks=True)


def _regions(model: PixelLLM, params: Any, maps: ImageMaps, request: Request, *, masks: bool) -> Regions:
    bound = model.bind({"params": params})
    tokens = request.text_tokens
    assert tokens is not None  # these modes have a text
    b, n, t = tokens.shape
    visual, prefix, mask = _prefix(bound, maps, request)
    text_features = bound.decode_text(tokens.reshape(b * n, t), prefix, mask).reshape(b, n, t, -1)
    boxes = bound.boxes(bound.locate(text_features, request.valid_size), tokens, request.valid_size)
    if not masks:
        return Regions(boxes)
    logits, iou = bound.segment(maps, visual, text_features, tokens, boxes)
    return Regions(boxes, *best(logits, iou))


def densecap(model: PixelLLM, params: Any, maps: ImageMaps, request: Request) -> DenseCaptions:
    """What the detector finds, all of it described in one decode.

    The score is the detector's, or with `rescore` its geometric mean with exp(log-probability of the text, its end
    included, over the number of its words), as published under the name mult_caption_score.

    Raises:
      ValueError: a model without a detector.
    """
    if not model.config.detector.enabled:
        raise ValueError("mode is 'densecap', expected a model with model.detector.enabled. Use another mode.")
    bound = model.bind({"params": params})
    boxes, scores, valid = bound.detector.detect(maps.fused, request.valid_size)

    def of_each(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:, :1], (x.shape[0], boxes.shape[1], *x.shape[2:]))

    written = write(
        model,
        params,
        maps,
        Request(
            valid_size=request.valid_size,
            prompt_boxes=boxes,
            instruction_tokens=of_each(request.instruction_tokens),
            instruction_mask=of_each(request.instruction_mask),
        ),
        wanted=valid,
    )
    if model.config.rescore:
        # What stands behind the end has probability 1.
        words = jnp.sum(jnp.cumsum(written.tokens == model.config.text.end, axis=-1) == 0, axis=-1)
        scores = jnp.sqrt(scores * jnp.exp(written.logprobs.sum(axis=-1) / jnp.maximum(words, 1)))
    return DenseCaptions(boxes, scores, valid, written)


def answer(model: PixelLLM, params: Any, maps: ImageMaps, request: Request) -> Answer:
    """The given text read, or one written where none is given."""
    if request.text_tokens is None:
        return write(model, params, maps, request)
    return read(model, params, maps, request, request.text_tokens)


# ---- From what a user says to a request, and from an answer to a prediction


def ask_caption(
    config: PixelLLMConfig,
    vocabulary: Vocabulary,
    placement: geometry.Placement,
    *,
    instruction: str = "",
    box: Any = None,
    points: Any = None,
    foreground: Any = None,
    scribble: Any = None,
    mask: Any = None,
) -> Request:
    """The request for a sentence about a picture or a part of it.

    Args:
      instruction: the words that ask, cut to the model's length.
      box: (x0, y0, x1, y1) in pixels of the original; the whole picture by default.
      points: [k, 2] xy in pixels of the original, in place of the box or beside it.
      foreground: k bools, whether each point is on what is meant; all are by default.
      scribble: [k, 2] xy in pixels of the original, the corners of a line drawn over what is meant, in place of points:
        as many points on it as the model reads.
      mask: Bool[H, W] of the size of the picture, in place of the box or beside it.

    Raises:
      ValueError: a box or points outside the picture, a mask of another size; points or a mask for a model that reads
        none, or too many.
    """
    shape = config.shape
    instruction_tokens = np.full((1, 1, shape.instruction), vocabulary.pad_id, np.int32)
    asked = vocabulary.encode(instruction)[: shape.instruction]
    points = points if scribble is None else _along(scribble, points, shape.prompt_points)
    instruction_tokens[0, 0, : len(asked)] = asked
    return Request(
        valid_size=np.asarray([placement.valid_size], np.int32),
        prompt_boxes=_box(box, placement)[None, None],
        instruction_tokens=instruction_tokens,
        instruction_mask=np.arange(shape.instruction)[None, None] < len(asked),
        prompt_points=_points(shape.prompt_points, points, foreground, box is not None, mask is not None, placement),
        prompt_masks=_mask(shape.prompt_mask, mask, placement),
    )


def ask_trace(
    config: PixelLLMConfig,
    vocabulary: Vocabulary,
    placement: geometry.Placement,
    *,
    text: str | None = None,
    instruction: str = "",
    box: Any = None,
    points: Any = None,
    foreground: Any = None,
    scribble: Any = None,
    mask: Any = None,
) -> Request:
    """As `ask_caption`; with `text`, a given sentence to be read instead of writing one.

    Raises:
      ValueError: also for a text that has more tokens than the model reads.
    """
    request = ask_caption(
        config,
        vocabulary,
        placement,
        instruction=instruction,
        box=box,
        points=points,
        foreground=foreground,
        scribble=scribble,
        mask=mask,
    )
    if text is None:
        return request
    ids, length = [*vocabulary.encode(text).tolist(), vocabulary.eos_id], config.shape.text
    if len(ids) > length - 1:
        raise ValueError(
            f"text has {len(ids) - 1} tokens, expected at most {length - 2}. "
            "Shorten it, or train with a larger model.shape.text."
        )
    tokens = np.full((1, 1, length), vocabulary.pad_id, np.int32)
    tokens[0, 0, 0], tokens[0, 0, 1 : len(ids) + 1] = vocabulary.bos_id, ids
    return dataclasses.replace(request, text_tokens=tokens)


def ask_refer(
    config: PixelLLMConfig, vocabulary: Vocabulary, placement: geometry.Placement, *, text: str = ""
) -> Request:
    """The request for the place of what a text names, about the whole picture.

    Raises:
      ValueError: no text, or one that is too long.
    """
    if not text.strip():
        raise ValueError("text is empty, expected the words that name something. Give it.")
    instruction = INSTRUCTIONS["refer"].replace("{text}", text)
    return ask_trace(config, vocabulary, placement, text=text, instruction=instruction)


def ask_describe(
    config: PixelLLMConfig,
    vocabulary: Vocabulary,
    placement: geometry.Placement,
    *,
    box: Any = None,
    points: Any = None,
    foreground: Any = None,
    scribble: Any = None,
    mask: Any = None,
) -> Request:
    """The request for words about a part of a picture, see `ask_caption`.

    Raises:
      ValueError: neither box, points, scribble nor mask.
    """
    if all(given is None for given in (box, points, scribble, mask)):
        raise ValueError(
            "box, points, scribble and mask are missing, expected one of them. Say what is to be described."
        )
    instruction = INSTRUCTIONS["describe"]
    return ask_caption(
        config,
        vocabulary,
        placement,
        instruction=instruction,
        box=box,
        points=points,
        foreground=foreground,
        scribble=scribble,
        mask=mask,
    )


def ask_answer(
    config: PixelLLMConfig, vocabulary: Vocabulary, placement: geometry.Placement, *, text: str = ""
) -> Request:
    """The request for the answer to a question about the whole picture.

    Raises:
      ValueError: no text, or one that is too long.
    """
    if not text.strip():
        raise ValueError("text is empty, expected a question. Give it.")
    instruction, room = INSTRUCTIONS["answer"].replace("{question}", text.strip()), config.shape.instruction
    # Training cuts long questions; a user's is not answered by half.
    if (asked := len(vocabulary.encode(instruction))) > room:
        raise ValueError(
            f"text has {asked} tokens with the words around it, expected at most {room}. Shorten it, or train with a "
            "larger model.shape.instruction."
        )
    return ask_caption(config, vocabulary, placement, instruction=instruction)


def ask_densecap(config: PixelLLMConfig, vocabulary: Vocabulary, placement: geometry.Placement) -> Request:
    """The request for everything in a picture."""
    return ask_caption(config, vocabulary, placement, instruction=INSTRUCTIONS["describe"])


def _box(box: Any, placement: geometry.Placement) -> np.ndarray:
    """A box in pixels of the original, or None for the whole picture -> Float32[4] on the canvas."""
    if box is None:
        return placement.valid_box
    given, (height, width) = np.asarray(box, np.float32), placement.original_size
    if given.shape != (4,) or not np.isfinite(given).all() or not (given[:2] < given[2:]).all():
        raise ValueError(f"box is {box}, expected x0, y0, x1, y1 with x0 < x1 and y0 < y1. Give the corners so.")
    if not (given[:2] < [width, height]).all() or not (given[2:] > 0).all():
        raise ValueError(
            f"box is {box}, expected one inside the picture of {width} x {height} pixels. Give pixels of the original."
        )
    return geometry.clip_boxes(placement.to_canvas(given), placement.valid_box).astype(np.float32)


def _along(scribble: Any, points: Any, room: int) -> np.ndarray:
    """The points of a scribble in pixels of the original, as many as the model reads."""
    line = np.asarray(scribble, np.float32)
    if points is not None or line.ndim != 2 or line.shape[1:] != (2,) or not len(line):
        raise ValueError(
            f"scribble is of shape {list(line.shape)} beside {'no' if points is None else 'other'} points, expected "
            "[k, 2] alone, the corners of a line. Give either."
        )
    return geometry.along(line, max(room, 1))  # without room the points are refused


def _points(
    room: int, points: Any, foreground: Any, boxed: bool, masked: bool, placement: geometry.Placement
) -> PromptPoints | None:
    """Points in pixels of the original -> the prompt's points, padded to `room`; None for a model that reads none."""
    xy = np.asarray([] if points is None else points, np.float32).reshape(-1, 2)
    meant = np.ones(len(xy), bool) if foreground is None else np.asarray(foreground, bool)
    if len(xy) > room:
        what = f"at most {room}" if room else "none: this model reads boxes only"
        raise ValueError(
            f"points are {len(xy)}, expected {what}. Give fewer, or train with a larger model.shape.prompt_points."
        )
    if len(meant) != len(xy):
        raise ValueError(f"foreground has {len(meant)} values, expected {len(xy)}, one for each point. Correct it.")
    height, width = placement.original_size
    if not np.isfinite(xy).all() or not ((xy >= 0) & (xy <= [width, height])).all():
        raise ValueError(
            f"points are {xy.tolist()}, expected all inside the picture of {width} x {height} pixels. "
            "Give pixels of the original."
        )
    if not room:
        return None
    prompt = PromptPoints(
        xy=np.zeros((1, 1, room, 2), np.float32),
        mask=np.arange(room)[None, None] < len(xy),
        foreground=np.zeros((1, 1, room), bool),
        boxed=np.asarray([[boxed or not (len(xy) or masked)]]),
    )
    prompt.xy[0, 0, : len(xy)], prompt.foreground[0, 0, : len(xy)] = placement.to_canvas(xy), meant
    return prompt


def _mask(side: int, mask: Any, placement: geometry.Placement) -> Masks | None:
    """A mask of the original -> the prompt's, on the canvas; None for a model that reads none."""
    if mask is None:
        return Masks(np.zeros((1, 1, side, side), bool), np.zeros((1, 1), bool)) if side else None
    given = np.asarray(mask)
    if not side:
        raise ValueError("mask is given, expected none: this model reads no masks. Ask by a box or points.")
    if given.shape != placement.original_size or given.dtype != bool or not given.any():
        raise ValueError(
            f"mask is {given.dtype}{list(given.shape)} with {np.count_nonzero(given)} pixels inside, expected "
            f"bool{list(placement.original_size)}, as the picture, with some. Give one of its size."
        )
    return Masks(image.mask_to_cells(given, placement, side)[None, None], np.ones((1, 1), bool))


def tell_trace(
    answer: Answer, vocabulary: Vocabulary, placement: geometry.Placement, said: Mapping[str, Any]
) -> Prediction:
    """The sentence with the places of its words."""
    return assemble(jax.tree.map(lambda x: x[0], answer), vocabulary, placement, said.get("text"))


def tell_caption(
    answer: Answer, vocabulary: Vocabulary, placement: geometry.Placement, said: Mapping[str, Any]
) -> Prediction:
    """The sentence without places."""
    told = tell_trace(answer, vocabulary, placement, said)
    return Prediction(told.text, told.size, told.logprob, told.words, told.word_spans, scores=told.scores)


def tell_answer(
    answer: Answer, vocabulary: Vocabulary, placement: geometry.Placement, said: Mapping[str, Any]
) -> Prediction:
    """The answer: the text that is given was the question."""
    return tell_caption(answer, vocabulary, placement, {})


def tell_describe(
    answer: Answer, vocabulary: Vocabulary, placement: geometry.Placement, said: Mapping[str, Any]
) -> Prediction:
    """The words, and the box that was asked about."""
    told = tell_caption(answer, vocabulary, placement, said)
    box = said.get("box")
    return told if box is None else dataclasses.replace(told, regions=_as_regions([told.text], [box]))


def tell_regions(
    answer: Regions, vocabulary: Vocabulary, placement: geometry.Placement, said: Mapping[str, Any]
) -> Prediction:
    """The text that was given, with its box and, where it was asked for, its mask."""
    return _predicted_regions(answer, [said["text"]], placement)


def _predicted_regions(answer: Regions, texts: Sequence[str], placement: geometry.Placement) -> Prediction:
    """The first regions of an answer, as many as there are texts, in pixels of the original."""
    boxes = placement.to_original(np.asarray(answer.boxes[: len(texts)])).reshape(-1, 4)
    boxes = geometry.clip_boxes(boxes, np.asarray([0, 0, *placement.original_size[::-1]], np.float32))
    masks = None if answer.masks is None else list(geometry.masks_to_original(answer.masks[: len(texts)], placement))
    return Prediction("; ".join(texts), placement.original_size, regions=_as_regions(texts, boxes, masks, answer.iou))


def _as_regions(texts: Sequence[str], boxes: Any, masks: Any = None, iou: Any = None) -> list[Region]:
    return [
        Region(
            text,
            np.asarray(boxes[k], np.float32),
            None if masks is None else masks[k],
            1.0 if iou is None else float(iou[k]),
        )
        for k, text in enumerate(texts)
    ]


def assemble(
    answer: Answer, vocabulary: Vocabulary, placement: geometry.Placement, given: str | None = None
) -> Prediction:
    """One answer as numpy (tokens [T], points [T, P, 2], logprobs [T]) -> a Prediction in pixels of the original.

    A word of several tokens stands at the mean of their points. A word that the model did not get to (a given text that
    was cut) has score 0 and stands where the word before it does. given: the text that was read, in its own spelling.
    """
    if given is None:
        sentence, token_spans = vocabulary.decode_with_spans(answer.tokens)
    else:
        sentence, token_spans = given, vocabulary.encode_with_spans(given)[1]
    word_spans = np.asarray(split_words(sentence), np.int32).reshape(-1, 2)
    owners = text.tokens_of_words(token_spans[: len(answer.tokens)], word_spans)
    height, width = placement.valid_size
    place = np.tile(np.asarray([width, height], np.float32) / (2 * placement.canvas), (answer.points.shape[1], 1))
    points = np.zeros((len(word_spans), *place.shape), np.float32)
    scores, placed = np.zeros(len(word_spans), np.float32), np.zeros(len(word_spans), bool)
    for word in range(len(word_spans)):
        if len(at := np.flatnonzero(owners == word)):
            place = answer.points[at].mean(axis=0)
            scores[word], placed[word] = np.exp(answer.logprobs[at].sum()), answer.presence[at].mean() >= 0.5
        points[word] = place
    points = placement.to_original(points).astype(np.float32)
    ends = np.flatnonzero(answer.tokens == vocabulary.eos_id)
    length = ends[0] + 1 if len(ends) else len(answer.tokens)
    return Prediction(
        text=sentence,
        words=[sentence[a:b] for a, b in word_spans],
        word_spans=word_spans,
        points=points,
        boxes=geometry.points_to_boxes(points) if len(points) else np.zeros((0, 4), np.float32),
        placed=placed,
        scores=scores,
        logprob=float(answer.logprobs[:length].sum()),
        size=placement.original_size,
    )


def tell_densecap(
    answer: DenseCaptions, vocabulary: Vocabulary, placement: geometry.Placement, said: Mapping[str, Any]
) -> Prediction:
    """What is in the picture, best first, each with its box, its words and its score."""
    return _found(answer, vocabulary, placement)


def _found(answer: DenseCaptions, vocabulary: Vocabulary, placement: geometry.Placement) -> Prediction:
    order = np.argsort(-np.where(answer.valid, answer.scores, -np.inf), kind="stable")[: int(answer.valid.sum())]
    size = placement.original_size
    height, width = size
    boxes = geometry.clip_boxes(placement.to_original(np.asarray(answer.boxes)[order]), (0, 0, width, height))
    texts = [vocabulary.decode_with_spans(answer.answer.tokens[k])[0] for k in order]
    scores = np.asarray(answer.scores)[order]
    regions = [Region(t, b, score=float(s)) for t, b, s in zip(texts, boxes, scores, strict=True)]
    return Prediction("; ".join(texts), size, regions=regions)


# ---- How a task is scored


def request_of(batch: Batch, pictures: Batch) -> Request:
    """The words of a batch, asked about the pictures of another or of itself."""
    return Request(
        valid_size=pictures.valid_size,
        prompt_boxes=pictures.prompt_boxes,
        instruction_tokens=batch.instruction_tokens,
        instruction_mask=batch.instruction_mask,
        text_tokens=batch.text_tokens,
        prompt_points=pictures.prompt_points,
        prompt_masks=pictures.prompt_masks,
    )


def asked_alone(batch: Batch, pictures: Batch) -> Request:
    """Without a text: the model writes."""
    return dataclasses.replace(request_of(batch, pictures), text_tokens=None)


def answer_both(model: PixelLLM, params: Any, maps: ImageMaps, request: Request) -> tuple[Answer, Answer]:
    """(the given text read, the model's own)."""
    assert request.text_tokens is not None  # a task has its text
    return read(model, params, maps, request, request.text_tokens), write(model, params, maps, request)


def trace_target(example: Mapping[str, Any], placement: geometry.Placement) -> dict[str, Any]:
    """An example of a trace task -> the target of `evaluation.traces`, in pixels of the original."""
    size = placement.original_size

    def pixels(name: str, width: int) -> np.ndarray:
        return geometry.to_pixels(np.asarray(example[name], np.float64).reshape(-1, width), size)

    return {
        "text": converter.string(example["text"]),
        "word_spans": np.asarray(example["word_spans"]).reshape(-1, 2),
        "word_boxes": pixels("word_boxes", 4),
        "word_centers": pixels("word_centers", 2),
        "word_located": np.asarray(example["word_located"], bool),
        "object_boxes": pixels("object_boxes", 4),
        "object_names": [converter.string(name) for name in example["object_names"]],
        "size": size,
    }


def said_of_trace(
    answers: tuple[Answer, Answer], target: Mapping[str, Any], vocabulary: Vocabulary, placement: geometry.Placement
) -> Said:
    """Both answers about one example -> the prediction of `evaluation.traces`; the model's own text is shown."""
    own, other = (jax.tree.map(lambda x: x[0], answer) for answer in answers)
    given = assemble(own, vocabulary, placement, target["text"])
    written = assemble(other, vocabulary, placement)
    scored = {
        "points": given.points,
        "text": written.text,
        "word_spans": written.word_spans,
        "word_points": written.points,
    }
    return Said(scored, written, {"target": target["text"], "read": given.to_json()["words"]})


def caption_target(example: Mapping[str, Any], placement: geometry.Placement) -> dict[str, Any]:
    """A picture with several captions -> the target of `evaluation.captioning`."""
    return {"captions": [converter.string(one) for one in example["captions"]], "size": placement.original_size}


def said_of_caption(
    answer: Answer, target: Mapping[str, Any], vocabulary: Vocabulary, placement: geometry.Placement
) -> Said:
    """The sentence about one picture."""
    told = tell_caption(answer, vocabulary, placement, {})
    return Said({"text": told.text}, told, {"target": target["captions"]})


def asked_by_regions(batch: Batch, pictures: Batch) -> Request:
    """The boxes of a batch, asked about the pictures of another or of itself."""
    return dataclasses.replace(request_of(batch, batch), valid_size=pictures.valid_size, text_tokens=None)


def region_target(example: Mapping[str, Any], placement: geometry.Placement) -> dict[str, Any]:
    """An example of a region set -> what the metrics of referring and of region captions read, in pixels."""
    size = placement.original_size
    pngs = [bytes(png) for png in example["region_mask"]]
    return {
        "image_id": converter.string(example["image_id"]),
        "region_id": [converter.string(one) for one in example["region_id"]],
        "object_id": [converter.string(one) for one in example["object_id"]],
        "region_text": [converter.string(one) for one in example["region_text"]],
        "boxes": geometry.to_pixels(np.asarray(example["region_box"], np.float64).reshape(-1, 4), size),
        # As run lengths: whole masks of a large set would fill the memory.
        "masks": [run_lengths(image.read_mask(png)) if png else None for png in pngs],
        "size": size,
    }


def question_target(example: Mapping[str, Any], placement: geometry.Placement) -> dict[str, Any]:
    """An example of questions: `region_target` with them; region_text are the answers."""
    asked = [converter.string(one) for one in example["region_question"]]
    return region_target(example, placement) | {"region_question": asked}


def said_of_regions(
    answer: Regions, target: Mapping[str, Any], vocabulary: Vocabulary, placement: geometry.Placement
) -> Said:
    """Boxes and masks of the expressions of one example."""
    told = _predicted_regions(answer, target["region_text"], placement)
    masks = [run_lengths(region.mask) for region in told.regions if region.mask is not None]
    boxes = np.asarray([region.box for region in told.regions]).reshape(-1, 4)
    scored = {"boxes": boxes, "masks": None if answer.masks is None else masks}
    return Said(scored, told, {"region_id": target["region_id"]})


def said_of_descriptions(
    answer: Answer, target: Mapping[str, Any], vocabulary: Vocabulary, placement: geometry.Placement
) -> Said:
    """What is said about each region of one example, or in answer to each of its questions."""
    regions = range(len(target["region_text"]))
    texts = [vocabulary.decode_with_spans(answer.tokens[k])[0] for k in regions]
    told = Prediction("; ".join(texts), placement.original_size, regions=_as_regions(texts, target["boxes"]))
    asked = {key: target[key] for key in ("region_question",) if key in target}
    return Said({"texts": texts}, told, {"region_id": target["region_id"], **asked, "target": target["region_text"]})


def densecap_target(example: Mapping[str, Any], placement: geometry.Placement) -> dict[str, Any]:
    """An example of a region set -> what `evaluation.dense_captioning` reads."""
    known = region_target(example, placement)
    return {"image_id": known["image_id"], "boxes": known["boxes"], "captions": known["region_text"]}


def said_of_densecap(
    answer: DenseCaptions, target: Mapping[str, Any], vocabulary: Vocabulary, placement: geometry.Placement
) -> Said:
    """Everything that was found in one picture."""
    told = _found(answer, vocabulary, placement)
    boxes = np.asarray([region.box for region in told.regions]).reshape(-1, 4)
    scores, texts = [region.score for region in told.regions], [region.text for region in told.regions]
    return Said({"boxes": boxes, "captions": texts, "scores": scores}, told, {"target": target["captions"]})


# ---- The family


def make_converter(config: PixelLLMConfig, vocabulary: Vocabulary, augment: Augment) -> PixelFeatureConverter:
    """What fills PixelLLM's batches.

    Raises:
      ValueError: the vocabulary is not the size of the model's vocabulary layer, or begins and ends texts otherwise.
    """
    if config.text.vocab_size != vocabulary.size:
        raise ValueError(
            f"model.text.vocab_size is {config.text.vocab_size}, expected {vocabulary.size}, the size of the "
            "vocabulary. Set model.text.vocab_size, or name another data.vocabulary."
        )
    if (config.text.begin, config.text.end) != (vocabulary.bos_id, vocabulary.eos_id):
        raise ValueError(
            f"the tokens that begin and end a text are {config.text.begin} and {config.text.end} of "
            f"{config.text.kind}, expected {vocabulary.bos_id} and {vocabulary.eos_id}, those of the vocabulary. "
            "Choose model.text.kind bert with its begin and end for WordPiece, t5 for SentencePiece."
        )
    return PixelFeatureConverter(config.shape, vocabulary, augment)


def encode_images(model: PixelLLM, params: Any, images: jax.Array, valid_size: jax.Array) -> ImageMaps:
    """UInt8[B, H, W, 3], Int[B, 2] -> the image features that every request about these pictures reads."""
    return model.bind({"params": params}).encode_image(images, valid_size)


_TRACE = ("text", "word_spans", "word_boxes", "object_boxes")
_REGIONS = ("region_id", "region_text", "region_box", "region_mask")
MODES = {
    "trace": Mode(ask_trace, answer, tell_trace, Scoring(request_of, answer_both, trace_target, said_of_trace, _TRACE)),
    "caption": Mode(
        ask_caption, answer, tell_caption, Scoring(asked_alone, answer, caption_target, said_of_caption, ("captions",))
    ),
    "refer": Mode(ask_refer, refer, tell_regions, Scoring(request_of, refer, region_target, said_of_regions, _REGIONS)),
    "segment": Mode(
        ask_refer, segment, tell_regions, Scoring(request_of, segment, region_target, said_of_regions, _REGIONS)
    ),
    "describe": Mode(
        ask_describe,
        answer,
        tell_describe,
        Scoring(asked_by_regions, answer, region_target, said_of_descriptions, _REGIONS),
    ),
    "answer": Mode(
        ask_answer,
        answer,
        tell_answer,
        Scoring(asked_alone, answer, question_target, said_of_descriptions, (*_REGIONS, "region_question")),
    ),
    "densecap": Mode(
        ask_densecap,
        densecap,
        tell_densecap,
        Scoring(asked_alone, densecap, densecap_target, said_of_densecap, _REGIONS),
    ),
}

register(
    Family(
        config=PixelLLMConfig,
        module=PixelLLM,
        loss=loss,
        batch_spec=batch_spec,
        converter=make_converter,
        rules=rules,
        encode_images=encode_images,
        modes=MODES,
    )
)
