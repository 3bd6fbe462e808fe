"""Captions against references: BLEU-1 to 4, ROUGE-L, CIDEr and METEOR, as coco-caption (pycocoevalcap) computes them.

A target is a dict with captions: the references, one or more texts (COCO has five; a region of Visual Genome or
RefCOCOg has one). A prediction is a dict with text. Both go through coco-caption's tokenisation (`ptb_tokenizer.py`).

`CIDEr` is what coco-caption prints under that name and what papers report. It is the paper's CIDEr-D, with clipped
counts and a penalty for other lengths, so the key `CIDEr-D` is the same number; `CIDEr-plain` is the paper's CIDEr,
without the two and, as in its authors' code, without stemming. SPICE parses scenes with Java programs that have no
other form: run pycocoevalcap's own, on the texts that `tokenize` gives.

Sources: Papineni et al. 2002; Lin 2004; Vedantam et al. 2015; Chen et al. 2015 (COCO captions); pycocoevalcap 1.2.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pixel_align.evaluation import meteor
from pixel_align.evaluation.ptb_tokenizer import tokenize
from pixel_align.evaluation.rows import Row, column

# METEOR needs tables from another package, so it is asked for.
METRICS = ("BLEU", "ROUGE-L", "CIDEr")
ALL_METRICS = (*METRICS, "METEOR")

_LONGEST = 4  # words of an n-gram
_BETA = 1.2  # weight of recall in ROUGE-L
_SIGMA = 6.0  # of CIDEr-D's penalty, in words
_SMALL, _TINY = 1e-9, 1e-15  # BLEU without zeros, as published

Target = Mapping[str, Any]
Prediction = Mapping[str, Any]


def row(target: Target, prediction: Prediction, *, metrics: Sequence[str] = METRICS) -> Row:
    """One caption -> small arrays.

    Args:
        target, prediction: see the module's text. A prediction {} says nothing, as does an empty text.
        metrics: of `ALL_METRICS`.

    Returns:
        For each metric asked:
        bleu int32[10]: n-grams that are right, n-grams, for n = 1 to 4 each; words; words of the reference of nearest
        length.
        rouge float64[1].
        words uint64[W]: the words of the prediction, then of each reference, hashed; lengths int32[1 + references].
            CIDEr's weights depend on all rows.
        meteor int32[23]: `meteor.statistics`.

    Raises:
        ValueError: no reference, a caption that is no text, or a metric that is unknown.
        ModuleNotFoundError: METEOR's tables are not there.
    """
    _check_metrics(metrics)
    references = target["captions"]
    if isinstance(references, str) or not len(references):
        raise ValueError(f"captions is {references!r}, expected a list of one or more texts. Give each target one.")
    truths = [_text(text, "target caption") for text in references]
    said = _text(prediction.get("text", ""), "predicted text")
    result: Row = {}
    if "BLEU" in metrics:
        result["bleu"] = _bleu_counts([truth.split() for truth in truths], said.split())
    if "ROUGE-L" in metrics:
        # Split at each space: an empty text is one empty word, which an empty reference has in common with it.
        result["rouge"] = np.array([_rouge([truth.split(" ") for truth in truths], said.split(" "))])
    if "CIDEr" in metrics:
        words = [text.split() for text in (said, *truths)]
        result["words"] = np.array([_hash(word) for text in words for word in text], np.uint64)
        result["lengths"] = np.array([len(text) for text in words], np.int32)
    if "METEOR" in metrics:
        result["meteor"] = meteor.statistics(truths, said)
    return result


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures of a corpus, from 0 to 1, CIDEr from 0 to 10; of the metrics that the rows have. Without rows, {}.

    Returns:
        BLEU-1 ... BLEU-4 and METEOR from the summed counts; ROUGE-L, CIDEr, CIDEr-D, CIDEr-plain as means.
    """
    figures: dict[str, float] = {}
    if rows and "bleu" in rows[0]:
        counts = np.stack([row["bleu"] for row in rows]).sum(axis=0, dtype=np.int64)
        figures |= {f"BLEU-{n}": value for n, value in enumerate(_bleu(counts).tolist(), 1)}
    if rows and "meteor" in rows[0]:
        figures["METEOR"] = meteor.score(meteor.total(row["meteor"] for row in rows))
    means = {name: values for name, values in each(rows).items() if name not in figures}
    return figures | {name: float(values.mean()) for name, values in means.items()}


def each(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The figures of each caption, float64[rows] under the names of `summary`. CIDEr's are of this set of rows."""
    if not rows:
        return {}
    figures: dict[str, np.ndarray] = {}
    if "bleu" in rows[0]:
        bleu = np.stack([_bleu(row["bleu"].astype(np.int64)) for row in rows], axis=1)
        figures |= {f"BLEU-{n}": values for n, values in enumerate(bleu, 1)}
    if "rouge" in rows[0]:
        figures["ROUGE-L"] = column(rows, "rouge")
    if "words" in rows[0]:
        figures["CIDEr"], figures["CIDEr-plain"] = _cider(rows)
        figures["CIDEr-D"] = figures["CIDEr"]
    if "meteor" in rows[0]:
        figures["METEOR"] = np.array([meteor.score(row["meteor"]) for row in rows])
    return figures


def _check_metrics(metrics: Sequence[str]) -> None:
    if "SPICE" in metrics:
        raise ValueError(
            "metric is SPICE, expected one that is computed here: its parser exists only in Java. "
            "Run pycocoevalcap.spice on the texts that ptb_tokenizer.tokenize gives."
        )
    if isinstance(metrics, str) or not set(metrics) <= set(ALL_METRICS):
        raise ValueError(f"metrics is {metrics!r}, expected some of {', '.join(ALL_METRICS)}. Correct it.")


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {text!r}, expected a text. Correct it.")
    return tokenize(text)


def _bleu_counts(references: Sequence[Sequence[str]], words: Sequence[str]) -> np.ndarray:
    allowed: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        allowed |= _grams(reference)
    right, number = [0] * _LONGEST, len(words)
    for gram, count in _grams(words).items():
        right[len(gram) - 1] += min(count, allowed[gram])
    guesses = [max(0, number - n) for n in range(_LONGEST)]
    nearest = min((abs(len(reference) - number), len(reference)) for reference in references)[1]
    return np.array([*right, *guesses, number, nearest], np.int32)


def _grams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    grams = range(1, _LONGEST + 1)
    return Counter(tuple(words[i : i + n]) for n in grams for i in range(len(words) - n + 1))


def _bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4, float64[4], of counts int64[10], one caption's or their sums."""
    right, guesses, (number, nearest) = counts[:_LONGEST], counts[_LONGEST : 2 * _LONGEST], counts[2 * _LONGEST :]
    precision = (right + _TINY) / (guesses + _SMALL)
    ratio = (number + _TINY) / (nearest + _SMALL)
    return np.cumprod(precision) ** (1 / np.arange(1, _LONGEST + 1)) * min(1.0, np.exp(1 - 1 / ratio))


def _rouge(references: Sequence[Sequence[str]], words: Sequence[str]) -> float:
    """F of the best precision and the best recall, each over all references."""
    common = [_common(reference, words) for reference in references]
    precision = max(common) / len(words)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if precision and recall else 0.0


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; a row of the usual table is the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    steps = full = (1 << len(first)) - 1
    for word in second:
        matched = steps & places.get(word, 0)
        steps = ((steps + matched) | (steps - matched)) & full
    return len(first) - steps.bit_count()


@functools.lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _cider(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """CIDEr-D and plain CIDEr of each row, float64[rows] each.

    An n-gram's weight in a text is its count times the logarithm of rows / rows whose references have it. The score is
    the cosine of two texts' weights, averaged over n and over the references, times 10.
    """
    texts = np.array([len(row["lengths"]) for row in rows])
    picture = np.repeat(np.arange(len(rows)), texts)  # of each text
    hypothesis = np.repeat(np.cumsum(texts) - texts, texts)  # of each text: the one it is compared with
    lengths = column(rows, "lengths").astype(np.int64)
    difference = np.maximum(lengths - 1, 0) - np.maximum(lengths[hypothesis] - 1, 0)  # in 2-grams, as published
    penalty = np.exp(-(difference**2) / (2 * _SIGMA**2))
    clipped, plain = np.zeros(len(lengths)), np.zeros(len(lengths))
    for text, gram in _numbered_grams(column(rows, "words"), np.repeat(np.arange(len(lengths)), lengths)):
        kinds = int(gram.max(initial=0)) + 1
        keys, count = np.unique(text * kinds + gram, return_counts=True)
        text, gram = np.divmod(keys, kinds)
        of_reference = hypothesis[text] != text
        known = np.unique(picture[text[of_reference]] * kinds + gram[of_reference]) % kinds
        frequency = np.maximum(np.bincount(known, minlength=kinds), 1)
        weight = count * (np.log(len(rows)) - np.log(frequency))[gram]
        length = np.sqrt(np.bincount(text, weight**2, len(lengths)))
        wanted = hypothesis[text] * kinds + gram
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        said = np.where(keys[place] == wanted, weight[place], 0.0)
        scale = length * length[hypothesis]
        for total, part, factor in ((clipped, np.minimum(said, weight), penalty), (plain, said, 1.0)):
            product = np.bincount(text, part * weight, len(lengths))
            total += np.divide(product, scale, out=np.zeros(len(lengths)), where=scale > 0) * factor
    for total in (clipped, plain):
        total[hypothesis == np.arange(len(lengths))] = 0  # a prediction against itself
    share = 10 / _LONGEST / (texts - 1)
    return np.bincount(picture, clipped) * share, np.bincount(picture, plain) * share


def _numbered_grams(words: np.ndarray, text: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For n = 1 to 4: (text int64[m], n-gram int64[m]) of each n-gram in texts of words uint64[W] of text int64[W]."""
    words = np.unique(words, return_inverse=True)[1]
    start, gram = np.arange(len(words)), words
    for n in range(_LONGEST):
        goes_on = start + n < len(words)
        start, gram = start[goes_on], gram[goes_on]
        goes_on = text[start + n] == text[start]
        start, gram = start[goes_on], gram[goes_on]
        if n:
            gram = np.unique(gram * (words.max(initial=0) + 1) + words[start + n], return_inverse=True)[1]
        yield text[start], gram
