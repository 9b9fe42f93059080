"""Finds Java, and runs Java processes that can neither hang velm nor outlive it.

The metrics' authorities (Stanford's tokenizer, METEOR, SPICE) are Java programs. Each runs as a process of
its own whose three pipes are served by threads (an undrained pipe stops the other side for ever), whose
answers are waited for with a time limit, and which ends with the `Launcher` that started it. What fails
raises `JavaError`, one line; the caller turns it into the reason why a score is missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from velm_cli.errors import on_one_line

# The same bytes and the same lower case whatever the machine's locale; both names of the output's
# encoding are needed, Java 19 split them.
COMMON_FLAGS = (
    "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US",
    # Java's figures of itself, in a shared file of /tmp: where that has no locks it warns among the scores.
    "-XX:-UsePerfData",
)  # fmt: skip
VERSION_TIMEOUT = 60.0  # seconds for `java -version`: a cold network disk is slow, a hung one must not hold us
OLDEST_JAVA = 8
LONGEST_LINE, MOST_UNREAD = 16 << 20, 64 << 20  # bytes of output: a program that writes more unread is ended
LONGEST_COMPLAINT = 1 << 16  # bytes of a line of standard error


class JavaError(Exception):
    """A Java program could not be run or failed; `str(error)` is one line: what happened, what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(on_one_line(text))  # a program may have said anything


class JavaTimeout(JavaError):
    """A Java process did not answer in time."""


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime that answers: its program, its version as it says it, and that version's number."""

    program: str
    version: str
    major: int


def find_java() -> Java:
    """The Java of JAVA_HOME, else of PATH. Raises JavaError when there is none that works."""
    candidates = [Path(os.environ["JAVA_HOME"], "bin", "java")] if os.environ.get("JAVA_HOME") else []
    found = next((str(path) for path in candidates if os.access(path, os.X_OK)), None) or shutil.which("java")
    if found is None:
        raise JavaError("Java not found: install a Java runtime (8 or newer) or set JAVA_HOME")
    java = _probe(found)
    if java.major < OLDEST_JAVA:
        raise JavaError(f"Java {java.version} is too old ({found}): install 8 or newer or set JAVA_HOME")
    return java


def java_problem() -> str | None:
    """One line that says why Java cannot be used and what to do; None when it can."""
    try:
        find_java()
    except JavaError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=8)
def _probe(program: str) -> Java:
    """Asks `program` for its version. Raises JavaError (never cached) when it does not say one."""
    process = Process([program, "-version"])
    try:
        process.close_input()
        code = process.wait(VERSION_TIMEOUT)
        said = [*process.last_words(), process.read_line(1.0) or f"exit code {code}"]
    except JavaTimeout:
        raise JavaError(f"{program} -version gave no answer in {VERSION_TIMEOUT:g} s") from None
    finally:
        process.kill()
    version = parse_version("\n".join(said))
    if version is None:
        raise JavaError(f"{program} -version did not give a version: {said[0][:120]}")
    return Java(program, *version)


def parse_version(text: str) -> tuple[str, int] | None:
    """('17.0.15', 17) from what `java -version` prints ('1.8.0_392' counts as 8); None if it is not there."""
    match = re.search(r'version "((\d+)(?:\.(\d+))?[^"]*)"', text)
    if match is None:
        return None
    old_scheme = match[2] == "1" and match[3] is not None
    return match[1], int(match[3] if old_scheme else match[2])


def memory_limit() -> int:
    """Bytes this process may use: the machine's memory or the tightest cgroup around us, if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [8 << 30]
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        groups = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):  # an outer group may be tighter than ours
            if not folder.is_relative_to(root):
                break
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # not visible from here, or the word `max`
                continue
    return min(limits)


def cache_home() -> Path:
    """Where velm keeps what it can fetch or compute again: $VELM_CACHE, else the user's cache folder."""
    if os.environ.get("VELM_CACHE"):
        return Path(os.environ["VELM_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "velm"


class Launcher:
    """Starts Java processes and ends every one of them when the `with` block is left, however it is left."""

    def __init__(self, java: Java | None = None) -> None:
        """`java`: None for that of `find_java`, which is looked for when it is needed."""
        self._given = java
        self._running: list[Process] = []
        self._lock = threading.Lock()
        self._closed = False

    @functools.cached_property
    def java(self) -> Java:
        """Raises JavaError when there is none that works."""
        return self._given or find_java()

    @property
    def used(self) -> bool:
        """Whether anything was started, or Java asked for."""
        return "java" in self.__dict__

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def start(self, arguments: Sequence[str], *, on_log: Callable[[str], None] | None = None) -> Process:
        """Starts `java arguments...`; `on_log` gets every line it writes to standard error."""
        with self._lock:
            if self._closed:
                raise JavaError("scoring was stopped")
            process = Process([self.java.program, *COMMON_FLAGS, *arguments], on_log)
            self._running.append(process)
        return process


class Process:
    """A running program: lines in, lines out, its last words kept for the error message."""

    def __init__(self, command: list[str], on_log: Callable[[str], None] | None = None) -> None:
        try:
            # In its own session: Ctrl-C reaches velm alone, and velm can end wrapper scripts with their JVM.
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise JavaError(f"{command[0]} could not be started: {error.strerror or error}") from None
        self._to_write: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._arrived = self._taken = 0  # bytes of its output; each is counted up by one thread only
        self.flooded = False  # it was ended because it wrote too much
        self._last_words: deque[str] = deque(maxlen=40)
        self._on_log = on_log
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        for thread in (
            threading.Thread(target=self._write, daemon=True),
            threading.Thread(target=self._read, daemon=True),
        ):
            thread.start()
        self._drainer.start()

    def _write(self) -> None:
        assert self._popen.stdin is not None
        try:
            while (data := self._to_write.get()) is not None:
                self._popen.stdin.write(data)
                self._popen.stdin.flush()
            self._popen.stdin.close()
        except OSError:  # the other side is gone, which its reader finds out
            return

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            while line := stream.readline(LONGEST_LINE):
                self._arrived += len(line)
                self.flooded = len(line) == LONGEST_LINE or self._arrived - self._taken > MOST_UNREAD
                if self.flooded:
                    self.kill()
                    break
                self._lines.put(line)
        self._lines.put(None)

    def _drain(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stream:
            while line := stream.readline(LONGEST_COMPLAINT):
                text = line.decode("utf-8", "replace").strip()
                if text:
                    self._last_words.append(text)
                    if self._on_log is not None:
                        self._on_log(text)

    def send(self, text: str) -> None:
        """Queues `text` for standard input; never blocks."""
        self._to_write.put(text.encode("utf-8"))

    def close_input(self) -> None:
        self._to_write.put(None)

    def read_line(self, timeout: float) -> str | None:
        """The next line without its end, None after the last; JavaTimeout after `timeout` seconds."""
        try:
            line = self._lines.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            raise JavaTimeout(f"no answer in {timeout:.0f} s") from None
        if line is None:
            self._lines.put(None)  # the end stays the end for the next reader
            return None
        self._taken += len(line)
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def wait(self, timeout: float) -> int:
        """The exit code; JavaTimeout when the program still runs after `timeout` seconds."""
        try:
            return self._popen.wait(timeout=max(timeout, 0.0))
        except subprocess.TimeoutExpired:
            raise JavaTimeout(f"not finished in {timeout:.0f} s") from None

    def kill(self) -> None:
        """Ends the program with all it started; harmless when it is gone."""
        if self._popen.poll() is None:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended this very moment
                    os.killpg(self._popen.pid, signal.SIGKILL)
            else:
                self._popen.kill()
            self._popen.wait()
        self._to_write.put(None)  # ends the writing thread

    def last_words(self) -> list[str]:
        """The last lines of its standard error, of a program that has ended."""
        self._drainer.join(timeout=1.0)  # standard output may end a moment before they are read
        return list(self._last_words)

    def complaint(self) -> str:
        """The line of its last words that tells most, for an error message."""
        if self.flooded:
            return f"it wrote more than {(LONGEST_LINE if self._arrived < MOST_UNREAD else MOST_UNREAD) >> 20} MB"
        lines = self.last_words()
        telling = [line for line in lines if re.search(r"\w(Error|Exception)\b|^(Invalid|Unrecogni[sz]ed) ", line)]
        return (telling or lines or ["it said nothing"])[-1][:200]
