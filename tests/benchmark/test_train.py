"""The benchmark of training: what it measures is the step and its parts, and every twin gives the same answer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import models
from pixel_align.benchmark import padding, presets
from pixel_align.benchmark import train as benchmark
from pixel_align.cli import main
from pixel_align.experiment import Experiment
from pixel_align.models.pixel_llm import PixelLLM
from pixel_align.nn.lora import LoRAConfig
from tests import tiny


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    """Without dropout, so that twins agree; image encoder and language model frozen, with adapters."""
    whole = tiny.get_config()
    model = whole.model
    image = dataclasses.replace(model.image, frozen=True)  # type: ignore[attr-defined]
    text = dataclasses.replace(model.text, dropout_rate=0.0, frozen=True, lora=LoRAConfig(rank=2))  # type: ignore[attr-defined]
    model = dataclasses.replace(model, image=image, text=text)  # type: ignore[call-arg]
    return dataclasses.replace(whole, model=model, data=dataclasses.replace(whole.data, batch_size=2))


def rough(model: Any, seed: int = 0) -> Any:
    """Parameters without compiling their initialisation."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: models.family_of(model).init(model))
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape) / 4, x.dtype), shapes)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "TURNS", 1)
    monkeypatch.setattr(benchmark, "_made", rough)


def test_a_drawn_batch_fits_the_model_and_uses_every_slot(experiment: Experiment) -> None:
    for regions in (1, benchmark.REGIONS):
        config = benchmark.with_regions(experiment, regions)
        batch = benchmark.drawn(config.model, 3)  # type: ignore[arg-type]
        spec = models.family_of(config.model).batch_spec(config.model, 3)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(lambda x: (x.shape, x.dtype), spec)
        used, there = padding.slots(batch).T
        assert (used == there).all() and batch.valid.shape == (3, regions)
        assert batch.text_tokens.max() < config.model.text.vocab_size  # type: ignore[attr-defined]


def test_the_parts_one_after_the_other_are_the_step(experiment: Experiment) -> None:
    config = benchmark.with_regions(experiment, 1)
    model, family = config.model, models.family_of(config.model)
    params = benchmark._params(config)
    batch: Any = benchmark.drawn(model, 2)  # type: ignore[arg-type]
    module = PixelLLM(model)  # type: ignore[arg-type]

    @jax.jit
    def both(params: Any) -> Any:
        given = None
        for name, function in zip(benchmark.PARTS, benchmark.FUNCTIONS, strict=True):
            given = function(module, benchmark._subtree(params, benchmark.PARTS[name]), given, batch)
        outputs = module.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)})
        whole = dataclasses.replace(model, loss=dataclasses.replace(model.loss, label_smoothing=0.1))  # type: ignore[attr-defined, call-arg]
        return given, family.loss(outputs, batch, whole)

    (words, places), terms = both(params)
    np.testing.assert_allclose(words, terms["text"][1][0], rtol=1e-4)
    np.testing.assert_allclose(places * model.shape.canvas, terms["point"][1][0], rtol=1e-4)
    # Together they read every parameter, none twice.
    owned = [path for name in benchmark.PARTS for path in benchmark._paths(params, benchmark.PARTS[name])]
    assert sorted(owned) == sorted(benchmark._paths(params, ".*"))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are traced, and neither compiled nor run: they answer zeros."""

    class Traced(benchmark.Program):
        def __init__(self, function: Any, state: Any, given: Any, *, carries: bool = False) -> None:
            out = jax.eval_shape(function, state, *given)
            self.state, self.zeros = state, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), out)
            self.compile_seconds, self.seconds, self.temporaries, self.bytes = 0.5, 0.25, 7, 100
            if carries:
                assert jax.tree.structure(out[0]) == jax.tree.structure(state)

        def once(self) -> Any:
            self.seconds = 0.25
            return self.zeros

    monkeypatch.setattr(benchmark, "Program", Traced)


def test_a_step_and_its_parts_have_rows(experiment: Experiment, traced: None) -> None:
    step, *parts = benchmark.measure_step_16(experiment)
    assert step.name == "step_16" and [part.name for part in parts] == [f"step_16/{name}" for name in benchmark.PARTS]
    assert step.notes["flops_per_second"] > 0 and step.notes["device_bytes"] > step.notes["compile_seconds"] > 0
    assert all(part.seconds > 0 and part.notes["flops_per_second"] > 0 for part in parts)
    left = step.seconds - sum(part.seconds for part in parts)
    assert step.notes["rest_ms"] == pytest.approx(1e3 * left)


def test_gradients_are_of_what_is_trained_and_of_what_is_given_where_that_hangs_on_it() -> None:
    def function(params: Any, given: jax.Array, batch: None) -> jax.Array:
        return params["a"] * params["b"] * given

    halves = {"a": jnp.asarray(2.0), "b": None}, {"a": None, "b": jnp.asarray(3.0)}
    out, (by_a, by_given) = benchmark._both(function, True, halves, jnp.asarray(5.0), None)
    assert (out, by_a["a"], by_given) == (30, 30 * 15, 30 * 6) and by_a["b"] is None
    assert len(benchmark._both(function, False, halves, jnp.asarray(5.0), None)[1]) == 1


@pytest.mark.parametrize("name", ["chunked_loss", "lora_products", "attention"])
def test_a_saving_and_its_twin_say_the_same(name: str, experiment: Experiment) -> None:
    (row,) = benchmark.measurements()[name](experiment)
    assert row.name == name and row.against and row.ratio is not None and row.ratio > 0
    assert row.notes["difference"] < 1e-4


def test_a_shared_prompt_has_a_row_beside_its_twin_and_beside_one_region(experiment: Experiment, traced: None) -> None:
    (row,) = benchmark.measure_shared_prompt(experiment)
    assert (row.name, row.ratio, row.notes["to_one_region"], row.notes["difference"]) == ("shared_prompt", 1, 1, 0)


def test_a_twin_also_asks_for_gradients_of_what_is_frozen(experiment: Experiment, traced: None) -> None:
    config = benchmark.with_regions(experiment, 1)
    counts = [
        len(jax.tree.leaves(benchmark._gradient(config, everything=everything)[0].once()[1]))
        for everything in (False, True)
    ]
    params = benchmark._params(config)
    assert 0 < counts[0] < counts[1] == len(jax.tree.leaves(params))


def test_nothing_frozen_and_no_adapters_have_no_row() -> None:
    whole = tiny.get_config()
    assert benchmark.measure_lora_products(whole) == []


def test_every_stack_is_scanned_or_written_out(experiment: Experiment) -> None:
    assert '"scan": false' not in repr_of(benchmark._scanned(experiment, True))
    assert '"scan": true' not in repr_of(benchmark._scanned(experiment, False))
    assert repr_of(benchmark._scanned(experiment, True)).count('"scan": true') >= 3


def repr_of(config: Experiment) -> str:
    from pixel_align.settings import to_json

    return to_json(config)


def test_what_is_measured_is_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["train"], "experiment is '.'"),
        (["train", "--preset", "xl"], "--preset is 'xl', expected one of quickstart, bench"),
        (["train", "--preset", "bench", "--only", "speed"], "measurement is 'speed', expected one of step_1"),
        (["speed"], "WHAT is 'speed', expected metrics, padding, train or input"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["benchmark", *words])
        assert left.value.code == 2 and said in capsys.readouterr().err
    assert all(presets.path(name).partition(".py")[0].startswith("/") for name in presets.PRESETS)
