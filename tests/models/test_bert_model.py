"""PixelLLM with BERT: its published size, that writing is reading, and a run from both spellings to what it says."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pixel_align
from pixel_align import config, losses, models, param_rules, text, train
from pixel_align.batch import zeros
from pixel_align.experiment import Experiment
from pixel_align.models.pixel_llm import PixelLLM, PixelLLMConfig, last_word, loss, rules
from pixel_align.models.pixel_llm_modes import Request, encode_images, make_converter, read, write
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.t5 import T5Config
from pixel_align.settings import override
from tests import tiny

WIDTH, PIECES = 16, 64
OVERRIDES = {
    "model.text.kind": "bert",
    "model.text.vocab_size": PIECES,
    "model.text.begin": 2,
    "model.text.end": 3,
    "model.text.width": WIDTH,
    "model.text.num_heads": 2,
    "model.text.mlp_dim": WIDTH,
    "model.text.layers": 1,
    "model.text.positions": 40,
    "model.text.scan": False,
}


def _shapes(model: PixelLLMConfig) -> Any:
    return jax.eval_shape(lambda: PixelLLM(model).init(jax.random.key(0), zeros(model.shape, 1)))["params"]


def test_the_published_model_has_its_numbers_of_parameters() -> None:
    """1.076B, 439M of them trained, where the release's extractor has 0.5M more that nothing reads."""
    model = PixelLLMConfig.published_bert()
    shapes = _shapes(model)
    count = {part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    head = sum(count[part] for part in ("text", "visual_projection", "visual_norm"))
    assert (head, round(head / 1e6, 2)) == (91_016_250, 91.02)
    assert round(count["location"] / 1e6, 2) == 0.92
    unread = 512 * 1024 + 1024
    assert round((sum(count.values()) + unread) / 1e9, 3) == 1.076
    for listed in rules(model).values():
        param_rules.match(listed, shapes)
    trained = param_rules.split(shapes, param_rules.match(rules(model)["trainable"], shapes))[0]
    trained_count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))
    assert round((trained_count + unread) / 1e6) == 439
    assert dataclasses.replace(model, text=PixelLLMConfig.published().text) == PixelLLMConfig.published()


def test_the_bias_of_the_vocabulary_layer_is_in_the_loss() -> None:
    rng = np.random.default_rng(0)
    features, kernel, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 1, 5, 4), (4, 11), (11,)))
    labels, weights = rng.integers(0, 11, (2, 1, 5)), np.ones((2, 1, 5), np.float32)
    total, _ = losses.text(features, kernel, labels, weights, 0.1, bias)
    logprobs = jax.nn.log_softmax(features @ kernel + bias)
    wanted = np.where(np.eye(11, dtype=bool)[labels], 0.9, 0.1 / 10)
    np.testing.assert_allclose(total, -(wanted * logprobs).sum(), rtol=1e-5)


def test_the_last_word_stands_before_the_end_of_each_language_model() -> None:
    tokens = np.asarray([[101, 7, 8, 102, 0, 0], [101, 1, 1, 1, 1, 1], [101, 102, 0, 0, 0, 0]])
    assert last_word(tokens, BertConfig().end).tolist() == [2, 5, 0]
    assert last_word(np.asarray([[0, 7, 8, 1, 0]]), T5Config.end).tolist() == [2]


# ---- Writing and reading

LENGTH, B, N = 8, 2, 2


@pytest.fixture(scope="module")
def model() -> PixelLLM:
    small = override(tiny.get_config(), OVERRIDES).model
    return PixelLLM(dataclasses.replace(small, shape=dataclasses.replace(small.shape, text=LENGTH, regions=N)))


@pytest.fixture(scope="module")
def params(model: PixelLLM) -> Any:
    """Far from initial values, with an end that comes at different times."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise, name = rng.normal(size=leaf.shape), path[-1].key
        noise = 1 + 0.2 * noise if name == "scale" else noise if name == "embedding" else 0.4 * noise
        if path[-2].key == "logits_dense" and name == "bias":
            noise[:3], noise[3] = -9, 4
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, _shapes(model.config))


def test_reading_what_was_written_gives_the_same_places_and_scores(model: PixelLLM, params: Any) -> None:
    batch, rng = zeros(model.config.shape, B), np.random.default_rng(0)
    request = Request(
        valid_size=np.asarray([[32, 20], [27, 32]], np.int32),
        prompt_boxes=np.asarray([[[0, 0, 0.6, 1]], [[0.3, 0, 1, 0.8]]], np.float32),
        instruction_tokens=rng.integers(4, PIECES, batch.instruction_tokens.shape).astype(np.int32),
        instruction_mask=np.arange(4) < np.asarray([[[4], [2]], [[0], [3]]]),
    )
    images = rng.integers(0, 256, batch.images.shape).astype(np.uint8)

    @jax.jit
    def both(params: Any) -> Any:
        maps = encode_images(model, params, images, request.valid_size)
        written = write(model, params, maps, request)
        texts = jnp.concatenate([jnp.full((B, N, 1), model.config.text.begin), written.tokens], axis=-1)
        return written, texts, read(model, params, maps, request, texts)

    written, texts, again = both(params)
    tokens = np.asarray(written.tokens)
    spoken = np.cumprod(tokens != 3, axis=-1).astype(bool)
    lengths = spoken.sum(-1)
    assert len(set(lengths.reshape(-1).tolist())) > 1 and lengths.max() > 1, tokens
    scored = np.arange(LENGTH - 1) < (lengths + 1)[..., None]
    for field, where in (("points", spoken), ("logprobs", scored)):
        one, other = np.asarray(getattr(written, field)), np.asarray(getattr(again, field))
        np.testing.assert_allclose(one[where], other[where], atol=1e-4, err_msg=field)
    # The teacher-forced pass of training says the same places, and its loss is what the text was written with.
    batch = dataclasses.replace(
        batch,
        images=images,
        text_tokens=np.asarray(texts),
        text_mask=np.concatenate([np.ones((B, N, 1), bool), scored], axis=-1),
        valid=np.ones((B, N), bool),
        weights=dataclasses.replace(batch.weights, text=np.ones(B, np.float32)),
        **{field.name: getattr(request, field.name) for field in dataclasses.fields(request)[:4]},
    )
    outputs = jax.jit(lambda p: model.apply({"params": p}, batch))(params)
    np.testing.assert_allclose(np.asarray(outputs.points)[:, :, 1:][spoken], again.points[spoken], atol=1e-4)
    total, count = loss(outputs, batch, model.config)["text"][1]
    assert count == scored.sum()
    np.testing.assert_allclose(total, -np.asarray(written.logprobs)[scored].sum(), rtol=1e-4)


# ---- A run


def test_both_spellings_choose_it(tmp_path: Path) -> None:
    chosen = override(Experiment(), ["model.text.kind=bert", "model.text.begin=2", "model.text.width=24"])
    assert chosen.model.text == BertConfig(begin=2, width=24)
    (tmp_path / "bert.gin").write_text(
        "PixelLLMConfig.text = @BertConfig()\nBertConfig.begin = 2\nBertConfig.width = 24\n"
    )
    assert config.load(tmp_path / "bert.gin") == chosen
    assert config.from_json(Experiment, config.to_json(chosen)) == chosen
    assert config.from_config_dict(Experiment, config.to_config_dict(chosen)) == chosen


def test_a_vocabulary_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    pieces = text.WordPieceVocabulary(text.train_wordpiece(["a dog is a dog"], tmp_path / "v.txt", 18))
    bert = BertConfig.tiny(vocab_size=18)
    make_converter(PixelLLMConfig.tiny(text=bert), pieces, None)
    for other, begin, end in ((T5Config.tiny(vocab_size=18), 0, 1), (dataclasses.replace(bert, end=5), 2, 5)):
        message = f"the tokens that begin and end a text are {begin} and {end} of {other.kind}, expected 2 and 3, those"
        with pytest.raises(ValueError, match=re.escape(message)):
            make_converter(PixelLLMConfig.tiny(text=other), pieces, None)


def test_a_tiny_model_trains_resumes_and_answers(tiny_world: Path, tmp_path: Path) -> None:
    narratives = (tiny_world / "raw/train/narratives.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [json.loads(line)["caption"] for line in narratives]
    vocabulary = text.train_wordpiece(captions, tmp_path / "pieces.txt", PIECES)
    changes = [*(f"{name}={value}" for name, value in OVERRIDES.items()), *tiny.in_world(tiny_world)]
    changes += [f"data.vocabulary={vocabulary}", "train.steps=3", "train.checkpoint_every=2"]
    changes += ["optim.warmup_steps=0", "optim.average=0"]
    experiment = tiny.without_evaluations(config.load(tiny.__file__, changes))
    through = train.train(experiment, tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    assert [path.name for path in checkpoints.glob("v*")] == ["vocabulary.txt"]
    vocabulary.unlink()  # the run has its own
    shutil.rmtree(checkpoints / "3")
    resumed = train.train(override(experiment, ["data.vocabulary="]), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, through.params, resumed.params)
    new = models.family_of(experiment.model).init(experiment.model, experiment.train.seed)["text"]
    change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), new, resumed.params["text"])
    assert all(value > 0 for value in jax.tree.leaves(change)), change

    predictor = pixel_align.load(tmp_path / "run")
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8))
    written = predictor.trace()
    assert written.points.shape == (len(written.words), 2, 2) and written.size == (24, 32)
    given = predictor.trace(text="A red circle, the sky!")
    assert given.words == ["A", "red", "circle", "the", "sky"] and (given.scores > 0).all()
    box = predictor.predict("refer", text="a red circle").regions[0].box
    assert (box[:2] <= box[2:]).all() and (box >= 0).all() and (box <= [32, 24, 32, 24]).all()
    told = predictor.predict("describe", box=(2, 2, 20, 20))
    assert told.regions[0].text == told.text and told.regions[0].box.tolist() == [2, 2, 20, 20]
