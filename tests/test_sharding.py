"""Meshes and rules: which axis goes where. That no number changes with the mesh: test_mesh.py."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from pixel_align.sharding import (
    MeshConfig,
    bytes_per_chip,
    check_batches,
    choose,
    indivisible,
    make_mesh,
    over_batch,
    replicated,
    resolve,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (MeshConfig(data=2, fsdp=1, tensor=-1), (2, 1, 4)),
        (MeshConfig(tensor=-1), (8, 1, 1)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(config: MeshConfig, shape: tuple[int, int, int]) -> None:
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(data=4, fsdp=1), MeshConfig(data=16), MeshConfig(data=0)],
)
def test_sizes_that_do_not_give_the_devices_are_refused(config: MeshConfig) -> None:
    with pytest.raises(ValueError, match=r"mesh is data=.*, expected a product of 8, the number of devices") as error:
        make_mesh(config)
    assert "\n" not in str(error.value)


def test_some_devices_may_be_given() -> None:
    assert make_mesh(MeshConfig(), jax.devices()[:2]).devices.shape == (2, 1, 1)


@pytest.mark.parametrize(
    ("config", "gibibytes", "shape"),
    [
        (MeshConfig(), 4, (16, 1, 1)),
        (MeshConfig(), 4.1, (8, 2, 1)),
        (MeshConfig(), 17, (2, 8, 1)),
        (MeshConfig(), 1000, (1, 16, 1)),  # more than there is room for: as little as can be
        (MeshConfig(tensor=4), 17, (2, 2, 4)),
        (MeshConfig(data=16), 17, (16, 1, 1)),  # asked for
        (MeshConfig(data=4, tensor=-1), 17, (4, 4, 1)),
    ],
)
def test_the_fewest_devices_that_hold_the_state_share_it(
    config: MeshConfig, gibibytes: float, shape: tuple[int, int, int]
) -> None:
    def held(mesh: AbstractMesh) -> int:
        return int(gibibytes * 2**30) // (mesh.shape["fsdp"] * mesh.shape["tensor"])

    assert choose(config, 16, held=held) == shape


@dataclasses.dataclass(frozen=True)
class Device:
    """A device as far as laying out a mesh looks at it."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "none"


def test_only_data_crosses_slices() -> None:
    mixed = [Device(number, number % 2) for number in range(16)]
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), mixed)
    assert mesh.devices.shape == (4, 2, 2)
    for part, expected in zip(mesh.devices, (0, 0, 1, 1), strict=True):
        assert {device.slice_index for device in part.flat} == {expected}
    assert len({device.id for device in mesh.devices.flat}) == 16
    with pytest.raises(ValueError, match=r"mesh.slices is 4, expected 2, as the devices say\."):
        make_mesh(MeshConfig(slices=4), mixed)
    # Fits the devices, not one slice of them.
    with pytest.raises(ValueError, match="a product of 16, the number of devices, with data a multiple of 2, the"):
        make_mesh(MeshConfig(fsdp=16), mixed)


def test_devices_without_slices_are_cut_as_the_config_says() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, slices=2))
    assert [[device.id for device in part.flat] for part in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(ValueError, match=r"mesh.slices is 3, expected a divisor of 8 devices\."):
        make_mesh(MeshConfig(slices=3))
    with pytest.raises(ValueError, match="with data a multiple of 4, the number of slices"):
        make_mesh(MeshConfig(fsdp=4, slices=4))


def test_batches_have_to_divide_over_those_who_see_examples_and_over_the_parts() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batches([("a", 4), ("b", 12)], mesh)
    check_batches([("a", 8)], mesh, accumulate=2)
    with pytest.raises(ValueError, match="batch_size of b is 6, expected a multiple of 4, the devices"):
        check_batches([("a", 4), ("b", 6)], mesh)
    with pytest.raises(ValueError, match=r"of a is 12, expected a multiple of 8, .* times train.accumulate=2\. Change"):
        check_batches([("a", 12)], mesh, accumulate=2)


def test_bytes_are_those_of_one_chip() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tree = {"a": jax.ShapeDtypeStruct((4, 6), np.float32), "b": jax.ShapeDtypeStruct((3,), np.int8)}
    lies = {"a": resolve(("fsdp", "tensor"), (4, 6), mesh), "b": resolve(("fsdp",), (3,), mesh)}
    assert bytes_per_chip(tree, lies) == 4 * 2 * 3 + 3
    placed = jax.device_put(np.zeros((4, 6), np.float32), lies["a"])
    assert bytes_per_chip(tree["a"], lies["a"]) == placed.addressable_shards[0].data.nbytes


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
