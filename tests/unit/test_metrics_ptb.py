"""velm's PTB tokens are the jar's: on chosen cases, on COCO captions, on characters, and on fresh random strings."""

from __future__ import annotations

import itertools
import json
import random
import runpy
import zipfile
from pathlib import Path

import pytest
from java_support import needs_java, random_captions

from velm_cli.metrics import ptb
from velm_cli.metrics.java import Launcher, find_java
from velm_cli.metrics.tokenize import flatten, one_line, ptb_tokenize

PARITY = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "ptb_parity.py"))

# Each line with the tokens the jar gives it before another line (`test_the_cases_are_the_jars`).
CASES = [
    # words
    ("A man, riding (fast) on a red-haired horse!", "a man riding -lrb- fast -rrb- on a red-haired horse"),
    ("a_b 4x4 3-year-old café naïve ÜBER-cool", "a_b 4x4 3-year-old café naïve über-cool"),
    ("and/or a/b/c/d w/o 24/7", "and/or a/b/c / d w/o 24/7"),
    ("pro- anti- pre- x- -x", "pro- anti- pre x x"),
    ("AT&T, R&D and a&b; Q+A", "at&t r&d and a & b q+a"),
    ("C# C++ F#. US$5 £5 5¢ €5", "c# c++ f# us$ 5 # 5 5 cents $ 5"),
    ("snow-covered [sic] {x}", "snow-covered -lsb- sic -rsb- -lcb- x -rcb-"),
    # apostrophes
    ("It's the dog's; the dogs' bowl isn't", "it 's the dog 's the dogs bowl is n't"),
    ("y'all can't won't I'd've o'clock O'Brien d'Arc", "y' all ca n't wo n't i 'd 've o'clock o'brien d'arc"),
    ("'em 'til 'Tis rock 'n' roll rock'n'roll", "'em 'til 't is rock 'n' roll rock 'n' roll"),
    ("it’s don’t O’Brien ’em dogs’", "it 's do n't o’brien ’em dogs"),
    ("ma'am he'llo nor'easter dunkin' goin'", "ma'am he llo nor'easter dunkin' goin"),
    ("cannot gonna Gotta cannota cannot's", "can not gon na got ta cannota cannot 's"),
    ("the '90s, 90's and '12 or '123", "the '90s 90 's and '12 or 123"),
    # quotes
    ("a \"red\" 'blue' “green” ‘sea’ «x» hat", "a red blue green sea x hat"),
    ('“‘Hi’” 12" x 6\'2"', "``` hi ''' 12 x 6 2"),
    ("``a'' `b'", "a b"),
    # dots
    ("Mr. Smith and Dr. Jones, Inc. on St. Ave.", "mr. smith and dr. jones inc. on st. ave."),
    ("U.S. p.m. e.g. Ph.D. etc. J.R.R. a.b", "u.s. p.m. e.g. ph.d. etc. j.r.r. a.b"),
    ("no. 5 and no. dog", "no. 5 and no dog"),
    ("plan b. The dog; plan b. dog", "plan b the dog plan b. dog"),
    ("table., chair .. ... a.... ......", "table. chair a."),
    ("street.A man yahoo!fan 1.jpg 1.jpgs", "street.a man yahoo!fan 1.jpg 1 jpgs"),
    ("Wash. wash. Pty. PTY. Mfg.", "wash. wash pty. pty mfg."),
    # numbers
    ("10,000 3.5 .5 1/2 1 1/2 1½ -5 +3 10:30pm", "10,000 3.5 .5 1/2 1\xa01/2 1 1/2 -5 +3 10:30 pm"),
    (
        "555-1212 (555) 555-1212 +44 20 7946 0958 1 2 3",
        "555-1212 -lrb-555-rrb-\xa0555-1212 +44\xa020\xa07946\xa00958 1 2 3",
    ),
    ("12/25/2012 5-10 1st 100% #1 $1.50 10:30:45", "12/25/2012 5-10 1st 100 % # 1 $ 1.50 10:30:45"),
    ("10,000-seat U.S.-led ab.-c inc.-b", "10,000-seat u.s.-led ab.-c inc. b"),
    # addresses
    (
        "http://a.com/b?x=1. www.site.com/page.html, a.com/x abc.com/xyz",
        "http://a.com/b?x=1 www.site.com/page.html a.com / x abc.com/xyz",
    ),
    ("foo@bar.com <me@x.org> @name #tag #1", "foo@bar.com <me@x.org> @name #tag # 1"),
    # markup
    ('<br> <a href="x y"> </p> < b > <3 a<b>c', '<br> <a\xa0href="x\xa0y"> </p> < b > < 3 a <b> c'),
    ("&amp; &lt;b&gt; AT&amp;T &nbsp; &copy; caf&eacute; &#39;", "& < b > at&t & copy caf&eacute; &#39;"),
    # faces
    (":) :-( ;D :Da ^_^ (^_^) XD <3 =) :)a", ":-rrb- :--lrb- ;d da ^_^ -lrb-^_^-rrb- xd < 3 =-rrb- -rrb- a"),
    ("!! ?! !? ** __ ## --- ----- – — …", "!! ?! !? ** __ ## -----"),
    # unicode
    ("😀 cat 👍🏽 ❤️ ★ → ½ ² m² 70°F ™", "cat ❤ ★ → 1/2 ² m ² 70 ° f ™"),
    ("中文 привет Ёж שלום é́", "中文 привет ёж שלום é́"),
    ("a\xa0b\u200bc\u3000d", "a b c d"),
    # empty
    ("", ""),
    ("   ", ""),
    ("... !", ""),
    (".", ""),
    ('"', ""),
    ("<br", "< br"),
]

# Tokens that depend on the lines around them, as the jar gives them.
NEIGHBOURS = [
    (["plan b.", "The dog"], ["plan b", "the dog"]),
    (["plan b.", "The"], ["plan b.", "the"]),  # nothing ends the last line, so `The` may be the start of a word
    (["plan b.", "The", ""], ["plan b", "the", ""]),
    (["plan b.", "", " ", "The dog", "x"], ["plan b", "", "", "the dog", "x"]),
    (["plan b.", "dog", "The x"], ["plan b.", "dog", "the x"]),
    (["plan b.", "<br>", ""], ["plan b", "<br>", ""]),
    (["no.", "5"], ["no.", "5"]),
    (["no.", "", "5"], ["no", "", "5"]),
    (["1", "1/2"], ["1", "1/2"]),
    (["a <b", "c> d", "x"], ["a < b", "c > d", "x"]),
    ([":)"], ["-rrb-"]),
    ([":)", ""], [":-rrb-", ""]),
    (["inc.b"], ["inc.b"]),
    (["inc.b", ""], ["inc. b", ""]),
    (["a '90"], ["a 90"]),
    (["rock 'n"], ["rock 'n"]),  # the end of the text is as good as a space to this rule, and to no other
    ([], []),
    ([""], [""]),
]


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def jar():
    """The jar's tokens of a list of captions."""
    needs_java()
    with Launcher(find_java()) as launcher:
        yield lambda captions: ptb_tokenize(captions, launcher, timeout=120)


def differences(captions, jar):
    """(caption, the jar's tokens, velm's) wherever they differ; the captions are one text to both."""
    assert ptb.uncovered(captions) == []
    return [
        triple for triple in zip(captions, jar(captions), ptb.tokenize(captions), strict=True) if triple[1] != triple[2]
    ]


def apart(captions):
    """The captions with a plain line after each, so that none sees another."""
    return [line for caption in captions for line in (caption, "next line")]


@pytest.mark.parametrize(("caption", "tokens"), CASES)
def test_cases(caption, tokens):
    assert ptb.uncovered([caption]) == []
    assert ptb.tokenize([caption, "next line"]) == [tokens, "next line"]


@pytest.mark.parametrize(("captions", "tokens"), NEIGHBOURS)
def test_a_line_may_depend_on_the_next(captions, tokens):
    assert ptb.tokenize(captions) == tokens


@pytest.mark.java
def test_the_cases_are_the_jars(jar):
    assert jar(apart(caption for caption, _ in CASES))[::2] == [tokens for _, tokens in CASES]
    for captions, tokens in NEIGHBOURS:
        assert jar(captions) == tokens


@pytest.mark.java
def test_equals_the_jar_on_coco(rng, jar):
    with zipfile.ZipFile(PARITY["COCO_JAR"]) as archive:
        annotations = json.loads(archive.read(PARITY["COCO_FILES"][1]))["annotations"]
    captions = [one_line(item["caption"]) for item in annotations]
    first = rng.randrange(len(captions) - 8_000)
    unusual = [caption for caption in captions if set(caption) & set("0123456789'\"/&<>()$#@:;`")]
    assert len(unusual) > 1000
    assert differences(captions[first : first + 8_000] + unusual, jar) == []


@pytest.mark.java
def test_equals_the_jar_on_hard_strings(rng, jar):
    strings = [one_line(PARITY["hard_string"](rng)) for _ in range(3000)]
    uncovered = set(ptb.uncovered(strings))
    assert len(uncovered) < 0.1 * len(strings)
    assert differences([string for index, string in enumerate(strings) if index not in uncovered], jar) == []


@pytest.mark.java
def test_equals_the_jar_on_ascii_strings(rng, jar):
    ascii_characters = [chr(code) for code in range(32, 127)]
    strings = ["".join(rng.choices(ascii_characters, k=rng.randint(1, 7))) for _ in range(3000)]
    assert differences(apart(strings), jar) == []


@pytest.mark.java
def test_equals_the_jar_on_every_kind_of_character(rng, jar):
    characters = [character for character in map(chr, range(0xA0, 0x20000)) if not ptb.uncovered([character])]
    assert len(characters) > 30_000
    # Letters are by far the most, so the others are drawn apart from them.
    others = [character for character in characters if not character.isalpha()]
    frames = [
        "{}",
        "a{}b",
        "1{}2",
        "{}{}",
        "{}-{}",
        ".{}a",
        '"{}',
        "x. {}",
        "etc.{}",
        "it{}s b",
        "#{}",
        "http://a.b/{}",
    ]
    drawn = rng.sample(characters, 150) + rng.sample(others, 250)
    assert differences(apart(frame.replace("{}", c) for c, frame in itertools.product(drawn, frames)), jar) == []


@pytest.mark.java
def test_equals_the_jar_on_every_word_it_knows(jar):
    words = f"{ptb.TITLES} {ptb.CLOSERS} {ptb.STATES} {ptb.COUNTERS} {ptb.OPENERS} {ptb.EXTENSIONS}".split()
    words += [
        *map("".join, ptb.BLENDS.items()),
        "mfg",
        "ptys",
        "ppte",
        "dunkin",
        "somethin",
        "ol",
        "anti",
        "pro",
        "Ph.D",
    ]
    cased = {
        word for given in words for word in (given, given.lower(), given.upper(), given.capitalize(), given.swapcase())
    }
    frames = [
        "{}",
        "{}. dog",
        "{}. Dog",
        "{}. 5",
        "{}., x",
        "{}' x",
        "{}'s",
        "{}-b",
        "{}.b",
        "{}.-b",
        "b. {} x",
        "1.{} x",
        "{}-",
    ]
    assert differences(apart(frame.format(word) for word in sorted(cased) for frame in frames), jar) == []


@pytest.mark.java
def test_equals_the_jar_on_captions(rng, jar):
    references, hypotheses = random_captions(rng, 300)
    assert differences([*flatten(references), *hypotheses.values()], jar) == []


def test_the_characters_it_does_not_know_are_named():
    known = ["plain", "café “quoted” – 5 € …", "😀 中文 é\u0301", ""]
    unknown = [
        "soft\u00adhyphen",
        "Σίσυφος",
        "two\nlines",
        "tab\t",
        "lone \ud800",
        "\u1200",
        "\u20bf\u20c0",
        "\U00010400",
    ]
    assert ptb.uncovered(known) == []
    mixed = [caption for pair in zip(known, unknown, strict=False) for caption in pair] + unknown[len(known) :]
    assert [mixed[index] for index in ptb.uncovered(mixed)] == unknown


@pytest.mark.java
def test_a_caption_may_be_long_and_strange(jar, monkeypatch):
    assert ptb.uncovered(["a " * 9000, "x" * 9000]) == [1]
    monkeypatch.setattr(ptb, "_LONGEST", 10**6)
    pieces = ["word ", "x", "a,", "<a ", "1 ", "a-", "'", ".", "a.", "a@", "http://a", "(555) ", "é.", "😀", "b. The "]
    assert differences(apart(piece * 1500 for piece in pieces), jar) == []


@pytest.mark.java
def test_equals_the_jar_on_last_lines(rng, jar):
    """Where nothing follows, and rules that look ahead see the end of the text: one caption at a time."""
    ends = [
        "'n", "'t", "'s", "n't", "'90", "'", '"', "b.", "etc.", "Mr.", "U.S.", "inc.", "no.", "5", "1/2", "1.", "1,", "$",
        ":)", "(^_^)", "-", "..", "&amp;", "<b>", "x.com", "#a", "can", "'em",
    ]  # fmt: skip
    for end in ends:
        caption = one_line(PARITY["hard_string"](rng)) + rng.choice(["", " "]) + end
        assert ptb.uncovered([caption]) or ptb.tokenize([caption]) == jar([caption]), caption
