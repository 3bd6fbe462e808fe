"""Caption metrics: the original's answers, slow formulations from the papers, rows that can be split and shuffled."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import captioning, meteor
from pixel_align.evaluation.ptb_tokenizer import tokenize
from tests.goldens import captioning as sentences

Example = tuple[list[str], str]


def rows_of(examples: list[Example], **settings: Any) -> list[captioning.Row]:
    return [captioning.row({"captions": refs}, {"text": text}, **settings) for refs, text in examples]


def score(examples: list[Example]) -> dict[str, float]:
    return captioning.summary(rows_of(examples))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Captions of few words, so that they share n-grams; some empty."""
    rng = random.Random(0)
    words = ["a", "red", "dog", "on", "the", "mat", "runs"]

    def caption() -> str:
        return " ".join(rng.choices(words, k=rng.choice((0, 1, 2, 5, 7, 9))))

    return [([caption() for _ in range(rng.randint(1, 5))], caption()) for _ in range(60)]


def test_figures_are_the_originals() -> None:
    golden = sentences.golden()
    examples = [*sentences.groups(list(golden["tokens"]), 4), *sentences.PARAPHRASED]
    assert [[[tokenize(r) for r in refs], tokenize(text)] for refs, text in examples] == [
        [references, text] for references, text, *_ in golden["meteor"]
    ]
    found = score(examples)
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"):
        assert found[name] == pytest.approx(golden[name], abs=1e-12), name
    assert found["CIDEr-D"] == found["CIDEr"]


def _slow_bleu(examples: list[Example]) -> list[float]:
    logs, reference_length, length = [], 0, 0
    for n in range(1, 5):
        right = guesses = 0
        for references, text in examples:
            words = text.split()
            counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            for gram, count in counts.items():
                most = max(
                    sum(reference.split()[i : i + n] == list(gram) for i in range(len(reference.split())))
                    for reference in references
                )
                right += min(count, most)
            guesses += sum(counts.values())
        logs.append(math.log(right / guesses))
    for references, text in examples:
        length += len(text.split())
        reference_length += min((abs(len(r.split()) - len(text.split())), len(r.split())) for r in references)[1]
    brevity = min(1.0, math.exp(1 - reference_length / length))
    return [brevity * math.exp(sum(logs[:n]) / n) for n in range(1, 5)]


def _slow_rouge(references: list[str], text: str) -> float:
    def common(a: list[str], b: list[str]) -> int:
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i in range(len(a)):
            for j in range(len(b)):
                table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    said = text.split(" ")
    precision = max(common(reference.split(" "), said) / len(said) for reference in references)
    recall = max(common(reference.split(" "), said) / len(reference.split(" ")) for reference in references)
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision * recall else 0.0


def _slow_cider(examples: list[Example], plain: bool) -> list[float]:
    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    found = []
    for references, text in examples:
        total = 0.0
        for n in range(1, 5):

            def vector(of: str, n: int = n) -> dict[tuple[str, ...], float]:
                frequency = {g: sum(any(g in grams(r, n) for r in refs) for refs, _ in examples) for g in grams(of, n)}
                return {g: c * math.log(len(examples) / max(1, frequency[g])) for g, c in grams(of, n).items()}

            said = vector(text)
            for reference in references:
                true = vector(reference)
                product = sum((said[g] if plain else min(said[g], true[g])) * true[g] for g in said if g in true)
                scale = math.hypot(*said.values()) * math.hypot(*true.values())
                apart = max(len(text.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
                penalty = 1 if plain else math.exp(-(apart**2) / 72)
                total += 10 * penalty * product / scale / 4 / len(references) if scale else 0.0
        found.append(total)
    return found


def test_figures_are_the_papers(examples: list[Example]) -> None:
    rows = rows_of(examples)
    found, each = captioning.summary(rows), captioning.each(rows)
    for n, expected in enumerate(_slow_bleu(examples), 1):
        assert found[f"BLEU-{n}"] == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(each["ROUGE-L"], [_slow_rouge(*example) for example in examples], atol=1e-12)
    np.testing.assert_allclose(each["CIDEr"], _slow_cider(examples, plain=False), atol=1e-9)
    np.testing.assert_allclose(each["CIDEr-plain"], _slow_cider(examples, plain=True), atol=1e-9)
    for name in ("ROUGE-L", "CIDEr", "CIDEr-plain"):
        assert found[name] == pytest.approx(each[name].mean())


def test_order_does_not_matter(examples: list[Example]) -> None:
    rng = random.Random(1)
    shuffled = [(rng.sample(references, len(references)), text) for references, text in rng.sample(examples, 60)]
    assert score(shuffled) == pytest.approx(score(examples))


def test_repeated_references_change_means_only(examples: list[Example]) -> None:
    once, twice = score(examples), score([(references * 2, text) for references, text in examples])
    assert twice == pytest.approx(once)


def test_a_perfect_corpus_has_perfect_figures() -> None:
    texts = ["a red dog runs fast", "two cats sit on mats", "one man eats green food"]
    found = score([([text], text) for text in texts])
    assert [found[name] for name in ("BLEU-1", "BLEU-4", "ROUGE-L")] == pytest.approx([1, 1, 1])
    assert found["CIDEr"] == found["CIDEr-plain"] == pytest.approx(10)


@pytest.mark.parametrize("text", ["", "...", "zebra"])
def test_nothing_right_scores_nothing(text: str) -> None:
    found = score([(["a red dog", "the dog"], text), (["a cat"], text)])
    assert list(found.values()) == pytest.approx([0] * len(found), abs=1e-3)  # BLEU's published floor


def test_one_picture_has_no_rare_words() -> None:
    """Every n-gram is in all pictures: CIDEr's weights are all 0, as published."""
    assert score([(["a red dog"], "a red dog")])["CIDEr"] == 0.0


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_a_corpus_without_longer_n_grams_is_scored_by_the_shorter(longest: int) -> None:
    words = ["a", "red", "dog", "cat", "runs"]
    rng = random.Random(longest)
    texts = [[" ".join(rng.choices(words, k=rng.randint(1, longest))) for _ in range(3)] for _ in range(12)]
    examples: list[Example] = [(references, text) for *references, text in texts]
    each = captioning.each(rows_of(examples))
    np.testing.assert_allclose(each["CIDEr"], _slow_cider(examples, plain=False), atol=1e-12)
    np.testing.assert_allclose(each["CIDEr-plain"], _slow_cider(examples, plain=True), atol=1e-12)
    assert each["CIDEr"].max() > 0


def test_all_empty_is_possible() -> None:
    found = score([([""], ""), (["", "!"], "?")])
    assert found["CIDEr"] == found["CIDEr-plain"] == 0.0
    assert found["ROUGE-L"] == 1.0  # as published: one empty word in common


def test_rows_are_small_and_alone(examples: list[Example]) -> None:
    """A row depends on its own caption, and survives as plain numbers: what is gathered between processes."""
    rows = rows_of(examples)
    sent = [{key: np.frombuffer(value.tobytes(), value.dtype) for key, value in row.items()} for row in rows]
    assert captioning.summary(sent) == captioning.summary(rows)
    assert max(sum(value.nbytes for value in row.values()) for row in rows) < 1024
    assert captioning.summary([]) == {}


def test_only_what_is_asked_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor, "statistics", lambda references, text: np.ones(23, np.int32))
    example = (["a dog"], "a dog")
    assert set(score([example])) == {
        "BLEU-1",
        "BLEU-2",
        "BLEU-3",
        "BLEU-4",
        "ROUGE-L",
        "CIDEr",
        "CIDEr-D",
        "CIDEr-plain",
    }
    assert set(captioning.summary(rows_of([example], metrics=("ROUGE-L", "METEOR")))) == {"ROUGE-L", "METEOR"}


def test_meteor_reads_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(meteor, "statistics", lambda references, text: asked.append((references, text)) or np.ones(23))
    rows_of([(["A dog's tail."], "The (red) dog!")], metrics=("METEOR",))
    assert asked == [(["a dog 's tail"], "the -lrb- red -rrb- dog")]


@pytest.mark.parametrize(
    ("target", "prediction", "metrics", "message"),
    [
        ({"captions": []}, {"text": "a"}, ("BLEU",), r"captions is \[\], expected a list of one or more texts"),
        ({"captions": "a dog"}, {"text": "a"}, ("BLEU",), "captions is 'a dog', expected a list"),
        ({"captions": ["a", None]}, {"text": "a"}, ("BLEU",), "target caption is None, expected a text"),
        ({"captions": ["a"]}, {"text": float("nan")}, ("BLEU",), "predicted text is nan, expected a text"),
        ({"captions": ["a"]}, {"text": "a"}, ("SPICE",), "SPICE.*exists only in Java.*pycocoevalcap.spice"),
        ({"captions": ["a"]}, {"text": "a"}, ("WER",), r"metrics is \('WER',\), expected some of BLEU, ROUGE-L"),
        ({"captions": ["a"]}, {"text": "a"}, "CIDEr", "metrics is 'CIDEr', expected some of"),
    ],
)
def test_refusals(target: Any, prediction: Any, metrics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        captioning.row(target, prediction, metrics=metrics)
