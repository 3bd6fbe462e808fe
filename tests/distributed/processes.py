"""Runs of several processes over localhost: started, watched, told apart by what each of them says."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def address() -> str:
    """localhost with a port that is free."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def begin(arguments: Sequence[Sequence[str]], devices: int) -> list[subprocess.Popen[str]]:
    """`python ARGUMENTS` for each process, on `devices` CPU devices each, with the settings of the tests."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return [
        subprocess.Popen(
            [sys.executable, *own],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in arguments
    ]


def ends(processes: Sequence[subprocess.Popen[str]], within: float) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each; none may take longer than `within` seconds."""
    try:
        said = [process.communicate(timeout=within) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(processes, said, strict=True)]


def train(where: str, count: int, arguments: Sequence[str]) -> list[list[str]]:
    """The arguments of `python -m pixel_align train` for each of `count` processes."""
    several = [["--coordinator", where, "--processes", str(count), "--process", str(k)] for k in range(count)]
    return [["-m", "pixel_align", "train", *arguments, *(own if count > 1 else [])] for own in several]
