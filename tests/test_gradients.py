"""A step in parts is the step: the same loss, the same gradient, the activations of one part."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import gradients, losses, sharding

KEY = jax.random.key(0)


def batch(seed: int, size: int = 12) -> dict[str, np.ndarray]:
    """Rows with words that count unequally, some rows with none."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (size, 5)) * rng.integers(0, 2, (size, 1))
    return {"x": rng.normal(size=(size, 5, 3)).astype(np.float32), "weights": weights.astype(np.float32)}


def terms(trainable: Any, rows: Any, key: jax.Array) -> losses.Terms:
    """A loss that is a mean over words, and one whose count depends on the parameters, as the detector's does."""
    said = jnp.tanh(rows["x"] @ trainable["w"])
    found = (said > 0) * rows["weights"]
    return {
        "words": (1.0, (jnp.sum(said**2 * rows["weights"]), jnp.sum(rows["weights"]))),
        "found": (0.3, (jnp.sum(jnp.abs(said - 1) * found), jnp.sum(found))),
    }


def noisy(trainable: Any, rows: Any, key: jax.Array) -> losses.Terms:
    rows = rows | {"x": rows["x"] * jax.random.bernoulli(key, 0.5, rows["x"].shape)}
    return terms(trainable, rows, key)


TRAINABLE = {"w": np.asarray([0.5, -1.0, 2.0], np.float32), "unused": None}


def by_hand(terms_of: Any, weights: list[float], batches: list[Any], parts: int) -> gradients.Found:
    """Independent: every part's terms in one graph, sums and counts added by name, divided, then differentiated."""

    def loss(trainable: Any) -> Any:
        total, sums = 0.0, {}
        for index, (one, weight) in enumerate(zip(batches, weights, strict=True)):
            of_group: dict[str, Any] = {}
            for part in range(parts):
                rows = {name: x[part::parts] for name, x in one.items()}
                key = jax.random.fold_in(jax.random.fold_in(KEY, index), part)
                for name, (w, (s, c)) in terms_of(trainable, rows, key).items():
                    before = of_group.get(name, (w, 0.0, 0.0))
                    of_group[name] = (w, before[1] + s, before[2] + c)
            for name, (w, s, c) in of_group.items():
                total += weight / sum(weights) * w * s / c
                sums.setdefault(name, []).append((s, c))
        return total, {name: sum(s for s, _ in of) / sum(c for _, c in of) for name, of in sums.items()}

    return jax.value_and_grad(loss, has_aux=True)(TRAINABLE)


@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("terms_of", [terms, noisy])
def test_parts_are_added_by_their_counts(terms_of: Any, parts: int) -> None:
    batches, weights = [batch(0), batch(1, 24)], [1.0, 3.0]
    (loss, means), gradient = jax.jit(
        lambda t, b: gradients.in_parts([terms_of] * 2, weights, t, b, KEY, parts)
    )(TRAINABLE, batches)  # fmt: skip
    (expected_loss, expected_means), expected = by_hand(terms_of, weights, batches, parts)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient["w"], expected["w"], rtol=1e-5)
    assert means.keys() == expected_means.keys()
    for name, value in expected_means.items():
        np.testing.assert_allclose(means[name], value, rtol=1e-6, err_msg=name)
    if terms_of is terms:
        (whole, _), at_once = gradients.at_once([terms] * 2, weights, TRAINABLE, batches, KEY)
        np.testing.assert_allclose(loss, whole, rtol=1e-6)
        np.testing.assert_allclose(gradient["w"], at_once["w"], rtol=1e-5)


def test_a_batch_without_any_word_teaches_nothing() -> None:
    empty = batch(0) | {"weights": np.zeros((12, 5), np.float32)}
    (loss, means), gradient = gradients.in_parts([terms], [1.0], TRAINABLE, [empty], KEY, 3)
    assert float(loss) == 0.0 and not np.any(gradient["w"]) and set(map(float, means.values())) == {0.0}


def test_parts_hold_the_activations_of_one() -> None:
    wide = {"w": np.ones((3, 4096), np.float32), "v": np.ones((4096, 4096), np.float32)}

    def of_wide(trainable: Any, rows: Any, key: jax.Array) -> losses.Terms:
        return {"a": (1.0, (jnp.sum(jnp.tanh(jnp.tanh(rows["x"] @ trainable["w"]) @ trainable["v"])), rows["x"].size))}

    def temporaries(parts: int) -> int:
        def step(trainable: Any, rows: Any) -> Any:
            if parts == 1:
                return gradients.at_once([of_wide], [1.0], trainable, [rows], KEY)
            return gradients.in_parts([of_wide], [1.0], trainable, [rows], KEY, parts)

        rows = {"x": jax.ShapeDtypeStruct((64, 256, 3), np.float32)}
        return jax.jit(step).lower(wide, rows).compile().memory_analysis().temp_size_in_bytes

    of_gradient = 4 * 4096 * 4096
    at_once, eighths = temporaries(1), temporaries(8)
    assert eighths - 2 * of_gradient < at_once / 6, (at_once, eighths)


def test_the_model_is_left_out_of_the_pass_that_counts() -> None:
    """By the work that is compiled: parts cost what the whole costs, where counts are sums of what the batch says."""

    def flops(terms_of: Any) -> float:
        rows = {"x": np.ones((8, 5, 256), np.float32), "weights": np.ones((8, 5), np.float32)}
        trainable = {"w": np.ones((256, 256), np.float32)}
        step = jax.jit(lambda t, b: gradients.in_parts([terms_of], [1.0], t, [b], KEY, 2)).lower(trainable, rows)
        return step.compile().cost_analysis()["flops"]

    def told(trainable: Any, rows: Any, key: jax.Array) -> losses.Terms:
        said = jnp.tanh(rows["x"] @ trainable["w"]).sum(axis=-1)
        return {"a": (1.0, (jnp.sum(said * rows["weights"]), jnp.sum(rows["weights"])))}

    def found(trainable: Any, rows: Any, key: jax.Array) -> losses.Terms:
        said = jnp.tanh(rows["x"] @ trainable["w"]).sum(axis=-1)
        return {"a": (1.0, (jnp.sum(said * rows["weights"]), jnp.sum(said > 0)))}

    forward = 2 * 4 * 5 * 256 * 256  # of one part
    assert flops(found) - flops(told) == pytest.approx(forward, rel=0.1)


def test_no_example_moves_to_another_device() -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    rows = jax.device_put(np.arange(16), sharding.over_batch(mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda x: gradients.split(x, 2)).lower(rows).compile()
        parts = compiled(rows)
    assert not re.search("all-|collective|permute", compiled.as_text())
    own = {shard.device: set(np.asarray(shard.data).flat) for shard in rows.addressable_shards}
    assert {shard.device: set(np.asarray(shard.data).flat) for shard in parts.addressable_shards} == own


def test_rows_are_dealt_out_so_that_no_example_moves() -> None:
    parts = gradients.split({"x": np.arange(12)}, 3)["x"]
    assert np.array_equal(parts, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
    with pytest.raises(ValueError, match=r"a batch has 12 examples, expected a multiple of 5.*train\.accumulate\."):
        gradients.split({"x": jnp.arange(12)}, 5)
