"""Objectives that write no captions, from the command line: they train, resume, are estimated, and hand on weights."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from velm import TINY, TINY_MODEL, call

JUDGES = ["loss.alpha=0", "loss.gamma=1", "loss.joint=matching"]
OBJECTIVES = {
    "masked": ["loss.text=masked"],
    "patches": ["loss.alpha=0", "loss.beta=1", "loss.image=masked_patches", "loss.patch_size=8"],
    "co_attention": ["fusion=co_attention", *JUDGES],
    "own_words": ["loss.scheduled_sampling=linear(0,0.5,4)"],
}


def command(*options: str) -> list[str]:
    return ["train", *TINY, *TINY_MODEL, "run.max_steps=16", "optim.warmup_steps=0", "metrics.names=[cider]", *options]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield folder / "runs/train"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_is_estimated_trained_and_resumed(objective, place, capsys):
    options = OBJECTIVES[objective]
    assert call(*command(*options, "dry_run=true")) == 0
    assert "GFLOP" in capsys.readouterr().out
    assert call(*command(*options, f"name={objective}")) == 0
    assert call(*command(*options, f"name={objective}", "run.max_steps=20")) == 0
    assert "resumed at step 16" in capsys.readouterr().out
    lines = [json.loads(line) for line in (place / objective / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, 21))
    losses = [sum(value for key, value in line.items() if key.startswith("loss_")) for line in trained]
    assert sum(losses[-5:]) < sum(losses[:5])
    validated = [line for line in lines if line["kind"] == "validation"]
    assert all(("cider" in line) == (objective == "own_words") for line in validated)


@pytest.mark.parametrize("objective", ["masked", "co_attention"])
def test_what_cannot_write_is_not_asked_to(objective, place, capsys):
    call(*command(*OBJECTIVES[objective], f"name={objective}"))  # done already when all tests run
    capsys.readouterr()
    assert call("eval", f"checkpoint=runs/train/{objective}", "split=test") == 2
    assert "cannot write captions" in capsys.readouterr().err


def test_images_alone_teach_no_captions_and_the_line_says_what_to_do(place, capsys):
    call(*command(*OBJECTIVES["patches"], "name=patches"))
    tuned = ["finetune", "run.max_steps=1", "run.batch_size=4", "metrics.names=[cider]", "loss.alpha=0", "loss.beta=1"]
    assert call(*tuned, "checkpoint=runs/train/patches", "name=patches-tuned") == 0
    capsys.readouterr()
    for folder in ("runs/train/patches", "runs/finetune/patches-tuned"):
        assert call("eval", f"checkpoint={folder}", "split=test") == 2
        assert capsys.readouterr().err == (
            f"velm: checkpoint: {folder} cannot write captions: it was trained with loss.alpha=0, on L_image "
            f"(masked_patches); for captions, train with init.vision={folder}\n"
        )
    assert not (place.parent / "evaluate").exists() or not list((place.parent / "evaluate").glob("patches*"))


def test_captions_that_a_run_was_finetuned_from_are_not_forgotten(place):
    assert call(*command("name=writer", "run.max_steps=1")) == 0
    tuned = ["finetune", "checkpoint=runs/train/writer", "loss.alpha=0", "loss.gamma=1", "name=judge"]
    assert call(*tuned, "run.max_steps=1", "run.batch_size=4") == 0
    fast = ["metrics.names=[cider]", "report.page=false", "limit=2"]
    assert call("eval", "checkpoint=runs/finetune/judge", *fast) == 0
    (place / "writer").rename(place / "moved")
    assert call("eval", "checkpoint=runs/finetune/judge", *fast, "fresh=true") == 0


def test_a_captioner_goes_on_from_what_hidden_patches_taught(place, capsys):
    call(*command(*OBJECTIVES["patches"], "name=patches"))
    assert call(*command("init.vision=runs/train/patches", "name=captioner", "run.max_steps=1", "optim.lr=0")) == 0
    assert "weights from runs/train/patches" in capsys.readouterr().out
    before, after = (load_file(place / name / "model.safetensors") for name in ("patches", "captioner"))
    names = [name for name in before if name.startswith("model.vision.")]
    assert names and all((before[name] == after[name]).all() for name in names)


def test_a_contrastive_scale_above_the_limit_is_at_the_limit_after_a_step(place):
    """As runs of earlier versions may have left it, stuck; the moving average takes in what the step has left."""
    contrasts = ["loss.alpha=0", "loss.gamma=1", "run.max_steps=1", "run.batch_size=4", "optim.lr=0"]
    assert call("train", *TINY, *TINY_MODEL, *contrasts, "name=contrasts") == 0
    file, above = place / "contrasts/best.safetensors", math.log(103.22)
    save_file(load_file(file) | {"joint_loss.log_scale": torch.tensor(above)}, file)
    assert call("finetune", "checkpoint=runs/train/contrasts", *contrasts, "name=again", "run.ema_decay=0.5") == 0
    folder = place.parent / "finetune/again"
    live = load_file(folder / "checkpoints/step-00000001/task.safetensors")["joint_loss.log_scale"]
    average = load_file(folder / "model.safetensors")["joint_loss.log_scale"]
    assert float(live) == pytest.approx(math.log(100), abs=1e-6)
    assert float(average) == pytest.approx(0.1 * above + 0.9 * math.log(100), abs=1e-6)


def test_squares_that_do_not_fit_are_refused_with_a_line(capsys):
    assert call(*command(*OBJECTIVES["patches"], "loss.patch_size=7", "name=seven")) == 2
    line = capsys.readouterr().err
    assert "loss.image=masked_patches: an image of 64 pixels is not divided evenly" in line
    assert "squares of 7 pixels" in line
