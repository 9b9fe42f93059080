"""From shards to a trained model by two commands, and on from any checkpoint with the same bits."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from velm import TINY_MODEL, call

sys.path.insert(0, str(Path(__file__).parent / "unit"))
from test_streaming import sample, write_tar

STREAM = ["dataset=webdataset", "dataset.image_size=32", "dataset.num_val=3", "tokenizer.min_count=1"]
TRAIN = [
    "train", *STREAM, *TINY_MODEL, "vision.image_size=16", "vision.patch_size=8", "dataset.shuffle=12", "run.max_steps=12",
    "run.checkpoint_every=5", "run.keep_checkpoints=9", "run.validate_every=6", "run.accumulation=2", "loss.beta=0.1",
    "loss.gamma=1", "data.crop_scale=0.6", "data.workers=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    for shard in range(4):
        members = [member for number in range(shard * 16, shard * 16 + 16) for member in sample(number)]
        write_tar(folder / f"shards/{shard:05d}.tar", members)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_preprocess_train_resume_and_evaluate(place, capsys):
    assert call("preprocess", *STREAM, "dataset.urls=shards/{00000..00003}.tar", "preview=true") == 0
    said = capsys.readouterr().out
    assert "train       61 images  61 captions" in said
    assert "val          3 images   3 captions" in said
    assert (place / "stores/webdataset/preview.png").exists()
    assert call(*TRAIN, "dry_run=true") == 0
    assert call(*TRAIN, "name=straight") == 0
    assert "61 training images" in capsys.readouterr().out
    runs = place / "runs/train"
    lines = [json.loads(line) for line in (runs / "straight/metrics.jsonl").read_text().splitlines()]
    assert {"cider", "loss"} <= next(line for line in lines if line["kind"] == "validation").keys()

    shutil.copytree(runs / "straight", runs / "killed")
    for later in ("checkpoints/step-00000012", "checkpoints/step-00000010"):
        shutil.rmtree(runs / "killed" / later)
    for written_last in ("DONE", "model.safetensors", "best.safetensors"):
        (runs / "killed" / written_last).unlink()
    assert call(*TRAIN, "name=killed", "dataset.urls=shards", "data.workers=0") == 0
    assert "resumed at step 5" in capsys.readouterr().out
    for file in ("model.safetensors", "best.safetensors"):
        assert (runs / "killed" / file).read_bytes() == (runs / "straight" / file).read_bytes()
    assert call("eval", "checkpoint=runs/train/straight", "split=val", "metrics.names=[cider]") == 0
    assert len(json.loads(next(place.glob("runs/evaluate/*/predictions.json")).read_text())) == 3


def test_mistakes_are_said_in_a_line(place, capsys):
    assert call("preprocess", *STREAM, "dataset.urls=shards/{00000..00003}.tar") == 0
    capsys.readouterr()
    for arguments, message in [
        (["preprocess", "dataset=webdataset"], "dataset.urls=None: give a path, a URL or a list of them"),
        (["train", *STREAM, "dataset.store=none"], "the store none does not exist; run: velm preprocess dataset=webdataset"),
        ([*TRAIN, "data.cache=bf16", "vision.freeze=all"], "data.cache keeps features of a store's images"),
        ([*TRAIN, "dataset.urls=shards/{00000..00001}.tar", "name=fewer"], "dataset.urls names 2 shards, and the store"),
    ]:  # fmt: skip
        assert call(*arguments) == 2, arguments
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
