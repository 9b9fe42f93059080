"""Work folders are gone after their block, and those of a killed velm with the next one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest

from velm_cli.metrics.workspace import work_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold(connection) -> None:
    with work_folder("spice") as folder:
        (folder / "parses").mkdir()
        connection.send(str(folder))
        connection.recv()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_stays(temporary):
    context = multiprocessing.get_context("fork")
    workers, folders = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        workers.append((context.Process(target=hold, args=(theirs,), daemon=True), ours))
        workers[-1][0].start()
        folders.append(Path(ours.recv()))
    assert workers[0][0].pid
    os.kill(workers[0][0].pid, signal.SIGKILL)
    workers[0][0].join()
    assert all(folder.is_dir() for folder in folders)
    with work_folder("meteor"):
        assert all(folder.is_dir() for folder in folders)  # of another program
    with work_folder("spice") as mine:
        assert mine.is_dir()
        assert [folder.is_dir() for folder in folders] == [False, True]
    assert not mine.exists()
    workers[1][1].send(None)
    workers[1][0].join()
    assert not list(temporary.iterdir())


def test_folders_that_only_have_such_a_name_stay(temporary):
    thesis = temporary / "thesis"
    thesis.mkdir()
    (thesis / ".velm-lock").touch()
    (temporary / "velm-spice-link").symlink_to(thesis)
    (temporary / "velm-spice-notes").mkdir()
    (temporary / "velm-spice-file").write_text("mine")
    before = sorted(temporary.rglob("*"))
    with work_folder("spice"):
        pass
    assert sorted(temporary.rglob("*")) == before
