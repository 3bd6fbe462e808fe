"""The language models that a model may choose among, and what all of them can be asked.

Letters in shapes: B texts, S positions of the prefix, T tokens, D width, V vocabulary.
"""

from typing import Any, Protocol

import jax

from pixel_align.nn import bert, t5
from pixel_align.nn.bert import Bert, BertConfig
from pixel_align.nn.t5 import T5, T5Config
from pixel_align.param_rules import PartRules

LanguageModelConfig = T5Config | BertConfig


class LanguageModel(Protocol):
    """A network that reads a prefix of embeddings and writes text after it.

    What it makes of a prefix is its own: callers hand it on and do not look inside. Feature t has read tokens 0 to t.
    """

    def embed(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Words of a prefix, Int[..., T] -> Float[..., T, D]."""

    def encode(self, embeddings: jax.Array, valid: jax.Array, *, train: bool = False) -> Any:
        """Float[B, S, D], Bool[B, S] -> the prefix as texts read it, a pytree."""

    def decode(self, tokens: jax.Array, encoded: Any, encoded_valid: jax.Array, *, train: bool = False) -> jax.Array:
        """All tokens at once, Int[B, T] -> features Float[B, T, D]."""

    def drop_features(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Float[..., T, D] -> the same, as the vocabulary layer reads them."""

    def logits(self, features: jax.Array) -> jax.Array:
        """Float[..., D] -> Float32[..., V]."""

    def logits_kernel(self) -> jax.Array:
        """Float32[D, V]: logits are features @ kernel, plus the bias where there is one."""

    def logits_bias(self) -> jax.Array | None:
        """Float32[V], None for a vocabulary layer without."""

    def init_cache(self, encoded: Any, encoded_valid: jax.Array, length: int) -> Any:
        """What `encode` made -> a cache with room for `length` tokens, a pytree."""

    def decode_step(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """One more token of each text, Int[B] -> features Float[B, D] and the next cache."""


def language_model(config: LanguageModelConfig) -> LanguageModel:
    """The Linen module of a config."""
    return Bert(config) if isinstance(config, BertConfig) else T5(config)


def rules(config: LanguageModelConfig) -> PartRules:
    """Rules of its parameters."""
    return bert.rules(config) if isinstance(config, BertConfig) else t5.rules(config)
