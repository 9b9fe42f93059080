"""A Java that answers nonsense: fourteen kinds of it to METEOR, SPICE and Stanford's tokenizer.

    python tests/faults/nonsense.py

Every score that hangs on the program must be missing with a reason of one line, the others must be what they are without
Java; captions that the tokenizer was to read are read by velm alone, with a warning. Nothing may be a number that the
nonsense made.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

KINDS = ("few", "empty", "nan", "inf", "negative", "ones", "words", "binary", "extra", "exit", "hang", "huge", "wrong json",
         "half json", "deep json")  # fmt: skip
PROGRAMS = {"meteor": "METEOR", "spice": "SPICE", "tokenizer": None}

JAVA = r"""
import json, os, sys, time
kind, program = {kind!r}, {program!r}
asked = "meteor" if "-stdio" in sys.argv else "spice" if "edu.anu.spice.SpiceScorer" in sys.argv else "tokenizer"
if asked != program:
    sys.exit("only one of them is asked here")
numbers = {{"nan": "nan", "inf": "inf", "negative": "-1", "ones": "1"}}
line = (" ".join([numbers[kind]] * 23) if kind in numbers else
        {{"few": "1 2 3", "empty": "", "words": "yes maybe no", "extra": "8 8 0 0 8 8" + " 0" * 14 + " 1 8 8",
         "wrong json": '{{"a": [1]}}', "half json": '[{{"image_id": 0, "sco', "deep json": "[" * 100_000}}.get(kind, ""))
line = b"\xff\x00\x1b[2J\x07" if kind == "binary" else line.encode()
if kind == "exit":
    sys.exit(3)
if kind == "hang":
    time.sleep(600)
out = sys.stdout.buffer
if program == "spice":
    where = sys.argv[sys.argv.index("-out") + 1]
    given = json.load(open(sys.argv[sys.argv.index("edu.anu.spice.SpiceScorer") + 1]))
    f = {{"nan": float("nan"), "inf": float("inf"), "negative": -1, "ones": 12, "words": "yes", "empty": None}}.get(kind)
    rows = [{{"image_id": item["image_id"], "scores": {{"All": {{"f": f}}}}}} for item in given]
    rows = rows[1:] if kind == "few" else rows * 2 if kind == "extra" else rows
    with open(where, "wb") as file:
        if kind == "huge":
            file.truncate(1 << 40)
        else:
            file.write(line if kind in ("binary", "wrong json", "half json", "deep json") else json.dumps(rows).encode())
elif kind == "huge":
    while True:
        out.write(b"x" * (1 << 20))
else:
    for _ in sys.stdin.buffer:
        for _ in range(1 + (kind == "extra")):
            out.write(line + b"\n")
        out.flush()
"""

REFERENCES = {number: ["a dog runs over the green grass", "two dogs are playing"] for number in range(6)} | {
    9: ["ein ﷺ"]
}
HYPOTHESES = {number: f"{number} dogs run over the grass" for number in range(6)} | {9: "a dog and a ﷺ"}


def outcome(program: str, kind: str, folder: Path) -> str:
    """What came of it, in words; AssertionError when it was not what it must be."""
    from java_support import fake_java

    from velm_cli.metrics.captions import score_captions
    from velm_cli.metrics.spice import CORENLP_JARS
    from velm_cli.schema import MetricsConfig

    folder.mkdir(parents=True)
    (folder / "java.py").write_text(JAVA.format(kind=kind, program=program))
    fake_java(folder / "home/bin", f'exec "{sys.executable}" "{folder / "java.py"}" "$@"')
    for jar in CORENLP_JARS:
        (folder / jar).touch()
    names = ["bleu", "rouge_l", "cider", *([program] if program != "tokenizer" else [])]
    config = MetricsConfig(names=names, java_timeout=1.0 if kind == "hang" else 60.0, resamples=0)
    hypotheses = HYPOTHESES if program == "tokenizer" else {k: v for k, v in HYPOTHESES.items() if k != 9}
    references = {image: REFERENCES[image] for image in hypotheses}
    os.environ |= {"JAVA_HOME": str(folder / "home"), "VELM_CORENLP": str(folder)}
    began = time.monotonic()
    found = score_captions(references, hypotheses, config, cache_dir=folder / "cache", progress=False)
    assert time.monotonic() - began < 50, "it was waited for"
    os.environ["JAVA_HOME"] = str(folder / "home-without-java")
    os.environ["PATH"], path = "", os.environ["PATH"]
    try:
        without = score_captions(references, hypotheses, config, cache_dir=folder / "cache", progress=False)
    finally:
        os.environ["PATH"] = path
    assert found.corpus == without.corpus, "a score was made of it"
    said = found.warnings[0] if program == "tokenizer" else found.reasons[str(PROGRAMS[program])]
    assert said.isprintable() and len(said) < 400, said
    if program == "tokenizer":
        assert "captions hold characters that velm's tokenizer leaves to Stanford's" in said
    return said


def main() -> int:
    bad = 0
    with tempfile.TemporaryDirectory(prefix="velm-nonsense-") as home:
        for program in PROGRAMS:
            for kind in KINDS:
                try:
                    said = outcome(program, kind, Path(home, program, kind.replace(" ", "-")))
                except Exception as error:
                    bad, said = bad + 1, f"FAILED: {type(error).__name__}: {error}"
                print(f"{program:<10} {kind:<10} {said[-120:]}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
