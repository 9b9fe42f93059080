"""METEOR equals pycocoevalcap's, whatever a caption holds, and a process that hangs is replaced and named."""

from __future__ import annotations

import random
import sys
import textwrap

import pytest
from java_support import fake_java, needs_java, random_captions

from velm_cli.metrics import ptb
from velm_cli.metrics.java import Java, JavaError, Launcher, find_java
from velm_cli.metrics.meteor import Meteor, _plausible, _request


@pytest.mark.java
def test_equals_pycocoevalcap_and_survives_odd_captions():
    needs_java()
    from pycocoevalcap.meteor.meteor import Meteor as Official

    references, hypotheses = random_captions(random.Random(), 40)
    references = {image: ptb.tokenize(group) for image, group in references.items()}
    hypotheses = dict(zip(hypotheses, ptb.tokenize(list(hypotheses.values())), strict=True))
    hypotheses |= {1: "", 2: "a ||| b", 3: "😀 niño", 4: "a dog"}
    references |= {1: ["a cat"], 2: ["a b", "b"], 3: ["niño ñ"], 4: ["", "a dog"]}
    official = Official()
    wanted, wanted_each = official.compute_score(references, {i: [h] for i, h in hypotheses.items()})
    with Launcher(find_java()) as launcher, Meteor(launcher, timeout=300) as meteor:
        total, each, summands = meteor.score(references, hypotheses)
        assert summands.total() == total
        assert list(each) == list(references)
        assert total == pytest.approx(wanted, abs=1e-9)
        assert list(each.values()) == pytest.approx(wanted_each, abs=1e-9)
        # What would block pycocoevalcap for ever; and the process stays good for another call.
        odd = {1: "a\ncat", 2: "|||", 3: "a \u2028 dog |||| b"}
        _, each, _ = meteor.score({1: ["a cat"], 2: ["a"], 3: ["a dog"]}, odd)
        assert each[1] == 1.0
        assert each[2] == 0.0
        assert meteor.score(references, hypotheses)[0] == total


def jvm(folder, code: str) -> Java:
    """A METEOR written in Python, so that it can hang or die where a test wants it to."""
    script = folder / "meteor.py"
    script.write_text("import os, sys, time, pathlib\n" + textwrap.dedent(code))
    return Java(str(fake_java(folder, f'exec "{sys.executable}" -u "{script}" "{folder}"')), "17", 17)


ANSWERS = """
    seen = pathlib.Path(sys.argv[1], "starts")
    starts = len(seen.read_text()) if seen.exists() else 0
    seen.write_text("x" * (starts + 1))
    for line in sys.stdin:
        fields = line.strip().split(" ||| ")
        if fields[-1] == "hang" and {hangs}:
            {how}
        print(len(fields[-1].split()), *[0] * 22)
"""


@pytest.mark.parametrize("how", ["time.sleep(60)", "sys.exit('Error: something')"])
def test_a_process_that_fails_once_is_replaced_and_goes_on(tmp_path, how):
    java = jvm(tmp_path, ANSWERS.format(hangs="starts == 0", how=how))
    with Launcher(java) as launcher, Meteor(launcher, timeout=60, reply_timeout=3) as meteor:
        total, each, sums = meteor.score({1: ["r"], 2: ["r"], 3: ["r"]}, {1: "a b", 2: "hang", 3: "a b c"})
    assert sums.rows_IS[:, 0].tolist() == [2.0, 1.0, 3.0]
    assert (total, each) == (0.0, {1: 0.0, 2: 0.0, 3: 0.0})  # nothing matched
    assert (tmp_path / "starts").read_text() == "xx"


GOOD = "4 3 1 1  2 2 1 1  0 0 0 0  0 0 0 0  0 0 0 0  1 3 3"


@pytest.mark.parametrize(
    "line",
    [
        GOOD.rpartition(" ")[0],  # one too few
        GOOD + " 0",
        "",
        GOOD.replace("4", "nan", 1),
        GOOD.replace("4", "inf", 1),
        GOOD.replace("4", "4.5", 1),
        GOOD.replace("3 1 1", "3 -1 1"),
        GOOD.replace("4", "5", 1),  # words of another caption
        GOOD.replace("2 2 1 1", "2 2 0 1"),  # 3 words matched, of 2
        GOOD.replace("1 3 3", "4 3 3"),  # more chunks than words in them
        GOOD.replace("4 3", "4 2"),  # more matched than there are
        " ".join(["1"] * 23),
        "Error: out of memory",
    ],
)
def test_what_cannot_be_statistics_of_the_caption_is_no_answer(line):
    request = _request(["a dog runs"], "the dog runs fast")
    assert _plausible(GOOD, request) and _plausible(
        GOOD.replace("4", "6", 1), _request(["a dog runs"], "the dog's fast")
    )
    assert not _plausible(line, request)


def test_a_caption_that_always_hangs_it_is_named(tmp_path):
    java = jvm(tmp_path, ANSWERS.format(hangs="True", how="time.sleep(60)"))
    named = pytest.raises(JavaError, match=r"METEOR failed on image 7 \('hang'\): no answer in 3 s")
    with Launcher(java) as launcher, Meteor(launcher, timeout=60, reply_timeout=3) as meteor, named:
        meteor.score({1: ["r"], 7: ["r"]}, {1: "ab", 7: "hang"})


def test_its_time_limit_holds(tmp_path):
    java = jvm(tmp_path, ANSWERS.format(hangs="True", how="time.sleep(60)"))
    named = pytest.raises(JavaError, match="image 7")
    with Launcher(java) as launcher, Meteor(launcher, timeout=1) as meteor, named:
        meteor.score({7: ["r"]}, {7: "hang"})
    assert (tmp_path / "starts").read_text() == "x"
