"""Adversarial captions drawn from a seed: what tokenisers and METEOR's normaliser stumble over, among plain words.

`make parity` asks the originals about some of them and leaves the answers in captioning.json, which `make test` checks.
"""

import json
import random
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_suffix(".json")

# Pieces by what they are hard about, one space between them; those of "spacing" by bars.
PIECES = {
    "numbers": (
        "1,000 3.14 -5 +3 50% 1st 22nd 1990s '90s 10-20 3x4 10:30 1,23 .5 5. 1.000.000 12:45pm 2x 4k 007 "
        "1e5 6ft 5'10\" 2nd-floor 20-year-old #1 no.5 1/2 3/4 1-1/2 ½ 2½ ¾ 10° 10°C m² 24/7 9-to-5 360° "
        "1080p 1,000-foot 3,5 7-11"
    ),
    "hyphens": (
        "well-known e-mail x-ray T-shirt mother-in-law -foo foo- foo--bar -- --- — – a—b a–b "
        "left-hand-side co-operate re-elect up-to-date black-and-white non-U.S. half‐way twenty-one X-Y-Z "
        "A-1 - self-"
    ),
    "contractions": (
        "don't can't won't isn't I'm you're they'll he'd we've I'd've it's dog's dogs' cannot gonna wanna "
        "gotta lemme gimme 'tis 'twas y'all o'clock ma'am rock'n'roll 'n' 'em c'mon ain't shouldn't've "
        "woman’s don’t kids’ d'you let's who's James's goin' ol' li'l more'n she'll needn't DON'T IT'S "
        "n't 's 'll"
    ),
    "quotes": (
        "\"stop\" 'stop' “stop” ‘stop’ «stop» ``stop'' \"stop 'stop \"a \"5 stop\" stop' `stop` „stop“ ' \" '' "
        "`` it\"s 'yes,' \"no.\" (\"maybe\") \"'both'\" 6\" 5' ''yes'' ‹yes›"
    ),
    "addresses": (
        "http://example.com https://www.example.org/a?b=c&d=1 www.example.com example.com "
        "example.com/path me@example.com @user #hashtag #2fast ftp://example.net example.co.uk file.txt "
        "a.b.c user_name some_id_2 http://a.b/c_d. john.smith@mail.example.org, readme.md .com"
    ),
    "emoji": ("😀 👍🏽 ❤️ ♥ ☺ ☃ ★ ✓ → © ® ™ 👨‍👩‍👧 🇫🇷 :) :-) :( ;-) :D =) ^_^ <3 :P xD :-/ :'( (: ♪ ☀️ •"),
    "unicode": (
        "naïve café Zürich Ångström São façade coöperate œuvre Straße 日本語 中国 русский العربية עברית हिन्दी "
        "ไทย 한국어 ﬁne résumé naïve × ÷ ± ² µ º ª ¿qué? ¡hola! … ‚low‘ İstanbul ΣΟΦΟΣ ｆｕｌｌ ǅ ʼn"
    ),
    "abbreviations": (
        "Mr. Mrs. Dr. U.S. U.S.A. e.g. i.e. etc. a.m. p.m. Inc. St. No. vs. approx. Ph.D. J.R.R. Jr. Co. "
        "Ave. Sept. fig. pp. ft. in. oz. lb. Ltd. Prof. Gen. U.N. U.K., D.C. A. I. B.C. a.k.a. M.I.T. Mt. "
        "dept. Mass. Miss. mass. miss. Ill. ill."
    ),
    "currency": ("$5 $1,000.50 US$10 £3.50 €20 ¥100 5¢ $ 5$ €5bn £ 100€ C$5 $5-10 #5 HK$ 20p ₹500 ₩ ₤5"),
    "ellipses": (
        "... .... ..... .. . . . wait... ...what what...ever … wait… ! !! ?! ?? !!! , ,, ; ;; : :: hello! "
        "why? a,b a,b,c one.two end.Start end!Start end?Start x:y x;y this,that , . ,. .,"
    ),
    "slashes": (
        "and/or w/ w/o him/her 5/6/2014 2014-05-06 a/b/c either/or/neither / // \\ c\\d \\/ n/a 1/2-inch "
        "on/off-switch AC/DC km/h 50/50 12/25/99 01-02-2003 w/out TCP/IP s/he"
    ),
    "brackets": (
        "(left) [mid] {curly} <angle> ( ) [ ] { } < > (s) person(s) (a [b] c) <b>bold</b> </i> <br/> << "
        ">> f(x) a(b 1) (1) &lt; &gt; &amp; &quot; &apos;s &nbsp; &#39; &eacute; <unk> <3d model>"
    ),
    "symbols": (
        "& AT&T R&B Q&A S&P @ # % * ** ^ ~ | _ __ = == + ++ C++ C# a_b a=b a+b a*b $% %d 100% & a&b ´ ` ¨ "
        "° § ¶ ¬ ¦ 3<5 5>3 rock&roll +1 A+ B- @@ ## *** ~5 ^^ D&D"
    ),
    "spacing": ("two  spaces|tab\there|nb\u00a0space|thin\u2009space|zero\u200bwidth|soft\u00adhyphen|bom\ufeffmark|"),
    "joined": (
        "iPhone4S eBay YouTube McDonald's B2B mp3 4x4 H2O R2-D2 x2 100m a1b2 NASA's 80's 1920's U.S.'s "
        "Yahoo! Jeopardy! OK! 555-1234 (555)555-1234 +1-555-123-4567 555.123.4567 10,000,000th A's p's "
        "q's C3PO"
    ),
}

WORDS = (
    "a man in red shirt is standing on the left side of big white dog with two small children playing near old "
    "wooden table woman holding an umbrella while sitting next to some green trees there are several people "
    "walking down street and one cat running quickly toward its owner who wears blue jeans under cloudy sky "
    "photographs of buses parked behind building The A An Two People This There skateboarder skateboarding "
    "bicycles bike grey gray colour theatre pizza plates food eating ate eats happily happy kids child children's "
    "boys girl young large huge tiny little couch sofa television tv monitor screen"
)
_PUNCTUATED = ('"{}"', "({})", "'{}'", "{},", "{}.", "{}!", "{}:", "{}'s", "{};", "“{}”")

# For METEOR: texts that say the same in other words, and repeat themselves.
PARAPHRASED = [
    (["a child runs quickly beside the sea"], "kids running fast by the ocean"),
    (["two men are discussing a problem in front of the house"], "two men discuss an issue before the home"),
    (["the man is in the process of repairing his automobile"], "the man repairs his car"),
    (["a large amount of food is on the table"], "there is a great deal of food on a table"),
    (["a dog a dog a cat and a dog on a mat"], "on a mat a dog and a dog and a cat"),
    (["the the the the", "a big plane took off"], "the large airplane has taken off off"),
    (["men walked with respect to the rules", "oxen were eaten"], "the ox was eating according to the rules"),
    (
        ["an old lady sits on the sofa at the end of the day"],
        "at the end of the day an elderly woman is sitting on a couch",
    ),
    (["x"], ""),
    (["the boat is near to the shore in order to stop"], "a ship close to the beach so as to stop"),
]


def adversarial(number: int, seed: int = 0) -> list[str]:
    """`number` captions, each of plain words with one to three hard pieces among them."""
    rng = random.Random(seed)
    pieces = [text.split("|" if kind == "spacing" else None) for kind, text in PIECES.items()]
    words = WORDS.split()
    captions = []
    for _ in range(number):
        caption = rng.choices(words, k=rng.randint(2, 9))
        for _ in range(rng.choice((1, 1, 2, 3))):
            piece = rng.choice(rng.choice(pieces))
            if rng.random() < 0.15:  # as it stands in running text
                piece = rng.choice(_PUNCTUATED).format(piece)
            caption.insert(rng.randint(0, len(caption)), piece)
        captions.append(" ".join(caption) + rng.choice(("", "", ".", ".", " .", "!", "?")))
    return captions


def groups(captions: list[str], seed: int = 0) -> list[tuple[list[str], str]]:
    """(one to five references, caption) of neighbours in the list."""
    rng, result, place = random.Random(seed), [], 0
    while place + 6 <= len(captions):
        references = rng.randint(1, 5)
        result.append((captions[place : place + references], captions[place + references]))
        place += references + 1
    return result


def golden() -> dict[str, Any]:
    """The originals' answers: tokens {caption: tokens}, meteor [references, caption, counts], scores of all groups."""
    return json.loads(PATH.read_text("utf-8"))
