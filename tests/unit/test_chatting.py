"""Conversations side by side in one row learn what they learn alone, and replies are what the model says by itself."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from causal_families import family_folder
from tiny_models import VOCAB, folder

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.data.talks import Talks
from velm_cli.learners.chatting import ChatLearner
from velm_cli.learners.interface import Moment
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import parse_weight

END, SIZE = 2, 16
ONCE = Moment(frozenset({"text"}))
TEXTS = {
    "scratch": lambda: schema.TransformerConfig(width=16, layers=2, heads=2, dropout=0.0),
    "recurrent": lambda: schema.GRUConfig(width=16, dropout=0.0),
    "llama": lambda: schema.CausalLMConfig(name=folder("llama")),
    "gpt2": lambda: schema.CausalLMConfig(name=folder("gpt2")),
    "bloom": lambda: schema.CausalLMConfig(name=folder("bloom")),  # one conversation after the other
    "qwen2": lambda: schema.CausalLMConfig(name=family_folder("qwen2")),
    "gemma2-window": lambda: schema.CausalLMConfig(name=family_folder("gemma2-window")),
}
MAPPERS = schema.PrefixMapper


def learner_of(text: str, mapper: MAPPERS = MAPPERS.tokens) -> ChatLearner:
    torch.manual_seed(0)
    model = VelmModel(
        vision=schema.ViTConfig(width=8, layers=1, heads=2, image_size=SIZE, patch_size=8, dropout=0.0),
        text=TEXTS[text](),
        fusion=schema.PrefixConfig(mapper=mapper, length=3, dropout=0.0, heads=2, layers=1),
        vocab_size=VOCAB,
    )
    weights = {"text": parse_weight("loss.alpha", "1")}
    return ChatLearner(model, schema.LossConfig(), weights=weights, end_id=END).eval()


def random_talks(rng: np.random.Generator, count: int, images: int) -> Talks:
    """With images anywhere, some of them twice, or none."""
    tokens, learned, rows = [], [], []
    for _ in range(count):
        ids = rng.integers(3, VOCAB, rng.integers(2, 12))
        shown = rng.permutation(images)[: rng.integers(0, min(3, images) + 1)]
        for number in range(len(shown)):
            for place in rng.integers(0, len(ids), rng.integers(1, 3)):
                ids = np.insert(ids, place, VOCAB + number)
        marks = (rng.random(len(ids)) < 0.5) & (ids < VOCAB)
        tokens.append(ids)
        learned.append(marks)
        rows.append(shown)
    return Talks(tokens, learned, rows, VOCAB)


def batch_of(talks: Talks, image_XCHW: torch.Tensor) -> Batch:
    count = len(talks.tokens)
    nothing = torch.zeros(count, 0, 0, dtype=torch.long), torch.zeros(count, 0, dtype=torch.long)
    return Batch.of(*nothing, image_XCHW=image_XCHW, images=list(range(len(image_XCHW))), talks=talks)


def alone(talks: Talks, number: int) -> Talks:
    return Talks([talks.tokens[number]], [talks.learned[number]], [talks.images[number]], VOCAB)


# The mappers differ before the text: two encoders see all of them.
FEW = ("scratch", "llama")
CELLS = [(text, mapper) for text in TEXTS for mapper in MAPPERS if mapper is MAPPERS.tokens or text in FEW]


@pytest.mark.parametrize(("text", "mapper"), CELLS)
def test_a_row_of_conversations_has_the_losses_and_gradients_of_single_ones(text, mapper):
    rng = np.random.default_rng()
    learner = learner_of(text, mapper)
    for _ in range(3):
        image_XCHW = torch.randn(int(rng.integers(1, 4)), 3, SIZE, SIZE)
        talks = random_talks(rng, int(rng.integers(1, 6)), len(image_XCHW))
        losses, gradients = [], []
        for number in range(len(talks.tokens)):
            learner.zero_grad()
            term = learner(batch_of(alone(talks, number), image_XCHW), ONCE)["text"]
            if term.count:
                term.sum.backward()
            losses.append((float(term.sum.detach()), term.count))
            gradients.append({name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None})
        learner.zero_grad()
        term = learner(batch_of(talks, image_XCHW), ONCE)["text"]
        assert term.count == sum(count for _, count in losses)
        assert abs(float(term.sum.detach()) - sum(loss for loss, _ in losses)) < 1e-5 * max(1, term.count)
        if not term.count:
            continue
        term.sum.backward()
        for name, parameter in learner.named_parameters():
            own = [gradient[name] for gradient in gradients if name in gradient]
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, sum(own), atol=2e-5, rtol=1e-4)


def test_a_conversation_changes_nothing_in_another():
    rng = np.random.default_rng(0)
    learner = learner_of("llama")
    image_XCHW = torch.randn(3, 3, SIZE, SIZE)
    talks = random_talks(rng, 4, 3)
    other = random_talks(rng, 1, 3)
    changed = Talks([other.tokens[0], *talks.tokens[1:]], [other.learned[0], *talks.learned[1:]],
                    [other.images[0], *talks.images[1:]], VOCAB)  # fmt: skip
    found = []
    for each in (talks, changed):
        row, embedded_ME, _ = learner.embedded(batch_of(each, image_XCHW))
        states_MD = learner._states(embedded_ME, row.lengths)
        found.append(learner.model.logits(states_MD[row.lengths[0] :]))
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_only_replies_are_predicted_each_from_what_stands_before_it():
    talks = Talks([np.array([5, VOCAB, 7, 9, VOCAB + 1, 4])], [np.array([0, 0, 1, 0, 0, 1], bool)],
                  [np.array([1, 0])], VOCAB)  # fmt: skip
    row = talks.row(3)
    assert row.token_M.tolist() == [5, 0, 0, 0, 7, 9, 0, 0, 0, 4] and row.lengths == (10,)
    assert row.image_J.tolist() == [1, 2, 3, 6, 7, 8] and row.from_J.tolist() == [3, 4, 5, 0, 1, 2]
    assert row.before_L.tolist() == [3, 8] and row.target_L.tolist() == [7, 4]  # from an image's last position too
    assert talks.num_learned == 2


def test_another_conversations_images_stand_in_the_places_by_turns():
    ids = np.array([VOCAB, VOCAB + 1, VOCAB + 2, 5])
    row = Talks([ids], [np.zeros(4, bool)], [np.array([4, 2])], VOCAB).row(1)
    assert row.from_J.tolist() == [4, 2, 4]


def plainly(learner: ChatLearner, batch: Batch, number: int, most: int) -> list[int]:
    """The likeliest tokens, each from all that stands before it, read anew."""
    row, embedded_ME, _ = learner.embedded(batch)
    x_ME = embedded_ME.split(list(row.lengths))[number]
    found: list[int] = []
    for _ in range(most):
        states_1MD, _ = learner.model.text.run(x_ME[None])
        logits_V = learner.model.logits(states_1MD[0, -1])
        logits_V[[0, 1]] = float("-inf")
        found.append(int(logits_V.argmax()))
        if found[-1] == END:
            return found[:-1]
        x_ME = torch.cat([x_ME, learner.model.text.embed(torch.tensor([[found[-1]]]))[0]])
    return found


class Spelling:
    """Tokens as text."""

    never_written = (0, 1)
    eos_id = END

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS)
def test_replies_are_those_of_the_model_read_anew_for_each_word(text):
    rng = np.random.default_rng(1)
    learner = learner_of(text)
    image_XCHW = torch.randn(3, 3, SIZE, SIZE)
    batches = [batch_of(random_talks(rng, count, 3), image_XCHW) for count in (5, 1, 3)]
    how = schema.DecodeConfig(max_length=6)
    told = functools.partial(learner.reply, tokenizer=Spelling(), decoding=how, device=torch.device("cpu"))
    for number, batch in enumerate(batches):
        batch.ids = [f"{number}-{each}" for each in batch.ids]
    found = dict(told(batches))
    for batch in batches:
        for number, name in enumerate(batch.ids):
            assert found[name] == " ".join(map(str, plainly(learner, batch, number, 6)))
    beams = dict(learner.reply(batches[:1], Spelling(), schema.DecodeConfig(beams=3, max_length=6, method="beam"),
                               device=torch.device("cpu")))  # fmt: skip
    one_by_one = {}
    for number, name in enumerate(batches[0].ids):
        single = batch_of(alone(batches[0].talks, number), image_XCHW)
        (one_by_one[name],) = dict(
            learner.reply([single], Spelling(), schema.DecodeConfig(beams=3, max_length=6, method="beam"),
                          device=torch.device("cpu"))
        ).values()  # fmt: skip
    assert beams == one_by_one
