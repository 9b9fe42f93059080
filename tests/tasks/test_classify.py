"""Labels of drawn scenes through every stage, one of each image and several; and what the task refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from harness import check_task
from velm import TINY, call

import velm_cli

MODEL = ["vision=vit", "vision.width=32", "vision.layers=1", "vision.heads=2", "run.batch_size=4", "run.log_every=1"]


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_from_data_to_page(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    several = kind == "labels"
    references = Path("data/shapes/annotations/instances_val2014.json")
    training = "data/shapes/annotations/instances_train2014.json"
    if not several:  # ids are paths, so that these say the labels
        references, training = Path("right.csv"), "taught.csv"
        for file, part, count in ((references, "test", 8), (Path(training), "train", 24)):
            shapes = ["circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond"] * 3
            rows = [f"{part}/{shape}/{n:06d}.jpg,{shape}" for n, shape in enumerate(shapes[:count])]
            file.write_text("\n".join(["id,label", *rows]))
    done = check_task(
        kind,
        ["task=classify", *(["task.labels=several"] if several else [])],
        ["dataset=shapes", f"dataset.examples={kind}", *TINY],
        primary="mAP" if several else "top1",
        score=["task=classify", f"references={references}", f"training={training}", "mismatch=ignore"],
        blind=["image", "shuffled"],
        predictions="predictions.jsonl",
        model=MODEL,
        capsys=capsys,
    )
    scores = json.loads((done.full / "scores.json").read_text())
    assert scores["floors"] and (done.full / "confusion.csv").exists()
    assert json.loads((done.run / "labels.json").read_text())["spaces"].keys() == {"labels"}
    lines = [json.loads(line) for line in (done.full / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(len(line["scores"]) == (16 if several else 8) for line in lines)
    assert "attention-0-" in (done.full / "report.html").read_text(), "where it looked for its label"
    if several:
        assert all(set(line["labels"]) == {k for k, v in line["scores"].items() if v >= 0.5} for line in lines)
    else:
        assert all(line["labels"] == [max(line["scores"], key=line["scores"].get)] for line in lines)


def test_what_does_not_go_together_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["dataset=shapes", "dataset.examples=labels", "dataset.store=labels", *TINY]
    train = ["train", "task=classify", *MODEL]
    assert call("preprocess", *data) == 0
    assert call("preprocess", "dataset=shapes", "dataset.store=captions", *TINY) == 0
    assert call("preprocess", "dataset=shapes", "dataset.store=asks", "dataset.questions=true", *TINY) == 0
    capsys.readouterr()
    several = ["task.labels=several", *data]
    for options, said in (
        (data, "have several labels: say task.labels=several"),
        (["dataset=shapes", "dataset.store=captions", "dataset.examples=captions", *TINY], "as captions are"),
        (["dataset=shapes", "dataset.store=asks", "dataset.questions=true", *TINY], "task=classify reads no text"),
        ([*several, "text=lstm"], "text has no effect: task=classify reads no text; leave it out"),
        ([*several, "fusion.layers=3"], "fusion.layers has no effect"),
        ([*several, "loss.alpha=1"], "loss.alpha=1: task=classify reads and writes no text"),
        ([*several, "loss.joint=contrastive"], "captions, which labels are not"),
        ([*several, "vision.output=pooled", "task.pool=both"], "vision.output=pooled has none"),
        ([*several, "decode.beams=3"], "decode.beams has no effect: task=classify writes no text"),
        ([*several, "task.labels=some"], "task.labels"),
    ):
        assert call(*train, *options, "dry_run=true") == 2, options
        assert said in capsys.readouterr().err, options
    assert call("train", "task=caption", "text=none", *data, "dry_run=true") == 2
    assert "text=none: task=caption reads or writes texts" in capsys.readouterr().err


def test_a_captioner_goes_on_as_a_classifier(tmp_path, monkeypatch, capsys):
    """Its vision encoder is taken over, text and fusion are left behind; labels that are known again keep their rows."""
    monkeypatch.chdir(tmp_path)
    assert call("train", "dataset=shapes", *TINY, *MODEL, "run.max_steps=2", "name=captions") == 2
    assert call("preprocess", "dataset=shapes", "dataset.store=captions", *TINY) == 0
    text = ["text.width=32", "text.layers=1", "text.heads=2", "fusion.layers=1", "fusion.heads=2"]
    captioning = ["dataset=shapes", "dataset.store=captions", *TINY, *MODEL, *text, "run.max_steps=2", "name=captions"]
    assert call("train", *captioning) == 0
    data = ["dataset=shapes", "dataset.examples=classes", "dataset.store=classes", *TINY]
    assert call("preprocess", *data) == 0
    capsys.readouterr()
    going = [
        "finetune",
        "checkpoint=runs/train/captions",
        "task=classify",
        *data,
        "run.max_steps=2",
        "run.batch_size=4",
    ]
    assert call(*going, "name=classes", "task.head=mlp", "task.pool=both", "vision.freeze=all") == 0
    out = capsys.readouterr().out
    assert "from scratch: label_head" in out and "left behind:" in out and "text" in out.split("left behind:")[1]
    assert call("finetune", "checkpoint=runs/finetune/classes", "run.max_steps=2", "run.batch_size=4", "name=more") == 0
    assert "weights from runs/finetune/classes" in capsys.readouterr().out
    assert call("eval", "checkpoint=runs/finetune/more", "split=val") == 0
    assert call("eval", "checkpoint=runs/finetune/more", "split=val", "task=caption") == 2


def test_labels_in_prompts_and_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = ["text.width=32", "text.layers=1", "text.heads=2", "fusion=none", "run.max_steps=4"]
    assert call("preprocess", "dataset=shapes", "dataset.store=captions", *TINY) == 0
    finder = ["train", "task=retrieve", "dataset=shapes", "dataset.store=captions", *TINY, *MODEL, *text, "name=finds"]
    assert call(*finder) == 0
    for kind in ("classes", "labels"):
        data = ["dataset=shapes", f"dataset.examples={kind}", f"dataset.store={kind}", *TINY]
        assert call("preprocess", *data) == 0
        several = ["task.labels=several"] if kind == "labels" else []
        found = ["eval", "checkpoint=runs/train/finds", "task=classify", *data[:-1], *several, "report.attention=0"]
        prompts = "task.prompts=['a picture of a {}', 'there is a {} in the image']"
        assert call(*found, prompts, "dry_run=true") == 0
        assert call(*found, prompts, f"name={kind}") == 0
        scores = json.loads(Path(f"runs/evaluate/{kind}/scores.json").read_text())
        assert scores["signature"]["prompts"] == ["a picture of a {}", "there is a {} in the image"]
        assert (scores["CF1"] is None and scores["mAP"] > 0) if several else (scores["top1"] is not None)
    captions = ["dataset=shapes", "dataset.store=captions", "dataset.examples=captions", *TINY]
    assert call("eval", "checkpoint=runs/train/finds", "task=classify", *captions[:-1]) == 2
    assert "as captions are" in capsys.readouterr().err
    data = ["dataset=shapes", "dataset.examples=classes", "dataset.store=classes", *TINY]
    assert call("train", "task=classify", *data, *MODEL, "run.max_steps=2", "name=classes") == 0

    images = sorted(Path("data/shapes/classes/test").rglob("*.jpg"))
    finds, classes = velm_cli.load("runs/train/finds", "cpu"), velm_cli.load("runs/train/classes", "cpu")
    assert "classify" not in finds.can and classes.can == ("classify",)
    one = finds.classify(images[0], ["star", "red heart"], prompts=["a {}", "the {}"], top=2)
    assert one.keys() == {"star", "red heart"} and abs(sum(one.values()) - 1) < 1e-5
    vectors = finds.embed_texts(["a star", "the star", "a red heart", "the red heart"]).reshape(2, 2, -1).mean(axis=1)
    cosines = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ finds.embed_images(images[0])
    assert max(one, key=one.get) == ("star", "red heart")[int(cosines.argmax())]
    all_of_them = classes.classify(images, top=3)
    assert len(all_of_them) == 8 and all(
        list(each.values()) == sorted(each.values(), reverse=True) for each in all_of_them
    )
    assert call("eval", "checkpoint=runs/train/classes", "run.precision=fp32", "name=own", "report.attention=0") == 0
    lines = [json.loads(line) for line in Path("runs/evaluate/own/predictions.jsonl").read_text().splitlines()]
    by_id = {line["id"]: line["scores"] for line in lines}
    for path, each in zip(images, all_of_them, strict=True):
        scores = by_id[str(path.relative_to("data/shapes/classes"))]
        assert each == pytest.approx({label: scores[label] for label in each}, abs=2e-3)
    pair = classes.classify(images[0], ["star", "heart"])
    assert pair.keys() == {"star", "heart"} and abs(sum(pair.values()) - 1) < 1e-5
    for model, labels, more, said in (
        (finds, None, {}, "give at least two labels"),
        (finds, ["a", "b"], {"prompts": ["photo"]}, "has no {}"),
        (classes, ["dog", "star"], {}, "'dog' is not among the 8"),
        (classes, None, {"prompts": ["a {}"]}, "has learned its labels"),
        (classes, "star", {}, "lists of texts"),
    ):
        with pytest.raises(velm_cli.UserError, match=re.escape(said)):
            model.classify(images[0], labels, **more)
