"""Tokens, characters and words: spans agree with SentencePiece's byte offsets and with the words that were written.

The same of WordPiece, whose tokens transformers' tokeniser has left in tests/goldens.
"""

from __future__ import annotations

import os
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from pixel_align import text as text_module
from pixel_align.checkpoints import store
from pixel_align.text import (
    SentencePieceVocabulary,
    Vocabulary,
    WordPieceVocabulary,
    load_vocabulary,
    tokens_of_words,
    train_sentencepiece,
    train_wordpiece,
)
from pixel_align.text_alignment import split_words
from tests.goldens import wordpiece

CORPUS = [
    "in this image there is a man riding a horse on the ground",
    "behind him there are trees and a small red circle",
    "on the left a café with two tables, a cup and a dog's bowl",
    "the picture shows a large blue square and the sky",
] * 5

TEXTS = [
    "A café with ½ cup",
    "  two  spaces 😀 here ",
    "a dog😀cat, it's",
    "ﬁne ① Å e\u0301 a\u0301b",
    "x<y &amp; 5㎏ of ㍿",
    "日本 dog…",
    "a\nb\tc\u00a0d",
    "",
    " ",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceVocabulary:
    path = train_sentencepiece(CORPUS, tmp_path_factory.mktemp("vocabulary") / "small.model", 48)
    return SentencePieceVocabulary(path, extra_ids=0)


@pytest.fixture(scope="module")
def t5(samples: Path) -> SentencePieceVocabulary:
    return SentencePieceVocabulary(samples / "tokenizers/t5/spiece.model")


@pytest.fixture(params=["small", "t5"])
def vocabulary(request: pytest.FixtureRequest) -> SentencePieceVocabulary:
    return request.getfixturevalue(request.param)


def test_the_published_vocabulary_has_its_published_ids(t5: SentencePieceVocabulary) -> None:
    assert (t5.pieces, t5.size) == (32_000, 32_128)
    assert (t5.pad_id, t5.bos_id, t5.eos_id, t5.unk_id) == (0, 0, 1, 2)
    assert t5.digest() == "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
    assert t5.encode("A dog.").tolist() == [71, 1782, 5]


@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_characters_of_the_original_text(
    vocabulary: SentencePieceVocabulary, text: str, tmp_path: Path
) -> None:
    """Against the byte offsets of SentencePiece's proto, read here by decoding prefixes of the bytes."""
    ids, spans = vocabulary.encode_with_spans(text)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.save(tmp_path)))
    pieces = reference.encode(text, return_type="proto").pieces
    assert ids.tolist() == [piece.id for piece in pieces] == reference.encode(text)
    assert ids.dtype == spans.dtype == np.int32 and spans.shape == (len(ids), 2)
    for piece, (start, end) in zip(pieces, spans.tolist(), strict=True):
        surface = text.encode()[piece.begin : piece.end].decode()
        if surface.strip():
            assert text[start:end] == surface.strip()
            assert len(text.encode()[: piece.begin].decode()) <= start
        elif piece.piece.strip("\u2581"):
            assert end - start == 1 and not text[start].isspace()  # a part of one character that became several
        else:
            assert start == end  # white space alone


@pytest.mark.parametrize("text", TEXTS)
def test_every_visible_character_is_in_a_span(vocabulary: SentencePieceVocabulary, text: str) -> None:
    _, spans = vocabulary.encode_with_spans(text)
    covered = {index for start, end in spans.tolist() for index in range(start, end)}
    assert covered == {index for index, character in enumerate(text) if not character.isspace()}
    assert (np.diff(spans[:, 0]) >= 0).all()


def test_the_half_sign_is_one_character_of_three_pieces(t5: SentencePieceVocabulary) -> None:
    text = "A café with ½ cup"
    _, spans = t5.encode_with_spans(text)
    assert [text[start:end] for start, end in spans] == ["A", "café", "with", "½", "½", "½", "cup"]


def test_tokens_find_their_words(t5: SentencePieceVocabulary) -> None:
    text = " a  café, antidisestablishment"
    _, spans = t5.encode_with_spans(text)
    owners = tokens_of_words(spans, [(1, 2), (4, 8), (10, len(text))])
    pieces = [text[start:end] for start, end in spans]
    assert pieces == ["", "a", "café", ",", "anti", "d", "is", "est", "abl", "ish", "ment"]
    assert owners.tolist() == [-1, 0, 1, -1, 2, 2, 2, 2, 2, 2, 2]


def test_tokens_of_words_takes_the_largest_overlap() -> None:
    tokens = np.array([[0, 2], [2, 6], [6, 6], [6, 9], [20, 22]])
    assert tokens_of_words(tokens, np.array([[0, 3], [3, 6], [7, 9]])).tolist() == [0, 1, -1, 2, -1]
    assert tokens_of_words(tokens, np.zeros((0, 2), np.int32)).tolist() == [-1] * 5
    assert tokens_of_words(np.zeros((0, 2), np.int32), [(0, 3)]).tolist() == []


def test_decode_stops_at_the_end_and_skips_padding(vocabulary: SentencePieceVocabulary) -> None:
    ids = vocabulary.encode("a red circle").tolist()
    assert vocabulary.decode([0, *ids[:1], 0, *ids[1:], 1, *ids, 0, 0]) == "a red circle"
    assert vocabulary.decode([]) == "" == vocabulary.decode([1, *ids])


def test_decode_spells_sentinels_and_rounding_rows_as_unknown(t5: SentencePieceVocabulary) -> None:
    assert t5.decode([71, 32_099, 1782]).split() == ["A", "⁇", "dog"] == t5.decode([71, 32_127, 1782]).split()
    with pytest.raises(ValueError, match="expected 0 to 32127"):
        t5.decode([71, 32_128])
    with pytest.raises(ValueError, match="one dimension"):
        t5.decode(np.zeros((2, 3), np.int32))


def test_decoded_spans_are_those_of_the_decoded_text(vocabulary: SentencePieceVocabulary) -> None:
    ids = [0, *vocabulary.encode("behind a café, 😀 dog's bowl"), 1, 7, 0]
    text, spans = vocabulary.decode_with_spans(ids)
    assert len(spans) == len(ids)
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert [int(end - start) for start, end in spans[[0, -3, -2, -1]]] == [0, 0, 0, 0]


def test_words_are_those_that_were_encoded(vocabulary: SentencePieceVocabulary) -> None:
    text = "behind the café antidisestablishment riding a dog"
    ids, spans = vocabulary.encode_with_spans(text)
    words = vocabulary.words([*ids, 1, 0])
    owners = tokens_of_words(spans, split_words(text))
    assert [word for word, _ in words] == text.split()
    assert [tokens for _, tokens in words] == [np.flatnonzero(owners == k).tolist() for k in range(len(words))]
    assert vocabulary.words([1]) == []


def test_a_checkpoint_folder_holds_its_vocabulary(small: SentencePieceVocabulary, tmp_path: Path) -> None:
    saved = small.save(tmp_path / "checkpoint")
    for path in (saved, saved.parent):
        loaded = load_vocabulary(path)
        assert loaded.digest() == small.digest()
        assert loaded.encode(CORPUS[0]).tolist() == small.encode(CORPUS[0]).tolist()
    assert os.listdir(saved.parent) == ["vocabulary.model"]


def test_size_is_rounded_up(small: SentencePieceVocabulary, tmp_path: Path) -> None:
    path = small.save(tmp_path)
    assert small.pieces == 48 and small.size == 128
    assert SentencePieceVocabulary(path).size == 256
    assert SentencePieceVocabulary(path, extra_ids=3, multiple_of=1).size == 51


def test_training_is_a_function_of_the_lines(small: SentencePieceVocabulary, tmp_path: Path) -> None:
    again = SentencePieceVocabulary(train_sentencepiece(iter(CORPUS), tmp_path / "again.model", 48))
    assert again.digest() == small.digest()
    assert (again.pad_id, again.eos_id, again.unk_id) == (0, 1, 2)


@pytest.mark.parametrize(
    ("lines", "size", "message"),
    [
        (["hello world", "a dog sits"], 1000, r"vocab_size is 1000, expected at most \d+ for this corpus of 2 lines"),
        (["hello world", "a dog sits"], 5, r"vocab_size is 5, expected at least \d+, one piece for each character"),
        ([" ", ""], 10, "corpus is empty, expected at least one line"),
    ],
)
def test_a_corpus_too_small_is_refused(lines: list[str], size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_sentencepiece(lines, tmp_path / "none.model", size)
    assert not list(tmp_path.iterdir())


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vocabulary is '.*absent.model', expected"):
        SentencePieceVocabulary(tmp_path / "absent.model")
    with pytest.raises(FileNotFoundError, match=r"expected an existing file"):
        load_vocabulary(tmp_path)
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot be parsed"):
        load_vocabulary(broken)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ends in \.model \(SentencePiece\) or \.txt \(WordPiece\)"):
        load_vocabulary(tmp_path / "vocab.json")
    without_pad = tmp_path / "default.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(without_pad.with_suffix("")), vocab_size=48, minloglevel=2
    )
    with pytest.raises(ValueError, match=r"pad_id of .* is not set"):
        load_vocabulary(without_pad)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(tmp_path / "other"), vocab_size=48, minloglevel=2, pad_id=3
    )
    with pytest.raises(ValueError, match=r"has pad_id=3, eos_id=2, expected T5's pad_id=0, eos_id=1"):
        load_vocabulary(tmp_path / "other.model")


# ---- WordPiece


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> WordPieceVocabulary:
    path = tmp_path_factory.mktemp("pieces") / "small.txt"
    return WordPieceVocabulary(train_wordpiece(wordpiece.CORPUS, path, wordpiece.SMALL_SIZE))


@pytest.fixture(scope="module")
def bert(samples: Path) -> WordPieceVocabulary:
    return WordPieceVocabulary(samples / "tokenizers/bert/bert-base-uncased-vocab.txt")


@pytest.fixture(params=[wordpiece.SMALL, wordpiece.PUBLISHED])
def either(request: pytest.FixtureRequest) -> WordPieceVocabulary:
    return request.getfixturevalue({wordpiece.SMALL: "pieces", wordpiece.PUBLISHED: "bert"}[request.param])


def test_bert_base_uncased_has_its_published_ids(bert: WordPieceVocabulary) -> None:
    assert (bert.size, bert.lower_case) == (30_522, True)
    assert (bert.pad_id, bert.unk_id, bert.bos_id, bert.eos_id) == (0, 100, 101, 102)
    assert bert.encode("A dog.").tolist() == [1037, 3899, 1012]


@pytest.mark.parametrize("name", [wordpiece.SMALL, wordpiece.PUBLISHED])
def test_texts_are_cut_as_transformers_cuts_them(name: str, request: pytest.FixtureRequest) -> None:
    vocabulary = request.getfixturevalue({wordpiece.SMALL: "pieces", wordpiece.PUBLISHED: "bert"}[name])
    for text, expected in zip(wordpiece.TEXTS, wordpiece.answers()[name], strict=True):
        assert vocabulary.encode(text).tolist() == expected, text


def test_a_word_is_spelled_by_the_longest_pieces_that_fit(bert: WordPieceVocabulary) -> None:
    """Against regular expressions whose alternatives stand by length."""
    letters, lines = "abcdeinorst", bert._file.decode().splitlines()
    short = [piece for piece in lines if set(piece.removeprefix("##")) <= set(letters)]
    first, inner = ([p.removeprefix("##") for p in short if p.startswith("##") == inside] for inside in (False, True))
    first_of, inner_of = (
        re.compile("|".join(map(re.escape, sorted(some, key=len, reverse=True)))) for some in (first, inner)
    )
    rng = random.Random(0)
    words = ["".join(rng.choices(letters, k=rng.randint(1, 15))) for _ in range(200)]
    for word in words:
        found, start = [], 0
        while start < len(word):
            match = (inner_of if start else first_of).match(word, start)
            assert match is not None  # every letter is a piece
            found.append("##" * (start > 0) + match[0])
            start = match.end()
        assert [lines[token] for token in bert.encode(word)] == found


@pytest.mark.parametrize("text", [*wordpiece.TEXTS, *TEXTS])
def test_spans_of_word_pieces_cover_the_original_text(either: WordPieceVocabulary, text: str) -> None:
    ids, spans = either.encode_with_spans(text)
    assert ids.dtype == spans.dtype == np.int32 and spans.shape == (len(ids), 2)
    covered = {index for start, end in spans.tolist() for index in range(start, end)}
    visible = {i for i, char in enumerate(text) if not char.isspace() and unicodedata.category(char)[0] != "C"}
    visible -= {i for i, char in enumerate(text) if char == "\ufffd" or text[max(i - 1, 0) : i + 1] == " \u0301"}
    assert visible <= covered
    assert not any(text[index].isspace() for index in covered)
    assert (np.diff(spans[:, 0]) >= 0).all() and (spans[:, 1] > spans[:, 0]).all()


def test_a_piece_stands_for_the_letters_that_it_spells(bert: WordPieceVocabulary) -> None:
    text = "a Cafe\u0301, so\u00adft DON'T tableclothes ﬁne"
    _, spans = bert.encode_with_spans(text)
    expected = ["a", "Cafe\u0301", ",", "so\u00adft", "DON", "'", "T", "table", "cloth", "es", "ﬁ", "ne"]
    assert [text[start:end] for start, end in spans] == expected


def test_word_pieces_become_a_text_as_one_writes_it(bert: WordPieceVocabulary) -> None:
    text = "on the left there's a dog's bowl, a t-shirt (red) and/or 1,000 cups: 50% of 3.5; he didn't ask \" why?"
    assert bert.decode(bert.encode(text)) == text
    ids = [101, 0, *bert.encode("a dog").tolist(), 0, 103, 102, *bert.encode("cat"), 0]
    assert bert.decode(ids) == "a dog ⁇"  # no end, no padding, and a token without a text of its own
    assert bert.decode([]) == "" == bert.decode([102, 1037])
    with pytest.raises(ValueError, match="expected 0 to 30521"):
        bert.decode([30_522])


@pytest.mark.parametrize("text", wordpiece.TEXTS)
def test_what_is_read_again_is_the_same(bert: WordPieceVocabulary, text: str) -> None:
    ids = bert.encode(text)
    if bert.unk_id not in ids:
        assert bert.encode(bert.decode(ids)).tolist() == ids.tolist()
    decoded, spans = bert.decode_with_spans([101, *ids, 102, 1037, 0])
    assert len(spans) == len(ids) + 4
    assert "".join(decoded[start:end] for start, end in spans) == "".join(decoded.split())
    assert (spans[-3:] == len(decoded)).all()


def test_words_of_word_pieces_are_those_that_were_encoded(bert: WordPieceVocabulary) -> None:
    text = "behind the dog's t-shirt, an antidisestablishmentarianism!"
    ids, spans = bert.encode_with_spans(text)
    owners = tokens_of_words(spans, split_words(text))
    expected = ["behind", "the", "dog's", "t", "shirt", "an", "antidisestablishmentarianism"]
    words = bert.words([101, *ids, 102, 0])
    assert [word for word, _ in words] == expected
    assert [at for _, at in words] == [(np.flatnonzero(owners == k) + 1).tolist() for k in range(len(words))]


def test_a_vocabulary_with_capitals_keeps_them_and_accents(tmp_path: Path) -> None:
    path = tmp_path / "cased.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nThe\nthe\ncafé\n##s\n", encoding="utf-8")
    vocabulary = WordPieceVocabulary(path)
    assert not vocabulary.lower_case
    assert vocabulary.encode("The the THE cafés cafes").tolist() == [4, 5, 1, 6, 7, 1]


def test_a_folder_holds_one_vocabulary(
    small: SentencePieceVocabulary, pieces: WordPieceVocabulary, tmp_path: Path
) -> None:
    vocabularies: list[tuple[Vocabulary, str]] = [(small, "vocabulary.model"), (pieces, "vocabulary.txt")]
    for vocabulary, name in vocabularies * 2:
        store.write_header(tmp_path, "{}", vocabulary)
        assert sorted(os.listdir(tmp_path)) == ["config.json", name]
        loaded = load_vocabulary(tmp_path)
        assert loaded.digest() == vocabulary.digest() and type(loaded) is type(vocabulary)
        assert loaded.encode(CORPUS[2]).tolist() == vocabulary.encode(CORPUS[2]).tolist()


def test_a_small_word_piece_vocabulary_spells_all_of_its_corpus(pieces: WordPieceVocabulary, tmp_path: Path) -> None:
    assert (pieces.size, pieces.pad_id, pieces.unk_id, pieces.bos_id, pieces.eos_id) == (100, 0, 1, 2, 3)
    for line in wordpiece.CORPUS:
        assert pieces.unk_id not in pieces.encode(line)
    assert len(pieces.encode("the")) == 1 and len(pieces.encode("teh")) == 3
    other = train_wordpiece(reversed(wordpiece.CORPUS), tmp_path / "again.txt", wordpiece.SMALL_SIZE)
    assert WordPieceVocabulary(other).digest() == pieces.digest()


@pytest.mark.parametrize(
    ("lines", "size", "message"),
    [
        (["a dog"], 100, "vocab_size is 100, expected 12, which spells every character, to 13, which holds every word"),
        (["a dog"], 11, "vocab_size is 11, expected 12,"),
        ([" ", ""], 10, "corpus is empty, expected at least one line"),
    ],
)
def test_a_corpus_without_enough_words_is_refused(lines: list[str], size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train_wordpiece(lines, tmp_path / "none.txt", size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\na\n", r"has no [CLS], [SEP], expected [PAD], [UNK], [CLS], [SEP], each in a line."),
        (b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n", "has [PAD] in line 2, expected it in the first"),
        (b"[PAD]\n\xff\n", "expected UTF-8 text, but byte 6 is none."),
    ],
)
def test_files_that_are_no_word_piece_vocabulary(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_vocabulary(path)


def test_predicting_needs_no_tensorflow() -> None:
    source = Path(text_module.__file__).read_text(encoding="utf-8")
    assert "tensorflow" not in source and "protobuf" not in source
