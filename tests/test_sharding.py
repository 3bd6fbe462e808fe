"""Meshes and rules: which axis goes where. That no number changes with the mesh: test_mesh.py."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pixel_align.sharding import MeshConfig, indivisible, make_mesh, over_batch, replicated, resolve


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(config: MeshConfig, shape: tuple[int, int, int]) -> None:
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(data=16), MeshConfig(data=0)],
)
def test_sizes_that_do_not_give_the_devices_are_refused(config: MeshConfig) -> None:
    with pytest.raises(ValueError, match=r"mesh is data=.*, expected a product of 8, the number of devices") as error:
        make_mesh(config)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"with -1 at most once"):
        make_mesh(MeshConfig(data=-1, fsdp=-1), jax.devices()[:1])


def test_some_devices_may_be_given() -> None:
    assert make_mesh(MeshConfig(), jax.devices()[:2]).devices.shape == (2, 1, 1)


MESH_SHAPE = MeshConfig(data=1, fsdp=4, tensor=2)


@pytest.mark.parametrize(
    ("rule", "shape", "spec"),
    [
        ((), (3, 8), (None, None)),
        (("fsdp",), (8, 3), ("fsdp", None)),
        ((..., "fsdp"), (3, 8), (None, "fsdp")),
        ((..., "fsdp", "tensor"), (5, 8, 4), (None, "fsdp", "tensor")),  # a stack of layers
        ((..., "fsdp", "tensor"), (8, 4), ("fsdp", "tensor")),
        ((..., "fsdp"), (3, 6), (None, None)),  # six do not divide by four: whole everywhere
        ((..., "fsdp", "tensor"), (6, 4), (None, "tensor")),
        ((None, "tensor"), (3, 4), (None, "tensor")),
    ],
)
def test_rules_become_shardings(rule: tuple, shape: tuple, spec: tuple) -> None:
    found = resolve(rule, shape, make_mesh(MESH_SHAPE))
    assert found.spec == PartitionSpec(*spec)
    # It is one that arrays of this shape can have.
    assert jax.device_put(np.zeros(shape), found).shape == shape


def test_what_does_not_divide_is_listed() -> None:
    params = {"a": np.zeros((3, 6)), "b": np.zeros((3, 8)), "c": np.zeros(2)}
    rules = {"a": (..., "fsdp"), "b": (..., "fsdp"), "c": ()}
    assert indivisible(params, rules, make_mesh(MESH_SHAPE)) == ["a: axis 1 of (3, 6) by fsdp=4"]


def test_examples_go_over_both_data_axes() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = jax.device_put(np.arange(8), over_batch(mesh))
    assert sorted({tuple(np.asarray(shard.data)) for shard in rows.addressable_shards}) == [
        (0, 1), (2, 3), (4, 5), (6, 7),
    ]  # fmt: skip
    whole = jax.device_put(np.arange(8), replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8,)}
