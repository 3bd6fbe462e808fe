"""METEOR 1.5 for English without Java: what `meteor-1.5.jar - - -stdio -l en -norm` answers, as pycocoevalcap runs it.

A pair of texts is normalised (`meteor_normalize.py`), aligned (`meteor_align.py`) with the tables that pycocoevalcap
carries (`meteor_tables.py`), and becomes 23 counts. Counts add up over a corpus; the score of a sum is the corpus's
score. Denkowski and Lavie, Meteor Universal (WMT 2014): the tuned parameters of English.

    statistics(references, hypothesis) -> int32[23] -> score(...), or total([...]) -> score(...)
"""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from pixel_align.evaluation import meteor_align, meteor_tables
from pixel_align.evaluation.meteor_normalize import normalize

# Places of the counts, in the order in which the original prints them. Of each stage: content words of hypothesis and
# reference, then function words of either.
LENGTH, LENGTH_REFERENCE, FUNCTION, FUNCTION_REFERENCE = range(4)
_STAGES = slice(4, 20)
CHUNKS, MATCHED, MATCHED_REFERENCE = 20, 21, 22
COUNTS = 23

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # exact, stem, synonym, paraphrase

Counts = tuple[int, ...]


def statistics(references: Sequence[str], hypothesis: str) -> np.ndarray:
    """The 23 counts, int32[23], of a text against the reference that suits it best.

    Repeated pairs come from a cache of the last 131,072 pairs.

    Raises:
        ValueError: no reference.
        ModuleNotFoundError: pycocoevalcap or snowballstemmer is not there.
    """
    if isinstance(references, str) or not len(references):
        raise ValueError(f"references is {references!r}, expected a list of one or more texts. Give at least one.")
    # What pycocoevalcap does to keep its own separator out of the hypothesis; a reference is cut at it by the jar.
    hypothesis = hypothesis.replace("|||", "").replace("  ", " ")
    texts = [part for text in references for part in text.split("|||")] if "|||" in "".join(references) else references
    found = [_pair(reference, hypothesis) for reference in texts]
    best = found[0] if len(found) == 1 else max(found, key=_score)  # the first of equals
    return np.array(best, np.int32)


def score(counts: np.ndarray | Sequence[int]) -> float:
    """METEOR in [0, 1] of counts[23]: of one pair, or of a corpus by `total`."""
    return _score(tuple(int(count) for count in counts))


def total(statistics: Iterable[np.ndarray]) -> np.ndarray:
    """Counts of a corpus, int64[23]. A pair matched in full and in one piece adds no chunk, as in the original."""
    table = np.asarray([*statistics], np.int64).reshape(-1, COUNTS)
    whole = (
        (table[:, MATCHED] == table[:, LENGTH])
        & (table[:, MATCHED_REFERENCE] == table[:, LENGTH_REFERENCE])
        & (table[:, CHUNKS] == 1)
    )
    result = table.sum(axis=0)
    result[CHUNKS] -= whole.sum()
    return result


@functools.lru_cache(maxsize=1 << 17)
def _pair(reference: str, hypothesis: str) -> Counts:
    return _counts(_sentence(reference), _sentence(hypothesis))


@functools.lru_cache(maxsize=1 << 12)
def _sentence(text: str) -> meteor_align.Sentence:
    tables = meteor_tables.installed()
    return meteor_align.Sentence(normalize(text, tables.abbreviations), tables)


def _counts(reference: meteor_align.Sentence, hypothesis: meteor_align.Sentence) -> Counts:
    matches = meteor_align.align(reference, hypothesis, meteor_tables.installed().paraphrases)
    stages = [0] * 16
    for stage, start, length, other, other_length in matches:
        for function in hypothesis.function[other : other + other_length]:
            stages[4 * stage + 2 * function] += 1
        for function in reference.function[start : start + length]:
            stages[4 * stage + 2 * function + 1] += 1
    return (
        len(hypothesis.words),
        len(reference.words),
        sum(hypothesis.function),
        sum(reference.function),
        *stages,
        meteor_align.chunks(matches),
        sum(stages[::2]),
        sum(stages[1::2]),
    )


def _score(counts: Counts) -> float:
    chunks, matched, matched_reference = counts[CHUNKS:]
    if not matched or not matched_reference:
        return 0.0
    stages = counts[_STAGES]
    precision, recall = (
        sum(
            weight * (_DELTA * stages[4 * stage + side] + (1 - _DELTA) * stages[4 * stage + 2 + side])
            for stage, weight in enumerate(_WEIGHTS)
        )
        / (_DELTA * (counts[LENGTH + side] - counts[FUNCTION + side]) + (1 - _DELTA) * counts[FUNCTION + side])
        for side in (0, 1)
    )
    mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
    whole = chunks == 1 and matched == counts[LENGTH] and matched_reference == counts[LENGTH_REFERENCE]
    fragmentation = 0 if whole else 2 * chunks / (matched + matched_reference)
    return max(0.0, mean * (1 - _GAMMA * math.pow(fragmentation, _BETA)))
