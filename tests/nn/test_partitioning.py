"""Logical constraints: nothing without a mesh, the named layout with one, never an error for what does not divide."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from pixel_align.nn.partitioning import constrain

NAMES = ("batch", None, "heads")


def _mesh(shape: tuple[int, ...], names: tuple[str, ...]) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def _layout(shape: tuple[int, ...], names: tuple[str | None, ...] = NAMES) -> PartitionSpec | None:
    """What the partitioner is asked for, None = nothing."""
    equations = jax.make_jaxpr(lambda x: constrain(x, names))(jnp.zeros(shape)).eqns
    return equations[0].params["sharding"].spec if equations else None


def test_without_a_mesh_nothing_is_asked_for() -> None:
    assert _layout((4, 3, 2)) is None


def test_names_become_axes_of_the_mesh() -> None:
    with jax.set_mesh(_mesh((2, 2, 2), ("data", "fsdp", "tensor"))):
        assert _layout((8, 3, 2)) == PartitionSpec(("data", "fsdp"), None, "tensor")
        assert _layout((8, 3, 2), ("batch", None, None)) == PartitionSpec(("data", "fsdp"), None, None)
        assert _layout((8, 3, 2), (None, None, "unheard_of")) is None
        x = jax.jit(lambda x: constrain(x, NAMES))(jnp.zeros((8, 3, 2)))
        assert x.sharding.shard_shape(x.shape) == (2, 3, 1)


def test_what_does_not_divide_or_does_not_exist_is_left_out() -> None:
    with jax.set_mesh(_mesh((2, 2, 2), ("data", "fsdp", "tensor"))):
        assert _layout((2, 3, 2)) == PartitionSpec("data", None, "tensor")
        assert _layout((1, 3, 3)) is None
    with jax.set_mesh(_mesh((8,), ("data",))):
        assert _layout((8, 3, 2)) == PartitionSpec("data", None, None)


def test_inside_shard_map_nothing_is_asked_for() -> None:
    mesh = _mesh((8,), ("data",))
    specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec("data")}
    with jax.set_mesh(mesh):
        out = jax.jit(jax.shard_map(lambda x: constrain(x, NAMES) + 1, **specs))(jnp.zeros((64, 3, 2)))
    assert (out == 1).all()


def test_every_axis_needs_a_name() -> None:
    with pytest.raises(ValueError, match=r"names are \('batch',\), expected 2"):
        constrain(jnp.zeros((2, 2)), ("batch",))
