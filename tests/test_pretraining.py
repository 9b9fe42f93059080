"""Objectives that write no captions, from the command line: they train, resume, are estimated, and hand on weights."""

import json

import pytest
from safetensors.torch import load_file
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


def test_a_captioner_goes_on_from_what_hidden_patches_taught(place, capsys):
    call(*command(*OBJECTIVES["patches"], "name=patches"))
    assert call(*command("init.vision=runs/train/patches", "name=captioner", "run.max_steps=1", "optim.lr=0")) == 0
    assert "weights from runs/train/patches" in capsys.readouterr().out
    before, after = (load_file(place / name / "model.safetensors") for name in ("patches", "captioner"))
    names = [name for name in before if name.startswith("model.vision.")]
    assert names and all((before[name] == after[name]).all() for name in names)


def test_squares_that_do_not_fit_are_refused_with_a_line(capsys):
    assert call(*command(*OBJECTIVES["patches"], "loss.patch_size=7", "name=seven")) == 2
    line = capsys.readouterr().err
    assert "loss.image=masked_patches: an image of 64 pixels is not divided evenly" in line
    assert "squares of 7 pixels" in line
