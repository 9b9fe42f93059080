"""Captions to tokens as the field's numbers have them: Stanford's PTB tokenizer, punctuation dropped.

Every published score is computed on these tokens. velm reads them itself (`ptb.py`), and asks the jar inside the
installed pycocoevalcap where a caption holds what its own reader does not know. It runs the jar itself because
pycocoevalcap writes into site-packages, shifts every later caption when one holds a line separator, and turns a
missing Java into BLEU 0.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from velm_cli.metrics import ptb
from velm_cli.metrics.authority import pycocoevalcap
from velm_cli.metrics.java import JavaError, Launcher

KNOWN = 1000  # captions, of which the jar's tokens are compared with velm's own
Id = TypeVar("Id", bound=Hashable)


def one_line(text: str) -> str:
    """`text` with a space for everything that could end a line or break UTF-8, whatever the program's rules.

    That is: control and format-control characters with all Unicode line separators, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


class PtbTokenizer:
    """Captions to space-separated tokens, equal to pycocoevalcap's PTBTokenizer on the same list.

    `from_jar` counts the captions for whose sake Java was asked. `unsure` counts those that should have been asked
    about when there was no Java (`problem` says why): velm's own reading of them may differ.
    """

    def __init__(self, launcher: Launcher | None, *, timeout: float = 0.0) -> None:
        """`launcher`: None never asks the jar. `timeout` in seconds, of the jar."""
        self.launcher, self.timeout, self.problem = launcher, timeout, "it was not asked"
        self.from_jar = self.unsure = 0

    def __call__(self, captions: Sequence[str]) -> list[str]:
        lines = [one_line(caption) for caption in captions]
        if uncovered := ptb.uncovered(lines):
            if self.launcher is not None:
                try:
                    tokens = ptb_tokenize(lines, self.launcher, timeout=self.timeout)
                    _check_known(lines, tokens, set(uncovered))
                except JavaError as error:
                    self.problem = str(error)
                else:
                    self.from_jar += len(uncovered)
                    return tokens
            self.unsure += len(uncovered)
        return ptb.tokenize(lines)


def _check_known(captions: Sequence[str], tokens: Sequence[str], uncovered: set[int]) -> None:
    """JavaError when the jar's tokens are not those that velm knows of captions that it can read itself.

    A tenth of them may differ, so that no fault of velm's own reader costs the jar's word on the others.
    """
    first = ["" if number in uncovered else caption for number, caption in enumerate(captions[:KNOWN])]
    expected = ptb.tokenize(first)
    known = [number for number in range(len(first) - 1) if not uncovered & {number, number + 1}]
    differing = [number for number in known if tokens[number] != expected[number]]
    if 10 * len(differing) > len(known):
        one = differing[0]
        raise JavaError(f"the PTB tokenizer failed: {captions[one][:60]!r} became {tokens[one][:60]!r}")


def ptb_tokenize(captions: Sequence[str], launcher: Launcher, *, timeout: float) -> list[str]:
    """The jar's tokens of each caption, separated by spaces, equal to pycocoevalcap's PTBTokenizer on this list.

    The list is one text to the tokenizer, which looks a little ahead (a full stop after an abbreviation
    depends on the next line), so equality needs the same captions in the same order. Raises JavaError.
    """
    if not captions:
        return []
    jar = pycocoevalcap() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    process = launcher.start(arguments)
    deadline = time.monotonic() + timeout
    try:
        # No newline after the last caption: pycocoevalcap writes none.
        process.send("\n".join(one_line(caption) for caption in captions))
        process.close_input()
        lines: list[str] = []
        while (line := process.read_line(deadline - time.monotonic())) is not None and len(lines) <= len(captions):
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
    return " ".join(token for token in line.rstrip().split(" ") if token not in ptb.PUNCTUATION)


def flatten(captions: Mapping[Id, Sequence[str]]) -> list[str]:
    """All captions in the order of their images."""
    return [caption for group in captions.values() for caption in group]


def unflatten(tokenized: Sequence[str], like: Mapping[Id, Sequence[str]]) -> dict[Id, list[str]]:
    """The opposite of `flatten`: `tokenized` dealt out to the images of `like`."""
    remaining = iter(tokenized)
    dealt = {image: [next(remaining) for _ in group] for image, group in like.items()}
    assert next(remaining, None) is None, "more captions than `like` holds"
    return dealt
