"""Small and odd but legal sizes: a model of them runs, or one line says which option to change (found by a fuzz)."""

import pytest
import torch
from tiny_models import VOCAB, folder

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.models.velm import VelmModel
from velm_cli.validate import model_problems

CONVNET = schema.ConvNetConfig(width=16, image_size=16)
GRU = schema.GRUConfig(width=8)


def problem(vision=CONVNET, text=GRU, fusion=None) -> str | None:
    """What validate or the model's making says; else it runs, with sizes alone."""
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(),
        vision=vision,
        text=text,
        fusion=fusion or schema.ConcatConfig(),
        task=schema.CaptionTaskConfig(),
    )
    if lines := list(model_problems(config)):
        return "\n".join(lines)
    with torch.device("meta"):
        try:
            model = VelmModel(vision=config.vision, text=config.text, fusion=config.fusion, vocab_size=VOCAB)
        except UserError as error:
            return str(error)
        features = model.encode_image(torch.empty(2, 3, vision.image_size, vision.image_size))
        model.step(torch.empty(2, 3, dtype=torch.long), model.memory(features))
    return None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vision": schema.TorchvisionConfig(net="vit_b_16", image_size=24, weights="none")}, "multiple of the 16 pixels"),
        ({"vision": schema.TorchvisionConfig(net="convnext_tiny", image_size=24, weights="none")}, "too small for convn"),
        ({"vision": schema.TorchvisionConfig(net="swin_v2_t", image_size=2, weights="none")}, "too small for swin_v2_t"),
        ({"vision": schema.TransformersVisionConfig(name=folder("siglip"), weights="none", image_size=7)}, "patches of 8"),
        (
            {"text": schema.CausalLMConfig(name=folder("gpt2"), weights="none"), "fusion": schema.GatedConfig(heads=3)},
            "fusion.heads=3 does not divide the text encoder's width of 16",
        ),
        ({"text": schema.TransformerConfig(width=6, heads=4)}, "text.width=6 is not divisible by text.heads=4"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_go_together_are_one_line(options, said):
    line = problem(**options)
    assert line is not None and said in line and "\n" not in line


@pytest.mark.parametrize(
    "options",
    [
        {"text": schema.TransformerConfig(width=1, heads=1)},
        {"vision": schema.ConvNetConfig(width=17, image_size=9)},
        {"vision": schema.ViTConfig(width=2, heads=1, patch_size=1, image_size=1, layers=0)},
        {"vision": schema.TorchvisionConfig(net="resnet18", image_size=1, weights="none")},
        {"vision": schema.TorchvisionConfig(net="convnext_tiny", image_size=24, weights="none", layer=2)},
    ],
)
def test_odd_sizes_run(options):
    assert problem(**options) is None


def test_masked_words_of_a_pretrained_model_can_be_estimated():
    text = schema.BertConfig(name=folder("bert"), weights="none")
    with torch.device("meta"):
        parts = {"vision": schema.NoVisionConfig(), "text": text, "fusion": schema.NoFusionConfig()}
        model = VelmModel(**parts, vocab_size=VOCAB, causal=False)
        model.text(torch.empty(2, 3, dtype=torch.long), lengths_N=torch.empty(2, dtype=torch.long))


def test_low_rank_updates_without_their_package_are_refused_first(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = problem(text=schema.CausalLMConfig(name=folder("gpt2"), weights="none", lora_rank=2))
    assert line == "text.lora_rank=2 needs peft: pip install peft"


def test_weights_that_others_replace_are_told(tmp_path):
    (tmp_path / "w.pth").touch()
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(),
        vision=schema.TorchvisionConfig(net="resnet18", weights=str(tmp_path / "w.pth")),
        text=schema.GRUConfig(),
        fusion=schema.ConcatConfig(),
        task=schema.CaptionTaskConfig(),
        init=schema.InitConfig(vision="runs/train/seen"),
    )
    assert any("has no effect: init.vision=runs/train/seen" in line for line in model_problems(config))
    config.init.vision = None
    assert not list(model_problems(config))
