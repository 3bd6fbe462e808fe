"""The benchmark of the input: photographs as they are, both pipelines whole, stages that add up to what a row takes."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pixel_align.benchmark import input as benchmark
from tests import tiny


def test_photographs_have_the_size_and_the_weight_of_photographs() -> None:
    drawn = [benchmark.photograph(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(50_000 < len(one) < 250_000 for one in drawn)
    with PIL.Image.open(io.BytesIO(drawn[0])) as picture:
        assert picture.size == (640, 480) and picture.format == "JPEG"
    assert benchmark.decode(drawn[0]).shape == (480, 640, 3)


def test_both_pipelines_are_measured_by_stage_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipelines.__main__ import main

    def build(root: Path) -> None:
        assert benchmark.build_command(root)[:2] == ["-m", "data_pipelines"]
        assert main(benchmark.build_command(root)[2:]) == 0

    monkeypatch.setattr(benchmark, "build", build)
    for name, value in (("PICTURES", 6), ("TURNS", 1), ("WARM", 1)):
        monkeypatch.setattr(benchmark, name, value)
    config = tiny.get_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=4))
    rows = {row["name"]: row for row in benchmark.run(config, 12)}
    stages = ("read", "decode", "place", "convert", "stack", "decoding_alone", "whole")
    assert list(rows) == [f"{name}/{stage}" for name in ("trace", "refer") for stage in stages]
    for name in ("trace", "refer"):
        whole, alone = rows[f"{name}/whole"], rows[f"{name}/decoding_alone"]
        assert (whole["cases"], whole["unit"]) == (12, "images")
        assert whole["ratio"] == pytest.approx(whole["rate"] / alone["rate"])
        assert whole["notes"]["per_core"] == pytest.approx(whole["rate"] / whole["notes"]["cores"])
        assert 50_000 < whole["notes"]["bytes_per_image"] < 250_000
    json.dumps(rows)
