"""What every task must do, from data to page: one function that a test calls with the options of its task.

Commands run in this process, which is quicker; a SIGTERM is a real one.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from velm import TINY_MODEL, call

from velm_cli.engine import loop
from velm_cli.metrics.translation_scores import LOOK_UP

STEPS, KILLED_AFTER = 6, 4
ALIKE = "run.precision=fp32"  # where predictions are compared
TRAINING = [
    ALIKE,
    f"run.max_steps={STEPS}",
    "run.checkpoint_every=3",
    "run.validate_every=3",
    "optim.lr=0.01",
]


@dataclass(frozen=True)
class Checked:
    """What `check_task` leaves behind, for further checks: folders of the run and of its evaluations."""

    run: Path
    full: Path
    blind: dict[str, Path] = field(default_factory=dict)  # by eval.blind


def check_task(
    name: str,
    task: Sequence[str],
    data: Sequence[str],
    *,
    primary: str,
    score: Sequence[str],
    blind: Sequence[str],
    evaluation: Sequence[str] = (),
    predictions: str = "predictions.json",
    model: Sequence[str] = TINY_MODEL,
    capsys: pytest.CaptureFixture[str],
) -> Checked:
    """Take the task through every stage, in the working directory; `name` is that of its run.

    `task` and `data` are options; `primary` is the score that there must be; `score` are the options of `velm score`
    that name what the test part is compared with, `evaluation` further ones of `velm eval`; `predictions` is the file
    that an evaluation writes; `model` are options of the model.
    """
    train = ["train", *task, *data, *model, *TRAINING]
    assert call("preprocess", *data) == 0
    run = Path("runs/train", name)
    assert call(*train, f"name={name}", "dry_run=true") == 0
    assert not run.exists(), "a dry run writes nothing"

    assert call(*train, f"name={name}") == 0
    killed = Path("runs/train", f"{name}-killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", _terminating(loop.train_step, KILLED_AFTER))
        assert call(*train, f"name={killed.name}") == 0
    assert (killed / "PREEMPTED").read_text().startswith(f"SIGTERM at step {KILLED_AFTER}")
    assert call(*train, f"name={killed.name}") == 0
    assert f"resumed at step {KILLED_AFTER}" in capsys.readouterr().out
    assert _curve(killed) == _curve(run) and len(_curve(run)) >= STEPS
    for file in ("model.safetensors", "best.safetensors", predictions, "labels.json"):
        assert (run / file).exists() == (killed / file).exists()
        assert not (run / file).exists() or (run / file).read_bytes() == (killed / file).read_bytes(), file

    evaluate = ["eval", f"checkpoint={run}", ALIKE, *evaluation]
    before = set(Path("runs").rglob("*"))
    assert call(*evaluate, "dry_run=true") == 0
    assert set(Path("runs").rglob("*")) == before, "a dry run writes nothing"
    full = evaluated(*evaluate)
    scores = json.loads((full / "scores.json").read_text())
    assert scores["primary"] == primary and "blind" not in scores["signature"]
    page = (full / "report.html").read_text()
    assert page.count('id="thumbnail-') >= 8, "an image of the test part has no picture"

    again = Path("scored", name)
    assert call("score", *score, f"predictions={full / predictions}", f"out={again}") == 0
    theirs = json.loads((again / "scores.json").read_text())
    keys = [column["key"] for column in scores["columns"]] if scores["task"] != "caption" else [primary]
    for key in keys:
        assert theirs.get(key) == scores.get(key), key
    floors = scores.get("floors") or {}
    if scores["task"] == "translate":  # velm score is given no training sentences
        assert LOOK_UP in floors
        floors = {rule: values for rule, values in floors.items() if rule != LOOK_UP}
    assert (theirs.get("floors") or {}) == floors

    controls = {}
    for kind in blind:
        folder = controls[kind] = evaluated(*evaluate, f"eval.blind={kind}", "report.page=false")
        assert folder.name.startswith(f"{full.name}-") and not (folder / "report.html").exists()
        told = json.loads((folder / "scores.json").read_text())
        assert told["signature"]["blind"] and told["weights"] == scores["weights"]
    capsys.readouterr()
    assert call("report", str(full), *map(str, controls.values())) == 0
    header, *rows = capsys.readouterr().out.rstrip().splitlines()
    assert len(rows) == 1, "a control is no row"
    assert all(heading in header for heading in ("no image", "shuffled", "no source")[: len(blind)])
    assert rows[0].count("(+") + rows[0].count("(-") == len(blind)
    return Checked(run, full, controls)


def evaluated(*command: str) -> Path:
    """The folder that the command makes."""
    place = Path("runs/evaluate")
    before = set(place.iterdir()) if place.exists() else set()
    assert call(*command) == 0
    (folder,) = set(place.iterdir()) - before
    assert (folder / "DONE").exists()
    return folder


def _terminating(train_step, after: int):
    """`train_step` that sends this process a SIGTERM in its step number `after`."""
    steps = []

    def step(*args):
        steps.append(1)
        if len(steps) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*args)

    return step


def _curve(run: Path) -> list[dict]:
    """What a run logged, without times and sizes."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    timed = ("captions_per_s", "images_per_s", "data_wait", "utilisation", "seconds", "crc32")
    return [
        {key: value for key, value in line.items() if key not in timed} for line in lines if line["kind"] != "start"
    ]
