"""gin files: they bind the dataclass tree of an experiment, and become the object that the Python spelling becomes."""

import dataclasses
import re
import sys
import threading
from pathlib import Path

import gin
import pytest

from pixel_align import cli, settings
from pixel_align.config import ConfigError, from_gin, load
from pixel_align.experiment import Eval, Experiment
from pixel_align.nn.eva_vit import EvaVitConfig
from pixel_align.nn.image_features import FusionConfig
from pixel_align.nn.sam_vit import SamVitConfig

ROOT = Path(__file__).resolve().parent.parent
SPELLED_TWICE = sorted(path.relative_to(ROOT) for path in (ROOT / "experiments" / "gin").glob("*/*.gin"))
PARTS = ("models", "runs")  # folders of files that others include


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "path",
    [path for path in SPELLED_TWICE if path.parent.name not in PARTS],
    ids=lambda path: f"{path.parent.name}:{path.stem}",
)
def test_both_spellings_are_one_experiment(path: Path) -> None:
    """experiments/gin/NAME/PRESET.gin says what experiments/NAME.py:PRESET says."""
    python = load(f"{ROOT / 'experiments' / path.parent.name}.py:{path.stem}")
    assert load(ROOT / path) == python
    # Both went through the builder: types as well as values.
    assert settings.to_json(load(ROOT / path)) == settings.to_json(python)


# Experiments without a gin spelling, and why.
PYTHON_ONLY = {
    "quickstart": "a driver: it draws its data and fills in folders and stages itself",
    "synthetic": "a driver: it draws its data and fills in folders and stages itself",
}


def _presets(path: Path) -> list[str]:
    """The presets of an experiment, as it names them to who asks for another."""
    with pytest.raises(ValueError, match="^preset is 'no such', expected one of ") as caught:
        load(f"{path}:no such")
    found = re.search(r"expected one of (.*?)\. ", str(caught.value))
    assert found is not None
    return found[1].split(", ")


def test_every_preset_is_spelled_in_gin_or_excused() -> None:
    files = [path for path in sorted((ROOT / "experiments").glob("*.py")) if "def get_config(" in path.read_text()]
    assert {"localized_narratives", "refcoco", *PYTHON_ONLY} <= {path.stem for path in files}
    wanted = {(path.stem, preset) for path in files if path.stem not in PYTHON_ONLY for preset in _presets(path)}
    spelled = {(path.parent.name, path.stem) for path in SPELLED_TWICE if path.parent.name not in PARTS}
    assert spelled == wanted


def test_every_gin_file_is_compared_or_included() -> None:
    compared = [path for path in SPELLED_TWICE if path.parent.name not in PARTS]
    assert compared
    everything = "".join((ROOT / path).read_text(encoding="utf-8") for path in SPELLED_TWICE)
    for path in set(SPELLED_TWICE) - set(compared):
        assert f"include '{path.as_posix()}'" in everything, f"nothing includes {path}"


def test_a_file_that_binds_nothing_is_the_default(tmp_path: Path) -> None:
    assert from_gin([write(tmp_path / "a.gin", "")]) == Experiment()


def test_bindings_reach_parts_that_nobody_refers_to(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gin", "LoRAConfig.rank = 8\nLoRAConfig.targets = ['query', 'out']\nShape.text = 40\n")
    assert load(path) == settings.override(
        Experiment(), ["model.text.lora.rank=8", "model.text.lora.targets=query,out", "model.shape.text=40"]
    )


def test_a_choice_takes_the_defaults_of_its_kind_and_keeps_bindings_of_that_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gin", "SamVitConfig.width = 64\nEvaVitConfig.rotary_grid = 16\n")
    assert load(path).model.image == SamVitConfig(width=64)
    assert load(path, bindings=["PixelLLMConfig.image = @EvaVitConfig()"]).model.image == EvaVitConfig(rotary_grid=16)
    # Inside the pair SAM's default is the pair's own: frozen.
    assert load(path, bindings=["PixelLLMConfig.image=@FusionConfig()"]).model.image == FusionConfig(
        eva=EvaVitConfig(rotary_grid=16, whole_canvas=False), sam=SamVitConfig(width=64, frozen=True)
    )


def test_scopes_tell_several_of_a_kind_apart(tmp_path: Path) -> None:
    text = """
        Experiment.evals = [@seen/Eval(), @unseen/Eval()]
        Eval.task = 'a'
        seen/Eval.split = 'train[:10%]'
        unseen/Eval.every = 7
    """
    path = write(tmp_path / "a.gin", "\n".join(line.strip() for line in text.splitlines()))
    assert load(path).evals == (Eval(task="a", split="train[:10%]"), Eval(task="a", every=7))


def test_bindings_reach_parts_in_a_default_tuple() -> None:
    @dataclasses.dataclass(frozen=True)
    class Tree:
        evals: tuple[Eval, ...] = (Eval("a"), Eval("b", every=5))

    assert from_gin([], ["Eval.limit = 3"], Tree).evals == (Eval("a", limit=3), Eval("b", every=5, limit=3))


def test_later_files_bindings_and_overrides_win_in_this_order(tmp_path: Path) -> None:
    first = write(tmp_path / "a.gin", "Train.steps = 1\nTrain.seed = 1\nTrain.keep = 1\nTrain.log_every = 1")
    second = write(tmp_path / "b.gin", "Train.seed = 2\nTrain.keep = 2\nTrain.log_every = 2")
    found = load([first, second], ["train.log_every=4"], bindings=["Train.keep = 3", "Train.log_every = 3"]).train
    assert (found.steps, found.seed, found.keep, found.log_every) == (1, 2, 3, 4)


def test_includes_are_found_beside_and_above_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "experiments" / "gin" / "runs" / "run.gin", "Train.steps = 3\n")
    write(tmp_path / "experiments" / "gin" / "one" / "beside.gin", "include 'experiments/gin/runs/run.gin'\n")
    path = write(tmp_path / "experiments" / "gin" / "one" / "a.gin", "include 'beside.gin'\nTrain.seed = 5\n")
    monkeypatch.chdir(tmp_path.parent)
    found = load(path).train
    assert (found.steps, found.seed) == (3, 5)


def test_required_values_are_named_all_at_once_until_they_are_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gin", "STEPS = %gin.REQUIRED\nTrain.steps = %STEPS\nOptim.peak_lr = %gin.REQUIRED\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        "STEPS, Optim.peak_lr are not set, expected a value. "
        "Bind it in a gin file, or give --gin.STEPS=... --gin.Optim.peak_lr=...."
    )
    found = load(path, bindings=["STEPS = 9", "Optim.peak_lr = 1"])
    assert found.train.steps == 9
    assert found.optim.peak_lr == 1.0 and isinstance(found.optim.peak_lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Optim.peek_lr = 1", "line 1: Optim.peek_lr is not a field of Optim. Did you mean Optim.peak_lr?"),
        ("\nOptum.peak_lr = 1", "line 2: Optum is not a part of the config. Did you mean Optim?"),
        (
            "Experiment.model = @PixelLMConfig()",
            "PixelLMConfig is not a part of the config. Did you mean PixelLLMConfig?",
        ),
        ("SamVitConfig.kind = 'eva_vit'", "SamVitConfig.kind is set, expected a reference to the class of that kind."),
        ("Train.steps = 'x'", "config.train.steps is 'x', expected int. Write it as 8."),
        ("Train.steps = 1.5", "config.train.steps is 1.5, expected int."),
        ("Experiment.optim = @Train()", "config.optim.steps is not a field of Optim. Its fields are peak_lr,"),
        (
            "Experiment.mesh = @MeshConfig",
            "config.mesh is @MeshConfig, expected the part that it makes. Write @MeshConfig() with parentheses.",
        ),
        ("Experiment.evals = [@a/Eval(), @Eval]", "config.evals.1 is @Eval, expected the part that it makes."),
        ("Experiment.model = 3", "config.model is 3, expected PixelLLMConfig."),
        ("Train.steps = %STEPS", "gin macro STEPS is not set, expected a value. Bind it, or give --gin.STEPS=..."),
        ("include 'absent.gin'", "line 1: included file is 'absent.gin', expected an existing one."),
        ("import math\nTrain.steps = 1", "gin config has 'import math', expected bindings of settings only."),
        ("Train.steps 5", "gin: Couldn't parse statement"),
        (
            "Experiment.evals = [@held_out/Eval()]\nheld_aut/Eval.task = 'a'",
            "gin binding held_aut/Eval.task changes nothing: its scope is 'held_aut', expected one that makes Eval "
            "(held_out).",
        ),
        ("T5Config.relative_buckets = 5", "relative_buckets is 5, expected a positive multiple of 4"),
    ],
)
def test_messages_are_one_line_with_the_nearest_right_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        load(write(tmp_path / "a.gin", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_macro_that_nothing_uses_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gin", "STEPS = 5\nTrain.steps = %STEPS\n")
    with pytest.raises(ConfigError, match=r"gin macro STEP is set, expected one that is used\. Did you mean STEPS\?"):
        load(path, bindings=["STEP = 7"])
    assert load(path, bindings=["N = 7", "Train.steps = %N"]).train.steps == 7
    assert load(path, bindings=["Train.steps = 8", "STEPS = 7"]).train.steps == 8


def test_settings_of_a_part_that_was_replaced_are_let_be(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gin", "Experiment.evals = [@one/Eval()]\none/Eval.task = 'a'\n")
    assert load(path, bindings=["Experiment.evals = []"]).evals == ()


def test_a_single_binding_of_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A file may set what a choice then replaces; who gives a single binding wants a change."""
    path = write(tmp_path / "a.gin", "EvaVitConfig.width = 64\n")
    assert load(path) == Experiment()
    for name in ("EvaVitConfig.width", "pair/EvaVitConfig.width", "eva_vit.EvaVitConfig.width"):
        message = (
            rf"^gin binding {name} changes nothing: this config has no EvaVitConfig, expected one of its parts \(.*"
        )
        with pytest.raises(ConfigError, match=message) as caught:
            load(path, bindings=[f"{name} = 128"])
        assert "\n" not in str(caught.value)
    chosen = ["EvaVitConfig.width = 128", "PixelLLMConfig.image = @EvaVitConfig()"]
    assert load(path, bindings=chosen).model.image == EvaVitConfig(width=128)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gin file is '.*absent\.gin', expected an existing \.gin file"):
        load(tmp_path / "absent.gin")
    python = write(tmp_path / "a.py", "def get_config(): ...")
    for paths, bindings in ((python, ["Train.steps = 1"]), ([python, tmp_path / "a.gin"], ()), ([], ())):
        with pytest.raises(ConfigError, match=r"expected one \.py file or \.gin files only"):
            load(paths, bindings=bindings)


def test_nothing_stays_behind(tmp_path: Path) -> None:
    """Neither bindings nor names: trees may call different classes the same, and gin's own state is as it was."""

    @dataclasses.dataclass(frozen=True)
    class Optim:
        rate: float = 0.0

    before = gin.config_str()
    edited = write(tmp_path / "a.gin", "Train.steps = 7\nN = 3\nTrain.seed = %N\n")
    assert load(edited).train.steps == 7
    with pytest.raises(ConfigError):
        load(edited, bindings=["Train.stops = 7"])
    assert from_gin([write(tmp_path / "c.gin", "Optim.rate = 1.0")], cls=Optim) == Optim(1.0)
    assert load(write(tmp_path / "b.gin", "Optim.peak_lr = 1.0")).train == Experiment().train
    assert gin.config_str() == before
    with pytest.raises(ValueError, match="No configurable matching 'Train'"):
        gin.bind_parameter("Train.steps", 1)
    assert "gin.config" in sys.modules and sys.modules["gin.config"] is gin.config


def test_threads_do_not_mix(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{i}.gin", f"N = {i + 1}\nTrain.steps = %N\nOptim.warmup_steps = {i}\n") for i in range(8)
    ]
    found: dict[int, tuple[int, int]] = {}

    def read(i: int) -> None:
        config = load(paths[i])
        found[i] = (config.train.steps, config.optim.warmup_steps)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: (i + 1, i) for i in range(8)}


def test_the_command_line_takes_gin_as_t5x_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pixel_align import train

    runs: list[tuple[Experiment, str]] = []
    monkeypatch.setattr(train, "train", lambda config, workdir: runs.append((config, workdir)))
    first = write(tmp_path / "a.gin", "STEPS = %gin.REQUIRED\nTrain.steps = %STEPS\n")
    second = write(tmp_path / "b.gin", "Train.seed = 3\n")
    options = ["train", f"--gin_file={first}", "--gin_file", str(second), "--workdir", "runs/x"]

    def main(*more: str) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main([*options, *more])
        return int(left.value.code or 0)

    assert main("--gin.STEPS=5", "--gin.DataConfig.mixture='a=b'", "--set", "train.keep=2") == 0
    ((config, workdir),) = runs
    assert (config.train.steps, config.train.seed, config.train.keep) == (5, 3, 2)
    assert (config.data.mixture, workdir) == ("a=b", "runs/x")
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: STEPS is not set, expected a value.")
    assert main("--gin.STEPS=1", "--gin.Trane.steps=5") == 2
    assert "Did you mean Train?" in capsys.readouterr().err
    assert len(runs) == 1
