"""Nothing trained is lost or replaced by what comes after it: lost checkpoints, lost folders, other patience."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from velm import TINY, TINY_MODEL, call

from velm_cli.engine import loop
from velm_cli.engine.loop import Validation
from velm_cli.errors import UserError
from velm_cli.files import sha256
from velm_cli.stages import train

COMMAND = [
    "train", *TINY, *TINY_MODEL, "metrics.names=[bleu]", "run.checkpoint_every=4", "run.validate_every=2",
    "run.validate_images=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call(*COMMAND, "name=done", "run.max_steps=8") == 0
        yield folder / "runs/train"


@pytest.fixture
def run(place, request):
    """A copy of a finished run, for the test alone."""
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    shutil.copytree(place / "done", place / name)
    return place / name


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(4, act)` acts after the update of step 4."""
    acts = {}
    step = loop.train_step

    def observed(run, number, *rest):
        figures = step(run, number, *rest)
        if number + 1 in acts:
            acts.pop(number + 1)(run)
        return figures

    monkeypatch.setattr(loop, "train_step", observed)
    return acts.__setitem__


def content(folder) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("left", ["nothing", "damaged", "only the best weights"])
def test_a_trained_run_without_checkpoints_is_refused_and_stays_as_it_is(left, run, capsys):
    if left == "damaged":
        for checkpoint in run.glob("checkpoints/*"):
            (checkpoint / "state.json").write_text("{}")
    else:
        shutil.rmtree(run / "checkpoints")
    if left == "only the best weights":  # killed at the last step, say, before the final weights were written
        (run / "model.safetensors").unlink()
        (run / "DONE").unlink()
    before = content(run)
    for more in ([], ["run.max_steps=12"]):
        code = call(*COMMAND, f"name={run.name}", "run.max_steps=8", "run.threads=1", *more)
        assert code == 2
        assert f"{run.name} holds a trained model (" in (said := last_line(capsys)), said
        assert "finetune checkpoint=" in said
    assert set(content(run).values()) == set(before.values())


def test_a_run_killed_between_its_first_validation_and_its_first_checkpoint_begins_again(run, capsys):
    shutil.rmtree(run / "checkpoints")
    for name in ("DONE", "model.safetensors"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(line for line in lines if json.loads(line)["step"] <= 3))
    assert call(*COMMAND, f"name={run.name}", "run.max_steps=8") == 0
    assert sha256(run / "model.safetensors") == sha256(run.parent / "done/model.safetensors")


@pytest.mark.parametrize("then", [["optim.lr=2e-3"], ["vision.width=16"], ["vision.freeze=none", "loss.gamma=0.1"]])
def test_a_run_that_failed_before_its_first_step_takes_other_options(then, place, request, monkeypatch, capsys):
    """There is nothing to lose: its log has the sizes of what was to be trained."""
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    command = [*COMMAND, f"name={name}", "run.max_steps=2", "vision.freeze=all"]

    def fails(*_):
        raise UserError("it does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", fails)
        assert call(*command) == 2
    assert (place / name / "FAILED").exists() and (place / name / "frozen.safetensors").exists()
    assert call(*command, *then) == 0
    whole = [*COMMAND, f"name={name}-whole", "run.max_steps=2", "vision.freeze=all", *then]
    assert call(*whole) == 0
    for file in ("model.safetensors", "frozen.safetensors"):
        one, other = place / name / file, place / f"{name}-whole" / file
        assert one.exists() == other.exists()
        tensors, alike = (load_file(each) if each.exists() else {} for each in (one, other))
        assert tensors.keys() == alike.keys() and all(torch.equal(tensors[key], alike[key]) for key in tensors)


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_run_whose_folder_goes_stops_and_writes_nothing_more(how, place, at_step, capsys):
    folder, elsewhere = place / f"gone-{how}", place / f"elsewhere-{how}"

    def act(run):
        folder.rename(elsewhere)
        if how == "removed":
            shutil.rmtree(elsewhere)
        if how == "replaced":  # by another run's, say
            folder.mkdir()
            (folder / "config.yaml").write_text("mine")

    at_step(5, act)
    assert call(*COMMAND, f"name={folder.name}", "run.max_steps=8") == 1
    assert f"gone-{how} was removed or renamed" in last_line(capsys)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"] if how == "replaced" else not folder.exists()
    if how == "renamed":
        elsewhere.rename(folder)
        assert call(*COMMAND, f"name={folder.name}", "run.max_steps=8") == 0
        assert "resumed at step 4" in capsys.readouterr().out


def test_patience_is_decided_anew(place, monkeypatch, capsys):
    monkeypatch.setattr(train, "validated", lambda *_: Validation({"loss": 1.0}, -1.0))
    command = [*COMMAND, "name=patience"]
    assert call(*command, "run.max_steps=12", "run.patience=1") == 0
    assert "no better validation 1 times in a row" in capsys.readouterr().out
    assert call(*command, "run.max_steps=12", "run.patience=3") == 0
    said = capsys.readouterr().out
    assert "resumed at step 4" in said and "no better validation 3 times in a row" in said
    assert call(*command, "run.max_steps=14", "run.patience=0") == 0
    assert "resumed at step 8" in capsys.readouterr().out
    assert max(json.loads(line)["step"] for line in (place / "patience/metrics.jsonl").open()) == 14


def spoil(run):
    with torch.no_grad():
        next(run.learner.parameters()).view(-1)[0] = torch.inf


@pytest.mark.parametrize("step", [2, 4, 5])
def test_weights_that_are_not_finite_are_never_written(step, place, at_step, capsys):
    """Before a validation, a checkpoint, and the end."""
    at_step(step, spoil)
    name = f"spoilt-{step}"
    assert call(*COMMAND, f"name={name}", "run.max_steps=5", "optim.lr=0") == 1
    assert "not finite" in last_line(capsys)
    for file in (place / name).rglob("*.safetensors"):
        assert all(t.isfinite().all() for t in load_file(file).values() if t.is_floating_point()), file
    assert not (place / name / "model.safetensors").exists()
    assert call(*COMMAND, f"name={name}", "run.max_steps=5", "optim.lr=0") == 0  # it can go on


def test_the_last_update_may_leave_the_finite_numbers(place, capsys):
    options = ["optim.lr=1e38", "optim.warmup_steps=0", "run.max_steps=1"]
    assert call(*COMMAND, "name=large", *options) == 1
    assert "step 1: the weights are not finite" in last_line(capsys)
    assert not [*(place / "large").rglob("*.safetensors")]


@pytest.mark.parametrize("fresh", [True, False])
def test_an_interrupted_run_says_how_it_goes_on(fresh, run, at_step, capsys):
    at_step(3, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    folder = run if fresh else run.with_name(f"{run.name}-new")
    command = [*COMMAND, f"name={folder.name}", "run.max_steps=8"]
    assert call(*command, *(["fresh=true"] if fresh else [])) == 0
    said = capsys.readouterr().out.strip().splitlines()[-1]
    if not fresh:
        assert said.endswith("at step 3; the same command goes on from there")
        return
    assert said.endswith(f"the same command with name={run.name}.2 and without fresh=true goes on from there")
    assert call(*command, f"name={run.name}.2") == 0
    assert "resumed at step 3" in capsys.readouterr().out
