"""TPU topologies as compile targets, and what is published about their chips.

`libtpu` compiles for chips that are not there (extra `tpu`). It is asked for no more than the description of a
topology; nothing runs.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip. Source: Google Cloud's page about each kind (docs.cloud.google.com/tpu/docs/v5e and
    so on), read November 2026.

    Attributes:
      flops: dense bfloat16 products and sums, in 1/s.
      memory: of HBM, in bytes. bandwidth: of HBM, in bytes/s.
      link_bandwidth: what leaves a chip over all of its links to neighbours at once, in bytes/s: half of what is
        published, which counts both directions.
    """

    flops: float
    memory: int
    bandwidth: float
    link_bandwidth: float


CHIPS = {
    "v5e": Chip(flops=197e12, memory=16 * 2**30, bandwidth=819e9, link_bandwidth=200e9),
    "v5p": Chip(flops=459e12, memory=95 * 2**30, bandwidth=2765e9, link_bandwidth=600e9),
    "v6e": Chip(flops=918e12, memory=32 * 2**30, bandwidth=1600e9, link_bandwidth=400e9),
}

# What libtpu has to be told where it is alone: no metadata server is asked, no other process is kept out.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """A topology by its name, "v5e:16x16"; devices that can be compiled for and nothing else."""

    name: str
    chip: Chip
    devices: Sequence[Any]


def topology(name: str) -> Topology:
    """The topology of a name: a kind of chip, a colon, its sides.

    Raises:
      ValueError: no such kind or sides; no libtpu.
    """
    kind, colon, _ = name.partition(":")
    if kind not in CHIPS or not colon:
        raise ValueError(
            f"topology is {name!r}, expected a kind of {', '.join(CHIPS)} and its sides, as in v5e:16x16. Correct it."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu is not installed, expected it for compiling. Install it: pip install 'pixel-align[tpu]'."
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # with libtpu JAX would look for a TPU
    try:
        # One chip is less than a host of this kind has.
        alone = {"chips_per_host_bounds": (1, 1, 1)} if name.partition(":")[2] == "1x1" else {}
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **alone)
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"topology is {name!r}, expected one that libtpu knows: {said}. Correct its sides.") from error
    return Topology(name, CHIPS[kind], described.devices)
