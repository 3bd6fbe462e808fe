"""The detector as a whole: its size, what it proposes and refuses, and that it learns where things are."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixel_align import detection_targets, geometry, losses, losses_detection, param_rules
from pixel_align.batch import Described, DetectorOutputs
from pixel_align.nn import box_decoder
from pixel_align.nn.box_decoder import BoxDecoder, BoxDecoderConfig
from pixel_align.pyramid import cells_of, pyramid_levels

CANVAS, GRID, D = 112, 8, 12
CONFIG = BoxDecoderConfig.tiny(width=16, up_width=8, tower_layers=1, hidden_width=32, samples=16)
MODEL = BoxDecoder(CONFIG, CANVAS)
FEATURES = jax.random.normal(jax.random.key(0), (2, GRID, GRID, D))
SIZE = jnp.asarray([[112, 112], [112, 70]])
BOXES = jnp.asarray(
    [
        [[0.1, 0.1, 0.35, 0.4], [0.5, 0.2, 0.95, 0.6], [0.2, 0.6, 0.45, 0.95]],
        [[0.05, 0.3, 0.5, 0.7], [0.3, 0.05, 0.6, 0.25], [0.0, 0.0, 0.0, 0.0]],
    ]
)
MASK = jnp.asarray([[True, True, True], [True, True, False]])
INPUTS = FEATURES, SIZE, BOXES, MASK


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.jit(MODEL.init)(jax.random.key(1), *INPUTS, jax.random.key(2))["params"]


def _apply(method: Any) -> Any:
    return jax.jit(lambda params, *args: MODEL.apply({"params": params}, *args, method=method))


CALL, DETECT = _apply(None), _apply(MODEL.detect)


@pytest.mark.parametrize(
    ("config", "channels", "count"),
    [(BoxDecoderConfig.published(), 1280, 21.95), (BoxDecoderConfig.bench(), 256, 3.22)],
)
def test_it_has_its_number_of_parameters(config: BoxDecoderConfig, channels: int, count: float) -> None:
    args = jnp.zeros((1, 27, 27, channels)), SIZE[:1], BOXES[:1], MASK[:1], jax.random.key(0)
    variables = jax.eval_shape(BoxDecoder(config, 384).init, jax.random.key(0), *args)
    assert round(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) / 1e6, 2) == count


def test_boxes_and_scores_are_float32_whatever_is_computed_in(params: dict) -> None:
    model = BoxDecoder(dataclasses.replace(CONFIG, dtype="bfloat16"), CANVAS)
    found = jax.eval_shape(model.apply, {"params": params}, *INPUTS, jax.random.key(0))
    found = (found, jax.eval_shape(lambda p: model.apply(p, FEATURES, SIZE, method=model.detect), {"params": params}))
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32", "int32", "bool"}


def test_every_parameter_has_its_rules(params: dict) -> None:
    rules = box_decoder.rules(CONFIG)
    for field in dataclasses.fields(param_rules.PartRules):
        param_rules.match(getattr(rules, field.name), params)
    decay = param_rules.paths(param_rules.match(rules.weight_decay, params))
    assert {path.rpartition("/")[2] for path, value in decay.items() if value} == {"kernel"}
    frozen = param_rules.match(box_decoder.rules(dataclasses.replace(CONFIG, frozen=True)).trainable, params)
    assert not any(jax.tree.leaves(frozen))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "detector.width is 30 with groups 4, expected a multiple of groups"),
        ({"peaks": 10}, "detector.peaks is 10, expected 24 or more"),
        ({"ranges": ((0.0, 40.0),)}, "detector.ranges is .*expected 5 pairs"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BoxDecoderConfig.tiny(), **changes)


def test_at_the_start_nothing_is_found_and_boxes_reach_over_several_cells(params: dict) -> None:
    found = CALL(params, *INPUTS, jax.random.key(0))
    np.testing.assert_allclose(jax.nn.sigmoid(found.heat), 0.01, atol=0.005)
    sides = (found.boxes[..., 2:] - found.boxes[..., :2])[0, 2 * GRID * 2 * GRID :][0]  # of the first cell of level 1
    np.testing.assert_allclose(sides, 16 / GRID, rtol=0.1)
    assert not np.any(found.deltas > 0.5)


def test_the_samples_are_proposals_and_true_boxes(params: dict) -> None:
    found = CALL(params, *INPUTS, jax.random.key(3))
    for b in range(2):
        corner = np.asarray(SIZE[b, ::-1] / CANVAS)
        samples, drawn = np.asarray(found.samples[b]), np.asarray(found.drawn[b])
        assert (samples[drawn, :2] >= 0).all() and (samples[drawn, 2:] <= corner + 1e-6).all()
        overlaps = np.asarray(geometry.box_iou(found.samples[b][:, None], BOXES[b][None])) * np.asarray(MASK[b])
        np.testing.assert_array_equal(found.foreground[b], (overlaps.max(1) >= CONFIG.match_iou) & drawn)
        matched = overlaps[np.arange(len(overlaps)), found.matched[b]]
        np.testing.assert_allclose(matched, overlaps.max(1), atol=1e-6)
        # An untrained head proposes no small box: what is foreground is the truth itself.
        true = {tuple(box) for box in np.asarray(BOXES[b])[np.asarray(MASK[b])].round(4).tolist()}
        assert {tuple(box) for box in samples[np.asarray(found.foreground[b])].round(4).tolist()} >= true
    again = CALL(params, *INPUTS, jax.random.key(4))
    assert np.any(again.samples != found.samples) and not np.any(again.heat != found.heat)


def test_what_is_proposed_hangs_on_no_truth_and_passes_no_gradient(params: dict) -> None:
    one, two = (CALL(params, FEATURES, SIZE, boxes, MASK, jax.random.key(0)) for boxes in (BOXES, BOXES * 0.5))
    np.testing.assert_array_equal(one.heat, two.heat)

    def proposed(heat: jax.Array, boxes: jax.Array) -> jax.Array:
        maps = tuple(jnp.zeros((2, *level.shape, 1)) for level in pyramid_levels(GRID, GRID))
        return sum(x.sum() for x in MODEL.apply({"params": params}, maps, heat, boxes, SIZE, method=MODEL.propose)[:2])

    value, gradient = jax.jit(jax.value_and_grad(proposed, argnums=(0, 1)))(one.heat, one.boxes)
    assert value > 1 and not any(np.any(x) for x in gradient)


def _score(params: dict, size: jax.Array) -> tuple[np.ndarray, ...]:
    """`detect` from the other methods, box by box."""

    def parts(params: dict) -> Any:
        bound = MODEL.bind({"params": params})
        maps = bound.pyramid(FEATURES)
        heat, boxes = bound.locations(maps)
        proposals, heat, valid = bound.propose(maps, heat, boxes, size)
        return proposals, heat, valid, *bound.refine(maps, proposals)

    proposals, heat, valid, logits, deltas = (np.asarray(x, np.float64) for x in jax.jit(parts)(params))
    boxes = np.asarray(detection_targets.decode_deltas(jnp.asarray(deltas), jnp.asarray(proposals)))
    corner = np.asarray(size)[:, None, ::-1] / CANVAS
    boxes = np.clip(boxes, 0, np.concatenate([corner, corner], -1))
    probability = 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))
    return boxes, np.where(valid, np.sqrt(probability * heat), -1)


def test_a_detection_is_the_best_of_what_was_refined(params: dict) -> None:
    """Against a loop over candidates; heads made loud, so that scores differ."""
    rng = np.random.default_rng(0)
    loud = jax.tree.map(lambda x: x + 0.3 * jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    boxes, scores = _score(loud, SIZE)
    found, found_scores, valid = (np.asarray(x) for x in DETECT(loud, FEATURES, SIZE))
    for b in range(2):
        kept: list[int] = []
        for i in np.argsort(-scores[b], kind="stable"):
            near = np.asarray(geometry.box_iou(boxes[b, i], boxes[b, kept])) if kept else np.zeros(1)
            area = np.prod(boxes[b, i, 2:] - boxes[b, i, :2])
            if scores[b, i] > CONFIG.score_threshold and area > 0 and near.max() <= CONFIG.nms:
                kept.append(i)
        kept = kept[: CONFIG.detections]
        assert valid[b].sum() == len(kept) > 1
        np.testing.assert_allclose(found[b][: len(kept)], boxes[b, kept], atol=1e-5)
        np.testing.assert_allclose(found_scores[b][: len(kept)], scores[b, kept], atol=1e-5)
        assert not found[b][len(kept) :].any() and not found_scores[b][len(kept) :].any()


def test_nothing_is_proposed_beyond_the_picture(params: dict) -> None:
    rng = np.random.default_rng(1)
    loud = jax.tree.map(lambda x: x + 0.3 * jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    boxes, _, valid = DETECT(loud, FEATURES, jnp.asarray([[112, 30], [25, 112]]))
    assert valid.any(axis=1).all()
    assert boxes[0, :, 2].max() <= 30 / 112 + 1e-6 and boxes[1, :, 3].max() <= 25 / 112 + 1e-6
    # Nor by a cell beyond it, though its box reaches into it: the last of the map, hot, and all others cold.
    levels = pyramid_levels(GRID, GRID)
    maps = tuple(jnp.zeros((2, *level.shape, 1)) for level in levels)
    count = len(cells_of(levels).level)
    everywhere = jnp.tile(jnp.asarray([0.0, 0.0, 1.0, 1.0]), (2, count, 1))
    hot = jnp.full((2, count), -5.0).at[:, 4 * GRID * GRID + GRID * GRID - 1].set(5.0)
    propose = jax.jit(lambda size: MODEL.apply({"params": params}, maps, hot, everywhere, size, method=MODEL.propose))
    _, heat, _ = propose(jnp.asarray([[112, 98], [112, 112]]))
    assert heat[0].max() < 0.01 < 0.99 < heat[1].max()


def test_it_learns_where_things_are(params: dict) -> None:
    """Two pictures, from noise that is always the same: all objects found, nothing else; by its own losses."""
    levels = pyramid_levels(GRID, GRID)
    regions = Described(boxes=BOXES, mask=MASK, text_tokens=None, text_mask=None)
    optimizer = optax.adam(3e-3)

    def loss(params: dict, key: jax.Array) -> jax.Array:
        found: DetectorOutputs = MODEL.apply({"params": params}, *INPUTS, key)
        return losses.join([losses_detection.terms(found, regions, levels, SIZE, CANVAS, jnp.ones(2))])[0]

    @jax.jit
    def step(params: dict, state: Any, key: jax.Array) -> tuple[dict, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = jax.jit(optimizer.init)(params)
    values = []
    for key in jax.random.split(jax.random.key(5), 150):  # no scan: inside a loop, convolutions are slow on a CPU
        params, state, value = step(params, state, key)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]
    boxes, scores, valid = DETECT(params, FEATURES, SIZE)
    for b in range(2):
        true = np.asarray(BOXES[b])[np.asarray(MASK[b])]
        overlaps = np.asarray(geometry.box_iou(boxes[b][:, None], true[None]))
        best = overlaps[: len(true)]  # the best scores are the objects, each once
        assert sorted(best.argmax(1).tolist()) == list(range(len(true))), overlaps
        assert best.max(1).min() > 0.7
        assert scores[b][: len(true)].min() > 2 * np.where(valid[b], scores[b], 0)[len(true) :].max()
