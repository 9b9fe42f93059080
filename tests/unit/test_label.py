"""L_joint of labels, next to its definition; L_text of a source, next to the loss of each of its words."""

import math

import pytest
import torch
from test_matrix_judging import LABELS, learner, questions
from tiny_models import VOCAB

from velm_cli.objectives.label import LabelHead
from velm_cli.schema.tasks import LabelLoss


@pytest.mark.parametrize("form", list(LabelLoss))
def test_the_loss_is_what_its_definition_says(form):
    torch.manual_seed(0)
    head = LabelHead(6, 5, form=form, dropout=0.0).double()
    logits, shares = head(3 * torch.randn(4, 6).double()), torch.rand(4, 5).double() * (torch.rand(4, 5) < 0.5)
    shares[1] = 0
    expected = 0.0
    for row in range(4):
        for label in range(5):
            x, share = float(logits[row, label].detach()), float(shares[row, label])
            if form is LabelLoss.sigmoid:
                p = 1 / (1 + math.exp(-x))
                expected -= share * math.log(p) + (1 - share) * math.log(1 - p)
            elif share:
                log_p = x - math.log(sum(math.exp(float(other)) for other in logits[row]))
                expected -= share / float(shares[row].sum()) * log_p
    assert float(head.loss(logits, shares)) == pytest.approx(expected, rel=1e-12)
    assert head.counted(4, 3) == (3 if form is LabelLoss.softmax else 4)
    assert head.probabilities(logits).sum(1).allclose(torch.ones(4).double()) is (form is LabelLoss.softmax)


def test_with_the_sigmoid_loss_about_one_label_is_likely_at_first():
    head = LabelHead(6, 3129, form=LabelLoss.sigmoid, dropout=0.0)
    expected = head.probabilities(head(torch.randn(50, 6))).sum(1)
    assert 0.5 < float(expected.mean()) < 2


def test_what_is_counted_of_a_batch():
    batch, (task, now) = questions("convnet"), learner("convnet", "gru", "add")
    assert task.counts(batch) == {"text": 6 + 3 + 1 + 4, "image": 4, "joint": 3}
    assert {name: term.count for name, term in task(batch, now).items()} == task.counts(batch)
    sigmoid, _ = learner("convnet", "gru", "add", LabelLoss.sigmoid)
    assert sigmoid.counts(batch)["joint"] == 4, "no label of the list is an answer too"


@pytest.mark.parametrize("text", ["transformer", "lstm", "gpt2"])
def test_the_words_of_a_source_are_predicted_from_those_before(text):
    (task, now), batch = learner("convnet", text, "cross_modal"), questions("convnet")
    task.eval()
    features = task.model.encode_image(batch.image_XCHW)
    expected = 0.0
    for row, length in enumerate(batch.source_lengths_B.tolist()):
        memory = task.model.memory(features.select(batch.image_of_BI[row]))
        for place in range(1, length):
            logits, _ = task.model.step(batch.source_BL[row : row + 1, :place], memory)
            expected -= float(logits.log_softmax(-1)[0, batch.source_BL[row, place]])
    assert float(task(batch, now)["text"].sum.detach()) == pytest.approx(expected, rel=1e-9)


def test_hidden_words_of_a_source_are_words():
    """Neither its first token nor its EOS, nor what stands behind."""
    (task, now), batch = learner("vit", "transformer", "cross_modal"), questions("vit")
    assert not task.model.text.causal
    read, seen = task.model.text.forward, []

    def watch(tokens, *args, **kwargs):
        seen.append(tokens)
        return read(tokens, *args, **kwargs)

    task.model.text.forward = watch
    for seed in range(20):
        torch.manual_seed(seed)
        task(batch, now)
    places = torch.stack([tokens != batch.source_BL for tokens in seen]).any(0)
    inside = (torch.arange(7) >= 1) & (torch.arange(7) < batch.source_lengths_B[:, None] - 1)
    assert places.any() and not (places & ~inside).any()
    assert int(batch.source_BL.max()) < VOCAB and task.predict(batch).logits_BC.shape == (4, LABELS)
