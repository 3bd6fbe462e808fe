"""A BERT-style language model that reads a prefix (visual tokens, words) and writes text after it, in one stack.

Wang et al. 2022, GIT (arXiv 2205.14100), with the layers of Devlin et al. 2018, as the published PixelLLM runs it.

A prefix and a text are one sequence: prefix positions see the whole prefix and no text, text positions see the prefix
and the text before them. So a layer's states of the prefix do not depend on the text: `encode` runs the layers over the
prefix alone and keeps the keys and values of each, `decode` runs the same layers over the text, which attends to them.
That is exactly the pass over the whole sequence, and a prefix is read once, however many tokens follow.

What differs from the release: layers may be scanned (see stack.py), linear layers may carry LoRA adapters, there is a
key-value cache, and dropped attention weights are the same for all queries of a head.

Padding (token 0) stands at the end of a text, so the causal mask keeps every real token from it.
"""

import dataclasses
import functools
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, zeros

from pixel_align.nn.attention import attention
from pixel_align.nn.blocks import MLP, ComputeDtype, LayerNorm
from pixel_align.nn.lora import LoRAConfig, LoRADense
from pixel_align.nn.partitioning import constrain
from pixel_align.nn.stack import Remat, run_stack, stack
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least, check_heads

# The release's epsilons: after the embeddings, after attention, after the MLP.
EMBEDDING_EPSILON, ATTENTION_EPSILON, MLP_EPSILON = 1e-8, 1e-5, 1e-12
_INIT = normal(0.02)  # of every kernel and table


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a prefix decoder and how it computes. The defaults are the published ones."""

    kind: str = "bert"  # name of this text head among the choices of a model
    vocab_size: int = 30522  # pieces, those of bert-base-uncased
    begin: int = 101  # token before a text, [CLS]; a vocabulary of one's own has its own number
    end: int = 102  # token after it, [SEP]
    width: int = 768  # of the residual stream
    num_heads: int = 12  # attention heads
    mlp_dim: int = 3072  # hidden width of the MLP
    layers: int = 6  # at least 1
    positions: int = 1024  # rows of the position table: the longest text, the longest instruction
    dropout_rate: float = 0.1  # on embeddings, branches, attention weights; 0 where the head is frozen
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)  # adapters on linear layers; rank 0 = none
    scan: bool = True  # layers as one scanned block with stacked parameters
    remat: Remat = "none"
    dtype: ComputeDtype = "float32"  # of the computation; parameters are made in float32
    frozen: bool = False  # the base is not trained (adapters may be): no dropout runs

    def __post_init__(self) -> None:
        check_at_least("bert", self, vocab_size=4, width=1, num_heads=1, mlp_dim=1, layers=1, positions=2)
        check_heads("bert", self.width, self.num_heads, 1, "heads share the width")
        for name in ("begin", "end"):
            if not 0 < getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"bert.{name} is {getattr(self, name)}, expected 1 to {self.vocab_size - 1}, a token of the "
                    "vocabulary that is no padding. Set it to the vocabulary's [CLS] or [SEP]."
                )
        if self.begin == self.end:
            raise ValueError(f"bert.begin and bert.end are both {self.begin}, expected two tokens. Set one of them.")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"bert.dropout_rate is {self.dropout_rate}, expected 0 to below 1. Set it to 0 for none.")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not a published size, for demos and tests: 0.07M parameters beside its tables; tokens of a small WordPiece
        vocabulary.
        """
        sizes = {"vocab_size": 256, "width": 64, "num_heads": 4, "mlp_dim": 128, "layers": 2, "positions": 128}
        return cls(**{**sizes, "begin": 2, "end": 3, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not a published size, to measure speed: 5.3M parameters."""
        sizes = {"vocab_size": 4096, "width": 256, "num_heads": 4, "mlp_dim": 1024, "layers": 4, "positions": 256}
        return cls(**{**sizes, **changes})

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """PixelLLM's: 90.2M parameters, 91.0M with what brings visual tokens to its width."""
        return cls(**changes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What texts need of a prefix that has been read. L layers, H heads of width E, S positions."""

    keys: jax.Array  # Float[L, B, S, H, E]
    values: jax.Array  # Float[L, B, S, H, E]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What is remembered of B half-written texts: S positions of the prefix, then room for T tokens."""

    position: jax.Array  # Int32[], how many tokens have been read
    keys: jax.Array  # Float[L, B, S + T, H, E], zeros behind the tokens read so far
    values: jax.Array  # Float[L, B, S + T, H, E]
    valid: jax.Array  # Bool[B, S], which positions of the prefix exist


class Bert(nn.Module):
    """The text head. Parameters: token_embedder, layers, logits_dense.

    Random bits come from "dropout". `train` False means no dropout anywhere.
    """

    config: BertConfig

    def setup(self) -> None:
        c = dataclasses.replace(self.config, dropout_rate=0.0) if self.config.frozen else self.config
        self.token_embedder = Embedding(c)
        methods = ("__call__", "step")
        self.layers = stack(Layer, c.layers, scan=c.scan, remat=c.remat, methods=methods, config=c)
        self.logits_dense = VocabularyLayer(c)

    def __call__(self, inputs: jax.Array, valid: jax.Array, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Text after text: inputs Int[B, S], valid Bool[B, S], tokens Int[B, T] -> logits Float32[B, T, V]."""
        encoded = self.encode(self.embed(inputs, train=train), valid, train=train)
        return self.logits(self.decode(tokens, encoded, valid, train=train))

    def embed(self, tokens: jax.Array, *, train: bool = False, first: int | jax.Array = 0) -> jax.Array:
        """Int[..., T] -> Float[..., T, D], the first of them at position `first`.

        A token outside the vocabulary becomes NaN, which stops a training run, instead of a neighbour's embedding.

        Raises:
          ValueError: more tokens than the position table has rows.
        """
        return self.token_embedder(tokens, first, train)

    def encode(self, embeddings: jax.Array, valid: jax.Array, *, train: bool = False) -> Prefix:
        """Embeddings Float[B, S, D] in their order, valid Bool[B, S] -> keys and values of every layer."""
        x = constrain(embeddings.astype(self.config.dtype), ("batch", None, None))
        _, (keys, values) = run_stack(self.layers, x, None, valid[:, None, None, :], train)
        return Prefix(keys, values)

    def decode(self, tokens: jax.Array, encoded: Prefix, encoded_valid: jax.Array, *, train: bool = False) -> jax.Array:
        """All positions at once: tokens Int[B, T] beginning with `begin` -> features Float[B, T, D].

        encoded: what `encode` returned; encoded_valid: Bool[B, S].
        Feature t is the state that has read tokens 0..t: what the location head reads for token t and what `logits`
        turns into the distribution of token t + 1.
        """
        b, t = tokens.shape
        causal = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (b, t, t))
        before = jnp.broadcast_to(encoded_valid[:, None, :], (b, t, encoded_valid.shape[1]))
        mask = jnp.concatenate([before, causal], axis=2)[:, None]
        x = constrain(self.embed(tokens, train=train), ("batch", None, None))
        return run_stack(self.layers, x, (encoded.keys, encoded.values), mask, train)[0]

    def drop_features(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Float[..., T, D] -> the same: nothing is dropped between features and vocabulary layer."""
        return features

    def logits(self, features: jax.Array) -> jax.Array:
        """Float[..., D] -> Float32[..., V]."""
        kernel, bias = self.logits_dense()
        kernel = kernel.astype(features.dtype)
        return jnp.einsum("...d,dv->...v", features, kernel, preferred_element_type=jnp.float32) + bias

    def logits_kernel(self) -> jax.Array:
        """Float32[D, V], for a loss that multiplies in chunks."""
        return self.logits_dense()[0]

    def logits_bias(self) -> jax.Array:
        """Float32[V], what is added to those products."""
        return self.logits_dense()[1]

    def init_cache(self, encoded: Prefix, encoded_valid: jax.Array, length: int) -> Cache:
        """What `encode` returned and Bool[B, S] -> a cache with room for `length` tokens, the first included.

        Raises:
          ValueError: more tokens than the position table has rows.
        """
        check_length(length, self.config)
        keys, values = (
            jnp.pad(x, ((0, 0), (0, 0), (0, length), (0, 0), (0, 0))) for x in (encoded.keys, encoded.values)
        )
        return Cache(jnp.zeros((), jnp.int32), keys, values, encoded_valid)

    def decode_step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads one more token of each text: Int[B] -> features Float[B, D] and the new cache; no dropout.

        The caller stops at the cache's length: one step more would overwrite the last position.
        """
        before, length = cache.valid.shape[1], cache.keys.shape[2] - cache.valid.shape[1]
        read = jnp.broadcast_to(jnp.arange(length) <= cache.position, (tokens.shape[0], length))
        mask = jnp.concatenate([cache.valid, read], axis=1)[:, None, None, :]
        at = before + cache.position
        x = self.embed(tokens[:, None], first=cache.position)
        x, (keys, values) = run_stack(self.layers, x, (cache.keys, cache.values), (at, mask), method="step")
        # One write for all layers, outside of their loop, which XLA does in place.
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=2)
        keys, values = write(cache.keys, keys), write(cache.values, values)
        return x[:, 0], dataclasses.replace(cache, position=cache.position + 1, keys=keys, values=values)


class Embedding(nn.Module):
    """Word plus position, normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, first: int | jax.Array, train: bool) -> jax.Array:
        """Int[..., T], the position of the first -> Float[..., T, D]."""
        c = self.config
        check_length(tokens.shape[-1], c)
        words = self.param("embedding", _INIT, (c.vocab_size, c.width), jnp.float32)
        positions = self.param("positions", _INIT, (c.positions, c.width), jnp.float32)
        # Rows, not a one-hot product. Out of range is NaN (jnp.take's default).
        x = jnp.take(words, tokens, axis=0) + jnp.take(positions, first + jnp.arange(tokens.shape[-1]), axis=0)
        x = LayerNorm(EMBEDDING_EPSILON, dtype=c.dtype, name="norm")(x)
        return nn.Dropout(c.dropout_rate)(x, deterministic=not train)


class Layer(nn.Module):
    """Self-attention and MLP, each added to what it read and normalised behind."""

    config: BertConfig

    def setup(self) -> None:
        c = self.config
        self.attention = Attention(c)
        self.attention_norm = LayerNorm(ATTENTION_EPSILON, dtype=c.dtype)
        self.mlp = MLP(
            c.mlp_dim,
            "gelu",
            lora_wi=c.lora.rank_of("wi"),
            lora_wo=c.lora.rank_of("wo"),
            lora_scale=c.lora.scale,
            kernel_init=_INIT,
            dtype=c.dtype,
        )
        self.mlp_norm = LayerNorm(MLP_EPSILON, dtype=c.dtype)
        self.dropout = nn.Dropout(c.dropout_rate)

    def __call__(
        self, x: jax.Array, layer: tuple[jax.Array, jax.Array] | None, shared: jax.Array, train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """x: Float[B, T, D]; layer: keys and values Float[B, S, H, E] of what stands before x, None where nothing does;
        shared: the mask Bool[B, 1, 1 or T, S + T].

        Gives back the keys and values of x where nothing stands before it, that is of a prefix.
        """
        own = self.attention.keys_values(x)
        keys, values = own
        if layer is not None:
            keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(layer, own, strict=True))
        return self._branches(x, keys, values, shared, train), own if layer is None else None

    def step(
        self, x: jax.Array, layer: tuple[jax.Array, jax.Array], shared: tuple[jax.Array, jax.Array], train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x: Float[B, 1, D]; layer: this layer's part of the cache; shared: where x stands in it Int[], and the mask.

        Gives back the keys and values Float[B, 1, H, E] of the new token.
        """
        at, mask = shared
        key, value = self.attention.keys_values(x)
        insert = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=1)
        return self._branches(x, insert(layer[0], key), insert(layer[1], value), mask, train), (key, value)

    def _branches(self, x: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Both branches, given x and the keys and values of all that it may read."""
        y = self.attention.attend(x, keys, values, mask, train)
        x = self.attention_norm(x + self.dropout(y, deterministic=not train))
        return self.mlp_norm(x + self.dropout(self.mlp(x, train), deterministic=not train))


class Attention(nn.Module):
    """Multi-head attention in two halves, so that keys and values can be kept."""

    config: BertConfig

    def setup(self) -> None:
        self.query, self.key, self.value, self.out = map(self._dense, ("query", "key", "value", "out"))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Float[B, T, D] -> keys and values, Float[B, T, H, E]."""
        return self._split(self.key(x)), self._split(self.value(x))

    def attend(self, x: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Float[B, T, D] and keys, values Float[B, S, H, E] -> Float[B, T, D]."""
        rate = self.config.dropout_rate
        rng = self.make_rng("dropout") if train and rate else None
        y = attention(self._split(self.query(x)), keys, values, mask=mask, dropout_rate=rate, dropout_rng=rng)
        return self.out(y.reshape(x.shape))

    def _dense(self, target: str) -> LoRADense:
        c = self.config
        return LoRADense(c.width, rank=c.lora.rank_of(target), scale=c.lora.scale, kernel_init=_INIT, dtype=c.dtype)

    def _split(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        return constrain(x, ("batch", None, "heads", None))


class VocabularyLayer(nn.Module):
    """Kernel and bias of the vocabulary layer, handed out: who multiplies chooses how much at a time."""

    config: BertConfig

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns Float32[D, V] and Float32[V]."""
        c = self.config
        kernel = self.param("kernel", _INIT, (c.width, c.vocab_size), jnp.float32)
        return kernel, self.param("bias", zeros, (c.vocab_size,), jnp.float32)


def check_length(length: int, config: BertConfig) -> None:
    """Raises ValueError for a text that is longer than the position table."""
    if length > config.positions:
        raise ValueError(
            f"text or instruction has {length} tokens, expected at most {config.positions}, the rows of bert.positions."
            " Shorten model.shape.text or model.shape.instruction, or set model.text.positions."
        )


def rules(config: BertConfig) -> PartRules:
    """Rules of a Bert's parameters; adapters stay trainable where the base is frozen."""
    adapters: tuple[tuple[str, Any], ...] = ()
    if config.lora.rank:
        adapters = ((r".*/lora/a", (..., "fsdp", None)), (r".*/lora/b", (..., None, "tensor")))
    small = r".*/(bias|scale|positions)"
    return PartRules(
        sharding=(
            *adapters,
            (r".*/(query|key|value|wi)/kernel|logits_dense/kernel", (..., "fsdp", "tensor")),
            (r".*/(out|wo)/kernel", (..., "tensor", "fsdp")),
            # Rows are looked up, so they stay together: a table that is split by rows too is gathered whole first.
            (r"token_embedder/embedding", (None, "fsdp")),
            (small, ()),
        ),
        weight_decay=((small, 0.0), (r".*(kernel|lora/[ab]|token_embedder/embedding)", 1.0)),
        trainable=(
            *(((r".*/lora/[ab]", not config.lora.frozen),) if config.lora.rank else ()),
            (r".*", not config.frozen),
        ),
    )
