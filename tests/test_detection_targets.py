"""What the detector is taught: slow loops say the same, content and targets move together, a draw is a fair draw."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align.detection_targets import RANGES, decode_deltas, encode_deltas, heat_map, match, sample
from pixel_align.pyramid import cells_of, pyramid_levels, visible

CANVAS = 384
LEVELS = pyramid_levels(27, 27)
CELLS = cells_of(LEVELS)
HEAT = jax.jit(lambda boxes, mask: heat_map(CELLS, boxes, mask, CANVAS))
ENCODE, DECODE, MATCH = jax.jit(encode_deltas), jax.jit(decode_deltas), jax.jit(match)
SAMPLE = jax.jit(sample, static_argnums=(3, 4))


# Where cells are


def test_the_published_grid_has_its_levels_and_their_true_cells() -> None:
    assert [level.shape for level in LEVELS] == [(n, n) for n in (54, 27, 13, 7, 4)]
    in_pixels = [level.cell[0] * CANVAS for level in LEVELS]
    np.testing.assert_allclose(in_pixels, [7.111, 14.222, 28.444, 56.889, 113.778], atol=1e-3)
    np.testing.assert_allclose(np.asarray(in_pixels) * 1.125, [8, 16, 32, 64, 128], rtol=1e-6)  # as published


def test_cells_are_counted_row_by_row_and_lie_where_the_map_lies() -> None:
    levels = pyramid_levels(3, 5, covered=0.9)
    cells = cells_of(levels)
    seen = 0
    for number, level in enumerate(levels):
        for row in range(level.shape[0]):
            for column in range(level.shape[1]):
                assert cells.level[seen] == number and tuple(cells.index[seen]) == (column, row)
                assert tuple(cells.last[seen]) == (level.shape[1] - 1, level.shape[0] - 1)
                size = 0.9 / 5 * 2.0 ** (number - 1), 0.9 / 3 * 2.0 ** (number - 1)
                np.testing.assert_allclose(cells.size[seen], size, rtol=1e-6)
                np.testing.assert_allclose(cells.center[seen], [(column + 0.5) * size[0], (row + 0.5) * size[1]], 1e-6)
                seen += 1
    assert seen == len(cells.level)


def test_a_cell_with_a_part_of_the_picture_is_visible() -> None:
    found = np.asarray(visible(CELLS, jnp.asarray([[200, 384], [29, 7]]), CANVAS))
    for row, (height, width) in zip(found, [(200, 384), (29, 7)], strict=True):
        corner = CELLS.index * CELLS.size * CANVAS
        np.testing.assert_array_equal(row, (corner[:, 0] < width - 1e-3) & (corner[:, 1] < height - 1e-3))
    assert found[1].sum() == 5 + 3 + 2 + 1 + 1  # one column of each level, as many rows as begin before 29 px


def test_a_map_too_small_for_a_pyramid_is_refused() -> None:
    with pytest.raises(ValueError, match="image features are 1 x 4 cells, expected 2 x 2 or more for a pyramid"):
        pyramid_levels(1, 4)


# Heat map


def _slow(boxes: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The rule cell by cell, object by object, in pixels."""
    boxes = boxes.astype(np.float64) * CANVAS
    heat, peak, answer = np.zeros(len(CELLS.level)), np.zeros(len(CELLS.level), bool), np.zeros((len(CELLS.level), 4))
    has_box = np.zeros(len(CELLS.level), bool)
    for a, number in enumerate(CELLS.level):
        cell = LEVELS[number].cell[0] * CANVAS
        rows, columns = LEVELS[number].shape
        x, y = (CELLS.index[a] + 0.5) * cell
        best = (math.inf, math.inf)
        for (x0, y0, x1, y1), exists in zip(boxes, mask, strict=True):
            area = (x1 - x0) * (y1 - y0)
            if not exists or area <= 0:
                continue
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            column, row = min(int(cx // cell), columns - 1), min(int(cy // cell), rows - 1)
            low, high = RANGES[number]
            in_range = low <= math.hypot(x1 - x0, y1 - y0) / 2 <= high
            away = max(abs(CELLS.index[a][0] - column), abs(CELLS.index[a][1] - row))
            distance = ((x - cx) ** 2 + (y - cy) ** 2) / max(2 * area / 81, 16)
            if away == 0 and in_range:
                heat[a], peak[a], distance = 1, True, -1
            heat[a] = max(heat[a], math.exp(-max(distance, 0)))
            if away <= 1 and in_range and x0 < x < x1 and y0 < y < y1 and (distance, area) < best:
                best, answer[a], has_box[a] = (distance, area), (x0, y0, x1, y1), True
    return heat, peak, answer / CANVAS, has_box


def _scene(seed: int, count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all sizes, some around one middle, one without area, some that do not exist."""
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(np.log(0.02), np.log(0.9), (count, 2)))
    low = rng.uniform(0, 1 - side)
    boxes = np.concatenate([low, low + side], axis=1)
    middle = (boxes[0, :2] + boxes[0, 2:]) / 2
    for i, scale in ((1, 0.7), (2, 1.1)):  # one inside the other, so that they have their peak in common
        boxes[i] = np.concatenate([middle - side[0] * scale / 2, middle + side[0] * scale / 2])
    boxes[3, 2] = boxes[3, 0]
    return boxes.astype(np.float32), np.arange(count) < count - 2


@pytest.mark.parametrize("seed", [0, 1])
def test_the_heat_map_is_the_rule_in_loops(seed: int) -> None:
    boxes, mask = _scene(seed)
    found = HEAT(boxes, mask)
    heat, peak, answer, has_box = _slow(boxes, mask)
    np.testing.assert_allclose(found.heat, heat, atol=1e-4)
    np.testing.assert_array_equal(found.peak, peak)
    np.testing.assert_array_equal(found.has_box, has_box)
    np.testing.assert_allclose(np.asarray(found.boxes)[has_box], answer[has_box], atol=1e-6)
    assert peak.sum() > 4 and has_box.sum() > 15


def test_a_picture_without_objects_is_cold() -> None:
    boxes, mask = _scene(0)
    for b, m in ((boxes, mask & False), (boxes[:, [0, 1, 0, 1]], mask)):
        found = HEAT(b, m)
        assert not np.any(found.heat) and not np.any(found.peak) and not np.any(found.has_box)


def test_the_order_of_objects_and_what_does_not_exist_change_nothing() -> None:
    boxes, mask = _scene(3)
    other = np.where(mask[:, None], boxes, np.float32(0.7))[::-1]
    for one, two in zip(jax.tree.leaves(HEAT(boxes, mask)), jax.tree.leaves(HEAT(other, mask[::-1])), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("column", "row", "side"), [(25, 3, 30), (24, 24, 30), (4, 12, 55)])
def test_an_object_is_taught_in_the_cell_that_it_is_drawn_in(column: int, row: int, side: float) -> None:
    """In the middle of a known cell of the 27 x 27 map; strides an eighth too large name a cell up to three away."""
    center = (np.asarray([column, row]) + 0.5) / 27
    half = side / CANVAS / 2
    found = HEAT(np.concatenate([center - half, center + half])[None].astype(np.float32), np.ones(1, bool))
    level = 0 if math.hypot(side, side) / 2 < 32 else 1
    peaks = np.flatnonzero(found.peak)
    of_level = [a for a in peaks if CELLS.level[a] == level]
    on_the_map = CELLS.index[of_level[0]] / (2 if level == 0 else 1)
    np.testing.assert_array_equal(np.floor(on_the_map), [column, row])
    by_published = np.floor(center * CANVAS / 16)
    assert max(column, row) < 8 or np.abs(by_published - [column, row]).max() >= 1


def test_content_that_moves_by_a_cell_moves_its_targets_by_a_cell() -> None:
    boxes, mask = _scene(5)
    boxes = boxes * 0.6 + 0.1  # room to move
    still, moved = (HEAT((boxes + np.float32(shift)).astype(np.float32), mask) for shift in (0, 2 / 27))
    for number, cells in ((0, 4), (1, 2), (2, 1)):
        of_level = CELLS.level == number
        rows, columns = LEVELS[number].shape
        for one, two in ((still.heat, moved.heat), (still.peak, moved.peak), (still.has_box, moved.has_box)):
            one, two = (np.asarray(x)[of_level].reshape(rows, columns) for x in (one, two))
            np.testing.assert_allclose(two[cells:, cells:], one[:-cells, :-cells], atol=1e-4)


def test_an_object_beyond_the_last_cell_of_a_level_belongs_to_it() -> None:
    """13 cells of two of 27 end 14 px before the canvas does."""
    thin = np.asarray([[0.985, 0.2, 1.0, 0.7]], np.float32)  # half diagonal 96 px: the third level, and no other
    found = HEAT(thin, np.ones(1, bool))
    peaks = np.flatnonzero(found.peak)
    np.testing.assert_array_equal(CELLS.level[peaks], [2])
    np.testing.assert_array_equal(CELLS.index[peaks], [[12, 6]])


# Proposals


def test_a_proposal_stands_for_what_it_overlaps_most() -> None:
    boxes = np.asarray([[0, 0, 0.5, 0.5], [0.1, 0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0, 0, 1, 1]], np.float32)
    mask = np.asarray([True, True, True, False])
    proposals = np.asarray(
        [[0, 0, 0.5, 0.5], [0.09, 0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.78], [0.6, 0.6, 0.9, 0.77], [0, 0, 1, 1]], np.float32
    )
    index, foreground = MATCH(proposals, np.asarray([True, True, True, True, True]), boxes, mask, 0.59)
    np.testing.assert_array_equal(index[:4], [0, 1, 2, 2])
    np.testing.assert_array_equal(foreground, [True, True, True, False, False])  # the last would be that of the fourth
    assert not MATCH(proposals, np.zeros(5, bool), boxes, mask, 0.5)[1].any()
    index, foreground = MATCH(proposals, np.ones(5, bool), boxes, np.zeros(4, bool), 0.5)
    assert not foreground.any() and not index.any()


def test_two_phrases_of_one_box_are_both_learned() -> None:
    boxes = np.asarray([[0, 0, 0.5, 0.5], [0.6, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]], np.float32)
    exist = np.asarray([True, True, True, False])
    near, other = [[0.01, 0, 0.5, 0.5]], [[0.6, 0.01, 1, 1]]
    for count in (0, 1, 2, 3):  # however many stand before, and whatever between: the true boxes share it out
        proposals = np.concatenate([np.asarray(near * count + other + near, np.float32), boxes])
        index, foreground = MATCH(proposals, np.ones(len(proposals), bool), boxes, exist, 0.6)
        assert foreground.all() and index[count] == 1 and index[-3] == 1
        assert {int(index[-4]), int(index[-2])} == {0, 2}, "the two equal boxes"
        turns = [int(k) for k in (*index[:count], index[count + 1])]
        assert turns == [(0, 2)[k % 2] for k in range(count + 1)]


@pytest.mark.parametrize(
    ("positives", "negatives", "drawn", "of_them"),
    [(20, 40, 16, 4), (2, 40, 16, 2), (20, 5, 9, 4), (0, 0, 0, 0), (50, 10, 14, 4)],
)
def test_a_draw_has_its_shares(positives: int, negatives: int, drawn: int, of_them: int) -> None:
    """16 samples, a quarter of them foreground at most: foreground beyond that never fills up as background."""
    kind = np.random.default_rng(0).permutation(
        np.repeat([0, 1, 2], [positives, negatives, 60 - positives - negatives])
    )
    foreground, valid = kind == 0, kind != 2
    index, taken = SAMPLE(foreground, valid, jax.random.key(1), 16, 0.25)
    chosen = np.asarray(index)[np.asarray(taken)]
    assert len(index) == 16 and len(chosen) == drawn == len(set(chosen.tolist()))
    assert valid[chosen].all() and foreground[chosen].sum() == of_them
    assert foreground[chosen[:of_them]].all() and taken[:drawn].all()  # foreground first, fillers last


def test_a_draw_is_fair_and_hangs_on_its_key() -> None:
    foreground, valid = np.arange(12) < 6, np.ones(12, bool)
    draw = jax.jit(jax.vmap(functools.partial(sample, foreground, valid, samples=4, positive_fraction=0.5)))
    index, _ = draw(jax.random.split(jax.random.key(0), 600))
    counts = np.bincount(np.asarray(index).reshape(-1), minlength=12)
    assert counts.min() > 150 and counts.max() < 250  # 200 each
    assert len(np.unique(np.asarray(index), axis=0)) > 300
    np.testing.assert_array_equal(draw(jax.random.split(jax.random.key(0), 600))[0], index)


def test_more_samples_than_proposals_are_padded() -> None:
    index, taken = SAMPLE(np.asarray([True, False]), np.ones(2, bool), jax.random.key(0), 16, 0.25)
    np.testing.assert_array_equal(taken, np.arange(16) < 2)
    np.testing.assert_array_equal(index[:2], [0, 1])


def test_deltas_are_their_formula_and_their_inverse() -> None:
    proposal, box = np.asarray([0.1, 0.2, 0.5, 0.4], np.float32), np.asarray([0.2, 0.1, 0.4, 0.6], np.float32)
    expected = [0.0, 10 * 0.05 / 0.2, 5 * math.log(0.5), 5 * math.log(2.5)]
    np.testing.assert_allclose(ENCODE(box[None], proposal[None])[0], expected, atol=1e-5)
    boxes, proposals = _scene(7)[0][4:], _scene(8)[0][4:]
    np.testing.assert_allclose(DECODE(ENCODE(boxes, proposals), proposals), boxes, atol=1e-5)
    np.testing.assert_allclose(DECODE(np.zeros((5, 4)), proposals), proposals, atol=1e-6)
    assert np.isfinite(ENCODE(np.zeros((1, 4)), np.zeros((1, 4)))).all()
    grown = DECODE(np.full((5, 4), 1e4), proposals)[0]
    assert np.isfinite(grown).all()
    np.testing.assert_allclose(grown[2] - grown[0], 62.5 * (proposals[0, 2] - proposals[0, 0]), rtol=1e-3)
