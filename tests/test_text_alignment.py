"""Words and their partners: spans are those of the text itself, alignments never cross, a bad transcript moves none."""

import itertools
import random
from collections.abc import Sequence

import pytest

from pixel_align.text_alignment import align, normalize_word, pair_misheard, similarity, split_words, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red  ball", ["a", "red", "ball"]),
        (" leading, and trailing. ", ["leading", "and", "trailing"]),
        ("the café's door", ["the", "café's", "door"]),
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),  # the accent as a code point of its own
        ("½ of it", ["½", "of", "it"]),
        ("a cat 😀 and\u00a0a dog", ["a", "cat", "and", "a", "dog"]),
        ("the ground.There", ["the", "ground", "There"]),
        ("T-shirt", ["T", "shirt"]),
        ("the boys' 'quoted'", ["the", "boys", "quoted"]),
        ("don’t", ["don’t"]),
        ("", []),
        ("... !", []),
    ],
)
def test_words_are_spans_of_the_text_itself(text: str, words: list[str]) -> None:
    assert words_of(text) == words
    assert [text[start:end] for start, end in split_words(text)] == words


@pytest.mark.parametrize(("first", "second"), [("Café", "cafe"), ("don’t", "DONT"), ("ﬁre", "fire"), ("e\u0301", "é")])
def test_spellings_of_one_word_are_alike(first: str, second: str) -> None:
    assert normalize_word(first) == normalize_word(second)
    assert similarity(first, second) == 1.0


def _edit_distance(first: str, second: str) -> int:
    if not first or not second:
        return len(first) + len(second)
    return min(
        _edit_distance(first[1:], second) + 1,
        _edit_distance(first, second[1:]) + 1,
        _edit_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_similarity_is_the_definition() -> None:
    words = ["", "a", "ab", "ba", "abc", "cab", "bbca", "cabb"]
    for first, second in itertools.product(words[1:], words[1:]):
        expected = 1 - _edit_distance(first, second) / max(len(first), len(second))
        assert similarity(first, second) == pytest.approx(expected)


def _value(first: Sequence[str], second: Sequence[str], pairs: Sequence[tuple[int, int]]) -> float:
    """What an alignment is worth: likenesses, and a tenth for each pair that directly follows another."""
    likeness = sum(similarity(first[i], second[j]) for i, j in pairs)
    return likeness + 0.1 * sum(a + 1 == c and b + 1 == d for (a, b), (c, d) in itertools.pairwise(pairs))


def _best_value(first: Sequence[str], second: Sequence[str]) -> float:
    """The best value by trying everything."""
    best = 0.0
    for size in range(1, min(len(first), len(second)) + 1):
        for rows in itertools.combinations(range(len(first)), size):
            for columns in itertools.combinations(range(len(second)), size):
                pairs = list(zip(rows, columns, strict=True))
                if all(similarity(first[i], second[j]) >= 0.6 for i, j in pairs):
                    best = max(best, _value(first, second, pairs))
    return best


def test_alignment_is_the_best_and_never_crosses() -> None:
    rng = random.Random(0)
    words = ["the", "then", "ball", "bald", "skateboarding", "skateboardings"]
    for _ in range(300):
        first = rng.choices(words, k=rng.randint(0, 5))
        second = rng.choices(words, k=rng.randint(0, 5))
        pairs = align(first, second)
        for (i, j), (next_i, next_j) in itertools.pairwise(pairs):
            assert i < next_i and j < next_j
        # Texts of equal words are not searched: one against one is the best there is.
        assert _value(first, second, pairs) == pytest.approx(_best_value(first, second))
        assert all(similarity(first[i], second[j]) >= 0.6 for i, j in pairs)


def test_equal_words_are_told_apart_by_what_stands_beside_them() -> None:
    assert align(words_of("the dog and the cat"), words_of("the cat")) == [(3, 0), (4, 1)]
    assert align(words_of("the dog and the cat"), words_of("the dog")) == [(0, 0), (1, 1)]
    assert align(words_of("dog the"), words_of("dog the and the")) == [(0, 0), (1, 1)]
    # A little less alike, but beside its neighbour.
    assert align(words_of("skateboarding man"), words_of("skateboarding skateboardings man")) == [(0, 1), (1, 2)]


def test_dropped_doubled_and_misheard_words_move_no_other() -> None:
    caption = words_of("In this picture I can see a small red ball on the green grass near a tree")
    spoken = words_of("in this this picture can see a small bread ball on the the greene grass near a tree")
    partner = dict(pair_misheard(align(caption, spoken), len(caption), len(spoken)))
    assert 3 not in partner  # "I" was dropped
    for i, j in partner.items():
        assert similarity(caption[i], spoken[j]) >= 0.5
    assert [caption[i] for i in range(len(caption)) if i not in partner] == ["I"]


def test_words_one_against_one_are_the_misheard_ones() -> None:
    first, second = words_of("a guy over the hill"), words_of("a sky over the hill")
    assert (1, 1) not in align(first, second)
    assert pair_misheard(align(first, second), 5, 5) == [(i, i) for i in range(5)]
    # Two against one: nothing says which.
    assert pair_misheard([(0, 0), (3, 2)], 4, 3) == [(0, 0), (3, 2)]
    # Also before the first and after the last pair.
    assert pair_misheard([(1, 1)], 3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert pair_misheard([], 0, 4) == []


def test_a_threshold_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_similarity is 0, expected a number in \(0, 1\]"):
        align([], [], min_similarity=0)
