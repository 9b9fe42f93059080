"""The folder of a store: whose it is, emptying it, and putting a new one in its place.

A folder is velm's if its `plan.json` is, and in it only names that a build writes are ever removed: whatever else
somebody keeps there stays, or is named before anything happens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from velm_cli.data.building import PLAN
from velm_cli.data.store_arrays import ARRAYS, MORE_ARRAYS
from velm_cli.errors import UserError
from velm_cli.files import TEMPORARY, read_sealed, sealed, write_json

LOCKS = r"\.writing(?:\.\d+-of-\d+)?|\.parts"
ARRAY_NAMES = "|".join((*ARRAYS, *MORE_ARRAYS))
TOKEN_FILES = r"(?:(?:tokenizer|velm_tokenizer|crc32|cut|refused)\.json|(?:ids|offsets|learned|prompts|firsts)\.npy)"
BUILT = re.compile(
    rf"""(?:captions/|held-out/)?(?:
        (?:manifest|plan|ids|image_ids|about|concepts)\.json | rejects\.jsonl | preview\.png | {LOCKS}
        | (?:{ARRAY_NAMES})\.npy
        | images/shard-\d+\.(?:tar|json|idx\.npy)
        | tokens/(?:\.writing | [0-9a-f]{{12}}\.json
            | [0-9a-f]{{12}}-\d+(?:-sources|-conversations)?/{TOKEN_FILES})
        | features/[0-9a-f]{{16}}/(?:\.writing|about\.json|part-\d+(?:\.crc32)?\.npy)
    )
    | scan/\d+\.(?:json|npy) | held-out-images/\d+
    | (?:.*/)?{TEMPORARY}(?:/.*)?""",
    re.X,
)


def real_folder(path: Path) -> Path:
    """Where a store that `path` names lies: of a link what it leads to, for names are swapped by fresh=true."""
    real = Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path
    if not real.name:
        raise UserError(f"dataset.store={path}: name a folder that may become a store")
    return real


def read_plan(path: Path) -> dict[str, Any] | None:
    """What the store in the folder `path` is made from; None if no build has begun there.

    UserError where its plan is damaged or is no plan of velm's.
    """
    try:
        plan = read_sealed(path / PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path / PLAN} is damaged, or not velm's ({line}); name another folder with dataset.store=..."
        ) from None
    if not {"dataset.kind", "preprocess.num_concepts"} <= plan.keys():
        raise UserError(f"{path} exists and is not a store; name another folder with dataset.store=...")
    return plan


def write_plan(path: Path, plan: dict[str, Any]) -> None:
    """Say in the folder `path` what a store is being made from: from now on it is velm's."""
    write_json(path / PLAN, sealed(plan))


def refuse_foreign(path: Path) -> None:
    """UserError if something lies at `path` that no build has made; hidden files are no obstacle."""
    taken = any(not entry.name.startswith(".") for entry in path.iterdir()) if path.is_dir() else os.path.lexists(path)
    if taken and read_plan(path) is None:  # in this order: a build that starts meanwhile writes its plan first
        raise UserError(f"{path} exists and is not a store; name another folder with dataset.store=...")


def strangers(path: Path) -> Iterator[str]:
    """What lies in the folder `path` and was not written by a build."""
    for parent, folders, files in os.walk(path):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted((*links, *files)):
            inside = os.path.relpath(os.path.join(parent, name), path)
            if not BUILT.fullmatch(inside) or name in links:
                yield inside


def empty(path: Path, keep: str = "$") -> None:
    """Remove what builds have written into the folder `path`, but for the names `keep`, and the folders left empty."""
    for parent, _, files in os.walk(path, topdown=False):
        for name in files:
            inside = os.path.relpath(os.path.join(parent, name), path)
            if BUILT.fullmatch(inside) and not re.fullmatch(keep, inside):
                os.unlink(os.path.join(parent, name))
        if parent != str(path):
            with suppress(OSError):
                os.rmdir(parent)


# ------------------------------------------------------------------------------------ replacing a store


def place_of_fresh(path: Path) -> Path:
    """Where the store that is to replace `path` grows."""
    return path.with_name(f".{path.name}.new")


def _aside(path: Path) -> Path:
    """Where the store `path` is while a fresh one takes its place."""
    return path.with_name(f".{path.name}.old")


def undo_cut_off_swap(path: Path) -> None:
    """Bring back the store `path` if a kill has left it aside."""
    old = _aside(path)
    if not os.path.lexists(path) and old.is_dir():
        with suppress(UserError):  # somebody else's folder of that name
            if read_plan(old) is not None:
                old.rename(path)


def refuse_to_replace(path: Path) -> None:
    """UserError if replacing the store `path` would touch anything that no build has written."""
    for taken in (path, _aside(path), place_of_fresh(path)):
        refuse_foreign(taken)
    for taken in (path, _aside(path)):
        if found := next(strangers(taken), None):
            raise UserError(
                f"{taken} holds {found}, which velm did not write: move it away, and fresh=true can replace the store"
            )


def replace(path: Path) -> None:
    """Put the complete store at `place_of_fresh(path)` in the place of `path`."""
    old = _aside(path)
    _remove(old)
    if path.exists():
        path.rename(old)
    place_of_fresh(path).rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        empty(path)
        with suppress(OSError):
            path.rmdir()
