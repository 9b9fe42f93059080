"""Retrieval on drawn scenes through every stage; candidates judged again; a captioner that finds."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from harness import ALIKE, Checked, check_task, evaluated
from PIL import Image
from test_distributed import torchrun
from velm import TINY, TINY_MODEL, call

from velm_cli.metrics.embeddings import read_embeddings
from velm_cli.metrics.retrieval import figures, rank_both_ways

DATA = ["dataset=shapes", *TINY]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieve")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


DONE: list[Checked] = []


@pytest.fixture
def checked(place, capsys) -> Checked:
    """The run and its evaluations; made for the first test that asks, whichever process it is in."""
    if not DONE:
        DONE.append(
            check_task(
                "found",
                ["task=retrieve", "loss.joint=matching", "run.batch_size=8"],
                DATA,
                primary="rsum",
                score=["task=retrieve"],
                blind=("image", "shuffled"),
                predictions="embeddings.npz",
                capsys=capsys,
            )
        )
    return DONE[0]


def test_every_stage(place, checked, capsys):
    done = checked
    scores = json.loads((done.full / "scores.json").read_text())
    found = read_embeddings(done.full / "embeddings.npz", "e")
    ranks = rank_both_ways(found.image_IE, found.text_CE, found.image_of_C)
    for key, value in figures(ranks).items():
        assert scores[key] == pytest.approx(value), key
    grey = json.loads((done.blind["image"] / "scores.json").read_text())
    assert grey["t2i_median_rank"] == pytest.approx((scores["examples"] + 1) / 2), "all images are alike"
    assert call("eval", f"checkpoint={done.run}", "eval.blind=source") == 2
    assert "has no source" in capsys.readouterr().err


def test_candidates_are_judged_again_by_any_number_of_processes(place, checked):
    run = checked.run
    again = evaluated("eval", f"checkpoint={run}", ALIKE, "task.rerank=3", "report.page=false")
    assert "rerank3" in again.name
    scores = json.loads((again / "scores.json").read_text())
    assert scores["signature"]["rerank"] == "the best 3 by cosine / temperature + matching logit"
    options = [ALIKE, "task.rerank=3", "report.page=false", "name=two", "decode.batch_size=3"]
    subprocess.run(torchrun(2, "eval", f"checkpoint={run}", *options), check=True, cwd=place)
    two = json.loads((place / "runs/evaluate/two/scores.json").read_text())
    keys = [column["key"] for column in scores["columns"]]
    np.testing.assert_allclose([two[key] for key in keys], [scores[key] for key in keys], rtol=1e-6)


def test_what_could_not_be_scored_is_refused_before_the_work(place, checked, capsys):
    line = "task.fold=7: 8 images are not a whole number of folds of 7; 0 takes all together"
    for dry in ("true", "false"):
        assert call("train", "task=retrieve", *DATA, *TINY_MODEL, "task.fold=7", "name=folds", f"dry_run={dry}") == 2
        assert line in capsys.readouterr().err and not (place / "runs/train/folds").exists()
        assert call("eval", f"checkpoint={checked.run}", "task.fold=7", "name=folds", f"dry_run={dry}") == 2
        assert line in capsys.readouterr().err and not (place / "runs/evaluate/folds").exists()


def test_questions_are_no_captions(place, checked, capsys):
    asked = [*DATA, "dataset.questions=true", "dataset.store=stores/asked", "dataset.root=data/asked"]
    assert call("preprocess", *asked) == 0
    line = "task=retrieve compares images with captions, and the examples of stores/asked are questions with answers"
    elsewhere = [word for word in asked if not word.startswith("tokenizer.")]
    for words in (["train", "task=retrieve", *TINY_MODEL], ["eval", f"checkpoint={checked.run}", "dry_run=true"]):
        assert call(*words, *elsewhere) == 2
        assert line in capsys.readouterr().err


def test_images_without_captions_are_embedded(place, checked):
    (place / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(place / f"photos/{number}.png")
    photos = ["dataset=folder", "dataset.root=photos", "dataset.store=stores/photos"]
    assert call("preprocess", *photos) == 0
    for options in ([], ["task.rerank=3"], ["task.rerank=3", "task.fold=1"]):
        folder = evaluated("eval", f"checkpoint={checked.run}", *photos, *options)
        with np.load(folder / "embeddings.npz") as found:
            assert found["image"].shape[0] == 3 and found["text"].shape[0] == 0
        assert not (folder / "scores.json").exists()
    assert call("eval", f"checkpoint={checked.run}", *photos, "task.rerank=3", "task.fold=7") == 2


def test_a_captioner_with_a_joint_loss_finds_and_others_say_why_not(place, checked, capsys):
    steps = ["run.max_steps=2", ALIKE]
    assert call("train", *DATA, *TINY_MODEL, *steps, "loss=joint", "name=both") == 0
    folder = evaluated("eval", "checkpoint=runs/train/both", "task=retrieve", "report.page=false")
    assert json.loads((folder / "scores.json").read_text())["primary"] == "rsum"
    for dry in ("true", "false"):
        options = ["task=retrieve", "task.rerank=5", f"dry_run={dry}"]
        assert call("eval", "checkpoint=runs/train/both", *options) == 2
        assert "judges by the matching head" in capsys.readouterr().err
    assert call("eval", "checkpoint=runs/train/both", "task=retrieve", "decode.beams=3") == 2
    assert "decode.beams has no effect: task=retrieve writes no text" in capsys.readouterr().err
    assert call("train", *DATA, *TINY_MODEL, *steps, "name=writes") == 0
    assert call("eval", "checkpoint=runs/train/writes", "task=retrieve") == 2
    assert "cannot retrieve: it was trained without an L_joint" in capsys.readouterr().err
    assert call("train", *DATA, *TINY_MODEL, *steps, "task=retrieve", "loss=caption") == 2
    assert "task=retrieve finds by L_joint" in capsys.readouterr().err
