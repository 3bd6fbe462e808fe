"""Text <-> tokens, and which token stands where in the text.

A place belongs to a word, a word is a span of characters, and the model speaks tokens: everything that says which token
means which characters is here. All spans are [start, end) in CHARACTERS (code points) of a Python string, never bytes.
"""

from __future__ import annotations

import abc
import collections
import functools
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from pixel_align.text_alignment import split_words

_SPACE_PIECE = "\u2581"  # SentencePiece writes the space before a word into the word's first piece


# How region sets and prediction ask; {text} stands for the words of each region, {question} for its question.
# Published (PixelLLM's recipes); there no space came before "Answer:".
INSTRUCTIONS = {"refer": "where is {text}", "describe": "an object of", "answer": "Question: {question} Answer:"}


class Vocabulary(abc.ABC):
    """A token vocabulary held whole in memory, so that a checkpoint can carry its own copy.

    Attributes:
      size: entries of the embedding table, at least the number of tokens that `encode` can give.
      pad_id, bos_id, eos_id, unk_id: padding, begin and end of text, unknown.
    """

    size: int
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int

    @abc.abstractmethod
    def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of `text`, without begin and end, and the characters of `text` that each stands for.

        Returns:
          ids: int32[n]
          spans: int32[n, 2], [start, end) in `text`; never includes the white space around a word; empty where a token
            stands for white space alone.
        """

    @abc.abstractmethod
    def decode_with_spans(self, ids: Sequence[int] | np.ndarray) -> tuple[str, np.ndarray]:
        """Text of `ids` up to the first end of text, padding skipped.

        Returns:
          text: str
          spans: int32[n, 2] for all n of `ids`, in the returned text; empty for padding and from the end of text on.
        """

    @abc.abstractmethod
    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes the vocabulary's file into `directory`, from where `load_vocabulary` reads it; returns its path."""

    @abc.abstractmethod
    def digest(self) -> str:
        """sha256 of the vocabulary's file in hexadecimal: two runs with equal digests speak the same tokens."""

    def encode(self, text: str) -> np.ndarray:
        """Tokens of `text`, int32[n], without begin and end."""
        return self.encode_with_spans(text)[0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids` up to the first end of text, padding skipped."""
        return self.decode_with_spans(ids)[0]

    def words(self, ids: Sequence[int] | np.ndarray) -> list[tuple[str, list[int]]]:
        """The words of a token sequence, each with the positions in `ids` of the tokens that spell it.

        Words are those of `text_alignment.split_words`, those that are given places in training; tokens of white
        space and of punctuation between words belong to none.
        """
        text, token_spans = self.decode_with_spans(ids)
        word_spans = split_words(text)
        owners = tokens_of_words(token_spans, word_spans)
        return [
            (text[start:end], np.flatnonzero(owners == index).tolist()) for index, (start, end) in enumerate(word_spans)
        ]


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model with T5's conventions: pad 0, end 1, unknown 2, text begins with the pad token.

    Args:
      path: the .model file.
      extra_ids: sentinel tokens above the model's own pieces (T5: 100). They have embeddings but no text.
      multiple_of: `size` is rounded up to a multiple of this (T5: 32,000 + 100 -> 32,128), which accelerators like.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a SentencePiece model, one without pad, end or unknown token, or with others than pad 0, end 1.
    """

    filename = "vocabulary.model"

    def __init__(self, path: str | os.PathLike[str], *, extra_ids: int = 100, multiple_of: int = 128) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"vocabulary is {str(path)!r}, expected a SentencePiece .model file. Check the path."
            )
        self._model = path.read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise ValueError(
                f"vocabulary is {str(path)!r}, expected a SentencePiece model, but it cannot be parsed. "
                "Check that the file is whole and is no WordPiece or JSON vocabulary."
            ) from error
        self.extra_ids = extra_ids
        self.pieces: int = self._processor.vocab_size()
        self.size = -(-(self.pieces + extra_ids) // multiple_of) * multiple_of
        self.pad_id = self._processor.pad_id()
        self.eos_id = self._processor.eos_id()
        self.unk_id = self._processor.unk_id()
        self.bos_id = self.pad_id  # T5 has no begin token: its decoder starts on padding
        for name in ("pad_id", "eos_id", "unk_id"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} of {str(path)!r} is not set, expected a token. "
                    "Train the model with pad_id=0, eos_id=1, unk_id=2 (pixel_align.text.train_sentencepiece does)."
                )
        if (self.pad_id, self.eos_id) != (0, 1):
            raise ValueError(
                f"{str(path)!r} has pad_id={self.pad_id}, eos_id={self.eos_id}, expected T5's pad_id=0, eos_id=1: "
                "decoding relies on them. Train the model so (pixel_align.text.train_sentencepiece does)."
            )

    def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """See Vocabulary. Normalisation (NFKC, repeated spaces) moves no span: spans are those of the original text.

        A character that normalises to several pieces (a half sign to "1", a slash and "2") is the span of each of them.
        """
        encoded = self._processor.encode(text, return_type="offset_mapping")
        ids = np.asarray(encoded["ids"], np.int32)
        spans = np.zeros((len(ids), 2), np.int32)
        for index, (piece, (start, end)) in enumerate(zip(encoded["pieces"], encoded["offsets"], strict=True)):
            start, end = _trim(text, start, end)
            if start == end and piece.strip(_SPACE_PIECE):
                # The piece is visible but SentencePiece gave its character to a later piece of the same expansion.
                while end < len(text) and text[end].isspace():
                    end += 1
                start, end = end, min(end + 1, len(text))
            spans[index] = start, end
        return ids, spans

    def decode_with_spans(self, ids: Sequence[int] | np.ndarray) -> tuple[str, np.ndarray]:
        """See Vocabulary. Sentinels and the rows that only round the table up decode as unknown."""
        tokens = _checked_ids(ids, self.size)
        ends = np.flatnonzero(tokens == self.eos_id)
        spoken = tokens[: ends[0] if ends.size else None]
        known = np.where(spoken < self.pieces, spoken, self.unk_id).tolist()
        decoded = self._processor.decode(known, return_type="offset_mapping")  # padding is a control piece: no text
        text: str = decoded["text"]
        spans = np.full((len(tokens), 2), len(text), np.int32)
        for index, (start, end) in enumerate(decoded["offsets"]):
            spans[index] = _trim(text, start, end)
        return text, spans

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """See Vocabulary."""
        return _write_atomically(Path(directory) / self.filename, self._model)

    def digest(self) -> str:
        """See Vocabulary."""
        return hashlib.sha256(self._model).hexdigest()


class WordPieceVocabulary(Vocabulary):
    """A WordPiece vocabulary with BERT's conventions: a text begins with [CLS] and ends with [SEP], padding is 0.

    Texts are cut into words at white space and at every punctuation mark and Chinese character; a word is spelled by
    the longest pieces that fit, from its start on, those inside a word marked by "##"; a word that cannot be spelled is
    [UNK]. A vocabulary without capital letters is of texts in lower case without accents, as bert-base-uncased. Names
    of special tokens in a text are words like others. Source: Devlin et al. 2018 and its published tokeniser.

    Args:
      path: the .txt file, one piece a line; the number of a line, from 0, is its token.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not UTF-8; without [PAD] in the first line, [UNK], [CLS] and [SEP].
    """

    filename = "vocabulary.txt"
    longest_word = 100  # characters; longer words are unknown (published)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"vocabulary is {str(path)!r}, expected a WordPiece .txt file. Check the path.")
        self._file = path.read_bytes()
        try:
            lines = self._file.decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"vocabulary is {str(path)!r}, expected UTF-8 text, but byte {error.start} is none. "
                "Check that the file is a WordPiece vocabulary, one piece a line."
            ) from error
        self._pieces = [line.rstrip("\r") for line in lines]
        self._ids = {piece: index for index, piece in enumerate(self._pieces)}
        if missing := [piece for piece in _SPECIAL if piece not in self._ids]:
            raise ValueError(
                f"{str(path)!r} has no {', '.join(missing)}, expected {', '.join(_SPECIAL)}, each in a line. "
                "Give a BERT vocabulary, or make one with pixel_align.text.train_wordpiece."
            )
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = (self._ids[piece] for piece in _SPECIAL)
        if self.pad_id != 0:
            raise ValueError(
                f"{str(path)!r} has [PAD] in line {self.pad_id + 1}, expected it in the first: batches are padded with "
                "zeros. Give a BERT vocabulary, or make one with pixel_align.text.train_wordpiece."
            )
        self.size = len(self._pieces)
        self.lower_case = not any(piece != piece.lower() for piece in self._pieces if not _NAME.fullmatch(piece))

    def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """See Vocabulary. An accent that is taken off belongs to the span of its letter."""
        ids, spans = [], []
        for word, starts, ends in _bert_words(text, self.lower_case):
            for token, first, last in self._spell(word):
                ids.append(token)
                spans.append((starts[first], ends[last - 1]))
        return np.asarray(ids, np.int32), np.asarray(spans, np.int32).reshape(-1, 2)

    def _spell(self, word: str) -> list[tuple[int, int, int]]:
        """The pieces of a word: (token, first character, behind the last)."""
        unknown = [(self.unk_id, 0, len(word))]
        if len(word) > self.longest_word:
            return unknown
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                token = self._ids.get("##" * (start > 0) + word[start:end])
                if token is not None:
                    break
            else:
                return unknown
            pieces.append((token, start, end))
            start = end
        return pieces

    def decode_with_spans(self, ids: Sequence[int] | np.ndarray) -> tuple[str, np.ndarray]:
        """See Vocabulary. Where a text had spaces is not in its tokens: they are put between words as one writes them,
        and not around the marks inside a word or a number. Tokens without a text of their own decode as unknown.
        """
        tokens = _checked_ids(ids, self.size)
        ends = np.flatnonzero(tokens == self.eos_id)
        spoken = tokens[: ends[0] if ends.size else None]
        words: list[str] = []
        places: dict[int, tuple[int, int, int]] = {}  # place in ids -> word, its first and last character
        for index, token in enumerate(spoken.tolist()):
            if token in (self.pad_id, self.bos_id):
                continue
            piece = "\u2047" if _NAME.fullmatch(self._pieces[token]) else self._pieces[token]
            if not words or not piece.startswith("##"):
                words.append("")
            piece = piece.removeprefix("##")
            places[index] = len(words) - 1, len(words[-1]), len(words[-1]) + len(piece)
            words[-1] += piece
        text, begins = "", []
        for index, word in enumerate(words):
            text += " " * _is_spaced(words, index)
            begins.append(len(text))
            text += word
        spans = np.full((len(tokens), 2), len(text), np.int32)
        for index, (at, start, end) in places.items():
            spans[index] = begins[at] + start, begins[at] + end
        return text, spans

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """See Vocabulary."""
        return _write_atomically(Path(directory) / self.filename, self._file)

    def digest(self) -> str:
        """See Vocabulary."""
        return hashlib.sha256(self._file).hexdigest()


_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_NAME = re.compile(r"\[\w+\]")  # a special piece; of a text's own pieces none has brackets and letters

# Blocks of Chinese characters as BERT counts them; kana and Hangul are written with spaces or are not, and stay.
_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


@functools.lru_cache(maxsize=1 << 16)
def _bert_character(char: str, lower_case: bool) -> tuple[str, bool]:
    """A character as BERT reads it (" " for white space, "" for what it drops), and whether it is a word by itself."""
    if char in " \t\n\r":
        return " ", False
    if char in "\0\ufffd" or unicodedata.category(char)[0] == "C":
        return "", False
    if char.isspace():
        return " ", False
    alone = any(low <= ord(char) <= high for low, high in _CHINESE)
    if lower_case:
        letters = unicodedata.normalize("NFD", char)
        char = "".join(letter for letter in letters if unicodedata.category(letter) != "Mn").lower()
    return char, alone or any(unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~" for c in char)


def _bert_words(text: str, lower_case: bool) -> list[tuple[str, list[int], list[int]]]:
    """The words of a text as BERT cuts and spells them, with where each of their characters begins and ends in it."""
    words: list[tuple[list[str], list[int], list[int]]] = []
    inside = touching = False  # whether the next letter belongs to the last word, the next accent to its last letter
    for index, original in enumerate(text):
        char, alone = _bert_character(original, lower_case)
        if char == " ":
            inside = touching = False
        elif not char:
            if touching and unicodedata.category(original) == "Mn":
                words[-1][2][-1] = index + 1
        else:
            if alone or not inside:
                words.append(([], [], []))
            letters, starts, ends = words[-1]
            letters.extend(char)
            starts.extend([index] * len(char))
            ends.extend([index + 1] * len(char))
            inside, touching = not alone, True
    return [("".join(word), starts, ends) for word, starts, ends in words]


_CLOSING, _OPENING = frozenset(",.!?;:%)]}"), frozenset("([{")
_CONTRACTED = frozenset(("s", "t", "m", "d", "re", "ve", "ll", "clock"))


def _is_spaced(words: Sequence[str], index: int) -> bool:
    """Whether a space stands before a word of a text that was cut at its punctuation."""
    if index == 0 or words[index] in _CLOSING or words[index - 1] in _OPENING:
        return False
    return not (_joins(words, index) or _joins(words, index - 1))


def _joins(words: Sequence[str], index: int) -> bool:
    """Whether a word is a mark inside a larger one: t-shirt, the dog's, 3.5."""
    if not 0 < index < len(words) - 1:
        return False
    before, mark, after = words[index - 1 : index + 2]
    if mark in ("-", "/"):
        return before[-1].isalnum() and after[0].isalnum()
    if mark in ("'", "’"):
        return before[-1].isalnum() and after in _CONTRACTED
    return mark in (".", ",", ":") and before[-1].isdigit() and after[0].isdigit()


_KINDS: tuple[type[SentencePieceVocabulary | WordPieceVocabulary], ...] = (SentencePieceVocabulary, WordPieceVocabulary)


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary in a file, or in a folder that `Vocabulary.save` wrote to (a checkpoint).

    Raises:
      FileNotFoundError: no such file, or a folder without a vocabulary.
      ValueError: a file of no known kind.
    """
    path = Path(path)
    kinds = {Path(kind.filename).suffix: kind for kind in _KINDS}
    if path.is_dir():
        saved = vocabulary_files(path)
        path = next((file for file in saved if file.is_file()), saved[0])
    if not path.is_file():
        raise FileNotFoundError(
            f"vocabulary is {str(path)!r}, expected an existing file. "
            "Give a SentencePiece .model file, a WordPiece .txt file or a checkpoint folder."
        )
    if path.suffix not in kinds:
        raise ValueError(
            f"vocabulary is {str(path)!r}, expected a file that ends in .model (SentencePiece) or .txt (WordPiece). "
            "Check the path."
        )
    return kinds[path.suffix](path)


def vocabulary_files(directory: str | os.PathLike[str]) -> list[Path]:
    """Where a vocabulary lies in a checkpoint's folder, by its kind: one of these."""
    return [Path(directory) / kind.filename for kind in _KINDS]


def tokens_of_words(token_spans: np.ndarray, word_spans: np.ndarray | Sequence[tuple[int, int]]) -> np.ndarray:
    """For each token the word that it spells, by largest overlap of their characters.

    Args:
      token_spans: int[n, 2], [start, end) characters.
      word_spans: int[m, 2], [start, end) characters of the same text.

    Returns:
      int32[n]: index of the word, -1 where the token shares no character with any word; the earlier word on a tie.
    """
    tokens = np.asarray(token_spans, np.int64).reshape(-1, 1, 2)
    words = np.asarray(word_spans, np.int64).reshape(1, -1, 2)
    if not words.size:
        return np.full(len(tokens), -1, np.int32)
    overlap = np.minimum(tokens[..., 1], words[..., 1]) - np.maximum(tokens[..., 0], words[..., 0])
    return np.where(overlap.max(axis=1) > 0, overlap.argmax(axis=1), -1).astype(np.int32)


def train_sentencepiece(
    lines: Iterable[str],
    path: str | os.PathLike[str],
    vocab_size: int,
    *,
    model_type: Literal["unigram", "bpe"] = "unigram",
    character_coverage: float = 0.9995,
) -> Path:
    """Trains a SentencePiece model with T5's ids (pad 0, end 1, unknown 2, no begin) and normalisation (NFKC).

    The file is a function of the lines alone (one thread) and appears whole or not at all.

    Args:
      lines: the corpus, one sentence each.
      path: the .model file to write.
      vocab_size: number of pieces.
      model_type: "unigram" as T5's, or "bpe", which finds whole words in a corpus of few distinct ones.
      character_coverage: share of the corpus' characters that get a piece of their own; the rest is unknown.

    Raises:
      ValueError: the corpus is empty, or has too little text or too many characters for vocab_size.
    """
    path = Path(path)
    sentences = [line for line in lines if line.strip()]
    if not sentences:
        raise ValueError(
            "corpus is empty, expected at least one line of text. Check the files that the lines come from."
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if bound := re.search(r"value <= (\d+)", str(error)):
            raise ValueError(
                f"vocab_size is {vocab_size}, expected at most {bound[1]} for this corpus of {len(sentences)} lines. "
                "Give more text or a smaller vocab_size."
            ) from error
        if bound := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise ValueError(
                f"vocab_size is {vocab_size}, expected at least {bound[1]}, one piece for each character. "
                "Give a larger vocab_size or a smaller character_coverage."
            ) from error
        raise
    return _write_atomically(path, model.getvalue())


def train_wordpiece(lines: Iterable[str], path: str | os.PathLike[str], vocab_size: int) -> Path:
    """Makes a WordPiece vocabulary of lower case from texts: special pieces, every character, the most frequent words.

    Whole words, since it is for corpora of few distinct ones; what is not among them is spelled by its characters. The
    tokens that begin and end a text are 2 and 3. The file is a function of the lines alone, whatever their order, and
    appears whole or not at all.

    Args:
      lines: the corpus. path: the .txt file to write. vocab_size: number of pieces.

    Raises:
      ValueError: the corpus is empty, has too few words or too many characters for vocab_size.
    """
    words = collections.Counter(word for line in lines for word, _, _ in _bert_words(line, True))
    if not words:
        raise ValueError(
            "corpus is empty, expected at least one line of text. Check the files that the lines come from."
        )
    characters = sorted({char for word in words for char in word})
    inner = ["##" + char for char in characters if not _bert_character(char, True)[1]]
    pieces = [*_SPECIAL, *characters, *inner]
    least = len(pieces)
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    pieces += frequent[: max(vocab_size - least, 0)]
    if len(pieces) != vocab_size:
        most = least + len(frequent)
        raise ValueError(
            f"vocab_size is {vocab_size}, expected {least}, which spells every character, to {most}, which holds every "
            "word of this corpus. Change it or give more text."
        )
    return _write_atomically(Path(path), "".join(f"{piece}\n" for piece in pieces).encode())


def _checked_ids(ids: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Tokens of one text, Int64[n]. Raises ValueError for what a vocabulary of that size cannot decode."""
    tokens = np.asarray(ids, np.int64)
    if tokens.ndim != 1:
        raise ValueError(f"ids is an array of shape {tokens.shape}, expected one dimension. Decode one text at a time.")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= size):
        raise ValueError(
            f"ids is from {tokens.min()} to {tokens.max()}, expected 0 to {size - 1}. "
            "Use the vocabulary that the model was trained with."
        )
    return tokens


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space at its two ends."""
    visible = text[start:end].strip()
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return start, start + len(visible)


def _write_atomically(path: Path, content: bytes) -> Path:
    """Writes a file that is whole or absent, also when the process dies or several write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
    return path
