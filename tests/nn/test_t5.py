"""T5 1.1: its published shape, its definition, and what each token may and may not have read."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.lora import LoRAConfig
from pixel_align.nn.stack import stack_params, unstack_params
from pixel_align.nn.t5 import T5, Cache, T5Config, relative_position_bucket

CONFIG = T5Config.tiny(
    vocab_size=37, width=24, num_heads=2, head_dim=8, mlp_dim=32, encoder_layers=2, lora=LoRAConfig(rank=2)
)
MODEL = T5(CONFIG)
B, S, T = 2, 6, 7
TOKENS = jnp.array([[0, 5, 9, 3, 12, 7, 1], [0, 4, 4, 30, 1, 0, 0]])
VALID = jnp.arange(S) < jnp.array([[6], [4]])
EMBEDDINGS = jax.random.normal(jax.random.key(7), (B, S, CONFIG.width))


def _model(**changes) -> T5:
    return T5(dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def params() -> dict:
    """Parameters far from their initial values: adapters not zero, scales not one."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS, TOKENS >= 0, TOKENS)["params"]

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        values = {"scale": 1 + 0.1 * noise, "embedding": noise, "rel_embedding": noise}
        return jnp.asarray(values.get(path[-1].key, 0.2 * noise), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _run(params, model=MODEL, embeddings=EMBEDDINGS, valid=VALID, tokens=TOKENS, train=False) -> jax.Array:
    """Features Float[B, T, D]."""
    rngs = {"dropout": jax.random.key(5)}
    encoded = model.apply({"params": params}, embeddings, valid, train=train, method="encode", rngs=rngs)
    return model.apply({"params": params}, tokens, encoded, valid, train=train, method="decode", rngs=rngs)


def _paths(tree: dict) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


def _abstract(config: T5Config) -> dict[str, tuple[int, ...]]:
    tokens = jnp.zeros((1, 2), jnp.int32)
    return _paths(jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens == 0, tokens)["params"])


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # The counts of google/t5-v1_1-* and, with adapters, of PixelLLM's text head.
        (T5Config.small(), 76_961_152),
        (T5Config.base(), 247_577_856),
        (T5Config.large(), 783_150_080),
        (T5Config.xl(), 2_849_757_184),
        (T5Config.xl(lora=LoRAConfig(rank=32)), 2_849_757_184 + 18_874_368),
    ],
)
def test_presets_have_the_published_number_of_parameters(config: T5Config, count: int) -> None:
    assert sum(math.prod(shape) for shape in _abstract(config).values()) == count


def test_names_are_those_of_t5x() -> None:
    paths = _abstract(dataclasses.replace(CONFIG, scan=False, encoder_layers=1, decoder_layers=1, lora=LoRAConfig()))
    attention = {"query/kernel": (24, 16), "key/kernel": (24, 16), "value/kernel": (24, 16), "out/kernel": (16, 24)}
    mlp = {"mlp/wi_0/kernel": (24, 32), "mlp/wi_1/kernel": (24, 32), "mlp/wo/kernel": (32, 24)}
    expected = {
        "token_embedder/embedding": (37, 24),
        "encoder/relpos_bias/rel_embedding": (2, 32),
        "encoder/encoder_norm/scale": (24,),
        "encoder/layers_0/pre_attention_layer_norm/scale": (24,),
        "encoder/layers_0/pre_mlp_layer_norm/scale": (24,),
        **{f"encoder/layers_0/attention/{name}": shape for name, shape in attention.items()},
        **{f"encoder/layers_0/{name}": shape for name, shape in mlp.items()},
        "decoder/relpos_bias/rel_embedding": (2, 32),
        "decoder/decoder_norm/scale": (24,),
        "decoder/logits_dense/kernel": (24, 37),
        "decoder/layers_0/pre_self_attention_layer_norm/scale": (24,),
        "decoder/layers_0/pre_cross_attention_layer_norm/scale": (24,),
        "decoder/layers_0/pre_mlp_layer_norm/scale": (24,),
        **{f"decoder/layers_0/self_attention/{name}": shape for name, shape in attention.items()},
        **{f"decoder/layers_0/encoder_decoder_attention/{name}": shape for name, shape in attention.items()},
        **{f"decoder/layers_0/{name}": shape for name, shape in mlp.items()},
    }
    assert paths == expected


# The definition, in NumPy float64 and one sentence at a time: no masks, no batch, only the tokens that exist.


def _bucket(relative: int, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> int:
    """T5's own formula for one relative position; the small number keeps exact powers of two on the right side."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = -min(relative, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)


def _norm(x: np.ndarray, p: dict) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def _linear(x: np.ndarray, p: dict) -> np.ndarray:
    kernel = p["kernel"] + CONFIG.lora.scale * p["lora"]["a"] @ p["lora"]["b"] if "lora" in p else p["kernel"]
    return x @ kernel


def _attend(x: np.ndarray, memory: np.ndarray, p: dict, bias: np.ndarray | float, causal: bool) -> np.ndarray:
    q, k, v = (
        _linear(source, p[name]).reshape(len(source), CONFIG.num_heads, CONFIG.head_dim)
        for source, name in ((x, "query"), (memory, "key"), (memory, "value"))
    )
    logits = np.einsum("thd,shd->hts", q, k) + bias
    if causal:
        logits[:, np.triu(np.ones(logits.shape[1:], bool), 1)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return _linear(np.einsum("hts,shd->thd", weights, v).reshape(len(x), -1), p["out"])


def _mlp(x: np.ndarray, p: dict) -> np.ndarray:
    gate = _linear(x, p["wi_0"])
    gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return _linear(gate * _linear(x, p["wi_1"]), p["wo"])


def _bias(length: int, p: dict, bidirectional: bool) -> np.ndarray:
    buckets = [[_bucket(key - query, bidirectional) for key in range(length)] for query in range(length)]
    return p["rel_embedding"][:, np.array(buckets)]


def _definition(params: dict, embeddings: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Embeddings [s, D] and tokens [t] of one sentence -> features [t, D]."""
    p = unstack_params(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    x, bias = np.asarray(embeddings, np.float64), _bias(len(embeddings), p["encoder"]["relpos_bias"], True)
    for index in range(CONFIG.encoder_layers):
        layer = p["encoder"][f"layers_{index}"]
        y = _norm(x, layer["pre_attention_layer_norm"])
        x = x + _attend(y, y, layer["attention"], bias, causal=False)
        x = x + _mlp(_norm(x, layer["pre_mlp_layer_norm"]), layer["mlp"])
    encoded = _norm(x, p["encoder"]["encoder_norm"])
    x, bias = p["token_embedder"]["embedding"][tokens], _bias(len(tokens), p["decoder"]["relpos_bias"], False)
    for index in range(CONFIG.decoder_layers):
        layer = p["decoder"][f"layers_{index}"]
        y = _norm(x, layer["pre_self_attention_layer_norm"])
        x = x + _attend(y, y, layer["self_attention"], bias, causal=True)
        y = _norm(x, layer["pre_cross_attention_layer_norm"])
        x = x + _attend(y, encoded, layer["encoder_decoder_attention"], 0.0, causal=False)
        x = x + _mlp(_norm(x, layer["pre_mlp_layer_norm"]), layer["mlp"])
    return _norm(x, p["decoder"]["decoder_norm"])


def test_is_its_definition(params: dict) -> None:
    features = _run(params)
    for row, (prefix, text) in enumerate([(6, 7), (4, 5)]):
        expected = _definition(params, EMBEDDINGS[row, :prefix], np.asarray(TOKENS[row, :text]))
        np.testing.assert_allclose(features[row, :text], expected, atol=2e-4)
    logits = MODEL.apply({"params": params}, features, method="logits")
    np.testing.assert_allclose(logits, features @ params["decoder"]["logits_dense"]["kernel"], atol=1e-4)
    kernel = MODEL.apply({"params": params}, method="logits_kernel")
    np.testing.assert_array_equal(kernel, params["decoder"]["logits_dense"]["kernel"])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (8, 20)])
def test_relative_positions_fall_into_the_buckets_of_the_formula(bidirectional, buckets, max_distance) -> None:
    relative = np.arange(-600, 601)
    expected = [_bucket(int(r), bidirectional, buckets, max_distance) for r in relative]
    np.testing.assert_array_equal(relative_position_bucket(relative, bidirectional, buckets, max_distance), expected)
    traced = jax.jit(relative_position_bucket, static_argnums=(1, 2, 3))(relative, bidirectional, buckets, max_distance)
    np.testing.assert_array_equal(traced, expected)


def test_no_token_sees_its_future(params: dict) -> None:
    encoded = MODEL.apply({"params": params}, EMBEDDINGS, VALID, method="encode")
    tokens = jnp.arange(B * T).reshape(B, T)  # all different: a row of the embedding is one token at one place

    def summed(embedding: jax.Array, t: int) -> jax.Array:
        changed = {**params, "token_embedder": {"embedding": embedding}}
        return jnp.sin(MODEL.apply({"params": changed}, tokens, encoded, VALID, method="decode")[:, t]).sum()

    gradient = jax.jit(jax.vmap(jax.grad(summed), in_axes=(None, 0)))
    moved = np.abs(gradient(params["token_embedder"]["embedding"], jnp.arange(T))).sum(-1)[:, : B * T]
    for t in range(T):
        reads = moved[t].reshape(B, T) > 0
        assert reads[:, : t + 1].all()  # itself included: its own place is read from this state
        assert not reads[:, t + 1 :].any()


@pytest.mark.parametrize("scan", [True, False])
def test_step_by_step_is_all_at_once(scan: bool, params: dict) -> None:
    params = params if scan else unstack_params(params)
    model = _model(scan=scan)
    expected = _run(params, model)

    @jax.jit
    def start(embeddings: jax.Array) -> Cache:
        encoded = model.apply({"params": params}, embeddings, VALID, method="encode")
        return model.apply({"params": params}, encoded, VALID, T + 2, method="init_cache")

    cache = start(EMBEDDINGS)
    assert isinstance(cache, Cache)
    assert cache.self_keys.shape == (2, B, T + 2, 2, 8)
    assert cache.cross_keys.shape == (2, B, S, 2, 8)
    step = jax.jit(functools.partial(model.apply, {"params": params}, method="decode_step"))
    for t in range(T):
        features, cache = step(TOKENS[:, t], cache)
        np.testing.assert_allclose(features, expected[:, t], atol=1e-5)
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
    np.testing.assert_allclose(more[:, :T], expected, atol=1e-5)
    shorter = _run(params, embeddings=EMBEDDINGS[1:, :4], valid=VALID[1:, :4], tokens=TOKENS[1:, :5])
    np.testing.assert_allclose(shorter, expected[1:, :5], atol=1e-5)


def test_an_empty_prefix_is_not_a_number_of_trouble(params: dict) -> None:
    assert np.isfinite(_run(params, valid=jnp.zeros_like(VALID))).all()


def test_scanned_layers_are_the_layers_written_out(params: dict) -> None:
    def loss(params: dict, model: T5) -> jax.Array:
        return jnp.sin(_run(params, model)).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, _model(remat="full"))
    own, own_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(unstack_params(params), _model(scan=False))
    np.testing.assert_allclose(own, value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), stack_params(own_gradient), gradient
    )


def test_a_fresh_adapter_changes_no_feature(params: dict) -> None:
    def without_lora(tree: dict) -> dict:
        return {k: without_lora(v) if isinstance(v, dict) else v for k, v in tree.items() if k != "lora"}

    base = _run(without_lora(params), _model(lora=LoRAConfig()))
    zeroed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key == "b" else leaf, params
    )
    np.testing.assert_array_equal(_run(zeroed), base)
    assert np.abs(_run(params) - base).max() > 0.01


def test_dropout_runs_in_training_only_and_never_where_frozen(params: dict) -> None:
    quiet = _run(params)
    np.testing.assert_array_equal(_run(params, train=False), quiet)
    assert np.abs(_run(params, train=True) - quiet).max() > 0.01
    frozen = _model(frozen=True)
    np.testing.assert_array_equal(_run(params, frozen, train=True), quiet)

    def drop(model: T5, train: bool) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        return model.apply({}, jnp.ones((3, T, 200)), train=train, method="drop_features", rngs=rngs)

    dropped = drop(MODEL, True)
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1 / 0.9], rtol=1e-6)
    np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:, :1], dropped.shape))  # one mask for all tokens
    assert (drop(MODEL, False) == 1).all()
    assert (drop(frozen, True) == 1).all()


def test_bfloat16_computes_in_bfloat16_over_float32_parameters(params: dict) -> None:
    model = _model(dtype="bfloat16")
    exact = _run(params)
    features = _run(params, model)
    assert features.dtype == jnp.bfloat16
    assert model.apply({"params": params}, features, method="logits").dtype == jnp.float32
    assert np.abs(features.astype(jnp.float32) - exact).mean() < 0.05 * np.abs(exact).mean()
    made = jax.eval_shape(model.init, jax.random.key(0), TOKENS, TOKENS >= 0, TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}

    @jax.jit
    def first_step(tokens: jax.Array) -> tuple[jax.Array, Cache]:
        encoded = model.apply({"params": params}, EMBEDDINGS, VALID, method="encode")
        cache = model.apply({"params": params}, encoded, VALID, T, method="init_cache")
        return model.apply({"params": params}, tokens, cache, method="decode_step")

    step, cache = first_step(TOKENS[:, 0])
    assert cache.self_keys.dtype == step.dtype == jnp.bfloat16
    np.testing.assert_allclose(step.astype(jnp.float32), features[:, 0].astype(jnp.float32), atol=0.1)


def test_a_token_outside_the_vocabulary_is_not_a_number(params: dict) -> None:
    embedded = MODEL.apply({"params": params}, jnp.array([3, CONFIG.vocab_size]), method="embed")
    np.testing.assert_array_equal(embedded[0], params["token_embedder"]["embedding"][3])
    assert np.isnan(embedded[1]).all()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="relative_buckets is 30, expected a positive multiple of 4"):
        T5Config(relative_buckets=30)
    with pytest.raises(ValueError, match="relative_max_distance is 16, expected more than"):
        T5Config(relative_max_distance=16)
    with pytest.raises(ValueError, match="decoder_layers is 0, expected 1 or more"):
        T5Config(decoder_layers=0)
