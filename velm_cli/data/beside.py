"""Tokens beside a store, in folders of arrays: made once for all processes that ask, checked when they are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from velm_cli.errors import UserError
from velm_cli.files import (
    LOCK,
    check_crc32,
    crc32,
    locked,
    read_sealed,
    refuse_links,
    remove_temporary,
    sealed,
    unique,
    write_json,
)

SUMS = "crc32.json"  # of the arrays beside it
OF_STORE = "store"  # in that file: the hash of the store; the first versions did not write it


def make_once(place: Path, store: str, fill: Callable[[Path], None], also: Callable[[], None] | None = None) -> None:
    """Make `place` if it is absent: what `fill` puts into the folder that it is given, and the sums of its arrays.

    `store`: the hash of the store that they belong to. `also`: written each time, while no other process writes.
    Several processes may ask at once, and a killed one leaves nothing that counts.
    """
    folder = place.parent
    try:
        refuse_links(folder.parent)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, "", wait=True):  # others that ask at the same time find it made
            remove_temporary(folder)
            if not place.exists():
                _make(place, store, fill)
            if also is not None:
                also()
    except OSError as error:
        raise UserError(f"cannot write tokens into {folder}: {error.strerror or error}") from error


def check_sums(folder: Path, store: str) -> None:
    """ValueError or OSError if an array is not what was written, or belongs to another store."""
    sums = read_sealed(folder / SUMS)
    if sums.pop(OF_STORE, store) != store:
        raise ValueError("they are of the texts of another store")
    for name, expected in sums.items():
        check_crc32(folder / name, expected)


def damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"the tokens in {folder} are damaged ({error}): delete it, and it is made again")


def _make(place: Path, store: str, fill: Callable[[Path], None]) -> None:
    temporary = place.with_name(f".{place.name}.{unique()}.tmp")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        sums = {path.name: crc32(path) for path in sorted(temporary.glob("*.npy"))}
        write_json(temporary / SUMS, sealed(sums | {OF_STORE: store}))
        temporary.rename(place)
    except (OSError, UserError):
        if not place.exists():  # else another process was quicker, with the same result
            raise
    finally:
        for left in place.parent.glob(f".{place.name}.*.tmp") if place.exists() else [temporary]:
            shutil.rmtree(left, ignore_errors=True)  # ours, those of the killed, and of those who come too late
