"""Sentences about one and two drawn scenes through every stage, and what their pages and files hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from harness import check_task
from velm import TINY, TINY_MODEL, call

from velm_cli.metrics.significance import bootstrap
from velm_cli.report.evaluations import read_evaluation

DATA = ["dataset=shapes", "dataset.examples=statements", *TINY]
MODEL = ["task=reason", "vision.images=2"]
OF = "data/shapes/statements"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_stage(place, capsys):
    score = ["task=reason", f"references={OF}/test.json", f"training={OF}/train.json"]
    checked = check_task(
        "judge", MODEL, DATA, primary="accuracy", score=score, blind=("image", "shuffled", "source"),
        predictions="predictions.csv", capsys=capsys,
    )  # fmt: skip
    said = {row[0]: row[1] for row in csv.reader((checked.full / "predictions.csv").open())}
    listed = {row["id"]: row for row in json.loads((checked.full / "predictions.json").read_text())}
    assert said == {name: row["prediction"] for name, row in listed.items()}
    assert all((row["true"] > 0.5) == (row["prediction"] == "true") for row in listed.values())
    records = [json.loads(line) for line in Path(OF, "test.json").read_text().splitlines()]
    right = [said[record["identifier"]] == record["label"].lower() for record in records]
    evaluation = read_evaluation(checked.full)
    assert evaluation.scores["accuracy"] == pytest.approx(sum(right) / len(right))
    assert evaluation.floors["always true"] == {"accuracy": 0.5, "consistency": 0.0}
    intervals = {key: bootstrap(each) for key, each in evaluation.summands.items()}
    assert intervals == {key: pytest.approx(ends) for key, ends in evaluation.intervals.items()}, "sets are drawn whole"
    page = (checked.full / "report.html").read_text()
    assert records[0]["sentence"] in page and records[0]["kind"] in page
    again = ["score", *score, f"predictions={checked.full / 'predictions.json'}"]
    capsys.readouterr()
    assert call(*again, f"vs={checked.blind['image'] / 'predictions.csv'}") == 0
    assert "Consistency" in capsys.readouterr().out


def test_mistakes_in_a_line(place, capsys):
    assert call("preprocess", *DATA) == 0
    train = ["train", *DATA, *TINY_MODEL, "run.max_steps=2"]
    for options, said in (
        (["task=reason", "vision.images=2", "loss.joint=contrastive"], "task=reason"),
        (["task=reason"], "vision.images=2"),
    ):
        capsys.readouterr()
        assert call(*train, *options) == 2, options
        assert said in capsys.readouterr().err
    questions = ["dataset=shapes", "dataset.questions=true", *TINY]
    assert call("preprocess", *questions) == 0
    capsys.readouterr()
    assert call("train", *questions, *TINY_MODEL, "task=reason") == 2
    assert (
        "no example of the training part of stores/shapes-questions is labelled true or false"
        in capsys.readouterr().err
    )
