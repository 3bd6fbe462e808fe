"""Text <-> tokens, and which token stands where in the text.

A place belongs to a word, a word is a span of characters, and the model speaks tokens: everything that says which token
means which characters is here. All spans are [start, end) in CHARACTERS (code points) of a Python string, never bytes.
"""

from __future__ import annotations

import abc
import hashlib
import io
import os
import re
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
        tokens = np.asarray(ids, np.int64)
        if tokens.ndim != 1:
            raise ValueError(
                f"ids is an array of shape {tokens.shape}, expected one dimension. Decode one text at a time."
            )
        if tokens.size and (tokens.min() < 0 or tokens.max() >= self.size):
            raise ValueError(
                f"ids is from {tokens.min()} to {tokens.max()}, expected 0 to {self.size - 1}. "
                "Use the vocabulary that the model was trained with."
            )
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


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary in a file, or in a folder that `Vocabulary.save` wrote to (a checkpoint).

    Raises:
      FileNotFoundError: no such file, or a folder without a vocabulary.
      ValueError: a file of no known kind.
    """
    path = Path(path)
    if path.is_dir():
        path = path / SentencePieceVocabulary.filename
    if not path.is_file():
        raise FileNotFoundError(
            f"vocabulary is {str(path)!r}, expected an existing file. "
            "Give a SentencePiece .model file or a checkpoint folder."
        )
    if path.suffix != ".model":
        raise ValueError(
            f"vocabulary is {str(path)!r}, expected a file that ends in .model (SentencePiece). Check the path."
        )
    return SentencePieceVocabulary(path)


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
