"""Prediction: a picture is encoded once, then asked as often as one likes. Needs no TensorFlow."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pixel_align import geometry, image, models, state, text
from pixel_align.checkpoints import store
from pixel_align.experiment import Experiment
from pixel_align.prediction import Prediction
from pixel_align.settings import from_json


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """The functions of a model.

    Attributes:
      encode: (params, images, valid_size) -> image features.
      answer: mode -> (params, image features, request) -> answer. scored: the same for tasks that are scored.
    """

    encode: Callable[..., Any]
    answer: Mapping[str, Callable[..., Any]]
    scored: Mapping[str, Callable[..., Any]]


class Predictor:
    """A model with its weights and its vocabulary, and the picture that was last set."""

    def __init__(self, config: Experiment, params: Any, vocabulary: text.Vocabulary) -> None:
        self.config, self.params, self.vocabulary = config, params, vocabulary
        self._model = config.widest()
        self._family, self._compiled = models.family_of(self._model), compiled(self._model)
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
        canvas, self._placement = image.fit_to_canvas(pixels, self._model.shape.canvas)
        valid_size = np.asarray([self._placement.valid_size], np.int32)
        self._features = self._compiled.encode(self.params, canvas[None], valid_size)

    def trace(self, instruction: str = "", text: str | None = None, **place: Any) -> Prediction:
        """A sentence with a place for every word: the model's own, or the places of the words of a given `text`.

        place: `box`, or `points` with `foreground`, in pixels of the original: what is asked about; see
        `models.pixel_llm_modes.ask_caption`.
        """
        return self.predict("trace", instruction=instruction, text=text, **place)

    def caption(self, instruction: str = "", **place: Any) -> Prediction:
        """A sentence without places; `place` as in `trace`."""
        return self.predict("caption", instruction=instruction, **place)

    def predict(self, mode: str = "trace", **said: Any) -> Prediction:
        """Asks about the picture that was set.

        Args:
          mode: one of the modes of the model's family.
          said: what the mode takes, all of it optional, None for what is not said. Without an `instruction` the
            experiment's own is taken. An empty `text` is a text: a sentence without words.

        Raises:
          ValueError: unknown mode, no picture set, what the mode does not take, what is too long.
        """
        modes = self._family.modes
        if mode not in modes:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(modes)}. Choose one of them.")
        said = {name: what for name, what in said.items() if what is not None}
        taken = modes[mode].takes
        if unknown := sorted(said.keys() - set(taken)):
            raise ValueError(
                f"{unknown[0]} is given in mode {mode!r}, expected only {', '.join(taken) or 'nothing'}. "
                "Leave it out, or choose another mode."
            )
        if self._features is None or self._placement is None:
            raise ValueError("no picture is set, expected one. Call set_image first.")
        if "instruction" in taken:
            said["instruction"] = self._instruction(said.get("instruction", ""))
        request = modes[mode].ask(self._model, self.vocabulary, self._placement, **said)
        answer = self._compiled.answer[mode](self.params, self._features, request)
        answer = jax.tree.map(lambda x: np.asarray(x)[0], answer)
        return modes[mode].tell(answer, self.vocabulary, self._placement, said)

    def _instruction(self, given: str) -> str:
        """The words that ask. Given ones must fit; the experiment's own are cut as they were in training."""
        own, room = self.config.instruction, self._model.shape.instruction
        if given and given != own and (asked := len(self.vocabulary.encode(given))) > room:
            raise ValueError(
                f"instruction has {asked} tokens, expected at most {room}. Shorten it, or train with a larger "
                "model.shape.instruction."
            )
        return given or own


def load(path: str | os.PathLike[str]) -> Predictor:
    """The predictor of a run folder, a checkpoint folder or one step of it; see `Predictor.from_checkpoint`."""
    return Predictor.from_checkpoint(path)


def load_params(config: Experiment, folder: Any, step: int) -> Any:
    """The parameters of a checkpoint (averaged where it has an average) on the first device.

    Raises:
      ValueError: they do not fit the config; one of the trained parameters only, without what it was trained on.
    """
    abstract = jax.eval_shape(lambda: models.family_of(config.model).init(config.model))
    if not (base := store.base_of(folder, step)):
        return store.read_params(folder, step, abstract)
    return state.on_base(config, base, folder / str(step), functools.partial(store.read_params, folder, step))


@functools.lru_cache(maxsize=8)
def compiled(config: models.ModelConfig) -> Compiled:
    """What a model config answers with, compiled at the first use of each form, once for all users of equal configs."""
    family = models.family_of(config)
    module = family.module(config)
    scored = {name: mode.scoring for name, mode in family.modes.items() if mode.scoring is not None}
    asked = {name: mode.answer for name, mode in family.modes.items()}
    evaluated = {name: scoring.answer for name, scoring in scored.items()}
    # Modes that are one function are compiled once.
    functions = {
        f: jax.jit(functools.partial(f, module)) for f in dict.fromkeys([*asked.values(), *evaluated.values()])
    }
    return Compiled(
        encode=jax.jit(functools.partial(family.encode_images, module)),
        answer={name: functions[f] for name, f in asked.items()},
        scored={name: functions[f] for name, f in evaluated.items()},
    )
