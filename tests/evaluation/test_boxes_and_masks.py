"""Boxes and masks as metrics take them: the same areas in every form, and what is refused."""

import re

import numpy as np
import pytest
from pycocotools import mask as coco

from pixel_align.evaluation import boxes, masks


def drawn(seed: int, size: tuple[int, int] = (9, 13)) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < 0.4


@pytest.mark.parametrize("plus_one", [False, True])
def test_iou_counts_pixels(plus_one: bool) -> None:
    """Of boxes with whole corners IoU is a count of unit squares; with plus_one the last row and column count too."""
    random = np.random.default_rng(0)
    corners = np.sort(random.integers(0, 9, (12, 2, 2)), axis=1)
    array = corners.reshape(12, 4).astype(float)
    cells = np.zeros((12, 10, 10), bool)
    for cell, (x0, y0, x1, y1) in zip(cells, array.astype(int), strict=True):
        cell[y0 : y1 + plus_one, x0 : x1 + plus_one] = True
    table = boxes.iou_table(array, array, plus_one=plus_one)
    for i, j in np.ndindex(12, 12):
        union = (cells[i] | cells[j]).sum()
        expected = (cells[i] & cells[j]).sum() / union if union else 0.0
        assert table[i, j] == pytest.approx(expected, abs=1e-12)
        if not plus_one:
            assert boxes.iou(tuple(array[i]), tuple(array[j])) == table[i, j]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([[0, 0, 5, 5], [3, 0, 1, 5]], "box 1 of boxes is [3.0, 0.0, 1.0, 5.0]"),
        ([[0, 0, float("nan"), 5]], "box 0 of boxes is [0.0, 0.0, nan, 5.0]"),
        ([[0, 0, float("inf"), 5]], "expected finite"),
        ([[0, 0, 5]], "shape of boxes is (1, 3), expected [n, 4]"),
        ([0, 0, 5, 5], "shape of boxes is (4,), expected [n, 4]"),
        ([["a", 0, 5, 5]], "boxes is no array of numbers"),
    ],
)
def test_what_is_no_box_is_refused(given: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        boxes.checked(given, "boxes")
    if np.shape(given) == (1, 4):
        with pytest.raises(ValueError, match="box"):
            boxes.checked_one(given[0], "box")  # type: ignore[index]


def test_empty_and_flat_boxes_are_boxes() -> None:
    assert boxes.checked([], "boxes").shape == (0, 4)
    assert boxes.iou((1, 1, 1, 5), (1, 1, 1, 5)) == 0.0
    assert boxes.iou_table(np.zeros((0, 4)), np.ones((3, 4))).shape == (0, 3)


def test_every_form_of_a_mask_is_the_same_mask() -> None:
    array = drawn(1)
    flat = array.flatten(order="F")
    ends = [*np.flatnonzero(np.diff(flat, prepend=not flat[0])).tolist(), flat.size]
    runs = np.diff(ends).tolist()
    packed = coco.encode(np.asfortranarray(array, np.uint8))
    forms = [
        array,
        array.astype(np.int64),
        packed,
        {**packed, "counts": packed["counts"].decode()},
        {"size": [9, 13], "counts": runs if not flat[0] else [0, *runs]},
    ]
    for form in forms:
        rle = masks.as_rle(form, "mask")
        assert masks.as_rle(rle, "mask") is rle  # it is checked once
        assert masks.area(form, "mask") == array.sum()
        assert masks.overlap(rle, packed, "mask") == (array.sum(),) * 3
    square = masks.as_rle([[2, 1, 2, 4, 6, 4, 6, 1]], "mask", (9, 13))
    assert masks.area(square, "mask") == 12
    assert masks.area(masks.as_rle([], "mask", (9, 13)), "mask") == 0


def test_overlap_is_counting() -> None:
    for seed in range(20):
        a, b = drawn(seed), drawn(seed + 100)
        expected = ((a & b).sum(), a.sum(), b.sum())
        assert masks.array_overlap(a, b, "mask") == expected
        assert masks.overlap(masks.as_rle(a, "a"), masks.as_rle(b, "b"), "mask") == expected


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (40, 700), (700, 40)])
def test_run_lengths_are_those_that_pycocotools_packs(size: tuple[int, int]) -> None:
    for seed in range(6):
        array = np.random.default_rng(seed).random(size) < (0.02, 0.5, 0.98)[seed % 3]
        flat = array.flatten(order="F")
        runs = masks.run_lengths(coco.encode(np.asfortranarray(array, np.uint8))["counts"])
        assert runs is not None
        assert (np.repeat(np.arange(len(runs)) % 2 == 1, runs) == flat).all()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"size": [9, 13], "counts": b"000"}, "expected 9 x 13 pixels"),
        ({"size": [9, 13], "counts": "l3\x01"}, "unreadable"),
        ({"size": [9, 13], "counts": "ooooooooooooooo"}, "unreadable"),
        # 117 pixels and 2,048 runs of 2 to the power of 53: together 117 in 64 bits.
        ({"size": [9, 13], "counts": "e3" + "0" + "P" * 10 + "8" + "00" * 2047}, "unreadable"),
    ],
)
def test_runs_that_do_not_fill_the_picture_are_refused(broken: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        masks.as_rle(broken, "mask")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"size": [9], "counts": b""}, "size of mask is [9]"),
        ({"size": [10**6, 10**6], "counts": b""}, "size of mask is"),
        ({"counts": b""}, "size of mask is ()"),
        ({"size": [2, 2], "counts": [3]}, "counts of mask is 3 pixels long, expected 2 x 2 pixels"),
        ({"size": [2, 2], "counts": [-1, 5]}, "counts of mask is unreadable"),
        ({"size": [2, 2], "counts": ["a"]}, "counts of mask is unreadable"),
        ({"size": [2, 2], "counts": [4.0]}, "counts of mask is unreadable"),
        ({"size": [2, 2], "counts": [2**70]}, "counts of mask is unreadable"),
        ({"size": [2, 2], "counts": None}, "counts of mask is unreadable"),
        ({"size": [2, 2], "counts": b""}, "counts of mask is 0 pixels long"),
        ([[1, 2, 3, 4]], "size of mask is not given"),
        (np.ones((2, 2, 1), bool), "shape of mask is (2, 2, 1)"),
        (np.full((2, 2), 0.7), "mask is an array of float64"),
        (np.full((2, 2), 255), "expected bool or 0 and 1"),
        (7, "mask is a int, expected run lengths"),
    ],
)
def test_what_is_no_mask_is_refused(broken: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        masks.as_rle(broken, "mask")


def test_polygons_that_are_none_are_refused() -> None:
    for polygon in ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float("nan")], ["a"] * 6, 5):
        with pytest.raises(ValueError, match="three or more finite x, y"):
            masks.as_rle([polygon], "mask", (9, 13))


def test_masks_of_two_sizes_are_refused() -> None:
    """pycocotools would find them disjoint."""
    a, b = drawn(1), drawn(2, (13, 9))
    for call, forms in ((masks.array_overlap, (a, b)), (masks.overlap, (masks.as_rle(a, "a"), masks.as_rle(b, "b")))):
        with pytest.raises(ValueError, match=re.escape("size of predicted mask is [13, 9], expected [9, 13]")):
            call(*forms, "mask")


def test_more_runs_than_pixels_do_not_reach_the_buffer_of_pycocotools() -> None:
    long = {"size": [2, 2], "counts": b"0" * 1000}
    with pytest.raises(ValueError, match="counts of predicted mask"):
        masks.overlap(np.ones((2, 2), bool), long, "mask")


@pytest.mark.parametrize(
    ("counts", "filled"),
    [
        (b"0" * 1000 + b"4", [0, 0, 0, 0]),
        ([1, *[0] * 1000, 3], [0, 1, 1, 1]),
        ([2, 0, 0, 2], [0, 0, 1, 1]),
        ([0, 2, 0, 2], [1, 1, 1, 1]),
        ([4, 0], [0, 0, 0, 0]),
    ],
)
def test_runs_of_no_pixels_are_the_same_mask_without_them(counts: bytes | list[int], filled: list[int]) -> None:
    rle = masks.as_rle({"size": [2, 2], "counts": counts}, "mask")
    np.testing.assert_array_equal(masks.decode(rle, "mask"), np.array(filled, bool).reshape(2, 2).T)
    assert len(rle["counts"]) < 5 and masks.overlap(rle, np.ones((2, 2), bool), "mask")[0] == sum(filled)


def test_decoding_is_the_inverse_of_encoding() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (48, 64)):
        for share in (0.0, 0.3, 1.0):
            mask = rng.random((height, width)) < share
            np.testing.assert_array_equal(masks.decode(masks.as_rle(mask, "mask"), "mask"), mask)
    short = {"size": [4, 5], "counts": masks.as_rle(np.ones((3, 5), bool), "mask")["counts"]}
    with pytest.raises(ValueError, match="counts of mask is 15 pixels long, expected 4 x 5 pixels"):
        masks.decode(short, "mask")
