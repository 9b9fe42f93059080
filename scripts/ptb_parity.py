"""Is velm's PTB tokenizer the jar's? Compares them on real captions and on strings made to be hard; needs Java.

    python scripts/ptb_parity.py                        the 616,767 official COCO captions and 100,000 random strings
    python scripts/ptb_parity.py FILE-OR-FOLDER ...     also the captions, questions and answers in JSON (lines) files
    python scripts/ptb_parity.py --strings 5000 --seed 7 --no-coco

For every corpus: the captions, those that `uncovered` leaves to the jar, and the differences among the rest, which
are one text to both. The exit code is 1 if there is a difference.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from velm_cli.metrics import ptb
from velm_cli.metrics.authority import SPICE_JAR, pycocoevalcap
from velm_cli.metrics.java import Launcher, find_java
from velm_cli.metrics.tokenize import one_line, ptb_tokenize

COCO_JAR = pycocoevalcap() / SPICE_JAR
COCO_FILES = ("coco/annotations/captions_train2014.json", "coco/annotations/captions_val2014.json")
TEXT_KEYS = frozenset(["caption", "question", "answer", "sentence", "en"])
TIMEOUT = 600.0  # seconds for the jar on one corpus
SHOWN = 10  # differences printed of a corpus

WORDS = """a A an the The dog Man cats OF in of It He And When According x I b V café naïve Über ÉTÉ Ångström señor
ß ﬁ été привет Ёж σας שלום مرحبا 中文 日本語 カメラ 한국어 co-operate T-shirt well-known pre- anti- pro- x-ray e-mail
-ish 3-year-old mother-in-law U.S.-led 10,000-seat non‐stop a_b snake_case _x_ cat's dogs' James's Ma'am o'clock O'Brien
d'Arc l'été Hallowe'en rock'n'roll 'n' 'n y'all Y'know ol' dunkin' Dunkin' somethin' cap'n li'l nor'easter ne'er c'mon
s'mores 'em 'til 'cause 'tis 'Twas don't DON'T can't won't isn't it's He'd I'm we've they'll you're should've
wouldn't've cannot Gonna gotta WANNA lemme gimme gonna's more'n Yahoo! C# C++ AT&T R&D A&W B&B AT&amp;T Q+A"""
ABBREVIATIONS = """Mr. Mrs. Dr. St. Ave. Jr. Sr. Inc. Co. Corp. Ltd. etc. vs. No. no. nos. Fig. art. pp. Jan. Sept.
Mon. Calif. La. Mass. Wash. wash. U.S. U.K. N.Y. p.m. a.m. e.g. i.e. Ph.D. Ed.D. J.R.R. B.C. D.C. a. B. x. Messrs. Pty.
approx. Prof. Gen. Gov. Sen. Rep. Rev. Lt. Col. Capt. Sgt. ext. tel. Blvd. Rd. Bldg. ft. in. lb. oz. km. U.S.A B.Sc."""
ADDRESSES = """http://a.com/b?x=1&y=2#z https://example.org/path/to. http://localhost:80 www.site.com a.net Example.edu
www.a-b.co.uk/x/y.html site.org/page.html foo@bar.com x.y-z@mail.example.org mailto:a@b.c <me@here.com> &lt;a@b&gt;
@name @Name_1 #tag #Ünicode #1 img_1.jpg photo.JPEG 1.txt a.tar.gz notes.docx C:\\dir\\file /usr/bin and/or w/o km/h
a/b/c/d 1\\/2 a-b-c-d/e 2&eacute;.gif"""
MARKUP = """<br> <br/> </p> <b> <a href="x.html"> <img src='a b' alt="c" /> <!-- note --> <!DOCTYPE html> <?xml?> <3 <
> << >> <-- --> &amp; &lt; &gt; &quot; &apos; &nbsp; &mdash; &#39; &eacute; caf&eacute; &copy; &foo; & && <unk> <end>
[UNK]"""
MARKS = """. .. ... .... ..... ...... ! !! !!! ? ?? ?! !? , ,, ; : :: - -- --- ---- ----- ------- – — ― … _ __ ___ * **
*** # ## @ @@ ~ ~~ ^ + ++ = == | || \\ / // ( ) [ ] { } () (( )) " "" ' '' \'\'\' ` `` ``` “ ” ‘ ’ „ ‚ « » ‹ › ‛ “‘ ’” %
$ € £ ¥ ¢ ₹ § © ® ™ ° ² ½ ¼ ⅓ ⅞ × ± · • † → ★ ♥ ✓ 。 、 「 」 ！ ＆ ～"""
SPACES = "\u00a0|\u2009|\u3000|\u200b|\ufeff|  |\u00a0 |. . .|. . . .|. ."
FACES = """:) :( :-) :-( ;) ;-) :D :-D :P :p =) =D :'( :'-) >:( :o :O :| :/ :\\ :[ :] :} 8) XD ^_^ -_- o_O T_T >_< *_*
(^_^) (x.x) (->) ._. 😀 😂 👍 👍🏽 ❤️ 👨\u200d👩\u200d👧 🇫🇷 ☃ 𝐀 𠀀"""
NUMBERS = """#|#,|#.|+#|-#|$#|US$#|£#.##|#%|#,###|#.#|.#|#:##|##:##pm|#am|#'##|'##|'##s|##s|##'s|#/#|# #/#|#-#/#|#½|#st
#th|##/##/####|####-##-##|#.#.####|###-####|(###) ###-####|###-###-####|+## ### ### ####|### ### ####|#-#-#|##°C|#x#|#kg
#¢|€#.##|No. #|p. #|fig.#|#a|#-a|a-#|#&#|#+#|##'|#'##"|#,#|#.#,#|(#)|#)|[#]|~#|### ######|##:##:##|####s-##s|-#.#|+#,###
#e#|v#.#.#"""
PIECES = [
    *(text.split() for text in (WORDS, WORDS, ABBREVIATIONS, ADDRESSES, MARKUP, MARKS, FACES)),
    *(text.replace("\n", "|").split("|") for text in (SPACES, NUMBERS, NUMBERS)),
]
ALPHABET = "aAbBcCdDeEilLmMnNoOrsStTuvxyYé019019 ..,,:;!?''’‘`\"“”--–…/\\&@#$%*()[]{}<>_+=~^|½£€°ü中😀\u00a0"


def hard_string(rng: random.Random) -> str:
    """A line that a tokenizer may get wrong: pieces of every kind, together or apart, some of them damaged."""
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(["", " ", "\u00a0", rng.choice(MARKS.split())])
    if kind < 0.2:
        return "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 14)))
    if kind < 0.5:
        return " ".join(_piece(rng) for _ in range(rng.randint(1, 9)))
    text = "".join(_piece(rng) + rng.choice(["", "", " "]) for _ in range(rng.randint(2, 8)))
    if kind < 0.75:
        return text
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + _character(rng) + text[place + rng.randint(0, 2) :]
    return text


def _piece(rng: random.Random) -> str:
    piece = rng.choice(rng.choice(PIECES))
    return re.sub("#(?![A-Za-zÜ])", lambda _: rng.choice("0123456789"), piece) if rng.random() < 0.9 else piece


def _character(rng: random.Random) -> str:
    """Mostly from the alphabet; now and then anything in Unicode."""
    if rng.random() < 0.95:
        return rng.choice(ALPHABET)
    return chr(rng.choice([rng.randrange(0xA0, 0x2C00), rng.randrange(0x3000, 0xD800), rng.randrange(0xE000, 0x20000)]))


def coco_captions() -> list[str]:
    """The official captions of COCO 2014, training and validation, from pycocoevalcap's SPICE jar."""
    with zipfile.ZipFile(COCO_JAR) as jar:
        return [item["caption"] for name in COCO_FILES for item in json.loads(jar.read(name))["annotations"]]


def texts_of(path: Path) -> list[str]:
    """What stands under the keys of TEXT_KEYS in a JSON or JSON-lines file, in its order."""
    text = path.read_text(encoding="utf-8")
    parts = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [found for part in parts if part.strip() for found in _texts(json.loads(part))]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in TEXT_KEYS and isinstance(inner, str):
                yield inner
            else:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def compare(name: str, captions: Sequence[str], launcher: Launcher) -> int:
    """Prints the counts for a corpus and its first differences; returns how many there are."""
    cleaned = [one_line(caption) for caption in captions]
    uncovered = set(ptb.uncovered(cleaned))
    covered = [caption for index, caption in enumerate(cleaned) if index not in uncovered]
    begin = time.perf_counter()
    wanted = ptb_tokenize(covered, launcher, timeout=TIMEOUT)
    middle = time.perf_counter()
    got = ptb.tokenize(covered)
    end = time.perf_counter()
    different = [triple for triple in zip(covered, wanted, got, strict=True) if triple[1] != triple[2]]
    left = f"{len(uncovered):,} uncovered ({len(uncovered) / max(len(captions), 1):.2%})"
    print(
        f"{name}: {len(captions):,} captions, {left}, {len(different):,} differences "
        f"(the jar {middle - begin:.2f} s, velm {end - middle:.2f} s)"
    )
    for caption, jar, velm in different[:SHOWN]:
        print(f"  {caption!a}\n    jar  {jar!a}\n    velm {velm!a}")
    return len(different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="JSON or JSON-lines files, or folders of them")
    parser.add_argument("--strings", type=int, default=100_000, help="how many random strings")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(2**31), help="of the random strings"
    )
    parser.add_argument("--no-coco", action="store_true", help="leave out the COCO captions")
    options = parser.parse_args()
    files = [
        file
        for path in options.paths
        for file in (sorted(path.rglob("*.json*")) if path.is_dir() else [path])
        if file.suffix in (".json", ".jsonl")
    ]
    rng = random.Random(options.seed)
    differences = 0
    with Launcher(find_java()) as launcher:
        if not options.no_coco:
            differences += compare("COCO 2014", coco_captions(), launcher)
        for file in files:
            if texts := texts_of(file):
                differences += compare(str(file), texts, launcher)
        strings = [hard_string(rng) for _ in range(options.strings)]
        differences += compare(f"random, seed {options.seed}", strings, launcher)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
