"""What marks a folder that `velm export` wrote: `export.json`, sealed, with what is in it. Imports no torch.

The folder is a run folder without what only training needs, so whatever reads runs reads it. Only such a folder is
ever replaced, and only where nothing else lies in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError
from velm_cli.files import read_sealed, refused_by_the_system, sealed, sha256, unique, write_json

FILE = "export.json"


def noted(folder: Path) -> dict[str, Any] | None:
    """What `velm export` noted in the folder; None where it is not one of its own. UserError when that is damaged."""
    if not (folder / FILE).is_file():
        return None
    try:
        return read_sealed(folder / FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / FILE} is damaged ({error}): export again") from error


def learned_in(folder: Path) -> frozenset[str] | None:
    """The tasks that an exported model has learned, in its run or in those before it; None for other folders."""
    about = noted(folder)
    learned = None if about is None else about.get("learned")
    return frozenset(map(str, learned)) if isinstance(learned, list) else None


@contextlib.contextmanager
def written_whole(out: Path, about: dict[str, Any]) -> Iterator[Path]:
    """An empty folder that takes the place of `out` when the block ends well, with `about` in its `export.json`.

    UserError where `out` is anything else than absent, empty or an exported folder as `velm export` left it.
    """
    refuse_others(out)
    out = out.resolve()  # or out=X/../X would be renamed through the folder that has just been moved
    part, old = (out.with_name(f".{out.name}.{unique()}.part") for _ in range(2))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        names = _files(part)
        digests = {name: sha256(part / name) for name in names}
        write_json(part / FILE, sealed({**about, "files": digests}))
        for name in (*names, FILE):
            with open(part / name, "rb") as file:
                os.fsync(file.fileno())
        refuse_others(out)  # it may have changed meanwhile
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(part, out)
        except OSError:
            if old.exists():
                os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        line = refused_by_the_system(error)
        raise UserError(line or f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_others(out: Path) -> None:
    """UserError where writing to `out` would replace anything that `velm export` did not write."""
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"out={out} is {'a link' if out.is_symlink() else 'a file'}: name a folder")
    names = _files(out)
    if not names and not any(out.iterdir()):
        return
    about = noted(out)
    if about is None:
        raise UserError(f"out={out} is not empty, and velm export did not write it: name another folder")
    known = about.get("files")
    strange = sorted(set(names) - {FILE, *(known if isinstance(known, dict) else ())})
    changed = sorted(name for name, digest in (known or {}).items() if name in names and sha256(out / name) != digest)
    if changed and not strange:
        raise UserError(f"out={out}: {changed[0]} has changed since velm export wrote it: name another folder")
    if strange:
        raise UserError(f"out={out} also holds {strange[0]}, which velm export did not write: name another folder")


def _files(folder: Path) -> list[str]:
    """Everything below the folder that is not itself a folder, as paths from there."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in (*files, *links)]
    return sorted(found)
