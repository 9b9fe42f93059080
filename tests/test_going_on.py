"""Going on from what a run has kept: with another number of steps, from a kept checkpoint, or by a finetuning."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from velm import TINY, TINY_MODEL, call

from velm_cli import naming
from velm_cli.lineage import weight_file
from velm_cli.loading import read_weights

TRAIN = ["train", *TINY, *TINY_MODEL, "metrics.names=[bleu,cider]", "run.validate_images=2"]
KEPT = [*TRAIN, "name=kept", "run.checkpoint_every=2", "run.keep_every=2", "run.validate_every=2", "run.ema_decay=0.9",
        "optim.warmup_steps=2"]  # fmt: skip
EVAL = ["metrics.names=[bleu]", "report.page=false", "decode=greedy", "limit=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("going-on")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call(*KEPT, "run.max_steps=6") == 0
        yield folder


@pytest.fixture
def run(place, capsys, request):
    """A copy of the run for the test alone, under the name `kept`."""
    saved = place / "saved"
    if not saved.exists():
        shutil.copytree(place / "runs/train/kept", saved)
    shutil.rmtree(place / "runs/train/kept")
    shutil.copytree(saved, place / "runs/train/kept")
    capsys.readouterr()
    return place / "runs/train/kept"


def validations(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == "validation"]


def test_more_steps_say_what_becomes_of_the_schedule(run, capsys):
    assert call(*KEPT, "run.max_steps=8") == 0
    said = capsys.readouterr().out
    assert "note: run.max_steps 6 -> 8: the schedule is laid anew; optim.lr 1e-05 -> 0.00026 at step 6" in said
    assert validations(run) == [2, 4, 6, 8]


def test_fewer_steps_than_are_done_are_refused(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert call(*KEPT, "run.max_steps=4") == 2
    line = capsys.readouterr().err
    assert "run.max_steps=4: the model in runs/train/kept has 6 steps already; give at least run.max_steps=6" in line
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert validations(run) == [2, 4, 6]


def test_a_dry_run_says_what_the_command_would_find(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert call(*KEPT, "run.max_steps=6", "dry_run=true") == 0
    assert "note: runs/train/kept is complete: the command would change nothing" in capsys.readouterr().out
    assert call(*KEPT, "run.max_steps=8", "dry_run=true") == 0
    said = capsys.readouterr().out
    assert "note: runs/train/kept has been trained for 6 steps: the command would go on from there" in said
    assert "note: run.max_steps 6 -> 8: the schedule is laid anew" in said
    for option, line in (("run.max_steps=4", "has 6 steps already"), ("optim.lr=0.5", "holds another experiment")):
        assert call(*KEPT, "run.max_steps=6", option, "dry_run=true") == 2
        assert line in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_dry_run_moves_no_damaged_checkpoint(run, capsys):
    with (run / "checkpoints/step-00000006/task.safetensors").open("r+b") as file:
        file.truncate(1000)
    before = sorted(run.rglob("*"))
    assert call(*KEPT, "run.max_steps=8", "dry_run=true") == 0
    assert "has been trained for 4 steps" in capsys.readouterr().out
    assert sorted(run.rglob("*")) == before


def test_fewer_steps_than_were_planned_are_fine(run, capsys):
    """The last validation is not made twice."""
    assert call(*TRAIN, "name=stopped", "run.max_steps=2") == call(*TRAIN, "name=stopped", "run.max_steps=9") == 0
    for marker in ("DONE", "model.safetensors"):
        (run.parent / "stopped" / marker).unlink()
    assert call(*TRAIN, "name=stopped", "run.max_steps=9") == 0
    assert validations(run.parent / "stopped") == [2, 9]


def test_another_rate_is_a_finetuning_and_its_command_is_given(run, capsys):
    assert call(*KEPT, "run.max_steps=8", "optim.lr=3e-4") == 2
    assert "go on from its weights: velm finetune checkpoint=runs/train/kept optim.lr=0.0003" in capsys.readouterr().err


def test_a_kept_checkpoint_stands_for_the_weights_that_were_validated(run):
    """Averaged, as best.safetensors has them: at the step that was the best the two are the same."""
    best = load_file(run / "best.safetensors")
    steps = {}
    for step in sorted((run / "checkpoints").iterdir()):
        for source in (step, step / "task.safetensors"):
            assert weight_file(source) == step / "task.safetensors"
            steps[step.name], _ = read_weights(weight_file(source))
    same = [name for name, state in steps.items() if all(torch.equal(state[key], best[key]) for key in best)]
    assert len(steps) == 3 and len(same) == 1, same


def test_a_kept_checkpoint_is_evaluated_and_finetuned_from(run, place, capsys):
    step = "runs/train/kept/checkpoints/step-00000004"
    for source in (step, f"{step}/task.safetensors"):
        assert call("eval", f"checkpoint={source}", *EVAL) == 0
    assert "kept-step4-shapes-test-first4-greedy is complete" in capsys.readouterr().out, "both name the same weights"
    command = [
        "finetune",
        f"checkpoint={step}",
        "run.batch_size=4",
        "run.validate_images=2",
        "metrics.names=[bleu,cider]",
    ]
    assert call(*command, "run.max_steps=1") == 0
    said = capsys.readouterr().out
    assert "best validation there: CIDEr" in said and "best of this finetuning so far" in said
    assert call(*command, "run.max_steps=2") == 0, "goes on"
    (place / "runs/finetune/kept-step4-batch_size_4/DONE").unlink()
    average = run / "checkpoints/step-00000004/ema.safetensors"
    average.write_bytes(average.read_bytes()[:-1] + b"x")
    assert call(*command, "run.max_steps=3") == 2, "they began with other weights"
    assert "has changed since then" in capsys.readouterr().err
    assert call("eval", f"checkpoint={step}", *EVAL, "name=damaged") == 2
    assert "step-00000004 is damaged (ema.safetensors has changed)" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_not_taken_for_its_own(run, place, capsys):
    assert call(*[word for word in KEPT if word != "name=kept"], "seed=1", "run.max_steps=2", "name=else") == 0
    shutil.rmtree(run / "checkpoints/step-00000002")
    shutil.copytree(run.parent / "else/checkpoints/step-00000002", run / "checkpoints/step-00000002")
    assert call("eval", f"checkpoint={run}/checkpoints/step-00000002", *EVAL, "name=foreign") == 2
    assert "is of another run than the one of its folder" in capsys.readouterr().err


NO_WEIGHTS = {
    "runs/train/kept/checkpoints": "; give runs/train/kept, or one of runs/train/kept/checkpoints/step-*",
    "runs/train/kept/tokenizer": "is not a run folder (it has no config.yaml); give runs/train/kept",
    "runs/train/kept/checkpoints/step-00000004/optimizer.safetensors": "is not the model's weights: give the checkpoint's",
    "runs/train/kept/checkpoints/step-00000005": "does not exist; did you mean 'step-0000000",
}  # fmt: skip


@pytest.mark.parametrize("source", NO_WEIGHTS)
def test_what_holds_no_weights_is_refused_with_what_does(source, run, capsys):
    assert call("eval", f"checkpoint={source}", *EVAL) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and NO_WEIGHTS[source] in line, line


def test_from_within_a_run_folder_its_name_is_the_same(run, monkeypatch, capsys):
    monkeypatch.chdir(run / "checkpoints")
    for source, name in (
        ("..", "kept"),
        ("step-00000004", "kept-step4"),
        ("step-00000004/task.safetensors", "kept-step4"),
    ):
        assert naming.checkpoint_name(source).endswith(name)
