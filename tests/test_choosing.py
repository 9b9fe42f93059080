"""Which weights a run keeps as its best, and when its patience ends: validations with scores that are given."""

from __future__ import annotations

import json
import os
import signal

import pytest
from safetensors.torch import load_file
from velm import TINY, TINY_MODEL, call

from velm_cli.engine.folder import best_figure
from velm_cli.engine.loop import Validation
from velm_cli.engine.progress import Progress
from velm_cli.objectives.weights import parse_weight, term_weights
from velm_cli.stages import train

SCORES = {2: 0.5, 4: 0.4, 6: 0.3, 8: 0.1, 10: 0.2, 12: 0.15, 14: 0.12, 16: 0.11, 18: 0.9, 20: 0.1}
COMMAND = [
    "train", *TINY, *TINY_MODEL, "vision.conv_stem=false", "metrics.names=[cider]", "run.max_steps=20",
    "run.validate_every=2", "run.checkpoint_every=2", "run.keep_checkpoints=40", "run.patience=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choosing")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield folder / "runs/train"


@pytest.fixture
def scored(monkeypatch):
    """Steps validated so far; the scores are those of SCORES. A step in `cut` gets a signal the first time."""
    seen: list[int] = []
    cut: set[int] = set()

    def figures(run, data, learner, step, stop):
        if step in cut:
            cut.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(step)
        return Validation({"loss": 1.0, "cider": SCORES[step]}, SCORES[step])

    monkeypatch.setattr(train, "validated", figures)
    return seen, cut


def progress(folder) -> Progress:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return Progress(**json.loads((newest / "state.json").read_text())["progress"])


def same_weights(folder, step: int) -> bool:
    best = load_file(folder / "best.safetensors")
    task = load_file(folder / "checkpoints" / f"step-{step:08d}" / "task.safetensors")
    return all((best[name] == task[name]).all() for name in best)


def test_without_schedules_the_best_of_all_is_kept_and_patience_counts_from_it(place, scored, capsys):
    assert call(*COMMAND, "name=plain") == 0
    assert scored[0] == [2, 4, 6, 8]
    assert progress(place / "plain").best_step == 2 and same_weights(place / "plain", 2)
    assert "schedules" not in capsys.readouterr().out
    assert best_figure(place / "plain") == 0.5


@pytest.mark.parametrize(
    "schedule", ["loss.alpha=step(0,1,8)", "loss.gamma=linear(0,0.1,8)", "loss.scheduled_sampling=linear(0,0.2,8)"]
)
def test_while_a_schedule_moves_nothing_is_the_best_and_patience_waits(place, scored, capsys, schedule):
    """Step 10 is the first validation of weights that saw a step at the end of the schedule."""
    name = schedule.partition("=")[0]
    assert call(*COMMAND, schedule, "loss.beta=0.1", f"name={name}") == 0
    folder = place / name
    assert scored[0] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert progress(folder).best_step == 10 and same_weights(folder, 10)
    said = [line for line in capsys.readouterr().out.splitlines() if "validation:" in line]
    assert ["schedules move until step 8: newest weights kept, patience not counted" in line for line in said] == (
        [True] * 4 + [False] * 4
    )
    assert best_figure(folder) == 0.2, "what a sweep is told of a finished point"


def test_a_schedule_over_the_whole_run_keeps_the_newest_weights(place, scored):
    assert call(*COMMAND, "loss.alpha=linear(0.1,1,20)", "name=whole") == 0
    assert scored[0] == list(range(2, 21, 2))
    assert progress(place / "whole").best_step == 20 and same_weights(place / "whole", 20)
    assert best_figure(place / "whole") == 0.1


def test_an_interrupted_run_decides_as_one_that_was_not(place, scored, capsys):
    seen, cut = scored
    cut |= {8, 12, 16}
    command = [*COMMAND, "loss.alpha=step(0,1,8)", "loss.beta=0.1", "name=cut"]
    for _ in range(3):
        assert call(*command) == 0
        assert (place / "cut/PREEMPTED").exists()
    assert call(*command) == 0
    assert (place / "cut/DONE").exists()
    assert sorted(set(seen)) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert progress(place / "cut").best_step == 10 and same_weights(place / "cut", 10)


def test_where_schedules_end():
    assert parse_weight("loss.alpha", "0.5").settled(10.0) == 0
    assert parse_weight("loss.alpha", "learned").settled(10.0) == 0
    assert parse_weight("loss.alpha", "linear(1,1,500)").settled(10.0) == 0
    assert parse_weight("loss.alpha", "step(0,1,150)").settled(10.0) == 150
    epochs = parse_weight("loss.alpha", "cosine(1,0.1,5ep)")
    assert epochs.settled(6.5) == 32.5
    assert epochs.at(32, 6.5) > 0.1 == epochs.at(33, 6.5)


JUDGES = ["loss.alpha=0", "fusion=co_attention", "loss.joint=matching", "run.max_steps=3", "run.validate_every=0"]


def validation(folder) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "validation"][-1]


def test_without_text_validation_weighs_the_losses_as_training_does(place, capsys):
    assert call(*COMMAND, *JUDGES, "loss.beta=linear(1,0.05,2)", "loss.gamma=2", "name=fixed") == 0
    assert "best        by the lowest validation loss: 0.05 loss_image + 2 loss_joint" in capsys.readouterr().out
    found = validation(place / "fixed")
    assert found["loss"] == pytest.approx(0.05 * found["loss_image"] + 2 * found["loss_joint"], rel=1e-6)

    learned = ["loss.beta=learned", "loss.gamma=learned", "optim.lr=0.05", "optim.warmup_steps=0"]
    assert call(*COMMAND, *JUDGES, *learned, "name=uncertain") == 0
    assert "exp(-s) loss_image + s + exp(-s) loss_joint + s" in capsys.readouterr().out
    found = validation(place / "uncertain")
    state = load_file(place / "uncertain/model.safetensors")
    s = {name: state[f"log_variance.{name}"] for name in ("image", "joint")}
    wanted = sum(float((-s[name]).exp() * found[f"loss_{name}"] + s[name]) for name in s)
    assert all(abs(float(value)) > 0.01 for value in s.values())
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)


def test_runs_are_told_of_negatives_that_they_lack(place, capsys):
    from velm_cli import configs
    from velm_cli.stages.headline import implications

    config = configs.load_run_config(place / "fixed")
    weights = term_weights(config.loss)
    assert len(list(implications(config, weights, 1))) == 1  # how the best is chosen
    config.run.batch_size, config.run.accumulation = 8, 4
    lines = list(implications(config, weights, 2))
    assert "each has 7 negatives, and would have 31 with run.batch_size=32 run.accumulation=1" in lines[1]
    assert "hard negatives among the 4 images of one process" in lines[2]
    weights["joint"] = parse_weight("loss.gamma", "0")
    assert list(implications(config, weights, 2)) == []
