"""Exported folders: they need neither run nor store nor the pretrained models, and write the same words."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import folder, language_model
from velm import TINY, TINY_MODEL, call

import velm_cli

WORDS = ["a red circle above two blue stars", "there is one green ring on a plain background"]
SHORT = ["run.batch_size=4", "run.log_every=1", "run.validate_images=4", "optim.lr=0.01", "metrics.names=[bleu,cider]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("export")
    language_model(where / "lm", WORDS)
    shutil.copytree(folder("dinov2"), where / "secret-place/dino")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        own = ["train", "dataset=shapes", *TINY, *TINY_MODEL, *SHORT, "run.max_steps=12", "loss.gamma=0.3"]
        assert call(*own, "name=own") == 0
        lora = ["train", "dataset=shapes", *TINY, *SHORT, "vision=dinov2", f"vision.name={where}/secret-place/dino"]
        lora += ["vision.image_size=32", "vision.freeze=all", "text=gpt2", "text.name=lm", "text.lora_rank=2"]
        assert call(*lora, "fusion=gated", "fusion.heads=2", "run.max_steps=8", "name=lora") == 0
        yield where


@pytest.fixture(scope="module")
def images(place):
    return sorted(map(str, (place / "data/shapes").rglob("*.jpg")))[:8]


def export(run, out, *options):
    return call("export", f"checkpoint=runs/train/{run}", f"out={out}", *options)


def elsewhere(where: Path, exported: Path, images: list[str]) -> list[str]:
    """Captions by a process that sees the exported folder and the images alone."""
    where.mkdir()
    shutil.move(exported, where / "model")
    for image in images:
        shutil.copy(image, where)
    code = (
        "import json, sys, velm_cli\nmodel = velm_cli.load('model', 'cpu', precision='fp32')\n"
        "print(json.dumps(model.caption(sys.argv[1:], beams=2)))"
    )
    env = {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS", "PYTHONPATH") if key in os.environ}
    ran = subprocess.run(
        [sys.executable, "-c", code, *(Path(image).name for image in images)],
        cwd=where, env={**env, "HF_HUB_OFFLINE": "1", "HOME": str(where)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("run", ["own", "lora"])
def test_the_same_words_without_run_store_and_originals(run, place, images, tmp_path):
    before = velm_cli.load(f"runs/train/{run}", "cpu", precision="fp32")  # merged LoRA rounds otherwise in bf16
    captions = before.caption(images, beams=2)
    assert export(run, "given/away") == 0
    files = {path.name for path in Path("given/away").iterdir()}
    assert {"config.yaml", "sources.json", "tokenizer", "model.safetensors", "README.md", "export.json"} <= files
    assert not files & {"checkpoints", "frozen.safetensors", "best.safetensors", "metrics.jsonl", "environment.json"}
    hidden = [place / name for name in ("runs", "stores", "lm", "secret-place")]
    try:
        for path in hidden:
            path.rename(path.with_name(f"{path.name}.gone"))
        assert elsewhere(tmp_path / "else", Path("given/away"), images) == captions
    finally:
        for path in hidden:
            path.with_name(f"{path.name}.gone").rename(path)


def test_nothing_of_the_machine_is_in_it(place):
    assert export("lora", "private") == 0
    assert export("own", "private2") == 0
    for file in [*Path("private").rglob("*"), *Path("private2").rglob("*")]:
        if file.is_file() and file.suffix != ".safetensors":
            text = file.read_text()
            assert str(place) not in text and "secret-place" not in text, file
            assert not re.search(r"(?<![\w.])/(home|tmp|root|work)/", text), file
    card = Path("private/README.md").read_text()
    assert "vision: dino (kept as it was)" in card and "text: lm (trained further)" in card
    assert "velm train dataset=shapes" in card and "CIDEr" in card


def test_low_rank_updates_are_merged(place):
    assert export("lora", "merged") == 0
    state = load_file("merged/model.safetensors")
    assert not [name for name in state if "lora" in name or "base_layer" in name]
    assert "lora_rank: 0" in Path("merged/config.yaml").read_text()


def test_what_is_exported_is_evaluated_and_finetuned(place, capsys):
    assert export("own", "again") == 0
    score = ["metrics.names=[bleu]", "report.page=false", "limit=4", "dataset.store=stores/shapes"]
    assert call("eval", "checkpoint=again", "name=exported", *score) == 0
    assert call("eval", "checkpoint=runs/train/own", "name=trained", *score) == 0
    both = [json.loads(Path(f"runs/evaluate/{name}/predictions.json").read_text()) for name in ("exported", "trained")]
    assert both[0] == both[1]
    more = ["dataset.root=data/shapes", "run.max_steps=2", "name=further", *SHORT]
    assert call("finetune", "checkpoint=again", *more) == 0, capsys.readouterr().err
    model = velm_cli.load("runs/finetune/further", "cpu")
    assert set(model.can) == {"caption", "embed"}


def test_what_only_the_run_before_has_learned_is_still_there(place, images):
    options = ["loss.alpha=0", "loss.gamma=1", "run.max_steps=2", "name=joint", *SHORT]
    assert call("finetune", "checkpoint=runs/train/own", *options) == 0
    assert call("export", "checkpoint=runs/finetune/joint", "out=joint") == 0
    exported, trained = velm_cli.load("joint", "cpu"), velm_cli.load("runs/finetune/joint", "cpu")
    assert exported.can == trained.can == ("caption", "embed")
    assert (exported.embed_images(images) == trained.embed_images(images)).all()
    assert exported.caption(images) == trained.caption(images)


@pytest.mark.parametrize(("dtype", "smaller"), [("bf16", 0.55), ("fp16", 0.55), ("int8", 0.45)])
def test_smaller_types(dtype, smaller, place, images):
    assert export("own", "whole") == 0
    assert export("own", dtype, f"dtype={dtype}") == 0
    sizes = [Path(each, "model.safetensors").stat().st_size for each in (dtype, "whole")]
    assert sizes[0] < smaller * sizes[1]
    whole, less = (velm_cli.load(each, "cpu") for each in ("whole", dtype))
    before, after = whole._able.learner.state_dict(), less._able.learner.state_dict()
    for name, tensor in before.items():
        assert after[name].dtype is tensor.dtype
        if tensor.is_floating_point():
            assert (after[name] - tensor).abs().max() <= 0.01 * tensor.abs().max() + 1e-9, name
    assert len(less.caption(images)) == len(images)
    assert f"before they were made {dtype}" in Path(dtype, "README.md").read_text()


def test_values_beyond_half_precision_are_refused(place, capsys, monkeypatch):
    from velm_cli.exporting import slim

    monkeypatch.setattr(slim, "_state", lambda able: {"model.x": torch.tensor([1e6])})
    assert export("own", "large", "dtype=fp16") == 2
    assert "model.x has values beyond its range; take bf16" in capsys.readouterr().err
    assert not Path("large").exists() and not list(Path().glob(".large*"))


def test_only_its_own_folders_are_replaced(place, capsys):
    assert export("own", "mine") == 0
    first = Path("mine/export.json").read_text()
    assert export("own", "mine", "dtype=bf16") == 0 and Path("mine/export.json").read_text() != first
    Path("mine/notes.txt").write_text("mine")
    assert export("own", "mine") == 2
    assert "out=mine also holds notes.txt, which velm export did not write" in capsys.readouterr().err
    assert Path("mine/notes.txt").exists()
    assert export("own", "runs/train/lora") == 2
    assert "is not empty, and velm export did not write it" in capsys.readouterr().err
    assert export("own", "runs/train/own") == 2
    Path("link").symlink_to("mine")
    assert export("own", "link") == 2
    Path("empty").mkdir()
    assert export("own", "empty") == 0
    assert not [path for path in Path().iterdir() if path.name.endswith(".part")]


def test_lines_for_mistakes(place, capsys):
    for options, line in (
        (["checkpoint=runs/train/own"], "out is not set: velm export checkpoint=runs/train/NAME out=FOLDER"),
        (["out=x"], "checkpoint is not set: velm export"),
        (["checkpoint=runs/train/own", "out=x", "format=onnx", "dtype=int8"], "dtype=int8 is for format=velm"),
        (["checkpoint=runs/train/none", "out=x"], "checkpoint: runs/train/none does not exist"),
        (["checkpoint=runs/train/own", "out=x", "scores=runs/train/lora"], "runs/train/lora"),
    ):
        assert call("export", *options) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1, said
        assert not Path("x").exists()


def test_a_damaged_file_is_noticed(place):
    assert export("own", "broken", "dtype=int8") == 0
    file = Path("broken/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(velm_cli.UserError, match="changed since it was written"):
        velm_cli.load("broken", "cpu")


def test_an_exported_folder_that_was_changed_is_not_replaced(place, capsys):
    assert call("export", "checkpoint=runs/train/own", "out=edited") == 0
    card = Path("edited/README.md")
    card.write_text("my own words")
    assert call("export", "checkpoint=runs/train/own", "out=edited") == 2
    assert "README.md has changed since velm export wrote it" in capsys.readouterr().err
    assert card.read_text() == "my own words"


def test_a_folder_named_through_itself_stays(place):
    assert call("export", "checkpoint=runs/train/own", "out=again") == 0
    before = {file.name for file in Path("again").iterdir()}
    assert call("export", "checkpoint=runs/train/own", "out=again/../again") == 0
    assert {file.name for file in Path("again").iterdir()} == before
    assert not list(Path().glob(".again.*")), "nothing is left beside it"
