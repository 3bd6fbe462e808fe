"""Greedy decoding against a slow loop without a cache, and its bookkeeping against a writer whose steps are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.decoding import Decoded, greedy
from pixel_align.nn.t5 import T5, T5Config

BOS = PAD = 0
EOS = 1
VOCABULARY = 12
SEED = 6


def _writer(texts: list[list[int]]):
    """A step function that writes the given texts; its features are the number of reads and the token just read."""
    length = max(len(text) for text in texts) + 2
    script = jnp.array([text + [7] * (length - len(text)) for text in texts])  # goes on talking after the end

    def step(tokens: jax.Array, cache: dict) -> tuple[jax.Array, jax.Array, dict]:
        count = cache["count"]
        features = jnp.stack([jnp.full(tokens.shape, count + 1), tokens], axis=-1).astype(jnp.float32)
        logits = 3.0 * jax.nn.one_hot(script[:, count], VOCABULARY)
        return features, logits, {"count": count + 1}

    return step


def _decode(texts: list[list[int]], length: int) -> Decoded:
    step = _writer(texts)
    cache = {"count": jnp.zeros((), jnp.int32)}
    run = functools.partial(greedy, step, bos_id=BOS, eos_id=EOS, length=length, batch=len(texts))
    return jax.tree.map(np.asarray, jax.jit(run)(cache))


def test_each_text_ends_at_its_own_end() -> None:
    decoded = _decode([[5, 6, EOS], [4, EOS], [EOS], [8, 9, 10, 11]], length=4)
    np.testing.assert_array_equal(
        decoded.tokens, [[5, 6, EOS, PAD], [4, EOS, PAD, PAD], [EOS, PAD, PAD, PAD], [8, 9, 10, 11]]
    )
    np.testing.assert_array_equal(decoded.valid.sum(axis=1), [2, 1, 0, 4])
    likely = 3.0 - np.log(np.exp(3.0) + VOCABULARY - 1)
    written = np.array([3, 2, 1, 4])[:, None] > np.arange(4)  # the end included
    np.testing.assert_allclose(decoded.logprobs, np.where(written, likely, 0.0), rtol=1e-5)


def test_features_are_those_of_the_state_that_has_read_the_token() -> None:
    decoded = _decode([[5, 6, EOS], [4, EOS], [EOS], [8, 9, 10, 11]], length=4)
    for row, text in enumerate([[5, 6], [4], [], [8, 9, 10, 11]]):
        # After the beginning and tokens 0..t, t + 2 reads; the last token that fits is read as well.
        expected = [[t + 2, token] for t, token in enumerate(text)] + [[0, 0]] * (4 - len(text))
        np.testing.assert_array_equal(decoded.features[row], expected)


@pytest.mark.parametrize(
    ("texts", "wanted", "steps"),
    [
        ([[EOS], [EOS]], [True, True], 1),
        ([[5, EOS], [5, 6, EOS]], [True, True], 3),
        ([[5, EOS], [5, 6, 7, 8, 9, 10]], [True, True], 6),
        ([[5, EOS], [5, 6, 7, 8, 9, 10]], [True, False], 2),
    ],
)
def test_the_loop_stops_when_all_texts_have_ended(texts: list[list[int]], wanted: list[bool], steps: int) -> None:
    seen = []
    step = _writer(texts)

    def counted(tokens: jax.Array, cache: dict) -> tuple[jax.Array, jax.Array, dict]:
        jax.debug.callback(lambda count: seen.append(int(count)), cache["count"], ordered=True)
        return step(tokens, cache)

    cache = {"count": jnp.zeros((), jnp.int32)}
    decoded = greedy(counted, cache, bos_id=BOS, eos_id=EOS, length=5, batch=2, wanted=jnp.asarray(wanted))
    jax.effects_barrier()
    assert seen == list(range(steps))  # never more than length + 1
    for row in np.flatnonzero(~np.asarray(wanted)):
        assert not decoded.tokens[row].any() and not decoded.valid[row].any() and not decoded.logprobs[row].any()


@pytest.fixture(scope="module")
def t5() -> tuple[T5, dict]:
    model = T5(T5Config.tiny(vocab_size=VOCABULARY, width=16, num_heads=2, head_dim=8, mlp_dim=24))
    tokens = jnp.zeros((1, 2), jnp.int32)
    rng = np.random.default_rng(SEED)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens == 0, tokens)
    # Opinions far stronger than the initial ones: texts that depend on their prefix and end at different lengths.
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_cached_greedy_is_the_slow_loop_without_cache(t5: tuple[T5, dict]) -> None:
    model, params = t5
    batch, length = 8, 10
    embeddings = jax.random.normal(jax.random.key(2), (batch, 5, 16)) * 3.0
    valid = jnp.arange(5) < jnp.array([5, 4, 3, 5, 2, 5, 1, 5])[:, None]

    def step(tokens: jax.Array, cache):
        features, cache = model.apply(params, tokens, cache, method="decode_step")
        return features, model.apply(params, features, method="logits"), cache

    @jax.jit
    def fast(embeddings: jax.Array) -> Decoded:
        encoded = model.apply(params, embeddings, valid, method="encode")
        cache = model.apply(params, encoded, valid, length + 1, method="init_cache")
        return greedy(step, cache, bos_id=BOS, eos_id=EOS, length=length, batch=batch)

    @jax.jit
    def all_at_once(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        encoded = model.apply(params, embeddings, valid, method="encode")
        features = model.apply(params, tokens, encoded, valid, method="decode")
        return features, jax.nn.log_softmax(model.apply(params, features, method="logits"))

    written = np.full((batch, length + 1), PAD)
    logprobs = np.zeros((batch, length))
    ended = np.zeros(batch, bool)
    for t in range(length):
        _, scores = all_at_once(jnp.asarray(written))
        for row in np.flatnonzero(~ended):
            token = int(np.argmax(scores[row, t]))
            written[row, t + 1], logprobs[row, t] = token, scores[row, t, token]
            ended[row] = token == EOS
    features, _ = all_at_once(jnp.asarray(written))

    decoded = fast(embeddings)
    np.testing.assert_array_equal(decoded.tokens, written[:, 1:])
    assert 0 < ended.sum() < batch, "the texts of this test should end, but not all"
    assert len(set(map(tuple, written.tolist()))) > 1, "the texts of this test should differ"
    np.testing.assert_allclose(decoded.logprobs, logprobs, atol=1e-4)
    valid_tokens = np.array([[t < [*row, EOS].index(EOS) for t in range(length)] for row in written[:, 1:].tolist()])
    np.testing.assert_array_equal(decoded.valid, valid_tokens)
    np.testing.assert_allclose(decoded.features, features[:, 1:] * valid_tokens[..., None], atol=1e-4)


def test_a_text_needs_room() -> None:
    with pytest.raises(ValueError, match="length is 0, expected 1 or more"):
        _decode([[5]], length=0)
