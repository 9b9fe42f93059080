"""Machines that lack something: locks, a home, a name for the user, a temporary folder, room for open files."""

import errno
import fcntl
import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from velm import TINY, TINY_MODEL, call

from velm_cli import files, surroundings
from velm_cli.data import shards
from velm_cli.data.opening import open_store
from velm_cli.metrics import workspace
from velm_cli.surroundings import private_folder, settle_in
from velm_cli.unexpected import in_one_line

STEPS = ["run.max_steps=2", "run.validate_images=4", "metrics.names=[cider]"]
VELM = [sys.executable, "-m", "velm_cli"]


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A user without a home or a name, whose temporary folder is `tmp_path`."""

    def nobody(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "is put back afterwards")
        monkeypatch.delenv(name)
    return tmp_path


# ------------------------------------------------------------------------------------------ locks


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_one_note(tmp_path, monkeypatch, capsys, number):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(files, "_without_locks", [])
    assert call("preprocess", "dataset=shapes", *TINY) == 0
    if number == errno.ENOSYS:
        assert call("train", "dataset=shapes", *TINY, *TINY_MODEL, *STEPS, "name=a") == 0
        assert (
            call("eval", "checkpoint=runs/train/a", "dataset=shapes", *TINY[:3], "metrics.names=[cider]", "name=b") == 0
        )
        (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "caption": "a dog"}]))
        (tmp_path / "r.json").write_text(
            json.dumps({"annotations": [{"id": 1, "image_id": 1, "caption": "a dog runs"}]})
        )
        score = ["score", "predictions=p.json", "references=r.json", "metrics.names=[cider]", "out=scored"]
        assert call(*score) == 0 and call(*score) == 0
    with workspace.work_folder("test") as folder:
        assert folder.is_dir()
    said = capsys.readouterr()
    assert (said.out + said.err).count("has no locks") == 1
    assert "another velm process" not in said.out + said.err


def test_other_failures_of_a_lock_are_not_taken_for_a_file_system_without(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(OSError, match="Input/output"), files.locked(tmp_path / ".lock", "busy"):
        pass


def test_a_file_that_its_holder_misses_is_not_taken_for_the_lock(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), files.locked(tmp_path / ".lock", "busy"):
        (tmp_path / "absent").read_bytes()


# ------------------------------------------------------------------------------------------ homes, names, folders


def test_without_a_home_there_is_a_private_one_and_a_note(bare, capsys):
    settle_in()
    folder = Path(os.environ["HOME"])
    assert folder.parent == bare and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert capsys.readouterr().err == f"note: there is no HOME; what velm and its libraries keep goes to {folder}\n"
    assert os.environ["USER"] == str(os.geteuid())
    settle_in()
    assert capsys.readouterr().err == "" and os.environ["HOME"] == str(folder)


def test_a_home_that_is_not_there_is_replaced(bare, monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/nobody-of-this-name")
    settle_in()
    assert "HOME=/home/nobody-of-this-name does not exist" in capsys.readouterr().err
    assert Path(os.environ["HOME"]).parent == bare


@pytest.mark.parametrize("cache", [False, True])
def test_a_home_that_cannot_be_written_to_is_still_read_from(bare, monkeypatch, capsys, cache):
    home = bare / "home"
    home.mkdir()
    if cache:  # of models, fetched by whoever set this machine up
        (home / ".cache").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    settle_in()
    assert os.environ["HOME"] == str(home)
    assert ("XDG_CACHE_HOME" in os.environ) is not cache
    assert ("cannot be made" in capsys.readouterr().err) is not cache


@pytest.mark.parametrize("found", ["a link", "for everybody", "a file"])
def test_a_private_folder_is_never_one_of_others(bare, found):
    usual = bare / f"velm-home-{os.geteuid()}"
    if found == "a link":
        (bare / "theirs").mkdir()
        usual.symlink_to(bare / "theirs")
    elif found == "a file":
        usual.write_text("")
    else:
        usual.mkdir()
        usual.chmod(0o777)
    folder = private_folder("home")
    assert folder != usual and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_no_temporary_folder_is_told_and_another_one_used(tmp_path):
    env = {**os.environ, "TMPDIR": "/nonexistent"}
    done = subprocess.run([*VELM, "train", "--cfg", "job"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "note: TMPDIR=/nonexistent cannot be written to; temporary files go to /tmp\n"


@pytest.mark.parametrize("command", ["velm", "python -m velm_cli"])
def test_a_working_folder_that_is_gone_is_one_line(tmp_path, command):
    start = [str(Path(sys.executable).parent / "velm")] if command == "velm" else VELM
    (gone := tmp_path / "gone").mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    for args, code in ((["train", "dataset=shapes"], 2), (["--version"], 0)):
        gone.mkdir(exist_ok=True)
        done = subprocess.run(["bash", "-c", script, str(gone), *start, *args], capture_output=True, text=True)
        assert done.returncode == code
        assert [line for line in done.stderr.splitlines() if "getcwd" not in line] == [
            "velm: the working folder is gone (No such file or directory): cd into one that exists"
        ] * (code == 2)


def test_a_home_of_nobody_is_one_line():
    try:
        Path("~nobody-of-this-name/photos").expanduser()
    except RuntimeError as error:
        line, code = in_one_line(error)
    assert code == 2 and "write the folder out" in line


# ------------------------------------------------------------------------------------------ open files


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows():
    code = (
        "import resource; from velm_cli.surroundings import open_files_limit\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))\n"
        "assert open_files_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 1 << 16)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_few_open_files_are_enough_for_many_shards(tmp_path, monkeypatch):
    """Of a process that may have 40, with many of them taken by others."""
    monkeypatch.chdir(tmp_path)
    assert call("preprocess", "dataset=shapes", *TINY, "preprocess.shard_images=1", "dataset.store=many") == 0
    code = (
        "import os, resource; from pathlib import Path; from velm_cli.data.opening import open_store\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "taken = [os.open('/dev/null', 0) for _ in range(12)]\n"
        "store = open_store(Path('many'))\n"
        "assert len(store.manifest['shards']) == 40\n"
        "assert all(len(store.image_bytes(i)) for i in [*range(40), *range(40)])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shards_that_are_opened_when_there_is_no_room_take_the_place_of_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("preprocess", "dataset=shapes", *TINY, "preprocess.shard_images=8", "dataset.store=few") == 0
    store = open_store(Path("few"))
    full, opened = [True], shards._Tar.__init__

    def opens(self, path):
        if store._shards._shard.cache_info().currsize and full.pop():
            full.append(True)
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        opened(self, path)

    monkeypatch.setattr(shards._Tar, "__init__", opens)
    assert len({store.image_bytes(i) for i in range(40)}) > 30
    monkeypatch.setattr(shards._Tar, "__init__", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many")))
    with pytest.raises(OSError, match="Too many") as raised:
        open_store(Path("few")).image_bytes(0)
    line, code = in_one_line(raised.value)
    assert code == 1 and "ulimit -n" in line and "build the store again" not in line


def test_the_room_for_shards_is_a_part_of_the_limit(monkeypatch):
    for limit, room in ((16, 4), (512, 128), (1024, 256), (1 << 16, 1 << 14)):
        monkeypatch.setattr(shards, "open_files_limit", lambda limit=limit: limit)
        assert shards._room_for_files() == room
    assert surroundings.MOST_OPEN == 1 << 16
