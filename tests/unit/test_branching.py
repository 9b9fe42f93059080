"""Texts that are branches of an image, or of a prompt, have the losses and gradients of texts read one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from causal_families import family_folder
from test_matrix import VISION, images
from tiny_models import VOCAB, folder

from velm_cli import schema
from velm_cli.data.batch import Batch, Lengths
from velm_cli.learners.branching import positions_read
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.ranking import Answers
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant

NOW = Moment(frozenset({"text"}))
FAMILIES = ["llama", "gpt2", "qwen2", "gemma", "gemma2-window", "mistral-window", "bloom"]


def learner_of(
    name: str, mapper: str = "mlp", *, prompts: bool = False, loss: schema.LossConfig | None = None, sees: bool = True
):
    torch.manual_seed(0)
    text: schema.TextConfig = schema.TransformerConfig(width=16, layers=2, heads=2)
    if name != "transformer":
        text = schema.CausalLMConfig(name=folder(name) if name in ("llama", "gpt2") else family_folder(name))
    fusion: schema.FusionConfig = schema.PrefixConfig(mapper=schema.PrefixMapper(mapper), length=3)
    if not sees:
        fusion = schema.NoFusionConfig()
    vision = VISION["convnet"]() if sees else schema.NoVisionConfig()
    model = VelmModel(vision=vision, text=text, fusion=fusion, vocab_size=VOCAB)
    loss = loss or schema.LossConfig()
    return WritingLearner(model, loss, concepts=5, weights=constant("text"), prompts=prompts)


def random_batch(rng: np.random.Generator, *, shared: bool = False, sources: bool = False) -> Batch:
    """Of any lengths, empty slots and texts without a word among them."""
    B, K = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    lengths_BK = rng.integers(2, 8, (B, K)) * (rng.random((B, K)) < 0.8)
    lengths_BK[0, 0] = 2 + rng.integers(3)
    T = max(2, int(lengths_BK.max()))
    tokens_BKT = torch.from_numpy(rng.integers(3, VOCAB, (B, K, T)))
    tokens_BKT[..., 0] = 1
    for row, length in zip(tokens_BKT.view(-1, T), lengths_BK.reshape(-1), strict=True):
        row[length:] = 0
        if length:
            row[length - 1] = 2
    parts = {}
    X = B
    if shared:
        X = int(rng.integers(1, B + 1))
        image_B = np.concatenate([np.arange(X), rng.integers(0, X, B - X)])
        parts["image_of_BI"] = torch.from_numpy(image_B)[:, None]
    if sources:
        source_B = rng.integers(2, 7, B)
        source_B[rng.integers(B)] *= rng.integers(2)  # one may have none
        L = max(2, int(source_B.max()))
        source_BL = torch.from_numpy(rng.integers(3, VOCAB, (B, L)))
        source_BL[:, 0] = 1
        parts |= {"source_BL": source_BL, "source_lengths_B": torch.from_numpy(source_B)}
    return Batch.of(
        tokens_BKT,
        torch.from_numpy(lengths_BK),
        image_XCHW=images("convnet", X),
        labels={"concepts": torch.zeros(B, 5)},
        **parts,
    )


def single_loss(learner: WritingLearner, batch: Batch) -> torch.Tensor:
    """The sum of what each text costs that is read by itself, as it is written down in docs/tasks.md."""
    model = learner.model
    features = model.encode_image(batch.image_XCHW)
    nothing = torch.zeros(len(batch.tokens_BKT), 0, model.text.width)
    prefix_BPE = nothing if features is None else model.memory(features, batch.image_of_BI)[0]
    total = torch.zeros(())
    for b, texts in enumerate(batch.tokens_BKT):
        for k, text in enumerate(texts):
            if not (length := int(batch.lengths_BK[b, k])):
                continue
            words = text[:length].tolist()
            prompt = words[:1]
            if learner.prompts and (asked := int(batch.source_lengths_B[b])):
                prompt = batch.source_BL[b, : asked - 1].tolist()
            read = torch.tensor([[*prompt, *words[1:-1]]])
            embedded = torch.cat([prefix_BPE[b : b + 1], model.text.embed(read)], 1)
            states, _ = model.text.run(embedded)
            logits = model.logits(states[0, -len(words) + 1 :])
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(words[1:]), reduction="sum")
    return total


def gradients(learner: WritingLearner, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    learner.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def close(found, wanted) -> None:
    """As float32 sums differ: 1e-5 of the largest entry."""
    for name, other in wanted.items():
        torch.testing.assert_close(found[name], other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("name", [*FAMILIES, "transformer"])
@pytest.mark.parametrize("prompts", [False, True])
def test_the_loss_is_the_sum_of_single_losses(name, prompts):
    if name == "transformer" and not prompts:
        return  # padded, bit for bit as ever
    learner = learner_of(name, prompts=prompts).eval()
    assert learner.branches is (prompts or name != "bloom")
    rng = np.random.default_rng(len(name))
    for shared in (False, True):
        batch = random_batch(rng, shared=shared, sources=prompts)
        term = learner(batch, NOW)["text"]
        assert term.count == batch.num_tokens == int((batch.lengths_BK - 1).clamp(min=0).sum())
        wanted = single_loss(learner, batch)
        torch.testing.assert_close(term.sum, wanted, rtol=1e-5, atol=1e-5)
        close(gradients(learner, term.sum), gradients(learner, wanted))


@pytest.mark.parametrize("mapper", ["mlp", "transformer", "tokens"])
def test_every_way_in(mapper):
    learner = learner_of("llama", mapper).eval()
    batch = random_batch(np.random.default_rng(3), shared=True)
    torch.testing.assert_close(learner(batch, NOW)["text"].sum, single_loss(learner, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "bloom", "transformer"])
def test_prompts_without_an_image(name):
    learner = learner_of(name, prompts=True, sees=False).eval()
    for shared in (False, True):
        batch = random_batch(np.random.default_rng(5), shared=shared, sources=True)
        term, wanted = learner(batch, NOW)["text"], single_loss(learner, batch)
        torch.testing.assert_close(term.sum, wanted, rtol=1e-5, atol=1e-5)
        close(gradients(learner, term.sum), gradients(learner, wanted))


@pytest.mark.parametrize("prompts", [False, True])
def test_no_example_changes_another(prompts):
    """Not a bit of it, if only the size of what is multiplied stays the same."""
    learner = learner_of("llama", prompts=prompts).eval()
    batch = random_batch(np.random.default_rng(1), sources=prompts)
    losses = []
    for number in range(2):
        if number:
            batch.tokens_BKT[0, :, 1:-1] = (batch.tokens_BKT[0, :, 1:-1] * 7 + 5) % (VOCAB - 3) + 3
            batch.image_XCHW[0] += 1
            if prompts:
                batch.source_BL[0, 1:] = (batch.source_BL[0, 1:] * 7 + 5) % (VOCAB - 3) + 3
        embedded = []
        hook = learner.model.text.net.register_forward_hook(lambda _, __, out: embedded.append(out[0]))  # noqa: B023
        learner(batch, NOW)
        hook.remove()
        losses.append(embedded[0][0])
    B, P = len(batch.ids), 3
    same = (losses[0] == losses[1]).all(-1)
    assert not same[:P].any() and same[P : B * P].all()
    from velm_cli.learners.branching import branches_of

    layout = branches_of(learner.model, batch, prompts=prompts).layout
    assert torch.equal(same[B * P :], layout.tree_M != 0)


def test_positions_with_and_without_branches():
    lengths = Lengths(np.array([[5, 3], [2, 0]]))
    assert positions_read(lengths, 10) == (10 + 4 + 2 + 10 + 1, 4 * (10 + 4))
    shared = lengths._replace(source_B=np.array([4, 6]), image_B=np.array([0, 0]))
    assert positions_read(shared, 10, prompts=True) == (10 + 3 + 3 + 1 + 5 + 0, 4 * (10 + 6))


def test_scheduled_sampling_draws_for_the_same_places():
    loss = schema.LossConfig(scheduled_sampling="0.5")
    found = []
    for branches in (True, False):
        learner = learner_of("llama", loss=loss).train()
        learner.branches = branches
        torch.manual_seed(1)
        found.append(learner(random_batch(np.random.default_rng(4)), NOW)["text"].sum)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_dropout_and_half_precision_run():
    learner = learner_of("gpt2").train()
    batch = random_batch(np.random.default_rng(5))
    with torch.autocast("cpu", torch.bfloat16):
        loss = learner(batch, NOW)["text"].sum
    assert all(torch.isfinite(gradient).all() for gradient in gradients(learner, loss).values())


def log_probs(learner: WritingLearner, batch: Batch, answers: list[list[int]]) -> torch.Tensor:
    """(B, C): of each answer's words and EOS behind the prompt of each example, one at a time."""
    model = learner.model
    prefix_BPE = model.memory(model.encode_image(batch.image_XCHW), batch.image_of_BI)[0]
    found = torch.zeros(len(batch.ids), len(answers))
    for b, c in np.ndindex(*found.shape):
        asked = max(2, int(batch.source_lengths_B[b]))
        prompt = [1, *batch.source_BL[b, 1 : asked - 1].tolist()]
        read = torch.tensor([[*prompt, *answers[c]]])
        states, _ = model.text.run(torch.cat([prefix_BPE[b : b + 1], model.text.embed(read)], 1))
        log_p = model.logits(states[0, -len(answers[c]) - 1 :]).log_softmax(-1)
        found[b, c] = log_p.gather(1, torch.tensor([*answers[c], 2])[:, None]).sum()
    return found


@pytest.mark.parametrize("name", ["llama", "bloom"])
@torch.no_grad()
def test_answers_are_ranked_behind_their_prompts(name):
    learner = learner_of(name, prompts=True).eval()
    words = [[5], [6, 7], [5, 9, 11], [8]]
    answers = Answers.of(words, bos_id=1, eos_id=2)
    for shared in (False, True):
        batch = random_batch(np.random.default_rng(7), shared=shared, sources=True)
        wanted = log_probs(learner, batch, words)
        torch.testing.assert_close(learner.ranked(batch, answers, 4), wanted, rtol=1e-4, atol=1e-4)
        some = learner.ranked(batch, answers, 2)
        assert (torch.isfinite(some).sum(1) == 2).all()
        torch.testing.assert_close(some[some.isfinite()], wanted[some.isfinite()], rtol=1e-4, atol=1e-4)


def test_one_prompt_for_all_is_a_source():
    """Of captions: what is learned and what is written goes on from it."""
    learner = learner_of("llama")
    said = learner_of("llama", prompts=True)
    learner = WritingLearner(
        learner.model, schema.LossConfig(), concepts=5, weights=constant("text"), prompt=[1, 9, 8, 2]
    ).eval()
    batch = random_batch(np.random.default_rng(8))
    B = len(batch.ids)
    sources = {"source_BL": torch.tensor([[1, 9, 8, 2]]).repeat(B, 1), "source_lengths_B": torch.full((B,), 4)}
    other = Batch.of(batch.tokens_BKT, batch.lengths_BK, image_XCHW=batch.image_XCHW, labels=batch.labels, **sources)
    torch.testing.assert_close(learner(batch, NOW)["text"].sum, said.eval()(other, NOW)["text"].sum)
    assert learner.prompts and torch.equal(learner.prompted(batch).source_BL, sources["source_BL"])
