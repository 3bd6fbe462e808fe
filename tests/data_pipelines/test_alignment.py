"""Places of utterances and words: nothing extrapolated, nothing borrowed, and the published rule as it is."""

import itertools

import numpy as np
import pytest

from data_pipelines.alignment import (
    NUM_POINTS,
    Utterance,
    by_proportion,
    by_text,
    path_within,
    utterance_places,
    word_spans,
)


def stroke(*points: tuple[float, float, float]) -> np.ndarray:
    return np.array(points, float).reshape(-1, 3)


LINE = stroke((0.1, 0.2, 1.0), (0.3, 0.4, 2.0), (0.5, 0.6, 3.0))  # x = t / 5 - 0.1, y = x + 0.1


def places_of(start: float, end: float, *strokes: np.ndarray):
    return utterance_places([Utterance("word", start, end)], strokes)


def test_points_are_uniform_in_time_and_the_centre_is_their_average() -> None:
    places = places_of(1.0, 3.0, LINE)
    times = np.linspace(1.0, 3.0, NUM_POINTS)
    np.testing.assert_allclose(places.points[0], np.stack([times / 5 - 0.1, times / 5], -1), atol=1e-6)
    np.testing.assert_allclose(places.centers[0], [0.3, 0.4], atol=1e-6)
    np.testing.assert_allclose(places.boxes[0], [0.1, 0.2, 0.5, 0.6], atol=1e-6)


def test_the_centre_weighs_time_not_recorded_points() -> None:
    # Ten points in the first moment, then a second of rest elsewhere.
    quick = [(0.1, 0.1, 0.001 * i) for i in range(10)]
    places = places_of(0.0, 1.009, stroke(*quick, (0.9, 0.9, 0.01), (0.9, 0.9, 1.009)))
    assert places.centers[0, 0] > 0.88


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.5), (2.5, 9.0), (-5.0, 99.0)])
def test_nothing_is_extrapolated(start: float, end: float) -> None:
    places = places_of(start, end, LINE)
    first, last = max(start, 1.0), min(end, 3.0)
    np.testing.assert_allclose(places.points[0, [0, -1], 0], [first / 5 - 0.1, last / 5 - 0.1], atol=1e-6)
    np.testing.assert_allclose(places.boxes[0, [0, 2]], [first / 5 - 0.1, last / 5 - 0.1], atol=1e-6)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.9), (3.1, 4.0), (2.0, 2.0), (2.5, 1.5), (0.0, 1.0), (3.0, 4.0)])
def test_a_span_that_holds_no_recorded_path_has_no_place(start: float, end: float) -> None:
    places = places_of(start, end, LINE)
    assert not places.valid[0]
    assert not places.points.any() and not places.boxes.any() and not places.centers.any()


def test_travel_between_strokes_is_no_trace() -> None:
    left = stroke((0.1, 0.1, 0.0), (0.1, 0.1, 1.0))
    right = stroke((0.9, 0.9, 3.0), (0.9, 0.9, 4.0))
    places = places_of(0.0, 4.0, right, left)  # strokes in any order
    assert set(np.round(places.points[0, :, 0], 4).tolist()) == {np.float32(0.1).round(4), np.float32(0.9).round(4)}
    np.testing.assert_allclose(places.centers[0], [0.5, 0.5], atol=1e-6)
    assert not places_of(1.5, 2.5, left, right).valid[0]


def test_empty_traces_and_no_utterances() -> None:
    assert not places_of(0.0, 1.0).valid[0]
    assert not places_of(0.0, 1.0, stroke()).valid[0]
    assert utterance_places([], [LINE]).points.shape == (0, NUM_POINTS, 2)


def test_times_out_of_order_are_put_in_order() -> None:
    shuffled = LINE[[2, 0, 1]]
    for got, expected in zip(
        vars(places_of(1.0, 3.0, shuffled)).values(), vars(places_of(1.0, 3.0, LINE)).values(), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_points_outside_the_picture_move_to_its_edge() -> None:
    places = places_of(0.0, 1.0, stroke((-0.2, 0.5, 0.0), (0.5, 0.6, 0.5), (0.5, 1.4, 1.0)))
    np.testing.assert_allclose(places.boxes[0], [0.0, 0.5, 0.5, 1.0])
    assert places.points.min() >= 0 and places.points.max() <= 1
    away = places_of(0.0, 1.0, stroke((1.2, 0.5, 0.0), (1.4, 0.5, 1.0)))
    assert not away.valid[0]  # the whole path is beyond the picture


def test_a_stroke_of_one_moment() -> None:
    moment = stroke((0.4, 0.6, 0.5))
    places = places_of(0.0, 1.0, moment)
    np.testing.assert_allclose(places.points[0], np.tile([0.4, 0.6], (NUM_POINTS, 1)), atol=1e-6)
    np.testing.assert_allclose(places.centers[0], [0.4, 0.6], atol=1e-6)
    # On the border of two spans it belongs to the one that begins.
    assert not places_of(0.0, 0.5, moment).valid[0]
    assert places_of(0.5, 1.0, moment).valid[0]


def test_a_span_between_two_points_of_one_stroke_is_on_the_path() -> None:
    places = places_of(1.4, 1.6, LINE)
    np.testing.assert_allclose(places.boxes[0], [0.18, 0.28, 0.22, 0.32], atol=1e-6)


def test_spans_share_out_the_path_without_gap_or_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        times = np.sort(rng.uniform(0, 10, 30))
        walk = np.concatenate([rng.uniform(0.2, 0.8, (30, 2)), times[:, None]], 1)
        strokes = [walk[:12], walk[12:20], walk[20:]]
        cuts = [-1.0, *np.sort(rng.uniform(0, 10, 6)), 11.0]
        parts = [path_within(strokes, a, b) for a, b in itertools.pairwise(cuts)]
        recorded = sum(stroke[-1, 2] - stroke[0, 2] for stroke in strokes)
        assert sum(part[-1, 2] - part[0, 2] for span in parts for part in span) == pytest.approx(recorded)
        places = utterance_places([Utterance("", a, b) for a, b in itertools.pairwise(cuts)], strokes)
        low, high = places.boxes[:, None, :2] - 1e-6, places.boxes[:, None, 2:] + 1e-6
        assert ((places.points >= low) & (places.points <= high))[places.valid].all()
        assert ((places.centers[:, None] >= low) & (places.centers[:, None] <= high))[places.valid].all()


def spoken(*texts: str) -> list[Utterance]:
    return [Utterance(text, float(i), i + 1.0) for i, text in enumerate(texts)]


def test_words_take_the_utterance_that_spoke_them() -> None:
    caption = "In this image, I can see a café and a ½-eaten pie."
    utterances = spoken("in this image i can see", "a cafe and", "a ½ eaten pie")
    assert by_text(caption, utterances).tolist() == [0] * 6 + [1] * 3 + [2] * 4


def test_a_word_dropped_inside_an_utterance_stays_in_it_and_one_between_two_has_none() -> None:
    caption = "a small red ball on green grass"
    assert by_text(caption, spoken("a small ball", "on grass")).tolist() == [0, 0, 0, 0, 1, 1, 1]
    # "on" fell out where the two meet: neither span is known to hold it.
    assert by_text(caption, spoken("a small red ball", "green grass")).tolist() == [0, 0, 0, 0, -1, 1, 1]
    # At the ends nothing brackets a word.
    assert by_text("well a ball then", spoken("a ball")).tolist() == [-1, 0, 0, -1]


def test_words_without_speech_have_none() -> None:
    assert by_text("a ball", []).tolist() == [-1, -1]
    assert by_text("😀 ...", spoken("a ball")).tolist() == []
    assert by_text("a ball", spoken("", "  ", "?")).tolist() == [-1, -1]


def test_spans_count_characters_not_bytes() -> None:
    caption = "½  café 😀 dog"
    assert [caption[a:b] for a, b in word_spans(caption)] == ["½", "café", "dog"]
    assert word_spans("").shape == (0, 2)


def test_the_published_rule_leans_forward() -> None:
    # One word per utterance: the first word takes the second's place, the last its own.
    assert by_proportion(5, np.ones(5, bool)).tolist() == [1, 2, 2, 3, 4]
    # Only utterances with a place take part, and everything borrows from them.
    assert by_proportion(4, np.array([False, False, True, False])).tolist() == [2, 2, 2, 2]
    assert by_proportion(3, np.zeros(4, bool)).tolist() == [-1, -1, -1]
    assert by_proportion(0, np.ones(2, bool)).tolist() == []
