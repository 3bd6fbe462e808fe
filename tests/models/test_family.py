"""A family of its own: registered in this file, it trains, is evaluated and predicts with no change elsewhere.

The family reads the colour of a picture's middle and says one word about it.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

import data_pipelines.localized_narratives  # noqa: F401 - registers the task that is read
import pixel_align
from pixel_align import converter, data, models, optim, param_rules, train
from pixel_align.batch import Shape
from pixel_align.cli import main
from pixel_align.data import DataConfig, Group
from pixel_align.evaluation import evaluator
from pixel_align.experiment import Eval, Experiment, Train
from pixel_align.models import Family, Mode, ModelConfig, Said, Scoring
from pixel_align.prediction import Prediction
from tests import tiny

# ---- The family


@dataclasses.dataclass(frozen=True)
class ColorConfig(ModelConfig):
    kind: str = "color"
    shape: Shape = Shape(canvas=16)  # noqa: RUF009 - it is frozen
    vocab_size: int = 256
    width: int = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ColorBatch:
    images: Any  # UInt8[B, H, W, 3]
    valid_size: Any  # Int32[B, 2]
    word: Any  # Int32[B]


class Color(nn.Module):
    config: ColorConfig

    def encode(self, images: jax.Array) -> jax.Array:
        return images.astype(jnp.float32).mean((1, 2)) / 255

    @nn.compact
    def logits(self, features: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.config.width, name="hidden")(features))
        return nn.Dense(self.config.vocab_size, name="word")(hidden)

    def __call__(self, batch: ColorBatch, *, train: bool = False) -> jax.Array:
        return self.logits(self.encode(batch.images))


def loss(logits: jax.Array, batch: ColorBatch, config: ColorConfig) -> Any:
    right = jnp.take_along_axis(nn.log_softmax(logits), batch.word[:, None], axis=-1)
    return {"word": (1.0, (-right.sum(), jnp.float32(len(right))))}


def batch_spec(config: ColorConfig, size: int) -> ColorBatch:
    side, array = config.shape.canvas, jax.ShapeDtypeStruct
    return ColorBatch(array((size, side, side, 3), np.uint8), array((size, 2), np.int32), array((size,), np.int32))


class ColorConverter:
    regions = 1

    def __init__(self, config: ColorConfig, vocabulary: Any, augment: Any) -> None:
        self.canvas, self.vocabulary, self.augment = config.shape.canvas, vocabulary, augment

    def __call__(self, example: Any, rng: Any = None) -> Any:
        pixels, placement = converter.picture(example, self.canvas, self.augment, rng)
        word = self.vocabulary.encode(converter.string(example["text"]))[-1]
        return ColorBatch(pixels, np.asarray(placement.valid_size, np.int32), np.int32(word)), placement


def name(module: Color, params: Any, features: jax.Array, request: Any) -> jax.Array:
    return module.apply({"params": params}, features, method="logits").argmax(-1)


def told(word: Any, vocabulary: Any, placement: Any, said: Any) -> Prediction:
    return Prediction(vocabulary.decode_with_spans(np.asarray([word]))[0], placement.original_size)


RULES = param_rules.PartRules(sharding=((r".*", ()),), weight_decay=((r".*", 0.0),))
COLOR = Family(
    config=ColorConfig,
    module=Color,
    loss=loss,
    batch_spec=batch_spec,
    converter=ColorConverter,
    rules=lambda config: param_rules.join(dict.fromkeys(("hidden", "word"), RULES)),
    encode_images=lambda module, params, images, valid_size: module.encode(images),
    modes={
        "name": Mode(
            ask=lambda config, vocabulary, placement: (),
            answer=name,
            tell=told,
            scoring=Scoring(
                request=lambda batch, pictures: (),
                answer=name,
                target=lambda example, placement: converter.string(example["text"]),
                said=lambda word, target, *where: Said(told(word, *where, {}).text, told(word, *where, {})),
            ),
        )
    },
)

# ---- What it goes through


def last_word(targets: list[str], predictions: list[str]) -> dict[str, float]:
    return {"right": float(np.mean([t.endswith(s) for t, s in zip(targets, predictions, strict=True)]))}


@pytest.fixture
def known() -> Iterator[None]:
    models.register(COLOR)
    source = seqio.TaskRegistry.get(tiny.TASK)
    seqio.TaskRegistry.add(
        "color_names", source.source, source.output_features, source.preprocessors, metric_fns=[last_word]
    )
    yield
    del models.FAMILIES["color"]
    seqio.TaskRegistry.remove("color_names")


def test_a_family_of_60_lines_trains_is_evaluated_and_predicts(
    known: None, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = Experiment(
        model=ColorConfig(),
        data=DataConfig(
            modules=("data_pipelines.localized_narratives",),
            mixture="color_names",
            batch_size=8,
            readers=1,
            dir=str(tiny_world / "data"),
            vocabulary=str(tiny_world / "vocabulary.model"),
            prefetch=1,
            # The same family in two batches a step, of pictures of two sizes.
            further=(Group("color_names", 8, Shape(canvas=8)),),
        ),
        optim=optim.Optim(peak_lr=3e-2, warmup_steps=1),
        train=Train(steps=20, log_every=1, checkpoint_every=10),
        evals=(Eval(task="color_names", mode="name", batch_size=5, pictures=1),),
    )
    train.train(experiment, tmp_path)
    capsys.readouterr()

    predictor = pixel_align.load(tmp_path)
    assert predictor.config == experiment
    result = evaluator.evaluate(experiment, experiment.evals[0], predictor.params, predictor.vocabulary, controls=True)
    assert result.examples == tiny.SCENES["validation"]
    assert result.metrics.keys() == {"right", "shuffled/right"} and math.isfinite(result.metrics["right"])
    lines = {line["id"]: line["text"] for line in result.predictions}
    example = next(data.dataset(experiment.data, "color_names", "validation", shard=(0, 1)).as_numpy_iterator())
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(example["image"])
    main_said = main_of(["predict", str(picture), "--checkpoint", str(tmp_path), "--mode", "name"], capsys)
    assert main_said.strip() == lines[example["example_id"].decode()]


def main_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    return capsys.readouterr().out


def test_a_kind_is_registered_once(known: None) -> None:
    with pytest.raises(ValueError, match="model.kind 'color' is registered already"):
        models.register(COLOR)
