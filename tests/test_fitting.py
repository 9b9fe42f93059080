"""Configs that are right by themselves and wrong for the data, the files or the machine: one line each, exit code 2."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from tiny_models import folder
from velm import TINY, call

PARTS = ["text=gru", "text.width=16", "fusion=concat", "run.device=cpu", "metrics=fast", "tokenizer.min_count=1"]
SHORT = [*PARTS, "run.max_steps=2", "run.validate_images=2", "decode.max_length=20", "metrics.resamples=0"]
VIT = ["vision=vit", "vision.width=16", "vision.layers=1", "vision.heads=2", "vision.image_size=16"]
CONVNET = ["vision=convnet", "vision.width=16", "vision.image_size=16"]
RESNET = ["vision=resnet50", "vision.net=resnet18", "vision.weights=none"]


def captioned(where: Path, captions: list[str], split: str = "train") -> None:
    where.mkdir()
    rows = []
    for number, caption in enumerate(captions):
        Image.new("RGB", (24, 24), (9 * number % 256, 40, 90)).save(where / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [caption], "split": split})
    (where / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))


def preprocess(name: str, *options: str) -> int:
    file = [f"dataset.file={name}/list.jsonl", f"dataset.root={name}", f"dataset.store=stores/{name}"]
    return call("preprocess", "dataset=manifest", *file, "tokenizer.min_count=1", *options)


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("fitting")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        captioned(where / "one", ["a cat on a mat"])
        captioned(where / "few", ["a cat on a mat", "a dog in the rain", "two birds"])
        captioned(where / "words", ["the same five words here"] * 3)
        assert preprocess("one") == preprocess("few") == 0
        assert preprocess("words", "dataset.images=false") == 0
        torch.save({"state_dict": torchvision.models.resnet18().state_dict()}, where / "resnet18.pth")
        yield where


def train(capsys, *args: str, store: str = "", dry: bool = True) -> tuple[int, str]:
    data = ["dataset=manifest", f"dataset.store=stores/{store}"] if store else ["dataset=shapes"]
    capsys.readouterr()
    code = call("train", *data, *SHORT, *args, *(["dry_run=true"] if dry else []))
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "unexpected" not in err
    return code, err if code else out


ALONE = "cannot learn from one image at a time; take two or more"
PROBLEMS = {
    "batch of one": (["run.batch_size=1", *CONVNET], "", f"run.batch_size=1: the batch normalisation of convnet {ALONE}"),
    "overfit one": (["run.overfit_images=1", *CONVNET], "", "run.overfit_images=1: the batch normalisation of convnet"),
    "one image": (CONVNET, "one", "there is one training image: the batch normalisation of convnet"),
    "small grid": (["run.batch_size=1", "vision.image_size=32", *RESNET], "", "batch normalisation of resnet18"),
    "compared alone": ([*VIT, "loss.gamma=1"], "one", "loss.gamma=1 compares the images of a batch, and there is one"),
    "matched alone": ([*VIT, "loss.gamma=1", "loss.joint=matching", "run.overfit_images=1"], "", "run.overfit_images=1: t"),
    "no concept": ([*VIT, "loss.beta=0.1"], "few", "loss.beta=0.1: there is no concept to predict"),
    "no validation": ([*VIT, "run.patience=2"], "few", "run.patience=2: stores/few has no validation images"),
    "text alone": (VIT, "words", "stores/words holds captions only, and vision=vit needs images"),
    "frequencies": ([*VIT, "metrics.df=no.npz"], "", "metrics.df=no.npz: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_one_line_before_anything_is_written(name, capsys, place):
    options, store, said = PROBLEMS[name]
    code, line = train(capsys, *options, "name=problem", store=store, dry=False)
    assert code == 2 and said in line and line.count("\n") == 1
    assert not Path("runs/train/problem").exists()


def test_all_problems_are_told_at_once_and_by_a_dry_run_too(capsys, place):
    options = [*VIT, "loss.beta=1", "run.patience=1", "metrics.df=no.npz", "vision.weights=none"]
    told = [train(capsys, *options, store="few", dry=dry) for dry in (True, False)]
    assert told[0] == told[1] and told[0][0] == 2 and told[0][1].count("\n") == 3


@pytest.mark.parametrize(
    "options",
    [["run.batch_size=1", *VIT], ["run.batch_size=2", *CONVNET], ["run.batch_size=1", "vision.image_size=64", *RESNET],
     ["run.batch_size=1", "vision.image_size=32", "vision.freeze=all", *RESNET]],
)  # fmt: skip
def test_what_works_with_one_image_is_not_refused(options, capsys, place):
    assert train(capsys, *options)[0] == 0


def test_a_required_score_without_its_program_is_refused_before_training(capsys, place, monkeypatch):
    monkeypatch.setattr("velm_cli.stages.fitting.java_problem", lambda: "Java not found: install it")
    wanted = [*VIT, "metrics.names=[cider,meteor]"]
    assert "note: meteor are left out on this machine: Java not found" in train(capsys, *wanted)[1]
    code, line = train(capsys, *wanted, "metrics.required=[meteor]", dry=False)
    assert (code, line) == (2, "velm: metrics.required=['meteor']: Java not found: install it\n")


def test_what_is_legal_and_surprising_is_said(capsys, place):
    longer = ["optim.warmup_steps=8", "loss.beta=linear(0,1,9ep)", "loss.gamma=0", "data.captions_per_image=9",
              "data.examples_per_image=4"]  # fmt: skip
    out = train(capsys, *VIT, *longer, "run.overfit_images=50", "run.batch_size=8", "decode.max_length=5")[1]
    for line in (
        "note: optim.warmup_steps=8 lasts longer than the 2 steps of training: the learning rate ends at 0.00025",
        "note: loss.beta=linear(0,1,9ep) moves for 27 steps, and training ends after 2",
        "note: run.overfit_images=50: there are 24 training images",
        "note: data.captions_per_image=9: no training image has more than 5",
        "note: data.examples_per_image=4 has no effect: no two examples of this store share an image",
        "note: decode.max_length=5: 100% of the captions have more tokens",
        "coverage    0.0% of the words unknown (<unk>), 0 of 200 captions cut at tokenizer.max_tokens=40",
    ):
        assert line in out
    quiet = train(capsys, *VIT, "optim.warmup_steps=1", "run.batch_size=8")[1]
    assert "note:" not in quiet and "warning" not in quiet
    assert "no validation images: nothing is scored" in train(capsys, *VIT, "optim.warmup_steps=1", store="few")[1]
    assert "no caption has more than" in train(capsys, *VIT, "decode.max_length=5000")[1]


def test_options_that_change_nothing_are_said(capsys, place):
    frozen = ["vision.freeze=all", "optim.vision_lr_scale=0.1", "optim.text_lr_scale=0.5"]
    out = train(capsys, *VIT, *frozen, "fusion=prefix", "fusion.mapper=tokens", "fusion.length=3")[1]
    assert "note: fusion.length=3 has no effect with fusion.mapper=tokens: leave it at 10" in out
    assert "note: optim.vision_lr_scale=0.1 has no effect with vision.freeze=all: leave it at 1.0" in out
    assert out.count("has no effect") == 2
    assert (
        "has no effect" not in train(capsys, *VIT, "fusion=prefix", "fusion.length=3", "optim.vision_lr_scale=0.1")[1]
    )


def test_a_training_says_what_its_dry_run_says(capsys, place):
    options = [*VIT, "name=notes", "vision.image_size=128", "tokenizer.max_tokens=8"]
    outs = [train(capsys, *options, dry=dry)[1].splitlines() for dry in (True, False)]
    said = [[line for line in out if line.startswith(("note: ", "warning", "coverage"))] for out in outs]
    assert [line for line in said[1] if "CIDEr's" not in line] == said[0] and len(said[0]) == 4


def pretrained(tmp_path: Path, kind: str) -> Path:
    copy = tmp_path / kind
    copy.mkdir()
    for file in Path(folder(kind)).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_dry_run_opens_the_weights_that_it_is_given(capsys, place, tmp_path):
    given = ["vision=resnet50", "vision.image_size=32", "vision.weights=resnet18.pth"]
    code, line = train(capsys, *given)
    assert code == 2 and "vision.weights=resnet18.pth are of another network: layer1.0.conv1" in line
    code, out = train(capsys, *given, "vision.net=resnet18")
    assert code == 0 and "100 of 100 tensors (in state_dict); left out: fc.weight, fc.bias" in out
    Path("vectors.txt").write_text("red 1 2 3\n")
    assert "say text.width=3" in train(capsys, *VIT, "text.vectors=vectors.txt")[1]
    assert "does not exist" in train(capsys, *VIT, "init.vision=runs/train/nothing")[1]
    assert train(capsys, *VIT, "name=source", dry=False)[0] == 0
    assert "none of its weights fit" in train(capsys, *CONVNET, "init.vision=runs/train/source")[1]
    assert "weights from runs/train/source: " in train(capsys, *VIT, "init.vision=runs/train/source")[1]
    (tmp_path / "clip").mkdir()
    assert "no folder of a CLIP-like model" in train(capsys, *VIT, f"metrics.clip={tmp_path / 'clip'}")[1]
    assert "training first downloads 45 MB from https://" in train(capsys, *given[:2], "vision.net=resnet18")[1]


def test_the_weights_of_transformers_folders_are_opened_too(capsys, place, tmp_path):
    copy = pretrained(tmp_path, "dinov2")
    parts = ["vision=dinov2", f"vision.name={copy}", "vision.image_size=16"]
    assert train(capsys, *parts)[0] == 0
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    code, line = train(capsys, *parts)
    assert code == 2 and "model.safetensors is a git-lfs pointer" in line
    weights.rename(copy / "tf_model.h5")
    assert "it has no weights (model.safetensors), but tf_model.h5" in train(capsys, *parts)[1]
    from safetensors.torch import load, save_file

    state = load(whole)
    save_file({name: tensor for name, tensor in state.items() if "layer.1." not in name}, weights, {"format": "pt"})
    code, line = train(capsys, *parts, "name=missing", dry=False)
    assert code == 2 and "its weights are of another model: " in line and " missing" in line


def test_frozen_encoders_are_estimated_with_a_cache(capsys, place):
    frozen = [*RESNET, "vision.image_size=64", "vision.freeze=all", "run.max_steps=1000", "run.batch_size=8"]
    assert "computes the same features again and again: with data.cache=bf16 about" in train(capsys, *frozen)[1]
    assert "for the features of the images, which are kept" in train(capsys, *frozen, "data.cache=bf16")[1]
    assert "cache" not in train(capsys, *frozen, "data.flip=true")[1]


def test_an_evaluation_is_refused_before_it_captions(capsys, place):
    assert train(capsys, *VIT, "name=evaluated", dry=False)[0] == 0
    capsys.readouterr()
    asked = ["eval", "checkpoint=runs/train/evaluated", "dataset=shapes", "metrics=fast", "limit=99"]
    assert call(*asked, "metrics.df=no.npz", "dry_run=true") == 2
    assert "metrics.df=no.npz: no such file" in capsys.readouterr().err
    assert call(*asked, "dry_run=true") == 0
    out = capsys.readouterr().out
    assert "tensors, as runs/train/evaluated has them" in out and "note: limit=99: split=test has 8 images" in out
    Path("unknown.txt").write_text("zebra xylophone\n")
    assert call("eval", "checkpoint=runs/train/evaluated", "decode.allowed=unknown.txt", "dry_run=true") == 2
    assert "is not in the vocabulary" in capsys.readouterr().err
    Path("bare").mkdir()
    Image.new("RGB", (24, 24)).save("bare/a.png")
    rows = [{"file_name": "a.png", "captions": [], "split": "test"}]
    Path("bare/list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert preprocess("bare") == 0
    bare = ["eval", "checkpoint=runs/train/evaluated", "dataset=manifest", "dataset.store=stores/bare"]
    assert call(*bare, "metrics.required=[cider]") == 2
    assert "no image of split=test in stores/bare has a caption to compare with" in capsys.readouterr().err
    assert not Path("runs/evaluate").exists()


def test_texts_that_cannot_be_written_are_said_before_training(capsys):
    Path("listed.txt").write_text("a cat\nzebra xylophone\n")
    options = [*CONVNET, "decode.allowed=listed.txt", "tokenizer.min_count=1", "name=listed"]
    for dry in (True, False):
        code, said = train(capsys, *options, dry=dry)
        assert code == 2 and "decode.allowed: " in said and "is not in the vocabulary" in said
    assert not Path("runs/train/listed").exists()
