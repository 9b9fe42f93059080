"""run.checkpoint_activations: the same losses and gradients to the bit, from fewer saved numbers."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from test_matrix import FUSION, TEXT, VISION
from tiny_models import VOCAB, batch_of, folder

from velm_cli import schema
from velm_cli.engine.recomputing import blocks_of, checkpoint_activations
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant

TERMS = frozenset({"text", "image"})
CELLS = [
    ("vit", "transformer", "cross_modal"), ("resnet18", "lstm", "concat"), ("swin_t", "gpt2", "gated"),
    ("dinov2", "causal_lm", "prefix_tokens"), ("clip", "causal_lm_frozen", "prefix_transformer"), ("siglip", "bert", "add"),
    ("vit_b_16", "gru", "attention"),
]  # fmt: skip


def learner_of(vision, text, fusion) -> WritingLearner:
    torch.manual_seed(0)
    model = VelmModel(vision=VISION[vision](), text=TEXT[text](), fusion=FUSION[fusion](), vocab_size=VOCAB)
    loss = schema.LossConfig(num_concepts=5)
    return WritingLearner(model, loss, concepts=5, weights=constant(*TERMS)).train()


def batch_for(learner: WritingLearner):
    side = learner.model.image_size
    torch.manual_seed(1)
    return batch_of(torch.randn(3, 3, side, side))


def step(learner: WritingLearner, batch) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(2)  # dropout, which both passes must draw alike
    loss = sum(term.sum for term in learner(batch, Moment(TERMS)).values())
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_losses_gradients_and_statistics_are_the_same(cell, bf16):
    plain = learner_of(*cell)
    again = copy.deepcopy(plain)
    assert checkpoint_activations(again.model) >= 2
    batch = batch_for(plain)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        (loss, gradients), (other_loss, others) = step(plain, batch), step(again, batch)
    assert loss == other_loss and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items()), "batch statistics"


def kept(learner: WritingLearner, batch) -> int:
    """Bytes of tensors other than parameters that backward keeps, those that blocks keep as their inputs included."""
    own = {p.untyped_storage()._cdata for p in learner.parameters()}
    alive: dict[int, tuple[weakref.ref, int]] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            alive[storage._cdata] = (weakref.ref(tensor), storage.nbytes())
        return tensor

    def note_inputs(_, args, options):
        for tensor in (*args, *options.values()):
            if isinstance(tensor, torch.Tensor):
                note(tensor)

    hooks = [
        block.register_forward_pre_hook(note_inputs, with_kwargs=True)
        for block in blocks_of(learner.model)
        if type(block).__mro__[1].__name__ == type(block).__name__  # those that keep their inputs
    ]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms = learner(batch, Moment(TERMS))
    held = sum(size for tensor, size in alive.values() if tensor() is not None)
    assert terms
    for hook in hooks:
        hook.remove()
    return held


def deep(checkpointed: bool) -> WritingLearner:
    torch.manual_seed(0)
    vision = schema.ViTConfig(image_size=32, patch_size=4, width=32, layers=6, heads=2)
    text = schema.TransformerConfig(width=32, layers=6, heads=2)
    model = VelmModel(vision=vision, text=text, fusion=schema.ConcatConfig(), vocab_size=VOCAB)
    learner = WritingLearner(model, schema.LossConfig(), concepts=5, weights=constant(*TERMS)).train()
    if checkpointed:
        checkpoint_activations(model)
    return learner


def test_less_is_kept_for_backward():
    plain, again = deep(False), deep(True)
    batch = batch_for(plain)
    assert kept(again, batch) < kept(plain, batch) / 4


def test_a_language_model_returns_a_state_where_nothing_is_learned():
    """Decoding goes on from what a model with recomputed blocks has read."""
    torch.manual_seed(0)
    model = VelmModel(
        vision=schema.NoVisionConfig(),
        text=schema.CausalLMConfig(name=folder("llama")),
        fusion=schema.NoFusionConfig(),
        vocab_size=VOCAB,
    )
    checkpoint_activations(model)
    tokens = torch.randint(3, VOCAB, (2, 6))
    whole, state = model.text(tokens)
    assert state == ()
    with torch.no_grad():
        _, state = model.text(tokens[:, :4])
        rest, _ = model.text(tokens[:, 4:], state)
    assert torch.allclose(whole[:, 4:], rest, atol=1e-5)


def test_a_dry_run_foresees_what_is_kept():
    """From a pass that keeps everything: near what one keeps that does not, and the operations of a second forward."""
    from torch.utils.flop_counter import FlopCounterMode

    from velm_cli.stages.estimate_recomputed import Watched

    plain, saved, held = deep(False), {}, []
    batch = batch_for(plain)

    def note(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            held.append(tensor)
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    watch = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, Watched(saved, counter).of(plain.model) as blocks, watch:
        plain(batch, Moment(TERMS))
    forward = counter.get_total_flops()
    largest = max(sum(saved[address] for address in block) for block in blocks.within)
    assert blocks.kept - largest == pytest.approx(kept(deep(True), batch), rel=0.15)
    assert sum(saved.values()) > 3 * blocks.kept and 0.5 * forward < blocks.operations < forward
