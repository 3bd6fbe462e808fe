"""Every experiment as it stands: its model exists as shapes, its rules cover it, its numbers are the published ones."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import quickstart, synthetic
from experiments.proofs import recipes
from experiments.proofs.recipes import shapes
from pixel_align import data, losses, models, optim, param_rules, sharding, state
from pixel_align.config import load
from pixel_align.experiment import Experiment
from pixel_align.sharding import MeshConfig
from tests.goldens import shardings

ROOT = Path(__file__).resolve().parent.parent
NARRATIVES = ("small", "sam_b_t5_small", "t5_xl_first_stage", "bert_first_stage")
EXPERIMENTS = [*(f"localized_narratives.py:{preset}" for preset in NARRATIVES), f"quickstart.py:{quickstart.STAGES[0]}"]
EXPERIMENTS += [f"synthetic.py:{stage}" for stage in synthetic.STAGES]
RECIPES = [f"{stage}.py:{preset}" for stage in recipes.STAGES for preset in recipes.PRESETS]
SMALL = [f"{stage}.py:{preset}" for stage in recipes.STAGES for preset in ("bench", "bench_bert")]


def experiment(name: str) -> Experiment:
    return load(f"{ROOT / 'experiments'}/{name}")


@pytest.mark.parametrize("name", [*EXPERIMENTS, *SMALL])
def test_rules_cover_the_model_and_none_is_dead(name: str) -> None:
    config = experiment(name)
    params, rules = shapes(config), models.family_of(config.model).rules(config.model)
    for kind in ("trainable", "weight_decay", "lr_multiplier", "sharding"):
        param_rules.match(rules[kind], params)
    assert param_rules.paths(param_rules.split(params, param_rules.match(rules["trainable"], params))[0])


@pytest.mark.parametrize("name", ["leaves", *shardings.TOPOLOGIES])
def test_parameters_lie_as_the_tables_say(name: str) -> None:
    """They guard which axis of which parameter is split, the mesh that is chosen and what a chip holds; to remake them:
    python -m tests.goldens.shardings.
    """
    made = shardings.leaves() if name == "leaves" else shardings.topology(name)
    assert made == shardings.path_of(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_shapes_a_loss_and_a_place_on_a_mesh(name: str) -> None:
    """At the published size: its rules cover its parameters and none is dead, every batch of its own has a loss.

    The gin spelling is the same object: tests/test_gin.py.
    """
    config, before = experiment(name), experiment(name.replace("_masks", ""))
    params, family = shapes(config), models.family_of(config.model)
    rules = family.rules(config.model)
    optimizer = optim.optimizer(config.optim, config.train.steps, params, rules)
    abstract = jax.eval_shape(lambda p: state.make_state(config, p, rules, optimizer), params)
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))
    lies = state.state_shardings(abstract, rules, optimizer, mesh)
    assert any(not where.is_fully_replicated for where in jax.tree.leaves(lies.params))
    assert all(read.batch_size % mesh.size == 0 for _, read in config.batches())

    known = {model.shape for model, _ in before.batches()} if before != config else set()
    for model, read in config.batches():
        # Without masks it is a batch of the stage before, by a model with frozen parts.
        if model.shape in known:
            continue

        def loss(params: Any, batch: Any, model: Any = model) -> Any:
            module = family.module(model)
            outputs = module.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)})
            return losses.join([family.loss(outputs, batch, model)])

        total, means = jax.eval_shape(loss, params, family.batch_spec(model, read.batch_size))
        assert total.shape == () and total.dtype == np.float32
        assert ("mask" in means, "detector_heat" in means) == (model.shape.mask > 0, model.shape.described > 0)


@pytest.mark.parametrize("name", [*EXPERIMENTS, *RECIPES, *SMALL])
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


def test_the_later_stages_are_the_published_ones() -> None:
    """Batch, steps and rates; layers of EVA-02 learn at 0.8 to the power of how many follow them."""
    published = {
        "visual_genome": (64, 40_000, 1000, 0.05),
        "multitask": (128, 240_000, 2000, 0.05),
        "multitask_masks": (128, 30_000, 250, 0.0),
    }
    for name, (batch, steps, warmup, decay) in published.items():
        for preset in ("t5_xl", "bert"):
            config = experiment(f"{name}.py:{preset}")
            sizes = [read.batch_size for _, read in config.batches()]
            assert (sum(sizes), config.train.steps, config.optim.warmup_steps) == (batch, steps, warmup)
            assert (config.optim.peak_lr, config.optim.weight_decay, config.optim.clip_norm) == (1e-4, decay, 0.0)
    finds = [experiment(f"visual_genome.py:{preset}").model.shape.regions for preset in ("t5_xl", "bert")]
    assert finds == [32, 64]
    config = experiment("visual_genome.py:t5_xl")
    rates = param_rules.paths(param_rules.match(rules_of(config)["lr_multiplier"], shapes(config)))
    np.testing.assert_allclose(rates["image/eva/patch_embedding/kernel"], 0.8**25)
    np.testing.assert_allclose(rates["image/eva/positions"], 0.8**25)
    layers = next(rate for path, rate in rates.items() if path.startswith("image/eva/layers"))
    np.testing.assert_allclose(np.ravel(layers), [0.8 ** (24 - i) for i in range(24)])
    others = {rate for path, rate in rates.items() if not path.startswith("image/eva/")}
    assert others == {1.0} and rates["image/eva/norm/scale"] == 1.0


def rules_of(config: Experiment) -> Any:
    return models.family_of(config.model).rules(config.model)


def test_the_batches_of_the_joint_stages_have_the_published_shares() -> None:
    """Weights of tasks by 128 pictures, within half of the multiple of 8 that a batch is."""
    config = experiment("multitask.py:t5_xl")
    weights = {"narratives": 1, "captions": 3, "referring": 7, "regions": 5, "questions": 5}
    narratives, captions, referring, regions, short, long = (read.batch_size for _, read in config.batches())
    found = dict(zip(weights, (narratives, captions, referring, regions, short + long), strict=True))
    for task, weight in weights.items():
        assert abs(found[task] - 128 * weight / 21) <= 4 and found[task] % 8 == 0, task
    augments = [(read.augment.scale, read.augment.flip_rate) for _, read in config.batches()]
    assert augments[:4] == [((1, 1), 0), ((0.75, 1.25), 0), ((0.75, 1.25), 0), ((0.1, 2.0), 0.5)]
    assert set(augments[4:]) == {((1, 1), 0)}
    assert data.rates(config.batches()[2][1]) == {"flickr30k_entities": 1, "refcoco_mixed": 5, "uninext_vg": 1}
    masked = experiment("multitask_masks.py:t5_xl")
    asked = [model.shape.mask for model, _ in masked.batches()]
    assert asked == [0, 0, 384, 0, 0, 0]
    assert [dataclasses.replace(model.shape, mask=0) for model, _ in masked.batches()] == [
        model.shape for model, _ in config.batches()
    ]


# Published: millions of parameters in all, and those that are trained, of T5-XL and of BERT.
PUBLISHED = {
    "localized_narratives": ((3857, 370), (1076, 439)),
    "refcoco": ((3857, 370), (1076, 439)),
    "refcoco_masks": ((None, 5.9), (None, 4.7)),
    "visual_genome": ((None, 370 + 22), (None, 439 + 22)),
    "multitask": ((None, 370 + 22), (None, 439 + 22)),
    "multitask_masks": ((3887, 4.35), (1106, 3.76)),
}


@pytest.mark.parametrize("stage", recipes.STAGES)
def test_what_is_trained_is_what_is_published(stage: str) -> None:
    """Within what differs: the extractor's unread layer of 0.5M, and BERT's mask adapter, which reads visual tokens as
    the language model does, 768 wide, where published they were 1,024 wide.
    """
    for preset, (total, trained) in zip(("t5_xl", "bert"), PUBLISHED[stage], strict=True):
        row = recipes.row(f"{stage}.py:{preset}", experiment(f"{stage}.py:{preset}"))
        assert total is None or row.total == pytest.approx(total * 1e6, abs=1.1e6)
        assert row.trained == pytest.approx(trained * 1e6, rel=0.02 if "masks" in stage else 3e-3)


def test_the_table_of_recipes_is_what_the_experiments_are() -> None:
    """docs/recipes.md, made again: python -m experiments.proofs.recipes."""
    rows = [recipes.row(name, experiment(name)) for name in RECIPES]
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for table in recipes.tables(rows):
        assert table in page
