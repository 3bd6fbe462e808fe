"""The text loss never holds the logits of a batch: measured on the compiled gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import losses

VOCABULARY = 32_128


def _temporaries(shape: tuple[int, int, int], width: int, features: str = "float32") -> int:
    """Bytes of the temporaries of the gradient by the features; a vocabulary this large is frozen."""

    def total(features: jax.Array, kernel: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return losses.text(features, kernel, labels, weights, 0.1)[0]

    arguments = (
        jax.ShapeDtypeStruct((*shape, width), features),
        jax.ShapeDtypeStruct((width, VOCABULARY), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    memory = jax.jit(jax.grad(total)).lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes


@pytest.mark.parametrize(
    ("shape", "width"), [((16, 1, 128), 2048), ((16, 1, 128), 512), ((4, 16, 32), 512), ((1, 512, 4), 512)]
)
def test_2048_tokens_take_less_than_100_megabytes(shape: tuple[int, int, int], width: int) -> None:
    assert np.prod(shape) == 2048
    logits = 4 * 2048 * VOCABULARY
    assert _temporaries(shape, width) < 100e6 < logits


def test_features_in_half_precision_make_no_second_kernel() -> None:
    """Of 263 MB. (A kernel in half precision is widened by XLA's CPU backend itself: no TPU does that.)"""
    assert _temporaries((16, 1, 128), 2048, "bfloat16") < 100e6


def test_chunks_change_neither_the_loss_nor_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions and tokens are cut together; 3 x 5 positions do not divide into chunks of 4."""
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 11)), jnp.float32)
    labels, weights = rng.integers(0, 11, (2, 3, 5)), jnp.asarray(rng.uniform(size=(2, 3, 5)), jnp.float32)

    def loss(features: jax.Array, kernel: jax.Array) -> jax.Array:
        return losses.text(features, kernel, labels, weights, 0.1)[0]

    def whole(features: jax.Array, kernel: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(features @ kernel)
        wanted = jnp.where(jax.nn.one_hot(labels, 11) > 0, 0.9, 0.1 / 10)
        return -jnp.sum(jnp.sum(wanted * logprobs, axis=-1) * weights)

    monkeypatch.setattr(losses, "_CHUNK_BYTES", 4 * 4 * 2 * 11)
    found = jax.value_and_grad(loss, argnums=(0, 1))(features, kernel)
    expected = jax.value_and_grad(whole, argnums=(0, 1))(features, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
