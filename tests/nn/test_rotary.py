"""Rotary positions: what attention sees of them is how far apart two cells are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.rotary import rotary_angles, rotate

H, W, D = 5, 7, 16


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_turning_is_multiplication_by_complex_numbers() -> None:
    """Row by row, pair by pair: the first half of the pairs turns with the row, the second with the column."""
    x = _random(2, H * W, 3, D)
    expected = np.empty_like(x)
    for s in range(H * W):
        row, column = divmod(s, W)
        for i in range(D // 2):
            along, which = (row, i) if i < D // 4 else (column, i - D // 4)
            turn = np.exp(1j * along * 10_000.0 ** (-which / (D // 4)))
            value = (x[:, s, :, 2 * i] + 1j * x[:, s, :, 2 * i + 1]) * turn
            expected[:, s, :, 2 * i], expected[:, s, :, 2 * i + 1] = value.real, value.imag
    np.testing.assert_allclose(rotate(jnp.asarray(x), rotary_angles(H, W, D)), expected, atol=1e-5)


def test_products_depend_on_the_offset_alone() -> None:
    """The same query and key in every cell: their product is the same wherever they are equally far apart."""
    query, key = (np.broadcast_to(_random(D, seed=seed), (1, H * W, 1, D)) for seed in (1, 2))
    angles = rotary_angles(H, W, D)
    turned = [np.asarray(rotate(jnp.asarray(x), angles))[0, :, 0] for x in (query, key)]
    products = (turned[0] @ turned[1].T).reshape(H, W, H, W)
    np.testing.assert_allclose(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], atol=1e-4)
    assert np.abs(products[0, 0] - products[0, 0, 0, 0]).max() > 0.5, "cells far apart should look different"


def test_a_finer_grid_falls_between_the_positions_of_its_reference() -> None:
    coarse = rotary_angles(4, 4, D, reference=4).reshape(4, 4, -1)
    fine = rotary_angles(8, 8, D, reference=4).reshape(8, 8, -1)
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-6)
    np.testing.assert_allclose(coarse.reshape(16, -1), rotary_angles(4, 4, D), atol=1e-6)
    np.testing.assert_allclose(fine[:, 1] - fine[:, 0], (coarse[:, 1] - coarse[:, 0]).repeat(2, axis=0) / 2, atol=1e-6)


def test_half_precision_loses_only_the_last_rounding() -> None:
    x = jnp.asarray(_random(1, 27 * 27, 2, D), jnp.bfloat16)
    angles = rotary_angles(27, 27, D)
    found = rotate(x, angles)
    assert found.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.float32), angles)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
    np.testing.assert_allclose(
        jnp.linalg.norm(exact, axis=-1), jnp.linalg.norm(x.astype(jnp.float32), axis=-1), rtol=1e-5
    )


def test_channels_that_make_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="channels of a head is 6, expected a multiple of 4"):
        jax.eval_shape(lambda: rotary_angles(2, 2, 6))
