"""Several processes as one run: they find each other, compare what they are about to do, fail and stop together.

The work is jax's: its coordination service (`jax.distributed`), which lives in process 0, finds dead processes by their
heartbeats and passes on a SIGTERM. Here are the times that it is given, and what a person reads when it goes wrong: one
line with cause and host, before jax's own text. A run in one process passes through all of this untouched.

jax has no public name for the service's key-value store: `_service` is the one place that reaches for it.
"""

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

START = 50  # seconds in which all processes have to come up
HEARTBEAT = 25  # seconds without a heartbeat after which jax takes a process for dead
ANSWER = 50  # seconds in which every process has to say what it is about to do
PATIENCE = 7_200  # seconds for all to compile; who is dead is found by its heartbeat
LEAVE = 10  # seconds for jax to end the engine, and for a failure to reach everyone
STOPPED = os.EX_TEMPFAIL  # 75: the exit code of a run that was told to stop and can be resumed
FAILED = 2  # the exit code where a process, this one or another, said what is wrong

_KEYS = "pixel_align"  # the folder of our keys in the service's store


class Failure(ValueError):
    """Processes that cannot go on together; the message names the process and its host."""


class Stopped(RuntimeError):
    """A run that was told to stop, and has saved where it stands."""


def start(coordinator: str = "", processes: int = 0, process: int = -1, wait: int = START) -> None:
    """Joins the processes of a run. Call it before anything that asks jax for its devices.

    Without arguments jax looks for an environment that it knows (TPU VM, GKE, Slurm, Open MPI); where there is none the
    run is one of a single process.

    Args:
      coordinator: host:port of process 0. processes: how many there are; 1 alone for one, whatever jax would find.
      process: which one this is, from 0.
      wait: seconds for all of them to come up.

    Raises:
      ValueError: some of the arguments, but not all.
    """
    if processes == 1:
        return
    given = [bool(coordinator), processes > 0, process >= 0]
    if any(given) and not all(given):
        raise ValueError(
            f"--coordinator is {coordinator!r}, --processes {processes or 'missing'}, --process "
            f"{process if process >= 0 else 'missing'}, expected all three or none. Give host:port of process 0, how "
            "many processes there are, and which one this is."
        )
    if all(given) and process >= processes:
        raise ValueError(f"--process is {process}, expected less than --processes, {processes}. Count from 0.")
    where: dict[str, Any] = {}
    if all(given):
        where = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    speaker = _Speaker()
    speaker.speak(
        f"error: process {process if where else '?'} ({socket.gethostname()}) has waited {wait} s for the others"
        f"{f' at {coordinator}' if where else ''}, expected {processes if where else 'all'} processes to come up. "
        "Start them all at once, or give them more time: --wait."
    )
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=wait, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=LEAVE
        )
    except (ValueError, RuntimeError) as error:
        speaker.close()
        # jax knows no environment here, or was at work before: then whoever called has started what there is.
        if where or not any(
            known in str(error) for known in ("coordinator_address should be", "must be called before")
        ):
            raise
        return
    if _service()[2] == 1:
        speaker.close()
        return
    of = [f"process {k} ({host})" for k, host in enumerate(_told("host", socket.gethostname()))]
    speaker.speak(
        f"error: {of[0]}, which coordinates, is gone. {_ADVICE}",
        {str(k): f"error: {name} is gone: no heartbeat for {HEARTBEAT} s. {_ADVICE}" for k, name in enumerate(of)},
    )


_ADVICE = "Read its log, and start all processes again: the run resumes at its last checkpoint."


def names(index: int) -> str:
    """What a process is called in messages: its number and its host."""
    client, _, count = _service()
    if client is None or count == 1:
        return f"process {index} ({socket.gethostname()})"
    return f"process {index} ({json.loads(client.blocking_key_value_get(f'{_KEYS}/host/{index}', 1000 * ANSWER))})"


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What one process of the run raises ends all of them, each with one line that names cause and process.

    An error of jax itself most often says that another process is gone: it is held back until jax knows which.
    """
    client, index, count = _service()
    if client is None or count == 1:
        yield
        return
    left = threading.Event()
    ear = threading.Thread(target=_listen, args=(client, index, count, left), name="pixel_align-failures", daemon=True)
    ear.start()
    try:
        yield
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(HEARTBEAT + LEAVE)
        left.set()
        ear.join()  # from here on there is one voice
        if isinstance(error, Stopped):
            jax.distributed.shutdown()
            raise
        if isinstance(error, Failure):  # what all of them say
            _depart(client, index, count)
            raise
        said = str(error).partition("\n")[0]
        mendable = isinstance(error, ValueError | FileNotFoundError | RuntimeError) and said == str(error)
        said = f"{names(index)}: {said if mendable else f'{type(error).__name__}: {said}'}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first
            client.key_value_set(f"{_KEYS}/failure", said)
        _depart(client, index, count)
        if mendable:
            raise Failure(said) from error
        raise
    left.set()
    ear.join()
    jax.distributed.shutdown()


def _listen(client: Any, index: int, count: int, left: threading.Event) -> None:
    """Ends this process as soon as another one says that it fails."""
    while not left.is_set():
        try:
            said = client.blocking_key_value_get(f"{_KEYS}/failure", 1000)
        except jax.errors.JaxRuntimeError:
            continue  # nothing yet; where the service is gone jax ends this process
        if not left.is_set():
            print(f"error: {said}", file=sys.stderr, flush=True)
            _depart(client, index, count)
            os._exit(FAILED)


def _depart(client: Any, index: int, count: int) -> None:
    """Says that this process knows and goes. With process 0 the service goes: it waits until all the others know."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_KEYS}/gone/{index}", "")
        until = time.monotonic() + LEAVE
        while index == 0 and len(client.key_value_dir_get(f"{_KEYS}/gone")) < count and time.monotonic() < until:
            time.sleep(0.1)


def end(code: int) -> None:
    """Ends a process of several at once, when all is said and saved: what jax and TensorFlow do at an interpreter's end
    may wait for processes that are gone. Does nothing in a run of one process.
    """
    if _service()[2] > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def agree(facts: Mapping[str, Any]) -> None:
    """Compares what the processes are about to do: name -> what has to be the same in all, as JSON has it.

    Raises:
      Failure: what differs, where, from process 0.
    """
    client, _, count = _service()
    if client is None or count == 1:
        return
    first, *others = _told("facts", facts)
    for index, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise Failure(
                    f"{name} is {other.get(name)!r} in {names(index)}, expected {first.get(name)!r} as in {names(0)}. "
                    "Start all processes with the same experiment, vocabulary and data."
                )


def _told(what: str, own: Any) -> list[Any]:
    """What every process says, by number, before there are devices to gather it with. Raises Failure."""
    client, index, count = _service()
    client.key_value_set(f"{_KEYS}/{what}/{index}", json.dumps(own))
    end_at, found = time.monotonic() + ANSWER, []
    for other in range(count):
        rest = max(1, round(1000 * (end_at - time.monotonic())))
        try:
            found.append(json.loads(client.blocking_key_value_get(f"{_KEYS}/{what}/{other}", rest)))
        except jax.errors.JaxRuntimeError as error:
            name = f"process {other}" if what == "host" else names(other)
            raise Failure(f"{name} has not said its {what} for {ANSWER} s, expected it to. {_ADVICE}") from error
    return found


def gather(value: Any) -> list[Any]:
    """What every process has, by number, in every process; all of them must call it, in the same order.

    Anything that can be pickled: the processes are one program and trust each other.
    """
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(zlib.compress(pickle.dumps(value), 1), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(own.size)).reshape(-1)
    # Few sizes, as each is compiled.
    room = 1 << int(sizes.max() - 1).bit_length()
    everyone = multihost_utils.process_allgather(np.pad(own, (0, room - own.size)))
    return [pickle.loads(zlib.decompress(one[:size].tobytes())) for one, size in zip(everyone, sizes, strict=True)]


def meet(reached: str) -> None:
    """Waits for all processes, for as long as they live; each place is met at once."""
    client, _, count = _service()
    if client is not None and count > 1:
        client.wait_at_barrier(f"{_KEYS}/{reached}", 1000 * PATIENCE)


class Stop:
    """Whether the run has been told to stop, by SIGTERM: a context around the loop that asks after every step.

    In several processes jax's own notifier hears the signal, in whichever process, and makes all of them stop at the
    same step.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: Any = None

    def __enter__(self) -> "Stop":
        # A thread may not set handlers; whoever trains in one handles signals.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, *_: object) -> None:
        self._told = True

    def after(self, step: int) -> bool:
        """Whether to stop after this step; all processes ask after every step and get the same answer."""
        return self._told if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


# Reads what this process and jax write on standard error, and passes it on. jax ends a process from its own threads by
# a message and SIGABRT: nothing in that process can speak before it. So another one does. Lines that begin with a zero
# byte are for it.
_SPEAKER = r"""
import json, os, re, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
said, of, held = "", {}, None
for line in sys.stdin.buffer:
    if line.startswith(b"\0"):
        said, of = json.loads(line[1:])
    elif held is None and b"the JAX distributed service detected fatal errors" in line:
        held = line
    elif held is not None:
        held += line
    else:
        os.write(2, line)
if held:
    gone = re.search(rb"stopped sending heartbeats\):\s*(?:/job:\S*task:)?(\d+)", held)
    if gone:
        said = of.get(gone[1].decode(), said)
    elif of and b"UNAVAILABLE" not in held:
        said = "error: " + held.partition(b"absl::Status: ")[2].partition(b"\n")[0].decode()
    os.write(2, said.encode() + b"\n" + held)
"""


class _Speaker:
    """The process that passes on standard error."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self._real = os.dup(2)
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SPEAKER], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=2
        )
        assert self._child.stdin is not None
        os.dup2(self._child.stdin.fileno(), 2)
        self._child.stdin.close()

    def speak(self, otherwise: str, of: Mapping[str, str] | None = None) -> None:
        """What to say when jax ends this process: by the number of the process that is gone, where jax names one."""
        sys.stderr.flush()
        os.write(2, b"\0" + json.dumps([otherwise, of or {}]).encode() + b"\n")

    def close(self) -> None:
        """Standard error as it was."""
        sys.stderr.flush()
        os.dup2(self._real, 2)
        os.close(self._real)
        self._child.wait()


def _service() -> tuple[Any, int, int]:
    """(client of jax's coordination service or None, number of this process, number of processes)."""
    from jax._src.distributed import global_state

    return global_state.client, global_state.process_id, global_state.num_processes
