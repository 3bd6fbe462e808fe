"""Answers as texts: what counts as the same, and how many people must agree."""

import itertools

import numpy as np
import pytest

from pixel_align.evaluation import answers


@pytest.mark.parametrize(
    ("one", "other", "exact", "loose"),
    [
        ("two", " Two. ", True, True),
        ("two", "2", False, True),
        ("a red  Circle", "a red circle", True, True),
        ("the red circle", "red circle", False, True),
        ("red circle", "circle red", False, False),
        ("it's", "its", False, True),
        ("don\u2019t know", "don't know", False, True),
        ("3.5", "35", False, False),
        ("1,000", "1000", False, False),
        ("12:30", "12 30", False, False),
        ("-3", "3", False, False),
        (".5", "5", False, False),
        ("5%", "5", False, False),
        ("#(2/3)", "#2/3", False, False),
        ("(2/3)", "2/3!", False, True),
        ("yes, sir", "yes sir", False, True),
        ("3. 5", "3 5", False, True),
        ("t-shirt", "t shirt", False, True),
        ("none", "0", False, True),
        ("twenty", "20", False, False),
        ("\u00c9t\u00e9", "\u00e9t\u00e9", True, True),
        ("", "...", True, True),
        ("no", "", False, False),
        ("the", "", False, True),
    ],
)
def test_what_counts_as_the_same(one: str, other: str, exact: bool, loose: bool) -> None:
    for answer, text in ((one, other), (other, one)):
        found = answers.row({"answers": [answer]}, {"text": text})
        assert (bool(found["exact"]), bool(found["VQA_style"])) == (exact, loose)


def test_agreement_is_that_of_vqa_with_ten_people() -> None:
    """Beside a count by hand: each person left out, min(matches of the other nine / 3, 1), averaged."""
    for same in range(11):
        said = ["two"] * same + [f"word {chr(97 + k)}" for k in range(10 - same)]
        expected = np.mean([min(sum(word == "two" for j, word in enumerate(said) if j != k) / 3, 1) for k in range(10)])
        found = answers.row({"answers": said}, {"text": "2"})
        assert found["VQA_style"] == pytest.approx(expected)
        assert found["exact"] == 0 == answers.row({"answers": said}, {"text": "3"})["VQA_style"]
        assert answers.row({"answers": said}, {"text": "Two"})["exact"] == (same > 0)
    assert found["VQA_style"] == 1


def test_rows_may_come_in_any_order_and_from_anywhere() -> None:
    cases = [(["two"], "two"), (["two"], "2"), (["a", "b"], "b"), (["yes"], "no")]
    rows = [answers.row({"answers": told}, {"text": text}) for told, text in cases]
    figures = [answers.summary(order) for order in itertools.permutations(rows)]
    assert all(one == pytest.approx(figures[0]) for one in figures)
    assert figures[0] == {"exact": 0.5, "VQA_style": pytest.approx((1 + 1 + 1 / 6 + 0) / 4)}
    assert np.isnan(list(answers.summary([]).values())).all()


@pytest.mark.parametrize("told", [[], "two"])
def test_a_question_without_a_list_of_answers_is_refused(told: object) -> None:
    with pytest.raises(ValueError, match="answers is .*, expected a list with one or more"):
        answers.row({"answers": told}, {"text": "two"})
