"""Model families. A family is its config, its module, its loss, the batch it reads and the requests it answers.

Trainer, converter, evaluator and command line know this contract and no method of any model:
  config: a frozen dataclass with a `kind` and a `shape`.
  module(config): a Linen module, `__call__(batch, *, train) -> outputs`.
  loss(outputs, batch, config) -> {name: (weight, (sum, count))}.
  batch_spec(config, batch_size) -> the abstract batch.
  encode_images(module, params, images, valid_size) -> image features, kept while a picture is asked about.
  predict: {mode: function(module, params, image features, request) -> answer}.
  rules(config) -> {"trainable" | "weight_decay" | "lr_multiplier" | "sharding": ordered rules}.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from pixel_align.models import pixel_llm


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family gives to everybody else; see the module's docstring."""

    config: type
    module: Callable[[Any], nn.Module]
    loss: Callable[[Any, Any, Any], Mapping[str, Any]]
    batch_spec: Callable[[Any, int], Any]
    rules: Callable[[Any], Mapping[str, Any]]
    encode_images: Callable[..., Any]
    predict: Mapping[str, Callable[..., Any]]


FAMILIES: dict[str, Family] = {
    "pixel_llm": Family(
        config=pixel_llm.PixelLLMConfig,
        module=pixel_llm.PixelLLM,
        loss=pixel_llm.loss,
        batch_spec=pixel_llm.batch_spec,
        rules=pixel_llm.rules,
        encode_images=pixel_llm.encode_images,
        predict=pixel_llm.PREDICT,
    )
}


def family(config: Any) -> Family:
    """The family that `config.kind` names."""
    if config.kind not in FAMILIES:
        raise ValueError(f"model.kind is {config.kind!r}, expected one of {sorted(FAMILIES)}. Choose one of them.")
    return FAMILIES[config.kind]
