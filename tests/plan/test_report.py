"""The report: what the compiler's refusal says, the roofline, what is advised, what is refused."""

import dataclasses
import importlib.util
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from pixel_align import config
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.plan import counter, report, topology

GIB = 2**30


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", (20.5, 15.75)),
        ("RESOURCE_EXHAUSTED: HLO temporaries (17.36G) exceeds available HBM (15.75G)", (17.36, 15.75)),
    ],
)
def test_a_program_without_room_says_how_much_it_needs(message: str, expected: tuple[float, float]) -> None:
    assert [size / GIB for size in report.overflow(message)] == pytest.approx(expected)


def test_another_error_of_the_compiler_is_told() -> None:
    with pytest.raises(ValueError, match="INTERNAL: no such thing"):
        report.overflow("INTERNAL: no such thing\nat line 3")


def test_the_slowest_of_three_peaks_is_the_estimate() -> None:
    chip = topology.Chip(flops=100.0, memory=1, bandwidth=10.0, link_bandwidth=5.0)
    found = counter.Counts(Counter(a=300, b=100), memory_bytes=50, collective_bytes=Counter({"all-gather": 10}))
    estimate = report.roofline(found, chip, model_flops=1200, chips=4)
    assert estimate == {"products": 4.0, "memory": 5.0, "links": 2.0, "step": 5.0, "utilisation": 1200 / (4 * 100 * 5)}


def test_products_go_to_the_parts_that_they_come_from() -> None:
    place = "jit(train_step)/{}(PixelLLM)/PixelLLM.{}/dot_general"
    flops = {
        place.format("jvp", "encode_image/image.maps/eva/while/body/layers/mlp/wo"): 1,
        place.format("transpose(jvp", "encode_image/image.maps/eva/while/body/layers/mlp/wo"): 2,
        place.format("jvp", "encode_image/image.maps/sam/neck_in"): 4,
        place.format("jvp", "_detect/detector/detector.refine"): 8,
        place.format("jvp", "segment/mask_decoder/two_way/layers"): 16,
        place.format("jvp", "decode_text/text.decode/decoder/while/body/layers"): 32,
        "jit(train_step)/jvp()/while/body/dot_general": 64,
    }
    found = report.by_part(counter.Counts(Counter(flops)))
    assert found == {"image/eva": 3, "image/sam": 4, "detector": 8, "mask_decoder": 16, "text": 32, "rest": 64}


def test_what_costs_least_is_advised_first() -> None:
    experiment = dataclasses.replace(config.Experiment(), model=PixelLLMConfig.published())
    mesh = SimpleNamespace(shape={"data": 4, "fsdp": 4, "tensor": 1})
    advised = []
    for changes in (
        ["train.frozen_dtype=bfloat16"],
        [f"model.{part}.dtype=bfloat16" for part in ("image.eva", "image.sam", "extractor", "text")],
        [f"model.{part}.remat=full" for part in ("image.eva", "extractor", "text")],
    ):
        run: Any = SimpleNamespace(config=experiment, mesh=mesh)
        advised.append(report.advice(run, "train"))
        # It can be followed as it is written.
        written = advised[-1].removeprefix("Set ").partition(":")[0].split()
        assert sorted(written) == sorted(changes)
        experiment = config.override(experiment, changes)
    run = SimpleNamespace(config=experiment, mesh=mesh)
    assert report.advice(run, "train").startswith("Set mesh.data=1 mesh.fsdp=-1")
    run.mesh = SimpleNamespace(shape={"data": 1, "fsdp": 16, "tensor": 1})
    assert report.advice(run, "train").startswith("Set train.accumulate=2")


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "16x16"])
def test_a_topology_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"topology is '{name}', expected a kind of v5e, v5p, v6e"):
        topology.topology(name)


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'pixel-align\[tpu\]'"):
        topology.topology("v5e:2x2")
