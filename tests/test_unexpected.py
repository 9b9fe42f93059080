"""What nothing else has explained is one line, with its traceback in a file of the user's own."""

import errno
import json
import os
import re
import stat
from pathlib import Path

import pytest
from velm import TINY, TINY_MODEL, call, velm

from velm_cli import unexpected
from velm_cli.engine.folder import best_figure
from velm_cli.files import read_log
from velm_cli.observe import Observer

USER = {"VELM_TRACEBACK": "0", "HYDRA_FULL_ERROR": ""}


@pytest.fixture
def as_user(tmp_path, monkeypatch):
    """Without the switch with which tests see tracebacks; temporary files go into a folder of the test's."""
    for name, value in USER.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def raising(error):
    def _raise(*_):
        raise error

    return _raise


class OutOfMemoryError(RuntimeError):  # torch's has this name
    pass


class PanicException(BaseException):  # as that of Rust's tokenizers
    pass


CASES = {
    "a bug": (KeyError("shards"), 1, "unexpected KeyError: 'shards'"),
    "several lines": (ValueError("first\nsecond"), 1, "unexpected ValueError: first "),
    "no message": (AssertionError(), 1, "unexpected AssertionError "),
    "a panic": (PanicException("index out of bounds"), 1, "unexpected PanicException: index out of bounds"),
    "a file": (FileNotFoundError(errno.ENOENT, "No such file or directory", "x/y"), 2, "x/y: No such file"),
    "a loop": (OSError(errno.ELOOP, "Too many levels of symbolic links", "loop"), 2, "loop: Too many levels"),
    "no file": (OSError(errno.EPIPE, "Broken pipe"), 1, "unexpected BrokenPipeError: [Errno 32] Broken pipe"),
    "memory": (MemoryError(), 1, "the memory is not enough: try a smaller"),
    "a GPU's memory": (OutOfMemoryError("CUDA out of memory. Tried"), 1, "the memory is not enough (CUDA out of"),
    "depth": (RecursionError("maximum recursion depth"), 2, "something in a file or in the command is nested"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_a_private_file_with_the_traceback(name, as_user, monkeypatch, capsys):
    error, code, said = CASES[name]
    monkeypatch.setattr("velm_cli.cli._dispatch", raising(error))
    assert call("train") == code
    line = capsys.readouterr().err
    assert line.startswith(f"velm: {said}") and line.count("\n") == 1
    (kept,) = (as_user / "temporary").iterdir()
    assert f"(traceback in {kept})" in line
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "Traceback (most recent call last)" in (text := kept.read_text()) and "_raise" in text
    assert list(Path.cwd().iterdir()) == []


def test_full_disks_need_no_traceback(as_user, monkeypatch, capsys):
    error = OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")
    monkeypatch.setattr("velm_cli.cli._dispatch", raising(error))
    assert call("train") == 1
    assert "cannot write runs/x/metrics.jsonl: No space left on device; make room" in capsys.readouterr().err
    assert list((as_user / "temporary").iterdir()) == []


def test_files_that_torch_cannot_open_need_no_traceback(as_user, monkeypatch, capsys):
    error = RuntimeError("unable to open file <a.safetensors> in read-only mode: Too many open files (24)")
    monkeypatch.setattr("velm_cli.cli._dispatch", raising(error))
    assert call("train") == 1
    assert "unable to open file <a.safetensors>: Too many open files; the limit is that of `ulimit -n`" in (
        capsys.readouterr().err
    )


def test_nothing_is_kept_in_the_working_folder(as_user, monkeypatch, capsys):
    """Python takes it for the temporary one where no other can be written."""
    monkeypatch.setattr("tempfile.tempdir", os.getcwd())
    monkeypatch.setattr("velm_cli.cli._dispatch", raising(KeyError("x")))
    assert call("train") == 1
    assert "VELM_TRACEBACK=1 shows the traceback" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("switch", unexpected.SWITCHES)
def test_developers_see_the_exception(switch, as_user, monkeypatch):
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr("velm_cli.cli._dispatch", raising(KeyError("x")))
    from velm_cli.cli import main

    with pytest.raises(KeyError):
        main(["train"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unexpected")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
    return [f"dataset.store={folder}/stores/shapes"]


@pytest.mark.parametrize("place", ["FILE", "FILE/below", "/proc", "loop", "x" * 300])
def test_run_folders_that_cannot_be_are_one_line(place, store, as_user, capsys):
    Path("FILE").write_text("mine")
    Path("loop").symlink_to("loop")
    capsys.readouterr()
    assert call("train", *TINY, *TINY_MODEL, *store, f"run.dir={place}", "name=x") in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("velm: ") and said.count("\n") == 1 and place in said
    assert Path("FILE").read_text() == "mine"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK=abc: several processes need a whole number there"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0: several processes need a whole number there from 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: several"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5 of WORLD_SIZE=2 processes: the first is 0, the last 1"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID is not set: several"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "99999"}, "MASTER_PORT=99999: several"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "abc"}, "MASTER_PORT=abc: several"),
    ],
)
def test_numbers_of_processes_that_are_none_are_one_line(variables, said, store, as_user, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert call("train", *TINY, *TINY_MODEL, *store, "name=x") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"velm: {said}") and line.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(store, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        here = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = velm("train", *TINY, *TINY_MODEL, *store, "name=x", cwd=tmp_path, env={**USER, **here})
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("velm: ")]
    assert re.search(rf"cannot meet at 127.0.0.1:{port} \(MASTER_ADDR, MASTER_PORT\): .*in use", line)
    assert "Traceback" not in done.stderr


def observer(folder) -> Observer:
    return Observer(folder, max_steps=9, step=0, utilisation=lambda _: 0.0)


def test_figures_that_are_not_finite_are_null_in_the_log(tmp_path):
    log = observer(tmp_path)
    for step, loss in enumerate([float("nan"), float("inf"), 2.0, float("-inf")]):
        log.record("validation", step, {"loss": loss})
    log.close()
    strict = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["loss"] for line in strict] == [None, None, 2.0, None]
    assert [line.get("loss") for line in read_log(tmp_path)] == [None, None, 2.0, None]
    assert best_figure(tmp_path) == -2.0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_in_the_log_names_the_log(tmp_path):
    log = observer(tmp_path)
    log.file.close()
    log.file = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (log.close closes it)
    for write in (lambda: log.record("train", 1, {}), log.close):
        with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
            write()
