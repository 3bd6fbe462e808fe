"""The command line: what each verb leaves, and that what a user can mend is one line and exit code 2."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from pixel_align import __version__, cli
from tests import errors, tiny
from tests.errors import CASES, Case

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_world: Path, tiny_run: Path) -> Path:
    """What the commands of tests/errors.py name."""
    folder = tmp_path_factory.mktemp("here")
    errors.furnish(folder, tiny_world, tiny_run)
    return folder


@pytest.fixture(scope="module")
def shown() -> dict[str, list[str]]:
    """docs/errors.md: command -> the lines below it."""
    blocks = re.findall(r"^```\n(.+?)\n```$", errors.DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return {block.splitlines()[0].removeprefix("$ "): block.splitlines()[1:] for block in blocks}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_what_a_user_can_mend_is_one_line_and_code_2(case: Case, folder: Path, shown: dict[str, list[str]]) -> None:
    code, out, err = errors.run(case, folder)
    assert code == 2
    said = errors.error_lines(err)
    assert len(said) == 1 and err.splitlines()[-1] == said[0]
    assert case.begun or (err.splitlines(), out) == (said, ""), "it said something else before"
    assert "Traceback" not in err
    # What is wrong, and what to do: two sentences at least, the last one ended.
    assert re.fullmatch(r"error: .+[.?] .+[.?)]|error: .+[.?] First: .+", said[0]), said[0]
    assert str(folder) not in said[0] and str(ROOT) not in said[0]
    assert said == shown[case.command], "docs/errors.md says something else: run `python -m tests.errors`"
    # Nothing half-built is left, no picture was asked about, and what a pickle asked for was not done.
    assert {path.name for path in (folder / "built").rglob("*") if path.is_file()} <= {".lock"}
    assert not (folder / "answers").exists() and not (folder / "touched").exists()


def test_the_document_shows_every_case_once_and_nothing_else(shown: dict[str, list[str]]) -> None:
    assert list(shown) == [case.command for case in CASES]
    assert errors.document(shown) == errors.DOCUMENT.read_text(encoding="utf-8")


def test_nothing_is_left_by_a_run_that_could_not_begin(folder: Path) -> None:
    for case in CASES:
        if "--workdir runs/new" in case.command:
            errors.run(case, folder)
            break
    assert not (folder / "runs" / "new").exists()


def real(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_real_processes_end_so_too(folder: Path) -> None:
    done = real("pixel_align", "predict", "nowhere.jpg", "--checkpoint", "runs/tiny", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: image is 'nowhere.jpg', expected a file that exists. Check the path.\n"
    build = ["build", "localized_narratives", "--annotations", "empty.jsonl", "--images", "photos", "--out", "built"]
    done = real("data_pipelines", *build, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert errors.error_lines(done.stderr) == done.stderr.splitlines()[-1:]


def test_a_traceback_can_be_asked_for(folder: Path) -> None:
    words = ["pixel_align", "predict", "nowhere.jpg", "--checkpoint", "runs/tiny"]
    done = real(*words, cwd=folder, PIXEL_ALIGN_TRACEBACK="1")
    assert done.returncode == 1 and "Traceback" in done.stderr and "ImageError" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        TypeError("x"),
        RuntimeError("out of memory"),
        ValueError("a library's\nlong story"),
        ModuleNotFoundError("No module named 'x'", name="x"),
    ],
)
def test_faults_of_the_program_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), cli.one_line_errors():
        raise error


# ---- What the verbs leave


def call(folder: Path, command: str) -> tuple[object, str, str]:
    return errors.run(Case("", command), folder)


def test_predict_writes_a_picture_json_and_the_sentence(folder: Path) -> None:
    code, out, err = call(folder, "pixel-align predict photo.png --checkpoint runs/tiny --out out.png --json out.json")
    assert (code or 0, err) == (0, "")
    said = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert out == said["text"] + "\n" and (said["width"], said["height"]) == (64, 48)
    with PIL.Image.open(folder / "out.png") as drawn:
        assert drawn.mode == "RGB" and drawn.width > 64
    _, out, _ = call(folder, "pixel-align predict photo.png --checkpoint runs/tiny/checkpoints/12 --json -")
    assert json.loads(out) == said
    _, out, _ = call(folder, "pixel-align predict photo.png --checkpoint runs/tiny --text 'a red circle' --json -")
    assert [word["word"] for word in json.loads(out)["words"]] == ["a", "red", "circle"]
    _, out, _ = call(folder, "pixel-align predict photo.png --checkpoint runs/tiny --mode caption --json -")
    assert json.loads(out)["text"] == said["text"] and not any("points" in word for word in json.loads(out)["words"])


def test_evaluate_prints_a_table_and_leaves_four_files(folder: Path) -> None:
    command = f"pixel-align evaluate --checkpoint runs/tiny --task {tiny.TASK} --limit 6 --batch-size 8 --controls"
    code, out, err = call(folder, command)
    assert code in (0, None)
    results = folder / "runs" / "tiny" / "evaluations" / f"{tiny.TASK}-validation"
    left = {"metrics.json", "predictions.jsonl", "targets.jsonl", "pictures.png"}
    assert {path.name for path in results.iterdir()} == left
    figures = json.loads((results / "metrics.json").read_text())
    assert figures.pop("examples") == 6 == len((results / "predictions.jsonl").read_text().splitlines())
    for name, value in figures.items():
        assert re.search(rf"\b{name} +│ +{'nan' if value is None else f'{value:.4f}'}\b", out), name
    assert "shuffled/point_distance" in figures and "step 12" in " ".join(out.split())
    assert set(err.split()[:1]) <= {"evaluate"}  # the bar and nothing else
    code, _, _ = call(folder, f"{command} --out elsewhere --split train --set data.dir=data")
    assert (folder / "elsewhere" / "metrics.json").is_file()


def test_the_version_and_the_verbs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((["--version"], f"{__version__}\n"), (["--help"], "")):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code in (0, None)
        out = capsys.readouterr().out
        assert out == expected or all(verb in out for verb in ("train", "evaluate", "predict"))


def test_libraries_are_told_to_be_quiet_before_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from absl import logging

    before = logging.get_verbosity()
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.delenv(name, raising=False)
    try:
        cli.quiet_libraries()
        assert (os.environ["TF_CPP_MIN_LOG_LEVEL"], os.environ["TF_ENABLE_ONEDNN_OPTS"]) == ("3", "0")
        assert logging.get_verbosity() == logging.ERROR  # errors are still said
    finally:
        logging.set_verbosity(before)
        for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
            monkeypatch.delenv(name, raising=False)
