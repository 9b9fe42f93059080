"""One line for a failure that nothing else has explained; its traceback goes into a file of the user's own.

Users see no traceback. Developers do: VELM_TRACEBACK=1 (or Hydra's HYDRA_FULL_ERROR=1) lets it through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from velm_cli import __version__
from velm_cli.files import refused_by_the_system, too_many_open

SWITCHES = ("VELM_TRACEBACK", "HYDRA_FULL_ERROR")
LONGEST = 300  # characters of a message that are shown


def wants_traceback() -> bool:
    """Whether the environment asks for tracebacks instead of lines."""
    return any(os.environ.get(name, "") not in ("", "0") for name in SWITCHES)


def is_meant_to_pass(error: BaseException) -> bool:
    """Of an exit, of Ctrl-C and the like; a panic of a Rust library is no Exception, and does not pass either."""
    return not isinstance(error, Exception) and type(error).__name__ != "PanicException"


def in_one_line(error: BaseException) -> tuple[str, int]:
    """What to tell the user, and the exit code: 2 where the command or its files are to blame, 1 where the machine or
    velm itself is."""
    said = (str(error).strip().splitlines() or [""])[0][:LONGEST]
    code = 1
    if isinstance(error, OSError) and (line := refused_by_the_system(error)):
        return line, 1
    if isinstance(error, OSError) and error.filename is not None:
        line, code = f"{error.filename}: {error.strerror or said}", 2
    elif os.strerror(errno.EMFILE) in said:  # torch's own words for it
        return f"{said.partition(' in read-only mode')[0]}: {too_many_open()}", 1
    elif isinstance(error, RuntimeError) and said == "Could not determine home directory.":  # of Path.expanduser
        return "a path begins with ~ and a name that is no user's here: write the folder out", 2
    elif isinstance(error, RecursionError):
        line, code = "something in a file or in the command is nested too deeply, or refers to itself", 2
    elif (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in said for words in ("t allocate memory", "failed to map segment"))
    ):
        line = f"the memory is not enough{f' ({said})' if said else ''}: try a smaller run.batch_size, model or file"
    else:
        line = f"unexpected {type(error).__name__}{f': {said}' if said else ''}"
    kept = _keep_traceback(error)
    return f"{line} ({f'traceback in {kept}' if kept else 'VELM_TRACEBACK=1 shows the traceback'})", code


def _keep_traceback(error: BaseException) -> str | None:
    """The new file with the traceback, which only the user can read; None where there is no room for it.

    Never in the working folder, which may be a stranger's.
    """
    import platform  # these take a moment, and hardly any command fails like this
    import shlex
    import tempfile
    import traceback

    head = f"velm {__version__}, Python {platform.python_version()}\n{shlex.join(sys.argv)}\n\n"
    text = head + "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        folder = tempfile.gettempdir()
        if not os.path.samefile(folder, os.getcwd()):
            number, path = tempfile.mkstemp(prefix="velm-", suffix="-traceback.txt", dir=folder)
            with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
    return None
