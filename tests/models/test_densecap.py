"""Dense captioning: what is found is what is described, in training and in use; nothing that is described is lost."""

import dataclasses
import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from data_pipelines import regions
from pixel_align import data, geometry, models, optim, param_rules, predict, state, text
from pixel_align.batch import Shape
from pixel_align.converter import Augment, PixelFeatureConverter
from pixel_align.experiment import Experiment
from pixel_align.models import pixel_llm_modes
from pixel_align.nn.box_decoder import BoxDecoderConfig
from pixel_align.optim import Optim
from pixel_align.predict import Predictor
from pixel_align.train import make_train_step
from tests import tiny

N, MOST, CANVAS, STEPS = 3, 6, 32, 180
COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (40, 70, 230)}
SCENES = (
    {"red": (2, 3, 14, 13), "blue": (18, 16, 30, 28)},
    {"green": (16, 2, 29, 15), "red": (3, 18, 13, 30), "blue": (2, 4, 12, 14)},
)


def example(scene: dict[str, tuple[int, int, int, int]], asks: str = "densecap") -> dict[str, Any]:
    """A picture with rectangles, as a Task gives it."""
    pixels = np.full((CANVAS, CANVAS, 3), 128, np.uint8)
    for colour, (x0, y0, x1, y1) in scene.items():
        pixels[y0:y1, x0:x1] = COLOURS[colour]
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return {
        "image": file.getvalue(),
        "image_id": b"1",
        "example_id": b"1",
        "asks": asks.encode(),
        "instruction": b"an object of",
        "region_id": [str(k).encode() for k in range(len(scene))],
        "object_id": [b""] * len(scene),
        "region_text": [f"a {colour} box".encode() for colour in scene],
        "region_box": np.asarray(list(scene.values()), np.float32) / CANVAS,
        "region_mask": [b""] * len(scene),
    }


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> text.Vocabulary:
    path = tmp_path_factory.mktemp("words") / "vocabulary.model"
    text.train_sentencepiece([f"a {colour} box an object of" for colour in COLOURS] * 4, path, 40, model_type="bpe")
    return text.load_vocabulary(path)


@pytest.fixture(scope="module")
def experiment(vocabulary: text.Vocabulary) -> Experiment:
    told = tiny.get_config()
    wide = dataclasses.replace(told.model.image, patch_size=4, pretrain_grid=8)  # type: ignore[attr-defined]
    model = dataclasses.replace(
        told.model,
        shape=Shape(canvas=CANVAS, text=8, instruction=4, regions=N, prompts=N, described=MOST),
        image=wide,
        text=dataclasses.replace(told.model.text, vocab_size=vocabulary.size, dropout_rate=0.0),  # type: ignore[attr-defined]
        detector=BoxDecoderConfig.tiny(enabled=True),
    )
    return dataclasses.replace(told, model=model, optim=Optim(peak_lr=3e-3, warmup_steps=10, average=0.0), evals=())


@pytest.fixture(scope="module")
def batch(experiment: Experiment, vocabulary: text.Vocabulary) -> Any:
    convert = PixelFeatureConverter(experiment.model.shape, vocabulary)
    return data.stack([convert(example(scene))[0] for scene in SCENES])


@pytest.fixture(scope="module")
def params(experiment: Experiment) -> Any:
    return jax.jit(lambda: state.init_params(experiment))()


def test_a_batch_holds_all_that_is_described_and_refuses_what_it_has_no_room_for(
    experiment: Experiment, vocabulary: text.Vocabulary, batch: Any
) -> None:
    assert batch.described.mask.sum(axis=1).tolist() == [2, 3]
    assert vocabulary.decode_with_spans(batch.described.text_tokens[1, 0, 1:])[0] == "a green box"
    np.testing.assert_allclose(batch.described.boxes[0, 1], np.asarray(SCENES[0]["blue"]) / CANVAS, atol=1e-6)
    convert = PixelFeatureConverter(dataclasses.replace(experiment.model.shape, described=2), vocabulary)
    assert convert.regions == 0, "an example is never cut: what is cut away would be background"
    with pytest.raises(ValueError, match="has 3 descriptions, expected at most 2. Set shape.described"):
        convert(example(SCENES[1]), np.random.default_rng(0))
    assert convert(example(SCENES[1]))[0].described.mask.all(), "evaluation does not read it"
    with pytest.raises(ValueError, match="model.shape.described is 2 for an example that asks 'describe'"):
        convert(example(SCENES[0], "describe"))
    given = PixelFeatureConverter(dataclasses.replace(experiment.model.shape, described=0), vocabulary)
    with pytest.raises(ValueError, match="model.shape.described is 0 for an example that asks 'densecap'"):
        given(example(SCENES[0]))
    with pytest.raises(ValueError, match="model.shape.described is 6 with model.detector.enabled False"):
        dataclasses.replace(experiment.model, detector=BoxDecoderConfig())
    with pytest.raises(ValueError, match="shape.objects is 4 with shape.described 6, expected one of them 0"):
        dataclasses.replace(experiment.model.shape, objects=4)
    with pytest.raises(ValueError, match="shape.prompts is 1 with shape.described 6, expected 3"):
        dataclasses.replace(experiment.model.shape, prompts=1)


def test_what_a_view_cuts_is_never_background_and_told_only_where_enough_is_seen(
    experiment: Experiment, vocabulary: text.Vocabulary
) -> None:
    convert = PixelFeatureConverter(experiment.model.shape, vocabulary, Augment(scale=(2.0, 3.0)))
    cut = told = 0
    for seed in range(30):
        row, placement = convert(example(SCENES[1]), np.random.default_rng(seed))
        boxes = placement.to_canvas(np.asarray(list(SCENES[1].values()), np.float32))
        share = geometry.visible_share(boxes, placement.valid_box)
        assert row.described.mask.sum() == (share > 0).sum()
        words = row.described.text_mask.any(axis=1)[: (share > 0).sum()]
        np.testing.assert_array_equal(words, share[share > 0] >= 0.5)
        cut, told = cut + int((~words).sum()), told + int(words.sum())
    assert cut > 5 and told > 5


@pytest.fixture(scope="module")
def trained(experiment: Experiment, params: Any, batch: Any) -> tuple[Any, list[dict[str, float]]]:
    """The parameters after some steps on the two pictures, and the losses on the way."""
    family = models.family_of(experiment.model)
    rules = family.rules(experiment.model)
    optimizer = optim.optimizer(experiment.optim, STEPS, jax.eval_shape(lambda: params), rules)
    now = make_state_of(experiment, params, rules, optimizer)
    step = jax.jit(make_train_step(experiment, optimizer))
    losses = []
    for _ in range(STEPS):
        now, metrics = step(now, (batch,))
        losses.append({name: float(value) for name, value in metrics.items()})
    return param_rules.merge(now.trainable, now.frozen), losses


def make_state_of(experiment: Experiment, params: Any, rules: Any, optimizer: Any) -> Any:
    return jax.jit(lambda p: state.make_state(experiment, p, rules, optimizer))(params)


def test_every_part_of_the_detector_learns(trained: tuple[Any, list[dict[str, float]]]) -> None:
    _, losses = trained
    parts = ("text", "detector_heat", "detector_proposal_boxes", "detector_foreground", "detector_refinement")
    assert {f"loss_{part}" for part in parts} <= set(losses[0])
    # The refinement begins near nothing: the true boxes are among its samples.
    for part in parts[:4]:
        assert losses[-1][f"loss_{part}"] < 0.3 * losses[0][f"loss_{part}"], part


def test_what_was_taught_is_found_and_said(
    experiment: Experiment, vocabulary: text.Vocabulary, trained: tuple[Any, list[dict[str, float]]]
) -> None:
    predictor = Predictor(experiment, trained[0], vocabulary)
    targets, found = [], []
    for scene in SCENES:
        asked = example(scene)
        predictor.set_image(asked["image"])
        told = predictor.predict("densecap")
        scores = [region.score for region in told.regions]
        assert scores == sorted(scores, reverse=True) and all(0 < score <= 1 for score in scores)
        boxes = np.asarray([region.box for region in told.regions])
        assert (boxes >= 0).all() and (boxes <= CANVAS).all()
        targets.append({"boxes": np.asarray(list(scene.values())), "captions": [f"a {c} box" for c in scene]})
        found.append({"boxes": boxes, "captions": [region.text for region in told.regions], "scores": scores})
    figures = regions.densecap_scores(targets, found)
    assert figures["mAP"] > 0.8 and figures["mAP_detection"] > 0.8
    # What is said of the other picture is worth little: a colour is in both; places alone are worth nothing.
    assert 3 * regions.densecap_scores(targets, found[::-1])["mAP"] < figures["mAP"]
    swapped = [{**one, "captions": ["x"] * len(one["captions"])} for one in found]
    assert regions.densecap_scores(targets, swapped)["mAP"] < 0.1


def test_finds_are_described_by_the_words_of_what_they_stand_for(
    experiment: Experiment, batch: Any, params: Any
) -> None:
    family = models.family_of(experiment.model)
    outputs = jax.jit(functools.partial(family.module(experiment.model).apply, train=True))(
        {"params": params}, batch, rngs={"dropout": jax.random.key(3)}
    )
    assert outputs.text_tokens.shape == (2, N, 8) and outputs.valid.any(axis=1).all()
    samples, described = outputs.detector.samples[:, :N], batch.described
    for b, n in np.argwhere(np.asarray(outputs.valid)):
        overlap = geometry.box_iou(samples[b, n], jnp.asarray(described.boxes[b]))
        best = int(jnp.argmax(jnp.where(described.mask[b], overlap, -1)))
        assert overlap[best] >= 0.6
        np.testing.assert_array_equal(outputs.text_tokens[b, n], described.text_tokens[b, best])
    invalid = ~np.asarray(outputs.valid)
    assert not np.asarray(outputs.detector.foreground)[:, :N][invalid].any()


def test_a_batch_with_given_regions_leaves_the_detector_where_it_is(
    experiment: Experiment, params: Any, vocabulary: text.Vocabulary
) -> None:
    family = models.family_of(experiment.model)
    shape = dataclasses.replace(experiment.model.shape, described=0)
    given = dataclasses.replace(experiment.model, shape=shape)
    convert = PixelFeatureConverter(shape, vocabulary)
    batch = data.stack([convert(example(scene, "describe"))[0] for scene in SCENES])
    plain = dataclasses.replace(experiment, model=given)
    rules = family.rules(given)
    optimizer = optim.optimizer(Optim(warmup_steps=0, average=0.0), 10, jax.eval_shape(lambda: params), rules)
    before = make_state_of(plain, params, rules, optimizer)
    after, metrics = jax.jit(make_train_step(plain, optimizer))(before, (batch,))
    assert not [name for name in metrics if "detector" in name]
    moved = param_rules.merge(after.trainable, after.frozen)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), moved["detector"], params["detector"]))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), moved["text"], params["text"]))


def test_rescoring_is_the_geometric_mean_of_detection_and_words(
    experiment: Experiment, vocabulary: text.Vocabulary, trained: tuple[Any, list[dict[str, float]]]
) -> None:
    asked = PixelFeatureConverter(experiment.model.shape, vocabulary)(example(SCENES[0]))[0]
    functions = predict.compiled(experiment.widest())
    maps = functions.encode(trained[0], asked.images[None], asked.valid_size[None])
    alone = dataclasses.replace(asked, instruction_tokens=asked.instruction_tokens[:1])
    alone = dataclasses.replace(alone, instruction_mask=alone.instruction_mask[:1], prompt_boxes=alone.prompt_boxes[:1])
    request = pixel_llm_modes.asked_alone(*[data.stack([alone])] * 2)
    plain = functions.answer["densecap"](trained[0], maps, request)
    model = models.family_of(experiment.model).module(dataclasses.replace(experiment.model, rescore=True))
    both = jax.jit(functools.partial(pixel_llm_modes.densecap, model))(trained[0], maps, request)
    tokens = np.asarray(plain.answer.tokens)[0]
    for k in np.flatnonzero(plain.valid[0]):
        ends = np.flatnonzero(tokens[k] == 1)
        words = int(ends[0]) if len(ends) else len(tokens[k])
        mean = float(plain.answer.logprobs[0, k, : words + 1].sum()) / words
        expected = np.sqrt(float(plain.scores[0, k]) * np.exp(mean))
        np.testing.assert_allclose(both.scores[0, k], expected, rtol=1e-5)
    assert plain.valid[0].any()
