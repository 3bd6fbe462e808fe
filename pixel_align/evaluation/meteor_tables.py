"""What METEOR 1.5 knows about English: stems, synonyms, paraphrases, function words, abbreviations.

The tables are read from the package `pycocoevalcap` (extra `eval`), which carries the original jar and, beside it, 5.27
million pairs of paraphrases. The pairs are compiled once into arrays that are then mapped into memory: a tree of all
phrases, word by word, and for each phrase where the phrases stand that mean the same.
"""

import bisect
import functools
import gzip
import hashlib
import importlib.util
import itertools
import os
import shutil
import tempfile
import zipfile
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FORMAT = 1  # of the compiled files; a change makes new ones


class Word(NamedTuple):
    """What is known about one word, lower case."""

    stem: str
    synsets: frozenset[str]  # WordNet's numbers of its meanings and of its base form's
    function: bool
    number: int  # in the paraphrases, -1 for none


class Phrase(NamedTuple):
    """A phrase that has a place in the paraphrases."""

    number: int
    others: dict[int, int]  # the phrases that mean the same -> their order in the table


class Paraphrases:
    """A tree of phrases in mapped arrays; a phrase is the number of its last word's node.

    Nodes are numbered level by level, so that the children of one stand side by side, sorted by word:
        words uint32[N]: the word that leads to a node; children uint32[N + 1]: where its children begin;
        entries uint32[N + 1]: where its paraphrases begin in targets uint32[E], in the order of the source.
    """

    def __init__(self, folder: Path) -> None:
        self.numbers = {word: n for n, word in enumerate((folder / "vocabulary.txt").read_text("utf-8").split("\n"))}
        self._words, self._children, self._entries, self._targets = (
            memoryview(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("words", "children", "entries", "targets")
        )
        self._levels = [1, self._children[1]]  # the first node of each length
        while (end := self._children[self._levels[-1]]) < len(self._words):
            self._levels.append(end)
        # Looked up in a table of the last ones asked for: most words of a text have been met before.
        self.longer = functools.lru_cache(maxsize=1 << 17)(self._longer)

    def phrases(self, numbers: Sequence[int]) -> Iterator[tuple[int, int, Phrase]]:
        """(start, length, phrase) of the phrases in a sentence, by start, then length.

        Some may be mere beginnings of phrases.

        Args:
            numbers: `Word.number` of each word.
        """
        for start in range(len(numbers)):
            node = 0
            for end in range(start, len(numbers)):
                phrase = self.longer(node, numbers[end])
                if phrase is None:
                    break
                node = phrase.number
                yield start, end + 1 - start, phrase

    def _longer(self, node: int, word: int) -> Phrase | None:
        """The phrase of a node's words (none for 0) and one more."""
        low, high = self._children[node], self._children[node + 1]
        if word < 0 or (child := bisect.bisect_left(self._words, word, low, high)) == high:
            return None
        if self._words[child] != word:
            return None
        others = self._targets[self._entries[child] : self._entries[child + 1]]
        return Phrase(child, {other: i for i, other in enumerate(others)})

    def length(self, phrase: int) -> int:
        """Number of its words."""
        return bisect.bisect_right(self._levels, phrase)


class Tables:
    """All tables of one installed `pycocoevalcap`.

    Attributes:
        abbreviations: words after which a full stop ends no sentence -> whether only before a number.
        paraphrases: see `Paraphrases`.
    """

    def __init__(self, jar: Path, paraphrases: Path, cache: Path | None = None) -> None:
        """Opens the tables; compiles the paraphrases into the folder `cache` if they are not there.

        Args:
            jar: meteor-1.5.jar.
            paraphrases: paraphrase-en.gz.
            cache: default $XDG_CACHE_HOME/pixel_align, else ~/.cache/pixel_align.
        """
        with zipfile.ZipFile(jar) as archive:

            def lines(name: str) -> list[str]:
                return archive.read(name).decode("utf-8").splitlines()

            self._function = frozenset(lines("function/english.words"))
            self.abbreviations = _abbreviations(lines("nonbreaking/english.prefixes"))
            synsets = lines("synonym/english.synsets")
            # Split when asked for: few of the 148,000 words ever are.
            self._synsets = dict(zip(synsets[::2], synsets[1::2], strict=True))
            self._bases: dict[str, list[str]] = {}
            exceptions = lines("synonym/english.exceptions")
            for base, forms in zip(exceptions[::2], exceptions[1::2], strict=True):
                for form in forms.split():
                    self._bases.setdefault(form, []).append(base)
        self._stem = _stemmer()
        self.paraphrases = Paraphrases(_compiled(paraphrases, cache or _cache_folder()))
        self.word = functools.lru_cache(maxsize=1 << 16)(self._word)

    def _word(self, word: str) -> Word:
        bases = [word, *(self._bases.get(word) or [self._base(word)])]
        synsets = frozenset(itertools.chain.from_iterable(self._synsets.get(base, "").split() for base in bases))
        return Word(self._stem(word), synsets, word in self._function, self.paraphrases.numbers.get(word, -1))

    def _base(self, word: str) -> str:
        """The base form that WordNet's rules of endings give, as METEOR applies them: the first that is a word."""
        if word.endswith("ss") or len(word) <= 2:
            return word
        for ending, instead in _ENDINGS:
            if word.endswith(ending) and (base := word.removesuffix(ending) + instead) in self._synsets:
                return base
        return ""


# Of nouns, verbs, adjectives, in the order in which METEOR tries them.
_ENDINGS = (
    *(
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    *(("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)


@functools.cache
def installed() -> Tables:
    """The tables of the installed `pycocoevalcap`; compiled on first use (about twelve seconds), then 0.1 s to open.

    Raises:
        ModuleNotFoundError: the package, a file of it, or snowballstemmer is not there.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = [Path(folder) / "meteor" for folder in spec.submodule_search_locations or ()] if spec else []
    for folder in folders:
        jar, paraphrases = folder / "meteor-1.5.jar", folder / "data" / "paraphrase-en.gz"
        if jar.exists() and paraphrases.exists():
            return Tables(jar, paraphrases)
    raise ModuleNotFoundError(
        "package pycocoevalcap is missing, expected it installed: METEOR's tables are in it. "
        "pip install 'pixel-align[eval]', or ask for no METEOR."
    )


def _stemmer() -> Callable[[str], str]:
    try:
        import snowballstemmer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "package snowballstemmer is missing, expected it installed: METEOR compares stems. "
            "pip install 'pixel-align[eval]', or ask for no METEOR."
        ) from error
    return snowballstemmer.stemmer("english").stemWord


def _abbreviations(lines: Sequence[str]) -> dict[str, bool]:
    fields = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return {first: "#NUMERIC_ONLY#" in rest for first, *rest in fields}


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixel_align"


def _compiled(source: Path, cache: Path) -> Path:
    """The folder with the compiled paraphrases of a file: found by its digest, else made and moved there whole."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache / f"meteor-paraphrases-{_FORMAT}-{digest}"
    if not folder.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
        except OSError as error:
            raise ValueError(
                f"cache folder {str(cache)!r} cannot be written to ({error.strerror}), expected a folder for METEOR's "
                "tables. Set XDG_CACHE_HOME to another one."
            ) from error
        try:
            _compile(source, made)
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same result
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _compile(source: Path, folder: Path) -> None:
    """Writes the arrays of `Paraphrases` from lines in threes: a probability (unused), a phrase, what it also is."""
    numbers: dict[str, int] = {}
    pairs = array("I")
    with gzip.open(source, "rt", encoding="utf-8", newline="\n") as lines:
        for _, phrase, other in zip(lines, lines, lines, strict=True):
            pairs.append(numbers.setdefault(phrase, len(numbers)))
            pairs.append(numbers.setdefault(other, len(numbers)))
    vocabulary = sorted(set(itertools.chain.from_iterable(map(str.split, numbers))))
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary), "utf-8")
    nodes, words, children = _tree(numbers, {word: n for n, word in enumerate(vocabulary)})
    phrases, others = nodes[np.frombuffer(pairs, np.uintc).reshape(-1, 2)].T
    order = np.argsort(phrases, kind="stable")
    np.save(folder / "words.npy", words)
    np.save(folder / "children.npy", children)
    np.save(folder / "entries.npy", np.searchsorted(phrases[order], np.arange(len(words) + 1)).astype(np.uint32))
    np.save(folder / "targets.npy", others[order])


def _tree(phrases: Collection[str], numbers: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P phrases -> the node of each, uint32[P], and the arrays words and children of `Paraphrases`."""
    lengths = np.fromiter((phrase.count(" ") + 1 for phrase in phrases), int, len(phrases))
    # -1 beyond the end, so that a phrase sorts before those that go on.
    table = np.full((len(phrases), lengths.max()), -1, np.int32)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.fromiter(
        (numbers[word] for phrase in phrases for word in phrase.split()), np.int32, lengths.sum()
    )
    order = np.lexsort(table.T[::-1])
    table, lengths = table[order], lengths[order]
    node = np.zeros(len(table), np.uint32)  # of the words so far
    differs = np.zeros(len(table), bool)  # from the row above, in the words so far
    differs[0] = True
    words, children, size = [np.zeros(1, np.uint32)], [], 1
    for level in range(table.shape[1]):
        differs[1:] |= table[1:, level] != table[:-1, level]
        inside = lengths > level
        new = inside & differs
        parents = np.arange(size - len(words[-1]), size)
        children.append(size + np.searchsorted(node[new], parents).astype(np.uint32))
        words.append(table[new, level].astype(np.uint32))
        node[inside] = size - 1 + np.cumsum(new)[inside]
        size += len(words[-1])
    children.append(np.full(len(words[-1]) + 1, size, np.uint32))
    nodes = np.empty_like(node)
    nodes[order] = node
    return nodes, np.concatenate(words), np.concatenate(children)
