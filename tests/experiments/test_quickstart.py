"""The demo: what its rows differ in, what it deletes and what it reports. What it learns is measured by `make demo`."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import rich.console

from experiments import quickstart
from pixel_align import train
from pixel_align.experiment import Eval, Experiment
from pixel_align.settings import ConfigError

STAGES = ("first_stage", "demo", "dense_off", "no_first_stage")


def configs(workdir: Path) -> dict[str, Experiment]:
    return {stage: quickstart.configure(workdir, stage, 40, []) for stage in STAGES}


def test_rows_differ_in_what_they_are_named_for(tmp_path: Path) -> None:
    made = configs(tmp_path)
    losses = {stage: config.model.loss for stage, config in made.items()}
    dense = {stage: (loss.map_regions > 0, loss.query_regions > 0) for stage, loss in losses.items()}
    words = {stage: (loss.text > 0, loss.point > 0) for stage, loss in losses.items()}
    on, off = (True, True), (False, False)
    assert dense == {"first_stage": on, "demo": on, "dense_off": off, "no_first_stage": off}
    assert words == {"first_stage": off, "demo": on, "dense_off": on, "no_first_stage": on}
    starts = {stage: config.init.checkpoint for stage, config in made.items()}
    first = str(tmp_path / "first_stage")
    assert starts == {"first_stage": "", "demo": first, "dense_off": first, "no_first_stage": ""}
    # The same parts everywhere, so that parameters are taken over whole.
    assert len({repr(config.model).split("loss=")[0] for config in made.values()}) == 1
    rest = {
        repr((dataclasses.replace(config.data, further=()), config.train))
        for stage, config in made.items()
        if stage != "first_stage"
    }
    assert len(rest) == 1
    further = {stage: [group.mixture for group in config.data.further] for stage, config in made.items()}
    more = ["synthetic_expressions", *list(quickstart.KEYS)[1:]]
    assert further == {"first_stage": [], "demo": more, "dense_off": [], "no_first_stage": []}


def test_a_stage_is_an_experiment_of_its_own() -> None:
    assert quickstart.STAGES == STAGES
    for stage in STAGES:
        quickstart.get_config(stage)
    with pytest.raises(ValueError, match="preset is 'second', expected one of first_stage, demo"):
        quickstart.get_config("second")


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A demo of 12 scenes whose training and evaluation are only noted; what lay there before is of an earlier one."""
    workdir = tmp_path / "quickstart"
    seen: dict[str, Any] = {"workdir": workdir, "trained": [], "evaluated": []}
    for name in ("report.json", "demo/checkpoints/old", "data/old", "raw/train/old", "mine.txt"):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).touch()

    sets = quickstart.KEYS.keys() - {quickstart.DENSE}  # which reads the set of regions

    def noted(config: Experiment, folder: Path) -> None:
        assert not (workdir / "report.json").exists(), "an old report stands while a new one is made"
        assert all(Path(config.data.dir, name).is_dir() for name in sets)
        assert Path(config.data.vocabulary).is_file()
        seen["trained"].append(folder.name)

    def scored(folder: Path, stage: str, config: Experiment, evaluation: Eval, *, controls: bool) -> dict[str, float]:
        seen["evaluated"].append((stage, evaluation.mode, controls))
        figures = {
            "point_distance": 0.02,
            "point_distance_free": 0.03,
            "matched_words": 0.9,
            "P@0.5": 0.9,
            "exact": 1.0,
            "mAP": 0.5,
        }
        shuffled = {f"{control}/point_distance": 0.3 for control in ("shuffled", "swapped")}
        shuffled |= {"shuffled/P@0.5": 0.1, "shuffled/exact": 0.1, "shuffled/mAP": 0.1}
        return figures | shuffled if controls else figures

    monkeypatch.setattr(train, "train", noted)
    monkeypatch.setattr(quickstart, "evaluate_stage", scored)
    monkeypatch.setattr(quickstart.every_task, "sheet", lambda *_: PIL.Image.new("RGB", (8, 8)))
    monkeypatch.setattr(quickstart.sys, "argv", ["quickstart", "--scenes", "9"])
    quickstart.demo(workdir, 9, 3, 20, 40, [])
    seen["report"] = json.loads((workdir / "report.json").read_text())
    return seen


def test_the_demo_starts_anew_and_reports_what_it_did(demo: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    workdir, report = demo["workdir"], demo["report"]
    assert demo["trained"] == list(STAGES)
    all_tasks = [("demo", mode, True) for mode in ("trace", "segment", "describe", "densecap", "answer")]
    assert demo["evaluated"] == [*all_tasks, ("dense_off", "trace", False), ("no_first_stage", "trace", False)]
    left = {str(path.relative_to(workdir)) for path in workdir.rglob("old")}
    assert not left and (workdir / "mine.txt").is_file()  # what is not the demo's stays

    assert report["command"].endswith("quickstart --scenes 9")
    assert (report["scenes"]["train"], report["scenes"]["unseen"]) == (9, 3) and "easy" in report["scenes"]["setting"]
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown", report["commit"]) and report["seconds"] > 0
    assert report["first_stage"]["steps"] == 20 and "public weights" in report["first_stage"]["stands_for"]
    tasks = report["tasks"]
    assert [row["row"] for row in tasks["synthetic_narratives"]["rows"]] == ["demo", "dense_off", "no_first_stage"]
    assert [row["row"] for row in tasks["synthetic_expressions"]["rows"]] == ["demo"]
    assert all(all(task["bars"].values()) for task in tasks.values())
    assert [len(task["bars"]) for task in tasks.values()] == [4, 2, 2, 2, 2]

    quickstart.show(report, rich.console.Console(width=150))
    shown = capsys.readouterr().out
    for part in ("other pictures", "another word's place", "no first stage", "0.0200", "0.3000"):
        assert part in shown
    assert shown.count("reached:") == 12 and "MISSED" not in shown


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({"point_distance": 0.051}, "point_distance <= 0.05"),
        ({"point_distance_free": 0.06}, "point_distance_free <= 0.05"),
        ({"matched_words": 0.79}, "matched_words >= 0.8"),
        ({"shuffled/point_distance": 0.08}, "3 times nearer than shuffled and swapped"),
        ({"swapped/point_distance": 0.08}, "3 times nearer than shuffled and swapped"),
    ],
)
def test_each_bar_can_be_missed(figures: dict[str, float], missed: str) -> None:
    good = {"point_distance": 0.02, "point_distance_free": 0.03, "matched_words": 0.9}
    good |= {"shuffled/point_distance": 0.3, "swapped/point_distance": 0.3}
    assert all(quickstart.trace_bars(good).values())
    assert [bar for bar, reached in quickstart.trace_bars(good | figures).items() if not reached] == [missed]
    assert not any(quickstart.trace_bars({}).values())


@pytest.mark.parametrize(("bars", "key"), [(quickstart.refer_bars, "P@0.5"), (quickstart.describe_bars, "exact")])
def test_finding_and_naming_have_bars(bars: Callable[[dict[str, float]], dict[str, bool]], key: str) -> None:
    assert list(bars({key: 0.8, f"shuffled/{key}": 0.2}).values()) == [True, True]
    assert list(bars({key: 0.79, f"shuffled/{key}": 0.3}).values()) == [False, False]
    assert not any(bars({}).values())


def test_a_wrong_setting_deletes_nothing_but_the_report(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    with pytest.raises(ConfigError, match="Did you mean"):
        quickstart.demo(tmp_path, 9, 3, 20, 40, ["optim.peek_lr=1"])
    assert (tmp_path / "demo").is_dir()
