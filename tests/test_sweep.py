"""`velm train -m`: points beside each other, one at a time, or just one; stopped, killed, gone on with; a mistake."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from velm import TINY, TINY_MODEL, call, velm

MODEL = [option for option in TINY_MODEL if not option.startswith(("fusion.layers", "fusion.heads"))]
COMMAND = ["train", "-m", "dataset=shapes", *TINY, *MODEL, "metrics.names=[cider]", "fusion=add", "seed=0,1,2"]
COMMAND += ["run.max_steps=30", "run.checkpoint_every=10"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call(*COMMAND, "name=serial") == 0
        yield folder


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_ended_in_the_middle_the_same_command_finishes_and_equals_the_serial_sweep(place, capsys, number):
    name = f"ended-by-{number.name}"
    command = [*COMMAND, f"name={name}", "--jobs=2"]
    folders, serial = where(place, capsys, *command), where(place, capsys, *COMMAND, "name=serial")
    assert len({folder.name for folder in folders}) == 3
    assert all(folder.name.startswith(f"{name}-shapes-vit-transformer-add") for folder in folders)

    process = subprocess.Popen(
        [sys.executable, "-m", "velm_cli", *command], cwd=place, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    deadline = time.time() + 120
    while not (folders[2] / "metrics.jsonl").exists():  # the third has begun, so the first or the second is done
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate()[0]
    while is_running(name):  # points whose sweep was killed save and stop
        assert time.time() < deadline
        time.sleep(0.05)
    done = [folder for folder in folders if (folder / "DONE").exists()]
    assert 0 < len(done) < 3
    assert (folders[2] / "PREEMPTED").exists()
    if number == signal.SIGTERM:
        assert process.returncode == 0
        assert (
            said.splitlines()[-1] == f"{len(done)} of 3 points are complete; the same command goes on with the others"
        )
    before = [(folder / "DONE").stat().st_mtime_ns for folder in done]

    again = velm(*command, cwd=place)
    assert again.returncode == 0, again.stderr
    for folder in folders:
        assert f"{'complete' if folder in done else 'done    '}    runs/train/{folder.name}" in again.stdout
    assert [(folder / "DONE").stat().st_mtime_ns for folder in done] == before
    assert [line.split()[0] for line in again.stdout.splitlines()[-2:]] == [
        "runs",
        "3",
    ]  # they differ in the seed alone
    for folder, other in zip(folders, serial, strict=True):
        for file in ("model.safetensors", "predictions.json"):
            assert (folder / file).read_bytes() == (other / file).read_bytes(), file


def where(place: Path, capsys, *command: str) -> list[Path]:
    capsys.readouterr()
    assert call(*command, "--where") == 0
    return [place / line for line in capsys.readouterr().out.splitlines()]


def is_running(name: str) -> bool:
    """Whether a process has an argument name=NAME-..., as the points have."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"name={name}-".encode() in (process / "cmdline").read_bytes():
                return True
    return False


def test_one_point_alone_and_complete_points_are_skipped(place, capsys):
    capsys.readouterr()
    assert call(*COMMAND, "name=serial", "--point=1") == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"complete    runs/train/serial-\S*-seed1-\S*  \(fresh=true trains again\)\n", said)
    assert call(*COMMAND, "name=serial") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["complete"] * 3


def test_a_failed_point_stops_no_other_and_the_exit_code_says_so(place, capsys):
    capsys.readouterr()
    command = [*COMMAND[:-3], "run.max_steps=1", "vision.image_size=60,64", "name=failing", "--jobs=2"]
    assert call(*command) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("velm: 1 of 2 points of the sweep failed, the last: failing-shapes-")
    assert told.endswith(": vision.image_size=60 is not a multiple of vision.patch_size=8")
    (done,) = place.glob("runs/train/failing-*")
    assert (done / "DONE").exists()


def test_points_that_would_share_a_folder_are_refused(place, capsys):
    capsys.readouterr()
    assert call(*COMMAND, "run.device=cpu,auto") == 2
    assert "2 points of the sweep would be the same run, runs/train/shapes-vit-" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--point=1"], "velm: --point and --jobs are for sweeps: velm train -m ..."),
        (["-m", "seed=0,1", "--point=2"], "velm: --point=2: the sweep has the points 0 to 1"),
        (["-m", "seed=0,1", "--jobs=many"], "velm: --jobs=many: expected a whole number, such as --jobs=2"),
        (["-m", "seed=0,1", "hydra/sweeper=optuna", "--jobs=2"], "velm: --where, --point and --jobs work with Hydra's basic sweeper and launcher only"),
        (["-m", "optim.lr=interval(0,1)"], "velm: BasicSweeper does not support sweep type : INTERVAL_SWEEP"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(args, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("train", *args) == 2
    assert capsys.readouterr().err == f"{line}\n"
    assert list(tmp_path.iterdir()) == []


def test_shares_of_cores_and_gpus(monkeypatch):
    from velm_cli.sweep import _slots

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 8}, raising=False)
    slots = _slots(3)
    assert [slot.cores for slot in slots] == [[0], [1, 2], [3, 8]]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "7", "4"]
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == ["1", "2", "2"]
    assert sorted({slot.cores[0] for slot in _slots(7)}) == [0, 1, 2, 3, 8]
