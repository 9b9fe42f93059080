"""Sentences that are true or false of pictures: how the records of NLVR and NLVR2 are named, and which belong together.

What reads such files, what writes drawn ones and what scores predictions must agree on this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LABELS = ("false", "true")
ORDERS = 6  # of the three boxes of NLVR's pictures
_NLVR = re.compile(r"(\d+)-(\d+)")
_NLVR_PICTURE = re.compile(r"([a-z]\w*)-(\d+)-(\d+)-(\d+)")
_NLVR2 = re.compile(r"([a-z]\w*)-(\d+)-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Named:
    """An identifier and what it says. `group`: sentences that count as one in the consistency, as the official scripts
    have it: all pictures of one sentence. `pair`: NLVR2's two photos, None in NLVR."""

    identifier: str
    group: str
    split: str = ""
    pair: str | None = None


def named(identifier: object) -> Named | None:
    """Of a record: 12-0 in NLVR (set 12), dev-12-0-1 in NLVR2 (sentence 1 of set 12, pair 0). None for any other."""
    if not isinstance(identifier, str):
        return None
    if found := _NLVR.fullmatch(identifier):
        return Named(identifier, found[1])
    if found := _NLVR2.fullmatch(identifier):
        split, number, pair, sentence = found.groups()
        return Named(identifier, f"{split}-{number}--{sentence}", split, f"{split}-{number}-{pair}")
    return None


def picture_of(name: str) -> tuple[str, str] | None:
    """(identifier, order) of the name of one of NLVR's pictures, dev-12-0-3 or dev-12-0-3.png: 12-0, 3."""
    found = _NLVR_PICTURE.fullmatch(name.strip().removesuffix(".png"))
    return (f"{found[2]}-{found[3]}", found[4]) if found else None


def label_of(value: object) -> str | None:
    """`true` or `false`, as JSON has it or as text in any case; None for anything else."""
    text = str(value).strip().lower() if isinstance(value, (bool, str)) else ""
    return text if text in LABELS else None
