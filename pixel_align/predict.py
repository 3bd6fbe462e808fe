"""Prediction: a picture is encoded once, then asked as often as one likes. Needs no TensorFlow."""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from pixel_align import geometry, image, models, text
from pixel_align.checkpoints import store
from pixel_align.experiment import Experiment
from pixel_align.models.pixel_llm import Answer, Request
from pixel_align.settings import from_json
from pixel_align.text_alignment import split_words

MODES = ("trace", "caption")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says about a picture, in pixels of the original.

    Attributes:
      text: the sentence.
      words: its words in order; word_spans: Int[W, 2], their [start, end) characters in text.
      points: Float[W, P, 2], the predicted points of each word, xy. Empty in mode "caption".
      boxes: Float[W, 4], xyxy, the smallest box around a word's points.
      placed: Bool[W], whether the model says that the word has a place at all (always, for models that do not say it).
      scores: Float[W], the probability of each word given what was said before it, in 0..1.
      logprob: natural log-probability of the whole text, its end included.
      size: (height, width) of the picture.
    """

    text: str
    words: list[str]
    word_spans: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    placed: np.ndarray
    scores: np.ndarray
    logprob: float
    size: tuple[int, int]

    def places(self) -> tuple[list[np.ndarray | None], list[np.ndarray | None]]:
        """(points, boxes) of each word, None for words without a place: what `draw.annotate` takes."""
        if not len(self.points):
            return [None] * len(self.words), [None] * len(self.words)
        points = [place if told else None for place, told in zip(self.points, self.placed, strict=True)]
        return points, [box if told else None for box, told in zip(self.boxes, self.placed, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, rounded to a hundredth of a pixel."""
        placed = len(self.points) == len(self.words)
        words = []
        for i, word in enumerate(self.words):
            entry: dict[str, Any] = {"word": word, "score": round(float(self.scores[i]), 4)}
            if placed:
                entry |= {"points": _hundredths(self.points[i]), "box": _hundredths(self.boxes[i])}
                entry["placed"] = bool(self.placed[i])
            words.append(entry)
        height, width = self.size
        return {"text": self.text, "words": words, "logprob": round(self.logprob, 4), "width": width, "height": height}


def _hundredths(pixels: np.ndarray) -> Any:
    # As float64: the float32 nearest to 0.1 is written with 17 digits.
    return np.round(pixels.astype(np.float64), 2).tolist()


class Predictor:
    """A model with its weights and its vocabulary, and the picture that was last set."""

    def __init__(self, config: Experiment, params: Any, vocabulary: text.Vocabulary) -> None:
        self.config, self.params, self.vocabulary = config, params, vocabulary
        self._encode, self._answer = compiled(config.model)
        self._features: jax.Array | None = None
        self._placement: geometry.Placement | None = None

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> "Predictor":
        """Loads a run folder, a checkpoint folder or one step of it; config and vocabulary lie beside the weights.

        Raises:
          FileNotFoundError: not a checkpoint. ValueError: its weights do not fit its config.
        """
        folder, step = store.find(path)
        config = from_json(Experiment, store.read_config(folder))
        return cls(config, load_params(config, folder, step), store.read_vocabulary(folder))

    def set_image(self, picture: str | os.PathLike[str] | bytes | np.ndarray) -> None:
        """Encodes a picture: a file, its bytes, or uint8[H, W, 3] upright RGB.

        Raises:
          pixel_align.image.ImageError: no such file, not a picture, too large.
        """
        pixels = picture if isinstance(picture, np.ndarray) else image.read_image(picture)
        canvas, self._placement = image.fit_to_canvas(pixels, self.config.model.shape.canvas)
        valid_size = np.asarray([self._placement.valid_size], np.int32)
        self._features = self._encode(self.params, canvas[None], valid_size)

    def trace(self, instruction: str = "", text: str | None = None) -> Prediction:
        """A sentence with a place for every word: the model's own, or the places of the words of a given `text`."""
        return self.predict("trace", instruction, text)

    def caption(self, instruction: str = "") -> Prediction:
        """A sentence without places."""
        return self.predict("caption", instruction)

    def predict(self, mode: str = "trace", instruction: str = "", text: str | None = None) -> Prediction:
        """Asks about the picture that was set.

        Args:
          mode: "trace" or "caption". instruction: the words that ask; "" for the experiment's own.
          text: a given sentence to be read instead of writing one.

        Raises:
          ValueError: unknown mode, no picture set, a given text in mode "caption", or one that is too long.
        """
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}. Choose one of them.")
        if mode == "caption" and text is not None:
            raise ValueError("text is given in mode 'caption', expected none. Use mode 'trace' to place a given text.")
        if self._features is None or self._placement is None:
            raise ValueError("no picture is set, expected one. Call set_image first.")
        room = self.config.model.shape.instruction
        # The experiment's own is cut as it is in training.
        given = instruction if instruction != self.config.instruction else ""
        if given and (asked := len(self.vocabulary.encode(given))) > room:
            raise ValueError(
                f"instruction has {asked} tokens, expected at most {room}. Shorten it, or train with a larger "
                "model.shape.instruction."
            )
        request = make_request(
            self.config,
            self.vocabulary,
            [self._placement],
            [instruction or self.config.instruction],
            None if text is None else [text],
        )
        answer = self._answer("read" if text is not None else mode, self.params, self._features, request)
        answer = jax.tree.map(lambda x: np.asarray(x)[0, 0], answer)
        prediction = assemble(answer, self.vocabulary, self._placement, text)
        if mode == "caption":
            empty = np.zeros((0, 2, 2), np.float32)
            nowhere = np.zeros(len(prediction.words), bool)
            return dataclasses.replace(prediction, points=empty, boxes=np.zeros((0, 4), np.float32), placed=nowhere)
        return prediction


def load(path: str | os.PathLike[str]) -> Predictor:
    """The predictor of a run folder, a checkpoint folder or one step of it; see `Predictor.from_checkpoint`."""
    return Predictor.from_checkpoint(path)


def load_params(config: Experiment, folder: Any, step: int) -> Any:
    """The parameters of a checkpoint (averaged where it has an average) on the first device."""
    family = models.family(config.model)
    module = family.module(config.model)
    abstract = jax.eval_shape(lambda: _init(module, config))
    return store.read_params(folder, step, abstract)


def _init(module: Any, config: Experiment) -> Any:
    from pixel_align.batch import zeros

    return module.init(jax.random.key(0), zeros(config.model.shape, 1))["params"]


@functools.lru_cache(maxsize=8)
def compiled(config: Any) -> tuple[Any, Any]:
    """(encode, answer) of a model config: encode(params, images, valid_size); answer(mode, params, features, request).

    Compiled at the first use of each shape and mode, once for all users of equal configs.
    """
    family = models.family(config)
    module = family.module(config)
    encode = jax.jit(functools.partial(family.encode_images, module))
    # Modes that are one function are compiled once.
    functions = {f: jax.jit(functools.partial(f, module)) for f in dict.fromkeys(family.predict.values())}
    answers = {mode: functions[f] for mode, f in family.predict.items()}

    def answer(mode: str, params: Any, features: jax.Array, request: Request) -> Answer:
        return answers[mode](params, features, request)

    return encode, answer


def make_request(
    config: Experiment,
    vocabulary: text.Vocabulary,
    placements: list[geometry.Placement],
    instructions: list[str],
    texts: list[str] | None,
) -> Request:
    """Strings and placements of B pictures -> the arrays of a request, one region each, about the whole picture.

    Raises:
      ValueError: a given text that has more tokens than the model reads.
    """
    shape = config.model.shape
    b = len(placements)
    instruction = np.full((b, 1, shape.instruction), vocabulary.pad_id, np.int32)
    mask = np.zeros((b, 1, shape.instruction), bool)
    tokens = np.full((b, 1, shape.text), vocabulary.pad_id, np.int32)
    tokens[:, :, 0] = vocabulary.bos_id
    for i, words in enumerate(instructions):
        asked = vocabulary.encode(words)[: shape.instruction]
        instruction[i, 0, : len(asked)], mask[i, 0, : len(asked)] = asked, True
    for i, given in enumerate(texts or []):
        ids = [*vocabulary.encode(given).tolist(), vocabulary.eos_id]
        if len(ids) > shape.text - 1:
            raise ValueError(
                f"text has {len(ids) - 1} tokens, expected at most {shape.text - 2}. "
                "Shorten it, or train with a larger model.shape.text."
            )
        tokens[i, 0, 1 : len(ids) + 1] = ids
    return Request(
        valid_size=np.asarray([p.valid_size for p in placements], np.int32),
        prompt_boxes=np.stack([p.valid_box for p in placements])[:, None].astype(np.float32),
        instruction_tokens=instruction,
        instruction_mask=mask,
        text_tokens=tokens,
    )


def assemble(
    answer: Answer, vocabulary: text.Vocabulary, placement: geometry.Placement, given: str | None = None
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
