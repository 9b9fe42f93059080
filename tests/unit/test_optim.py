"""Weight decay: exactly the matrices of products decay, whatever the parameters of a family are called."""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCAB, folder
from torch import nn

from velm_cli import schema
from velm_cli.engine.optim import build_optimizer, learning_rate
from velm_cli.engine.snapshot import optimizer_tensors, restore_optimizer
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.text import build_text
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import build_vision
from velm_cli.objectives.weights import constant


def _pretrained(kind: str):
    return schema.TransformersVisionConfig(name=folder(kind), image_size=16)


def _torchvision(net: str, layer: int = 0):
    return schema.TorchvisionConfig(net=net, image_size=32, weights="none", layer=layer)


# What has two dimensions or more and does not decay, by the last parts of its name; all that is a vector goes without.
VISION = {
    "convnet": (lambda: schema.ConvNetConfig(image_size=16, width=24, stages=2), {"position"}),
    "vit": (lambda: schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=1, heads=2), {"position"}),
    "resnet18": (lambda: _torchvision("resnet18"), set()),
    "swin_t": (lambda: _torchvision("swin_t", 2), {"attn.relative_position_bias_table"}),
    "convnext_tiny": (lambda: _torchvision("convnext_tiny", 2), {"layer_scale"}),
    "vit_b_16": (lambda: _torchvision("vit_b_16", 1), {"net.class_token", "net.encoder.pos_embedding"}),
    "hf_vit": (lambda: _pretrained("vit"), {"embeddings.cls_token", "embeddings.position_embeddings"}),
    "clip": (lambda: _pretrained("clip"), {"embeddings.position_embedding.weight"}),
    "dinov2": (lambda: _pretrained("dinov2"), {"embeddings.cls_token", "embeddings.position_embeddings"}),
    "siglip": (lambda: _pretrained("siglip"), {"embeddings.position_embedding.weight", "head.probe"}),
}
TEXT = {
    "transformer": (lambda: schema.TransformerConfig(width=16, layers=1, heads=2), set()),
    "lstm": (lambda: schema.LSTMConfig(width=16), set()),
    "gpt2": (lambda: schema.CausalLMConfig(name=folder("gpt2")), {"net.wpe.weight"}),
    "gpt2, lora": (lambda: schema.CausalLMConfig(name=folder("gpt2"), lora_rank=2), set()),
    "llama": (lambda: schema.CausalLMConfig(name=folder("llama")), set()),
    "bloom": (lambda: schema.CausalLMConfig(name=folder("bloom")), set()),
    "bert": (
        lambda: schema.BertConfig(name=folder("bert")),
        {"net.embeddings.position_embeddings.weight", "net.embeddings.token_type_embeddings.weight"},
    ),
}
MAPPERS = [*schema.PrefixMapper]


def undecayed(module: nn.Module) -> set[str]:
    """The names of trainable parameters that do not decay."""
    module.rates = list  # no part with a rate of its own
    optimizer = build_optimizer(module, schema.OptimConfig(weight_decay=0.1))
    groups = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert groups.keys() == {id(p) for p in trainable.values()}
    assert set(groups.values()) <= {0.0, 0.1}
    return {name for name, parameter in trainable.items() if not groups[id(parameter)]}


def check(module: nn.Module, tables: set[str]) -> None:
    found = undecayed(module)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert {name for name, parameter in parameters.items() if parameter.ndim < 2} <= found
    with_shape = {name for name in found if parameters[name].ndim >= 2}
    assert all(any(name == end or name.endswith(f".{end}") for end in tables) for name in with_shape), with_shape
    assert {end for end in tables for name in with_shape if name == end or name.endswith(f".{end}")} == tables


@pytest.mark.parametrize("kind", VISION)
def test_positions_and_class_tokens_of_vision_encoders_do_not_decay(kind):
    config, tables = VISION[kind]
    check(build_vision(config()), tables)


@pytest.mark.parametrize("kind", TEXT)
def test_positions_of_text_encoders_do_not_decay_and_words_do(kind):
    config, tables = TEXT[kind]
    text = build_text(config(), VOCAB)
    check(text, tables)
    words = next(name for name, p in text.named_parameters() if len(p) == VOCAB)
    assert words not in undecayed(text)


@pytest.mark.parametrize("mapper", MAPPERS, ids=[mapper.value for mapper in MAPPERS])
def test_the_queries_of_a_prefix_do_not_decay(mapper):
    model = VelmModel(
        vision=schema.ConvNetConfig(image_size=16, width=24, stages=2),
        text=schema.TransformerConfig(width=16, layers=1, heads=2),
        fusion=schema.PrefixConfig(mapper=mapper, length=2, layers=1, heads=2),
        vocab_size=VOCAB,
    )
    queried = (schema.PrefixMapper.transformer, schema.PrefixMapper.resampler)
    check(model.fusion, {"queries"} if mapper in queried else set())
    assert "vision.position" in undecayed(model)


def test_a_module_says_what_does_not_decay_and_its_name_says_nothing():
    """Of any module, wherever it is: an external fusion needs no more."""

    class Own(nn.Module):
        no_decay = ("anchors", "tables")

        def __init__(self) -> None:
            super().__init__()
            self.anchors, self.position = nn.Parameter(torch.zeros(2, 3)), nn.Linear(3, 3, bias=False)
            self.tables = nn.ModuleList([nn.Embedding(2, 3)])
            self.anchors_too = nn.Parameter(torch.zeros(2, 3))

    outer = nn.Sequential(nn.Linear(3, 3), Own())
    assert undecayed(outer) == {"0.bias", "1.anchors", "1.tables.0.weight"}


def test_moments_are_restored_by_name_into_whichever_group_a_parameter_is_in_now():
    """A run that began while positions still decayed goes on with the moments of each parameter."""
    config = schema.OptimConfig(weight_decay=0.1)
    torch.manual_seed(0)
    before, after = (build_vision(_pretrained("vit")) for _ in range(2))
    everything = [p for p in before.parameters() if p.requires_grad]
    of_old = torch.optim.AdamW([{"params": everything[:5]}, {"params": everything[5:]}], lr=1e-3)
    for parameter in everything:
        parameter.grad = torch.randn_like(parameter)
    of_old.step()
    saved = optimizer_tensors(before, of_old)
    after.rates = list
    optimizer = build_optimizer(after, config)
    restore_optimizer(after, optimizer, saved)
    found = optimizer_tensors(after, optimizer)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]


def test_inverse_square_root_depends_on_no_end():
    """Half of the highest rate at four times the warm-up, whatever max_steps is (Vaswani et al. 2017)."""
    config = schema.OptimConfig(lr=0.4, warmup_steps=100, schedule=schema.LrSchedule.inverse_sqrt)
    assert learning_rate(config, 49, 1000) == pytest.approx(0.2)
    assert learning_rate(config, 99, 1000) == pytest.approx(0.4)
    for most in (500, 10**6):
        assert learning_rate(config, 399, most) == pytest.approx(0.2)
    config.warmup_steps = 0
    assert learning_rate(config, 0, 10) == pytest.approx(0.4) and learning_rate(config, 3, 10) == pytest.approx(0.2)


def _model(**fusion):
    return VelmModel(
        vision=schema.ConvNetConfig(image_size=16, width=24, stages=2),
        text=schema.TransformerConfig(width=16, layers=1, heads=2),
        fusion=schema.PrefixConfig(length=2, **fusion),
        vocab_size=VOCAB,
    )


def _learner(**fusion):
    return WritingLearner(_model(**fusion), schema.LossConfig(), concepts=0, weights=constant("text"))


def test_parts_learn_at_rates_of_their_own():
    learner = _learner()
    config = schema.OptimConfig(vision_lr_scale=0.1, text_lr_scale=0.01, fusion_lr_scale=3.0)
    scale = {id(p): group["scale"] for group in build_optimizer(learner, config).param_groups for p in group["params"]}
    parts = {"vision": 0.1, "text": 0.01, "fusion": 3.0, "output_bias": 1.0}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            assert scale[id(parameter)] == parts[name.split(".")[1]], name


def test_parts_at_the_full_rate_share_groups_as_ever():
    """The order of the groups decides about the last bit of the gradients' norm."""
    found = build_optimizer(learner := _learner(), schema.OptimConfig()).param_groups
    names = {id(p): name for name, p in learner.named_parameters()}
    groups = [{names[id(p)].startswith("model.vision.") for p in group["params"]} for group in found]
    assert groups == [{False}, {False}, {True}, {True}]


def test_a_frozen_fusion_learns_nothing():
    learner = _learner(freeze="all").train()
    learning = {name.split(".")[1] for name, p in learner.named_parameters() if p.requires_grad}
    assert learning == {"vision", "text", "output_bias"} and not learner.model.fusion.training
