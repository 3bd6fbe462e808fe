"""Every point of every sweep is an experiment: it loads, has shapes, and says what of a checkpoint it cannot use."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import pytest

from experiments import sweeps
from pixel_align import models, param_rules
from pixel_align.batch import Shape
from pixel_align.config import load
from pixel_align.experiment import Experiment
from pixel_align.models.family import ModelConfig

FILE = f"{Path(__file__).resolve().parents[2] / 'experiments' / 'localized_narratives.py'}:bench"


@functools.cache
def shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Parameters by path, of rules that cover them and are all alive."""
    family = models.family_of(model)
    small = dataclasses.replace(model, shape=Shape(canvas=model.shape.canvas, text=4, instruction=2))
    params = jax.eval_shape(lambda: family.init(small))
    for rules in family.rules(model).values():
        param_rules.match(rules, params)
    return {path: leaf.shape for path, leaf in param_rules.paths(params).items()}


@pytest.mark.parametrize("name", sweeps.SWEEPS)
def test_every_point_is_an_experiment_and_no_two_are_the_same(name: str) -> None:
    """Of sweeps of a number the ends are made; what they begin with is what the experiment is, but for its size."""
    before = load(FILE)
    points = list(sweeps.SWEEPS[name]())
    configs = [load(FILE, point) for point in points]
    assert len(configs) == len(set(configs)) > 1
    chosen = range(len(configs)) if name not in ("queries", "lora_ranks") else (1, len(configs) - 1)
    for index in chosen:
        fits(before, configs[index])


def fits(before: Experiment, config: Experiment) -> None:
    """A checkpoint of `before` gives all but init.new, and init.unused names all that has no place."""
    given, wanted = shapes(before.model), shapes(dataclasses.replace(config.model, loss=before.model.loss))  # type: ignore[attr-defined]
    new, unused = (
        {pattern: {path for path in paths if re.fullmatch(pattern, path)} for pattern in patterns}
        for patterns, paths in ((config.init.new, wanted), (config.init.unused, given))
    )
    assert all(new.values()) and all(unused.values())
    named = {path for found in new.values() for path in found}
    assert wanted.keys() - given.keys() <= named
    assert given.keys() - wanted.keys() <= {path for found in unused.values() for path in found}
    common = (wanted.keys() & given.keys()) - named
    # On this experiment a part that is chosen by its kind is of the published size.
    common = {path for path in common if not path.startswith(("image/", "visual_projection/"))}
    assert {path: wanted[path] for path in common} == {path: given[path] for path in common}


def test_without_places_of_words_nothing_teaches_the_places() -> None:
    weights = [load(FILE, point).model.loss.point for point in sweeps.word_places()]  # type: ignore[attr-defined]
    assert weights == [0.1, 0.0]


def test_a_language_model_without_adapters_is_trained_whole_or_not_at_all() -> None:
    adapters, nothing, all_of_it = (load(FILE, point).model for point in sweeps.language_model())
    trained = []
    for model in (adapters, nothing, all_of_it):
        rules = models.family_of(model).rules(model)["trainable"]
        found = [path for path, shape in shapes(model).items() if path.startswith("text/")]
        tree = {path: jax.ShapeDtypeStruct((), "float32") for path in found}
        trained.append(set(param_rules.match(rules, tree, dead="ignore").values()))
    assert trained == [{True, False}, {False}, {True}]
