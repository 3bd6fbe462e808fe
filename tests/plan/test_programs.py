"""An experiment's programs, laid out and compiled as for a topology, here for eight devices of the CPU."""

import dataclasses

import jax
import pytest

from pixel_align import config, sharding
from pixel_align.data import DataConfig
from pixel_align.experiment import Eval
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.plan import programs, report
from pixel_align.plan.topology import Chip, Topology

CHIP = Chip(flops=1e12, memory=2**30, bandwidth=1e11, link_bandwidth=1e10)
EXPERIMENT = dataclasses.replace(
    config.Experiment(),
    model=PixelLLMConfig.tiny(),
    data=DataConfig(batch_size=8),
    evals=(Eval(mode="refer", batch_size=3),),
)


def test_a_program_is_compiled_and_counted() -> None:
    where = Topology("cpu:8", CHIP, jax.devices())
    run = programs.on_mesh(config.override(EXPERIMENT, ["mesh.fsdp=8"]), jax.devices())
    assert sharding.readers(run.mesh) == 8
    (found,) = report.compile_all(run, where, ["evaluate"])
    # Three pictures are filled up to one for each device.
    assert found.fits and found.examples == 8 and found.mesh == (1, 8, 1)
    assert found.model_flops is not None and found.over_model == pytest.approx(1.0, abs=0.2)
    assert found.collective_bytes and found.collective_bytes["all-gather"] > 0
    assert found.estimate is not None and 0 < found.estimate["utilisation"] <= 1
    assert {"fits", "model FLOPs", "compiled over model, again apart"} <= report.cells(found).keys()
