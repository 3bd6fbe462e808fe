"""The prefix decoder: its published size, its definition as one sequence, and what each token may have read."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import param_rules
from pixel_align.nn.bert import Bert, BertConfig, Cache, Prefix, rules
from pixel_align.nn.blocks import LayerNorm
from pixel_align.nn.lora import LoRAConfig
from pixel_align.nn.stack import stack_params, unstack_params

CONFIG = BertConfig.tiny(
    vocab_size=37,
    width=24,
    num_heads=2,
    mlp_dim=32,
    layers=2,
    positions=16,
    lora=LoRAConfig(2, targets=("query", "wo")),
)
MODEL = Bert(CONFIG)
B, S, T = 2, 6, 7
TOKENS = jnp.array([[2, 5, 9, 3, 12, 7, 4], [2, 4, 4, 30, 3, 0, 0]])
VALID = jnp.arange(S) < jnp.array([[6], [4]])
EMBEDDINGS = jax.random.normal(jax.random.key(7), (B, S, CONFIG.width))


def _model(**changes) -> Bert:
    return Bert(dataclasses.replace(CONFIG, **changes))


def _shapes(config: BertConfig) -> dict:
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(Bert(config).init, jax.random.key(0), tokens, tokens == 0, tokens)["params"]


@pytest.fixture(scope="module")
def params() -> dict:
    """Parameters far from their initial values: adapters and biases not zero, scales not one."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        values = {"scale": 1 + 0.1 * noise, "embedding": noise, "positions": noise}
        return jnp.asarray(values.get(path[-1].key, 0.2 * noise), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, _shapes(CONFIG))


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _run(params, model=MODEL, embeddings=EMBEDDINGS, valid=VALID, tokens=TOKENS, train=False) -> jax.Array:
    """Features Float[B, T, D]."""
    rngs = {"dropout": jax.random.key(5)}
    encoded = model.apply({"params": params}, embeddings, valid, train=train, method="encode", rngs=rngs)
    return model.apply({"params": params}, tokens, encoded, valid, train=train, method="decode", rngs=rngs)


def test_the_published_head_has_its_number_of_parameters() -> None:
    """91.02M with the layer of 1024 to 768 and its norm, which bring visual tokens to this width."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_shapes(BertConfig.published())))
    assert count == 90_227_514
    assert round((count + 1024 * 768 + 3 * 768) / 1e6, 2) == 91.02


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, scan=False, frozen=True), BertConfig()])
def test_rules_cover_every_parameter_and_none_is_dead(config: BertConfig) -> None:
    shapes = _shapes(config)
    lists = rules(config)
    for rule_list in (lists.sharding, lists.weight_decay):
        param_rules.match(rule_list, shapes)
    decay = param_rules.paths(param_rules.match(lists.weight_decay, shapes))
    trained = param_rules.paths(param_rules.match(lists.trainable, shapes, dead="ignore"))
    for path in decay:
        assert bool(decay[path]) == path.endswith(("kernel", "lora/a", "lora/b", "embedding")), path
        assert trained[path] == (not config.frozen or "/lora/" in path), path


# The definition, in NumPy float64: one sentence, the prefix and the text as one sequence under one mask.


def _norm(x: np.ndarray, p: dict, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def _linear(x: np.ndarray, p: dict) -> np.ndarray:
    kernel = p["kernel"] + CONFIG.lora.scale * p["lora"]["a"] @ p["lora"]["b"] if "lora" in p else p["kernel"]
    return x @ kernel + p["bias"]


def _attend(x: np.ndarray, p: dict, mask: np.ndarray) -> np.ndarray:
    q, k, v = (_linear(x, p[name]).reshape(len(x), CONFIG.num_heads, -1) for name in ("query", "key", "value"))
    logits = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(np.where(mask, logits - logits.max(-1, keepdims=True), -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    return _linear(np.einsum("hts,shd->thd", weights, v).reshape(len(x), -1), p["out"])


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _definition(params: dict, embeddings: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Embeddings [s, D] and tokens [t] of one sentence -> features [t, D]."""
    p = unstack_params(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    s, t, table = len(embeddings), len(tokens), p["token_embedder"]
    words = _norm(table["embedding"][tokens] + table["positions"][:t], table["norm"], 1e-8)
    x = np.concatenate([np.asarray(embeddings, np.float64), words])
    sees = np.tri(s + t, dtype=bool)
    sees[:s, :s] = True
    for index in range(CONFIG.layers):
        layer = p[f"layers_{index}"]
        x = _norm(x + _attend(x, layer["attention"], sees), layer["attention_norm"], 1e-5)
        y = _linear(_gelu(_linear(x, layer["mlp"]["wi"])), layer["mlp"]["wo"])
        x = _norm(x + y, layer["mlp_norm"], 1e-12)
    return x[s:]


def test_is_its_definition_as_one_sequence(params: dict) -> None:
    features = _run(params)
    for row, (prefix, text) in enumerate([(6, 7), (4, 5)]):
        expected = _definition(params, EMBEDDINGS[row, :prefix], np.asarray(TOKENS[row, :text]))
        np.testing.assert_allclose(features[row, :text], expected, atol=2e-5)
    logits = MODEL.apply({"params": params}, features, method="logits")
    kernel, bias = (MODEL.apply({"params": params}, method=f"logits_{name}") for name in ("kernel", "bias"))
    np.testing.assert_allclose(logits, features @ kernel + bias, atol=1e-4)
    assert np.abs(bias).min() > 0


def test_every_norm_has_its_published_epsilon() -> None:
    """At 1e-4 no comparison of features would tell them apart."""
    found: dict[str, float] = {}

    def collect(call, args, kwargs, context):
        if isinstance(context.module, LayerNorm):
            found["/".join(context.module.path)] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(collect):
        _shapes(dataclasses.replace(CONFIG, scan=False, layers=1))
    assert found == {"token_embedder/norm": 1e-8, "layers_0/attention_norm": 1e-5, "layers_0/mlp_norm": 1e-12}


def test_no_token_sees_its_future_and_every_one_sees_the_prefix(params: dict) -> None:
    tokens = jnp.arange(B * T).reshape(B, T)  # all different: a row of the embedding is one token at one place

    def summed(embedding: jax.Array, prefix: jax.Array, t: int) -> jax.Array:
        changed = {**params, "token_embedder": {**params["token_embedder"], "embedding": embedding}}
        return jnp.sin(_run(changed, embeddings=prefix, tokens=tokens)[:, t]).sum()

    gradient = jax.jit(jax.vmap(jax.grad(summed, argnums=(0, 1)), in_axes=(None, None, 0)))
    words, prefix = gradient(params["token_embedder"]["embedding"], EMBEDDINGS, jnp.arange(T))
    moved, read = np.abs(words).sum(-1)[:, : B * T] > 0, np.abs(prefix).sum(-1) > 0
    for t in range(T):
        reads = moved[t].reshape(B, T)
        assert reads[:, : t + 1].all()  # itself included: its own place is read from this state
        assert not reads[:, t + 1 :].any()
    np.testing.assert_array_equal(read, np.broadcast_to(VALID, read.shape))


def test_the_prefix_is_read_from_both_sides_and_before_any_text(params: dict) -> None:
    """What is kept of the prefix position i depends on all of the prefix; there is no text to depend on."""

    def summed(embeddings: jax.Array, i: int) -> jax.Array:
        encoded = MODEL.apply({"params": params}, embeddings, VALID, method="encode")
        return jnp.sin(encoded.keys[-1, :, i]).sum() + jnp.sin(encoded.values[-1, :, i]).sum()

    gradient = jax.jit(jax.vmap(jax.grad(summed), in_axes=(None, 0)))(EMBEDDINGS, jnp.arange(S))
    reads = np.abs(gradient).sum(-1) > 0
    for i in range(S):
        expected = np.asarray(VALID) | (np.arange(S) == i)  # one that does not exist reads itself, and none reads it
        np.testing.assert_array_equal(reads[i], expected)


@pytest.mark.parametrize("scan", [True, False])
def test_step_by_step_is_all_at_once(scan: bool, params: dict) -> None:
    params = params if scan else unstack_params(params)
    model = _model(scan=scan)
    expected = _run(params, model)

    @jax.jit
    def start(embeddings: jax.Array) -> Cache:
        encoded = model.apply({"params": params}, embeddings, VALID, method="encode")
        assert isinstance(encoded, Prefix)
        return model.apply({"params": params}, encoded, VALID, T + 2, method="init_cache")

    cache = start(EMBEDDINGS)
    assert cache.keys.shape == (2, B, S + T + 2, 2, 12)
    step = jax.jit(functools.partial(model.apply, {"params": params}, method="decode_step"))
    for t in range(T):
        features, cache = step(TOKENS[:, t], cache)
        np.testing.assert_allclose(features, expected[:, t], atol=2e-5)
    assert cache.position == T


def test_padding_changes_nothing(params: dict) -> None:
    expected = _run(params)
    padding = jnp.full((B, 3, CONFIG.width), 1e3)
    more = _run(
        params,
        embeddings=jnp.concatenate([EMBEDDINGS.at[1, 4:].set(-1e3), padding], axis=1),
        valid=jnp.pad(VALID, ((0, 0), (0, 3))),
        tokens=jnp.pad(TOKENS, ((0, 0), (0, 4))),
    )
    np.testing.assert_allclose(more[:, :T], expected, atol=2e-5)
    assert np.isfinite(_run(params, valid=jnp.zeros_like(VALID))).all()  # an empty prefix is no trouble


def test_an_instruction_has_positions_of_its_own(params: dict) -> None:
    """Words of the prefix are counted from 0, as those of the text are."""
    embedded = MODEL.apply({"params": params}, TOKENS, method="embed")
    later = MODEL.apply({"params": params}, TOKENS[:, 2:], first=2, method="embed")
    np.testing.assert_allclose(later, embedded[:, 2:], atol=1e-6)
    table = params["token_embedder"]
    assert np.abs(embedded[1, 1] - embedded[1, 2]).max() > 0.1  # the same word at two places
    expected = _norm(np.asarray(table["embedding"][5] + table["positions"][1]), table["norm"], 1e-8)
    np.testing.assert_allclose(embedded[0, 1], expected, atol=1e-5)


def test_scanned_layers_are_the_layers_written_out(params: dict) -> None:
    def loss(params: dict, model: Bert) -> jax.Array:
        return jnp.sin(_run(params, model)).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, _model(remat="full"))
    own, own_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(unstack_params(params), _model(scan=False))
    np.testing.assert_allclose(own, value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), stack_params(own_gradient), gradient
    )


def test_dropout_runs_in_training_only_and_never_where_frozen(params: dict) -> None:
    quiet = _run(params)
    noisy = _run(params, train=True)
    assert np.abs(noisy - quiet).max() > 0.01
    frozen = _model(frozen=True)
    np.testing.assert_array_equal(_run(params, frozen, train=True), quiet)
    features = MODEL.apply({}, noisy, train=True, method="drop_features", rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(features, noisy)  # none between features and vocabulary layer
    rngs = {"dropout": jax.random.key(0)}
    embedded = MODEL.apply({"params": params}, TOKENS, train=True, method="embed", rngs=rngs)
    share = float((embedded == 0).mean())
    assert 0.03 < share < 0.2


def test_bfloat16_computes_in_bfloat16_over_float32_parameters(params: dict) -> None:
    model, exact = _model(dtype="bfloat16"), _run(params)
    features = _run(params, model)
    assert features.dtype == jnp.bfloat16
    assert model.apply({"params": params}, features, method="logits").dtype == jnp.float32
    assert np.abs(features.astype(jnp.float32) - exact).mean() < 0.05 * np.abs(exact).mean()
    assert {leaf.dtype for leaf in jax.tree.leaves(_shapes(model.config))} == {jnp.dtype("float32")}


def test_tokens_and_lengths_that_cannot_be(params: dict) -> None:
    embedded = MODEL.apply({"params": params}, jnp.array([3, CONFIG.vocab_size]), method="embed")
    assert np.isfinite(embedded[0]).all() and np.isnan(embedded[1]).all()
    message = "text or instruction has 17 tokens, expected at most 16, the rows of bert.positions. Shorten "
    with pytest.raises(ValueError, match=re.escape(message)):
        MODEL.apply({"params": params}, jnp.zeros((1, 17), jnp.int32), method="embed")
    encoded = jax.eval_shape(lambda: MODEL.apply({"params": params}, EMBEDDINGS, VALID, method="encode"))
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(lambda e: MODEL.apply({"params": params}, e, VALID, 17, method="init_cache"), encoded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 25}, "bert.width is 25 with num_heads 2, expected a multiple of num_heads"),
        ({"layers": 0}, "bert.layers is 0, expected 1 or more."),
        ({"begin": 0}, "bert.begin is 0, expected 1 to 36, a token of the vocabulary that is no padding."),
        ({"end": 37}, "bert.end is 37, expected 1 to 36"),
        ({"end": 2}, "bert.begin and bert.end are both 2, expected two tokens."),
        ({"dropout_rate": 1.0}, "bert.dropout_rate is 1.0, expected 0 to below 1."),
    ],
)
def test_sizes_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(CONFIG, **changes)
