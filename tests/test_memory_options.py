"""Options that save memory change no result: frozen matrices in half precision, checkpointed activations, LoRA, fp16."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import folder, language_model
from velm import TINY, call

from velm_cli.engine import progress as progress_module
from velm_cli.models.weights import read_state

WORDS = ["a red circle above two blue stars", "there is one green ring on a plain background"]
SHORT = [
    "run.batch_size=4", "run.log_every=1", "run.validate_images=4", "data.captions_per_image=2", "metrics.names=[cider]",
    "run.checkpoint_every=2", "run.max_steps=4", "optim.lr=0.01", "optim.warmup_steps=1", "seed=3",
]  # fmt: skip
CLIP = ["vision=clip", f"vision.name={folder('clip')}", "vision.image_size=32"]
LORA = [*CLIP, "text=gpt2", "text.name=lm", "fusion=prefix", "vision.lora_rank=2", "text.lora_rank=2"]
FROZEN = [*CLIP, "text=gpt2", "text.name=lm", "fusion=prefix", "vision.freeze=all", "text.freeze=all"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("memory")
    language_model(where / "lm", WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield where


def train(name, *more, stage=("train",)):
    return [*stage, "dataset=shapes", *TINY, *SHORT, *more, f"name={name}"]


def figures(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    keys = ("step", "kind", "loss", "grad_norm", "cider", "lr", "grad_scale", "skipped")
    return [{k: v for k, v in line.items() if k.startswith(keys)} for line in lines if line["kind"] != "start"]


def assert_same(one, other):
    for file in ("model.safetensors", "best.safetensors", "frozen.safetensors", "predictions.json"):
        assert (one / file).exists() == (other / file).exists()
        if file.endswith(".json"):
            assert (one / file).read_bytes() == (other / file).read_bytes()
        elif (one / file).exists():
            found, wanted = load_file(one / file), load_file(other / file)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in found), file
            assert {t.dtype for t in found.values()} == {t.dtype for t in wanted.values()}
    assert figures(one) == figures(other)


@pytest.mark.parametrize("parts", [LORA, FROZEN], ids=["lora", "frozen"])
def test_memory_is_saved_and_every_file_stays_the_same(place, parts, capsys):
    how = "lora" if parts is LORA else "frozen"
    plain = [*parts, "run.precision=bf16", "run.ema_decay=0.9"]
    assert call(*train(f"{how}-plain", *plain, "run.frozen_dtype=fp32")) == 0
    assert call(*train(f"{how}-small", *plain, "run.checkpoint_activations=true")) == 0
    runs = place / "runs/train"
    assert_same(runs / f"{how}-small", runs / f"{how}-plain")

    # Going on with either, from a checkpoint of the other: they are no other experiment.
    small = runs / f"{how}-small"
    shutil.rmtree(small / "checkpoints/step-00000004")
    for name in ("model.safetensors", "DONE"):
        (small / name).unlink()
    assert call(*train(f"{how}-small", *plain)) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    assert_same(small, runs / f"{how}-plain")


def test_a_checkpoint_holds_what_learned_and_no_more(place):
    run = place / "runs/train/lora-plain"
    if not run.exists():
        assert (
            call(*train("lora-plain", *LORA, "run.precision=bf16", "run.ema_decay=0.9", "run.frozen_dtype=fp32")) == 0
        )
    held = load_file(run / "checkpoints/step-00000004/task.safetensors")
    of_encoders = [name for name in held if name.startswith(("model.vision.", "model.text."))]
    assert of_encoders and all("lora_" in name for name in of_encoders)


def test_what_a_run_of_low_rank_updates_learned_goes_on(place, capsys):
    """LoRA, then the same again, then another rank, then none, then exported: each begins where the last one ended."""
    assert call(*train("first", *LORA)) == 0
    chain = {
        "again": ("train/first", [], "updates of rank 2 go on"),
        "wider": ("finetune/again", ["vision.lora_rank=0", "text.lora_rank=3"], "updates of rank 2 are added to the weights"),
        "whole": ("finetune/wider", ["text.lora_rank=0"], "updates of rank 3 are added to the weights"),
    }  # fmt: skip
    for name, (before, more, line) in chain.items():
        capsys.readouterr()
        still = ["optim.lr=0", "optim.weight_decay=0", *more]
        assert call(*train(name, *still, stage=("finetune", f"checkpoint=runs/{before}"))) == 0
        out = capsys.readouterr().out
        assert line in out, out
        first = json.loads((place / "runs" / "train/first/predictions.json").read_text())
        assert json.loads((place / "runs/finetune" / name / "predictions.json").read_text()) == first, name
    state = read_state(place / "runs/finetune/whole/model.safetensors")[0]
    assert not [name for name in state if "lora" in name or "base_layer" in name]
    assert call("export", "checkpoint=runs/finetune/wider", "out=merged") == 0
    merged = load_file("merged/model.safetensors")
    assert merged.keys() == state.keys()
    assert all(torch.allclose(merged[name], state[name], atol=1e-5) for name in merged)
    assert call(*train("further", "text.lora_rank=2", "optim.lr=0", stage=("finetune", "checkpoint=merged"))) == 0
    assert (place / "runs/finetune/further/predictions.json").read_text() == (
        place / "runs/train/first/predictions.json"
    ).read_text()


def test_fp16_skips_what_overflows_and_resumes_to_the_same_bits(place, monkeypatch, capsys):
    fp16 = [*FROZEN, "run.precision=fp16", "run.max_steps=8", "run.keep_checkpoints=9"]
    monkeypatch.setattr(progress_module.Progress, "__init__", _with_large_scale(progress_module.Progress.__init__))
    assert call(*train("scaled", *fp16)) == 0
    scaled = place / "runs/train/scaled"
    lines = [line for line in figures(scaled) if line["kind"] == "train"]
    skipped = [line["skipped_steps"] for line in lines]
    assert 0 < skipped[-1] < 8 and skipped == sorted(skipped)
    assert lines[0]["grad_norm"] is None and lines[-1]["grad_norm"] > 0
    assert lines[-1]["grad_scale"] == lines[0]["grad_scale"] / 2 ** skipped[-1]
    assert "skipped 1" in capsys.readouterr().out
    shutil.copytree(scaled, again := place / "runs/train/again")
    for step in (4, 6, 8):
        shutil.rmtree(again / f"checkpoints/step-{step:08d}")
    for name in ("model.safetensors", "DONE"):
        (again / name).unlink()
    assert call(*train("again", *fp16)) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    assert_same(again, scaled)


def test_four_bits_are_a_matter_of_training_alone(place, capsys):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    four = [*LORA, "run.precision=fp32", "text.quantize=nf4"]
    assert call(*train("four", *four)) == 0
    assert call(*train("thirtytwo", *LORA, "run.precision=fp32")) == 0
    run, other = (place / "runs/train" / name for name in ("four", "thirtytwo"))
    found, wanted = load_file(run / "frozen.safetensors"), load_file(other / "frozen.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in {*found, *wanted}), "as the pretrained model has them"
    held = load_file(run / "checkpoints/step-00000004/task.safetensors")
    assert all("lora_" in name for name in held if name.startswith("model.text."))
    assert figures(run) != figures(other)

    full = figures(run)
    shutil.rmtree(run / "checkpoints/step-00000004")
    for name in ("model.safetensors", "DONE"):
        (run / name).unlink()
    assert call(*train("four", *four)) == 0
    assert "resumed at step 2" in capsys.readouterr().out and figures(run) == full

    score = [
        "dataset=shapes",
        *TINY[:3],
        "metrics.names=[cider]",
        "limit=4",
        "split=val",
        "run.precision=fp32",
        "decode.beams=1",
    ]
    written = json.loads((run / "predictions.json").read_text())
    assert call("eval", "checkpoint=runs/train/four", *score, "name=four") == 0
    assert json.loads((place / "runs/evaluate/four/predictions.json").read_text()) == written
    for name, more in (("packed", []), ("unpacked", ["text.quantize=none"])):
        still = ["optim.lr=0", "optim.weight_decay=0", *more]
        assert call(*train(name, *still, stage=("finetune", "checkpoint=runs/train/four"))) == 0
        assert json.loads((place / "runs/finetune" / name / "predictions.json").read_text()) == written
    assert call("export", "checkpoint=runs/train/four", "out=four") == 0
    assert "quantize: none" in (place / "four/config.yaml").read_text()
    assert call("eval", "checkpoint=four", *score, "name=exported") == 0
    assert json.loads((place / "runs/evaluate/exported/predictions.json").read_text()) == written
    assert call(*train("wrong", *CLIP, "text=gpt2", "text.name=lm", "fusion=prefix", "text.quantize=nf4")) == 2
    assert "text.quantize=nf4 packs frozen weights: set text.lora_rank=8" in capsys.readouterr().err


def test_four_bits_need_a_library(place, monkeypatch, capsys):
    monkeypatch.setattr("velm_cli.models.update_rules.importlib.util.find_spec", lambda name: None)
    assert call(*train("wrong", *FROZEN, "text.quantize=nf4")) == 2
    assert "text.quantize=nf4 needs bitsandbytes: pip install bitsandbytes" in capsys.readouterr().err


def _with_large_scale(init):
    def begin(self, *args, **options):
        init(self, *args, **options)
        if "grad_scale" not in options:
            self.grad_scale = 2.0**20

    return begin


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["vision.freeze=all", "vision.lora_rank=2"], "vision.lora_rank trains updates of a frozen model by itself"),
        (["text.lora_alpha=8"], "text.lora_alpha=8 has no effect with text.lora_rank=0"),
        (["text.lora_rank=2", "text.lora_targets=[nothing]"], "no linear layer is called nothing; there are c_attn"),
        (["fusion.freeze=all"], "fusion.freeze=all keeps a fusion that a run has trained: velm finetune"),
        (["fusion.freeze=some"], "fusion.freeze=some: none or all"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(place, options, line, capsys):
    assert call(*train("wrong", *CLIP, "text=gpt2", "text.name=lm", "fusion=prefix", *options)) == 2
    assert line in capsys.readouterr().err
