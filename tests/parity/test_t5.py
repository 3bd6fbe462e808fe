"""T5 1.1 here and in transformers: the same random weights, the same states, logits and text. Run by `make parity`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.decoding import greedy
from tests.goldens.cases import CASES, TOLERANCE
from tests.parity.conftest import Compare, Report

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CASE = CASES["t5"]
CONFIG = CASE.module.config
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Their model with our weights, embedding and vocabulary layer untied."""
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
    model = transformers.T5ForConditionalGeneration(config).eval()
    params = CASE.params()
    shared = params["token_embedder"]["embedding"]
    state = {f"{name}.weight": shared for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")}
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
        tree = params[side]
        table = tree["relpos_bias"]["rel_embedding"]
        state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = table.T
        state[f"{side}.final_layer_norm.weight"] = tree[f"{side}_norm"]["scale"]
        for index in range(layers):
            layer = tree[f"layers_{index}"]
            for place, (name, module, norm) in enumerate(parts[side]):
                path = f"{side}.block.{index}.layer.{place}"
                state[f"{path}.layer_norm.weight"] = layer[norm]["scale"]
                kernels = ATTENTION if name != "mlp" else {kernel: kernel for kernel in ("wi_0", "wi_1", "wo")}
                for foreign, mine in kernels.items():
                    state[f"{path}.{module}.{foreign}.weight"] = layer[name][mine]["kernel"].T
    # transformers 5.23 ties the vocabulary layer to the embedding whatever the config says: untie it.
    model.lm_head.weight = torch.nn.Parameter(torch.empty(CONFIG.vocab_size, CONFIG.width))
    state["lm_head.weight"] = params["decoder"]["logits_dense"]["kernel"].T
    model.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()})
    assert (model.lm_head.weight != model.shared.weight).all()
    return model


def _answers(theirs: Any) -> Any:
    words, valid, tokens = CASE.inputs
    with torch.no_grad():
        return theirs(
            input_ids=torch.tensor(words).long(),
            attention_mask=torch.tensor(valid),
            decoder_input_ids=torch.tensor(tokens).long(),
            output_hidden_states=True,
        )


def test_encoded_words_and_text_features_agree(theirs: Any, report: Report) -> None:
    """What the location head reads is the decoder's last state; words that do not exist have no meaning."""
    words, valid, tokens = CASE.inputs
    answers = _answers(theirs)

    @jax.jit
    def ours(params: Any) -> tuple[jax.Array, jax.Array]:
        embedded = CASE.module.apply({"params": params}, words, method="embed")
        encoded = CASE.module.apply({"params": params}, embedded, valid, method="encode")
        return encoded, CASE.module.apply({"params": params}, tokens, encoded, valid, method="decode")

    encoded, features = map(np.asarray, ours(CASE.params()))
    for name, mine, other in (
        ("encoder output", encoded[valid], answers.encoder_last_hidden_state.numpy()[valid]),
        ("text features", features, answers.decoder_hidden_states[-1].numpy()),
    ):
        assert mine.shape == other.shape and other.std() > 0.5
        difference, largest = float(np.abs(mine - other).max()), float(np.abs(other).max())
        print(f"t5 {name}: largest difference {difference:.1e}, largest value {largest:.2f}")
        assert difference < TOLERANCE
        setting = f"3 + 3 layers, 150 words read, 40 written; {name}"
        report(
            CASE.part,
            setting,
            f"transformers {transformers.__version__}, T5ForConditionalGeneration",
            difference,
            largest,
            f"t5 {name}",
        )


def test_logits_agree(theirs: Any, compare: Compare) -> None:
    expected = _answers(theirs).logits.numpy()
    assert expected.std() > 0.5
    compare(CASE, [expected], f"transformers {transformers.__version__}, T5ForConditionalGeneration")


def test_greedy_texts_agree(theirs: Any) -> None:
    words, valid, _ = CASE.inputs
    model, params, length = CASE.module, CASE.params(), 24

    def step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        features, cache = model.apply({"params": params}, tokens, cache, method="decode_step")
        return features, model.apply({"params": params}, features, method="logits"), cache

    @jax.jit
    def write(words: jax.Array, valid: jax.Array) -> jax.Array:
        embedded = model.apply({"params": params}, words, method="embed")
        encoded = model.apply({"params": params}, embedded, valid, method="encode")
        cache = model.apply({"params": params}, encoded, valid, length + 1, method="init_cache")
        return greedy(step, cache, bos_id=0, eos_id=1, length=length, batch=len(words)).tokens

    with torch.no_grad():
        expected = theirs.generate(
            input_ids=torch.tensor(words).long(),
            attention_mask=torch.tensor(valid),
            max_new_tokens=length,
            do_sample=False,
            num_beams=1,
        ).numpy()[:, 1:]
    ours = np.asarray(write(jnp.asarray(words), jnp.asarray(valid)))[:, : expected.shape[1]]
    np.testing.assert_array_equal(ours, expected)
    assert len(np.unique(expected)) > 5, "the texts of this test should have something to say"
