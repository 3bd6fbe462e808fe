"""Training in two processes: what one process learns, stopped by SIGTERM, gone on with by one."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pixel_align import config, distributed, train
from pixel_align.checkpoints import store
from tests import tiny
from tests.distributed import processes

# The tiny experiment; one of the processes, which is not the first, is told to stop in its seventh step. What follows
# is slow, as steps are where it matters: the others have to hear of it.
STOPPED = """
import os, signal, time
import jax
from pixel_align import train
from tests import tiny

write = train.MetricsLog.write
def told(self, step, values):
    write(self, step, values)
    if step == 7 and "loss" in values and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if step >= 7:
        time.sleep(1)
train.MetricsLog.write = told
get_config = tiny.get_config
"""


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def figures(workdir: Path) -> dict[tuple[int, str], float]:
    """(step, name) -> what the log of a run says that is not a time."""
    lines = lines_of(workdir)
    timed = {"steps_per_second", "data_wait", "step"}
    found = [(line["step"], name, value) for line in lines for name, value in line.items() if name not in timed]
    assert len({(step, name) for step, name, _ in found}) == len(found), "a step stands twice"
    return {(step, name): value for step, name, value in found}


def test_two_processes_learn_what_one_does_stop_together_and_one_goes_on(
    tiny_run: Path, tiny_world: Path, tmp_path: Path
) -> None:
    """Four devices each, against eight in one process: losses, evaluations, and the position of the data."""
    experiment, workdir = tmp_path / "stopped.py", tmp_path / "run"
    experiment.write_text(STOPPED)
    changes = [part for change in [*tiny.in_world(tiny_world), "data.readers=1"] for part in ("--set", change)]
    commands = processes.train(processes.address(), 2, [str(experiment), "--workdir", str(workdir), *changes])
    ended = processes.ends(processes.begin(commands, devices=4), within=500)
    assert [code for code, _, _ in ended] == [distributed.STOPPED] * 2, ended
    folder, reached = store.find(workdir)
    assert 7 <= reached < 12, "all processes stopped at one step, soon"
    assert store.steps_of(folder) == [4, reached]
    for _, _, err in ended:
        assert err.splitlines()[-1] == f"stopped: step {reached} is saved. Start the run again to go on."
    # The first process speaks for all.
    assert "on 8 cpu" in ended[0][2] and len(ended[1][2].splitlines()) == 1, ended[1][2]
    (position,) = json.loads((folder / str(reached) / "position" / "metadata").read_text())
    assert position["drawn"] == reached * 8 and list(position["readers"]) == ["0"]

    assert jax.process_count() == 1
    train.train(config.load(tiny.__file__, tiny.in_world(tiny_world)), workdir)
    expected, found = figures(tiny_run), figures(workdir)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=str(name))
