"""Who may write a store: one build, or the parts of an array job side by side.

Part i of n makes the shards i - 1, i - 1 + n, i - 1 + 2 n, ... Shards are functions of the input and get their
names last, so parts need not talk to each other, and any mixture of machines, orders, repetitions and even
of different n ends in the same store. Locks only save double work and tell users of a second command early.
They are `flock`s, which Linux also passes on to NFS servers and which end with their owner; where a file
system has none (some mounts of Lustre and NFS), work goes on without, and `check_shard` finds mixtures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from velm_cli.errors import UserError
from velm_cli.files import LOCK, locked, write_text

LAST = ".parts"  # into how many parts the last array job has cut this build
MERGE = "merge"


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, shard: int) -> bool:
        """Whether shard number `shard` (from 0) is this part's."""
        return shard % self.of == self.number - 1


def parse_part(text: str | None) -> Part | None:
    """What `preprocess.part` says: None if it names no part (merge, or not set); UserError if it says nothing."""
    if text in (None, MERGE):
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"preprocess.part={text}: parts of 8 are 1/8, 2/8 to 8/8; merge checks and joins them")
    return Part(int(match[1]), int(match[2]))


@contextmanager
def sole_writer(path: Path, part: Part | None) -> Iterator[None]:
    """Hold the store folder `path` for a whole build, or for one part of it beside others.

    UserError if somebody else has it. A whole build that ends well leaves no lock behind.
    """
    refusal = f"another velm preprocess is writing {path}; wait for it or stop it"
    if part is None:
        with locked(path / LOCK, refusal):
            yield
            for left in (path / LOCK, *path.glob(f"{LOCK}.*-of-*"), path / LAST):
                left.unlink(missing_ok=True)
        return
    mine = path / f"{LOCK}.{part.number}-of-{part.of}"  # .writing.3-of-8
    with (
        locked(path / LOCK, refusal, shared=True),
        locked(mine, f"another velm preprocess is making part {part} of {path}; wait for it or stop it"),
    ):
        yield
        mine.unlink(missing_ok=True)  # without locks another may have made the same part


def note_parts(path: Path, part: Part) -> None:
    """Remember into how many parts this build is cut."""
    write_text(path / LAST, f"{part.of}\n")


def was_in_parts(path: Path) -> bool:
    """Whether an array job has begun this build."""
    return (path / LAST).exists()


def parts_of(path: Path, shards: list[int]) -> list[Part]:
    """The parts of the last array job in the store folder `path` that these shards belong to; none without one."""
    try:
        of = int((path / LAST).read_text())
    except (FileNotFoundError, ValueError):
        return []
    return [Part(number, of) for number in sorted({shard % of + 1 for shard in shards})]
