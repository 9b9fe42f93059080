"""What a machine may lack: a home, a temporary folder, a name for the user, room for open files. Imports no torch.

Containers run as users without an entry in /etc/passwd, clusters without a writable home; a library asks for one of
these in the middle of the work, and ends it. So they are looked at once, before, and what is missing is replaced for
this process and its children, with a line.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import stat
import sys
from pathlib import Path

from velm_cli.errors import UserError

MOST_OPEN = 1 << 16  # files that one process asks for


def settle_in() -> None:
    """Make the surroundings what the libraries take for granted. UserError where velm can do nothing about it."""
    open_files_limit()
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working folder is gone ({error.strerror}): cd into one that exists") from None
    notes = [*_temporary(), *_user(), *_home()]
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            print(note, file=sys.stderr)


def open_files_limit() -> int:
    """How many files this process may have open, which is raised as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return MOST_OPEN if soft == resource.RLIM_INFINITY else soft


def private_folder(name: str) -> Path:
    """A folder in the system's temporary one that only this user can write to; the same one each time if it can be.

    Anybody may have made it first: one of another user, or a link, is not used.
    """
    import tempfile  # takes a moment, which `velm --help` does without

    folder = Path(tempfile.gettempdir()) / f"velm-{name}-{os.geteuid()}"
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix=f"velm-{name}-"))


def _temporary() -> list[str]:
    import tempfile

    if tempfile.tempdir is not None:  # chosen before, by whoever called velm
        return []
    try:
        used = tempfile.gettempdir()
    except OSError:
        raise UserError(
            "no temporary folder can be written to (TMPDIR, /tmp, /var/tmp, the working folder): make room in one, or "
            "name another with TMPDIR=FOLDER"
        ) from None
    asked = os.environ.get("TMPDIR")
    if not asked or os.path.abspath(asked) == os.path.abspath(used):
        return []
    os.environ["TMPDIR"] = used  # for Java and compilers, which would fail
    return [f"note: TMPDIR={asked} cannot be written to; temporary files go to {used}"]


def _user() -> list[str]:
    """torch and others ask for the user's name, and fail where there is none."""
    if not _entry() and not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = str(os.geteuid())
    return []


def _entry() -> pwd.struct_passwd | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.getuid())
    return None


def _home() -> list[str]:
    """A home to keep caches in. One that is there and cannot be written to stays the home: caches in it are read."""
    entry = _entry()
    home = os.environ.get("HOME") or (entry.pw_dir if entry else "")
    if not home or not os.path.isdir(home):
        missing = f"HOME={home} does not exist" if home else "there is no HOME"
        os.environ["HOME"] = str(folder := private_folder("home"))
        return [f"note: {missing}; what velm and its libraries keep goes to {folder}"]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    if os.path.isdir(cache) or os.access(os.path.dirname(cache) or ".", os.W_OK):
        return []
    os.environ["XDG_CACHE_HOME"] = str(folder := private_folder("cache"))
    return [f"note: {cache} cannot be made; what velm and its libraries keep goes to {folder}"]
