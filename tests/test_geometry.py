"""Coordinates move with the picture, and back, in NumPy and in JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import geometry
from pixel_align.geometry import Placement

BOXES = np.asarray([[0, 0, 4, 2], [1, 1, 3, 5], [2.5, 0, 2.5, 4]], np.float32)


def placements() -> list[Placement]:
    whole = Placement((480, 640), (0, 0, 640, 480), (72, 96), 96)
    zoomed = Placement((480, 640), (100.5, 20, 300.5, 220), (96, 96), 96)
    return [whole, zoomed, Placement((480, 640), (0, 0, 640, 480), (72, 96), 96, flip=True)]


def iou_by_counting(a: np.ndarray, b: np.ndarray, cells: int = 10) -> float:
    """Independent: paint both boxes on a fine grid and count cells."""
    grid = np.zeros((2, 8 * cells, 8 * cells), bool)
    for layer, box in zip(grid, (a, b), strict=True):
        x0, y0, x1, y1 = (round(float(v) * cells) for v in box)
        layer[y0:y1, x0:x1] = True
    union = (grid[0] | grid[1]).sum()
    return float((grid[0] & grid[1]).sum() / union) if union else 0.0


@pytest.mark.parametrize("placement", placements())
@pytest.mark.parametrize("last", [2, 4])
def test_to_original_undoes_to_canvas(placement: Placement, last: int) -> None:
    xy = np.random.default_rng(0).uniform(0, 480, (5, 3, last))
    np.testing.assert_allclose(placement.to_original(placement.to_canvas(xy)), xy, atol=1e-9)


def test_to_canvas_by_hand() -> None:
    whole, zoomed, flipped = placements()
    np.testing.assert_allclose(whole.to_canvas(np.asarray([640.0, 480.0])), [1.0, 0.75])
    np.testing.assert_allclose(zoomed.to_canvas(np.asarray([200.5, 70.0])), [0.5, 0.25])
    np.testing.assert_allclose(flipped.to_canvas(np.asarray([64.0, 48.0])), [0.9, 0.075])
    np.testing.assert_allclose(whole.valid_box, [0, 0, 1, 0.75])
    assert whole.scale == (0.15, 0.15)


def test_a_flip_mirrors_the_valid_part_not_the_canvas() -> None:
    portrait = Placement((640, 480), (0, 0, 480, 640), (96, 72), 96, flip=True)
    np.testing.assert_allclose(portrait.to_canvas(np.asarray([0.0, 0.0])), [0.75, 0])
    np.testing.assert_allclose(portrait.to_canvas(np.asarray([480.0, 0.0])), [0, 0], atol=1e-9)


def test_a_flipped_box_keeps_its_corners_in_order() -> None:
    flipped = placements()[2]
    np.testing.assert_allclose(flipped.to_canvas(np.asarray([0.0, 48, 64, 96])), [0.9, 0.075, 1.0, 0.15])


@pytest.mark.parametrize("placement", placements())
def test_a_box_moves_as_its_corners_do(placement: Placement) -> None:
    boxes = np.asarray([[10.0, 20, 110, 220], [300, 10, 320, 400]])
    corners = geometry.boxes_to_points(boxes)
    np.testing.assert_allclose(placement.to_canvas(boxes), geometry.points_to_boxes(placement.to_canvas(corners)))


# Masks

VIEWS = [  # (height, width), crop, valid size on a canvas of 64, mirrored
    ((48, 64), (0, 0, 64, 48), (48, 64), False),
    ((48, 64), (0, 0, 64, 48), (48, 64), True),
    ((200, 33), (0, 0, 33, 200), (64, 11), True),
    ((30, 301), (0, 0, 301, 30), (6, 64), False),
    ((97, 131), (20.5, 3.25, 90.25, 73), (64, 64), False),
    ((97, 131), (20.5, 3.25, 90.25, 73), (64, 64), True),
    ((500, 375), (0, 100, 375, 350), (43, 64), True),
]


def _view(size: tuple[int, int], crop: tuple[float, ...], valid: tuple[int, int], flip: bool) -> Placement:
    return Placement(size, crop, valid, 64, flip)  # type: ignore[arg-type]


def _sampled(logits: np.ndarray, placement: Placement) -> np.ndarray:
    """A pixel at a time: its centre on the canvas, the four centres of cells around it."""
    height, width = placement.original_size
    result = np.zeros((height, width), bool)
    x0, y0, x1, y1 = placement.crop
    for i, j in np.ndindex(height, width):
        if not (x0 < j + 0.5 < x1 and y0 < i + 0.5 < y1):
            continue
        x, y = (j + 0.5 - x0) / (x1 - x0), (i + 0.5 - y0) / (y1 - y0)  # of the seen part
        x = (1 - x if placement.flip else x) * placement.valid_size[1] / placement.canvas
        y = y * placement.valid_size[0] / placement.canvas
        h, w = logits.shape
        y, x = min(max(y * h - 0.5, 0), h - 1), min(max(x * w - 0.5, 0), w - 1)
        a, b = min(int(y), h - 2), min(int(x), w - 2)
        corners = logits[a : a + 2, b : b + 2]
        value = np.asarray([1 - (y - a), y - a]) @ corners @ np.asarray([1 - (x - b), x - b])
        result[i, j] = value > 0
    return result


@pytest.mark.parametrize("view", VIEWS[:6])
def test_a_mask_at_the_original_size_is_the_logits_at_each_pixels_centre(view: tuple) -> None:
    placement = _view(*view)
    logits = np.random.default_rng(1).normal(size=(2, 1, 16, 16)).astype(np.float32)
    found = geometry.masks_to_original(logits, placement)
    assert found.dtype == bool and found.shape == (2, 1, *placement.original_size)
    for mask, one in zip(found[:, 0], logits[:, 0], strict=True):
        assert (mask != _sampled(one.astype(np.float64), placement)).mean() < 1e-3  # on the edge itself
    np.testing.assert_array_equal(geometry.masks_to_original(jnp.asarray(logits), placement), found)


@pytest.mark.parametrize("view", VIEWS)
def test_a_mask_stays_where_its_box_was(view: tuple) -> None:
    """Drawn on the canvas where the box lies, cell by cell; found in the picture where the box was: within a pixel of
    either.
    """
    placement, cells = _view(*view), 64
    x0, y0, x1, y1 = placement.crop
    box = np.asarray([x0 + 0.2 * (x1 - x0), y0 + 0.3 * (y1 - y0), x0 + 0.65 * (x1 - x0), y0 + 0.9 * (y1 - y0)])
    left, top, right, bottom = placement.to_canvas(box) * cells
    centres = np.arange(cells) + 0.5
    depth_x = np.minimum(centres - left, right - centres)
    depth_y = np.minimum(centres - top, bottom - centres)
    mask = geometry.masks_to_original(np.minimum(depth_x, depth_y[:, None]), placement)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    by_x, by_y = placement.scale
    slack = np.tile([1.0 + 0.5 / by_x, 1.0 + 0.5 / by_y], 2)  # the corners of the level line are cut inside a cell
    assert (np.abs(found - box) <= slack).all(), (found, box)
    assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.9


def test_what_a_crop_left_out_is_in_no_mask() -> None:
    expected = np.zeros((97, 131), bool)
    expected[3:73, 21:90] = True  # pixels whose centre is inside
    mask = geometry.masks_to_original(np.ones((3, 4, 4)), _view(*VIEWS[4]))
    np.testing.assert_array_equal(mask, np.stack([expected] * 3))
    assert not geometry.masks_to_original(-np.ones((4, 4)), _view(*VIEWS[4])).any()


# Points and boxes


def test_fractions_and_pixels() -> None:
    np.testing.assert_allclose(geometry.to_pixels(np.asarray([0.5, 0.25]), (100, 200)), [100, 25])
    np.testing.assert_allclose(geometry.to_fractions(np.asarray([50.0, 25, 200, 100]), (100, 200)), [0.25, 0.25, 1, 1])


@pytest.mark.parametrize(
    ("kind", "per_side", "count"), [("corner", 2, 2), ("solid", 3, 9), ("donut", 4, 12), ("donut", 2, 4)]
)
def test_points_span_their_box(kind: str, per_side: int, count: int) -> None:
    points = geometry.boxes_to_points(BOXES, kind, per_side)
    assert points.shape == (3, count, 2) and points.dtype == np.float32
    assert np.all(geometry.points_inside(points, BOXES[:, None]))
    assert len(np.unique(points[0], axis=0)) == count
    np.testing.assert_array_equal(geometry.points_to_boxes(points), BOXES)


def test_corner_points_are_the_published_target() -> None:
    np.testing.assert_array_equal(geometry.boxes_to_points(BOXES[1]), [[1, 1], [3, 5]])


def test_solid_runs_row_by_row_and_donut_is_its_border() -> None:
    box = np.asarray([0.0, 0, 2, 2])
    solid, donut = geometry.boxes_to_points(box, "solid", 3), geometry.boxes_to_points(box, "donut", 3)
    assert solid.tolist() == [[x, y] for y in range(3) for x in range(3)]
    assert donut.tolist() == [p for p in solid.tolist() if p != [1, 1]]


def test_area_and_iou_against_counted_cells() -> None:
    rng = np.random.default_rng(1)
    boxes = rng.integers(0, 80, (40, 4)) / 10
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    table = geometry.box_iou(boxes[:, None], boxes[None])
    expected = [[iou_by_counting(a, b) for b in boxes] for a in boxes]
    np.testing.assert_allclose(table, expected, atol=1e-6)
    assert geometry.box_area(np.asarray([3.0, 3, 1, 5])) == 0


def test_iou_of_empty_boxes_is_zero_with_a_finite_gradient() -> None:
    empty = jnp.zeros(4)
    value, gradient = jax.value_and_grad(lambda box: geometry.box_iou(box, empty))(empty)
    assert value == 0 and bool(jnp.all(jnp.isfinite(gradient)))


def test_visible_share() -> None:
    within = [0, 0, 1, 1]
    boxes = np.asarray(
        [
            [0.2, 0.2, 0.4, 0.4],
            [0.5, 0.5, 1.5, 1.5],
            [2, 2, 3, 3],
            [-1, 0, 1, 1],
            [0.5, 0.5, 0.5, 1.5],
            [2, 0.5, 2, 0.6],
        ]
    )
    np.testing.assert_allclose(geometry.visible_share(boxes, within), [1, 0.25, 0, 0.5, 0.5, 0])
    np.testing.assert_allclose(geometry.visible_share(np.asarray([[0.5, 0.5, 0.5, 0.5]]), within), [1])


def test_clipping() -> None:
    within = (0, 0, 1, 0.5)
    np.testing.assert_allclose(geometry.clip_boxes(np.asarray([-1.0, 0.2, 0.5, 2]), within), [0, 0.2, 0.5, 0.5])
    np.testing.assert_allclose(
        geometry.clip_boxes(np.asarray([-1.0, -1, -1, -1]), (0.1, 0.2, 0.3, 0.4)), [0.1, 0.2, 0.1, 0.2]
    )
    np.testing.assert_allclose(geometry.clip_points(np.asarray([-1.0, 2.0]), within), [0, 0.5])
    np.testing.assert_allclose(geometry.box_centers(np.asarray([0.0, 0, 1, 0.5])), [0.5, 0.25])


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((480, 640), 96, (72, 96)), ((1, 1000), 64, (1, 64)), ((3, 5), 7, (4, 7)), ((333, 500), 384, (256, 384))],
)
def test_fit_size(size: tuple[int, int], longest: float, expected: tuple[int, int]) -> None:
    assert geometry.fit_size(size, longest) == expected


def test_numpy_and_jax_agree_under_jit() -> None:
    placement = placements()[1]
    other = BOXES[::-1].copy()

    def everything(boxes: geometry.Array, others: geometry.Array) -> list[geometry.Array]:
        points = geometry.boxes_to_points(boxes, "solid", 3)
        return [
            placement.to_canvas(boxes),
            placement.to_original(points),
            geometry.to_pixels(points, (3, 4)),
            geometry.to_fractions(boxes, (3, 4)),
            geometry.points_to_boxes(points),
            geometry.box_iou(boxes, others),
            geometry.box_centers(boxes),
            geometry.clip_boxes(boxes, (1, 1, 2, 2)),
            geometry.clip_points(points, (1, 1, 2, 2)),
            geometry.points_inside(points, boxes[:, None]),
            geometry.visible_share(boxes, (1, 1, 2, 2)),
        ]

    for ours, jitted in zip(
        everything(BOXES, other), jax.jit(everything)(jnp.asarray(BOXES), jnp.asarray(other)), strict=True
    ):
        assert isinstance(ours, np.ndarray) and isinstance(jitted, jax.Array) and ours.dtype == jitted.dtype
        np.testing.assert_allclose(ours, jitted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometry.box_area(np.zeros((3, 2))), r"shape of boxes is \(3, 2\), expected \[\.\.\., 4\]"),
        (lambda: placements()[0].to_canvas(np.zeros(3)), r"expected \[\.\.\., 2\] or \[\.\.\., 4\]"),
        (lambda: geometry.boxes_to_points(BOXES, "ring"), "kind is 'ring'"),  # type: ignore[arg-type]
        (lambda: geometry.boxes_to_points(BOXES, "solid", 1), "per_side is 1, expected at least 2"),
        (lambda: geometry.fit_size((0, 4), 8), r"size is \(0, 4\)"),
        (lambda: Placement((4, 4), (0, 0, 4, 4), (9, 4), 8), r"valid_size is \(9, 4\), expected 1 to 8"),
        (lambda: Placement((4, 4), (3, 0, 3, 4), (4, 4), 8), "crop is"),
    ],
)
def test_errors_say_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_points_along_a_line_are_equally_far_apart_on_the_way() -> None:
    bent = np.asarray([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0]])
    np.testing.assert_allclose(geometry.along(bent, 5), [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]])
    np.testing.assert_allclose(geometry.along(bent, 1), [[2, 0]])
    np.testing.assert_allclose(geometry.along(bent[:1], 3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="path"):
        geometry.along(np.zeros((2, 3)), 2)
