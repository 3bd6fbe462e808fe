"""Stacks: scanned, written out, rematerialised - one function and one gradient; and the two layouts of parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.nn.blocks import MLP, DropPath, LayerNorm
from pixel_align.nn.stack import run_stack, stack, stack_params, unstack_params

LAYERS, WIDTH = 3, 8


class Layer(nn.Module):
    """A residual branch with something of everything: per-layer input and output, shared array, static train."""

    width: int

    def setup(self) -> None:
        self.norm, self.mlp, self.drop_path = LayerNorm(1e-6), MLP(2 * self.width, "gelu"), DropPath()

    def __call__(self, x, layer, shared, train):
        y = self.mlp(self.norm(x), train) * layer["gain"] + shared
        return x + self.drop_path(y, layer["rate"], train), {"mean": y.mean()}

    def norms_only(self, x, layer, shared, train):
        return self.norm(x) + 1.0, x


class Model(nn.Module):
    scan: bool
    remat: str = "none"

    def setup(self) -> None:
        methods = ("__call__", "norms_only")
        self.layers = stack(Layer, LAYERS, scan=self.scan, remat=self.remat, methods=methods, width=WIDTH)

    def __call__(self, x, train=False):
        layer = {"gain": jnp.arange(1.0, LAYERS + 1), "rate": jnp.array([0.0, 0.5, 0.5])}
        return run_stack(self.layers, x, layer, jnp.full((WIDTH,), 0.1), train)

    def norms_only(self, x):
        return run_stack(self.layers, x, method="norms_only")


class Linear(nn.Module):
    def setup(self) -> None:
        self.dense = nn.Dense(WIDTH)

    def __call__(self, x, layer, shared, train):
        return jnp.tanh(self.dense(x)), None


class Pair(nn.Module):
    def setup(self) -> None:
        self.layers = stack(Linear, 2)

    def __call__(self, x, layer, shared, train):
        return run_stack(self.layers, x)


class Pairs(nn.Module):
    def setup(self) -> None:
        self.layers = stack(Pair, LAYERS)

    def __call__(self, x):
        return run_stack(self.layers, x)[0]


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 5, WIDTH))


@pytest.fixture(scope="module")
def params(x: jax.Array) -> dict:
    return Model(scan=True).init(jax.random.key(0), x)["params"]


def _loss(model: Model, params: dict, x: jax.Array) -> jax.Array:
    y, out = model.apply({"params": params}, x)
    return jnp.sin(y).sum() + (out["mean"] * jnp.arange(1.0, 4.0)).sum()


def test_scanned_layers_differ_and_are_named_as_in_t5x(params: dict) -> None:
    assert list(params) == ["layers"]
    kernel = params["layers"]["mlp"]["wi"]["kernel"]
    assert kernel.shape == (LAYERS, WIDTH, 2 * WIDTH)
    assert (kernel[0] != kernel[1]).all()
    assert sorted(unstack_params(params)) == ["layers_0", "layers_1", "layers_2"]


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("scan", [True, False])
def test_every_form_has_the_same_output_and_gradient(scan: bool, remat: str, params: dict, x: jax.Array) -> None:
    value, gradient = jax.jit(jax.value_and_grad(lambda p: _loss(Model(scan=True), p, x)))(params)
    own = params if scan else unstack_params(params)
    model = Model(scan=scan, remat=remat)
    assert jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0), x)["params"]) == jax.tree.structure(own)
    own_value, own_gradient = jax.jit(jax.value_and_grad(lambda p: _loss(model, p, x)))(own)
    np.testing.assert_allclose(own_value, value, rtol=1e-5)
    own_gradient = own_gradient if scan else stack_params(own_gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), own_gradient, gradient)


@pytest.mark.parametrize("scan", [True, False])
def test_remat_keeps_less_for_the_backward_pass(scan: bool, params: dict, x: jax.Array) -> None:
    own = params if scan else unstack_params(params)

    def kept(remat: str) -> int:
        _, backward = jax.vjp(lambda p: _loss(Model(scan=scan, remat=remat), p, x), own)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize("scan", [True, False])
def test_other_methods_run_over_the_same_layers(scan: bool, params: dict, x: jax.Array) -> None:
    own = params if scan else unstack_params(params)
    y, out = Model(scan=scan, remat="full").apply({"params": own}, x, method="norms_only")
    expected, outs = x, []
    for index in range(LAYERS):
        outs.append(expected)
        norm = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"]["norm"])
        expected = LayerNorm(1e-6).apply({"params": norm}, expected) + 1.0
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(out, jnp.stack(outs), atol=1e-5)


def test_each_scanned_layer_draws_its_own_randomness_at_its_own_rate() -> None:
    class Drop(nn.Module):
        def setup(self):
            self.drop_path = DropPath()

        def __call__(self, x, layer, shared, train):
            return x, self.drop_path(x, layer, train)

    class Drops(nn.Module):
        def setup(self):
            self.layers = stack(Drop, 3)

        def __call__(self, x, train):
            return run_stack(self.layers, x, jnp.array([0.0, 0.5, 0.5]), None, train)[1]

    ones = jnp.ones((400, 2))
    dropped = Drops().apply({}, ones, True, rngs={"dropout": jax.random.key(0)})
    assert (dropped[0] == 1.0).all()
    assert set(np.unique(dropped[1:])) == {0.0, 2.0}  # dropped, or scaled up
    np.testing.assert_array_equal(dropped[..., 0], dropped[..., 1])  # an example is dropped as a whole
    assert np.abs(dropped[1:].mean(axis=(1, 2)) - 1.0).max() < 0.15
    assert (dropped[1] != dropped[2]).any()
    np.testing.assert_array_equal(Drops().apply({}, ones, False), jnp.ones((3, 400, 2)))


def test_the_two_layouts_are_inverse_at_any_depth(x: jax.Array) -> None:
    nested = Pairs().init(jax.random.key(0), x)["params"]
    assert nested["layers"]["layers"]["dense"]["kernel"].shape == (LAYERS, 2, WIDTH, WIDTH)
    written_out = unstack_params({"encoder": nested, "head": {"bias": np.zeros(2)}})
    inner = written_out["encoder"]["layers_2"]["layers_1"]["dense"]["kernel"]
    np.testing.assert_array_equal(inner, nested["layers"]["layers"]["dense"]["kernel"][2, 1])
    back = stack_params(written_out)
    assert jax.tree.structure(back) == jax.tree.structure({"encoder": nested, "head": {"bias": 0}})
    jax.tree.map(np.testing.assert_array_equal, back["encoder"], nested)


def test_the_order_of_layers_is_that_of_numbers_and_host_arrays_stay_on_the_host() -> None:
    params = {f"layers_{index}": {"bias": np.full(2, index)} for index in [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}
    stacked = stack_params(params)["layers"]["bias"]
    assert isinstance(stacked, np.ndarray)
    np.testing.assert_array_equal(stacked[:, 0], np.arange(11))


def test_wrong_arguments_are_refused(x: jax.Array) -> None:
    with pytest.raises(ValueError, match="remat is 'some', expected one of"):
        Model(scan=True, remat="some").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"stack are \['layers_0', 'layers_2'\], expected layers_0 to layers_1"):
        stack_params({"layers_0": {}, "layers_2": {}})
    with pytest.raises(ValueError, match=r"leading axes of a stack's parameters are \[2, 3\]"):
        unstack_params({"layers": {"a": np.zeros(2), "b": np.zeros(3)}})
