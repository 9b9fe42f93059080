"""Several processes are one: the same losses, the same scores, the same bits after a kill, any number of them.

Real `torchrun` processes over gloo. Where one rank is compared with two the commands have no dropout, whose numbers
are each rank's own, and float32, whose sums may be added in any order within the tolerance.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_resume import COMMAND as WITH_DROPOUT
from test_resume import steps
from tiny_models import folder, language_model
from velm import TINY, TINY_MODEL, call, velm

STILL = ["vision.dropout=0", "text.dropout=0", "fusion.dropout=0"]
# Accumulation, moving average, all three objectives (gamma is 0 at first), validation in between.
PLAIN = [
    "train", *TINY, *TINY_MODEL, *STILL, "run.max_steps=12", "run.checkpoint_every=5", "run.validate_every=5",
    "run.accumulation=2", "run.ema_decay=0.9", "loss.beta=0.1", "loss.gamma=linear(0,1,2ep)", "run.keep_every=5",
    "run.keep_checkpoints=1", "run.precision=fp32",
]  # fmt: skip
TWO_RANKS = [arg.replace("run.batch_size=3", "run.batch_size=4") for arg in WITH_DROPOUT]


def torchrun(ranks: int, *args: str, restarts: int = 0) -> list[str]:
    """The command line of `ranks` processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, f"--max-restarts={restarts}", "-m", "velm_cli", *args]


def run(folder: Path, ranks: int, *args: str) -> subprocess.CompletedProcess:
    """The finished command; it must have gone well."""
    if ranks == 1:
        done = velm(*args, cwd=folder)
    else:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(torchrun(ranks, *args), cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a store and the run `one`: PLAIN in one process."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call(*PLAIN, "name=one") == 0
        yield folder


def curve(folder: Path, name: str) -> list[dict]:
    """What a run logged, without times."""
    lines = map(json.loads, (folder / "runs/train" / name / "metrics.jsonl").read_text().splitlines())
    keys = re.compile(r"kind|step|lr|loss.*|grad_norm|weight_.*|cider")
    return [{k: v for k, v in line.items() if keys.fullmatch(k)} for line in lines if line["kind"] != "start"]


def assert_near(folder: Path, name: str, expected: str = "one") -> None:
    """Float tolerance: sums are added in another order."""
    found, wanted = curve(folder, name), curve(folder, expected)
    assert len(found) == len(wanted) > 12
    for a, b in zip(found, wanted, strict=True):
        assert a.pop("kind") == b.pop("kind")
        assert a == pytest.approx(b, rel=2e-5)
    weights, others = (load_file(folder / "runs/train" / n / "model.safetensors") for n in (name, expected))
    for key, tensor in weights.items():
        # Adam's first steps are signs: where a gradient is all but zero, rounding decides about a whole step.
        assert (tensor - others[key]).abs().max() < 5e-4, key


def assert_same_bits(folder: Path, name: str, expected: str) -> None:
    for file in ("model.safetensors", "best.safetensors", "predictions.json"):
        found, wanted = (folder / "runs/train" / n / file for n in (name, expected))
        assert found.read_bytes() == wanted.read_bytes(), file
    assert curve(folder, name) == curve(folder, expected)


def as_it_was(folder: Path, name: str, step: int, new: str) -> None:
    """A copy `new` of the run `name` as a kill after its checkpoint of `step` would have left it.

    The best weights may stay: they are those of step 5.
    """
    assert {line["step"]: line.get("cider") for line in curve(folder, name)}[5] is not None
    old, copy = (folder / "runs/train" / n for n in (name, new))
    shutil.copytree(old, copy)
    for entry in (copy / "model.safetensors", copy / "DONE", *copy.glob("checkpoints/step-*")):
        if entry.is_dir() and entry.name != f"step-{step:08d}":
            shutil.rmtree(entry)
        elif entry.is_file():
            entry.unlink()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_are_one(place, parallel):
    done = run(place, 2, *PLAIN, f"run.parallel={parallel}", f"name=two-{parallel}")
    assert_near(place, f"two-{parallel}")
    assert done.stdout.count("\ndone: ") == 1, "rank 0 alone speaks"
    assert "Warning" not in done.stderr, done.stderr

    # 2 -> 2: the same bits
    as_it_was(place, f"two-{parallel}", 5, f"again-{parallel}")
    done = run(place, 2, *PLAIN, f"run.parallel={parallel}", f"name=again-{parallel}")
    assert "resumed at step 5" in done.stdout
    assert_same_bits(place, f"again-{parallel}", f"two-{parallel}")


def test_slices_of_a_model_that_saves_memory(place):
    """Frozen matrices in bfloat16, low-rank updates and recomputed activations with fsdp: the bits of a run without."""
    language_model(place / "lm", ["a red circle above two blue stars"])
    parts = [
        "vision=dinov2",
        f"vision.name={folder('dinov2')}",
        "vision.image_size=16",
        "vision.freeze=all",
        "text=gpt2",
    ]
    parts += ["text.name=lm", "text.lora_rank=2", "fusion=prefix", "fusion.mapper=tokens", "run.batch_size=4"]
    how = ["run.parallel=fsdp", "run.precision=bf16", "run.max_steps=4", "run.checkpoint_every=2", "run.log_every=1"]
    command = ["train", *TINY, *parts, *how, "metrics.names=[cider]", "run.validate_images=4"]
    run(place, 2, *command, "run.frozen_dtype=fp32", "name=wide")
    run(place, 2, *command, "run.checkpoint_activations=true", "name=narrow")
    assert_same_bits(place, "narrow", "wide")


@pytest.mark.parametrize(("ranks", "parallel"), [(2, "ddp"), (2, "fsdp"), (1, "ddp")])
def test_any_number_of_processes_goes_on_from_a_checkpoint(place, ranks, parallel):
    """1 -> 2 either way; and from two slices back to one."""
    source, name = ("one" if ranks == 2 else "two-fsdp"), f"on-{ranks}-{parallel}"
    if not (
        place / "runs/train" / source
    ).exists():  # this process may have been given this test and not the one before
        run(place, 2, *PLAIN, "run.parallel=fsdp", f"name={source}")
    as_it_was(place, source, 5, name)
    done = run(place, ranks, *PLAIN, f"run.parallel={parallel}", f"name={name}")
    assert "resumed at step 5" in done.stdout
    assert_near(place, name)


def test_a_rank_that_dies_and_a_signal_leave_the_same_bits(place):
    """kill -9 of rank 1 under --max-restarts=1, then SIGTERM to torchrun and the same command again."""
    run(place, 2, *TWO_RANKS, "name=straight")
    folder = place / "runs/train/bad-day"
    command = torchrun(2, *TWO_RANKS, "name=bad-day", restarts=1)
    with (place / "bad-day.log").open("w") as log:
        job = subprocess.Popen(command, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    try:
        wait_for(job, folder, 6)
        os.kill(pid_of_rank(job.pid, 1), signal.SIGKILL)
        wait_for(job, folder, 14)
        job.send_signal(signal.SIGTERM)
        job.wait(timeout=60)
    finally:
        for rank in (0, 1) if job.poll() is None else ():
            os.kill(pid_of_rank(job.pid, rank), signal.SIGKILL)
        job.kill()
        print((place / "bad-day.log").read_text())
    assert (folder / "PREEMPTED").read_text().startswith("SIGTERM at step")
    assert [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".part")] == []
    run(place, 2, *TWO_RANKS, "name=bad-day")
    assert_same_bits(place, "bad-day", "straight")


def wait_for(job: subprocess.Popen, folder: Path, step: int) -> None:
    deadline = time.time() + 120
    while ("train", step) not in steps(folder):
        assert job.poll() is None, "it ended before it could be interrupted"
        assert time.time() < deadline
        time.sleep(0.005)


def pid_of_rank(launcher: int, rank: int) -> int:
    """The child of torchrun that has this rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("no such rank")


def test_evaluation_is_the_same_on_any_number_of_ranks(place):
    results = []
    for ranks in (1, 2, 3):
        run(place, ranks, "eval", "checkpoint=runs/train/one", "split=test", "decode.beams=3", "decode.batch_size=2",
            "metrics=fast", f"name=on-{ranks}")  # fmt: skip
        folder = place / "runs/evaluate" / f"on-{ranks}"
        results.append(
            [(folder / file).read_bytes() for file in ("predictions.json", "scores.json", "per_image.jsonl")]
        )
    assert results[0] == results[1] == results[2]
    assert len(json.loads(results[0][0])) == 8


def test_one_process_stages_refuse_company(place):
    done = velm("preprocess", "dataset=shapes", *TINY, cwd=place, env={"RANK": "0", "WORLD_SIZE": "2"})
    assert done.returncode == 2
    assert "velm preprocess is one process, and 2 were started" in done.stderr
