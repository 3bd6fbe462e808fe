"""Several processes as one run: what they say when they cannot go on, what one lacks, what they share."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pixel_align import distributed
from tests.distributed import processes

HOST = socket.gethostname()

# A process without a model: it joins, and then does what its role says. Times are short, so that the test is.
ROLES = """
import os, signal, sys, time
from pixel_align import cli, distributed
distributed.HEARTBEAT, distributed.ANSWER, distributed.LEAVE = 4, 20, 5
where, count, index, role = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    with cli.one_line_errors():
        distributed.start(where, count, index, 20)
        with distributed.together():
            distributed.agree({"config.optim.peak_lr": 0.5 if role == "differs" else 0.1, "data of a/train": "2 files"})
            if role == "lacks":
                raise FileNotFoundError("data.dir is '/data', expected a folder. Set it.")
            if role == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
except cli.typer.Exit as left:
    distributed.end(left.exit_code)
"""


def act(tmp_path: Path, *roles: str) -> list[tuple[int, str, list[str]]]:
    """(exit code, standard output, lines of standard error) of a process of each role."""
    script = tmp_path / "roles.py"
    script.write_text(ROLES)
    where = processes.address()
    begun = processes.begin([[str(script), where, str(len(roles)), str(k), role] for k, role in enumerate(roles)], 1)
    return [(code, out, err.splitlines()) for code, out, err in processes.ends(begun, within=55)]


def test_settings_that_differ_are_named_by_all(tmp_path: Path) -> None:
    for code, _, lines in act(tmp_path, "waits", "differs"):
        assert code == distributed.FAILED
        assert lines == [
            f"error: config.optim.peak_lr is 0.5 in process 1 ({HOST}), expected 0.1 as in process 0 ({HOST}). "
            "Start all processes with the same experiment, vocabulary and data."
        ]


def test_what_one_process_lacks_ends_all_of_them_with_its_line(tmp_path: Path) -> None:
    for code, _, lines in act(tmp_path, "waits", "lacks"):
        assert code == distributed.FAILED
        assert lines == [f"error: process 1 ({HOST}): data.dir is '/data', expected a folder. Set it."]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_is_named_before_jax_speaks(tmp_path: Path, killed: int) -> None:
    ended = act(tmp_path, *("killed" if k == killed else "waits" for k in range(2)))
    assert ended[killed][0] == -signal.SIGKILL
    code, _, lines = ended[1 - killed]
    assert code not in (0, -signal.SIGKILL)
    how = "which coordinates, is gone" if killed == 0 else "is gone: no heartbeat for 4 s"
    assert lines[0].startswith(f"error: process {killed} ({HOST}){', ' if killed == 0 else ' '}{how}. Read its log"), (
        lines
    )
    assert any("JAX distributed service" in line for line in lines[1:])


def test_who_waits_for_nobody_says_where_and_how_long(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text("import sys\nfrom pixel_align import distributed\ndistributed.start(sys.argv[1], 2, 1, 2)\n")
    where = processes.address()
    ((code, _, err),) = processes.ends(processes.begin([[str(script), where]], 1), within=30)
    assert code != 0
    assert err.splitlines()[0] == (
        f"error: process 1 ({HOST}) has waited 2 s for the others at {where}, expected 2 processes to come up. "
        "Start them all at once, or give them more time: --wait."
    )


# ---- In one process


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "--coordinator is 'a:1', --processes missing, --process missing, expected all three"),
        ({"processes": 2, "process": 0}, "--coordinator is '', --processes 2, --process 0, expected all three or none"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process is 2, expected less than --processes, 2"),
    ],
)
def test_half_of_an_address_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        distributed.start(**given)
    assert "\n" not in str(caught.value)


def test_one_process_is_a_run_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    distributed.start()
    distributed.start("localhost:1", 1, 0)
    assert jax.process_count() == 1
    with distributed.together():
        distributed.agree({"anything": 1})
        assert distributed.gather({"a": np.arange(3)})[0]["a"].tolist() == [0, 1, 2]
    with pytest.raises(KeyError, match="as it is"), distributed.together():
        raise KeyError("as it is")
    distributed.end(7)
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"


def test_sigterm_is_heard_once_and_only_inside() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with distributed.Stop() as stop:
        assert not stop.after(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.after(2) and stop.after(3)
    assert signal.getsignal(signal.SIGTERM) is before
    # A thread cannot hear signals, and leaves them alone.
    heard: list[bool] = []

    def elsewhere() -> None:
        with distributed.Stop() as stop:
            heard.append(stop.after(1))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [False]
