"""Which checkpoints stay, which one a run goes on from, and what of a checkpoint is believed."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from velm_cli.engine.checkpoint import Checkpoints
from velm_cli.engine.optim import Ema
from velm_cli.engine.progress import Progress
from velm_cli.engine.ranks import Ranks
from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed
from velm_cli.models import kept
from velm_cli.place import Place


class Training:
    """A model of one layer with an optimiser that has made a step, and its checkpoints in `folder`."""

    def __init__(self, folder, keep=2):
        self.folder, self.keep = folder, keep
        self.task = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.task.parameters())
        self.task(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()

    def checkpoints(self):
        return Checkpoints(self.folder, Ranks(Place(), torch.device("cpu")), keep=self.keep)

    def save(self, *steps):
        for step in steps:
            self.checkpoints().save(self.task, self.optimizer, None, Progress(step=step))

    def load(self):
        """The step of the checkpoint that was restored (None: there is none), and the notes about others."""
        progress, notes = self.checkpoints().load_newest(self.task, self.optimizer, None)
        return progress.step if progress else None, notes

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())

    def damage(self, step):
        with open(self.folder / f"step-{step:08d}" / "task.safetensors", "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x55")

    def rewrite(self, step, change):
        """Change a whole checkpoint as a stranger can: its checksums are right again afterwards."""
        checkpoint = self.folder / f"step-{step:08d}"
        state = read_sealed(checkpoint / "state.json")
        change(checkpoint, state)
        if isinstance(state.get("sha256"), dict):
            for file in checkpoint.glob("*.safetensors"):
                if file.name in state["sha256"]:
                    state["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        (checkpoint / "state.json").write_text(json.dumps(sealed(state)))


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)


def test_damaged_checkpoints_are_moved_aside_and_do_not_count(training):
    training.save(40, 60)
    training.damage(40)
    training.damage(60)
    step, notes = training.load()
    assert step is None and len(notes) == 2
    assert all("is damaged" in note and "training begins anew" in note for note in notes)
    training.keep = 1
    training.save(7)  # where a signal met it
    assert training.names() == ["damaged-step-00000040", "damaged-step-00000060", "step-00000007"]
    assert training.load() == (7, [])


def test_a_second_damaged_checkpoint_of_one_step_does_not_replace_the_first(training):
    for _ in range(2):
        training.save(3)
        training.damage(3)
        training.load()
    assert training.names() == ["damaged-step-00000003", "damaged-step-00000003.2"]


def test_the_newest_checkpoint_stays_whatever_stands_beside_it(training):
    """Of an older velm, which left damaged ones of later steps where they were."""
    training.keep = 1
    training.save(60)
    training.save(7)
    assert training.names() == ["step-00000007", "step-00000060"]


@pytest.mark.parametrize("name", ["step-00000004.bak", "step-00000004 (copy)", "step-4", "step-"])
def test_copies_of_checkpoints_are_left_alone(training, name):
    training.keep = 1
    training.save(4)
    shutil.copytree(training.folder / "step-00000004", training.folder / name)
    assert training.load() == (4, [])
    training.save(5)
    assert training.names() == sorted(["step-00000005", name])


STATES = {
    "step is text": lambda state: state["progress"].update(step="2"),
    "step is a fraction": lambda state: state["progress"].update(step=2.5),
    "step is true": lambda state: state["progress"].update(step=True),
    "no step": lambda state: state["progress"].update(step=None),
    "negative": lambda state: state["progress"].update(step=-3),
    "of another step": lambda state: state["progress"].update(step=3),
    "endless": lambda state: state["progress"].update(step=2**70),
    "validated never": lambda state: state["progress"].update(validated_step="never"),
    "best is text": lambda state: state["progress"].update(best="high"),
    "seconds are a list": lambda state: state["progress"].update(seconds=[]),
    "more than progress": lambda state: state["progress"].update(lr=1.0),
    "progress is a list": lambda state: state.update(progress=[1]),
    "no progress": lambda state: state.pop("progress"),
    "checksums are a list": lambda state: state.update(sha256=["task.safetensors"]),
    "no checksums": lambda state: state.update(sha256={}),
    "a checksum of another folder": lambda state: state["sha256"].update({"../x": "0"}),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_with_a_right_seal_and_strange_values_is_passed_over(training, name):
    training.save(1, 2)
    training.rewrite(2, lambda checkpoint, state: STATES[name](state))
    step, notes = training.load()
    assert step == 1
    assert len(notes) == 1 and "step-00000002 is damaged" in notes[0] and "\n" not in notes[0]


def test_a_state_that_is_nested_deeply_is_passed_over(training):
    training.save(1, 2)
    (training.folder / "step-00000002/state.json").write_text('{"progress": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert training.load()[0] == 1


def test_a_missing_file_is_damage_even_where_the_state_does_not_name_it(training):
    training.save(1, 2)

    def without_optimizer(checkpoint, state):
        (checkpoint / "optimizer.safetensors").unlink()
        del state["sha256"]["optimizer.safetensors"]

    training.rewrite(2, without_optimizer)
    assert training.load()[0] == 1


def test_weights_that_are_not_numbers_are_passed_over(training):
    training.save(1)
    with torch.no_grad():
        training.task.weight[0, 0] = torch.nan
    training.save(2)  # as an older velm did
    step, notes = training.load()
    assert step == 1 and "weight is not a number" in notes[0]
    assert training.task.weight.isfinite().all()


def tensors(name, change):
    def rewrite(checkpoint, state):
        found = load_file(checkpoint / name)
        change(found)
        save_file(found, checkpoint / name)

    return rewrite


OTHERS = {
    "a renamed weight": tensors("task.safetensors", lambda t: t.update(other=t.pop("bias"))),
    "a missing weight": tensors("task.safetensors", lambda t: t.pop("bias")),
    "another shape": tensors("task.safetensors", lambda t: t.update(bias=torch.ones(5))),
    "another type": tensors("task.safetensors", lambda t: t.update(bias=t["bias"].int())),
    "a renamed moment": tensors("optimizer.safetensors", lambda t: t.update({"bias/x": t.pop("bias/exp_avg")})),
    "a missing moment": tensors("optimizer.safetensors", lambda t: t.pop("bias/exp_avg")),
    "a moment of nothing": tensors("optimizer.safetensors", lambda t: t.update({"x/exp_avg": torch.ones(2)})),
    "a moment of another shape": tensors("optimizer.safetensors", lambda t: t.update({"bias/exp_avg": torch.ones(9)})),
    "no moments": tensors("optimizer.safetensors", lambda t: t.clear()),
    "a short random state": tensors("random.safetensors", lambda t: t.update(cpu=t["cpu"][:9].clone())),
    "a random state of fractions": tensors("random.safetensors", lambda t: t.update(cpu=t["cpu"].float())),
    "no random state": tensors("random.safetensors", lambda t: t.clear()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_tensors_of_another_model_are_refused_before_any_is_used(training, name):
    training.save(1, 2)
    training.rewrite(2, OTHERS[name])
    before = {key: tensor.clone() for key, tensor in training.task.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in training.optimizer.state.values()]
    with pytest.raises(UserError, match=r"step-00000002 is of another model or version") as error:
        training.load()
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in training.task.state_dict().items())
    assert all(map(torch.equal, moments, (state["exp_avg"] for state in training.optimizer.state.values())))
    assert training.names() == ["step-00000001", "step-00000002"]


def test_what_the_last_version_wrote_is_read(training):
    """With the verdict of early stopping, which is decided anew now."""
    training.save(2)
    training.rewrite(2, lambda checkpoint, state: state["progress"].update(stopped_early=True, bad_validations=3))
    progress, notes = training.checkpoints().load_newest(training.task, training.optimizer, None)
    assert progress == Progress(step=2, bad_validations=3) and notes == []


def test_an_average_of_more_than_is_trained_now_is_read(training):
    """Of an older velm, which trained a matrix that is frozen now."""
    wider, narrower = Ema(training.task, 0.9), Ema(training.task, 0.9)
    del narrower.average["bias"]
    training.checkpoints().save(training.task, training.optimizer, wider, Progress(step=1))
    progress, _ = training.checkpoints().load_newest(training.task, training.optimizer, narrower)
    assert progress == Progress(step=1)
    training.checkpoints().save(training.task, training.optimizer, narrower, Progress(step=2))
    with pytest.raises(UserError, match="ema: bias is in one of them only"):
        training.checkpoints().load_newest(training.task, training.optimizer, wider)


def test_a_checkpoint_that_may_not_be_read_stays_where_it_is(tmp_path, monkeypatch):
    """Root may read all, so the system's refusal is stood in for."""
    (tmp_path / "step-00000004").mkdir()

    def refused(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(kept, "read_sealed", refused)
    with pytest.raises(UserError, match=r"step-00000004/state.json: Permission denied; make it readable"):
        Checkpoints(tmp_path, Ranks(Place(), torch.device("cpu")), keep=1).find()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
