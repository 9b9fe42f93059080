"""Captions to tokens as the field's numbers have them: Stanford's PTB tokenizer, punctuation dropped.

Every published score is computed on these tokens. The jar is the one inside the installed pycocoevalcap;
velm runs it itself because pycocoevalcap writes into site-packages, shifts every later caption when one
holds a line separator, and turns a missing Java into BLEU 0. Without Java, `simple_tokenize` stands in.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pycocoevalcap

from velm_cli.metrics.java import JavaError, Launcher

PYCOCOEVALCAP = Path(pycocoevalcap.__path__[0])
PTB_JAR = PYCOCOEVALCAP / "tokenizer" / "stanford-corenlp-3.4.1.jar"
# What pycocoevalcap drops, in PTB's spelling of brackets and quotes.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"]) | frozenset(
    [".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
DROPPED_BY_SIMPLE = frozenset("\"'`.?!,:;-()[]{}“”‘’…–—")

Id = TypeVar("Id", bound=Hashable)

# don't -> do n't, it's -> it 's, as PTB does; hyphenated words and numbers such as 10,000 or 1/2 stay whole.
_SIMPLE_TOKEN = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,:/]\d+)+|(?:(?!n't\b)\w)+(?:[-/](?:(?!n't\b)\w)+)*|[^\w\s]"
)


def one_line(text: str) -> str:
    """`text` with a space for everything that could end a line or break UTF-8, whatever the program's rules.

    That is: control and format-control characters with all Unicode line separators, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def simple_tokenize(text: str) -> str:
    """Lower-case words separated by spaces, no punctuation: close to PTB, not equal; needs no Java."""
    tokens = _SIMPLE_TOKEN.findall(one_line(text).lower().replace("’", "'"))
    return " ".join(token for token in tokens if token not in DROPPED_BY_SIMPLE)


def ptb_tokenize(captions: Sequence[str], launcher: Launcher, *, timeout: float) -> list[str]:
    """One string of space-separated tokens a caption, equal to pycocoevalcap's PTBTokenizer on this list.

    The list is one text to the tokenizer, which looks a little ahead (a full stop after an abbreviation
    depends on the next line), so equality needs the same captions in the same order. Raises JavaError.
    """
    if not captions:
        return []
    arguments = ["-cp", str(PTB_JAR), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    process = launcher.start(arguments)
    deadline = time.monotonic() + timeout
    try:
        # No newline after the last caption: pycocoevalcap writes none.
        process.send("\n".join(one_line(caption) for caption in captions))
        process.close_input()
        lines = []
        while (line := process.read_line(deadline - time.monotonic())) is not None:
            lines.append(line)
        code = process.wait(deadline - time.monotonic())
    except JavaError as error:
        raise JavaError(f"the PTB tokenizer failed: {error}") from None
    finally:
        process.kill()
    if len(lines) == len(captions) - 1 and not any(c.isalnum() for c in captions[-1]):
        lines.append("")  # a last line without tokens is not printed
    if code != 0 or len(lines) != len(captions):
        got = f"{len(lines)} lines for {len(captions)} captions"
        raise JavaError(f"the PTB tokenizer failed: exit code {code}, {got}: {process.complaint()}")
    return [_without_punctuation(line) for line in lines]


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)


def flatten(captions: Mapping[Id, Sequence[str]]) -> list[str]:
    """All captions in the order of their images."""
    return [caption for group in captions.values() for caption in group]


def unflatten(tokenized: Sequence[str], like: Mapping[Id, Sequence[str]]) -> dict[Id, list[str]]:
    """The opposite of `flatten`: `tokenized` dealt out to the images of `like`."""
    remaining = iter(tokenized)
    dealt = {image: [next(remaining) for _ in group] for image, group in like.items()}
    assert next(remaining, None) is None, "more captions than `like` holds"
    return dealt
