"""Sweeps: what their points are, runs that fail, end, are killed and go on, commands for other machines, the report."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from experiments import sweeps
from pixel_align import cli, config, train
from pixel_align.experiment import Experiment
from pixel_align.settings import ConfigError, override
from pixel_align.sweep import launch, points, report, runs
from pixel_align.sweep.points import Point
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = ROOT / "experiments" / "sweeps.py"
HOSTILE = ("a,b", "]", 'say "no"', "$HOME; rm -rf 'x' `id` {name} ü")


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return tiny.get_config()


def sweep_of(folder: Path, *yielded: str, head: str = "def chosen():") -> str:
    """A sweep file whose function yields these."""
    lines = ["from pixel_align.sweep.points import grid", head, *(f"    {line}" for line in yielded)]
    (folder / "mine.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{folder / 'mine.py'}:chosen"


# ---- Points


def test_every_sweep_of_the_project_loads_with_names_of_its_own() -> None:
    base = config.load(f"{ROOT}/experiments/localized_narratives.py:bench")
    for name in sweeps.SWEEPS:
        found = points.load(f"{SWEEPS}:{name}", base)
        names = [point.name for point in found]
        assert len(set(names)) == len(names) > 1
        assert all(re.fullmatch(r"[A-Za-z0-9._=,+-]{1,70}", name) for name in names), names
        assert points.axes(found), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("init.new", HOSTILE),
        ("init.new", ()),
        ("init.checkpoint", "[a]"),
        ("optim.peak_lr", 1e-05),
        ("train.steps", 7),
        ("model.text.frozen", True),
        ("model.image", {"kind": "eva_vit", "frozen": True}),
    ],
)
def test_texts_say_what_was_yielded(key: str, value: Any, experiment: Experiment, tmp_path: Path) -> None:
    (point,) = points.load(sweep_of(tmp_path, f"yield {{{key!r}: {value!r}}}"), experiment)
    assert point.config == override(experiment, {key: value})
    assert override(experiment, point.texts) == point.config


def test_a_name_stays_wherever_its_point_stands(experiment: Experiment, tmp_path: Path) -> None:
    one, two = "yield {'optim.peak_lr': 1e-3, 'train.seed': 4}", "yield {'optim.peak_lr': 1e-4}"
    first = points.load(sweep_of(tmp_path, one, two), experiment)
    second = points.load(sweep_of(tmp_path, two, one), experiment)
    assert [point.name for point in first] == [point.name for point in reversed(second)]
    assert re.fullmatch(r"peak_lr=0\.001,seed=4-[0-9a-f]{6}", first[0].name)


def test_changes_come_before_the_points_and_kinds_before_all(experiment: Experiment, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "yield {'train.steps': 5}", "yield {'train.seed': 5}")
    found = points.load(sweep, experiment, ["train.steps=9", "train.seed=1"])
    assert [(point.config.train.steps, point.config.train.seed) for point in found] == [(5, 1), (9, 5)]


def test_axes_are_what_differs_with_the_experiments_value_where_a_point_is_silent(
    experiment: Experiment, tmp_path: Path
) -> None:
    sweep = sweep_of(
        tmp_path,
        "yield {'optim.peak_lr': 0.5, 'model.loss.text': 1.0}",
        "yield {'model.loss.text': 1.0, 'init.new': ('a',)}",
    )
    found = points.axes(points.load(sweep, experiment))
    assert found == {"optim.peak_lr": [0.5, experiment.optim.peak_lr]}
    assert points.short(["a.loss.text", "b.text", "c.rank"]) == {
        "a.loss.text": "loss.text",
        "b.text": "b.text",
        "c.rank": "rank",
    }
    made = list(points.grid({"a": (1, 2), "b": (3, 4)}))
    assert made == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


@pytest.mark.parametrize(
    ("yielded", "said"),
    [
        (["yield {'optim.peek_lr': 1}"], "point 0 of .* config.optim.peek_lr is not a field"),
        (["yield {'train.steps': 3}", "yield {'train.steps': 3}"], "point 1 .* expected no twin of point 0"),
        (["yield 'train.steps=3'"], "expected settings and their values"),
        (["yield {'train.steps': 0}"], "point 0 of .* train.steps is 0"),
        (["return", "yield"], "has no point"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_name(
    yielded: list[str], said: str, experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        points.load(sweep_of(tmp_path, *yielded), experiment)


def test_sweeps_that_are_not_there(experiment: Experiment, tmp_path: Path) -> None:
    there = sweep_of(tmp_path, "yield {}")
    for sweep, said in (
        (there.replace("chosen", "choosen"), "Did you mean 'chosen'"),
        (there.replace("mine.py", "yours.py"), "expected FILE.py:NAME"),
        (there.partition(":")[0], "expected FILE.py:NAME"),
        (there.replace("chosen", "grid"), "takes arguments"),
    ):
        with pytest.raises(ConfigError, match=said):
            points.load(sweep, experiment)


# ---- Runs: stand-ins that leave what a training leaves

STAND_IN = """
import json, os, pathlib, signal, sys, time
folder, steps, behaviour = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with open(folder / "times.txt", "a") as times:
    times.write(f"{time.time()} {os.environ.get('SLOT')} ")
if behaviour == "fail":
    print("ValueError: it is broken")
    print("in an unusual way")
    sys.exit(3)
if behaviour == "early":
    sys.exit(0)
if behaviour == "stopped":
    sys.exit(75)
if behaviour == "wait":
    def leave(*_):
        (folder / "saved.txt").write_text("yes")
        sys.exit(1)
    signal.signal(signal.SIGTERM, leave)
    (folder / "waiting.txt").write_text("yes")
    time.sleep(60)
time.sleep(0.15)
(folder / "checkpoints" / str(steps) / "params").mkdir(parents=True)
(folder / "checkpoints" / str(steps) / "params" / "_METADATA").write_text("{}")
with open(folder / "metrics.jsonl", "w") as lines:
    lines.write(json.dumps({"step": 1, "loss": 9.0}) + "\\n")
    lines.write(json.dumps({"step": steps, "loss": len(folder.name) / 10, "undefined": None}) + "\\n")
    lines.write(json.dumps({"step": steps, "synthetic_narratives-validation/point_distance": 0.5}) + "\\n")
    lines.write('{"step": 7, "lo')
with open(folder / "times.txt", "a") as times:
    times.write(f"{time.time()}\\n")
"""


@pytest.fixture
def chosen(experiment: Experiment, tmp_path: Path) -> list[Point]:
    return points.load(
        sweep_of(tmp_path, "yield from grid({'train.seed': (0, 1), 'optim.b2': (0.9, 0.99)})"), experiment
    )


def stand_in(folder: Path, point: Point, behaviour: str = "train") -> list[str]:
    words = [sys.executable, "-S", "-c", STAND_IN, str(folder / point.name), str(point.config.train.steps), behaviour]
    return words


def begun(folder: Path, point: Point) -> int:
    """How often a point's process was begun."""
    return len((folder / point.name / "times.txt").read_text().splitlines())


def test_a_failure_stops_nobody_is_named_and_is_run_again(chosen: list[Point], tmp_path: Path) -> None:
    told: list[str] = []
    commands = [stand_in(tmp_path, point, "fail" if k == 1 else "train") for k, point in enumerate(chosen)]
    ended = runs.run(chosen, tmp_path, commands, slots=2, environment={"SLOT": "number {slot}"}, tell=told.append)
    assert [one.state for one in ended] == ["done", "failed", "done", "done"]
    assert ended[1].why == "exit code 3: ValueError: it is broken"
    assert any(chosen[1].name in line and "it is broken" in line for line in told)
    assert [runs.state(point, tmp_path / point.name) for point in chosen] == ["done", "failed", "done", "done"]
    # Two at a time and never three, in slots of their own.
    spans = [(tmp_path / chosen[k].name / "times.txt").read_text().split() for k in (0, 2, 3)]
    slots = {f"{span[1]} {span[2]}" for span in spans}
    assert slots <= {"number 0", "number 1"}
    moments = [(float(span[0]), float(span[3])) for span in spans]
    assert all(sum(start <= at < end for start, end in moments) <= 2 for at, _ in moments)

    told.clear()
    commands[1] = stand_in(tmp_path, chosen[1])
    ended = runs.run(chosen, tmp_path, commands, tell=told.append)
    assert [one.state for one in ended] == ["done"] * 4
    assert [begun(tmp_path, chosen[k]) for k in (0, 2, 3)] == [1, 1, 1]
    assert sum("done before" in line for line in told) == 3
    assert not (tmp_path / chosen[1].name / runs.FAILURE).exists()
    for point in chosen:
        folder = tmp_path / point.name
        assert config.from_json(Experiment, (folder / runs.CONFIG).read_text()) == point.config
        assert json.loads((folder / runs.OVERRIDES).read_text())["overrides"] == point.overrides


def test_a_run_that_ends_before_its_last_step_is_not_done(chosen: list[Point], tmp_path: Path) -> None:
    (ended,) = runs.run(chosen[:1], tmp_path, [stand_in(tmp_path, chosen[0], "early")])
    assert (ended.state, ended.why) == ("failed", "it ended before its last step: it said nothing")


def test_a_run_that_somebody_stops_is_no_failure(chosen: list[Point], tmp_path: Path) -> None:
    (ended,) = runs.run(chosen[:1], tmp_path, [stand_in(tmp_path, chosen[0], "stopped")])
    assert (ended.state, ended.why) == ("begun", "it was told to stop and can be resumed")
    assert not (tmp_path / chosen[0].name / runs.FAILURE).exists()
    assert report.unfinished([row("begun", a=1), row("done", a=2), row("running", a=3), row("not begun", a=4)]) == [
        "1",
        "4",
    ]


def test_done_means_saved_and_evaluated(chosen: list[Point], tmp_path: Path) -> None:
    point, folder = chosen[0], tmp_path / chosen[0].name
    runs.run([point], tmp_path, [stand_in(tmp_path, point)])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    assert runs.state(point, folder) == "begun"  # killed between its last step and the evaluation
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert runs.state(point, folder) == "done"
    (folder / "checkpoints" / "12" / "params" / "_METADATA").unlink()
    assert runs.state(point, folder) == "begun"


def test_a_folder_of_another_experiment_is_refused_before_anything_runs(chosen: list[Point], tmp_path: Path) -> None:
    runs.prepare(chosen[3], tmp_path / chosen[3].name, ["x"])
    path = tmp_path / chosen[3].name / runs.CONFIG
    path.write_text(path.read_text().replace('"steps": 12', '"steps": 13'))
    with pytest.raises(ValueError, match=r"begun with another train\.steps, 13 and not 12, expected the same"):
        runs.run(chosen, tmp_path, [stand_in(tmp_path, point) for point in chosen])
    assert not (tmp_path / chosen[0].name / "times.txt").exists()


def waiting(folder: Path) -> None:
    for _ in range(400):
        if (folder / "waiting.txt").exists():
            return
        time.sleep(0.02)
    raise AssertionError("it never began")


def test_a_run_that_outlives_its_sweep_is_let_be(chosen: list[Point], tmp_path: Path) -> None:
    point, folder = chosen[0], tmp_path / chosen[0].name
    runs.prepare(point, folder, ["x"])
    with runs._locked(folder) as lock:
        assert lock is not None
        process = runs._Process(folder, stand_in(tmp_path, point, "wait"), {}, lock)
    try:
        waiting(folder)
        assert runs.state(point, folder) == "running"
        (ended,) = runs.run([point], tmp_path, [stand_in(tmp_path, point)])
        assert ended.state == "running" and not (folder / "metrics.jsonl").exists()
    finally:
        process.popen.kill()
        process.popen.wait()
    (ended,) = runs.run([point], tmp_path, [stand_in(tmp_path, point)])
    assert ended.state == "done"


def test_sigterm_reaches_the_runs_which_may_save_themselves(chosen: list[Point], tmp_path: Path) -> None:
    folders = [tmp_path / point.name for point in chosen]

    def stop() -> None:
        for folder in folders[:2]:
            waiting(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        runs.run(chosen, tmp_path, [stand_in(tmp_path, point, "wait") for point in chosen], slots=2)
    thread.join()
    assert left.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    assert [(folder / "saved.txt").exists() for folder in folders] == [True, True, False, False]


# ---- Commands


@pytest.fixture
def hostile(experiment: Experiment, tmp_path: Path) -> Point:
    (point,) = points.load(sweep_of(tmp_path, f"yield {{'init.new': {HOSTILE!r}, 'train.seed': 3}}"), experiment)
    return point


def test_the_command_of_a_point_trains_that_point(
    hostile: Point, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(train, "train", lambda made, workdir: trained.append((made, workdir)))
    words = launch.command(hostile, [tiny.__file__], (), ["train.steps=9"], f"{tmp_path}/a b")
    assert words[:4] == [sys.executable, "-m", "pixel_align", "train"]
    with pytest.raises(SystemExit):
        cli.main(words[3:])
    wanted = override(experiment, ["train.steps=9", *hostile.texts])
    assert trained == [(wanted, f"{tmp_path}/a b")]


def test_the_same_of_gin_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(train, "train", lambda made, workdir: trained.append((made, workdir)))
    monkeypatch.chdir(ROOT)
    more = tmp_path / "more.gin"
    more.write_text("LEARNING_RATE = 3e-4\n")
    files, bindings = ["experiments/gin/localized_narratives/small.gin", str(more)], ["Train.steps = 7"]
    base = config.load(files, bindings=bindings)
    (point,) = points.load(sweep_of(tmp_path, "yield {'optim.b2': 0.5}"), base)
    with pytest.raises(SystemExit):
        cli.main(launch.command(point, files, bindings, (), "runs/x")[3:])
    ((made, _),) = trained
    assert made == point.config
    assert (made.optim.b2, made.train.steps, made.optim.peak_lr) == (0.5, 7, 3e-4)


@pytest.mark.parametrize(
    ("template", "given", "option", "before"),
    [
        (
            "tpu_vm",
            {"tpu": "sweep-{id}", "project": "p", "zone": "z", "folder": "my code"},
            "--command=",
            ["env", "-C", "my code"],
        ),
        (
            "xpk",
            {"cluster": "c", "project": "p", "zone": "z", "tpu_type": "v5litepod-256", "image": "i"},
            "--command=",
            [],
        ),
        ("slurm", {"nodes": "4", "folder": "my code"}, "--wrap=", ["srun"]),
    ],
)
def test_whatever_a_value_holds_the_other_machine_gets_these_words(
    template: str, given: dict[str, str], option: str, before: list[str], hostile: Point
) -> None:
    words = launch.command(hostile, ["e.py"], (), (), "gs://bucket/run", "python")
    made = launch.fill(template, hostile, words, "experiments/sweeps.py:Lora_ranks", given)
    printed = shlex.join(made)
    assert shlex.split(printed) == made and "\n" not in printed
    (text,) = [word.removeprefix(option) for word in made if word.startswith(option)]
    # As a shell over there reads it.
    read = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True, env={"HOME": "/wrong", "PATH": "/bin"}
    ).stdout.decode()
    assert read.split("\0")[:-1] == [*before, *words]
    ids = [found for word in made for found in re.findall(r"lora-ranks-[0-9a-f]{6}", word)]
    assert ids and all(len(one) <= 40 for one in ids)


def test_templates_say_what_they_lack(hostile: Point) -> None:
    for template, given, said in (
        ("pbs", {}, "expected one of plain, tpu_vm, xpk, slurm"),
        ("slurm", {"nodes": "1"}, "folder of --print slurm is not given, expected a value. Add --with folder=..."),
        ("xpk", {"nodes": "1"}, "--with nodes is given, expected one of cluster, project"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            launch.fill(template, hostile, ["x"], "a.py:b", given)
    assert launch.fill("plain", hostile, ["x", "y z"], "a.py:b", {}) == ["x", "y z"]


# ---- Report


def row(state: str = "done", why: str = "", figures: dict[str, float] | None = None, **axes: Any) -> report.Row:
    return {
        "point": "-".join(map(str, axes.values())),
        "state": state,
        "step": 3,
        "axes": axes,
        "overrides": {},
        "figures": figures or {},
        "why": why,
    }


def drawn(
    rows: list[report.Row], path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, list[Any], list[float]]]:
    """What a plot of the loss shows: (legend, x, y) of each line."""
    from matplotlib.axes import Axes

    lines: list[tuple[str, list[Any], list[float]]] = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, label=None, **_: lines.append((label or "", list(x), list(y))))
    report.plot(rows, ["loss"], path)
    return lines


def test_lines_go_along_the_axis_with_most_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row(rate=rate, kind=kind, figures={"loss": rate * 10 + len(kind)})
        for kind in ("a", "bcd")
        for rate in (4, 1, 2)
    ]
    rows[1]["figures"] = {}  # a point that failed
    lines = drawn(rows, tmp_path / "a.png", monkeypatch)
    assert lines == [("kind=a", [2, 4], [21, 41]), ("kind=bcd", [1, 2, 4], [13, 23, 43])]


def test_names_are_drawn_in_their_order_and_a_picture_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(kind=kind, figures={"loss": 1.0 + k}) for k, kind in enumerate(("z", "a", None))]
    report.plot(rows, ["loss"], tmp_path / "real.png", "of names")
    with PIL.Image.open(tmp_path / "real.png") as picture:
        assert picture.format == "PNG" and picture.width > 400
    assert drawn(rows, tmp_path / "a.png", monkeypatch) == [("", [0, 1, 2], [1.0, 2.0, 3.0])]
    assert {path.name for path in tmp_path.iterdir()} == {"real.png", "a.png"}


def test_a_figure_that_nobody_has_is_said(tmp_path: Path) -> None:
    rows = [row(a=1, figures={"loss": 1.0, "set/point_distance": 2.0})]
    assert report.check_metrics(["loss"], rows) == ""
    assert "Did you mean 'set/point_distance'?" in report.check_metrics(["point_distance"], rows)


# ---- The command


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Behaviours of the points by their seeds."""
    behaviours: dict[int, str] = {}

    def command(point: Point, files: Any, bindings: Any, changes: Any, workdir: str, python: str = "") -> list[str]:
        return stand_in(Path(workdir).parent, point, behaviours.get(point.config.train.seed, "train"))

    monkeypatch.setattr(launch, "command", command)
    return behaviours


def call(*words: str) -> Any:
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", *words])
    return left.value.code


def test_the_command_runs_reports_and_goes_on(
    standing_in: dict[int, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(tmp_path, "yield from grid({'train.seed': (0, 1), 'optim.b2': (0.9, 0.99)})")
    words = [sweep, "--experiment", tiny.__file__, "--workdir", str(tmp_path / "out"), "--slots", "2"]
    standing_in[1] = "fail"
    distance = "synthetic_narratives-validation/point_distance"
    assert call(*words, "--metric", distance, "--metric", "loss") == 1
    out, err = capsys.readouterr()
    assert "not done: seed=1,b2=0.9-" in err and "it is broken" in out and err.count("begun in slot") == 4
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [one["state"] for one in rows] == ["done", "done", "failed", "failed"]
    assert rows[0]["figures"][distance] == 0.5 and rows[0]["axes"] == {"seed": 0, "b2": 0.9}
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 5_000

    standing_in.clear()
    assert call(*words) in (0, None)
    assert capsys.readouterr().err.count("begun in slot") == 2
    assert call(*words, "--report", "--metric", "lost") == 2
    assert "metric is 'lost', expected one that a run has written. Did you mean 'loss'?" in capsys.readouterr().err
    assert call(*words, "--list") in (0, None)
    assert capsys.readouterr().out.count("done") == 4


def test_printing_runs_nothing_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path, "yield {'train.seed': 1}", "yield {'init.checkpoint': \"it's\"}")
    bucket = ["--experiment", tiny.__file__, "--workdir", "gs://bucket/sweep"]
    assert call(sweep, *bucket, "--print", "plain", "--set", "train.steps=3") in (0, None)
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [words[-1] for words in lines] == ["--set=train.seed=1", "--set=init.checkpoint=it's"]
    assert all(words[:2] == ["python", "-m"] and "--set=train.steps=3" in words for words in lines)
    assert lines[0][5].startswith("--workdir=gs://bucket/sweep/seed=1-")
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}
    for more, said in (
        ([], "expected a folder of this machine"),
        (["--list", "--report"], "are given together, expected one"),
        (["--print", "xpk"], "cluster, project, zone, tpu_type, image of --print xpk are not given"),
        (["--print", "plain", "--with", "x"], "--with is 'x', expected NAME=VALUE"),
    ):
        assert call(sweep, *bucket, *more) == 2
        assert said in capsys.readouterr().err
