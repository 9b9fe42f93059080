"""Frozen matrices in half the memory: the losses, gradients and words are the same to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from test_matrix import FUSION, VISION
from tiny_models import VOCAB, batch_of, folder

from velm_cli import schema
from velm_cli.engine.narrowing import narrow_frozen
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.frozen import narrowed
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant

TEXT = frozenset({"text"})
CELLS = [
    ("dinov2", "llama", "prefix_tokens"), ("clip", "gpt2", "gated"), ("siglip", "bloom", "cross_modal"), ("vit", "bert", "prefix"),
    ("vit_b_16", "gpt2", "prefix_transformer"), ("resnet18", "llama", "attention"), ("swin_t", "bert", "add"),
]  # fmt: skip


def learner_of(vision: str, text: str, fusion: str, *, lora: bool, published: torch.dtype | None) -> WritingLearner:
    torch.manual_seed(0)
    image, make = VISION[vision](), schema.BertConfig if text == "bert" else schema.CausalLMConfig
    image.freeze = "all"
    words = make(name=folder(text), freeze="none" if lora else "all", lora_rank=2 * lora)
    model = VelmModel(vision=image, text=words, fusion=FUSION[fusion](), vocab_size=VOCAB)
    if published is not None:  # as language models are: exact in a smaller type
        for parameter in model.parameters():
            parameter.data = parameter.data.to(published).float()
    return WritingLearner(model, schema.LossConfig(), concepts=0, weights=constant("text")).train()


def kept(learner: WritingLearner) -> dict[str, torch.dtype]:
    frozen = {name: p.detach() for name, p in learner.named_parameters() if not p.requires_grad}
    return {name: narrowed(tensor).dtype for name, tensor in frozen.items()}


def step(learner: WritingLearner, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    side = learner.model.image_size
    torch.manual_seed(1)
    batch = batch_of(torch.randn(3, 3, side, side))
    with torch.autocast("cpu", dtype):
        loss = learner(batch, Moment(TEXT))["text"].sum
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
@pytest.mark.parametrize("lora", [False, True], ids=["frozen", "lora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_same_bits_from_half_the_memory(cell, lora, dtype):
    plain = learner_of(*cell, lora=lora, published=dtype if lora else None)
    small = copy.deepcopy(plain)
    saved = narrow_frozen(small.model, kept(small), dtype)
    before, after = (sum(p.numel() * p.itemsize for p in each.parameters()) for each in (plain, small))
    assert saved == before - after > 0.2 * before
    (loss, gradients), (other, others) = step(plain, dtype), step(small, dtype)
    assert loss == other and gradients.keys() == others.keys() and gradients
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    trained = [p for p in small.parameters() if p.requires_grad]
    assert all(p.dtype is torch.float32 for p in trained)


def test_only_what_the_run_keeps_is_narrowed():
    """What lies in no file of the run would be saved as it is in memory."""
    learner = learner_of("dinov2", "llama", "prefix", lora=False, published=torch.bfloat16)
    assert narrow_frozen(learner.model, {}, torch.bfloat16) == 0
    names = kept(learner)
    table = next(name for name in names if name.endswith("embed_tokens.weight"))
    assert names[table] is torch.bfloat16
    narrow_frozen(learner.model, names | {table: torch.float32}, torch.bfloat16)
    text = learner.model.text
    assert text.net.get_input_embeddings().weight.dtype is torch.float32, "not exact: left as it is"
    assert text.net.layers[0].mlp.down_proj.weight.dtype is torch.bfloat16
