"""PixelLLM as a whole: what a token may know, what padding may move, what is trained, and that writing is reading."""

import dataclasses
import functools
import importlib
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import models, optim, param_rules, train
from pixel_align import state as run_state
from pixel_align.batch import Batch, Outputs, RegionTargets, Shape, Weights
from pixel_align.config import from_config_dict
from pixel_align.data import DataConfig
from pixel_align.experiment import Experiment, Train
from pixel_align.models.pixel_llm import LossConfig, PixelLLM, PixelLLMConfig, loss
from pixel_align.models.pixel_llm_modes import Request, encode_images, read, write
from pixel_align.nn.image_features import FusionConfig, output_width
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.lora import LoRAConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.region_head import RegionHeadConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.nn.t5 import T5Config

B, N, T, C, R, CANVAS, V = 2, 2, 6, 3, 3, 32, 40
CONFIG = PixelLLMConfig(
    shape=Shape(canvas=CANVAS, regions=N, text=T, instruction=C, objects=R, phrase=2),
    image=SamVitConfig(
        patch_size=8,
        width=16,
        depth=2,
        num_heads=2,
        window=3,
        global_blocks=(1,),
        pretrain_grid=4,
        output_width=12,
        scan=False,
    ),
    prompt=PromptEncoderConfig(width=8),
    extractor=PromptExtractorConfig(queries=4, width=16, depth=1, num_heads=2, mlp_width=16, output_width=12),
    text=T5Config(
        vocab_size=V,
        width=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=16,
        encoder_layers=1,
        decoder_layers=1,
        dropout_rate=0.1,
        lora=LoRAConfig(rank=2),
        scan=False,
    ),
    location=LocationHeadConfig(hidden_width=16, hidden_layers=1, presence=True),
    regions=RegionHeadConfig(enabled=True, hidden_width=8),
)
FROZEN = dataclasses.replace(
    CONFIG,
    image=dataclasses.replace(CONFIG.image, frozen=True),
    prompt=dataclasses.replace(CONFIG.prompt, frozen=True),
    text=dataclasses.replace(CONFIG.text, frozen=True),
    regions=dataclasses.replace(CONFIG.regions, frozen=True),
)


def _batch() -> Batch:
    """Two pictures, two regions each, every piece of a picture's texts another one."""
    rng = np.random.default_rng(0)
    text = np.zeros((B, N, T), np.int32)
    text[:, 0] = [0, 5, 6, 7, 8, 9]  # cut: no end
    text[:, 1] = [0, 12, 13, 1, 0, 0]
    instruction = np.zeros((B, N, C), np.int32)
    instruction[:, 0], instruction[:, 1] = [20, 21, 22], [23, 24, 0]
    low = rng.uniform(0, 0.4, (B, R, 2))
    return Batch(
        images=rng.integers(0, 256, (B, CANVAS, CANVAS, 3)).astype(np.uint8),
        valid_size=np.asarray([[32, 20], [27, 32]], np.int32),
        prompt_boxes=np.asarray([[[0, 0, 0.625, 1]], [[0, 0, 1, 0.84]]], np.float32),
        instruction_tokens=instruction,
        instruction_mask=instruction > 0,
        text_tokens=text,
        text_mask=np.arange(T) < np.asarray([6, 4])[None, :, None].repeat(B, 0),
        token_points=rng.uniform(size=(B, N, T, 2, 2)).astype(np.float32),
        locate=np.broadcast_to([False, True, True, False, True, False], (B, N, T)) & (text > 1),
        valid=np.ones((B, N), bool),
        weights=Weights(*(np.full(B, weight, np.float32) for weight in (1, 1, 1, 0))),
        regions=RegionTargets(
            boxes=np.concatenate([low, low + 0.3], -1).astype(np.float32),
            mask=np.asarray([[True, True, False], [True, False, False]]),
            tokens=rng.permuted(np.arange(2, 30)[None].repeat(B * R, 0), axis=1)[:, :2]
            .reshape(B, R, 2)
            .astype(np.int32),
            token_mask=np.broadcast_to([True, False], (B, R, 2)).copy(),
        ),
    )


BATCH = _batch()


def _init(config: PixelLLMConfig, batch: Batch = BATCH) -> Any:
    return jax.eval_shape(PixelLLM(config).init, jax.random.key(0), batch)["params"]


@pytest.fixture(scope="module")
def params() -> dict:
    """Parameters far from their initial values: adapters not zero, scales not one."""
    rng = np.random.default_rng(1)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        name = path[-1].key
        value = 1 + 0.2 * noise if name == "scale" else noise if "embedding" in name else 0.4 * noise
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, _init(CONFIG))


@functools.partial(jax.jit, static_argnames=("config", "train"))
def _run(params: dict, batch: Batch, config: PixelLLMConfig = CONFIG, train: bool = False) -> tuple[Outputs, Any]:
    """(outputs, name -> mean of each loss)."""
    outputs = PixelLLM(config).apply({"params": params}, batch, train=train)
    terms = loss(outputs, batch, config)
    return outputs, {name: total / count for name, (_, (total, count)) in terms.items()}


def _logits(outputs: Outputs) -> np.ndarray:
    return np.asarray(outputs.text_features @ outputs.vocabulary_kernel)


def _same_losses(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() == {"text", "point", "presence", "map_regions", "query_regions"}
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)


# What a token may know


def test_no_token_sees_a_later_one_or_another_regions(params: dict) -> None:
    """By gradient: every piece stands once in the texts, so its row of the embedding says where it is read."""

    @jax.jit
    @jax.jacrev
    def answers(table: jax.Array) -> jax.Array:
        mine = {**params, "text": {**params["text"], "token_embedder": {"embedding": table}}}
        outputs = PixelLLM(CONFIG).apply({"params": mine}, jax.tree.map(lambda x: x[:1], BATCH))
        logits = outputs.text_features[0] @ outputs.vocabulary_kernel
        return jnp.stack(
            [(outputs.points[0] ** 2).sum((-1, -2)), (logits**2).sum(-1), outputs.presence[0]]
        )  # [3, N, T]

    depends = np.asarray(jnp.abs(answers(params["text"]["token_embedder"]["embedding"])).sum(-1) > 0)
    for kind in range(3):
        for t in range(T):
            for region, pieces in ((0, BATCH.text_tokens[0, 0]), (1, BATCH.text_tokens[0, 1, :4])):
                if t >= len(pieces):
                    continue
                expected = np.zeros(V, bool)
                expected[pieces[: t + 1]] = True
                expected[BATCH.instruction_tokens[0, region][BATCH.instruction_mask[0, region]]] = True
                np.testing.assert_array_equal(depends[kind, region, t], expected, err_msg=f"{kind} {region} {t}")


def test_a_picture_is_read_by_its_own_texts_only(params: dict) -> None:
    images = BATCH.images.copy()
    images[1] = 255 - images[1]
    one, other = _run(params, BATCH)[0], _run(params, dataclasses.replace(BATCH, images=images))[0]
    np.testing.assert_array_equal(one.points[0], other.points[0])
    assert np.abs(one.points[1] - other.points[1]).max() > 1e-3


# What padding may move: nothing


def test_padding_of_texts_and_instructions_moves_nothing(params: dict) -> None:
    text, asks = BATCH.text_tokens.copy(), BATCH.instruction_tokens.copy()
    text[~BATCH.text_mask], asks[~BATCH.instruction_mask] = 33, 34
    points = BATCH.token_points.copy()
    points[~BATCH.locate] = np.nan
    noise = dataclasses.replace(BATCH, text_tokens=text, instruction_tokens=asks, token_points=points)
    one, losses = _run(params, BATCH)
    other, noisy = _run(params, noise)
    _same_losses(losses, noisy)
    for field in ("points", "presence", "text_features"):
        a, b = np.asarray(getattr(one, field)), np.asarray(getattr(other, field))
        np.testing.assert_array_equal(a[BATCH.text_mask], b[BATCH.text_mask])


def test_more_room_for_text_and_instruction_moves_nothing(params: dict) -> None:
    def wider(x: np.ndarray, axis: int) -> np.ndarray:
        return np.pad(x, [(0, 0)] * axis + [(0, 3)] + [(0, 0)] * (x.ndim - axis - 1))

    fields = ("text_tokens", "text_mask", "token_points", "locate", "instruction_tokens", "instruction_mask")
    wide = dataclasses.replace(BATCH, **{name: wider(getattr(BATCH, name), 2) for name in fields})
    one, losses = _run(params, BATCH)
    other, roomy = _run(params, wide)
    _same_losses(losses, roomy)
    np.testing.assert_allclose(
        np.asarray(one.points)[BATCH.text_mask], np.asarray(other.points)[wide.text_mask], atol=1e-4
    )


def test_regions_that_do_not_exist_move_nothing(params: dict) -> None:
    fields = ("instruction_tokens", "instruction_mask", "text_tokens", "text_mask", "token_points", "locate", "valid")
    alone = dataclasses.replace(BATCH, **{name: getattr(BATCH, name)[:, :1] for name in fields})
    padded = dataclasses.replace(BATCH, valid=np.asarray([[True, False]] * B))
    one, losses = _run(params, alone)
    other, more = _run(params, padded)
    _same_losses(losses, more)
    np.testing.assert_allclose(one.points[:, 0], other.points[:, 0], atol=1e-4)


def test_rows_that_fill_a_batch_up_move_nothing(params: dict) -> None:
    """As an evaluation pads its last batch: copies whose `valid` is False, their weights still one."""
    first = jax.tree.map(lambda x: x[:1], BATCH)
    padded = dataclasses.replace(BATCH, valid=np.asarray([[True, True], [False, False]]))
    one, losses = _run(params, first)
    other, more = _run(params, padded)
    _same_losses(losses, more)
    np.testing.assert_allclose(one.points[0], other.points[0], atol=1e-4)


def test_what_lies_outside_the_picture_moves_nothing(params: dict) -> None:
    images = BATCH.images.copy()
    for image, (height, width) in zip(images, BATCH.valid_size, strict=True):
        image[height:], image[:, width:] = 77, 99
    one, losses = _run(params, BATCH)
    other, noisy = _run(params, dataclasses.replace(BATCH, images=images))
    _same_losses(losses, noisy)
    np.testing.assert_array_equal(one.points, other.points)
    np.testing.assert_array_equal(one.map_regions.boxes, other.map_regions.boxes)


def test_objects_that_do_not_exist_move_no_loss(params: dict) -> None:
    r = BATCH.regions
    boxes, tokens = r.boxes.copy(), r.tokens.copy()
    boxes[~r.mask], tokens[~r.token_mask] = 0.5, 3
    noise = dataclasses.replace(BATCH, regions=dataclasses.replace(r, boxes=boxes, tokens=tokens))
    _same_losses(_run(params, BATCH)[1], _run(params, noise)[1])


# Prompts


def test_a_prompt_that_all_regions_share_is_encoded_once(params: dict) -> None:
    shapes = []

    def record(next_method, args, kwargs, context):
        if context.module.name == "two_way" and context.method_name == "__call__":
            shapes.append(args[0].shape)
        return next_method(*args, **kwargs)

    copies = dataclasses.replace(BATCH, prompt_boxes=BATCH.prompt_boxes.repeat(N, axis=1))
    with nn.intercept_methods(record):
        for batch in (BATCH, copies):
            jax.eval_shape(PixelLLM(CONFIG).apply, {"params": params}, batch)
    # Rows of the two-way transformer: one per picture, not one per region. 4 queries and 2 corners.
    assert shapes == [(B, 6, 16), (B * N, 6, 16)]
    one, two = _run(params, BATCH)[0], _run(params, copies)[0]
    np.testing.assert_allclose(one.points, two.points, atol=1e-4)
    np.testing.assert_allclose(one.text_features, two.text_features, atol=1e-4)


def test_each_region_may_have_a_prompt_of_its_own(params: dict) -> None:
    boxes = BATCH.prompt_boxes.repeat(N, axis=1)
    boxes[:, 1] = [0.1, 0.1, 0.3, 0.4]
    own, shared = _run(params, dataclasses.replace(BATCH, prompt_boxes=boxes))[0], _run(params, BATCH)[0]
    np.testing.assert_allclose(own.points[:, 0], shared.points[:, 0], atol=1e-4)
    assert np.abs(own.points[:, 1] - shared.points[:, 1]).max() > 1e-3


# Places


def test_points_are_said_in_fractions_of_the_picture(params: dict) -> None:
    features = jax.random.normal(jax.random.key(2), (B, 3, 16))
    locate = functools.partial(PixelLLM(CONFIG).apply, {"params": params}, method="locate")
    whole = np.asarray(locate(features, np.full((B, 2), CANVAS)))
    part = np.asarray(locate(features, BATCH.valid_size))
    for b, (height, width) in enumerate(BATCH.valid_size):
        np.testing.assert_allclose(part[b, ..., 0], whole[b, ..., 0] * width / CANVAS, rtol=1e-5)
        np.testing.assert_allclose(part[b, ..., 1], whole[b, ..., 1] * height / CANVAS, rtol=1e-5)


# Losses


def test_losses_count_what_is_there_to_predict(params: dict) -> None:
    weights = Weights(*np.float32([[1, 0.5], [1, 0], [0, 1], [0, 0]]))
    batch = dataclasses.replace(BATCH, weights=weights)
    outputs, _ = _run(params, batch)
    terms = loss(outputs, batch, CONFIG)
    # Region 0 has 5 tokens behind BOS, region 1 has 3 (its end included); 3 and 2 of them have places.
    assert {name: (weight, float(count)) for name, (weight, (_, count)) in terms.items()} == {
        "text": (1.0, 8 + 4),
        "point": (0.1, 3 + 2),
        "presence": (0.1, 6 + 4),
        "map_regions": (1.0, 1),
        "query_regions": (1.0, 1),
    }
    # By hand: position t predicts token t + 1, the token's own state says its place.
    logp = np.asarray(jax.nn.log_softmax(_logits(outputs)))
    smooth, text, point = CONFIG.loss.label_smoothing, 0.0, 0.0
    for b, n, t in np.argwhere(BATCH.text_mask):
        if t + 1 < T and BATCH.text_mask[b, n, t + 1]:
            right = logp[b, n, t, BATCH.text_tokens[b, n, t + 1]]
            wrong = (logp[b, n, t].sum() - right) / (V - 1)
            text -= float(weights.text[b]) * ((1 - smooth) * right + smooth * wrong)
        if BATCH.locate[b, n, t]:
            error = np.abs(np.asarray(outputs.points)[b, n, t] - BATCH.token_points[b, n, t])
            point += float(weights.point[b]) * error.mean() * CANVAS
    np.testing.assert_allclose(terms["text"][1][0], text, rtol=1e-4)
    np.testing.assert_allclose(terms["point"][1][0], point, rtol=1e-4)


def test_losses_are_switched_off_by_their_weight(params: dict) -> None:
    quiet = dataclasses.replace(CONFIG, loss=LossConfig(text=0.0, point=0.0, presence=0.0, query_regions=0.0))
    assert set(_run(params, BATCH, quiet)[1]) == {"map_regions"}


def test_a_batch_without_objects_has_no_loss_of_objects(params: dict) -> None:
    """It stands beside one that has them, in the same step."""
    outputs, terms = _run(params, BATCH)
    without = loss(outputs, dataclasses.replace(BATCH, regions=None), CONFIG)
    assert terms.keys() - without.keys() == {"map_regions", "query_regions"}


def test_the_number_of_points_is_one_number() -> None:
    with pytest.raises(ValueError, match=r"model.shape.points is 2 and model.location.points is 3"):
        dataclasses.replace(CONFIG, location=LocationHeadConfig(points=3))


def test_every_trained_parameter_has_a_gradient(params: dict) -> None:
    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        return sum(_run(params, BATCH)[1].values())

    # A key's bias moves all logits of a query alike: attention does not see it.
    blind = {"prompt/positions/gaussian"}
    silent = {
        path
        for path, leaf in param_rules.paths(gradient(params)).items()
        if not np.any(leaf) and not path.endswith("key/bias")
    }
    assert silent == blind


# LoRA and freezing


def test_adapters_whose_second_half_is_zero_are_the_identity(params: dict) -> None:
    """As they begin: test_lora.py."""
    adapters = {path for path in param_rules.paths(params) if "/lora/" in path}
    assert len(adapters) == 2 * 2 * 3  # a and b, on query and value, of three attentions
    fresh = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * (path[-1].key != "b"), params)

    def without(tree: dict) -> dict:
        return {k: without(v) if isinstance(v, dict) else v for k, v in tree.items() if k != "lora"}

    plain = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, lora=LoRAConfig()))
    one, other = _run(fresh, BATCH)[0], _run(without(fresh), BATCH, plain)[0]
    np.testing.assert_array_equal(one.text_features, other.text_features)
    np.testing.assert_array_equal(one.points, other.points)
    assert np.abs(_run(params, BATCH)[0].points - one.points).max() > 1e-3


def test_frozen_parts_have_no_gradient_no_slot_and_do_not_move(params: dict) -> None:
    config = Experiment(
        model=FROZEN, data=DataConfig(), optim=optim.Optim(warmup_steps=0, weight_decay=0.1), train=Train(steps=3)
    )
    rules = models.family_of(FROZEN).rules(FROZEN)
    trainable, frozen = param_rules.split(params, param_rules.match(rules["trainable"], params))
    optimizer = optim.optimizer(config.optim, 3, params, rules)
    before = run_state.make_state(config, params, rules, optimizer)
    still = set(param_rules.paths(frozen))
    parts = ("image/", "prompt/", "map_regions/", "query_regions/")
    assert still == {
        path
        for path in param_rules.paths(params)
        if path.startswith(parts) or (path.startswith("text/") and "/lora/" not in path)
    }
    slots = [path for path in param_rules.paths(before.optimizer) if path.split("/", 2)[1:2] in (["mu"], ["nu"])]
    assert {path.split("/", 2)[2] for path in slots} == set(param_rules.paths(trainable))
    assert len(slots) == 2 * len(param_rules.paths(trainable))

    after, metrics = jax.jit(train.make_train_step(config, optimizer))(before, (BATCH,))
    assert np.isfinite(metrics["loss"])
    moved = param_rules.paths(after.params)
    for path, leaf in param_rules.paths(params).items():
        same = np.array_equal(leaf, moved[path])
        # A key's bias may have a gradient of exactly zero.
        assert same if path in still else not same or path.endswith("key/bias"), path


def test_frozen_parts_run_without_dropout(params: dict) -> None:
    # No random bits are handed over: a dropout that ran would ask for them.
    quiet, trained = _run(params, BATCH, FROZEN)[0], _run(params, BATCH, FROZEN, train=True)[0]
    np.testing.assert_array_equal(quiet.text_features, trained.text_features)
    with pytest.raises(Exception, match="dropout"):
        _run(params, BATCH, CONFIG, train=True)


# Rules


EXPERIMENTS = [
    *(("experiments.localized_narratives", preset) for preset in ("small", "sam_b_t5_small")),
    *(("experiments.quickstart", stage) for stage in ("first_stage", "demo", "dense_off", "no_first_stage")),
]


def _covered(config: PixelLLMConfig) -> Any:
    family = models.family_of(config)
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), family.batch_spec(config, 1))
    params = jax.eval_shape(family.module(config).init, jax.random.key(0), batch)["params"]
    rules = family.rules(config)
    assert set(rules) == {"trainable", "weight_decay", "lr_multiplier", "sharding"}
    for one in rules.values():
        param_rules.match(one, params)  # every parameter is covered and no rule is dead, or this raises
    return params


@pytest.mark.parametrize(("module", "preset"), EXPERIMENTS)
def test_rules_cover_the_tree_of_every_experiment_and_none_is_dead(module: str, preset: str) -> None:
    _covered(from_config_dict(Experiment, importlib.import_module(module).get_config(preset)).model)


@pytest.mark.parametrize("config", [CONFIG, FROZEN], ids=["trained", "frozen"])
def test_rules_cover_the_tiny_model(config: PixelLLMConfig) -> None:
    params = _covered(config)
    decay = param_rules.paths(param_rules.match(models.family_of(config).rules(config)["weight_decay"], params))
    for path, value in decay.items():
        matrix = path.endswith(("/kernel", "output_kernel", "lora/a", "lora/b", "embedding")) and "rel_" not in path
        assert bool(value) == (matrix and not path.startswith("prompt/")), path


def test_the_published_model_has_its_number_of_parameters() -> None:
    """3.857B with T5: EVA02-L beside SAM ViT-H, the extractor, the text head with LoRA 32, the location head."""
    fusion = FusionConfig()
    config = PixelLLMConfig(image=fusion, text=T5Config.xl(lora=LoRAConfig(rank=32), frozen=True))
    assert output_width(fusion) == 1280
    params = _covered(config)
    count = {name: sum(math.prod(x.shape) for x in jax.tree.leaves(part)) / 1e6 for name, part in params.items()}
    assert round(count["image"], 2) == pytest.approx(303.27 + 637.03, abs=0.02)
    assert round(count["text"], 1) == 2868.6
    assert round(count["visual_projection"], 2) == 2.10
    assert round(sum(count.values()) / 1e3, 3) == 3.856  # without the layer of 0.5M that nothing reads there


# Writing and reading


def test_reading_what_was_written_gives_the_same_places_and_scores(params: dict) -> None:
    length = 8
    model = PixelLLM(dataclasses.replace(CONFIG, shape=dataclasses.replace(CONFIG.shape, text=length)))
    tokens = np.zeros((B, N, length), np.int32)
    request = Request(BATCH.valid_size, BATCH.prompt_boxes, BATCH.instruction_tokens, BATCH.instruction_mask)
    # Large embeddings, so that the last word decides what comes next, and an end that comes at different times.
    text = params["text"]
    kernel, table = text["decoder"]["logits_dense"]["kernel"], text["token_embedder"]["embedding"]
    decoder = {**text["decoder"], "logits_dense": {"kernel": kernel.at[:, 1].mul(2.5)}}
    mine = {**params, "text": {**text, "decoder": decoder, "token_embedder": {"embedding": 14 * table}}}
    features = jax.jit(functools.partial(encode_images, model))(mine, BATCH.images, BATCH.valid_size)
    written = jax.jit(functools.partial(write, model))(mine, features, request)
    texts = np.concatenate([tokens[..., :1], written.tokens], axis=-1)
    again = jax.jit(functools.partial(read, model))(mine, features, request, texts)

    spoken = np.cumprod(np.asarray(written.tokens) != 1, axis=-1).astype(bool)
    lengths = spoken.sum(-1)
    assert len(set(lengths.reshape(-1).tolist())) > 1 and lengths.max() > 1, lengths
    scored = np.arange(length - 1) < (lengths + 1)[..., None]  # the end has a score, but no place
    np.testing.assert_array_equal(written.tokens, again.tokens)
    for field, where in (("points", spoken), ("presence", spoken), ("logprobs", scored)):
        one, other = np.asarray(getattr(written, field)), np.asarray(getattr(again, field))
        np.testing.assert_allclose(one[where], other[where], atol=1e-4, err_msg=field)
    # And the teacher-forced pass of training says the same places.
    batch = dataclasses.replace(
        BATCH,
        text_tokens=texts,
        text_mask=texts >= 0,
        **{
            name: np.zeros((B, N, length, *getattr(BATCH, name).shape[3:]), getattr(BATCH, name).dtype)
            for name in ("token_points", "locate")
        },
    )
    outputs = _run(mine, batch)[0]
    np.testing.assert_allclose(np.asarray(outputs.points)[:, :, 1:], again.points, atol=1e-4)


def test_a_kind_that_nobody_registered_is_refused() -> None:
    with pytest.raises(ValueError, match="model.kind is 'pixel_lm', expected one of pixel_llm"):
        models.family_of(dataclasses.replace(CONFIG, kind="pixel_lm"))
