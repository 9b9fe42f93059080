"""Frozen matrices in 4 bits: the function of the values that 4 bits stand for, and its gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from test_lora import learner_of, loss_of, trained

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from velm_cli import schema
from velm_cli.engine.recomputing import checkpoint_activations
from velm_cli.models.lora import merge
from velm_cli.models.quantized import FourBit, pack_frozen, rounded

LORA = {"lora_rank": 2, "quantize": schema.Quantize.nf4}


def as_values(learner):
    """The same learner with ordinary weights of the values that 4 bits stand for."""
    plain = copy.deepcopy(learner)
    plain.load_state_dict(rounded(learner.state_dict(), learner.model.text))
    return plain


def gradients(learner):
    loss = loss_of(learner)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (10, 7), (130, 33), (576, 192)])
def test_weights_of_any_shape_are_near_and_stay_what_they_became(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    once = FourBit(weight, None, transposed=False).weight
    assert once.shape == shape and float((once - weight).norm() / weight.norm()) < 0.12
    assert torch.equal(FourBit(once, None, transposed=False).weight, once)


@pytest.mark.parametrize("text", ["gpt2", "llama"])
@pytest.mark.parametrize("how", ["lora", "frozen"])
def test_loss_and_gradients_are_those_of_the_values(text, how):
    options = LORA if how == "lora" else {"freeze": "all", "quantize": schema.Quantize.nf4}
    learner = trained(learner_of(text=text, of_text=options)).train()
    plain = as_values(learner)
    assert pack_frozen(learner.model.text) > 2000
    names = [name for name in learner.state_dict() if name.startswith("model.text.") and "mlp" in name]
    assert not [name for name in names if name.endswith("weight") and "lora" not in name], "packed"
    (loss, found), (wanted_loss, wanted) = gradients(learner), gradients(plain)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found.keys() == wanted.keys() and len(found) > 8
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-4), name


def test_with_checkpointed_activations_and_autocast():
    learner = trained(learner_of(text="llama", of_text=LORA)).train()
    again = copy.deepcopy(learner)
    checkpoint_activations(again.model)
    for each in (learner, again):
        pack_frozen(each.model.text)
    with torch.autocast("cpu", torch.bfloat16):
        (loss, found), (other, others) = gradients(learner), gradients(again)
    assert loss == other and all(torch.equal(found[name], others[name]) for name in found)


def test_its_memory_is_a_quarter_of_bfloat16s():
    learner = learner_of(text="llama", of_text=LORA)
    layer = learner.model.text.net.layers[0].mlp.gate_proj.base_layer
    size = layer.weight.numel()
    pack_frozen(learner.model.text)
    packed = learner.model.text.net.layers[0].mlp.gate_proj.base_layer
    assert isinstance(packed, FourBit) and not layer.weight.numel()
    assert packed.packed.numel() == size / 2 and packed.scales.numel() == size / 64


def test_updates_are_merged_into_the_values():
    learner = as_values(trained(learner_of(text="llama", of_text=LORA)))
    with torch.no_grad():
        before = float(loss_of(learner))
        merge(learner)
        assert float(loss_of(learner)) == pytest.approx(before, rel=1e-5)
