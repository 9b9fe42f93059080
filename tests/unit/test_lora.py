"""LoRA: every update learns, and what one run trained is the same function in the next, however that goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import VOCAB, batch_of, folder

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.lora import carried_over, merge, scales
from velm_cli.models.text import build_text
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant

TEXT = frozenset({"text"})


def learner_of(vision="dinov2", text="gpt2", *, of_vision=None, of_text=None, seed=0) -> WritingLearner:
    torch.manual_seed(seed)
    make = schema.BertConfig if text == "bert" else schema.CausalLMConfig
    model = VelmModel(
        vision=schema.TransformersVisionConfig(name=folder(vision), image_size=16, **(of_vision or {})),
        text=make(name=folder(text), **(of_text or {})),
        fusion=schema.CrossModalConfig(layers=1, heads=2, dropout=0.0),
        vocab_size=VOCAB,
    )
    return WritingLearner(model, schema.LossConfig(), concepts=0, weights=constant("text"))


def loss_of(learner: WritingLearner) -> torch.Tensor:
    torch.manual_seed(1)
    return learner(batch_of(torch.randn(3, 3, 16, 16)), Moment(TEXT))["text"].sum


def trained(learner: WritingLearner) -> WritingLearner:
    """Its updates as if trained: B is no longer 0."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return learner.eval()


@pytest.mark.parametrize("vision", ["vit", "clip", "dinov2", "siglip"])
@pytest.mark.parametrize("text", ["gpt2", "llama", "bloom", "bert"])
def test_every_update_learns_and_nothing_else_of_the_model(vision, text):
    learner = trained(learner_of(vision, text, of_vision={"lora_rank": 2}, of_text={"lora_rank": 2})).train()
    loss_of(learner).backward()
    for part in ("vision", "text"):
        learning = {name: p for name, p in learner.named_parameters() if p.requires_grad and name.split(".")[1] == part}
        assert learning and all("lora_" in name for name in learning)
        without = [name for name, p in learning.items() if p.grad is None or not p.grad.abs().sum()]
        assert not without
        assert len(learning) >= 16, "two matrices of each linear layer"


def test_some_layers_alone():
    text = build_text(
        schema.CausalLMConfig(name=folder("llama"), lora_rank=2, lora_targets=["q_proj", "v_proj"]), VOCAB
    )
    found = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in text.named_parameters() if "lora_" in name}
    assert found == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"text.lora_targets: no linear layer is called query; there are .*q_proj"):
        build_text(schema.CausalLMConfig(name=folder("llama"), lora_rank=2, lora_targets=["query"]), VOCAB)


BOTH = {"lora_rank": 2}
NEXT = {
    "the same": (BOTH, BOTH, "go on"),
    "another rank": ({"lora_rank": 3}, {"lora_rank": 3}, "are added to the weights"),
    "another scale": ({"lora_rank": 2, "lora_alpha": 7}, {"lora_rank": 2, "lora_alpha": 7}, "are added to the weights"),
    "no updates": ({}, {}, "are added to the weights"),
    "of the text alone": ({}, BOTH, ""),
}


@pytest.mark.parametrize("text", ["gpt2", "llama"])
@pytest.mark.parametrize("how", NEXT)
def test_the_next_run_begins_as_the_last_one_ended(how, text):
    before = trained(learner_of(text=text, of_vision=BOTH, of_text=BOTH))
    of_vision, of_text, said = NEXT[how]
    after = learner_of(text=text, of_vision=of_vision, of_text=of_text, seed=5).eval()
    state, lines = carried_over(
        before.state_dict(),
        after.model,
        {"model.vision.": 2.0, "model.text.": 2.0},
        scales(*configs(of_vision, of_text)),
    )
    missing = after.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    begins_anew = [name for name in missing.missing_keys if "lora_" not in name]
    assert not begins_anew
    with torch.no_grad():
        assert float(loss_of(after)) == pytest.approx(float(loss_of(before)), rel=1e-5)
    assert any(said in line for line in lines)


def configs(of_vision, of_text):
    return schema.TransformersVisionConfig(**of_vision), schema.CausalLMConfig(**of_text)


def test_updates_of_a_run_that_had_none():
    before = learner_of().eval()
    after = learner_of(of_vision=BOTH, of_text=BOTH, seed=5).eval()
    state, lines = carried_over(before.state_dict(), after.model, {}, scales(*configs(BOTH, BOTH)))
    missing = after.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all("lora_" in name for name in missing.missing_keys) and not lines
    with torch.no_grad():
        assert torch.equal(loss_of(after), loss_of(before))


@pytest.mark.parametrize("text", ["gpt2", "llama"])
def test_merged_updates_are_the_same_function_under_plain_names(text):
    learner = trained(learner_of(text=text, of_vision=BOTH, of_text=BOTH))
    plain = learner_of(text=text)
    with torch.no_grad():
        before = float(loss_of(learner))
        merged = copy.deepcopy(learner)
        merge(merged)
        assert float(loss_of(merged)) == pytest.approx(before, rel=1e-5)
    assert merged.state_dict().keys() == plain.state_dict().keys()
