"""Output is not the work: readers that go away, full disks and lost terminals end no training, and show no traceback."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import threading

import pytest
from velm import TINY, TINY_MODEL, call

from velm_cli import console
from velm_cli.observe import _loss
from velm_cli.stages import train as train_stage

VELM = [sys.executable, "-m", "velm_cli"]
STEPS = ["run.max_steps=3", "run.validate_images=4", "metrics.names=[cider]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where := tmp_path_factory.mktemp("console"))
        assert call("preprocess", "dataset=shapes", *TINY) == 0
    return where


def train(name, *more):
    return ["train", "dataset=shapes", *TINY, *TINY_MODEL, *STEPS, f"name={name}", *more]


def run_without_reader(args, cwd, **options):
    """`velm ARGS | true`, where `true` has ended before velm begins."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run([*VELM, *args], cwd=cwd, stdout=write, stderr=subprocess.PIPE, text=True, **options)
    finally:
        os.close(write)


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--cfg", "job"], ["-sc", "install=bash"]])
def test_a_closed_pipe_ends_what_only_prints_as_it_ends_other_tools(tmp_path, args):
    done = run_without_reader(args, tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_full_disk_under_what_only_prints_is_told(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*VELM, "--help"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "velm: cannot write to standard output: No space left on device\n")


def test_a_closed_pipe_never_ends_a_training(place):
    done = run_without_reader(train("pipe"), place)
    run = place / "runs/train/pipe"
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "DONE").exists() and not (run / "FAILED").exists()
    log = (run / "log.txt").read_text().splitlines()
    assert "name=pipe" in log[0]
    assert sum("nothing more could be written to the console (Broken pipe)" in line for line in log) == 1
    assert any("step 3/3  loss" in line for line in log) and log[-1].endswith("done: runs/train/pipe")


def test_closed_descriptors_are_not_given_to_files_that_velm_writes(place):
    """`velm train <&- >&- 2>&-`: what libraries print would land in whatever is opened first."""
    done = subprocess.run([*VELM, *train("closed")], cwd=place, preexec_fn=lambda: [*map(os.close, (0, 1, 2))])
    run = place / "runs/train/closed"
    assert done.returncode == 0 and (run / "DONE").exists()
    assert "nothing more could be written" not in (run / "log.txt").read_text()


def with_a_terminal_of_its_own() -> None:
    fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup


def test_a_terminal_that_goes_away_ends_a_training_well(place):
    """SIGHUP, and every write from then on fails with EIO."""
    own, terminal = pty.openpty()
    command = [*VELM, *train("hangup", "run.max_steps=1000000")]
    process = subprocess.Popen(
        command, cwd=place, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=with_a_terminal_of_its_own,
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    while b"step       2/" not in seen:
        seen += os.read(own, 4096)
    os.close(own)
    assert process.wait(60) == 0
    run = place / "runs/train/hangup"
    assert (run / "PREEMPTED").read_text().startswith("SIGHUP at step")
    assert "stopped by SIGHUP" in (run / "log.txt").read_text()


def test_a_pipe_that_does_not_block_is_waited_for():
    """As some programs leave the one that they read: writing into it when it is full is an error."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    stream, text = console._wrap(write, None), "line\n" * 100_000
    found: list[str] = []
    reading = os.fdopen(read, encoding="utf-8")
    reader = threading.Thread(target=lambda: found.append(reading.read()))
    reader.start()
    stream.write(text)
    stream.close()
    os.close(write)
    reader.join()
    reading.close()
    assert found == [text]
    assert console._wrapped.pop().lost is None


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"\udce4\udcb8\udc80"),
        ({"PYTHONIOENCODING": "ascii"}, r"\u4e00"),
        ({"PYTHONIOENCODING": "latin-1"}, r"\u4e00"),
        ({"PYTHONUTF8": "1"}, "一"),
    ],
)
def test_what_a_terminal_cannot_show_is_shown_as_its_escape(tmp_path, env, said):
    done = subprocess.run([*VELM, "report", "一"], cwd=tmp_path, env={**os.environ, **env}, capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (2, f"velm: report: {said} does not exist\n")


def test_a_name_that_is_no_text_is_shown_as_its_escape(tmp_path):
    done = subprocess.run([*VELM, "report", b"x\xff"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (2, b"velm: report: x\\udcff does not exist\n")


def test_a_failure_leaves_its_traceback_in_the_run_folder(place, monkeypatch, capsys):
    def fails(*_, **__):
        print("about to fail")
        raise ZeroDivisionError("of a bug")

    monkeypatch.chdir(place)
    monkeypatch.setattr(train_stage, "fit", fails)
    monkeypatch.delenv("VELM_TRACEBACK", raising=False)
    assert call(*train("bug")) == 1
    run = place / "runs/train/bug"
    assert (run / "FAILED").read_text() == "of a bug (the traceback is in log.txt)\n"
    log = (run / "log.txt").read_text()
    assert "about to fail\n" in log and 'fails\n    raise ZeroDivisionError("of a bug")' in log
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_log_is_added_to_and_never_written_through_another_name(place, monkeypatch):
    monkeypatch.chdir(place)
    assert call(*train("twice")) == 0
    run = place / "runs/train/twice"
    before = (run / "log.txt").read_text()
    os.link(run / "log.txt", place / "mine")
    assert call(*train("twice", "run.max_steps=4")) == 0
    assert (run / "log.txt").read_text().startswith(before) and "resumed at step 3" in (run / "log.txt").read_text()
    assert (place / "mine").read_text() == before


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"loss_text": 3.5, "weight_text": 1.0, "weight_image": 0.0}, "loss 3.5000"),
        ({"loss_text": 3.5, "weight_text": 2.0}, "loss 7.0000 = 2 text 3.5000"),
        (
            {"loss_text": 4.0, "loss_image": 46.0, "weight_text": 1.0, "weight_image": 0.1},
            "loss 8.6000 = 1 text 4.0000 + 0.1 image 46.0000",
        ),
        ({"loss_text": 1.0, "weight_text": 1.0, "reward": 0.25}, "loss 1.0000  reward 0.2500"),
    ],
)
def test_a_training_line_says_what_is_minimised(figures, said):
    assert _loss(figures) == said
