"""Penn Treebank words of a caption, as coco-caption gets them from Stanford's PTBTokenizer (CoreNLP 3.4.1). No Java.

coco-caption runs it with -preserveLines -lowerCase and then drops some punctuation. Here the same decisions are made by
a table of kinds of tokens: at each place the longest match wins, among equals the first in the table. What a kind needs
to see after the token counts for its length, and is then read again. The table was found by asking the original.

What differs, knowingly (docs/metrics.md): letters that are younger than the original are words here and nothing there;
a line break in a caption is a space here and shifts all later captions there; a caption is read alone, where the
original may look at the beginning of the next one.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

# coco-caption's list. The tokenizer gives -lrb- in lower case, so brackets stay, as they do there.
_DROPPED = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:;", "-", "--", "..."))


@functools.lru_cache(maxsize=1 << 16)
def tokenize(caption: str) -> str:
    """The words of a caption in lower case, one space between them.

    A few tokens have a no-break space inside ("1 1/2", tags, phone numbers), as in the original.
    """
    return " ".join(token for token in map(str.lower, _tokens(caption)) if token not in _DROPPED)


class _Kind(NamedTuple):
    """A kind of token.

    Attributes:
        pattern: group 1 is the token; what follows it in the match only has to be there.
        rewrite: of the token's text, where it does not stay as it is; nothing left means no token.
        cut: how many characters at the token's end are read again.
    """

    pattern: re.Pattern[str]
    rewrite: Callable[[str], str] | None
    cut: int


def _tokens(caption: str) -> Iterator[str]:
    # In the original another line always follows.
    text = _LINE_BREAK.sub(" ", caption) + "\n\n"
    kinds, place = _kinds(), 0
    while place < len(text):
        if (match := _PLAIN.match(text, place)) and match[0].lower() not in _PARTED:
            yield match[0]
            place = match.end()
            continue
        best, longest = None, 0
        for kind in kinds:
            if (match := kind.pattern.match(text, place)) and match.end() - place > longest:
                best, token, longest = kind, match[1], match.end() - place
        if best is None:  # white space, and what the original cannot read
            place += 1
            continue
        token = token[: len(token) - best.cut]
        place += len(token)
        if token := best.rewrite(token) if best.rewrite else token:
            yield token


_LINE_BREAK = re.compile("[\n\r\v\f\x85\u2028\u2029]")
# Most words; the table would say the same, and slower.
_PLAIN = re.compile(r"[A-Za-z]+(?=[ \n])")
_PARTED = {"cannot": 3, "gonna": 2, "gotta": 2, "lemme": 2, "gimme": 2, "wanna": 2}


@functools.cache
def _kinds() -> tuple[_Kind, ...]:
    """The table. Half a second is saved to those who never tokenise."""
    return (*_markup_kinds(), *_word_kinds(), *_web_kinds(), *_number_kinds(), *_sign_kinds(), *_late_kinds())


def _kind(token: str, ahead: str = "", rewrite: Callable[[str], str] | None = None, cut: int = 0) -> _Kind:
    return _Kind(re.compile(f"({token}){ahead}"), rewrite, cut)


def _becomes(text: str) -> Callable[[str], str]:
    return lambda _: text


# Parts of patterns.
_D = r"\d"
_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000\n]"
_APOSTROPHE = r"(?:['\x92\u2019]|&apos;)"
_ANY_APOSTROPHE = r"(?:['\x92\u2019\x91\u2018\u201b`]|&apos;)"
_ENDING = rf"(?i:{_APOSTROPHE}(?:[msd]|re|ve|ll))"
_NOT = rf"(?i:n{_ANY_APOSTROPHE}t)"
_INSIDE = "[,;:\u3001]"  # punctuation inside a sentence: a full stop before it belongs to the word
_ACRONYM = r"(?:[A-Za-z](?:\.[A-Za-z])+|(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R))"
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf""" +{_NAME}(?: *= *(?:'[^'\n]*'|"[^"\n]*"))?"""
_TAG = rf"<(?:[!?][A-Za-z-][^>\n]*|{_NAME}(?:{_ATTRIBUTE})* */?|/{_NAME} *)>"
# Not in addresses of the web: anywhere, and at the end.
_NO_URL, _NO_URL_END = r" \t\n\f\r\"<>|()", r" \t\n\f\r\"<>|.!?(){},-"


@functools.cache
def _letters() -> str:
    return "A-Za-z" + _ranges(lambda char: unicodedata.category(char)[0] == "L")


@functools.cache
def _word_letters() -> str:
    """Letters, the accents and vowel signs that belong to them, the soft hyphen."""

    def mark(char: str) -> bool:
        category = unicodedata.category(char)
        accent = char < "\u0ece" and category in ("Mn", "Mc") and char != "\u0614"
        return accent or ("\u02c2" <= char <= "\u0385" and category == "Sk")

    return f"{_letters()}{_ranges(mark)}\xad"


@functools.cache
def _word() -> str:
    """Letters, digits after the first, and full stops, exclamation and question marks between letters."""
    part = rf"(?:[{_word_letters()}]|{_ENTITY})(?:[{_word_letters()}{_D}]|{_ENTITY})*"
    return rf"{part}(?:[.!?]{part})*"


_ENTITY = "&[aeiouAEIOU](?:acute|grave|uml);"


def _ranges(wanted: Callable[[str], bool]) -> str:
    """The characters of the basic plane beyond ASCII that are wanted, as inside a regular expression's brackets."""
    codes = [code for code in range(0x80, 0x10000) if wanted(chr(code))]
    gaps = [i for i in range(1, len(codes)) if codes[i] != codes[i - 1] + 1]
    runs = zip([0, *gaps], [*gaps, len(codes)], strict=True)
    return "".join(f"\\u{codes[start]:04x}-\\u{codes[end - 1]:04x}" for start, end in runs)


def _markup_kinds() -> tuple[_Kind, ...]:
    return (
        _kind(_TAG, rewrite=_no_break),
        _kind("(?i:&(?:MD|mdash|ndash);)|[\x96\x97\u2013\u2014\u2015]", rewrite=_becomes("--")),
        _kind("(?i:&amp;)", rewrite=_becomes("&")),
        _kind("(?i:&nbsp;)", rewrite=_becomes("")),
        _kind("(?i:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)"),
        _kind('"|(?i:&quot;)', rewrite=_becomes("''")),
        _kind("<|(?i:&lt;)", rewrite=_becomes("<")),
        _kind(">|(?i:&gt;)", rewrite=_becomes(">")),
    )


def _word_kinds() -> tuple[_Kind, ...]:
    letter, word = f"[{_letters()}]", _word()
    return (
        _kind(r"(?i:c\+\+|[cf]#)"),
        *(_kind(f"(?i:{parted})", cut=cut) for parted, cut in _PARTED.items()),
        _kind(rf"(?i:{_APOSTROPHE}tis)", rewrite=_quotes, cut=2),
        _kind(rf"(?i:{_APOSTROPHE}twas)", rewrite=_quotes, cut=3),
        _kind(word, f"{_ENDING}?", _no_soft_hyphen),
        _kind(r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", _NOT, _no_soft_hyphen),
        # Words with an apostrophe that stays.
        _kind(
            rf"(?i:{_APOSTROPHE}n{_APOSTROPHE}?|{_APOSTROPHE}(?:em|till?|cause)|(?:[ldj]|dunkin|somethin|ol){_APOSTROPHE})"
            rf"|{_APOSTROPHE}[2-9]0s|[A-HJ-XZn]{_ANY_APOSTROPHE}{letter}{{2,}}"
            rf"|{letter}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{letter}*"
            r"|(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|o'o)"
        ),
        _kind(f"(?i:y){_APOSTROPHE}", letter),
        _kind(_ENDING, "[^A-Za-z]", _quotes),
        _kind(_NOT, rewrite=_quotes),
        # Words with a full stop that stays; of a single letter it does not where a sentence begins.
        _kind(r"[A-Za-z]\.", rf"{_SPACE}+(?:{_FIRST_WORDS}|{_TAG}){_SPACE}", cut=1),
        _kind(rf"(?:{_CLOSING})\.", r"[\s\S]{2}"),
        _kind(rf"(?:{_OPENING}|{_ACRONYM}|[A-Za-z])\."),
        _kind(rf"(?i:{_BEFORE_NUMBERS})\.", rf"{_SPACE}?{_D}"),
        _kind(rf"{word}\.", _INSIDE, _no_soft_hyphen),
    )


def _web_kinds() -> tuple[_Kind, ...]:
    host = r"(?i:www)\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
    short_host = r"(?:[^ \t\n\f\r\"`'|!?(){}$,-_]+\.)+(?i:com|net|org|edu)"
    # The path is missing where it would be nothing but punctuation.
    path = f"(?:/[^{_NO_URL}]+[^{_NO_URL_END}])?"
    mail = r"[^ \t\n\f\r\"<>|(){}\u00a0]*@(?:[^ \t\n\f\r\"<>|(){}.\u00a0]+\.)*[^ \t\n\f\r\"<>|(){}.\u00a0]+"
    return (
        _kind(f"(?i:https?)://[^{_NO_URL}{{}}]+[^{_NO_URL_END}]"),
        _kind(f"(?:{host}|{short_host}){path}"),
        _kind(f"(?:(?i:&lt;)|<)?[a-zA-Z0-9]{mail}(?:(?i:&gt;)|>)?"),
        _kind(rf"@[a-zA-Z_][a-zA-Z_0-9]*|#(?:[{_word_letters()}]|{_ENTITY})+"),
    )


def _number_kinds() -> tuple[_Kind, ...]:
    return (
        _kind(rf"{_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}}"),
        _kind(rf"[-+]?(?:{_D}*(?:[.:,\xad\u066b\u066c]{_D}+)+|{_D}+)", rewrite=_no_soft_hyphen),
        _kind("[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
        _kind(rf"(?:{_D}{{1,4}}[- \u00a0])?{_D}{{1,4}}(?:\\?/|\u2044){_D}{{1,4}}", rewrite=_no_break),
        _kind("[\xbc\xbd\xbe\u2153-\u215e]", rewrite=lambda text: _FRACTIONS.get(text, text)),
        _kind(rf"{_APOSTROPHE}[0-9][0-9]", _SPACE),
        # Telephones.
        _kind(
            r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
            r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
            rewrite=lambda text: _brackets(_no_break(text)),
        ),
        _kind(r"[A-Z]*\$|#"),
        _kind(
            "[\xa2-\xa5\x80\u20a0\u20a4\u20ac\u060b\u0e3f\uffe0\uffe1\uffe5\uffe6]",
            rewrite=lambda text: _CURRENCIES.get(text, text),
        ),
    )


def _sign_kinds() -> tuple[_Kind, ...]:
    eye = "^x=~<>"
    return (
        _kind(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _brackets),
        _kind(
            rf"[-{eye}']_[-{eye}']|\([-{eye}'][_.]?[-{eye}']\)|\([{eye[::-1]}']-[{eye[::-1]}'`]\)", rewrite=_brackets
        ),
        _kind(r"[][{}()]", rewrite=_BRACKETS.__getitem__),
        _kind("-+", rewrite=lambda text: "--" if 3 <= len(text) <= 4 else text),
        _kind(r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|\u2026", rewrite=_becomes("...")),
        _kind(r"@+|#+|_+|\*+|(?:\\\*){1,3}|[,;:\u3001]|[?!]+|=|/|<<|>>"),
        _kind("[.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]"),
    )


def _late_kinds() -> tuple[_Kind, ...]:
    """Compounds and what is left; all of them give way to the kinds above."""
    alnum = rf"[{_letters()}{_D}]"
    borrowed = rf"(?:[dDoOlL]{_ANY_APOSTROPHE}{alnum})?"  # d'Artagnan
    hyphenated = rf"{borrowed}{alnum}+(?:[-_\u058a\u2010\u2011]{borrowed}{alnum}+)*"
    # With points and commas in the first part, as in 1,000-foot, and acronyms in the others.
    pointed = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\xad]+))+"
    joined = "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"  # AT&T
    return (
        _kind(r"(?i:-(?:[LR][RCS]B)-|C\.D\.s|pro-|anti-|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls)", rewrite=_ampersand),
        _kind(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
        *(_kind(rf"{part}\.", _INSIDE, _clean) for part in (pointed, hyphenated, joined)),
        *(_kind(part, rewrite=_clean) for part in (pointed, hyphenated, joined)),
        _kind("'", r"[A-Za-z][^ \t\n\u00a0]", _quotes),
        _kind(_ENDING, rewrite=_quotes),
        _kind(f"''|[`\u2018-\u201f\x91-\x94\u2039\u203a\xab\xbb]{{1,2}}|{_APOSTROPHE}", rewrite=_quotes),
        _kind(
            "[+%&~^|\\\\\xa6-\xa9\xac\xae-\xba\xd7\xf7\u0387\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060a\u060c"
            "\u0614\u061b\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964\u0965\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038"
            "\u203b\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e\u2100-\u214f\u2190-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20"
            "\uff3b-\uff40\uff5b-\uff65]"
        ),
    )


def _quotes(text: str) -> str:
    """Quotes in ASCII, TeX's way."""
    text = re.sub("&apos;|[\x92\u2019\u203a]", "'", text)
    text = re.sub("[\x91\u2018\u201b\u2039]", "`", text)
    return re.sub("[\x94\u201d\xbb]", "''", re.sub("[\x93\u201c\xab]", "``", text))


def _no_break(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _no_soft_hyphen(text: str) -> str:
    return text.replace("\xad", "") or "-"


def _ampersand(text: str) -> str:
    return re.sub("(?i:&amp;)", "&", text)


def _clean(text: str) -> str:
    return _ampersand(_no_soft_hyphen(text))


def _brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_CURRENCIES = {"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "\u20a0": "$", "€": "$"}
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_FIRST_WORDS = (
    "A|A(?i:bout|ccording|dditionally|fter|n|s|t)|B(?i:ut)|E(?i:arlier)|H(?i:e|er|ere|owever)|I(?i:f|n|t)|L(?i:ast)"
    r"|M(?i:any|ore|[rs]\.)|N(?i:ow)|O(?i:nce|ne|ther|ur)|S(?i:he|ince|o|ome|uch)"
    "|T(?i:hat|he|heir|hen|here|hese|hey|his)|W(?i:e|hat|hen|hile)|Y(?i:et|ou)"
)
# Abbreviations that mostly end a phrase, that mostly begin one, and that are some only before a number.
_CLOSING = (
    "(?i:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu(?:rs)?|Fri"
    "|Ala|Ariz|Calif|Colo|Conn|Ct|Dak|Fla|Ga|Ind|Kans?|Ky|Md|Mich|Minn|Mo|Mont|Neb|Nev|Okla|Penn|Tenn|Va|Vt|Wisc?|Wyo"
    "|Inc|Cos?|Corp|Ltd|Plc|Rt|Bancorp|Bhd|Assn|Univ|Intl|Sys|tel|est|ext|sq|etc|al|seq|Bldg"
    r"|Jr|Sr|Bros|(?:Ed|Ph)\.D|Blvd|Rd|Esq)|[Pp]?[Pp]t[ye]s?"
    # Other words but for the capital.
    "|A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
)
_OPENING = (
    "(?i:Mrs?|Ms|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Mt|Ft|Capt|Ste?|Ave|Pres"
    "|Lieut|Hon|Brig|Co?mdr|Pfc|Spc|Supts?|Det|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc|Invt|Elec|Natl|Dept|Ph"
    r"|vs|Alex|Wm|Jos|Cie|a\.k\.a|cf|TREAS)|[Mm][ft][gG]"
)
_BEFORE_NUMBERS = "ca|figs?|prop|nos?|arts?|pp|op"
