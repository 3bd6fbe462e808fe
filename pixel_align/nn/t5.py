"""T5 1.1: an encoder that reads embeddings (a visual prefix, words) and a decoder that writes text.

Raffel et al. 2020 in the 1.1 revision (gated tanh-GELU, no weight shared between embedding and vocabulary layer), as
in T5X's examples/t5: parameter names, dropout places and initial values are those. What differs: layers may be scanned
(`layers` instead of `layers_0`, see stack.py), linear layers may carry LoRA adapters, and the key-value cache is a
plain pytree that the caller holds.

Tokens: 0 is both padding and the decoder's first token, 1 ends a text. Padding stands at the end of a text, so the
causal mask alone keeps every real token from it, and nothing is shifted: feature t has read tokens 0..t.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, normal, variance_scaling

from pixel_align.nn.attention import attention
from pixel_align.nn.blocks import MLP, ComputeDtype, RMSNorm
from pixel_align.nn.lora import LoRAConfig, LoRADense
from pixel_align.nn.partitioning import constrain
from pixel_align.nn.stack import Remat, run_stack, stack
from pixel_align.param_rules import PartRules
from pixel_align.sizes import check_at_least


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 1.1 and how it computes. The presets below are the published ones; `tiny` is ours."""

    begin: ClassVar[int] = 0  # token before a text
    end: ClassVar[int] = 1  # token after it

    kind: str = "t5"  # name of this text head among the choices of a model
    vocab_size: int = 32128  # rows of the embedding: 32,000 pieces, 100 extras, 28 unused
    width: int = 512  # of the residual stream
    num_heads: int = 6  # attention heads
    head_dim: int = 64  # width of one head; num_heads * head_dim need not be width
    mlp_dim: int = 1024  # hidden width of the gated MLP
    encoder_layers: int = 8  # at least 1
    decoder_layers: int = 8  # at least 1
    relative_buckets: int = 32  # rows of the relative position table, even
    relative_max_distance: int = 128  # tokens; all larger distances share a bucket
    dropout_rate: float = 0.1  # on embeddings, branches, attention weights, MLP; 0 where the head is frozen
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)  # adapters on linear layers; rank 0 = none
    scan: bool = True  # layers as one scanned block with stacked parameters
    remat: Remat = "none"
    dtype: ComputeDtype = "float32"  # of the computation; parameters are made in float32
    frozen: bool = False  # the base is not trained (adapters may be): no dropout runs; published: left on in it

    def __post_init__(self) -> None:
        if self.relative_buckets < 4 or self.relative_buckets % 4:
            raise ValueError(
                f"relative_buckets is {self.relative_buckets}, expected a positive multiple of 4 "
                "(two directions, half of each exact). T5 has 32."
            )
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance is {self.relative_max_distance}, expected more than relative_buckets / 2 = "
                f"{self.relative_buckets // 2}, the distances that have a bucket of their own. T5 has 128."
            )
        check_at_least("t5", self, vocab_size=2, width=1, num_heads=1, head_dim=1, mlp_dim=1)
        check_at_least("t5", self, encoder_layers=1, decoder_layers=1)
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"t5.dropout_rate is {self.dropout_rate}, expected 0 to below 1. Set it to 0 for none.")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Not a published size, for demos and tests: 0.16M parameters beside its two vocabulary tables."""
        sizes = {"width": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 128, "encoder_layers": 1, "decoder_layers": 2}
        return cls(**{**sizes, **changes})

    @classmethod
    def bench(cls, **changes: Any) -> Self:
        """Not a published size, to measure speed: 11.5M parameters beside the adapters."""
        sizes = {"vocab_size": 4096, "width": 256, "num_heads": 4, "mlp_dim": 1024}
        return cls(**{**sizes, "encoder_layers": 4, "decoder_layers": 4, **changes})

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """T5 1.1 small: 77M parameters."""
        return cls(**changes)

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """T5 1.1 base: 248M parameters."""
        sizes = {"width": 768, "num_heads": 12, "mlp_dim": 2048, "encoder_layers": 12, "decoder_layers": 12}
        return cls(**{**sizes, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """T5 1.1 large: 783M parameters."""
        sizes = {"width": 1024, "num_heads": 16, "mlp_dim": 2816, "encoder_layers": 24, "decoder_layers": 24}
        return cls(**{**sizes, **changes})

    @classmethod
    def xl(cls, **changes: Any) -> Self:
        """T5 1.1 XL, the size of Flan-T5-XL: 2,850M parameters; PixelLLM's text head with LoRAConfig(rank=32)."""
        sizes = {"width": 2048, "num_heads": 32, "mlp_dim": 5120, "encoder_layers": 24, "decoder_layers": 24}
        return cls(**{**sizes, **changes})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoder remembers of B half-written texts. L layers, H heads of width E, T tokens, S encoded positions."""

    position: jax.Array  # Int32[], how many tokens have been read
    self_keys: jax.Array  # Float[L, B, T, H, E], of the tokens read so far, zeros behind
    self_values: jax.Array  # Float[L, B, T, H, E]
    cross_keys: jax.Array  # Float[L, B, S, H, E], of the encoded prefix, computed once
    cross_values: jax.Array  # Float[L, B, S, H, E]
    cross_valid: jax.Array  # Bool[B, S], which encoded positions exist


class T5(nn.Module):
    """The text head. Parameters: token_embedder, encoder, decoder (with decoder/logits_dense).

    Random bits come from "dropout". `train` False means no dropout anywhere.
    """

    config: T5Config

    def setup(self) -> None:
        config = dataclasses.replace(self.config, dropout_rate=0.0) if self.config.frozen else self.config
        self.token_embedder = Embedding(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, inputs: jax.Array, valid: jax.Array, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Text to text: inputs Int[B, S], valid Bool[B, S], tokens Int[B, T] -> logits Float32[B, T, V]."""
        encoded = self.encode(self.embed(inputs, train=train), valid, train=train)
        return self.logits(self.drop_features(self.decode(tokens, encoded, valid, train=train), train=train))

    def embed(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Int[..., T] -> Float[..., T, D]. Dropout runs here: a visual prefix that `encode` gets beside is not dropped.

        A token outside the vocabulary becomes NaN, which stops a training run, instead of a neighbour's embedding.
        """
        return self.dropout(self.token_embedder(tokens), deterministic=not train)

    def encode(self, embeddings: jax.Array, valid: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeddings Float[B, S, D] in their order, valid Bool[B, S] -> Float[B, S, D]; invalid ones hold noise."""
        return self.encoder(embeddings, valid, train)

    def decode(
        self, tokens: jax.Array, encoded: jax.Array, encoded_valid: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """All positions at once: tokens Int[B, T] beginning with 0 -> features Float[B, T, D].

        encoded: Float[B, S, D], what `encode` returned; encoded_valid: Bool[B, S].
        Feature t is the normalised state that has read tokens 0..t: what the location head reads for token t and what
        `logits` turns into the distribution of token t + 1.
        """
        return self.decoder(self.embed(tokens, train=train), encoded, encoded_valid, train)

    def drop_features(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Float[..., T, D] -> the same: the dropout between features and vocabulary layer; locations do without."""
        return self.dropout(features, deterministic=not train)

    def logits(self, features: jax.Array) -> jax.Array:
        """Float[..., D] -> Float32[..., V]."""
        kernel = self.logits_kernel().astype(features.dtype)
        return jnp.einsum("...d,dv->...v", features, kernel, preferred_element_type=jnp.float32)

    def logits_kernel(self) -> jax.Array:
        """Float32[D, V], for a loss that multiplies in chunks."""
        return self.decoder.logits_dense()

    def logits_bias(self) -> None:
        """T5's vocabulary layer has none."""

    def init_cache(self, encoded: jax.Array, encoded_valid: jax.Array, length: int) -> Cache:
        """Float[B, S, D], Bool[B, S] -> an empty cache for `length` tokens, the first (0) included."""
        return self.decoder.init_cache(encoded, encoded_valid, length)

    def decode_step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads one more token of each text: Int[B] -> features Float[B, D] and the new cache; no dropout.

        The caller stops at the cache's length: one step more would overwrite the last position.
        """
        return self.decoder.step(self.embed(tokens[:, None]), cache)


class Embedding(nn.Module):
    """The table of word embeddings."""

    config: T5Config

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Int[...] -> Float[..., D]."""
        c = self.config
        table = self.param("embedding", normal(1.0), (c.vocab_size, c.width), jnp.float32)
        # Rows, not a one-hot product: [B, T, V] never exists. Out of range is NaN (jnp.take's default).
        return jnp.take(table, tokens, axis=0).astype(c.dtype)


class VocabularyKernel(nn.Module):
    """The weight of the vocabulary layer, handed out: who multiplies it chooses how much at a time."""

    config: T5Config

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns Float32[D, V]."""
        init = variance_scaling(1.0, "fan_in", "truncated_normal")
        return self.param("kernel", init, (self.config.width, self.config.vocab_size), jnp.float32)


class Encoder(nn.Module):
    """The encoder's layers; one table of relative positions for all of them."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.relpos_bias = RelativeBias(c, bidirectional=True)
        self.layers = stack(EncoderLayer, c.encoder_layers, scan=c.scan, remat=c.remat, config=c)
        self.encoder_norm = RMSNorm(dtype=c.dtype)
        self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
        """Float[B, S, D], Bool[B, S] -> Float[B, S, D]."""
        positions = np.arange(x.shape[1])
        shared = (self.relpos_bias(positions, positions), valid[:, None, None, :])
        x = constrain(x.astype(self.config.dtype), ("batch", None, None))
        x, _ = run_stack(self.layers, x, None, shared, train)
        return self.dropout(self.encoder_norm(x), deterministic=not train)


class Decoder(nn.Module):
    """The decoder's layers: all positions at once, or one at a time with a cache."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.relpos_bias = RelativeBias(c, bidirectional=False)
        methods = ("__call__", "cross_keys_values", "step")
        self.layers = stack(DecoderLayer, c.decoder_layers, scan=c.scan, remat=c.remat, methods=methods, config=c)
        self.decoder_norm = RMSNorm(dtype=c.dtype)
        self.logits_dense = VocabularyKernel(c)

    def __call__(self, x: jax.Array, encoded: jax.Array, encoded_valid: jax.Array, train: bool) -> jax.Array:
        """Float[B, T, D], Float[B, S, D], Bool[B, S] -> features Float[B, T, D]."""
        positions = np.arange(x.shape[1])
        causal = jnp.asarray(positions[:, None] >= positions[None, :])[None, None]
        bias = self.relpos_bias(positions, positions)
        shared = (bias, causal, encoded.astype(self.config.dtype), encoded_valid[:, None, None, :])
        x, _ = run_stack(self.layers, constrain(x, ("batch", None, None)), None, shared, train)
        return self.decoder_norm(x)

    def init_cache(self, encoded: jax.Array, encoded_valid: jax.Array, length: int) -> Cache:
        """Float[B, S, D], Bool[B, S] -> a cache of `length` positions that has read nothing."""
        c = self.config
        _, (keys, values) = run_stack(self.layers, encoded.astype(c.dtype), method="cross_keys_values")
        empty = jnp.zeros((c.decoder_layers, encoded.shape[0], length, c.num_heads, c.head_dim), c.dtype)
        return Cache(jnp.zeros((), jnp.int32), empty, empty, keys, values, encoded_valid)

    def step(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Float[B, 1, D] -> features Float[B, D] and the cache that has read them."""
        positions = jnp.arange(cache.self_keys.shape[2])
        bias = self.relpos_bias(cache.position[None], positions)
        read = (positions <= cache.position)[None, None, None, :]
        layer = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values)
        shared = (cache.position, bias, read, cache.cross_valid[:, None, None, :])
        x, (keys, values) = run_stack(self.layers, x, layer, shared, method="step")
        # One write for all layers, outside of their loop: XLA does it in place, where a cache handed from layer to
        # layer would be copied at every token.
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=cache.position, axis=2)
        cache = dataclasses.replace(
            cache,
            position=cache.position + 1,
            self_keys=write(cache.self_keys, keys),
            self_values=write(cache.self_values, values),
        )
        return self.decoder_norm(x)[:, 0], cache


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each a branch normalised before."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.pre_attention_layer_norm = RMSNorm(dtype=c.dtype)
        self.attention = Attention(c)
        self.pre_mlp_layer_norm = RMSNorm(dtype=c.dtype)
        self.mlp = _mlp(c)
        self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, x: jax.Array, layer: None, shared: tuple[jax.Array, jax.Array], train: bool
    ) -> tuple[jax.Array, None]:
        """x: Float[B, S, D]; shared: bias Float[1, H, S, S] and mask Bool[B, 1, 1, S]."""
        bias, mask = shared
        y = self.pre_attention_layer_norm(x)
        y = self.attention.attend(y, *self.attention.keys_values(y), bias, mask, train)
        x = x + self.dropout(y, deterministic=not train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train)
        return x + self.dropout(y, deterministic=not train), None


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoded prefix and MLP, each a branch normalised before."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.pre_self_attention_layer_norm = RMSNorm(dtype=c.dtype)
        self.self_attention = Attention(c)
        self.pre_cross_attention_layer_norm = RMSNorm(dtype=c.dtype)
        self.encoder_decoder_attention = Attention(c)
        self.pre_mlp_layer_norm = RMSNorm(dtype=c.dtype)
        self.mlp = _mlp(c)
        self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x: jax.Array, layer: None, shared: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, None]:
        """x: Float[B, T, D]; shared: bias [1, H, T, T], mask [1, 1, T, T], encoded [B, S, D], its mask [B, 1, 1, S]."""
        bias, mask, encoded, encoded_mask = shared
        y = self.pre_self_attention_layer_norm(x)
        own = self.self_attention.keys_values(y)
        cross = self.encoder_decoder_attention.keys_values(encoded)
        return self._branches(x, y, own, cross, bias, mask, encoded_mask, train), None

    def cross_keys_values(
        self, x: jax.Array, layer: None, shared: None, train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x: the encoded prefix Float[B, S, D], handed on as it is. Gives back this layer's keys and values of it."""
        return x, self.encoder_decoder_attention.keys_values(x)

    def step(
        self, x: jax.Array, layer: tuple[jax.Array, ...], shared: tuple[jax.Array, ...], train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x: Float[B, 1, D]; layer: this layer's part of the cache; shared: position [], bias [1, H, 1, T], masks.

        Gives back the keys and values Float[B, 1, H, E] of the new token.
        """
        self_keys, self_values, cross_keys, cross_values = layer
        position, bias, mask, encoded_mask = shared
        y = self.pre_self_attention_layer_norm(x)
        key, value = self.self_attention.keys_values(y)
        insert = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=position, axis=1)
        own = insert(self_keys, key), insert(self_values, value)
        return self._branches(x, y, own, (cross_keys, cross_values), bias, mask, encoded_mask, train), (key, value)

    def _branches(
        self,
        x: jax.Array,
        y: jax.Array,
        own: tuple[jax.Array, jax.Array],
        cross: tuple[jax.Array, jax.Array],
        bias: jax.Array,
        mask: jax.Array,
        encoded_mask: jax.Array,
        train: bool,
    ) -> jax.Array:
        """The three branches, given x, its normalised form y, and the keys and values of both attentions."""
        y = self.self_attention.attend(y, *own, bias, mask, train)
        x = x + self.dropout(y, deterministic=not train)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention.attend(y, *cross, None, encoded_mask, train)
        x = x + self.dropout(y, deterministic=not train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train)
        return x + self.dropout(y, deterministic=not train)


class Attention(nn.Module):
    """T5's multi-head attention in two halves, so that keys and values can be kept: no biases, logits not scaled."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        heads = c.num_heads * c.head_dim
        # T5 scales the query's initial weight by 1 / sqrt(head_dim) and then never its logits.
        self.query = self._dense("query", heads, variance_scaling(1.0 / c.head_dim, "fan_in", "normal"))
        init = variance_scaling(1.0, "fan_in", "normal")
        self.key = self._dense("key", heads, init)
        self.value = self._dense("value", heads, init)
        self.out = self._dense("out", c.width, init)

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Float[B, S, D] -> keys and values, Float[B, S, H, E]."""
        return self._split(self.key(x)), self._split(self.value(x))

    def attend(
        self,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array,
        train: bool,
    ) -> jax.Array:
        """Float[B, T, D] and keys, values Float[B, S, H, E] -> Float[B, T, D]."""
        c = self.config
        rng = self.make_rng("dropout") if train and c.dropout_rate else None
        query = self._split(self.query(x))
        y = attention(
            query, keys, values, bias=bias, mask=mask, scale=1.0, dropout_rate=c.dropout_rate, dropout_rng=rng
        )
        return self.out(y.reshape(*x.shape[:-1], c.num_heads * c.head_dim))

    def _dense(self, target: str, features: int, init: Initializer) -> LoRADense:
        c = self.config
        rank = c.lora.rank_of(target)
        return LoRADense(features, use_bias=False, rank=rank, scale=c.lora.scale, kernel_init=init, dtype=c.dtype)

    def _split(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        return constrain(x, ("batch", None, "heads", None))


class RelativeBias(nn.Module):
    """A learned number per head and bucket of relative position, added to attention logits."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions: Any, key_positions: Any) -> jax.Array:
        """Int[T], Int[S] (NumPy where they are known when compiling) -> Float32[1, H, T, S]."""
        c = self.config
        init = variance_scaling(1.0, "fan_avg", "uniform")
        table = self.param("rel_embedding", init, (c.num_heads, c.relative_buckets), jnp.float32)
        relative = key_positions[None, :] - query_positions[:, None]
        buckets = relative_position_bucket(relative, self.bidirectional, c.relative_buckets, c.relative_max_distance)
        return jnp.take(table, buckets, axis=1)[None].astype(jnp.float32)


def relative_position_bucket(relative: Any, bidirectional: bool, buckets: int, max_distance: int) -> Any:
    """Which bucket a relative position (key minus query, in tokens) falls into; Int[...] of NumPy or JAX -> the same.

    Half of the buckets hold one distance each, the others grow as the logarithm up to max_distance. Bidirectional: the
    upper half of all buckets is for keys behind the query. Else keys behind the query share bucket 0.
    """
    if bidirectional:
        buckets //= 2
        offset, distance = (relative > 0) * buckets, abs(relative)
    else:
        offset, distance = 0, (-relative).clip(min=0)
    thresholds = np.asarray(_bucket_thresholds(buckets, max_distance))
    return offset + (distance[..., None] >= thresholds).sum(axis=-1)


@functools.lru_cache
def _bucket_thresholds(buckets: int, max_distance: int) -> tuple[int, ...]:
    """The smallest distance of each bucket but the first.

    In whole numbers: T5 takes floor(log(n / e) / log(max_distance / e) * (buckets - e)) with e = buckets / 2, whose
    value at a power of two hangs on the last bit of a logarithm. The same as an inequality between powers is exact.
    """
    exact = buckets // 2
    thresholds = list(range(1, exact + 1))
    for step in range(1, buckets - exact):
        n = thresholds[-1]
        while n ** (buckets - exact) * exact**step < max_distance**step * exact ** (buckets - exact):
            n += 1
        thresholds.append(n)
    return tuple(thresholds)


def _mlp(c: T5Config) -> MLP:
    return MLP(
        c.mlp_dim,
        "gelu_tanh",
        gated=True,
        use_bias=False,
        dropout_rate=c.dropout_rate,
        lora_wi=c.lora.rank_of("wi"),
        lora_wo=c.lora.rank_of("wo"),
        lora_scale=c.lora.scale,
        dtype=c.dtype,
    )


def rules(config: T5Config) -> PartRules:
    """Rules of a T5's parameters; adapters stay trainable where the base is frozen."""
    adapters: tuple[tuple[str, Any], ...] = ()
    if config.lora.rank:
        adapters = ((r".*/lora/a", (..., "fsdp", None)), (r".*/lora/b", (..., None, "tensor")))
    return PartRules(
        sharding=(
            *adapters,
            (r".*/(query|key|value|wi_0|wi_1)/kernel|decoder/logits_dense/kernel", (..., "fsdp", "tensor")),
            (r".*/(out|wo)/kernel", (..., "tensor", "fsdp")),
            # Rows are looked up, so they stay together: a table that is split by rows too is gathered whole first.
            (r"token_embedder/embedding", (None, "fsdp")),
            (r".*/scale|.*/rel_embedding", ()),
        ),
        weight_decay=((r".*/scale|.*/rel_embedding", 0.0), (r".*(kernel|lora/[ab]|token_embedder/embedding)", 1.0)),
        trainable=(
            *(((r".*/lora/[ab]", not config.lora.frozen),) if config.lora.rank else ()),
            (r".*", not config.frozen),
        ),
    )
