"""Steps of several passes, some of them without gradients, within one autocast: every weight learns what it should."""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCAB, batch_of

from velm_cli import schema
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.self_critical import SelfCritical
from velm_cli.objectives.weights import constant

WORDS = ["<pad>", "<bos>", "<eos>", *(f"w{number}" for number in range(3, VOCAB))]
TEXTS = {
    "transformer": schema.TransformerConfig(width=16, layers=1, heads=2, dropout=0.0),
    "lstm": schema.LSTMConfig(width=16, dropout=0.0),
}


def gradients(text: str, objective: str, *, caches: bool) -> dict[str, torch.Tensor | None]:
    """Of one step in bfloat16, by parameter; `caches`: autocast keeps the weights that it has cast."""
    torch.manual_seed(0)
    model = VelmModel(
        vision=schema.ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
        text=TEXTS[text],
        fusion=schema.CrossModalConfig(layers=1, heads=2, dropout=0.0),
        vocab_size=VOCAB,
    )
    task = WritingLearner(model, schema.LossConfig(), concepts=0, weights=constant("text")).train()
    batch = batch_of(torch.randn(3, 3, 16, 16))
    if objective == "self_critical":
        references = {record: [f"w{3 + record} w{5 + record} w7"] * 2 for record in batch.examples}
        task.critic = SelfCritical(
            references, WORDS, bos_id=1, eos_id=2, banned=[0, 1], samples=4, max_length=6, device=torch.device("cpu")
        )
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=caches):
        terms = task(batch, Moment(frozenset({"text"})))
    terms["text"].sum.backward()
    return {name: parameter.grad for name, parameter in task.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("objective", ["next_token", "scheduled_sampling", "self_critical"])
@pytest.mark.parametrize("text", TEXTS)
def test_no_weight_loses_its_gradient_to_autocasts_cache(text, objective):
    """torch 2.6 gave 21 weights none after a first pass without gradients (pytorch#158232)."""
    found, exact = (gradients(text, objective, caches=caches) for caches in (True, False))
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0, msg=lambda said, name=name: f"{name}: {said}")
