"""METEOR 1.5's alignment of two sentences: which words of one stand for which words of the other.

Four stages find possible matches: equal words, equal stems, common meanings, paraphrases. A beam search then chooses:
the largest weighted number of matched words, then the fewest chunks (runs that are contiguous in both), then the least
distance. The original's search is followed step by step, its oddities included, as they decide between alignments that
score alike; they are marked below. Denkowski and Lavie, Meteor Universal (WMT 2014), and the behaviour of meteor-1.5.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pixel_align.evaluation.meteor_tables import Paraphrases, Tables

EXACT, STEM, SYNONYM, PARAPHRASE = STAGES = range(4)

_BEAM = 40
# A path's rank is one number, smaller is better: matched words, then chunks, then distance.
_CHUNK, _MATCHED = 1 << 32, 1 << 64


class Match(NamedTuple):
    """Words [start, start + length) of the reference for [other, other + other_length) of the hypothesis."""

    stage: int
    start: int
    length: int
    other: int
    other_length: int


class Sentence:
    """One normalised sentence and what the stages look up in it.

    Places are bits of one number, so that Python's garbage collector has nothing to visit in the dicts.

    Attributes:
        words: W strings, lower case.
        function: bool for each, a function word or not.
    """

    __slots__ = ("at_stem", "at_word", "function", "meanings", "phrases", "sources", "stems", "synsets", "words")

    def __init__(self, words: Sequence[str], tables: Tables) -> None:
        known = [tables.word(word) for word in words]
        self.words = tuple(words)
        self.stems = [word.stem for word in known]
        self.synsets = [word.synsets for word in known]
        self.function = [word.function for word in known]
        self.meanings = frozenset[str]().union(*self.synsets)
        self.at_word, self.at_stem = _places(self.words), _places(self.stems)
        self.phrases: dict[int, int] = {}  # of the paraphrases -> where they begin
        self.sources: list[tuple[int, int, dict[int, int]]] = []  # start, length and paraphrases of those that have any
        for start, length, (phrase, others) in tables.paraphrases.phrases([word.number for word in known]):
            self.phrases[phrase] = self.phrases.get(phrase, 0) | 1 << start
            if others:
                self.sources.append((start, length, others))


# A partial alignment of the beam search: its rank; the first word of the reference after its last match; the word of
# the hypothesis where its open chunk would go on, -1 for none open; bits of the hypothesis's words it has taken; how it
# came here.
_Path = tuple[int, int, int, int, "_Link | None"]
_Link = tuple[Match, "_Link | None"]


def align(reference: Sentence, hypothesis: Sentence, tables: Paraphrases) -> list[Match]:
    """The matches that METEOR 1.5 chooses, by start in the reference."""
    if reference.words == hypothesis.words:
        return [Match(EXACT, i, 1, i, 1) for i in range(len(reference.words))]
    options = _possible(reference, hypothesis, tables)
    certain = _certain(options, len(hypothesis.words))
    matches = certain if len(certain) == sum(map(len, options)) else _search(options, certain)
    return [matches[start] for start in sorted(matches)]


def chunks(matches: Sequence[Match]) -> int:
    """Number of runs of matches, ordered by start, that are contiguous in both sentences."""
    pairs = itertools.pairwise(matches)
    breaks = sum(a.start + a.length != b.start or a.other + a.other_length != b.other for a, b in pairs)
    return breaks + bool(matches)


def _possible(reference: Sentence, hypothesis: Sentence, tables: Paraphrases) -> list[list[Match]]:
    """All matches by their start in the reference.

    There they stand stage by stage in the original's order, which decides between alignments of equal rank.
    """
    words, others = reference.words, hypothesis.words
    options: list[list[Match]] = [[] for _ in words]
    for i, word in enumerate(words):
        matches = options[i]
        exact = hypothesis.at_word.get(word, 0)
        stem = hypothesis.at_stem.get(reference.stems[i], 0) & ~exact
        if exact:
            matches += [Match(EXACT, i, 1, j, 1) for j in _bits(exact)]
        if stem:
            matches += [Match(STEM, i, 1, j, 1) for j in _bits(stem)]
        synsets = reference.synsets[i]
        if not synsets.isdisjoint(hypothesis.meanings):
            for j, meanings in enumerate(hypothesis.synsets):
                if word != others[j] and not synsets.isdisjoint(meanings):
                    matches.append(Match(SYNONYM, i, 1, j, 1))
    # A pair that the table has in both directions counts twice: such words are then never certain.
    for i, length, j, other_length in _paraphrases(reference, hypothesis, tables):
        options[i].append(Match(PARAPHRASE, i, length, j, other_length))
    for j, other_length, i, length in _paraphrases(hypothesis, reference, tables):
        options[i].append(Match(PARAPHRASE, i, length, j, other_length))
    return options


def _paraphrases(sentence: Sentence, other: Sentence, tables: Paraphrases) -> list[tuple[int, int, int, int]]:
    """Start and length of phrases of the first, and of a paraphrase of each in the second; in the table's order."""
    there = other.phrases.keys()
    return [
        (start, length, j, tables.length(target))
        for start, length, targets in sentence.sources
        if not there.isdisjoint(targets.keys())
        for target in sorted(targets.keys() & there, key=targets.__getitem__)
        for j in _bits(other.phrases[target])
    ]


def _certain(options: Sequence[Sequence[Match]], width: int) -> dict[int, Match]:
    """Start -> the only match there, where no other match wants any of its words."""
    wanted, wanted_other = [0] * len(options), [0] * width
    for matches in options:
        for _, start, length, other, other_length in matches:
            for i in range(start, start + length):
                wanted[i] += 1
            for j in range(other, other + other_length):
                wanted_other[j] += 1
    return {
        i: match
        for i, matches in enumerate(options)
        for match in matches
        if wanted[i] == 1
        and max(wanted[i : i + match.length]) == 1
        and max(wanted_other[match.other : match.other + match.other_length]) == 1
    }


def _search(options: Sequence[Sequence[Match]], certain: Mapping[int, Match]) -> dict[int, Match]:
    """Start -> match of the best path, word by word along the reference. Certain matches are on every path."""
    paths: list[_Path] = [(0, 0, -1, 0, None)]
    for i, matches in enumerate(options):
        paths.sort(key=_RANK)
        del paths[_BEAM:]
        before, paths = paths, []
        add = paths.append
        steps = [
            (
                # The original's sums are integers: words matched other than exactly count a half, rounded down.
                -_MATCHED * (2 if match.stage == EXACT else match.length // 2 + match.other_length // 2),
                i + match.length,
                match.other,
                match.other + match.other_length,
                ((1 << match.other_length) - 1) << match.other,
                abs(i - match.other),
                match,
            )
            for match in matches
        ]
        for path in before:
            rank, free, end, used, link = path
            if i < free:
                add(path)
                continue
            for gain, after, other, other_end, bits, distance, match in steps:
                if not used & bits:
                    broken = _CHUNK if end >= 0 and end != other else 0
                    add((rank + gain + broken, after, other_end, used | bits, (match, link)))
                    # The original adds the distance to the path it came from, so to the alternatives that follow.
                    rank += distance
            if i not in certain:
                add((rank + _CHUNK, free, -1, used, link) if end >= 0 else (rank, free, -1, used, link))
    paths.sort(key=_RANK)
    link = min(paths[:_BEAM], key=lambda path: path[0] + _CHUNK * (path[2] >= 0))[-1]
    best = {}
    while link:
        match, link = link
        best[match.start] = match
    return best


_RANK = operator.itemgetter(0)


def _places(words: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for i, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << i
    return places


def _bits(number: int) -> list[int]:
    """The places of its bits, ascending."""
    return [i for i in range(number.bit_length()) if number >> i & 1]
