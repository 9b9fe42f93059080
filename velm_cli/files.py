"""Writing files whole or not at all, and noticing when one has changed since."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from velm_cli.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
AGAIN = "and give the same command again: it goes on from what is there"
NO_HANDLES = (errno.EMFILE, errno.ENFILE)
LOCK = ".writing"  # the file that is locked while a folder of a store is written
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some mounts of Lustre, NFS, FUSE
SEAL = "crc32"  # the key of a JSON object that seals the others


TEMPORARY = r"\.[^/]+\.\d+-[0-9a-f]+\.(?:tmp|part)"  # names made with `unique`


def unique() -> str:
    """Part of a temporary name that no other process uses, on this machine or on another with the same disk."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes have left half-written in the folder, and nothing of anybody else's."""
    for parent, folders, files in os.walk(folder):
        for name in [name for name in folders if re.fullmatch(TEMPORARY, name)]:
            shutil.rmtree(os.path.join(parent, name))
            folders.remove(name)
        for name in files:
            if re.fullmatch(TEMPORARY, name):
                os.unlink(os.path.join(parent, name))


def write_bytes(path: Path, parts: Iterable[bytes]) -> None:
    """Replace `path` by the parts in a row; a kill at any moment leaves the old file or the new one.

    Several processes may write the same file, on any machines.
    """
    part_path = path.with_name(f".{path.name}.{unique()}.part")
    try:
        with open(part_path, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part_path, path)
    except OSError as error:  # a full disk's error names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part_path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under `path` when the block ends well, and not at all otherwise."""
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        cure = "; make room and run the same command again, it goes on from here" * (error.errno in NO_ROOM)
        raise UserError(f"cannot write {path}: {error.strerror or error}{cure}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, whole or not at all."""
    write_bytes(path, [text.encode()])


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Replace `path` by strict JSON (no NaN), in ASCII: captions may hold what UTF-8 cannot."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


# Folders may come from strangers (a shared store, an unpacked run), and links survive tar and git.


def refuse_links(folder: Path) -> None:
    """UserError if anything in `folder` is a link that leads out of it: what is written there would land elsewhere."""
    home = os.path.realpath(folder)
    for parent, folders, files in os.walk(folder):  # does not go through links
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            if os.path.islink(path) and os.path.commonpath([home, target := os.path.realpath(path)]) != home:
                raise UserError(f"{path} is a link to {target}, and velm does not write through links: remove it")


def writing_through_no_link(path: Path) -> int:
    """A descriptor to read and append to `path`, which is made if absent. UserError where it is a link."""
    try:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link, and velm does not write through links: remove it") from None
        raise


_without_locks: list[str] = []  # that the user has been told


def lock(file: IO[Any], how: int) -> None:
    """`flock`; on a file system without locks nothing but a note, once. BlockingIOError where somebody else has it."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if not _without_locks:
            _without_locks.append(str(file.name))
            print(
                f"note: the file system of {file.name} has no locks ({error.strerror}): velm goes on without, and "
                "cannot tell whether another velm works in the same folder",
                file=sys.stderr,
            )


@contextlib.contextmanager
def locked(path: Path, busy: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the file `path`, which is made if absent and never written into.

    UserError(busy) where somebody else holds it; with `wait` that is printed, if it is not empty, and the lock awaited.
    `flock`s end with their owner, and no program that it starts has them; without locks work goes on.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with open(path, "rb", buffering=0, opener=lambda path, _: writing_through_no_link(Path(path))) as file:
            try:
                lock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise UserError(busy) from None
                if busy:
                    print(busy, flush=True)
                lock(file, how)
            try:
                is_there = os.path.samestat(os.stat(path), os.fstat(file.fileno()))
            except FileNotFoundError:
                is_there = False
            if is_there:  # outside the `try`, or a file that is missed by whoever holds the lock would be taken for it
                yield
                return
        # its owner has just removed the file, and others lock a new one


def too_many_open() -> str:
    """What is wrong with the limit of open files, and what to do."""
    return f"{os.strerror(errno.EMFILE)}; the limit is that of `ulimit -n`: raise it (ulimit -n 4096) {AGAIN}"


def refused_by_the_system(error: OSError) -> str | None:
    """One line for the user when a disk is full, read-only or failing, or too many files are open; else None."""
    where = error.filename or "a file"
    if error.errno in NO_HANDLES:
        return f"{where}: {too_many_open()}"
    if error.errno in NO_ROOM:
        return f"cannot write {where}: {error.strerror}; make room {AGAIN}"
    if error.errno in NO_ACCESS:
        return f"{where}: {error.strerror}; make it accessible, or name another folder, {AGAIN}"
    return None


# Checksums are against decay (disks, copies, memory), not against people: CRC-32 finds every change of up to 32 bits in
# a row and all but one in four billion of the others, at ten times the speed of sha256 on machines without its
# instructions.


def crc32(path: Path) -> str:
    """CRC-32 of a file, eight hexadecimal digits; a GB takes about 0.6 s."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal: what names a content, where CRC-32 is against decay."""
    import hashlib  # takes a moment, and many commands do without

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_crc32(path: Path, expected: str | None) -> None:
    """ValueError when the file is not as `expected` says; None (written by an older velm) says nothing."""
    if expected is not None and crc32(path) != expected:
        raise ValueError(f"{path.name} has changed since it was written")


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """`value`, which is plain JSON, with the CRC-32 of its other keys as `crc32`."""
    return {**value, SEAL: _seal_of(json.dumps(value))}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """What was `sealed`; ValueError when it has changed since. Without a seal (an older velm's) as it is."""
    content = {key: part for key, part in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _seal_of(json.dumps(content)):
        raise ValueError("its content has changed since it was written")
    return content


def read_sealed(path: Path) -> dict[str, Any]:
    """The JSON object of a file that was written `sealed`. OSError or ValueError when it cannot be had whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    try:
        return unsealed(value)
    except ValueError:
        raise ValueError(f"{path.name} has changed since it was written") from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the metrics.jsonl of a run folder; OSError or ValueError when they are damaged.

    Figures that were not finite, which are null in the file, are left out.

    A finished run's DONE has the log's checksum. That of another may end with a line that a kill has torn.
    """
    path = folder / "metrics.jsonl"
    if (folder / "DONE").exists():
        check_crc32(path, (folder / "DONE").read_text(encoding="utf-8", errors="replace").strip() or None)
    lines = path.read_bytes().split(b"\n")
    out = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                found = unsealed(json.loads(line))
                out.append({key: value for key, value in found.items() if value is not None})
        except (ValueError, AttributeError, RecursionError):
            if number < len(lines):
                raise ValueError(f"line {number} of {path.name} is damaged") from None
    return out


def _seal_of(text: str) -> str:
    # through JSON and with sorted keys: what is read back is what counts, in whatever order
    return f"{zlib.crc32(json.dumps(json.loads(text), sort_keys=True).encode()):08x}"
