"""Answers to questions, compared as texts.

A target has `answers`, one or more that are right, as people gave them; a prediction has `text`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation.rows import Row, column, mean

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
_SIGNS = r"""[;:/\[\](){}"=+\\_<>@`,?!]"""
_PUNCTUATION = re.compile(rf"[-.](?!\d)|{_SIGNS}(?!\d)|(?<!\d){_SIGNS}")
_ENOUGH = 3  # people who agree make an answer right


def plain(text: str) -> str:
    """Without case, quotes around it and punctuation behind it; spaces inside are one each."""
    return " ".join(text.lower().split()).lstrip(" \"'").rstrip(" .,;:!?\"'")


def bare(text: str) -> str:
    """Without case, articles and punctuation, numbers from "none" to "ten" as digits: "The two dogs." is "2 dogs".

    Apostrophes join ("don't" is "dont"); what is part of a number stays ("-3", ".5", "1,000", "12:30", "5%").
    """
    text = re.sub(r"['\u2019]", "", text.lower())
    text = _PUNCTUATION.sub(" ", text)
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES)


def row(target: Mapping[str, Any], prediction: Mapping[str, Any]) -> Row:
    """One question.

    Args:
      target: `answers`, texts, at least one. prediction: `text`.

    Returns:
      exact: Float64[1], 1 where the text is one of the answers, both as `plain` has them.
      VQA_style: Float64[1], how far people agree with the text, all as `bare` has them: with each of K answers left out
        in turn, the share of three that is met by the others, at most 1; the mean of the K. With one answer: 1 or 0.
    """
    answers = target["answers"]
    if isinstance(answers, str) or not len(answers):
        raise ValueError(f"answers is {answers!r}, expected a list with one or more. Correct the target.")
    agree = np.asarray([bare(answer) == bare(prediction["text"]) for answer in answers], np.float64)
    if len(agree) > 1:
        agree = np.minimum((agree.sum() - agree) / _ENOUGH, 1)
    return {
        "exact": np.array([any(plain(answer) == plain(prediction["text"]) for answer in answers)], np.float64),
        "VQA_style": np.array([agree.mean()]),
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """The means over all questions; NaN where there are none."""
    return {key: mean(column(rows, key)) for key in ("exact", "VQA_style")}
