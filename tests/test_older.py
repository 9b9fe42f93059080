"""What an older velm wrote, this one reads: a store and a run folder of commit c40948e (tests/older)."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from velm import call

MADE = Path(__file__).parent / "older" / "c40948e.tar.gz"
ON_CPU = ["run.device=cpu", "metrics=fast", "report.page=false"]
TRAINING = [
    "train", "dataset=shapes", "dataset.store=stores/drawn", "tokenizer.min_count=1", "vision=convnet",
    "vision.image_size=32", "vision.width=16", "vision.freeze=all", "text=gru", "text.width=16", "fusion=concat",
    "run.device=cpu", "metrics=fast", "run.batch_size=8", "run.log_every=20", "run.checkpoint_every=60",
    "run.validate_every=60", "optim.lr=0.02", "run.keep_checkpoints=1", "name=old",
]  # fmt: skip


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder with that store and those runs, as the working folder."""
    with tarfile.open(MADE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predictions(folder: Path) -> list[dict]:
    return json.loads((folder / "predictions.json").read_text())


def test_its_evaluation_is_complete_and_is_not_made_again(made, capsys):
    before = {path: path.read_bytes() for path in (made / "runs/evaluate/old").iterdir() if path.name != ".lock"}
    assert call("eval", "checkpoint=runs/train/old", "run.device=cpu", "metrics=fast", "name=old") == 0
    assert "is complete" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_an_option_that_it_did_not_have_makes_another_evaluation(made, capsys):
    before = (made / "runs/evaluate/old/scores.json").read_bytes()
    assert call("eval", "checkpoint=runs/train/old", *ON_CPU, "name=old", "eval.blind=image") == 0
    assert "is complete" not in capsys.readouterr().out
    assert (made / "runs/evaluate/old.2/DONE").exists()
    assert (made / "runs/evaluate/old/scores.json").read_bytes() == before


def test_it_writes_the_same_captions(made):
    assert call("eval", "checkpoint=runs/train/old", *ON_CPU, "name=now") == 0
    assert predictions(made / "runs/evaluate/now") == predictions(made / "runs/evaluate/old")


def test_the_same_command_finds_it_complete_or_goes_on(made, capsys):
    scores = (made / "runs/train/old/scores.json").read_bytes()
    assert call(*TRAINING, "run.max_steps=120") == 0
    assert json.loads((made / "runs/train/old/scores.json").read_bytes())["CIDEr"] == json.loads(scores)["CIDEr"]
    assert call(*TRAINING, "run.max_steps=140") == 0
    assert "resumed at step 120" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (made / "runs/train/old/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 140
    assert call("eval", "checkpoint=runs/train/old", *ON_CPU, "name=longer") == 0


def test_it_is_finetuned_also_after_a_move(made, capsys):
    shutil.move(made / "runs/train/old", made / "elsewhere")
    assert (
        call("finetune", "checkpoint=elsewhere", "run.device=cpu", "metrics=fast", "run.max_steps=2", "name=more") == 0
    )
    assert "best.safetensors" in (made / "runs/finetune/more/sources.json").read_text()


def test_all_bytes_of_its_store_are_known(made, capsys):
    assert call("doctor", "store=stores/drawn") == 0
    assert "40 records, all bytes are as they were written" in capsys.readouterr().out
