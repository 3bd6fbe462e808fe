"""Training in two processes: what one process learns, stopped by SIGTERM, gone on with by one."""

import json
from pathlib import Path

import jax
import numpy as np

from pixel_align import config, distributed, train
from pixel_align.checkpoints import store
from tests import tiny
from tests.distributed import processes

# The tiny experiment; one of the processes, which is not the first, is told to stop in its fifth step. What follows is
# slow, as steps are where it matters: the others have to hear of it. Evaluations by several processes are compared in
# `make proof NAME=processes`: to compile them takes longer than all of this.
STOPPED = """
import os, signal, time
import jax
from pixel_align import train
from tests import tiny

write = train.MetricsLog.write
def told(self, step, values):
    write(self, step, values)
    if step == 5 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if step >= 5:
        time.sleep(1)
train.MetricsLog.write = told
get_config = lambda: tiny.without_evaluations(tiny.get_config())
"""


def losses_of(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert len(dict(found)) == len(found), "a step stands twice"
    return dict(found)


def test_two_processes_learn_what_one_does_stop_together_and_one_goes_on(
    tiny_run: Path, tiny_world: Path, tmp_path: Path
) -> None:
    """Four devices each, against eight in one process: losses, and the position of the data."""
    experiment, workdir = tmp_path / "stopped.py", tmp_path / "run"
    experiment.write_text(STOPPED)
    changes = [part for change in [*tiny.in_world(tiny_world), "data.readers=1"] for part in ("--set", change)]
    commands = processes.train(processes.address(), 2, [str(experiment), "--workdir", str(workdir), *changes])
    ended = processes.ends(processes.begin(commands, devices=4), within=500)
    assert [code for code, _, _ in ended] == [distributed.STOPPED] * 2, ended
    folder, reached = store.find(workdir)
    assert 5 <= reached < 12, "all processes stopped at one step, soon"
    assert store.steps_of(folder)[0] == 4
    for _, _, err in ended:
        assert err.splitlines()[-1] == f"stopped: step {reached} is saved. Start the run again to go on."
    # The first process speaks for all.
    assert "on 8 cpu" in ended[0][2] and len(ended[1][2].splitlines()) == 1, ended[1][2]
    (position,) = json.loads((folder / str(reached) / "position" / "metadata").read_text())
    assert position["drawn"] == reached * 8 and list(position["readers"]) == ["0"]

    assert jax.process_count() == 1
    train.train(tiny.without_evaluations(config.load(tiny.__file__, tiny.in_world(tiny_world))), workdir)
    expected, found = losses_of(tiny_run), losses_of(workdir)
    assert list(found) == list(expected) == list(range(1, 13))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
