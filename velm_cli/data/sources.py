"""Where shards come from: paths, globs, brace patterns, fsspec URLs and, if allowed, the output of a command."""

from __future__ import annotations

import glob
import re
import shlex
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from velm_cli.errors import UserError
from velm_cli.schema import WebDatasetConfig

BUFFER = 1 << 20  # bytes read ahead of a tar's headers
REMOTE_BLOCK = 8 << 20  # bytes asked of a remote store at once
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
LISTS = (".txt", ".list")  # files that name shards, one a line
EXTRA = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp",
         "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko"}  # fmt: skip

T = TypeVar("T")


class SourceError(Exception):
    """A shard cannot be opened, or not be read to its end."""


def check_urls(key: str, urls: Any) -> str | None:
    """What is wrong with the value of the option `key`, in one line; None if it is text or a list of texts."""
    if isinstance(urls, str) or (isinstance(urls, list) and urls and all(isinstance(url, str) for url in urls)):
        return None
    return f"{key}={urls}: give a path, a URL or a list of them, such as '{key}=shards/{{00000..00099}}.tar'"


def list_shards(dataset: WebDatasetConfig, key: str = "urls") -> list[str]:
    """The shards that `dataset.urls` (or another option, `key`) names, in order, each once.

    `{00000..00099}` and `{a,b}` are written out; `*`, `?` and `[...]` match what exists, sorted; a local folder
    stands for its .tar files, a local .txt file for its lines. Raises UserError where nothing is found.
    """
    urls = getattr(dataset, key)
    if problem := check_urls(f"dataset.{key}", urls):
        raise UserError(problem)
    shards = [shard for url in ([urls] if isinstance(urls, str) else urls) for shard in _found(url, key)]
    for shard in shards:
        check_allowed(shard, dataset.pipes)
    if len(set(shards)) < len(shards):
        twice = Counter(shards).most_common(1)[0][0]
        raise UserError(f"dataset.{key} names the shard {twice} more than once")
    return shards


def is_local(url: str) -> bool:
    """Whether a shard is a file of this machine: what cannot be read of it now will not be readable in a second."""
    return _local(url) is not None


def check_allowed(url: str, pipes: bool) -> None:
    """UserError for a source that could run code or commands the user did not ask for."""
    if url.startswith("pipe:"):
        if not pipes:
            raise UserError(f"{url} would run a command: say dataset.pipes=true if you trust it")
    elif "::" in url or _protocol(url) in ("reference", "dask", "generic"):
        raise UserError(f"{url}: chained and referring URLs are not read; name the shards themselves")


def _found(url: str, key: str) -> list[str]:
    if url.startswith("pipe:"):
        return list(_braces(url))
    local = _local(url)
    if local is not None and local.is_dir():
        url = f"{url.rstrip('/')}/*.tar"
    elif local is not None and local.suffix in LISTS:
        try:
            lines = local.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"dataset.{key}: {url} cannot be read as a list of shards ({error})") from None
        lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not lines:
            raise UserError(f"dataset.{key}: the list {url} names no shard")
        return [shard for line in lines for shard in _found(line, key)]
    shards: list[str] = []
    for pattern in _braces(url):
        if not re.search(r"[*?\[]", pattern) or _protocol(pattern) in ("http", "https"):
            shards.append(pattern)
            continue
        if _local(pattern) is not None:
            matches = sorted(glob.glob(str(_local(pattern))))
        else:
            check_allowed(pattern, False)
            files = _fsspec(pattern)
            try:
                matches = sorted(files.unstrip_protocol(match) for match in files.glob(pattern))
            except Exception as error:  # each protocol has exceptions of its own
                raise UserError(f"dataset.{key}: {pattern} cannot be listed: {_line(error)}") from None
        if not matches:
            raise UserError(f"dataset.{key}: no shard matches {pattern}")
        shards += matches
    return shards


def _braces(text: str) -> Iterator[str]:
    """`text` once for each combination of its braces: {00..12} counts with leading zeros, {a,b} lists."""
    for match in BRACES.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        if bounds := RANGE.fullmatch(match[1]):
            first, last = int(bounds[1]), int(bounds[2])
            width = max(len(bounds[1]), len(bounds[2])) if "0" in (bounds[1][0], bounds[2][0]) else 0
            if last < first:
                raise UserError(f"{text}: {match[0]} counts backwards")
            choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
        elif "," in match[1]:
            choices = match[1].split(",")
        else:
            continue
        for choice in choices:
            for rest in _braces(after):
                yield before + choice + rest
        return
    yield text


def _protocol(url: str) -> str | None:
    match = re.match(r"([a-z][a-z0-9+.-]*)://", url)
    return match[1] if match else None


def _local(url: str) -> Path | None:
    """The path of a local file or pattern; None for what another protocol or a command brings."""
    if url.startswith("pipe:") or _protocol(url) not in (None, "file"):
        return None
    return Path(url.removeprefix("file://")).expanduser()


def _fsspec(url: str) -> Any:
    """The file system of `url`; UserError that says which package it needs."""
    protocol = _protocol(url) or "file"
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError:
        package = EXTRA.get(protocol)
        raise UserError(
            f"{url}: {protocol}:// needs a package that is not installed"
            f"{f': pip install fsspec {package}' if package else '; see the documentation of fsspec'}"
        ) from None
    except ValueError:
        raise UserError(f"{url}: nothing is known by the protocol {protocol}://") from None


# ---------------------------------------------------------------------------------------- reading


@contextmanager
def open_source(url: str, *, pipes: bool = False) -> Iterator[BinaryIO]:
    """The bytes of a shard from its beginning. Raises SourceError if it cannot be opened, or if a command fails.

    `pipe:COMMAND ARGUMENTS` reads what the command prints. No shell takes part: quotes group words, nothing else
    is special.
    """
    check_allowed(url, pipes)
    if url.startswith("pipe:"):
        with _open_pipe(url) as output:
            yield output
        return
    path = _local(url)
    try:
        if path is not None:
            file: BinaryIO = open(path, "rb", buffering=BUFFER)  # noqa: SIM115 (closed below)
        else:
            file = cast(BinaryIO, _fsspec(url).open(url, "rb", block_size=REMOTE_BLOCK))
    except UserError:
        raise
    except Exception as error:  # each protocol has exceptions of its own
        raise SourceError(f"cannot be opened: {_line(error)}") from error
    with file:
        yield file


@contextmanager
def _open_pipe(url: str) -> Iterator[BinaryIO]:
    try:
        command = shlex.split(url.removeprefix("pipe:"))
        if not command:
            raise ValueError("it names no command")
    except ValueError as error:
        raise UserError(f"{url} cannot be read as a command: {error}") from None
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, bufsize=BUFFER
            )
        except OSError as error:
            raise SourceError(f"cannot be started: {error.strerror}") from error
        assert process.stdout is not None
        try:
            yield cast(BinaryIO, process.stdout)
        except SourceError as error:
            process.stdout.close()
            try:
                code = process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                raise error from None
            complaints.seek(0)
            said = complaints.read(4096).decode(errors="replace").split()
            raise SourceError(
                f"{error}; the command ended with code {code}: {' '.join(said) or 'no message'}"
            ) from None
        finally:
            process.stdout.close()
            process.kill()  # if it has more to say, nobody needs it
            process.wait()


def with_retries(work: Callable[[], T], retries: int) -> T:
    """`work()`, again after a second, then two, four ... when the source fails; SourceError after the last try."""
    for attempt in range(retries):
        try:
            return work()
        except SourceError:
            time.sleep(min(2**attempt, 60))
    return work()


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
