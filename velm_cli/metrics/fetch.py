"""Gets the two jars that SPICE lacks (`velm doctor fix=spice`): CoreNLP 3.6.0 and its models, 385 MB.

They come from a folder that is given, else from Maven, else from Stanford's site; go into velm's cache,
never into site-packages; and appear there under their names only when they are whole and checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from velm_cli.errors import UserError
from velm_cli.files import sha256 as sha256_of
from velm_cli.metrics.java import cache_home
from velm_cli.metrics.spice import CORENLP_JARS, CORENLP_VERSION
from velm_cli.progress import progress_bar

# SHA-256 of the jars as Maven has them (their official SHA-1: 078d1303..., e23de94a...).
SHA256 = {
    CORENLP_JARS[0]: "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742",
    CORENLP_JARS[1]: "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd",
}
# One file of each jar that SPICE cannot do without: tells a CoreNLP of another packaging from another file.
ESSENTIAL = {
    CORENLP_JARS[0]: "edu/stanford/nlp/pipeline/StanfordCoreNLP.class",
    CORENLP_JARS[1]: "edu/stanford/nlp/models/lexparser/englishPCFG.ser.gz",
}
STANFORD_NAME = "stanford-corenlp-full-2015-12-09"  # the release of 3.6.0
STANFORD_URL = f"https://nlp.stanford.edu/software/{STANFORD_NAME}.zip"
MAVEN_TIMEOUT = 3600.0  # seconds for one jar
NETWORK_TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20


def fetch_spice(folder: Path | None, log: Callable[[str], object] = print) -> None:
    """Puts both jars into the cache folder; does nothing for those that are there.

    `folder` has the jars (or Stanford's zip) already: then nothing else is tried. Raises UserError with
    what was tried when a jar cannot be had.
    """
    target = cache_home() / f"corenlp-{CORENLP_VERSION}"
    missing = [jar for jar in CORENLP_JARS if not (target / jar).is_file()]
    if not missing:
        log(f"CoreNLP {CORENLP_VERSION} is already in {target}")
        return
    if folder is not None and not folder.is_dir():
        raise UserError(f"folder={folder}: no such folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        # In the target's own folder: the last step must be a rename on one disk.
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=target) as partial:
            if folder is not None:
                _from_folder(folder, missing, Path(partial), target, log)
            else:
                _from_network(missing, Path(partial), target, log)
    except OSError as error:
        raise UserError(f"CoreNLP could not be put into {target}: {error}; set VELM_CACHE to another folder") from None
    log(f"SPICE is ready: CoreNLP {CORENLP_VERSION} in {target}")


def _from_folder(folder: Path, missing: list[str], partial: Path, target: Path, log: Callable[[str], object]) -> None:
    archive = folder / f"{STANFORD_NAME}.zip"
    for jar in missing:
        if (folder / jar).is_file():
            log(f"copying {folder / jar}")
            _copy(folder / jar, partial / jar)
        elif archive.is_file():
            _unzip(archive, jar, partial / jar, log)
        else:
            raise UserError(f"folder={folder} has neither {jar} nor {archive.name}")
        _install(partial / jar, target, log)


def _from_network(missing: list[str], partial: Path, target: Path, log: Callable[[str], object]) -> None:
    tried = []
    for jar in missing:
        problem = _from_maven(jar, partial, log)
        if problem is None:
            _install(partial / jar, target, log)
        else:
            tried.append(f"Maven: {problem}")
    left = [jar for jar in missing if not (target / jar).is_file()]
    if not left:
        return
    archive = partial / f"{STANFORD_NAME}.zip"
    try:
        log(f"Maven did not help ({tried[-1]}); downloading {STANFORD_URL} (536 MB)")
        with (
            urllib.request.urlopen(STANFORD_URL, timeout=NETWORK_TIMEOUT) as response,
            archive.open("wb") as file,
        ):
            _stream(response, file, int(response.headers.get("Content-Length") or 0))
    except OSError as error:  # urllib's errors are OSErrors
        tried.append(f"Stanford: {error}")
        raise UserError(
            f"could not get {', '.join(left)}: {'; '.join(tried)}; download {STANFORD_URL} on a machine with "
            f"network and give its folder: velm doctor fix=spice folder=FOLDER"
        ) from None
    for jar in left:
        _unzip(archive, jar, partial / jar, log)
        _install(partial / jar, target, log)


def _from_maven(jar: str, partial: Path, log: Callable[[str], object]) -> str | None:
    """Copies `jar` from Maven's local repository, else has the Maven client get it; what failed, or None."""
    local = Path.home() / ".m2/repository/edu/stanford/nlp/stanford-corenlp" / CORENLP_VERSION / jar
    if local.is_file():
        log(f"copying {local}")
        _copy(local, partial / jar)
        if sha256_of(partial / jar) == SHA256[jar]:
            return None
        (partial / jar).unlink()  # an interrupted download of Maven's; its client knows how to mend it
    maven = shutil.which("mvn")
    if maven is None:
        return "no Maven client (mvn) on this machine"
    log(f"getting {jar} through the Maven client")
    classifier = ":jar:models" if jar.endswith("-models.jar") else ""
    artifact = f"edu.stanford.nlp:stanford-corenlp:{CORENLP_VERSION}{classifier}"
    for goal in (
        ["dependency:get", f"-Dartifact={artifact}", "-Dtransitive=false"],
        ["dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={partial}"],
    ):
        try:
            result = subprocess.run(
                [maven, "-q", "-B", *goal],
                cwd=partial,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=MAVEN_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"mvn {goal[0]}: {error}"
        if result.returncode != 0:
            said = (result.stdout + result.stderr).decode("utf-8", "replace").strip().splitlines()
            return f"mvn {goal[0]} failed: {(said or ['it said nothing'])[0][:200]}"
    return None if (partial / jar).is_file() else f"mvn left no {jar}"


def _install(path: Path, target: Path, log: Callable[[str], object]) -> None:
    """Checks a jar and gives it its name in `target`. Raises UserError when it is damaged or another file."""
    if sha256_of(path) == SHA256[path.name]:
        log(f"{path.name}: SHA-256 as published")
    else:
        # Stanford's zip may pack the same release into other bytes: whole and with the parser will do.
        try:
            with zipfile.ZipFile(path) as jar:
                damaged = jar.testzip()
                essential = ESSENTIAL[path.name] in jar.namelist()
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{path.name} is damaged ({error}): get it again") from None
        if damaged is not None or not essential:
            wrong = f"{damaged} is damaged" if damaged else f"it has no {ESSENTIAL[path.name]}"
            raise UserError(f"{path.name} cannot be used: {wrong}; get it again")
        log(f"{path.name}: every entry is intact, but it is not Maven's file (SHA-256 {sha256_of(path)})")
    os.replace(path, target / path.name)


def _unzip(archive: Path, jar: str, to: Path, log: Callable[[str], object]) -> None:
    log(f"unpacking {jar}")
    try:
        with (
            zipfile.ZipFile(archive) as pack,
            pack.open(f"{STANFORD_NAME}/{jar}") as source,
            to.open("wb") as file,
        ):
            _stream(source, file, pack.getinfo(f"{STANFORD_NAME}/{jar}").file_size)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(f"{archive} is damaged or not CoreNLP {CORENLP_VERSION} ({error}): get it again") from None


def _copy(source: Path, to: Path) -> None:
    with source.open("rb") as opened, to.open("wb") as file:
        _stream(opened, file, source.stat().st_size)


def _stream(source: IO[bytes], file: IO[bytes], size: int) -> None:
    """Copies with a progress bar and flushes to the disk. Raises OSError when `size` is known and not met."""
    with progress_bar(what="download", total=size or None, unit="B", unit_scale=True, leave=False) as bar:
        copied = 0
        while chunk := source.read(CHUNK):
            copied += file.write(chunk)
            bar.update(len(chunk))
    if size and copied != size:
        raise OSError(f"the transfer ended after {copied} of {size} bytes")
    file.flush()
    os.fsync(file.fileno())
