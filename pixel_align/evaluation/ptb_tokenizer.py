"""Penn Treebank words of a caption, as coco-caption has them from Stanford's PTBTokenizer (CoreNLP 3.4.1), without Java.

coco-caption runs it with -preserveLines -lowerCase and then drops some punctuation. Here the same decisions are made by
a table of kinds of tokens: at each place the longest match wins, among equals the first in the table. What a match needs
to see after itself counts for its length and is then read again.

What differs, knowingly: characters that Unicode got after 2010 are words here and nothing there; a line break in a
caption is a space here, there it shifts all captions that follow.
"""

import functools
import re
import sys
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
    """A kind of token: a pattern whose group 1 is the token and whose rest it only needs to see, and what becomes of it."""

    pattern: re.Pattern[str]
    rewrite: Callable[[str], str] | None = None  # of the token's text, where it does not stay as it is
    cut: int = 0  # characters at the end that are read again


def _tokens(caption: str) -> Iterator[str]:
    # Some kinds want to see a character after themselves, and a line always ends in one.
    text = _LINE_BREAK.sub(" ", caption) + "\n"
    plain, kinds = re.compile(r"[A-Za-z]+(?=[ \n])"), _kinds()
    place = 0
    while place < len(text):
        if (match := plain.match(text, place)) and match[0].lower() not in _PARTED:
            yield match[0]
            place = match.end()
            continue
        best, longest = None, 0
        for kind in kinds:
            if (match := kind.pattern.match(text, place)) and match.end() - place > longest:
                best, found, longest = kind, match[1], match.end() - place
        if best is None:
            place += 1
            continue
        found = found[: len(found) - best.cut]
        place += len(found)
        if token := best.rewrite(found) if best.rewrite else found:
            yield token


_LINE_BREAK = re.compile("[\n\r\v\f\x85\u2028\u2029]")
_PARTED = ("cannot", "gonna", "gotta", "lemme", "gimme", "wanna")


@functools.cache
def _kinds() -> tuple[_Kind, ...]:
    letter, digit = _LETTER(), r"\d"
    mark = _marks()
    space = r"[ \t\u00a0\u2000-\u200a\u3000]"
    after = rf"(?={space}|\n)"
    entity = "&[aeiouAEIOU](?:acute|grave|uml);"
    of_word = rf"(?:[{letter}{mark}\xad]|{entity})"
    word = rf"{of_word}(?:[{letter}{mark}{digit}\xad]|{entity})*(?:[.!?]{of_word}(?:[{letter}{mark}{digit}\xad]|{entity})*)*"
    alnum = rf"[{letter}{digit}]"
    apostrophe = r"(?:['\x92\u2019]|&apos;)"
    any_apostrophe = r"(?:['\x92\u2019\x91\u2018\u201b`]|&apos;)"
    ending = rf"{apostrophe}(?:[msd]|re|ve|ll)"
    number = rf"(?:{digit}*(?:[.:,\xad\u066b\u066c]{digit}+)+|{digit}+)"
    hyphen = r"[-_\u058a\u2010\u2011]"
    borrowed = rf"(?:[dDoOlL]{any_apostrophe}{alnum})?"
    thing = rf"{borrowed}{alnum}+(?:{hyphen}{borrowed}{alnum}+)*"
    ampersand = "(?:[+&]|&amp;)"
    acronym = r"(?:[A-Za-z](?:\.[A-Za-z])+|(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R))"
    thing_a = rf"[A-Z]+(?:{ampersand}[A-Z]+)+"
    h_thing = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z0-9\xad]+|{acronym}\.))+"
    inside = "[,;:\u3001]"
    no_url = r" \t\n\f\r\"<>|.!?(){},"

    def kind(pattern: str, ahead: str = "", rewrite: Callable[[str], str] | None = None, cut: int = 0) -> _Kind:
        return _Kind(re.compile(f"({pattern}){ahead}"), rewrite, cut)

    tag = r"</?[A-Za-z!?][^>\n]*>"
    nl = r"[ \t\u00a0\u2000-\u200a\u3000\n]"
    return (
        kind(r"(?i:c\+\+|[cf]#)"),
        kind("(?i:cannot)", cut=3),
        kind("(?i:gonna|gotta|lemme|gimme|wanna)", cut=2),
        kind(rf"(?i:{apostrophe}tis)", cut=2, rewrite=_close),
        kind(rf"(?i:{apostrophe}twas)", cut=3, rewrite=_close),
        kind(tag, rewrite=_join),
        kind("(?i:&(?:MD|mdash|ndash);)|[\x96\x97\u2013\u2014\u2015]", rewrite=lambda _: "--"),
        kind("(?i:&amp;)", rewrite=lambda _: "&"),
        kind("(?i:&nbsp;)", rewrite=lambda _: ""),
        kind("(?i:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)"),
        kind(word, f"(?i:{ending})", _no_soft_hyphen),
        kind(r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", f"(?i:n{any_apostrophe}t)", _no_soft_hyphen),
        kind(word, rewrite=_no_soft_hyphen),
        kind(
            rf"(?i:{apostrophe}n{apostrophe}?|[ldj]{apostrophe}|(?:dunkin|somethin|ol){apostrophe}|{apostrophe}em)"
            rf"|[A-HJ-XZn]{any_apostrophe}[{letter}]{{2,}}|{apostrophe}[2-9]0s|(?i:{apostrophe}till?)"
            rf"|[{letter}]+[aeiouyAEIOUY]{any_apostrophe}[aeiouA-Z][{letter}]*"
            rf"|(?i:{apostrophe}cause|cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|o'o)",
        ),
        kind(f"(?i:y){apostrophe}", rf"[{letter}]"),
        kind(rf"(?i:https?)://[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){{}},-]"),
        kind(
            rf"(?:(?i:www)\.(?:[^{no_url}]+\.)+[a-zA-Z]{{2,4}}|(?:[^ \t\n\f\r\"`'|!?(){{}}$,-_]+\.)+(?i:com|net|org|edu))"
            rf"(?:/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){{}},-])?"
        ),
        kind(r"[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0]*@(?:[^ \t\n\f\r\"<>|().\u00a0]+\.)*[^ \t\n\f\r\"<>|().\u00a0]+"),
        kind(rf"@[a-zA-Z_][a-zA-Z_0-9]*|#{word}"),
        kind(f"(?i:{ending})", "[^A-Za-z]", _close),
        kind(f"(?i:n{any_apostrophe}t)", "", _close),
        kind(rf"{digit}{{1,2}}[-/]{digit}{{1,2}}[-/]{digit}{{2,4}}"),
        kind(rf"[-+]?{number}", rewrite=_no_soft_hyphen),
        kind("[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
        kind(rf"(?:{digit}{{1,4}}[- \u00a0])?{digit}{{1,4}}(?:\\?/|\u2044){digit}{{1,4}}", rewrite=_join),
        kind("[\xbc\xbd\xbe\u2153-\u215e]", rewrite=lambda text: _FRACTIONS.get(text, text)),
        kind(r"(?i:-(?:[LR][RCS]B)-|C\.D\.s|pro-|anti-|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls)", rewrite=_ampersand),
        kind(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
        kind(r"[A-Z]*\$|#"),
        kind("[\xa2-\xa5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]", rewrite=lambda t: _CURRENCIES.get(t, t)),
        kind(r"[A-Za-z]\.", rf"{nl}+(?:{_STARTS}|{tag}){nl}", cut=1),
        kind(rf"(?:{_ABBREVIATIONS}|{acronym}|[A-Za-z])\."),
        kind(r"(?i:ca|figs?|prop|nos?|arts?|pp|op)\.", rf"{nl}?{digit}"),
        kind(rf"{apostrophe}[0-9][0-9]", nl),
        kind(rf"{word}\.", inside, _no_soft_hyphen),
        kind(
            r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])[0-9]{3,4}[- \u00a0]?[0-9]{3,5}"
            r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
            rewrite=lambda text: _round(_join(text)),
        ),
        kind('"|(?i:&quot;)', "[A-Za-z0-9$]", lambda _: "``"),
        kind('"|(?i:&quot;)', rewrite=lambda _: "''"),
        kind(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _round_),
        kind(
            r"[\^x=~<>]\.\[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",
            rewrite=_round_,
        ),
        kind("<|(?i:&lt;)", rewrite=lambda _: "<"),
        kind(">|(?i:&gt;)", rewrite=lambda _: ">"),
        kind(r"[][{}()]", rewrite=_BRACKETS.__getitem__),
        kind("-+", rewrite=lambda text: "--" if 3 <= len(text) <= 4 else text),
        kind(r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\x85\u2026]", rewrite=lambda _: "..."),
        kind(r"@+|#+|_+|\*+|(?:\\\*){1,3}|[,;:\u3001]|[?!]+|=|/"),
        kind("[.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]"),
        kind(rf"{h_thing}\.", inside, _no_soft_hyphen),
        kind(h_thing, rewrite=_no_soft_hyphen),
        kind(rf"{thing}\.", inside),
        kind(thing),
        kind(rf"{thing_a}\.", inside, _ampersand),
        kind(thing_a, rewrite=_ampersand),
        kind("'", r"[A-Za-z][^ \t\n\r\u00a0]", lambda _: "`"),
        kind(f"(?i:{ending})", rewrite=_close),
        kind(f"(?:''|[`\u2018-\u201f\x82\x84\x91-\x94\u2039\u203a\xab\xbb]{{1,2}}|{apostrophe})", rewrite=_close),
        kind("<<|>>"),
        kind(
            "[+%&~^|\\\\\xa6\xa7\xa8\xa9\xac\xae\xaf\xb0-\xba\xd7\xf7\u0387\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b"
            "\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e\u2100-\u214f\u2190-\u2bff\u3012\u30fb"
            "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
        ),
    )


def _ranges(wanted: Callable[[str], bool]) -> str:
    """The characters of the basic plane that are wanted, as they stand inside a regular expression's brackets."""
    codes = [code for code in range(0x80, 0x10000) if wanted(chr(code))]
    starts = [code for code in codes if not wanted(chr(code - 1)) or code == 0x80]
    ends = [code for code in codes if code == 0xFFFF or not wanted(chr(code + 1))]
    return "".join(f"\\u{a:04x}-\\u{b:04x}" for a, b in zip(starts, ends, strict=True))


def _LETTER() -> str:
    return "A-Za-z" + _ranges(lambda c: unicodedata.category(c)[0] == "L")


def _marks() -> str:
    return _ranges(lambda c: unicodedata.category(c) in ("Mn", "Mc") and ord(c) <= 0xECD)


def _close(text: str) -> str:
    """Quotes in ASCII, taken for closing ones where they do not say."""
    text = re.sub("&apos;|[\x92\u2019\u203a]", "'", text)
    text = re.sub("[\x91\u2018\u201b\u2039]", "`", text)
    return re.sub("[\x94\u201d\xbb]", "''", re.sub("[\x93\u201c\xab]", "``", text))


def _join(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _no_soft_hyphen(text: str) -> str:
    return text.replace("\xad", "") or "-"


def _ampersand(text: str) -> str:
    return re.sub("(?i:&amp;)", "&", text)


def _round_(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")
_round = _round_


_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_CURRENCIES = {"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "\u20a0": "$", "€": "$"}
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
# Words that begin a sentence, so that the letter before them ended one.
_STARTS = "|".join(
    f"{word[0]}(?i:{word[1:]})"
    for word in (
        "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr\\. Ms\\. Now "
        "Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
    ).split()
)
# Words that keep their full stop.
_ABBREVIATIONS = (
    "(?i:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu(?:rs)?|Fri"
    "|Ala|Ariz|Calif|Colo|Conn|Ct|Dak|Fla|Ga|Ind|Kans?|Ky|Md|Mich|Minn|Mo|Mont|Neb|Nev|Okla|Penn|Tenn|Va|Vt|Wisc?|Wyo"
    "|Inc|Cos?|Corp|Ltd|Plc|Bancorp|Dept|Bhd|Assn|Univ|Intl|Sys|Invt|Elec|Natl|tel|est|ext|sq|ft|etc|al|seq|Bldg"
    "|Jr|Sr|Bros|(?:Ed|Ph)\\.D|[BDM]\\.Sc|LL\\.[BDM]|Blvd|Rd|Esq|Mrs?|Ms|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev"
    "|Rt|Maj|Sgt|Cpl|Pvt|Mt|Capt|Ste?|Ave|Pres|Lieut|Hon|Brig|Co?mdr|Pfc|Spc|Supts?|Det|Adj|Adv|Asst|Assoc|Ens|Insp"
    "|Mlle|Mme|Msgr|Sfc|vs|Alex|Wm|Jos|Cie|a\\.k\\.a|cf|TREAS|Ph)"
    "|A[rR][kK]|A[zZ]|D[eE][lL]|I[lL][lL]|L[aA]|M[aA][sS][sS]|M[iI][sS][sS]|O[rR][eE]|P[aA]|T[eE][xX]|W[aA][sS][hH]"
    "|[Mm][ft][gG]|[Pp]?[Pp]t[ye]s?"
)
