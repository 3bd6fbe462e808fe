"""What a run says about waiting for data."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pixel_align import config, data
from pixel_align.experiment import Experiment
from tests import tiny


def test_a_stream_says_when_the_next_batch_is_there(tiny_world: Path) -> None:
    experiment: Experiment = config.load(tiny.__file__, tiny.in_world(tiny_world))
    held = []

    class Slow:
        regions = 0

        def __call__(self, example: Any, rng: Any = None) -> tuple[Any, Any]:
            while not held:
                time.sleep(0.01)
            return {"one": np.zeros(1)}, None

    with data.Steps([(experiment.data, Slow()), (experiment.data, Slow())], None) as steps:
        time.sleep(0.3)
        assert not steps.ready
        held.append(True)
        for _ in range(500):
            if steps.ready:
                break
            time.sleep(0.02)
        assert steps.ready
        begun = time.perf_counter()
        next(steps)
        assert time.perf_counter() - begun < 1


def test_every_line_of_a_run_has_a_share(tiny_run: Path) -> None:
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    shares = [line["data_wait"] for line in lines if "loss" in line]
    assert len(shares) == 12 and all(0 <= share <= 1 for share in shares)
