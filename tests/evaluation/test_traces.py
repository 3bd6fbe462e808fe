"""Metrics of traces: figures worked out by hand, phrases that describe one object, controls that must be worse."""

import math
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation.traces import (
    READERS,
    center_reader,
    mean_reader,
    named_objects,
    row,
    score,
    summary,
    swapped,
    truth,
)
from pixel_align.text_alignment import split_words

NAMES = ["small red circle", "large red circle", "small blue square"]
BOXES = [[0, 0, 20, 20], [100, 0, 180, 80], [40, 60, 60, 80]]
ALL_NAMES = [*NAMES, "small green star", "dining table"]


def words_and_spans(text: str) -> tuple[list[str], np.ndarray]:
    spans = np.array(split_words(text)).reshape(-1, 2)
    return [text[a:b] for a, b in spans], spans


def scene(text: str, **changes: Any) -> dict[str, Any]:
    """A target with named objects on a picture of 100 x 200 (height x width); no word has a trace."""
    words, spans = words_and_spans(text)
    return {
        "text": text,
        "word_spans": spans,
        "word_boxes": np.zeros((len(words), 4)),
        "word_centers": np.zeros((len(words), 2)),
        "word_located": np.zeros(len(words), bool),
        "object_boxes": np.array(BOXES, float),
        "object_names": NAMES,
        "size": (100, 200),
        **changes,
    }


def photograph(text: str, located: list[bool]) -> dict[str, Any]:
    """A target without objects: word k's trace is a box of 10 around (10 k + 5, 50)."""
    count = len(located)
    centers = np.stack([10.0 * np.arange(count) + 5, np.full(count, 50.0)], -1)
    return scene(
        text,
        word_boxes=np.concatenate([centers - 5, centers + 5], -1),
        word_centers=centers,
        word_located=np.array(located),
        object_boxes=np.zeros((0, 4)),
        object_names=[],
    )


def says(target: dict[str, Any], text: str, points: list[list[float]], own: list[list[float]]) -> dict[str, Any]:
    """A prediction: points for the target's words, a text and points for its words."""
    return {
        "points": np.array(points, float).reshape(-1, 1, 2),
        "text": text,
        "word_spans": words_and_spans(text)[1],
        "word_points": np.array(own, float).reshape(-1, 1, 2),
    }


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("there is a small red circle", [-1, -1, -1, 0, 0, 0]),
        ("a Large RED circle and a square", [-1, 1, 1, 1, -1, -1, 2]),
        ("a red circle", [-1, -1, -1]),  # two of them
        ("the circle that is large", [-1, -1, -1, -1, 1]),
        ("small blue square small red circle", [2, 2, 2, 0, 0, 0]),  # side by side
        ("a blue circle", [-1, -1, -1]),  # no such thing, and not any circle
        ("green star", [-1, -1]),  # a thing of the world, not of this picture
        ("circle small", [-1, -1]),
        ("blue", [2]),
        ("", []),
    ],
)
def test_a_phrase_describes_one_object_or_none(text: str, objects: list[int]) -> None:
    assert named_objects(text.split(), NAMES, ALL_NAMES).tolist() == objects


def test_names_of_the_whole_set_make_a_phrase_of_words_that_nothing_here_has() -> None:
    names = ["large red circle"]
    assert named_objects(["green", "circle"], names).tolist() == [-1, 0]
    assert named_objects(["green", "circle"], names, ["small green star"]).tolist() == [-1, -1]


def test_a_word_inside_other_names_does_not_end_a_phrase() -> None:
    names = ["bear", "teddy bear", "bear trap"]
    assert named_objects(["teddy", "bear"], names).tolist() == [1, 1]
    assert named_objects(["bear", "trap"], names).tolist() == [2, 2]


def test_figures_by_hand() -> None:
    target = scene("a small red circle and a blue square")
    # Centres: (10, 10) and (50, 70). The longer side is 200.
    points = [[0, 0], [10, 10], [10, 30], [10, 10], [0, 0], [0, 0], [50, 70], [70, 70]]
    prediction = says(target, "green star red square large circle", points, [[0, 0]] * 4 + [[140, 40], [100, 40]])
    result = summary([row(target, prediction, ALL_NAMES)])
    assert result["point_distance"] == pytest.approx((0 + 20 + 0 + 0 + 20) / 5 / 200)
    assert result["inside_box"] == pytest.approx(3 / 5)
    # Its own words: six should mean something, two found what: "large circle", at (140, 40).
    assert result["matched_words"] == pytest.approx(2 / 6)
    assert result["point_distance_free"] == pytest.approx((0 + 40) / 2 / 200)
    assert result["inside_box_free"] == pytest.approx(2 / 6)


def test_without_objects_the_trace_is_the_truth() -> None:
    target = photograph("a dog near trees", [False, True, False, True])
    prediction = says(
        target, "one tree and cats", [[99, 99], [15, 50], [99, 99], [35, 90]], [[9, 9], [35, 56], [0, 0], [0, 0]]
    )
    result = summary([row(target, prediction)])
    assert result["point_distance"] == pytest.approx(40 / 2 / 200) and result["inside_box"] == 0.5
    # Of the two words with a place the model's text has one, as "tree", 6 from the centre, outside the box.
    assert result["matched_words"] == 0.5
    assert result["point_distance_free"] == pytest.approx(6 / 200) and result["inside_box_free"] == 0.0


def test_several_points_of_a_word_count_by_their_mean() -> None:
    target = photograph("dog", [True])
    prediction = says(target, "dog", [[0, 0]], [[0, 0]]) | {"points": np.array([[[0.0, 40.0], [10.0, 60.0]]])}
    assert row(target, prediction)["distance"].tolist() == [0.0]


def test_figures_do_not_depend_on_how_rows_are_grouped() -> None:
    rng = np.random.default_rng(0)
    targets, predictions = [], []
    for text in ("a small red circle", "small blue square", "nothing"):
        target = scene(text)
        own = rng.uniform(0, 100, (len(text.split()), 2)).tolist()
        targets.append(target)
        predictions.append(says(target, text, rng.uniform(0, 100, (len(text.split()), 2)).tolist(), own))
    rows = [row(target, prediction, NAMES) for target, prediction in zip(targets, predictions, strict=True)]
    assert score(targets, predictions) == pytest.approx(summary(rows[::-1]))
    words = np.concatenate([one["distance"] for one in rows])
    assert summary(rows)["point_distance"] == pytest.approx(words.mean()) and len(words) == 6


def test_nothing_said_is_nothing_matched() -> None:
    target = scene("a small red circle")
    silent = says(target, "", [[10, 10]] * 4, [])
    result = summary([row(target, silent, ALL_NAMES)])
    assert result["matched_words"] == 0.0 and math.isnan(result["point_distance_free"])
    assert result["point_distance"] == 0.0
    assert math.isnan(summary([])["point_distance"]) and summary([])["matched_words"] == 0.0
    spoken = photograph("a dog", [True, True])
    result = summary([row(spoken, says(spoken, "", [[5, 50], [15, 50]], []))])
    assert result["matched_words"] == 0.0 and result["inside_box_free"] == 0.0


def perfect(target: dict[str, Any]) -> dict[str, Any]:
    means = truth(target, ALL_NAMES)
    return says(target, target["text"], means.centers.tolist(), means.centers.tolist())


@pytest.mark.parametrize(
    "target",
    [
        scene("a small red circle and a large red circle and a small blue square"),
        photograph("dog cat tree sky", [True, True, False, True]),
    ],
)
def test_a_perfect_prediction_beats_every_control(target: dict[str, Any]) -> None:
    best = perfect(target)
    figures = summary([row(target, best, ALL_NAMES)])
    assert figures == {
        "point_distance": 0.0,
        "inside_box": 1.0,
        "point_distance_free": 0.0,
        "inside_box_free": 1.0,
        "matched_words": 1.0,
    }
    controls = [swapped(target, best, ALL_NAMES), *(reader(target, ALL_NAMES) for reader in READERS.values())]
    for control in controls:
        worse = summary([row(target, control, ALL_NAMES)])
        assert worse["point_distance"] > 0.01 and worse["point_distance_free"] > 0.01
        assert worse["matched_words"] == 1.0


def test_swapping_moves_scored_words_among_themselves() -> None:
    target = photograph("a b c d e", [False, True, True, True, True])
    prediction = perfect(target)
    before = np.array(prediction["points"])
    control = swapped(target, prediction)
    np.testing.assert_array_equal(prediction["points"], before)  # pure
    np.testing.assert_array_equal(control["points"], before[[0, 3, 4, 1, 2]])
    np.testing.assert_array_equal(control["word_points"], before[[0, 3, 4, 1, 2]])
    assert control["text"] == prediction["text"]


def test_readers_without_eyes() -> None:
    target = scene("a small red circle")
    assert np.unique(center_reader(target)["points"].reshape(-1, 2), axis=0).tolist() == [[100.0, 50.0]]
    mean = np.mean([[10, 10], [140, 40], [50, 70]], axis=0)
    np.testing.assert_allclose(mean_reader(target)["points"], np.broadcast_to(mean, (4, 1, 2)))
    traced = photograph("a dog near trees", [False, True, False, True])
    np.testing.assert_allclose(mean_reader(traced)["points"][0, 0], [25, 50])
    nowhere = photograph("a dog", [False, False])
    np.testing.assert_allclose(mean_reader(nowhere)["points"][0, 0], [100, 50])


def test_a_missing_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="number of predictions is 0, expected 1, one per target"):
        score([scene("a")], [])


def test_without_a_prediction_every_word_is_outside_and_as_far_away_as_can_be() -> None:
    target = photograph("a dog near trees", [False, True, False, True])
    got = row(target, {})
    # From (15, 50) and (35, 50) the farthest corners of 200 x 100 are those on the right.
    np.testing.assert_allclose(got["distance"], [math.hypot(185, 50) / 200, math.hypot(165, 50) / 200])
    assert not got["inside"].any() and got["bearing"].tolist() == [2] and not len(got["distance_free"])
    figures = summary([got])
    assert figures["inside_box"] == figures["matched_words"] == figures["inside_box_free"] == 0.0
    assert summary([row(scene("a small red circle"), {})])["inside_box"] == 0.0
    for point in ([0.0, 0], [200, 100], [200, 0], [90, 30]):
        said = {"points": np.tile(point, (4, 1, 1)), "text": "", "word_spans": [], "word_points": []}
        assert (row(target, said)["distance"] <= got["distance"]).all()


@pytest.mark.parametrize(
    ("changes", "prediction", "said"),
    [
        ({}, {"points": [[[1, 2]], [[math.nan, 2]]]}, r"points of word 1 is \[\[nan, 2.0\]\], expected finite numbers"),
        ({}, {"points": [[[1, 2]]]}, r"shape of points is \(1, 1, 2\), expected \[2, P, 2\]"),
        ({}, {"word_points": [[[math.inf, 2]]]}, "word_points of word 0 is"),
        ({}, {"word_points": []}, r"shape of word_points is \(0,\), expected \[1, P, 2\]"),
        ({"word_boxes": [[0, 0, 1, 1], [9, 0, 1, 1]]}, {}, r"box 1 of word_boxes of the target is \[9.0"),
        ({"object_boxes": [[0, 0, math.nan, 1]]}, {}, "box 0 of object_boxes of the target is"),
    ],
)
def test_points_and_boxes_that_are_none_are_refused(changes: Any, prediction: Any, said: str) -> None:
    good = {"points": np.ones((2, 1, 2)), "text": "a", "word_spans": [[0, 1]], "word_points": np.ones((1, 1, 2))}
    with pytest.raises(ValueError, match=said):
        row(photograph("a dog", [False, True]) | changes, good | prediction)


def test_a_prediction_of_the_targets_own_boxes_is_perfect() -> None:
    # A path that lingers at one end of its box: what is taught is the box.
    box = np.array([[10.0, 20.0, 60.0, 40.0]])
    target = {
        "text": "dog",
        "word_spans": np.array([[0, 3]]),
        "word_boxes": box,
        "word_located": np.array([True]),
        "object_boxes": np.zeros((0, 4)),
        "object_names": [],
        "size": (100, 100),
    }
    points = box.reshape(1, 2, 2)
    said = {"points": points, "text": "dog", "word_spans": np.array([[0, 3]]), "word_points": points}
    assert score([target], [said])["point_distance"] == 0
