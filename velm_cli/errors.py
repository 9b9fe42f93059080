"""The one exception users see: what is wrong, where, and what to do about it, in one line.

Programmer mistakes stay `assert`s and ordinary exceptions with a traceback; anything a user can cause
(an option, a path, a data file, a missing program) is raised as `UserError`, which the command line
prints without a traceback and turns into exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any


class UserError(Exception):
    """A mistake or a circumstance that the user can mend; `str(error)` is the line to show."""


class StageError(Exception):
    """The work itself failed (no mistake in the command): one line, exit code 1."""


def visible(text: str) -> str:
    """`text` with every character but line ends that a terminal obeys or cannot show as its escape: `\\x1b[2J`.

    Ids, names and words of strangers' files and programs are in messages and tables.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def on_one_line(text: str) -> str:
    """The same of line ends too: what a stranger's file calls something makes no line of its own."""
    return visible(text).replace("\n", "\\n")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'train'?"` when one of `choices` is close to `word`, else an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = [by_lower[name] for name in difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)]
    return f"; did you mean {close[0]!r}?" if close else ""


def without_effect(group: str, node: Any, *names: str, chosen: str) -> Iterator[str]:
    """A line for each of these options that is not at its default: what was `chosen` does not use them."""
    default = type(node)()
    for name in names:
        if (value := getattr(node, name)) != (usual := getattr(default, name)):
            shown, usual = getattr(value, "value", value), getattr(usual, "value", usual)
            yield f"{group}.{name}={shown} has no effect with {chosen}: leave it at {usual}"
