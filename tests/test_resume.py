"""Kill it at any moment, type the same command again: the same bits as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from velm import TINY, TINY_MODEL, call, velm

# Everything that has state: accumulation, moving average, dropout, augmentation, schedules, validation.
COMMAND = [
    "train", *TINY, *TINY_MODEL, "run.max_steps=24", "run.checkpoint_every=5", "run.validate_every=7",
    "run.accumulation=2", "run.ema_decay=0.9", "loss.beta=0.1", "loss.gamma=linear(0,1,2ep)",
    "data.crop_scale=0.6", "run.batch_size=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        done = velm(*COMMAND, "name=straight", cwd=folder)
        assert done.returncode == 0, done.stderr
        yield folder


def steps(folder) -> list[tuple[str, int]]:
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(line["kind"], line["step"]) for line in map(json.loads, lines)]


def interrupt(place, name: str, at_step: int, number: int, *more: str) -> int:
    """Start the run, send the signal once it has logged `at_step`; its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "velm_cli", *COMMAND, f"name={name}", *more],
        cwd=place, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = place / "runs/train" / name
    deadline = time.time() + 120
    while ("train", at_step) not in steps(folder):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(timeout=60)


def assert_same(place, name: str) -> None:
    straight, other = place / "runs/train/straight", place / "runs/train" / name
    for file in ("model.safetensors", "best.safetensors", "predictions.json"):
        assert (straight / file).read_bytes() == (other / file).read_bytes(), file

    def curve(folder):
        keys = ("kind", "step", "loss_text", "loss_image", "loss_joint", "grad_norm", "lr", "cider", "loss")
        return [{k: line.get(k) for k in keys} for line in map(json.loads, (folder / "metrics.jsonl").open())]

    assert curve(straight) == curve(other)


def test_sigterm_saves_stops_and_resumes_to_the_same_bits(place):
    assert interrupt(place, "term", 8, signal.SIGTERM) == 0
    folder = place / "runs/train/term"
    assert (folder / "PREEMPTED").read_text().startswith("SIGTERM at step")
    assert not (folder / "DONE").exists()
    assert velm(*COMMAND, "name=term", cwd=place).returncode == 0
    assert (folder / "DONE").exists()
    assert not (folder / "PREEMPTED").exists()
    assert_same(place, "term")


def test_kill_9_twice_and_the_same_bits(place):
    """With checkpoints that are written beside training, unlike those of the run it is compared with."""
    beside = "run.async_checkpoints=true"
    assert interrupt(place, "kill", 7, signal.SIGKILL, beside) == -signal.SIGKILL
    assert interrupt(place, "kill", 17, signal.SIGKILL, beside) == -signal.SIGKILL
    done = velm(*COMMAND, "name=kill", beside, cwd=place)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed at step 1[05]", done.stdout)  # that of 15 may have been under way
    assert_same(place, "kill")


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(place):
    interrupt(place, "torn", 13, signal.SIGKILL)
    newest = sorted((place / "runs/train/torn/checkpoints").glob("step-*"))[-1]
    content = bytearray((newest / "task.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "task.safetensors").write_bytes(content)
    done = velm(*COMMAND, "name=torn", cwd=place)
    assert f"checkpoint {newest.name} is damaged (task.safetensors has changed)" in done.stdout
    assert_same(place, "torn")


def test_the_number_of_loader_threads_changes_nothing(place):
    done = velm(*COMMAND, "name=threads", "data.workers=2", cwd=place)
    assert done.returncode == 0, done.stderr
    assert_same(place, "threads")


def test_two_processes_in_one_folder_are_refused(place):
    process = subprocess.Popen(
        [sys.executable, "-m", "velm_cli", *COMMAND, "run.max_steps=100000", "name=twice"],
        cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.time() + 120
        while not steps(place / "runs/train/twice"):
            assert time.time() < deadline
            time.sleep(0.05)
        second = velm(*COMMAND, "run.max_steps=100000", "name=twice", cwd=place)
        assert second.returncode == 2
        assert "another velm process is working in this run folder" in second.stderr
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
