"""Tokens of captions: the original's answers, what it is known for, hostile text."""

import time

import pytest

from pixel_align.evaluation.ptb_tokenizer import tokenize
from tests.goldens import captioning


def test_tokens_are_the_originals() -> None:
    golden = captioning.golden()["tokens"]
    assert len(golden) == 300
    assert {caption: tokenize(caption) for caption in golden} == golden


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dogs don't bark.", "a man 's dogs do n't bark"),
        ("Cannot, gonna; y'all 'tis", "can not gon na y' all 't is"),
        ('the 2 "big" (red) buses...', "the 2 big -lrb- red -rrb- buses"),  # brackets stay: they come in lower case
        ("well-known mother-in-law --- a — b", "well-known mother-in-law a b"),
        ("$5.50, 1,000 and 1 1/2 or ½", "$ 5.50 1,000 and 1\u00a01/2 or 1/2"),
        ("Mr. Smith of St. Louis, U.S., etc.", "mr. smith of st. louis u.s. etc."),
        ("No. 5 said no. Fig. 3, a fig. here", "no. 5 said no fig. 3 a fig here"),
        ("Plan A. The end. Plan A. the end", "plan a the end plan a. the end"),
        ("see http://a.b/c?d=1 or me@x.org, www.x.org.", "see http://a.b/c?d=1 or me@x.org, www.x.org"),
        ("he said!now what?! yes!!", "he said!now what ?! yes !!"),
        ("AT&T &amp; a/b w/o c_d", "at&t & a/b w/o c_d"),
        ("☃ stays 😀 goes", "☃ stays goes"),
        ("naïve café 日本語", "naïve café 日本語"),
        ("rock 'n' roll 'em '90s", "rock 'n' roll 'em '90s"),
        ("<b>bold</b> 3 < 5", "<b> bold </b> 3 < 5"),
        ("", ""),
        (" . , ! ? ' \" -- ", ""),
    ],
)
def test_known_decisions(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens


def test_line_breaks_are_spaces_and_captions_are_read_alone() -> None:
    breaks = "\n\r\v\f\x85\u2028\u2029"
    assert tokenize(breaks.join(("a dog", "a cat"))) == "a dog a cat"
    assert tokenize("1\n1/2") == tokenize("1 1/2") == "1\u00a01/2"
    # As the last of all captions, not as one before a caption that begins with "The".
    assert tokenize("plan A.") == "plan a."


def test_plain_words_stay_as_they_are() -> None:
    caption = "two small dogs are running on the beach near a red boat"
    assert tokenize(caption) == tokenize(caption.upper()) == tokenize(f"{caption.capitalize()}.") == caption


@pytest.mark.parametrize(
    "piece", ["a.", "=-", "'", "(", "a@", "1 ", "&a", "<a ", "http://", ".com", "\xad", "\ud800", "\0"]
)
def test_long_nonsense_is_read_in_time(piece: str) -> None:
    start = time.process_time()
    tokenize(piece * 1500)
    assert time.process_time() - start < 2
