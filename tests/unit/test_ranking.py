"""The log-probabilities of a list of answers, next to those of each answer alone, word by word."""

import pytest
import torch
from test_matrix import BOS, EOS, FUSION, REFUSED, TEXT
from test_matrix_source import TAKES_NONE, build, context, pictures
from tiny_models import VOCAB

from velm_cli.models import ranking
from velm_cli.models.ranking import Answers, answer_log_probs

CELLS = [
    ("transformer", "cross_modal"),
    ("transformer", "attention_additive"),
    ("lstm", "concat"),
    ("gru", "prefix"),
    ("gpt2", "gated"),
    ("causal_lm", "prefix_transformer"),
    ("bert", "add"),
]
# several begin alike, one is part of another, one has no word at all
LIST = [[5], [5, 6], [], [7, 8, 9, 10], [5, 6, 11], [12], [13, 5], [14, 14, 14], [7]]
ANSWERS = Answers.of(LIST, bos_id=BOS, eos_id=EOS)


def memory_and_model(text: str, fusion: str):
    assert (text, fusion) not in REFUSED and fusion in FUSION.keys() - TAKES_NONE and text in TEXT
    model = build("convnet", text, fusion).eval()
    with torch.no_grad():  # words must differ in more than rounding
        model.output_bias.copy_(torch.randn(VOCAB))
        source, lengths = torch.randint(3, VOCAB, (3, 6)), torch.tensor([6, 3, 4])
        return model, model.memory(context(model, pictures("convnet", 3), source, lengths))


def one_by_one(model, memory) -> torch.Tensor:
    """(B, C), one token of one answer at a time, all examples together."""
    rows = []
    for words in LIST:
        total, state, before = 0.0, None, BOS
        for word in [*words, EOS]:
            logits, state = model.step(torch.full((3, 1), before), memory, state)
            total, before = total + logits.log_softmax(-1)[:, word], word
        rows.append(total)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("text", "fusion"), CELLS)
@pytest.mark.parametrize("at_once", [1, 9, 1 << 12])
def test_answers_are_scored_as_if_alone(text, fusion, at_once, monkeypatch):
    model, memory = memory_and_model(text, fusion)
    monkeypatch.setattr(ranking, "POSITIONS", at_once)
    monkeypatch.setattr(ranking, "LOGITS", at_once * VOCAB)
    with torch.no_grad():
        expected = one_by_one(model, memory)
        found = answer_log_probs(model, memory, ANSWERS, examples=3, candidates=100)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        first = model.step(torch.full((3, 1), BOS), memory)[0].log_softmax(-1)
    for candidates in (1, 4):
        some = answer_log_probs(model, memory, ANSWERS, examples=3, candidates=candidates)
        for row in range(3):
            order = sorted(range(len(LIST)), key=lambda answer: -float(first[row, [*LIST[answer], EOS][0]]))
            best = order[:candidates]
            assert some[row].isfinite().nonzero()[:, 0].tolist() == sorted(best)
            torch.testing.assert_close(some[row, best], expected[row, best], rtol=1e-9, atol=1e-9)
            assert some[row].softmax(-1)[best].sum() == pytest.approx(1)


def test_the_answers_of_a_complete_list_have_all_the_probability():
    """Of one word or none, no word twice: with EOS after each they are all texts that end by then."""
    model, memory = memory_and_model("transformer", "cross_modal")
    words = [[], *[[word] for word in range(VOCAB) if word != EOS]]
    found = answer_log_probs(
        model, memory, Answers.of(words, bos_id=BOS, eos_id=EOS), examples=3, candidates=len(words)
    )
    with torch.no_grad():
        first = model.step(torch.full((3, 1), BOS), memory)[0].softmax(-1)
        ends = torch.stack(
            [
                first[:, word] * model.step(torch.tensor([[BOS, word]] * 3), memory)[0].softmax(-1)[:, EOS]
                for word in range(VOCAB)
                if word != EOS
            ]
        ).sum(0)
    torch.testing.assert_close(found.exp().sum(1), first[:, EOS] + ends, rtol=1e-9, atol=1e-12)
