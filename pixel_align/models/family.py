"""What a family of models gives to everybody else.

Trainer, data, evaluator, predictor and command line know this contract and no method of any model. A new family is one
file that ends in `register(Family(...))`; nothing else changes.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from pixel_align.batch import Shape
from pixel_align.converter import Converter
from pixel_align.geometry import Placement
from pixel_align.prediction import Prediction
from pixel_align.text import Vocabulary


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the config of every family has; its default `kind` names the family.

    As the type of a setting it stands for the configs of all registered families (see `settings`).
    """

    kind: str
    shape: Shape

    @classmethod
    def kinds(cls) -> tuple[type, ...]:
        """The configs of the registered families."""
        return tuple(family.config for family in FAMILIES.values())


@dataclasses.dataclass(frozen=True)
class Said:
    """What a model said about one example of a task.

    Attributes:
      scored: the prediction as the task's metrics take it.
      prediction: the same for people: drawn and written.
      line: what else belongs into the line of predictions.jsonl.
    """

    scored: Any
    prediction: Prediction
    line: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a task is scored in a mode: its batches become requests, the answers become what its metrics take.

    Attributes:
      request: (batch, pictures) -> request: the words of `batch` asked about the pictures of another batch of the same
        size, which is the same one but for the control `shuffled`.
      answer: (module, params, image features, request) -> arrays with a leading axis B; compiled.
      target: (example of the task, its placement) -> what the metrics take as target.
      said: (answer of one example as numpy, its target, vocabulary, placement) -> Said.
      reads: what an example of such a task must hold, by name.
    """

    request: Callable[[Any, Any], Any]
    answer: Callable[[Any, Any, Any, Any], Any]
    target: Callable[[Mapping[str, Any], Placement], Any]
    said: Callable[[Any, Any, Vocabulary, Placement], Said]
    reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way to ask about a picture whose image features are kept.

    Attributes:
      ask: (config, vocabulary, placement, *, ...) -> request about one picture: arrays with a leading axis 1. Its
        keywords are what a user may say in this mode; ValueError for what cannot be asked.
      answer: (module, params, image features, request) -> arrays with a leading axis B; compiled.
      tell: (answer about one picture as numpy, vocabulary, placement, what the user said) -> Prediction.
      scoring: how tasks are scored in this mode, None where they are not.
    """

    ask: Callable[..., Any]
    answer: Callable[[Any, Any, Any, Any], Any]
    tell: Callable[[Any, Vocabulary, Placement, Mapping[str, Any]], Prediction]
    scoring: Scoring | None = None

    @property
    def takes(self) -> list[str]:
        """What a user may say in this mode."""
        parameters = inspect.signature(self.ask).parameters.values()
        return sorted(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      config: a frozen ModelConfig whose field `kind` has the family's name as default.
      module: config -> Linen module, `__call__(batch, *, train) -> outputs`.
      loss: (outputs, batch, config) -> {name: (weight, (sum, count))}. Sums of all devices are added, then divided
        once; of several batches a step, the weighted mean is taken (`losses.join`).
      batch_spec: (config, B) -> the abstract batch. Every batch has images UInt8[B, H, W, 3] and valid_size
        Int32[B, 2]; the rest of it is the family's own.
      converter: (config, vocabulary, augment) -> what makes a row of such a batch of an example of a task; ValueError
        where vocabulary and config do not fit.
      rules: config -> the rule lists of `param_rules.PartRules`.
      encode_images: (module, params, images, valid_size) -> image features, kept while a picture is asked about.
      modes: name -> Mode.
    """

    config: type[ModelConfig]
    module: Callable[[Any], nn.Module]
    loss: Callable[[Any, Any, Any], Mapping[str, Any]]
    batch_spec: Callable[[Any, int], Any]
    converter: Callable[[Any, Vocabulary, Any], Converter]
    rules: Callable[[Any], Mapping[str, Any]]
    encode_images: Callable[[Any, Any, Any, Any], Any]
    modes: Mapping[str, Mode]

    @property
    def kind(self) -> str:
        """The family's name."""
        return str(next(field.default for field in dataclasses.fields(self.config) if field.name == "kind"))

    def init(self, config: ModelConfig, seed: int = 0) -> Any:
        """The parameters of a new model."""
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.batch_spec(config, 1))
        return self.module(config).init(jax.random.key(seed), empty)["params"]


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Makes a family known by its kind.

    Raises:
      ValueError: another family has that kind.
    """
    if family.kind in FAMILIES:
        raise ValueError(f"model.kind {family.kind!r} is registered already, expected a new name. Choose another kind.")
    FAMILIES[family.kind] = family
    return family


def family_of(config: ModelConfig) -> Family:
    """The family that `config.kind` names."""
    if config.kind not in FAMILIES:
        raise ValueError(
            f"model.kind is {config.kind!r}, expected one of {', '.join(sorted(FAMILIES))}. Choose one of them, or "
            "import the module that registers it."
        )
    return FAMILIES[config.kind]
