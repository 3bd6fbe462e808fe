"""METEOR 1.5's own normaliser for English (its option -norm): text -> lower-case words and punctuation.

It follows Moses: punctuation is set apart, contractions are parted before the apostrophe, hyphenated words are parted
and lose the hyphen, a full stop is set apart unless it belongs to an abbreviation.
"""

import re
from collections.abc import Mapping

# The letters of METEOR: Latin with its extensions, Cyrillic, phonetic. Others count as punctuation.
_LETTERS = "A-Za-zÀ-ÖØ-öø-ž\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
_SPACES = " \t\n\v\f\r"  # what the original's patterns take for white space

# In order, each over the whole text if it has the mark. Patterns take neighbours with them, so that of "a'b'c" only one
# is parted: such overlaps are as in the original.
_REWRITES = tuple(
    (mark, re.compile(pattern), replacement)
    for mark, pattern, replacement in (
        ("", rf"([^0-9{_LETTERS}{_SPACES}.'`,\-‘’])", r" \1 "),
        ("..", r"(\.{2,})", r" \1 "),
        (",", r"([^0-9]),([^0-9])", r"\1 , \2"),
        (",", r"([0-9]),([^0-9])", r"\1 , \2"),
        (",", r"([^0-9]),([0-9])", r"\1 , \2"),
        ("", r"[`‘’]", "'"),
        ("", r"[“”]|''", ' " '),
        ("", r"–|--", "-"),
        ("-", rf"([0-9{_LETTERS}.])-([0-9{_LETTERS}])", r"\1 \2"),
        ("'", rf"([^{_LETTERS}])'([^{_LETTERS}])", r"\1 ' \2"),
        ("'", rf"([^{_LETTERS}0-9])'([{_LETTERS}])", r"\1 ' \2"),
        ("'", rf"([{_LETTERS}])'([^{_LETTERS}])", r"\1 ' \2"),
        ("'", rf"([{_LETTERS}])'([{_LETTERS}])", r"\1 '\2"),
        ("'", r"([0-9])'(s)", r"\1 '\2"),
    )
)
_PLAIN = re.compile(r"([A-Za-z0-9 ]*)(\.?) *")  # nothing to rewrite, and at most a full stop at the end
_TOKEN = re.compile(r"[^ \t\n\f\r]+")
_LETTER = re.compile(f"[{_LETTERS}]")
_WIDE_SPACES = re.compile("[ \u2000-\u200a\u202f\u205f\u3000\u00a0]+")
_CONTROL = "".join(map(chr, range(33)))  # what Java's trim takes off


def normalize(text: str, abbreviations: Mapping[str, bool]) -> list[str]:
    """Words and punctuation of a text, lower case.

    Args:
        text: line breaks are white space.
        abbreviations: see `Tables.abbreviations`.
    """
    if plain := _PLAIN.fullmatch(text):
        words = plain[1].split()
        if not plain[2] or not words or words[-1] not in abbreviations:
            return [*plain[1].lower().split(), *plain[2]]
    text = f" {text.strip(_CONTROL)} "
    for mark, pattern, replacement in _REWRITES:
        if mark in text:
            text = pattern.sub(replacement, text)
    tokens = _TOKEN.findall(text)
    parted = [
        _full_stop(token, following, abbreviations) if token[-1] == "." and len(token) > 1 else token
        for token, following in zip(tokens, [*tokens, ""][1:], strict=True)
    ]
    return _TOKEN.findall(_WIDE_SPACES.sub(" ", " ".join(parted)).strip(_CONTROL).lower())


def _full_stop(token: str, following: str, abbreviations: Mapping[str, bool]) -> str:
    """A token that ends in a full stop, parted from it where it does not belong to it."""
    word = token[:-1]
    if not token.strip("."):  # an ellipsis
        return token
    if "." in word and _LETTER.search(word):
        return token.replace(".", "")
    number_only = abbreviations.get(word)
    if number_only is False or "a" <= following[:1] <= "z" or (number_only and "0" <= following[:1] <= "9"):
        return token
    return f"{word} ."
