"""Settings of all tests, made before JAX is first imported: eight fake CPU devices, a cache of compiled programs."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Half of the compiling is spent on programs that then run for milliseconds.
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of sample data in the publishers' own formats; tests that ask for it are skipped where it is unset."""
    folder = os.environ.get("PIXEL_ALIGN_SAMPLES")
    if not folder:
        pytest.skip("$PIXEL_ALIGN_SAMPLES is unset: no sample data here")
    path = Path(folder).resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"PIXEL_ALIGN_SAMPLES is {folder!r}, expected a folder. Correct or unset it.")
    return path


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the processes of a run of tests fills, and all of them read."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 drawn scenes to train on and 16 unseen ones, built, and a vocabulary of their text (tiny.py).
    Do not write into it: copy it.
    """
    from tests import tiny

    return _made_once(tmp_path_factory, "tiny_world", tiny.make_world)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_world: Path) -> Path:
    """The work folder of tests/tiny.py trained there, on 8 devices. Do not write into it: copy it."""
    from pixel_align import config, train
    from tests import tiny

    settings = config.load(Path(tiny.__file__), tiny.in_world(tiny_world))
    return _made_once(tmp_path_factory, "tiny_run", lambda folder: train.train(settings, folder))
