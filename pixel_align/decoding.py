"""Writing text one token at a time over a cached step: one compiled loop that ends as soon as every text has ended."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

StepFn = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array, Any]]
"""step(tokens Int[B], cache) -> (features Float[B, D], logits Float[B, V], cache): reads one token of each text.

`features` is the state that has read the tokens so far, `logits` its distribution of the next one. What must not be
said gets a logit of -inf in here. The cache is any pytree of fixed shapes that has room for the steps of the loop.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
    """Texts that were written. The beginning-of-sequence token is not among them."""

    tokens: jax.Array  # Int32[B, T], with the end-of-sequence token where it came, padding behind
    features: jax.Array  # Float[B, T, D], the state that has read tokens[:, t]: its location; zeros where not `valid`
    logprobs: jax.Array  # Float32[B, T], of each token that was written, the end included; zeros behind
    valid: jax.Array  # Bool[B, T], tokens of the text: all before the end


def greedy(
    step: StepFn,
    cache: Any,
    *,
    bos_id: int,
    eos_id: int,
    length: int,
    batch: int,
    pad_id: int = 0,
    wanted: jax.Array | None = None,
) -> Decoded:
    """The likeliest token at each step, at most `length` of them, the end included.

    wanted: Bool[batch], the texts that are written at all; the loop does not wait for the others, which stay empty.

    cache: holds the encoded prefixes of `batch` texts and room for length + 1 tokens: the last token is read too, so
    that its features come from the same pass. Traceable; call it under jit.
    Raises ValueError for a length below 1.
    """
    return _write(
        step,
        cache,
        _likeliest,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        length=length,
        batch=batch,
        ended=jnp.zeros((batch,), bool) if wanted is None else ~wanted,
    )


def _likeliest(logits: jax.Array, position: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What the loop carries. At position t the step reads token t - 1 (the beginning at t = 0) and chooses token t."""

    position: jax.Array  # Int32[]
    last: jax.Array  # Int32[B], the token to be read next
    ended: jax.Array  # Bool[B], texts whose end has been written
    decoded: Decoded
    cache: Any


def _write(
    step: StepFn,
    cache: Any,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    length: int,
    batch: int,
    ended: jax.Array,
) -> Decoded:
    """The loop.

    ended: Bool[B], texts that are not begun. choose(logits Float32[B, V], position Int32[]) -> Int32[B]: argmax, or
    a draw with a key folded in.
    """
    if length < 1:
        raise ValueError(f"length is {length}, expected 1 or more. Set the number of tokens that a text may have.")
    last = jnp.full((batch,), bos_id, jnp.int32)
    features, _, _ = jax.eval_shape(step, last, cache)
    empty = Decoded(
        tokens=jnp.full((batch, length), pad_id, jnp.int32),
        features=jnp.zeros((batch, length, features.shape[-1]), features.dtype),
        logprobs=jnp.zeros((batch, length), jnp.float32),
        valid=jnp.zeros((batch, length), bool),
    )

    def body(state: _State) -> _State:
        features, logits, cache = step(state.last, state.cache)
        decoded, t = state.decoded, state.position
        # The features of the token that was just read. At t = 0 that was the beginning, which has no place: the
        # zeros that go to position 0 are overwritten at t = 1.
        read = jnp.where((state.ended | (t == 0))[:, None], jnp.zeros_like(features), features)
        features = decoded.features.at[:, jnp.maximum(t - 1, 0)].set(read)
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        chosen = choose(logprobs, t)
        logprob = jnp.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        token = jnp.where(state.ended, pad_id, chosen)
        ended = state.ended | (token == eos_id)
        # At t = length nothing is written any more (out of bounds: dropped): the step was for the last features.
        decoded = Decoded(
            tokens=decoded.tokens.at[:, t].set(token, mode="drop"),
            features=features,
            logprobs=decoded.logprobs.at[:, t].set(jnp.where(state.ended, 0.0, logprob), mode="drop"),
            valid=decoded.valid.at[:, t].set(~ended, mode="drop"),
        )
        return _State(t + 1, token, ended, decoded, cache)

    def unfinished(state: _State) -> jax.Array:
        return (state.position <= length) & ~state.ended.all()

    first = _State(jnp.zeros((), jnp.int32), last, ended, empty, cache)
    return jax.lax.while_loop(unfinished, body, first).decoded
