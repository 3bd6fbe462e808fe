"""Which word of one text is which word of another: words found by their characters, matched by dynamic programming.

Two texts of the same speech never agree exactly: a transcript drops, doubles and mishears words, and a caption written
by hand has punctuation and corrections. `align` finds the pairs of words that belong together without ever crossing.
"""

import functools
import unicodedata
from collections.abc import Sequence

# Characters that belong to a word only between two of its letters: don't, the girls’ dress's.
_INNER = frozenset("'’ʼ")


def split_words(text: str) -> list[tuple[int, int]]:
    """Words of a text as spans `[start, end)` in characters (code points) of that very text.

    A word is a maximal run of letters, digits and combining marks, with single apostrophes inside it. Hyphens and all
    other characters separate: `T-shirt` is two words in every text, however a transcriber spelled it.
    """
    spans = []
    start = None
    for i, char in enumerate(text):
        inside = char.isalnum() or unicodedata.category(char)[0] == "M"
        if not inside and char in _INNER and start is not None and i + 1 < len(text):
            inside = text[i + 1].isalnum()
        if inside and start is None:
            start = i
        elif not inside and start is not None:
            spans.append((start, i))
            start = None
    if start is not None:
        spans.append((start, len(text)))
    return spans


def words_of(text: str) -> list[str]:
    """The words of a text, as written."""
    return [text[start:end] for start, end in split_words(text)]


@functools.lru_cache(maxsize=1 << 16)
def normalize_word(word: str) -> str:
    """A word without case, accents and apostrophes, in compatibility form: what two spellings have in common."""
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    plain = "".join(char for char in decomposed if unicodedata.category(char)[0] != "M" and char not in _INNER)
    return plain or word


@functools.lru_cache(maxsize=1 << 18)
def similarity(first: str, second: str) -> float:
    """Likeness of two words in [0, 1]: one minus the edit distance of their normal forms over the longer length."""
    first, second = normalize_word(first), normalize_word(second)
    if first == second:
        return 1.0
    longer, shorter = max(len(first), len(second)), min(len(first), len(second))
    if shorter == 0:
        return 0.0
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return 1.0 - row[-1] / longer


# What a pair earns on top of its likeness when it directly follows another pair. It decides between equal words:
# "the" of "the dog, the cat" belongs to the "the" that stands before "cat", not to any "the". Small enough that no
# number of followers in a text of ordinary length outweighs one exact pair.
_CONTIGUITY = 0.1


def align(first: Sequence[str], second: Sequence[str], *, min_similarity: float = 0.6) -> list[tuple[int, int]]:
    """Pairs `(i, j)` of words that are the same word, increasing in both, each word at most once.

    The alignment maximises the sum of likenesses over all pairs of likeness at least `min_similarity`, and among
    equals prefers pairs that follow each other directly. A word without a partner is in no pair. O(len * len).
    """
    if not 0.0 < min_similarity <= 1.0:
        raise ValueError(f"min_similarity is {min_similarity}, expected a number in (0, 1]. Give a likeness of words.")
    rows, columns = len(first), len(second)
    if rows == columns and all(normalize_word(a) == normalize_word(b) for a, b in zip(first, second, strict=True)):
        return [(i, i) for i in range(rows)]
    # best[i][j]: value of the best alignment of the first i and j words. paired[i][j]: the same when the last thing
    # that happened is the pair (i - 1, j - 1).
    minus = float("-inf")
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    paired = [[minus] * (columns + 1) for _ in range(rows + 1)]
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            likeness = similarity(a, b)
            if likeness >= min_similarity:
                follows = paired[i - 1][j - 1] + _CONTIGUITY
                paired[i][j] = likeness + max(best[i - 1][j - 1], follows)
            best[i][j] = max(paired[i][j], best[i - 1][j], best[i][j - 1])
    pairs = []
    i, j, must_pair = rows, columns, False
    while i and j:
        if must_pair or paired[i][j] >= max(best[i - 1][j], best[i][j - 1]):
            pairs.append((i - 1, j - 1))
            must_pair = paired[i - 1][j - 1] + _CONTIGUITY > best[i - 1][j - 1]
            i, j = i - 1, j - 1
        elif best[i - 1][j] >= best[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def pair_misheard(pairs: Sequence[tuple[int, int]], first: int, second: int) -> list[tuple[int, int]]:
    """Pairs of `align` and, between them, the words that stand one against one: a misheard word is in its place.

    Args:
        pairs: increasing pairs of an alignment.
        first: number of words of the first text.
        second: number of words of the second text.

    Where two neighbouring pairs leave equally many words between them on both sides, those are paired in order;
    where the numbers differ nothing says which word is which, and none is paired.
    """
    completed: list[tuple[int, int]] = []
    i = j = 0
    for next_i, next_j in [*pairs, (first, second)]:
        if next_i - i == next_j - j:
            completed.extend(zip(range(i, next_i), range(j, next_j), strict=True))
        if next_i < first or next_j < second:
            completed.append((next_i, next_j))
        i, j = next_i + 1, next_j + 1
    return completed
