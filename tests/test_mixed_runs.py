"""A mixture from the command line: it resumes bit for bit, ranks change nothing, each task is evaluated by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from test_distributed import STILL, run
from test_resume import steps
from velm import TINY, TINY_MODEL, call, velm

PARTS = (
    "[{store: stores/seen, task: caption, loss: {beta: 0.1}}, {store: stores/asked, task: vqa, weight: 2},"
    " {store: stores/seen, task: retrieve, batch_size: 6}]"
)
MIX = [
    "train", "task=mix", "dataset=mix", f"dataset.parts={PARTS}", *TINY_MODEL, "run.max_steps=12",
    "run.checkpoint_every=2", "run.validate_every=5", "run.accumulation=2", "run.ema_decay=0.9", "data.crop_scale=0.6",
    "tokenizer.min_count=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few = [arg for arg in TINY if arg.startswith("dataset.")]
        assert call("preprocess", "dataset=shapes", *few, "dataset.store=stores/seen") == 0
        assert call("preprocess", "dataset=shapes", *few, "dataset.questions=true", "dataset.store=stores/asked") == 0
        assert call(*MIX, "name=straight") == 0
        yield folder


def test_the_log_has_the_losses_and_scores_of_every_part(place):
    lines = [json.loads(line) for line in (place / "runs/train/straight/metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert {"loss_caption/text", "loss_caption/image", "loss_vqa/joint", "loss_retrieve/joint"} <= set(last)
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [5, 10, 12]
    for line in validations:
        reached = line["caption/cider"] / (1 + line["caption/cider"]), line["vqa/vqa"], line["retrieve/rsum"] / 600
        assert line["score"] == pytest.approx(sum(reached) / 3)
    for part in ("caption", "vqa", "retrieve"):
        assert (place / "runs/train/straight/parts" / part / "scores.json").is_file()


def test_killed_at_any_step_it_goes_on_bit_for_bit(place):
    process = subprocess.Popen(
        [sys.executable, "-m", "velm_cli", *MIX, "name=killed"],
        cwd=place, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while ("train", 7) not in steps(place / "runs/train/killed"):
        assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    done = velm(*MIX, "name=killed", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stdout
    for file in ("model.safetensors", "best.safetensors", "parts/vqa/predictions.json"):
        one, other = (place / "runs/train" / name / file for name in ("straight", "killed"))
        assert one.read_bytes() == other.read_bytes(), file


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_ranks_are_one(place, how):
    """Micro-batches of a step are of different parts, so each rank leaves heads without gradients in the last one."""
    without = PARTS.replace("task: vqa,", "task: vqa, options: {dropout: 0.0},")
    still = [
        f"dataset.parts={without}",
        *STILL,
        "run.precision=fp32",
        "run.max_steps=6",
        "data.crop_scale=1",
        "run.validate_every=0",
    ]
    if not (place / "runs/train/one").exists():
        run(place, 1, *MIX, *still, "name=one")
    run(place, 2, *MIX, *still, f"run.parallel={how}", f"name={how}")
    of_one, of_two = (losses(place / "runs/train" / name) for name in ("one", how))
    assert len(of_one) == len(of_two) == 6
    for expected, found in zip(of_one, of_two, strict=True):
        assert found == pytest.approx(expected, rel=2e-4)
    one, two = (load_file(place / "runs/train" / name / "model.safetensors") for name in ("one", how))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # Adam's first steps are signs: where a gradient is all but zero, rounding decides about a whole step.
        assert (tensor - two[name]).abs().max() < 5e-4, name


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kept = [line for line in lines if line["kind"] == "train"]
    return [{k: v for k, v in line.items() if k.startswith(("loss", "weight", "grad"))} for line in kept]


def test_each_task_is_evaluated_by_itself_on_its_own_store(place, capsys):
    assert call("eval", "checkpoint=runs/train/straight", "split=val") == 2
    assert "learned task=caption, task=vqa, task=retrieve: say which of them" in capsys.readouterr().err
    for task, how in (
        ("vqa", ["report.page=false"]),
        ("caption", ["decode.beams=1", "metrics=fast", "report.page=false"]),
    ):
        assert call("eval", "checkpoint=runs/train/straight", f"task={task}", "split=val", f"name={task}", *how) == 0
        evaluated = json.loads((place / "runs/evaluate" / task / "predictions.json").read_text())
        assert evaluated == json.loads((place / "runs/train/straight/parts" / task / "predictions.json").read_text())
    assert call("eval", "checkpoint=runs/train/straight", "task=retrieve", "split=val", "name=retrieve") == 0
    found, then = (
        json.loads((folder / "scores.json").read_text())["rsum"]
        for folder in (place / "runs/evaluate/retrieve", place / "runs/train/straight/parts/retrieve")
    )
    assert found == then


def test_one_task_of_it_is_finetuned_with_its_head(place, capsys):
    assert call("finetune", "checkpoint=runs/train/straight", "task=vqa", "run.max_steps=1", "name=one") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("weights from"))
    assert "from scratch" not in line and "left behind" not in line, line


def test_stores_of_one_task_are_mixed_for_an_ordinary_run(place, capsys):
    parts = "[{store: stores/seen, weight: 3}, {store: stores/asked, name: words}]"
    command = ["train", "dataset=mix", f"dataset.parts={parts}", *TINY_MODEL, "tokenizer.min_count=1", "loss.beta=0.1"]
    assert call(*command, "run.max_steps=4", "name=both", "dry_run=true") == 0
    assert "75.0% of batches" in capsys.readouterr().out
    assert call(*command, "run.max_steps=4", "name=both") == 0
    assert not any(name.startswith("heads") for name in load_file(place / "runs/train/both/model.safetensors"))
    assert call("eval", "checkpoint=runs/train/both", "dataset.store=stores/seen", "split=val", "name=both") == 0


def test_parts_that_cannot_be_used_are_named(place, capsys):
    def refused(parts: str, *more: str) -> str:
        assert call("train", "task=mix", "dataset=mix", f"dataset.parts={parts}", *TINY_MODEL, *more) == 2
        return capsys.readouterr().err

    assert "part caption: the store nowhere does not exist" in refused(
        "[{store: nowhere, task: caption}, {store: b, task: vqa}]"
    )
    wrong = "[{store: stores/seen, task: vqa}, {store: stores/seen, task: caption}]"
    assert "part vqa: task=vqa reads questions, and stores/seen has none" in refused(wrong)
    assert call("preprocess", "dataset=mix", f"dataset.parts={wrong}") == 2
    assert "preprocess the data of each part" in capsys.readouterr().err
