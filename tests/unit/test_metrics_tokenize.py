"""velm's tokens are pycocoevalcap's, and no caption can shift another's."""

from __future__ import annotations

import os
import random

import pytest
from java_support import fake_java, needs_java, random_captions

from velm_cli.metrics import ptb
from velm_cli.metrics.java import Java, Launcher, find_java
from velm_cli.metrics.tokenize import PtbTokenizer, flatten, one_line, ptb_tokenize, unflatten

LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.java
def test_equals_pycocoevalcap(rng):
    needs_java()
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references, _ = random_captions(rng, 60)
    wanted = PTBTokenizer().tokenize({i: [{"caption": c} for c in group] for i, group in references.items()})
    with Launcher(find_java()) as launcher:
        got = ptb_tokenize(flatten(references), launcher, timeout=120)
    assert unflatten(got, references) == wanted


@pytest.mark.java
def test_odd_captions_stay_in_their_places():
    needs_java()
    odd = [f"one{end}two" for end in LINE_ENDS]
    odd += [
        "",
        "   ",
        "a\r\nb",
        "\ud800 lone",
        "😀 cat",
        "*NL* x *NL*",
        "||| a ||| b",
        "<br> <b",
        "c> d",
        "x" * 5000,
    ]
    odd += ["word " * 10_000, "... !", "etc."]
    between = [caption for i, text in enumerate(odd) for caption in (text, f"marker{i}")]
    with Launcher(find_java()) as launcher:
        tokens = ptb_tokenize(between, launcher, timeout=120)
        assert tokens[1::2] == [f"marker{i}" for i in range(len(odd))]
        assert tokens[: 2 * len(LINE_ENDS) : 2] == ["one two"] * len(LINE_ENDS)
        assert tokens[2 * odd.index("😀 cat")] == "cat"
        for captions in (["a", "", ""], [""], ["", "a"], ["a", " ...\n"], []):
            assert len(ptb_tokenize(captions, launcher, timeout=120)) == len(captions)


@pytest.mark.parametrize("end", LINE_ENDS)
def test_one_line_leaves_no_line_end(end):
    assert one_line(f"a{end}b") == "a b"
    assert len(one_line("été 😀 \ud800").encode()) > 0


def test_plain_captions_need_no_java(rng):
    references, _ = random_captions(rng, 20)
    tokenize = PtbTokenizer(None)
    assert tokenize(flatten(references)) == ptb.tokenize(flatten(references))
    assert (tokenize.from_jar, tokenize.unsure) == (0, 0)


@pytest.mark.java
def test_what_velm_does_not_read_the_jar_does():
    needs_java()
    captions = ["a dog.", "ሀ ሁ dog", "a cat", "x" * 5001, "a\u2028dog"]
    assert ptb.uncovered(captions) == [1, 3, 4]
    with Launcher(find_java()) as launcher:
        tokenize = PtbTokenizer(launcher, timeout=60)
        tokens = tokenize(captions)
        assert tokens == ptb_tokenize(captions, launcher, timeout=60)
        assert (tokenize.from_jar, tokenize.unsure) == (2, 0)  # `one_line` took the line end out
    assert tokens[4] == "a dog"


def test_without_the_jar_such_captions_are_counted(tmp_path, monkeypatch):
    fake_java(tmp_path / "bin", "exit 3")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    java = Java(str(tmp_path / "bin" / "java"), "17.0.1", 17)
    with Launcher(java) as launcher:
        tokenize = PtbTokenizer(launcher, timeout=60)
        assert tokenize(["a dog", "ሀ dog"])[0] == "a dog"
    assert tokenize.unsure == 1
    assert "exit code 3" in tokenize.problem
