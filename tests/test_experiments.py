"""Every experiment as it stands: its model exists as shapes, its rules cover it, its numbers are the published ones."""

import re
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments import quickstart, synthetic
from pixel_align import data, models, param_rules, state
from pixel_align.config import load
from pixel_align.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
NARRATIVES = ("small", "bench", "sam_b_t5_small", "t5_xl", "t5_xl_first_stage")
EXPERIMENTS = [*(f"localized_narratives.py:{preset}" for preset in NARRATIVES), f"quickstart.py:{quickstart.STAGES[0]}"]
EXPERIMENTS += [f"{stage}.py:{preset}" for stage in ("refcoco", "refcoco_masks") for preset in ("t5_xl", "bench")]


EXPERIMENTS += [f"synthetic.py:{stage}" for stage in synthetic.STAGES]


def experiment(name: str) -> Experiment:
    return load(f"{ROOT / 'experiments'}/{name}")


def shapes(config: Experiment) -> Any:
    return jax.eval_shape(lambda: state.init_params(config))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rules_cover_the_model_and_none_is_dead(name: str) -> None:
    config = experiment(name)
    params, rules = shapes(config), models.family_of(config.model).rules(config.model)
    for kind in ("trainable", "weight_decay", "lr_multiplier", "sharding"):
        param_rules.match(rules[kind], params)
    assert param_rules.paths(param_rules.split(params, param_rules.match(rules["trainable"], params))[0])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_tasks_are_registered_by_the_modules_that_the_experiment_names(name: str) -> None:
    config = experiment(name)
    known = data.rates(config.data)
    assert known
    for evaluation in config.evals:
        import seqio

        assert evaluation.task in seqio.TaskRegistry.names()


def test_the_trace_stage_is_the_published_one() -> None:
    config = experiment("localized_narratives.py:t5_xl")
    optim, shape, text = config.optim, config.model.shape, config.model.text
    assert (config.data.batch_size, config.train.steps, optim.warmup_steps) == (256, 10_000, 250)
    assert (optim.peak_lr, optim.weight_decay, optim.clip_norm, optim.final_lr) == (5e-5, 0.0, 0.0, 0.0)
    assert (optim.b1, optim.b2, optim.epsilon) == (0.9, 0.999, 1e-8)
    assert (shape.canvas, shape.text, shape.instruction, shape.regions, shape.points) == (384, 128, 8, 1, 2)
    assert (config.model.loss.text, config.model.loss.point, config.model.loss.label_smoothing) == (1.0, 0.1, 0.1)
    assert (text.lora.rank, text.lora.scale, text.lora.targets, text.frozen) == (32, 2.0, ("query", "value"), True)
    assert data.rates(config.data) == {"coco_captions": 1.0, "localized_narratives_coco": 2.0}

    params = shapes(config)
    trained, frozen = param_rules.split(
        params, param_rules.match(models.family_of(config.model).rules(config.model)["trainable"], params)
    )
    trained_paths = [path for path, leaf in param_rules.paths(trained).items() if leaf is not None]
    frozen_paths = [path for path, leaf in param_rules.paths(frozen).items() if leaf is not None]
    assert {part for path in trained_paths for part in [path.split("/")[0]]} == {
        *("image", "extractor", "visual_projection", "visual_norm", "text", "location")
    }
    assert not any(path.startswith("image/sam") for path in trained_paths)
    assert all("/lora/" in path for path in trained_paths if path.startswith("text/"))
    assert any(path.startswith("image/sam") for path in frozen_paths)
    assert not any(path.startswith("image/eva") or "/lora/" in path for path in frozen_paths)


def test_the_referring_stages_are_the_published_ones() -> None:
    """Batch, steps and rates of each; the last one trains the mask adapter, ten times as fast, and the places."""
    for name, steps, warmup, mode in (("refcoco", 120_000, 1000, "refer"), ("refcoco_masks", 60_000, 500, "segment")):
        config = experiment(f"{name}.py:t5_xl")
        optim, shape = config.optim, config.model.shape
        assert (config.data.batch_size, config.train.steps, optim.warmup_steps) == (64, steps, warmup)
        assert (optim.peak_lr, optim.weight_decay, optim.clip_norm) == (5e-5, 0.0, 0.0)
        assert (shape.regions, shape.prompts, shape.text, shape.instruction) == (16, 1, 40, 40)
        assert config.data.augment.scale == (0.75, 1.25)
        assert len(config.evals) == 8 and {evaluation.mode for evaluation in config.evals} == {mode}
    assert (shape.mask, config.model.loss.mask) == (384, 1.0)
    params, rules = shapes(config), models.family_of(config.model).rules(config.model)
    trained = param_rules.paths(param_rules.match(rules["trainable"], params))
    sizes = {path: leaf.size for path, leaf in param_rules.paths(params).items() if trained[path]}
    assert {path.split("/")[0] for path in sizes} == {"mask_adapter", "location"}
    assert sum(sizes.values()) == pytest.approx(5.9e6, rel=0.01)
    rates = param_rules.paths(param_rules.match(rules["lr_multiplier"], params))
    assert {rates[path] for path in sizes if path.startswith("mask_adapter")} == {10.0}
    assert {rates[path] for path in sizes if path.startswith("location")} == {1.0}


def test_the_first_stage_fits_the_trace_stage_and_starts_what_nobody_released() -> None:
    """The same parameters in both; new are those without public weights, and every pattern names some."""
    first, last = experiment("localized_narratives.py:t5_xl_first_stage"), experiment("localized_narratives.py:t5_xl")
    assert first.model == last.model
    assert last.init.new == last.init.unused == ()
    paths = param_rules.paths(shapes(first))
    new = {pattern: [path for path in paths if re.fullmatch(pattern, path)] for pattern in first.init.new}
    assert all(new.values())
    released = {path for path in paths if not any(path in found for found in new.values())}
    assert {path.split("/")[0] for path in released} == {"image", "prompt", "text"}
