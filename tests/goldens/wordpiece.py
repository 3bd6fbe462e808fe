"""Texts that WordPiece stumbles over, and the corpus of a small vocabulary.

`make parity` asks transformers how it cuts them, with this vocabulary and with bert-base-uncased's, and leaves the
tokens in wordpiece.json, which `make test` checks.
"""

import json
from pathlib import Path

PATH = Path(__file__).with_suffix(".json")
PUBLISHED = "bert-base-uncased"
SMALL = "small"
SMALL_SIZE = 100

CORPUS = [
    "in this image there is a man riding a horse on the ground",
    "behind him there are trees, and a small red circle.",
    "on the left a café with two tables, a cup and a dog's bowl",
    "the picture shows a large blue square: 3.5 x 10 (the sky)!",
    "日本 ½",
] * 3

TEXTS = [
    "In this image there is a man riding a horse.",
    "The DOG's bowl, a t-shirt (red); 3.5 cups & 50% of $10",
    "don't won't it's the girls' dresses rock'n'roll",
    "a café, an Ångström, naïve façade; İstanbul, ﬁne",
    "e\u0301 a\u0301b c\u0327\u0301d \u0301x !\u0301y",
    "  two  spaces\tand\na\u00a0line\u2028end\u200b of\u00adten \x00x\ufffdy \x7f",
    "日本の犬 한국어 dog 中文!",
    "🙂 a dog🙂cat 👨‍👩‍👧 ½ cup ® ∞ №5",
    "ΟΔΟΣ Σίσυφος мир عرب ß STRASSE",
    "antidisestablishmentarianism unbelievably playing zzzzqqq",
    "q" * 100 + " " + "q" * 101,
    "$5+3=8 <b>x|y</b> ^_^ `a` ~b~ [unused] {c} #d @e f\\g h/i *j*",
    "“quoted” ‘single’ «french» — dash – en… ‹a›",
    "",
    " ",
]


def answers() -> dict[str, list[list[int]]]:
    """Name of the vocabulary -> the tokens of each of TEXTS."""
    found: dict[str, list[list[int]]] = json.loads(PATH.read_text(encoding="utf-8"))
    return found
