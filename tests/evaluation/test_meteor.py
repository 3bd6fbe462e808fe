"""METEOR: the jar's answers, paraphrases against a plain search, alignments against all there are, hostile text."""

import gzip
import itertools
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pixel_align.evaluation import meteor, meteor_align, meteor_tables
from pixel_align.evaluation.meteor_normalize import normalize
from tests.goldens import captioning

_WORDS = ["a", "b", "c", "d", "e", "f"]


def _write_tables(folder: Path, pairs: list[tuple[str, str]]) -> tuple[Path, Path]:
    """A jar and paraphrases as pycocoevalcap has them, of a few words."""
    jar, paraphrases = folder / "meteor-1.5.jar", folder / "paraphrase-en.gz"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("function/english.words", "the\na\nof\n.\n")
        archive.writestr("nonbreaking/english.prefixes", "# titles\n\nDr\nNo #NUMERIC_ONLY#\n")
        archive.writestr("synonym/english.synsets", "dog\n1 2\nhound\n2\nox\n3\ncattle\n3 4\nbe\n5\nexist\n5\n")
        archive.writestr("synonym/english.exceptions", "ox\noxen\nbe\nis was\n")
    with gzip.open(paraphrases, "wt", encoding="utf-8") as file:
        file.writelines(f"0.5\n{a}\n{b}\n" for a, b in sorted(pairs))
    return jar, paraphrases


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    rng = random.Random(0)
    phrases = [" ".join(rng.choices(_WORDS, k=rng.randint(1, 4))) for _ in range(60)]
    return list(dict.fromkeys(tuple(rng.sample(phrases, 2)) for _ in range(150)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> meteor_tables.Tables:
    folder = tmp_path_factory.mktemp("tables")
    return meteor_tables.Tables(*_write_tables(folder, [*pairs, ("in front of", "before")]), folder / "cache")


@pytest.fixture
def small(tables: meteor_tables.Tables, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """METEOR with the small tables."""
    monkeypatch.setattr(meteor_tables, "installed", lambda: tables)
    _forget()
    yield
    _forget()


def _forget() -> None:
    meteor._pair.cache_clear()
    meteor._sentence.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """METEOR with pycocoevalcap's tables, compiled once into this checkout's cache."""
    pytest.importorskip(
        "pycocoevalcap", reason="pycocoevalcap is not installed (extra eval): METEOR's tables are in it"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(__file__).resolve().parents[2] / ".cache"))
    meteor_tables.installed.cache_clear()
    _forget()
    yield
    meteor_tables.installed.cache_clear()
    _forget()


def test_counts_are_the_jars(installed: None) -> None:
    golden = captioning.golden()
    found = []
    for references, text, counts, score in golden["meteor"]:
        found.append(meteor.statistics(references, text))
        assert found[-1].tolist() == counts, (references, text)
        assert meteor.score(found[-1]) == pytest.approx(score, abs=1e-12)
    assert meteor.score(meteor.total(found)) == pytest.approx(golden["METEOR"], abs=1e-12)
    table = np.array([counts for _, _, counts, _ in golden["meteor"]])[:, 4:20].reshape(-1, 4, 4)
    assert table.any(axis=2).any(axis=0).all()  # all four stages


def test_phrases_are_found_as_by_trying_all(tables: meteor_tables.Tables, pairs: list[tuple[str, str]]) -> None:
    rng = random.Random(1)
    sources = {a for a, _ in pairs}
    ordered = sorted(pairs)
    for _ in range(200):
        words = rng.choices([*_WORDS, "unknown"], k=rng.randint(1, 7))
        found = [
            (start, length, [tables.paraphrases.length(other) for other in phrase.others])
            for start, length, phrase in tables.paraphrases.phrases([tables.word(word).number for word in words])
            if phrase.others
        ]
        expected = [
            (start, length, [len(b.split()) for a, b in ordered if a == " ".join(words[start : start + length])])
            for start in range(len(words))
            for length in range(1, 5)
            if start + length <= len(words) and " ".join(words[start : start + length]) in sources
        ]
        assert found == expected


def _all_matches(pairs: set[tuple[str, str]], one: list[str], two: list[str]) -> list:
    """(matched words by weight, start, end, start, end) of all possible matches, by trying all."""
    spans, others = (
        [(i, j) for i in range(len(words)) for j in range(i + 1, min(i + 4, len(words)) + 1)] for words in (one, two)
    )
    matches = []
    for (i, j), (k, m) in itertools.product(spans, others):
        a, b = " ".join(one[i:j]), " ".join(two[k:m])
        if a == b and j - i == 1:
            matches.append((2, i, j, k, m))
        if (a, b) in pairs or (b, a) in pairs:
            matches.append(((j - i) // 2 + (m - k) // 2, i, j, k, m))
    return matches


def _best(matches: list) -> int:
    """Largest weight of all sets of matches that share no word, by trying all."""
    if not matches:
        return 0
    (weight, *first), rest = matches[0], matches[1:]
    apart = [m for m in rest if (m[1] >= first[1] or m[2] <= first[0]) and (m[3] >= first[3] or m[4] <= first[2])]
    return max(_best(rest), weight + _best(apart))


def test_alignment_is_the_best_there_is(tables: meteor_tables.Tables, pairs: list[tuple[str, str]]) -> None:
    """In texts so short that the beam holds everything."""
    rng = random.Random(2)
    both = set(pairs)
    for _ in range(150):
        one, two = (rng.choices([*_WORDS, "x", "y"], k=rng.randint(1, 4)) for _ in range(2))
        if one == two:
            continue
        found = meteor_align.align(
            meteor_align.Sentence(one, tables), meteor_align.Sentence(two, tables), tables.paraphrases
        )
        exact = [match.stage == meteor_align.EXACT for match in found]
        weights = [2 if e else m.length // 2 + m.other_length // 2 for e, m in zip(exact, found, strict=True)]
        # Not the fewest chunks too: a certain match is taken though it may count for nothing.
        assert sum(weights) == _best(_all_matches(both, one, two)), (one, two, found)
        for field, length in (("start", "length"), ("other", "other_length")):
            used = [i for m in found for i in range(getattr(m, field), getattr(m, field) + getattr(m, length))]
            assert len(used) == len(set(used))


def test_repeated_words_are_aligned_in_one_piece(small: None) -> None:
    text = " ".join(["red", "dog"] * 12)
    assert meteor.score(meteor.statistics([text], text)) == 1.0
    assert meteor.statistics([f"{text} cat"], f"{text} bird")[meteor.CHUNKS] == 1


@pytest.mark.parametrize(
    ("reference", "hypothesis", "stage"),
    [("dog", "dog", 0), ("running", "runs", 1), ("oxen", "cattle", 2), ("hounds", "dog", 2), ("was", "exist", 2)],
)
def test_each_stage_finds_its_words(small: None, reference: str, hypothesis: str, stage: int) -> None:
    counts = meteor.statistics([reference], hypothesis)
    assert counts[4:20].reshape(4, 2, 2).any(axis=(1, 2)).tolist() == [n == stage for n in range(4)]


def test_a_score_by_hand(small: None) -> None:
    """Dog for dog, sits for sat not, one word for three."""
    counts = meteor.statistics(["the dog sat in front of it"], "a dog sits before")
    precision = (0.75 * 1 + 0.75 * 0.6) / (0.75 * 3 + 0.25 * 1)
    recall = (0.75 * 1 + 0.6 * (0.75 * 2 + 0.25 * 1)) / (0.75 * 5 + 0.25 * 2)
    mean = 1 / (0.15 / precision + 0.85 / recall)
    chunks, matched = 2, (2 + 4) / 2
    assert meteor.score(counts) == pytest.approx(mean * (1 - 0.6 * (chunks / matched) ** 0.2))


def test_the_best_reference_counts(small: None) -> None:
    references = ["a hound", "one cat sat", "a big dog ran", "the dog"]
    text = "the big dog"
    alone = [meteor.score(meteor.statistics([reference], text)) for reference in references]
    for order in itertools.permutations(references):
        assert meteor.score(meteor.statistics(order, text)) == max(alone)
    assert meteor.score(meteor.statistics([*references, *references], text)) == max(alone)


def test_counts_add_up(small: None) -> None:
    texts = [
        ("the dog ran", "the dog ran"),
        ("a dog", "the hound sat"),
        ("x y", "z"),
        ("in front of it", "before them"),
    ]
    counts = [meteor.statistics([a], b) for a, b in texts]
    total = meteor.total(counts)
    assert total[:20].tolist() == np.sum(counts, axis=0)[:20].tolist()
    assert total[meteor.CHUNKS] == sum(int(c[meteor.CHUNKS]) for c in counts[1:])  # the first is whole
    for shuffled in itertools.permutations(counts):
        assert (meteor.total(shuffled) == total).all()
    assert meteor.score(meteor.total([counts[0]] * 3)) == meteor.score(counts[0]) == 1.0
    assert meteor.score(meteor.total([])) == 0.0


@pytest.mark.parametrize(
    ("reference", "text"), [("", ""), ("a dog", ""), ("", "a dog"), ("...", "!"), ("x", "y"), ("\n", "\0")]
)
def test_nothing_in_common_scores_0(small: None, reference: str, text: str) -> None:
    assert meteor.score(meteor.statistics([reference], text)) == 0.0


def test_separators_of_the_jar_are_taken_as_there(small: None) -> None:
    assert meteor.score(meteor.statistics(["no|||the dog"], "the |||dog")) == 1.0


@pytest.mark.parametrize("references", [[], "a dog"])
def test_no_list_of_references_is_refused(references: list[str]) -> None:
    with pytest.raises(ValueError, match=r"references is .*, expected a list of one or more texts\."):
        meteor.statistics(references, "a dog")


def test_missing_tables_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    meteor_tables.installed.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pycocoevalcap is missing.*pip install 'pixel-align\[eval\]'"):
        meteor_tables.installed()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A well-known dog, red.", "a well known dog , red ."),
        ("1,000 dogs don't run 5.5 km", "1,000 dogs don 't run 5.5 km"),
        ("Dr. No. No. 5 U.S. e.g. mr. x", "dr. no . no. 5 us eg mr. x"),
        ("wait...what “so” ‘it’ 80's a—b", "wait ... what \" so \" ' it ' 80 's a — b"),
        ("Mr. Dr.", "mr . dr."),
        ("see, No.", "see , no ."),
        ("a Dr.", "a dr."),
        ("\xa0\x01 a, dog \x01", "a , dog"),
        ("", ""),
        ("dog .", "dog ."),
        ("Dr", "dr"),
        ("x\ty\r\nz\u00a0w", "x y z w"),
    ],
)
def test_normaliser(tables: meteor_tables.Tables, text: str, words: str) -> None:
    assert normalize(text, tables.abbreviations) == words.split()


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match="cache folder .*taken.* cannot be written to .*Set XDG_CACHE_HOME"):
        meteor_tables.Tables(*_write_tables(tmp_path, [("a", "b")]), tmp_path / "taken" / "cache")


def test_paraphrases_are_compiled_once_and_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    files = _write_tables(tmp_path, [("a", "b c")])
    meteor_tables.Tables(*files, cache)
    (folder,) = cache.iterdir()
    monkeypatch.setattr(meteor_tables, "_compile", None)
    assert len(list(meteor_tables.Tables(*files, cache).paraphrases.phrases([0]))) == 1
    monkeypatch.undo()
    meteor_tables.Tables(*_write_tables(tmp_path, [("a", "b")]), cache)
    assert len(list(cache.iterdir())) == 2 and folder.exists()


def test_a_cut_file_leaves_nothing_behind(tmp_path: Path) -> None:
    jar, paraphrases = _write_tables(tmp_path, [("a", "b c")])
    with gzip.open(paraphrases, "at", encoding="utf-8") as file:
        file.write("0.5\na\n")
    with pytest.raises(ValueError, match="shorter"):
        meteor_tables.Tables(jar, paraphrases, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert meteor_tables._cache_folder() == tmp_path / "pixel_align"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert meteor_tables._cache_folder() == Path.home() / ".cache" / "pixel_align"
