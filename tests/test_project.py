"""The project itself: what importing costs, what is packaged, and which Pythons the Makefile takes."""

import os
import pkgutil
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import setuptools

import pixel_align

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pixel_align", "data_pipelines")
TENSORFLOW = ("seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text")


def python(code: str) -> str:
    """What a fresh interpreter with warnings as errors prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_costs_nothing() -> None:
    assert python("import sys, pixel_align; print('jax' in sys.modules, 'numpy' in sys.modules)") == "False False"


def test_no_module_of_pixel_align_imports_tensorflow_when_it_is_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(pixel_align.__path__, "pixel_align.")]
    names = [name for name in names if not name.endswith("__main__")]
    assert "pixel_align.data" in names and len(names) > 20
    loaded = python(f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\nprint(*sys.modules)")
    assert not set(loaded.split()) & set(TENSORFLOW)


def test_public_names_are_those_of_predict_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    predict = types.SimpleNamespace(load=object(), Predictor=object(), Prediction=object())
    monkeypatch.setitem(sys.modules, "pixel_align.predict", predict)
    assert [pixel_align.load, pixel_align.Predictor, pixel_align.Prediction] == list(vars(predict).values())
    assert {"load", "Predictor", "Prediction", "__version__"} == set(pixel_align.__all__) <= set(dir(pixel_align))
    assert re.fullmatch(r"\d+\.\d+\.\d+", pixel_align.__version__)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        pixel_align.lode  # noqa: B018


def test_every_module_is_in_a_package_that_is_installed() -> None:
    found = set(setuptools.find_packages(str(ROOT), include=[pattern for p in PACKAGES for pattern in (p, f"{p}.*")]))
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert ".".join(path.relative_to(ROOT).parent.parts) in found, f"{path.parent} lacks __init__.py"


def test_files_are_named_for_what_they_hold() -> None:
    for folder in (*PACKAGES, "experiments", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make reads, where nothing is installed yet."""
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def fake_python(folder: Path, name: str, *, version: str, status: int) -> Path:
    """A program that calls itself a Python and answers the Makefile's question with `status`."""
    path = folder / name
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}" && exit 0\necho no >&2\nexit {status}\n'
    )
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=plain | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("target", ["demo", "test", "lint", "parity"])
def test_another_python_is_refused_with_one_line(checkout: Path, target: str) -> None:
    old = fake_python(checkout, "python-old", version="3.14.1", status=1)
    done = make(checkout, target, f"PYTHON={old}")
    assert done.returncode != 0
    assert len((done.stdout + done.stderr).strip().splitlines()) == 1
    assert "Python is 3.14.1, expected 3.11, 3.12 or 3.13. Install one" in done.stderr
    assert not (checkout / ".venv").exists() and not (checkout / ".venv-parity").exists()


def test_a_shim_that_does_not_run_is_passed_over(checkout: Path) -> None:
    programs = checkout / "bin"
    programs.mkdir()
    fake_python(programs, "python3.11", version="3.11.0", status=127)
    fake_python(programs, "python3.12", version="3.12.0", status=0)
    done = make(checkout, "-n", "venv", PATH=f"{programs}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert '"python3.12"' in done.stdout and '"python3.11"' not in done.stdout and not done.stderr


def test_extras_with_commas_reach_the_installer_whole(checkout: Path) -> None:
    good = fake_python(checkout, "python-good", version="3.11.0", status=0)
    assert done_commands(make(checkout, "-n", "venv", f"PYTHON={good}")).count("'.[data,plots,eval,dev]'") == 2
    assert done_commands(make(checkout, "-n", "parity", f"PYTHON={good}")).count("'torch>=2.13,<2.14'") == 2


def done_commands(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_proof_without_a_name_says_which_there_are(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.installed").touch()
    (checkout / "experiments/proofs").mkdir(parents=True)
    (checkout / "experiments/proofs/alignment.py").touch()
    done = make(checkout, "proof")
    assert done.returncode != 0 and "NAME is empty, expected a proof: alignment" in done.stderr
