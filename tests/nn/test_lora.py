"""Adapters: nothing at the start, the published sum afterwards, two small products always."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.lora import LoRAConfig, LoRADense
from pixel_align.nn.t5 import T5, T5Config

IN, OUT, RANK, SCALE = 12, 10, 3, 2.0
X = jax.random.normal(jax.random.key(1), (4, 5, IN))


def _params(dense: LoRADense) -> dict:
    return dense.init(jax.random.key(0), X)["params"]


def test_a_fresh_adapter_is_the_identity_and_leaves_the_base_path_alone() -> None:
    dense = LoRADense(OUT, rank=RANK, scale=SCALE)
    params = _params(dense)
    assert {"/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)} == {
        "kernel",
        "bias",
        "lora/a",
        "lora/b",
    }
    base = {"kernel": params["kernel"], "bias": params["bias"]}
    without = LoRADense(OUT).apply({"params": base}, X)
    np.testing.assert_array_equal(dense.apply({"params": params}, X), without)
    np.testing.assert_allclose(without, X @ base["kernel"] + base["bias"], atol=1e-5)


def test_a_trained_adapter_is_a_change_of_the_weight() -> None:
    dense = LoRADense(OUT, rank=RANK, scale=SCALE)
    params = _params(dense)
    params["lora"]["b"] = jax.random.normal(jax.random.key(2), (RANK, OUT))
    kernel = params["kernel"] + SCALE * params["lora"]["a"] @ params["lora"]["b"]
    np.testing.assert_allclose(dense.apply({"params": params}, X), X @ kernel + params["bias"], rtol=1e-4, atol=1e-4)


def test_learning_starts_at_b() -> None:
    dense = LoRADense(OUT, rank=RANK)
    gradient = jax.grad(lambda params: jnp.square(dense.apply({"params": params}, X)).sum())(_params(dense))
    assert (gradient["lora"]["a"] == 0).all()
    assert (gradient["lora"]["b"] != 0).all()


def test_the_delta_of_the_weight_is_never_formed() -> None:
    dense = LoRADense(OUT, use_bias=False, rank=RANK)
    jaxpr = jax.make_jaxpr(lambda params: dense.apply({"params": params}, X))(_params(dense))
    made = [variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars]
    assert (4, 5, RANK) in made
    assert (IN, OUT) not in made


def test_a_starts_like_the_weight() -> None:
    dense = LoRADense(400, use_bias=False, rank=400)
    params = dense.init(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    np.testing.assert_allclose(params["lora"]["a"].std(), params["kernel"].std(), rtol=0.02)
    assert (params["lora"]["a"] != params["kernel"]).any()


def test_adapters_rest_in_float32_and_compute_in_the_dtype_asked_for() -> None:
    dense = LoRADense(OUT, rank=RANK, dtype="bfloat16")
    params = _params(dense)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert dense.apply({"params": params}, X).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("query", "value"), {"query", "value"}),
        (("key", "out"), {"key", "out"}),
        (("wi", "wo"), {"wi_0", "wi_1", "wo"}),
        ((), set()),
    ],
)
def test_targets_choose_the_layers_of_every_attention_and_mlp(targets: tuple[str, ...], expected: set[str]) -> None:
    config = T5Config.tiny(vocab_size=16, lora=LoRAConfig(rank=2, targets=targets))
    tokens = jnp.zeros((1, 3), jnp.int32)
    params = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens == 0, tokens)["params"]
    paths = ["/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    adapted = [path.split("/")[-3] for path in paths if path.endswith("lora/a")]
    assert set(adapted) == expected
    modules = 2 if targets == ("wi", "wo") else 3  # MLPs, attentions
    assert len(adapted) == modules * len(expected)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora.targets has \['querry'\], expected names among"):
        LoRAConfig(rank=4, targets=("querry",))
    with pytest.raises(ValueError, match="lora.rank is -1, expected 0"):
        LoRAConfig(rank=-1)
