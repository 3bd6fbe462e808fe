"""Training: one step and its loop; stopping in any way and going on; what is said before, while and after."""

import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from pixel_align import config, image, metrics_log, optim, param_rules, predict, run_batches, state, text, train
from pixel_align.checkpoints import store
from pixel_align.evaluation.seen import Seen
from pixel_align.experiment import Experiment, Init
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def experiment(tiny_world: Path) -> Experiment:
    return config.load(tiny.__file__, tiny.in_world(tiny_world))


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, read as strict JSON: no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def losses_of(workdir: Path) -> dict[int, float]:
    lines = [line for line in lines_of(workdir) if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines), "a step stands twice"
    return {line["step"]: line["loss"] for line in lines}


def copy_of(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def quiet(said: str) -> None:
    pass


# ---- What a run leaves


def test_metrics_are_written_step_by_step_and_the_loss_falls(tiny_run: Path, experiment: Experiment) -> None:
    lines = [line for line in lines_of(tiny_run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    weights = experiment.model.loss
    rate = optim.schedule(experiment.optim, 12)
    for line in lines:
        total = weights.text * line["loss_text"] + weights.point * line["loss_point"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
        assert line["learning_rate"] == pytest.approx(float(rate(line["step"] - 1)))
        assert line["gradient_norm"] > 0
    assert lines[-1]["steps_per_second"] > 0
    assert np.mean([line["loss"] for line in lines[-3:]]) < np.mean([line["loss"] for line in lines[:3]]) - 0.1


def test_tensorboard_holds_the_same_figures(tiny_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(tiny_run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    shown = {event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")}
    assert shown == pytest.approx(losses_of(tiny_run))
    assert f"{tiny.TASK}-validation/point_distance" in events.Tags()["tensors"]


def test_evaluations_come_with_figures_and_pictures_as_it_learns(tiny_run: Path) -> None:
    name = f"{tiny.TASK}-validation"
    scored = [line for line in lines_of(tiny_run) if f"{name}/point_distance" in line]
    assert [line["step"] for line in scored] == [6, 12]
    assert all(0 < line[f"{name}/point_distance"] < 1.5 for line in scored)
    pictures = sorted(path.name for path in (tiny_run / "pictures").iterdir())
    assert pictures == [f"{name}-0000006.png", f"{name}-0000012.png"]
    with PIL.Image.open(tiny_run / "pictures" / pictures[0]) as sheet:
        assert sheet.width > sheet.height > 64  # two pictures side by side


def test_checkpoints_are_kept_with_config_vocabulary_and_position(tiny_run: Path, experiment: Experiment) -> None:
    folder, step = store.find(tiny_run)
    assert (folder, step) == (tiny_run / "checkpoints", 12)
    assert store.steps_of(folder) == [4, 8, 12]
    resolved = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, readers=1))
    assert config.from_json(Experiment, store.read_config(folder)) == resolved
    assert store.read_vocabulary(folder).digest() == text.load_vocabulary(experiment.data.vocabulary).digest()
    for step in (4, 8, 12):
        (saved,) = json.loads(next((folder / str(step) / "position").glob("metadata")).read_text())
        drawn = step * experiment.data.batch_size
        scenes = tiny.SCENES["train"]
        # The position is a count: how many were drawn, and how far into which epoch that is.
        assert saved["drawn"] == drawn
        epoch, index = saved["readers"]["0"][tiny.TASK]
        assert epoch * scenes + index == drawn


# ---- Stopping in any way and going on: real processes, killed by SIGKILL

BOMB = """
import os, signal
from pixel_align import config, train
from pixel_align.checkpoints import store
from tests import tiny

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def get_config(moment):
    if moment == "in_a_step":
        write = train.MetricsLog.write
        def half_a_line(self, step, values):
            if step == 6:
                self._file.write('{"step": 6, "lo')
                self._file.flush()
                kill()
            write(self, step, values)
        train.MetricsLog.write = half_a_line
        save = store.Store.save
        def whole(self, step, *args):
            save(self, step, *args)
            self.wait()
        store.Store.save = whole
    if moment == "in_a_save":
        save = store.Store.save
        def begin(self, step, *args):
            save(self, step, *args)
            if step == 8:
                kill()
        store.Store.save = begin
    return tiny.without_evaluations(tiny.get_config())
"""


def start(moment: str, workdir: Path, world: Path, bomb: Path) -> subprocess.CompletedProcess[str]:
    """`python -m pixel_align train` in a process of its own, with the devices of the tests."""
    changes = [part for change in tiny.in_world(world) for part in ("--set", change)]
    arguments = [f"{bomb}:{moment}", "--workdir", str(workdir), *changes]
    return subprocess.run(
        [sys.executable, "-m", "pixel_align", "train", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_a_run_says_first_which_pictures_it_evaluates_on_that_it_trains_on(
    tiny_run: Path, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the split that it trains on: all; of the other: none. What it saw stands beside its checkpoints."""
    own = dataclasses.replace(experiment.evals[0], split="train", limit=1, every=0)
    both = dataclasses.replace(experiment, evals=(own, experiment.evals[0]))
    workdir = copy_of(tiny_run, tmp_path / "run")
    train.train(both, workdir)
    told = capsys.readouterr().err
    scenes = tiny.SCENES
    of_train = f"{tiny.TASK}/train: {scenes['train']} of {scenes['train']} images seen in training"
    assert told.index(of_train) < told.index("point_distance")
    assert f"{tiny.TASK}/validation: 0 of {scenes['validation']} images seen in training" in told
    kept = Seen.read(workdir / "checkpoints")
    assert kept is not None and len(kept.sets[f"{tiny.TASK}/train"]) == scenes["train"]
    # A run that begins with that one remembers its pictures, and says of a stranger's that it does not know.
    onwards = config.override(experiment, {"init.checkpoint": str(workdir)})
    assert train.training_history(onwards).sets == kept.sets
    (workdir / "checkpoints" / "images_seen_in_training.json.gz").unlink()
    assert train.training_history(onwards).unknown == ("init.checkpoint",)


def test_killed_in_a_step_and_in_a_save_the_run_goes_on_bit_for_bit_and_says_what_it_does(
    tiny_run: Path, experiment: Experiment, tmp_path: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = tmp_path / "bomb.py"
    bomb.write_text(BOMB)
    expected = losses_of(tiny_run)
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"

    done = start("in_a_step", workdir, tiny_world, bomb)
    assert done.returncode == -signal.SIGKILL, done.stderr
    lines = done.stderr.splitlines()
    assert "parameters" in lines[0] and "on 8 cpu" in lines[0]
    assert all(line.startswith("step ") for line in lines[1:]), "a word from the libraries"
    assert (workdir / "metrics.jsonl").read_text().endswith('{"step": 6, "lo')
    assert store.steps_of(checkpoints) == [4]

    done = start("in_a_save", workdir, tiny_world, bomb)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "resumed at step 4" in done.stderr
    assert list(losses_of(workdir)) == list(range(1, 9))
    # The step that was being saved is there under another name only, and is not taken.
    assert [path.name for path in checkpoints.iterdir() if path.name.startswith("8.")]
    assert store.steps_of(checkpoints) == [4]
    assert store.find(workdir) == (checkpoints, 4)

    capsys.readouterr()
    train.train(tiny.without_evaluations(experiment), workdir)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "resumed at step 4"
    # No terminal here: lines instead of a bar, and no word from the libraries.
    assert len(lines) > 2
    for line in lines[2:]:
        assert line.startswith("step ") and "loss" in line and "steps/s" in line and line.endswith("left"), line
    assert lines[-1].startswith("step 12/12")
    assert losses_of(workdir) == expected  # floats as they are: bit for bit
    assert store.steps_of(checkpoints) == [4, 8, 12]
    beside = ["config.json", "images_seen_in_training.json.gz", "vocabulary.model"]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["12", "4", "8", *beside]


def test_a_step_that_a_disk_spoilt_is_named_and_the_one_before_is_used(
    tiny_run: Path, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copy_of(tiny_run, tmp_path / "run")
    checkpoints = workdir / "checkpoints"
    shutil.rmtree(checkpoints / "4")
    record = checkpoints / "12" / "digests" / "metadata"
    digests = json.loads(record.read_text())
    name = next(name for name in digests if name.startswith("params/text/"))
    record.write_text(json.dumps(digests | {name: "0" * 16}))
    short = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=9))
    train.train(tiny.without_evaluations(short), workdir)
    said = capsys.readouterr().err
    assert (
        f"step 12 of {checkpoints} is broken: params: {name.removeprefix('params/')} is not what its digest is" in said
    )
    assert "resumed at step 8" in said
    assert sorted(path.name for path in checkpoints.iterdir() if path.name[0].isdigit()) == ["12.broken", "8", "9"]


def test_trained_parameters_alone_are_enough_with_what_they_were_trained_on(
    tiny_run: Path, experiment: Experiment, tmp_path: Path
) -> None:
    """Resumed and loaded from the trained half; another base is refused, by name."""
    changes = {f"model.{part}.frozen": True for part in ("image", "prompt", "text")}
    changes |= {"train.save": "trainable", "train.steps": 6}
    small = tiny.without_evaluations(config.override(experiment, changes))
    workdir = tmp_path / "run"
    last = train.train(small, workdir)
    losses, (folder, step) = losses_of(workdir), store.find(workdir)
    saved = store.saved_shapes(folder, step)
    assert saved.keys() == {path for path, leaf in param_rules.paths(last.trainable).items() if leaf is not None}
    assert 0 < len(saved) < 0.6 * len(param_rules.paths(last.params))
    loaded = predict.load_params(small, folder, step)
    for path, value in param_rules.paths(last.best_params).items():
        np.testing.assert_array_equal(param_rules.paths(loaded)[path], value, err_msg=path)

    shutil.rmtree(folder / "6")
    resumed = train.train(small, workdir)
    assert losses_of(workdir) == losses
    jax.tree.map(np.testing.assert_array_equal, resumed.params, last.params)

    other = config.override(small, {"train.seed": 7})
    with pytest.raises(
        ValueError, match="frozen parameters, image.* first, are not those that .* was trained on"
    ) as caught:
        predict.load_params(other, folder, 6)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="holds trained parameters only, expected all"):
        train.check_init(start_from(experiment, workdir), loaded)


# ---- Going on, in this process


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, experiment: Experiment) -> dict[str, Any]:
    """The tiny run, gone on from step 12 to step 14 with a checkpoint each step; counts and keeps what passes by."""
    workdir = copy_of(tiny_run, tmp_path_factory.mktemp("continued") / "run")
    longer = dataclasses.replace(
        tiny.without_evaluations(experiment),
        train=dataclasses.replace(experiment.train, steps=14, checkpoint_every=1, keep=5),
    )
    seen: dict[str, Any] = {"workdir": workdir, "decoded": 0, "saved": {}}
    patch = pytest.MonkeyPatch()
    read, arrays = image.read_image, train.saved_arrays

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen["decoded"] += 1
        return read(*args, **kwargs)

    def kept(now: state.TrainState, *only: bool) -> dict[str, Any]:
        if not isinstance(now.step, jax.ShapeDtypeStruct):  # resuming asks for the form only
            seen["saved"][int(now.step)] = now
        return arrays(now, *only)

    patch.setattr(image, "read_image", counted)
    patch.setattr(train, "saved_arrays", kept)
    seen["state"] = train.train(longer, workdir)
    patch.undo()
    return seen


def test_resuming_decodes_nothing_that_it_skips(continued: dict[str, Any], experiment: Experiment) -> None:
    batch = experiment.data.batch_size
    assert 12 * batch == 96  # what a run that decodes what it skips would read on top
    # Two batches are used; what else is read lies ready: prefetch, one being offered and two in the making.
    assert 2 * batch <= continued["decoded"] <= (2 + experiment.data.prefetch + 3) * batch


def test_the_step_donates_its_state(continued: dict[str, Any]) -> None:
    before, last = continued["saved"][13], continued["saved"][14]
    for name in ("trainable", "frozen", "optimizer", "average"):
        leaves = jax.tree.leaves(getattr(before, name))
        given = sum(leaf.size for leaf in leaves if leaf.is_deleted())
        assert given > 0.999 * sum(leaf.size for leaf in leaves) > 0, name  # XLA may keep a scalar
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(last))


def test_the_moving_average_follows_and_is_what_evaluation_reads(
    continued: dict[str, Any], experiment: Experiment
) -> None:
    folder = continued["workdir"] / "checkpoints"
    abstract = jax.eval_shape(lambda: state.init_params(experiment))
    average = {step: param_rules.paths(store.read_params(folder, step, abstract)) for step in (13, 14)}
    last = continued["state"]
    now, frozen = param_rules.paths(last.params), param_rules.paths(last.frozen)
    decay = min(experiment.optim.average, (1 + 13) / (10 + 13))
    assert decay < experiment.optim.average  # the early rule is what is tested here
    for path, value in now.items():
        old, value = np.asarray(average[13][path]), np.asarray(value)
        expected = old + (1 - decay) * (value - old) if path not in frozen else value
        np.testing.assert_allclose(average[14][path], expected, rtol=1e-5, atol=1e-6, err_msg=path)
    for path, value in param_rules.paths(last.best_params).items():
        np.testing.assert_array_equal(value, average[14][path])


def test_metrics_go_on_in_the_same_file(continued: dict[str, Any], tiny_run: Path) -> None:
    losses, before = losses_of(continued["workdir"]), losses_of(tiny_run)
    assert list(losses) == list(range(1, 15))
    assert {step: losses[step] for step in before} == before


def test_an_evaluation_that_a_kill_left_out_is_made_up_for(
    tiny_run: Path, experiment: Experiment, tmp_path: Path
) -> None:
    workdir = copy_of(tiny_run, tmp_path / "run")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    last = f"{tiny.TASK}-validation/point_distance"
    assert last in lines[-1]
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines[:-1]))
    for _ in range(2):  # the second start has nothing to do
        train.train(experiment, workdir)
        made = lines_of(workdir)
        assert len(made) == len(lines)
        assert made[-1][last] == pytest.approx(json.loads(lines[-1])[last], abs=1e-5)


def test_another_model_or_vocabulary_is_refused_other_settings_are_said(
    tiny_run: Path, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tiny_run / "checkpoints"
    vocabulary = store.read_vocabulary(checkpoints)
    experiment = train.with_readers(experiment, checkpoints)
    assert experiment.data.readers == 1
    train.check_resumable(experiment, checkpoints, vocabulary)
    assert capsys.readouterr().err == ""

    other = config.override(experiment, ["optim.peak_lr=0.5", "train.steps=99"])
    train.check_resumable(other, checkpoints, vocabulary)
    said = capsys.readouterr().err
    assert said == "resuming with other settings: optim.peak_lr 0.003 -> 0.5, train.steps 12 -> 99\n"

    with pytest.raises(ValueError, match="the model of this experiment is not the one that .* began with"):
        train.check_resumable(config.override(experiment, ["model.text.mlp_dim=32"]), checkpoints, vocabulary)
    foreign = text.load_vocabulary(
        text.train_sentencepiece(["one two three four five"] * 9, tmp_path / "v.model", 20, model_type="bpe")
    )
    with pytest.raises(ValueError, match="the vocabulary of this experiment is not the one"):
        train.check_resumable(experiment, checkpoints, foreign)
    # A folder without a step is no run yet.
    store.write_header(tmp_path / "new", config.to_json(other), foreign)
    train.check_resumable(experiment, tmp_path / "new", vocabulary)


def test_a_run_resumes_without_the_file_of_its_vocabulary(tiny_run: Path, experiment: Experiment) -> None:
    nameless = config.override(experiment, {"data.vocabulary": ""})
    found = train.find_vocabulary(nameless, tiny_run / "checkpoints")
    assert found.digest() == text.load_vocabulary(experiment.data.vocabulary).digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.vocabulary": ""}, "data.vocabulary is '', expected a SentencePiece .model or WordPiece .txt file"),
        ({"model.text.vocab_size": 384}, "model.text.vocab_size is 384, expected 256"),
        (
            {"data.batch_size": 12},
            "data.batch_size of synthetic_narratives is 12, expected a multiple of 8, the devices",
        ),
        ({"data.mixture": "synthetic_narative"}, "Did you mean 'synthetic_narratives'"),
        ({"data.split": "tset"}, "split is 'tset', expected one of"),
        ({"data.dir": "/nowhere"}, "data.dir is '/nowhere', expected the folder"),
        ({"optim.warmup_steps": 12}, "optim.warmup_steps is 12, expected fewer than train.steps"),
        ({"mesh.tensor": 3}, "mesh is data=-1, fsdp=-1, tensor=3"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_compiled_or_written(
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("something was compiled"))
    with pytest.raises(ValueError, match=message):
        train.train(config.override(experiment, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- A loss that is no number


def metrics(loss: float, norm: float = 1.0) -> dict[str, Any]:
    return {"loss": jnp.float32(loss), "gradient_norm": jnp.float32(norm)}


class Keeper:
    """Steps that are on disk, as `store.Store` tells them."""

    def __init__(self, *steps: int) -> None:
        self.on_disk, self.waited = list(steps), False

    def latest(self) -> int | None:
        assert self.waited, "a save that is under way is not counted"
        return max(self.on_disk, default=None)

    def wait(self) -> None:
        self.waited = True


@pytest.mark.parametrize(
    ("bad", "steps", "message"),
    [
        (metrics(math.nan), [20, 30], "step 40 has loss nan.* the checkpoint of step 30 is good"),
        (metrics(math.inf), [20, 39], "step 40 has loss inf.* the checkpoint of step 39 is good"),
        (metrics(1.0, math.nan), [30], "step 40 has gradient norm nan.* the checkpoint of step 30 is good"),
        (metrics(-math.inf), [], "no checkpoint was saved before.* start again"),
    ],
)
def test_what_is_no_number_names_the_step_and_the_last_good_checkpoint(
    bad: dict[str, Any], steps: list[int], message: str
) -> None:
    keeper = Keeper(*steps)
    with pytest.raises(train.NonFiniteLoss, match=message) as caught:
        train._check_finite(40, bad, keeper)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    train._check_finite(40, metrics(1e30), keeper)  # type: ignore[arg-type]


def _sheet_of(workdir: Path, step: int, path: Path) -> bytes:
    run_batches.write(*run_batches.batches_of(workdir, step), path)
    return path.read_bytes()


def test_a_run_that_fails_leaves_its_last_good_checkpoint(
    tiny_run: Path, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = copy_of(tiny_run, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")
    short = tiny.without_evaluations(
        config.override(experiment, {"train.checkpoint_every": 1, "train.steps": 12, "train.keep": 9})
    )
    make = train.make_train_step

    def broken(*args: Any) -> Any:
        step = make(*args)

        def train_step(before: state.TrainState, batch: Any) -> Any:
            after, metrics = step(before, batch)
            # The eleventh step reads what the tenth spoilt.
            spoilt = jnp.where(before.step >= 10, jnp.nan, 1.0)
            return after, metrics | {"loss": metrics["loss"] * spoilt}

        return train_step

    monkeypatch.setattr(train, "make_train_step", broken)
    with pytest.raises(train.NonFiniteLoss, match="step 11 has loss nan.* checkpoint of step 10 is good") as caught:
        train.train(short, workdir)
    # The picture of what the step saw is what is drawn when it is asked for afterwards.
    left = workdir / "pictures" / "non_finite-0000011.png"
    assert str(caught.value).endswith(f"What it saw is drawn in {left}.")
    batches, vocabulary = run_batches.batches_of(workdir, 11)
    run_batches.write(batches, vocabulary, tmp_path / "again.png")
    assert left.read_bytes() == (tmp_path / "again.png").read_bytes()
    assert left.read_bytes() != _sheet_of(workdir, 10, tmp_path / "other.png")
    assert store.steps_of(workdir / "checkpoints") == [4, 8, 9, 10]
    assert list(losses_of(workdir)) == list(range(1, 11))  # the line of the bad step is not written

    # What is left can be loaded, and is what the next start takes.
    folder, step = store.find(workdir)
    abstract = jax.eval_shape(lambda: state.init_params(experiment))
    assert step == 10
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(store.read_params(folder, step, abstract)))


# ---- Taking parameters over


@pytest.fixture(scope="module")
def params(tiny_run: Path, experiment: Experiment) -> Any:
    folder, step = store.find(tiny_run)
    abstract = jax.eval_shape(lambda: state.init_params(experiment))
    return store.read_params(folder, step, abstract)


def start_from(experiment: Experiment, run: Path, **init: Any) -> Experiment:
    return dataclasses.replace(experiment, init=Init(checkpoint=str(run), **init))


def test_parameters_are_taken_over_by_name(tiny_run: Path, experiment: Experiment, params: Any) -> None:
    fresh = jax.tree.map(jnp.zeros_like, params)
    fresh["location"]["extra"] = jnp.full(3, 7.0)
    moved = fresh.pop("extractor")
    taken = train.take_over(
        start_from(experiment, tiny_run, new=("location/extra",), unused=("extractor/.*",)), fresh, quiet
    )
    np.testing.assert_array_equal(taken["location"].pop("extra"), 7.0)
    assert moved and "extractor" not in taken
    for path, value in param_rules.paths(taken).items():
        np.testing.assert_array_equal(value, param_rules.paths(params)[path], err_msg=path)


def test_what_does_not_fit_is_refused_and_named(tiny_run: Path, experiment: Experiment, params: Any) -> None:
    other = jax.tree.map(jnp.zeros_like, params)
    other["location"]["extra"] = jnp.zeros(3)
    other["visual_projection"]["bias"] = jnp.zeros(5)
    del other["visual_norm"]["scale"]
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        train.take_over(start_from(experiment, tiny_run), other, quiet)
    said = str(caught.value)
    assert "location/extra is not in it" in said
    assert "visual_norm/scale has no place here" in said
    assert "visual_projection/bias is (16,), expected (5,)" in said
    assert "\n" not in said and said.count(";") == 2
    # A parameter of another shape may be named as new, and then starts from nothing.
    named = start_from(experiment, tiny_run, new=(".*extra", "visual_projection/bias"), unused=("visual_norm/scale",))
    taken = train.take_over(named, other, quiet)
    np.testing.assert_array_equal(taken["visual_projection"]["bias"], 0)


# ---- Parts


def test_the_log_drops_what_happens_again_and_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics_log.MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 3.0})
        log.write(2, {"set-validation/point_distance": math.nan})
        log.write(3, {"loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    with metrics_log.MetricsLog(tmp_path, 2) as log:
        assert log.holds(2, "set-validation")
        assert not log.holds(2, "set") and not log.holds(1, "set-validation") and not log.holds(3, "set-validation")
    assert path.read_text() == '{"step": 1, "loss": 3.0}\n{"step": 2, "set-validation/point_distance": null}\n'
