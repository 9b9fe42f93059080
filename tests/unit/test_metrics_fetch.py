"""The jars of SPICE arrive whole and checked, or not at all, with one line that says what was tried."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics import fetch
from velm_cli.metrics.fetch import fetch_spice
from velm_cli.metrics.spice import CORENLP_JARS


@pytest.fixture
def target(tmp_path, monkeypatch) -> Path:
    """velm's cache in a folder of the test, with no Maven, no home and no network but Stanford's `zip`."""
    monkeypatch.setenv("VELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(fetch, "STANFORD_URL", (tmp_path / "stanford.zip").as_uri())
    return tmp_path / "cache" / "corenlp-3.6.0"


def make_jar(path: Path, content: bytes = b"x" * 1000) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr(fetch.ESSENTIAL[path.name], content)
    return path.read_bytes()


def make_stanford_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for jar in CORENLP_JARS:
            archive.writestr(f"{fetch.STANFORD_NAME}/{jar}", make_jar(folder / jar))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_from_a_folder_checked_by_sha(target, tmp_path, monkeypatch):
    known = {jar: hashlib.sha256(make_jar(tmp_path / "given" / jar)).hexdigest() for jar in CORENLP_JARS}
    monkeypatch.setattr(fetch, "SHA256", known)
    said: list[str] = []
    fetch_spice(tmp_path / "given", said.append)
    assert names(target) == sorted(CORENLP_JARS)
    assert sum("SHA-256 as published" in line for line in said) == 2
    again: list[str] = []
    fetch_spice(None, again.append)
    assert again == [f"CoreNLP 3.6.0 is already in {target}"]


def test_another_packaging_passes_only_whole_and_is_named(target, tmp_path):
    for jar in CORENLP_JARS:
        make_jar(tmp_path / "given" / jar)
    said: list[str] = []
    fetch_spice(tmp_path / "given", said.append)
    assert sum("not Maven's file" in line for line in said) == 2


@pytest.mark.parametrize("damage", ["byte", "cut", "other"])
def test_a_damaged_jar_is_refused_and_leaves_nothing(target, tmp_path, damage):
    first, models = (tmp_path / "given" / jar for jar in CORENLP_JARS)
    make_jar(first)
    data = bytearray(make_jar(models))
    if damage == "byte":
        data[200] ^= 1
    models.write_bytes(data[:-100] if damage == "cut" else data)
    if damage == "other":
        with zipfile.ZipFile(models, "w") as jar:
            jar.writestr("readme", "another jar")
    with pytest.raises(UserError, match=f"{models.name} (is damaged|cannot be used)"):
        fetch_spice(tmp_path / "given", lambda line: None)
    assert names(target) == [first.name]  # what is there is whole: a second try goes on from here


def test_a_folder_without_the_jars_is_an_error(target, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        fetch_spice(tmp_path / "nowhere", lambda line: None)
    with pytest.raises(UserError, match="has neither"):
        fetch_spice(tmp_path, lambda line: None)
    assert names(target) == []


def test_stanfords_zip_from_a_folder_or_its_site(target, tmp_path):
    make_stanford_zip(tmp_path / f"{fetch.STANFORD_NAME}.zip", tmp_path / "jars")
    fetch_spice(tmp_path, lambda line: None)
    assert names(target) == sorted(CORENLP_JARS)
    (target / CORENLP_JARS[1]).unlink()
    (tmp_path / f"{fetch.STANFORD_NAME}.zip").rename(tmp_path / "stanford.zip")
    fetch_spice(None, lambda line: None)
    assert names(target) == sorted(CORENLP_JARS)


def test_mavens_local_files_and_client(target, tmp_path, monkeypatch):
    local = tmp_path / "home" / ".m2/repository/edu/stanford/nlp/stanford-corenlp/3.6.0"
    data = {jar: make_jar(local / jar) for jar in CORENLP_JARS}
    monkeypatch.setattr(fetch, "SHA256", {jar: hashlib.sha256(data[jar]).hexdigest() for jar in CORENLP_JARS})
    (local / CORENLP_JARS[1]).write_bytes(b"half")  # interrupted: the client has to mend it
    (tmp_path / "models").write_bytes(data[CORENLP_JARS[1]])
    client = tmp_path / "bin" / "mvn"
    client.parent.mkdir()
    client.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/calls\n'
        f'for a in "$@"; do case $a in -DoutputDirectory=*) '
        f"/bin/cp {tmp_path}/models ${{a#*=}}/{CORENLP_JARS[1]};; esac; done\n"
    )
    client.chmod(0o755)
    fetch_spice(None, lambda line: None)
    assert names(target) == sorted(CORENLP_JARS)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert all("edu.stanford.nlp:stanford-corenlp:3.6.0:jar:models" in call for call in calls)
    assert "-Dtransitive=false" in calls[0]


def test_nothing_works_says_all_that_was_tried(target, tmp_path):
    with pytest.raises(UserError) as error:
        fetch_spice(None, lambda line: None)
    assert "no Maven client" in str(error.value)
    assert "Stanford:" in str(error.value)
    assert "velm doctor fix=spice folder=FOLDER" in str(error.value)
    assert "\n" not in str(error.value)
    assert names(target) == []


def test_a_cache_that_cannot_be_written_is_a_clear_error(target, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="set VELM_CACHE to another folder"):
        fetch_spice(tmp_path, lambda line: None)
    assert os.path.isfile(tmp_path / "cache")
