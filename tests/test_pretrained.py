"""Pretrained parts end to end: train, resume, evaluate and finetune with models from local folders."""

import json

import pytest
from safetensors.torch import load_file
from tiny_models import folder, language_model
from velm import TINY, call

WORDS = ["a red circle above two blue stars", "there is one green ring on a plain background"]
SHORT = ["run.batch_size=4", "run.log_every=1", "run.validate_images=4", "data.captions_per_image=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("pretrained")
    language_model(where / "lm", WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield where


@pytest.mark.parametrize(
    "parts",
    [
        ["vision=clip", "vision.name={clip}", "vision.freeze=all", "text.freeze=all", "fusion=prefix"],
        ["vision=vit", "text.lora_rank=2", "fusion=gated", "fusion.heads=2"],
        ["vision=dinov2", "vision.name={dinov2}", "vision.layer=1", "fusion=attention"],
        ["vision=vit", "text.freeze=first:1", "fusion=cross_modal"],
    ],
    ids=["frozen-prefix", "lora-gated", "full-attention", "last-layer-cross"],
)
def test_train_evaluate_and_finetune(parts, place, request, capsys):
    parts = [part.format(clip=folder("clip"), dinov2=folder("dinov2")) for part in parts]
    name = request.node.callspec.id
    common = ["dataset=shapes", *TINY, "vision.image_size=32", "text=gpt2", "text.name=lm", *parts, *SHORT]
    assert call("train", *common, "run.max_steps=3", f"name={name}") == 0
    run = place / "runs/train" / name
    weights = load_file(run / "model.safetensors")
    assert call("train", *common, "run.max_steps=5", f"name={name}") == 0, "the same command with more steps goes on"
    said = capsys.readouterr().out
    assert "resumed at step 3" in said and "note: run.max_steps 3 -> 5: the schedule is laid anew" in said
    after = load_file(run / "model.safetensors")
    changed = {key for key in weights if not (weights[key] == after[key]).all()}
    assert any("fusion" in key for key in changed)
    assert any("model.text" in key for key in changed) == ("text.freeze=all" not in parts)
    if "text.freeze=first:1" in parts:
        kept = " ".join(load_file(run / "frozen.safetensors"))
        assert ".wte." in kept and ".h.0." in kept and ".h.1." not in kept
    assert any("model.vision" in key for key in changed) == ("vision.freeze=all" not in parts)
    assert call("eval", f"checkpoint=runs/train/{name}", "metrics=fast", "limit=4", f"name={name}") == 0
    assert json.loads((place / "runs/evaluate" / name / "scores.json").read_text())["images"] == 4
    assert call("finetune", f"checkpoint=runs/train/{name}", *SHORT, "run.max_steps=2", f"name={name}") == 0
