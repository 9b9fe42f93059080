"""Clips from the command line: refused without places, trained with them, scored, with a page that shows all frames."""

from __future__ import annotations

import json

from velm import TINY, TINY_MODEL, call

MOTION = ["dataset=shapes", "dataset.examples=motion", "dataset.frames=3", *TINY]


def test_moving_scenes_are_captioned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("preprocess", *MOTION) == 0
    train = ["train", *MOTION, *TINY_MODEL, "run.max_steps=2", "name=clips"]
    assert call(*train) == 2
    said = capsys.readouterr().err
    assert "examples of up to 3 images, and vision.images=1: set vision.images=3, which tells them apart, or 0" in said
    assert call(*train, "vision.images=3", "dry_run=true") == 0
    assert call(*train, "vision.images=3") == 0
    assert call("eval", "checkpoint=runs/train/clips", "split=test", "report.attention=2", "name=clips") == 0
    assert "moving objects" in capsys.readouterr().out
    facts = json.loads((tmp_path / "runs/evaluate/clips/facts.json").read_text())
    assert facts["objects"] >= 8 and 0 <= facts["motion"] <= 1
    assert (tmp_path / "runs/evaluate/clips/report.html").stat().st_size > 10_000
    asked = ["dataset.examples=motion_questions", "dataset.frames=3", *TINY]
    assert call("preprocess", "dataset=shapes", *asked) == 0
    tune = ["finetune", "checkpoint=runs/train/clips", "task=vqa", *asked, "run.max_steps=2", "name=answers"]
    assert call(*tune, "dataset.store=stores/shapes-motion_questions", "run.batch_size=4") == 0
    assert (tmp_path / "runs/finetune/answers/scores.json").exists()
