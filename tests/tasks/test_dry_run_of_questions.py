"""dry_run=true counts the work of what goes in with the images, and of labels."""

import re

import pytest
from velm import TINY, TINY_MODEL, call

from velm_cli.place import Place

DATA = ["dataset=shapes", "dataset.questions=true", *TINY]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", *DATA) == 0
    return folder


def test_the_work_of_a_question_is_estimated(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    work = {}
    for more in ([], ["task.answers=9"], ["loss.beta=0.1"], ["text.layers=2"]):
        capsys.readouterr()
        asked = [option for option in TINY_MODEL if option.partition("=")[0] not in {m.partition("=")[0] for m in more}]
        assert call("train", "task=vqa", *DATA, *asked, *more, "run.batch_size=64", "dry_run=true") == 0
        said = capsys.readouterr().out
        assert re.search(r"training set +\d+ questions", said) and "per step      64 questions" in said
        work[" ".join(more)] = float(re.search(r"([\d.]+) GFLOP", said)[1])
    assert 0 < work["task.answers=9"] <= work[""] <= work["loss.beta=0.1"] and work[""] < work["text.layers=2"]


def test_a_batch_that_may_have_one_image_only_is_refused_with_batch_normalisation(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    train = ["train", "task=vqa", *DATA, *(o for o in TINY_MODEL if not o.startswith("vision")), "dry_run=true"]
    assert call(*train) == 2
    line = (
        "run.batch_size=4 can be examples of one image (data.examples_per_image=8): the batch normalisation of convnet"
    )
    assert line in capsys.readouterr().err
    assert call(*train, "data.examples_per_image=3") == 0 and call(*train, "run.batch_size=9") == 0


@pytest.mark.parametrize("answer", ["classify", "generate"])
def test_every_process_needs_two_images(place, monkeypatch, capsys, answer):
    """Its rows of a batch stand side by side, whatever the losses."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("velm_cli.stages.fitting.place", lambda: Place(0, 2))
    model = [option for option in TINY_MODEL if not option.startswith(("vision", "run.batch_size"))]
    train = ["train", "task=vqa", f"task.answer={answer}", *DATA, *model, "dry_run=true"]
    assert call(*train, "run.batch_size=16") == 2
    assert "run.batch_size=16, 8 for each of 2 processes, can be examples of one image" in capsys.readouterr().err
    assert call(*train, "run.batch_size=18") == 0
