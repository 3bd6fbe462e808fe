"""Marks sit where the places are, in the colours of their words, and everything can be read."""

import itertools
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pixel_align import draw
from pixel_align.draw import GRAY, PAGE, PALETTE

PAD = 25  # margin around the picture at the default side of 960 pixels


def gray(height: int, width: int, level: int = 200) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def annotate(*arguments: Any, **options: Any) -> np.ndarray:
    return np.asarray(draw.annotate(*arguments, **options))


def comparison(*arguments: Any, **options: Any) -> np.ndarray:
    return np.asarray(draw.comparison(*arguments, **options))


def has(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((pixels == colour).all(-1).any())


def colours(pixels: np.ndarray) -> list[tuple[int, int, int]]:
    return [colour for colour in PALETTE if has(pixels, colour)]


def at(*xy: float) -> np.ndarray:
    return np.asarray([xy], np.float64)


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (1500, 1000)])
def test_each_place_carries_the_colour_of_its_word(size: tuple[int, int]) -> None:
    height, width = size
    places = [at(0.25 * width, 0.3 * height), None, at(0.7 * width, 0.8 * height)]
    page = annotate(gray(*size), ["here", "and", "there"], places)
    scale = 960 / max(size)
    for place, colour in zip((places[0], places[2]), PALETTE, strict=False):
        assert place is not None
        x, y = (place[0] * scale + PAD).round().astype(int)
        assert page[y, x].tolist() == list(colour)
    picture_bottom = PAD + round(height * scale)
    sentence = page[picture_bottom:]
    assert colours(sentence) == list(PALETTE[:2]) and has(sentence, GRAY)
    assert page.shape[1] == max(round(width * scale), 576) + 2 * PAD


def test_the_mark_of_corner_points_is_their_middle() -> None:
    page = annotate(gray(96, 96), ["box"], [np.asarray([[10.0, 20], [50, 60]])])
    assert page[PAD + 400, PAD + 300].tolist() == list(PALETTE[0])


def test_words_without_a_place_leave_the_picture_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    bare = annotate(image, ["nothing", "here"], [None, None])
    assert not colours(bare[PAD + 960 :]) and has(bare[PAD + 960 :], GRAY)
    marked = annotate(image, ["nothing", "here"], [None, at(48, 48)])
    inside = np.s_[PAD : PAD + 960, PAD : PAD + 960]
    changed = (bare[inside] != marked[inside]).any(-1)
    assert 0 < changed.mean() < 0.02, "a mark and a label, nothing else"


def test_neighbours_of_one_place_share_a_colour_and_others_do_not() -> None:
    words, close = ["small", "red", "circle"], [at(20, 20), at(21, 20), at(20, 22)]
    assert colours(annotate(gray(96, 96), words, close)) == [PALETTE[0]]
    assert colours(annotate(gray(96, 96), words, close, merge=0)) == list(PALETTE[:3])
    assert colours(annotate(gray(96, 96), words, [close[0], None, close[2]])) == list(PALETTE[:2])
    assert colours(annotate(gray(96, 96), words, [close[0], at(60, 60), close[2]])) == list(PALETTE[:3])


def test_a_phrase_is_marked_where_its_last_word_is_and_no_chain_drifts() -> None:
    boxes = [np.asarray([10.0, 10, 40, 40]), np.asarray([10.0, 10, 40, 60])]
    page = annotate(gray(96, 96), ["red", "circle"], [at(20, 20), at(22, 20)], boxes=boxes)
    edges = [
        np.abs(page[PAD + y - 3 : PAD + y + 4, PAD + 300].astype(int) - PALETTE[0]).sum(-1).min() for y in (400, 600)
    ]
    assert edges[0] > 100 and edges[1] < 30
    steps = [at(20 + 3 * k, 20) for k in range(8)]
    assert len(colours(annotate(gray(96, 96), list("abcdefgh"), steps))) == 4


def test_boxes_are_outlined_and_masks_are_tinted() -> None:
    mask = np.zeros((96, 96), bool)
    mask[60:80, 10:40] = True
    box = np.asarray([50.0, 10, 90, 40])
    page = annotate(gray(96, 96), ["one", "two"], [at(70, 25), at(25, 70)], boxes=[box, None], masks=[None, mask])
    picture = page[PAD : PAD + 960, PAD : PAD + 960].astype(int)
    for x, y in ((500, 150), (900, 150), (560, 100), (560, 400)):
        assert (np.abs(picture[y - 4 : y + 5, x - 4 : x + 5] - PALETTE[0]).sum(-1) < 30).any()
    tinted, plain = picture[780, 120], picture[840, 120]
    assert plain.tolist() == [200] * 3
    np.testing.assert_allclose(tinted, 200 + (np.asarray(PALETTE[1]) - 200) * 115 / 255, atol=2)


def test_a_path_of_points_is_drawn() -> None:
    path = np.asarray([[10.0, 10], [80, 10], [80, 80], [10, 80]])
    page = annotate(gray(96, 96), ["around"], [path])
    assert np.abs(page[PAD + 95 : PAD + 106, PAD + 300].astype(int) - PALETTE[0]).sum(-1).min() < 60
    assert page[PAD + 450, PAD + 450].tolist() == list(PALETTE[0]), "the mark is at the mean"


def test_places_outside_are_marked_on_the_border() -> None:
    page = annotate(gray(96, 96), ["out"], [at(500, 48)])
    # Off the middle row, where the leader runs.
    assert page[PAD + 476, PAD + 957].tolist() == list(PALETTE[0])
    assert page[PAD + 480, PAD + 970].tolist() == list(PAGE)


@pytest.mark.parametrize("side", [300, 960])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (40, 900), (900, 40), (2000, 3000)])
def test_any_size_of_picture_is_legible_and_keeps_its_margins(size: tuple[int, int], side: int) -> None:
    words = ["a"] * 30 + ["extraordinarily-long-" * 12, "end"]
    height, width = size
    places = [at(width * k / 32, height * k / 32) if k % 3 == 0 else None for k in range(32)]
    page = annotate(
        gray(*size), words, places, title="A title that is a good deal longer than the picture is " * 3, side=side
    )
    assert side * 0.6 <= page.shape[1] <= side + 2 * 25 and page.shape[0] <= side * 4
    for edge in (page[:5], page[-5:], page[:, :5], page[:, -5:]):
        assert (edge == PAGE).all()


def test_labels_neither_overlap_nor_leave_the_picture() -> None:
    rng = np.random.default_rng(0)
    for count in (3, 8, 14):
        dots = [(float(x), float(y)) for x, y in rng.uniform(50, 1870, (count, 2))]
        labels = draw._place_labels(dots, [f"red circle {k}" for k in range(count)], (1920, 1920), 50)
        for (a, _), (b, _) in itertools.combinations(labels, 2):
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
        for (rectangle, _), dot in zip(labels, dots, strict=True):
            assert rectangle[0] >= 0 and rectangle[1] >= 0 and rectangle[2] <= 1920 and rectangle[3] <= 1920
            assert not (rectangle[0] < dot[0] < rectangle[2] and rectangle[1] < dot[1] < rectangle[3])
            assert draw._distance(dot, rectangle) < 50 * 10


def test_labels_of_dots_on_one_spot_are_parted() -> None:
    labels = draw._place_labels([(500.0, 500.0)] * 6, ["word"] * 6, (1000, 1000), 40)
    for (a, _), (b, _) in itertools.combinations(labels, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_labels_keep_off_rings_and_small_boxes() -> None:
    free, _ = draw._place_labels([(500.0, 500.0)], ["word"], (1000, 1000), 40)[0]
    ring = ((free[0] + free[2]) / 2, (free[1] + free[3]) / 2)
    kept, _ = draw._place_labels([(500.0, 500.0)], ["word"], (1000, 1000), 40, rings=[ring])[0]
    assert draw._distance(ring, kept) > 0
    small = (440.0, 440.0, 560.0, 560.0)
    kept, _ = draw._place_labels([(500.0, 500.0)], ["word"], (1000, 1000), 40, boxes=[small])[0]
    assert draw._share(kept, small, 0) == 0


def test_crossing_leaders_are_seen() -> None:
    assert draw._crosses((0, 0), (9, 9, 11, 11), (10, 0), (-1, 9, 1, 11))
    assert not draw._crosses((0, 0), (-1, 9, 1, 11), (10, 0), (9, 9, 11, 11))


def test_comparison_shows_disc_ring_and_the_line_between() -> None:
    page = comparison(gray(96, 96), ["dog"], [at(20, 48)], [at(80, 48)])
    row = page[PAD + 480].astype(int)
    assert row[PAD + 200].tolist() == list(PALETTE[0])
    assert row[PAD + 800].tolist() != list(PALETTE[0]), "a ring is open, apart from the line that ends in it"
    near = np.abs(row - PALETTE[0]).sum(-1) < 60
    assert near[PAD + 200 : PAD + 790].mean() > 0.6
    ring = page[PAD + 465 : PAD + 496, PAD + 785 : PAD + 816].astype(int)
    assert (np.abs(ring - PALETTE[0]).sum(-1) < 60).mean() > 0.1


def test_comparison_with_one_of_both_places() -> None:
    words = ["dog", "cat", "sky"]
    page = comparison(gray(96, 96), words, [at(20, 20), None, None], [None, at(70, 70), None])
    inside = page[PAD : PAD + 960, PAD : PAD + 960]
    assert colours(inside) == [PALETTE[0]] and has(inside, GRAY)
    assert (inside[694:707, 694:707] == GRAY).all(-1).mean() < 0.5, "a ring is open"


def test_edges_are_soft() -> None:
    page = annotate(gray(96, 96), ["dog"], [at(48, 48)])
    around = page[PAD + 470 : PAD + 491, PAD + 470 : PAD + 480].reshape(-1, 3)
    assert len(np.unique(around, axis=0)) > 6


@pytest.mark.parametrize("word", ["café", "½", "Straße", "emoji\N{DOG FACE}", "日本", "a\nb", "", "  ", "e\u0301"])
def test_any_letters(word: str) -> None:
    page = annotate(gray(50, 50), [word, "end"], [at(25, 25), None], title=word)
    assert page.shape[1] == 960 + 2 * PAD


def test_common_letters_have_glyphs() -> None:
    for character in "abcxyzABC.,!?éüßñ½":
        assert any(draw._has(font, character) for font in draw._fonts(20)), character
    assert not draw._has(draw._fonts(20)[0], "\ufffe")


def test_sheet_keeps_every_pixel() -> None:
    pictures = [gray(20, 30, 10), gray(40, 20, 60), gray(10, 10, 120)]
    page = np.asarray(draw.sheet([PIL.Image.fromarray(picture) for picture in pictures], 2, gap=4))
    assert page.shape == (4 + 40 + 4 + 10 + 4, 4 + 30 + 4 + 30 + 4, 3)
    np.testing.assert_array_equal(page[4:24, 4:34], pictures[0])
    np.testing.assert_array_equal(page[4:44, 43:63], pictures[1])
    np.testing.assert_array_equal(page[48:58, 14:24], pictures[2])
    assert (page == PAGE).all(-1).sum() == page.shape[0] * page.shape[1] - 600 - 800 - 100
    assert draw.sheet([PIL.Image.fromarray(pictures[0])], 5, gap=0).size == (30, 20)


def test_misuse_is_named() -> None:
    image = gray(20, 20)
    with pytest.raises(ValueError, match="length of points is 1, expected 2"):
        annotate(image, ["a", "b"], [None])
    with pytest.raises(ValueError, match=r"points\[0\] has shape \[2\], expected \[P, 2\]"):
        annotate(image, ["a"], [np.zeros(2)])
    with pytest.raises(ValueError, match=r"boxes\[0\] has shape \[3\], expected \[4\]"):
        annotate(image, ["a"], [at(1, 1)], boxes=[np.zeros(3)])
    with pytest.raises(ValueError, match=r"masks\[0\] has shape \[5, 5\], expected \[20, 20\]"):
        annotate(image, ["a"], [at(1, 1)], masks=[np.zeros((5, 5))])
    with pytest.raises(ValueError, match="expected finite numbers"):
        annotate(image, ["a"], [at(np.nan, 1)])
    with pytest.raises(ValueError, match=r"image is float64\[2, 2\]"):
        annotate(np.zeros((2, 2)), [], [])
    with pytest.raises(ValueError, match="sheet is 0 pictures in 2 columns"):
        draw.sheet([], 2)
