"""T5 1.1 here and in transformers: the same random weights, the same logits, the same text. Run by `make parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.decoding import greedy
from pixel_align.nn.stack import stack_params
from pixel_align.nn.t5 import T5, T5Config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# As many layers on either side: transformers 5.23 sizes the decoder's cache by the encoder's number of layers.
CONFIG = T5Config.tiny(vocab_size=64, encoder_layers=3, decoder_layers=3)
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
B, S, T = 3, 150, 40  # long enough for relative positions beyond the last bucket


@pytest.fixture(scope="module")
def theirs():
    config = transformers.T5Config(
        vocab_size=CONFIG.vocab_size,
        d_model=CONFIG.width,
        d_kv=CONFIG.head_dim,
        d_ff=CONFIG.mlp_dim,
        num_heads=CONFIG.num_heads,
        num_layers=CONFIG.encoder_layers,
        num_decoder_layers=CONFIG.decoder_layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (1.0 if parameter.ndim == 1 else 0.125))
    return model


@pytest.fixture(scope="module")
def params(theirs) -> dict:
    """Their parameters under our names."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    tree: dict = {
        "token_embedder": {"embedding": state["shared.weight"]},
        "encoder": {"encoder_norm": {"scale": state["encoder.final_layer_norm.weight"]}},
        "decoder": {
            "decoder_norm": {"scale": state["decoder.final_layer_norm.weight"]},
            "logits_dense": {"kernel": state["lm_head.weight"].T},
        },
    }
    own, cross = "SelfAttention", "EncDecAttention"
    parts = {
        "encoder": [("attention", own, "pre_attention_layer_norm"), ("mlp", "DenseReluDense", "pre_mlp_layer_norm")],
        "decoder": [
            ("self_attention", own, "pre_self_attention_layer_norm"),
            ("encoder_decoder_attention", cross, "pre_cross_attention_layer_norm"),
            ("mlp", "DenseReluDense", "pre_mlp_layer_norm"),
        ],
    }
    for side, layers in (("encoder", CONFIG.encoder_layers), ("decoder", CONFIG.decoder_layers)):
        table = state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        tree[side]["relpos_bias"] = {"rel_embedding": table.T}
        for index in range(layers):
            layer = tree[side][f"layers_{index}"] = {}
            for place, (name, module, norm) in enumerate(parts[side]):
                path = f"{side}.block.{index}.layer.{place}"
                layer[norm] = {"scale": state[f"{path}.layer_norm.weight"]}
                kernels = ATTENTION if name != "mlp" else {kernel: kernel for kernel in ("wi_0", "wi_1", "wo")}
                layer[name] = {
                    mine: {"kernel": state[f"{path}.{module}.{foreign}.weight"].T} for foreign, mine in kernels.items()
                }
    return stack_params(tree)


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    valid = np.arange(S) < np.array([S, 90, 3])[:, None]
    tokens = rng.integers(2, CONFIG.vocab_size, (B, T))
    tokens[:, 0] = 0
    return rng.integers(2, CONFIG.vocab_size, (B, S)), valid, tokens


def test_logits_agree(theirs, params: dict, inputs) -> None:
    words, valid, tokens = inputs
    ours = jax.jit(T5(CONFIG).apply)({"params": params}, words, valid, tokens)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(words),
            attention_mask=torch.tensor(valid),
            decoder_input_ids=torch.tensor(tokens),
        ).logits.numpy()
    difference = np.abs(np.asarray(ours) - expected).max()
    print(f"largest difference of logits {difference:.2e}, of a spread of {expected.std():.2f}")
    assert expected.std() > 1.0
    assert difference < 1e-4


def test_greedy_texts_agree(theirs, params: dict, inputs) -> None:
    words, valid, _ = inputs
    model, length = T5(CONFIG), 24

    def step(tokens: jax.Array, cache):
        features, cache = model.apply({"params": params}, tokens, cache, method="decode_step")
        return features, model.apply({"params": params}, features, method="logits"), cache

    @jax.jit
    def write(words: jax.Array, valid: jax.Array) -> jax.Array:
        embedded = model.apply({"params": params}, words, method="embed")
        encoded = model.apply({"params": params}, embedded, valid, method="encode")
        cache = model.apply({"params": params}, encoded, valid, length + 1, method="init_cache")
        return greedy(step, cache, bos_id=0, eos_id=1, length=length, batch=B).tokens

    with torch.no_grad():
        expected = theirs.generate(
            input_ids=torch.tensor(words),
            attention_mask=torch.tensor(valid),
            max_new_tokens=length,
            do_sample=False,
            num_beams=1,
        ).numpy()[:, 1:]
    ours = np.asarray(write(jnp.asarray(words), jnp.asarray(valid)))[:, : expected.shape[1]]
    np.testing.assert_array_equal(ours, expected)
    assert len(np.unique(expected)) > 5, "the texts of this test should have something to say"
