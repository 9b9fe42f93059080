"""Every vision encoder x text encoder x fusion as a classifier of questions: what must hold of each cell.

By default every pair (text, fusion), with the vision encoders that are fast taking turns, and every other encoder once;
`make test-all` runs the full product.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from test_matrix import FUSION, JUDGING, REFUSED, TEXT, VISION, images, open_gates
from tiny_models import VOCAB
from torch import nn

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.learners.interface import Moment
from velm_cli.learners.judging import JudgingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.rules import reads_one_way
from velm_cli.objectives.weights import Weight
from velm_cli.schema.tasks import LabelLoss, SourcePool

LABELS, CONCEPTS = 7, 5
FUSIONS = FUSION | JUDGING | {"none": schema.NoFusionConfig}
SEES = VISION | {"none": schema.NoVisionConfig}
FAST = ("convnet", "vit", "pooled", "hf_vit", "dinov2", "clip")
BLIND = [("none", text, "none") for text in TEXT]


def cells() -> list:
    pairs = [pair for pair in itertools.product(TEXT, FUSIONS) if pair not in REFUSED]
    chosen = {(FAST[number % len(FAST)], *pair) for number, pair in enumerate(pairs)} | set(BLIND)
    few = itertools.cycle([("transformer", "cross_modal"), ("gru", "concat"), ("bert", "co_attention")])
    chosen |= {(vision, *next(few)) for vision in VISION if vision not in FAST}
    product = [(vision, *pair) for vision in VISION for pair in pairs] + BLIND
    return [pytest.param(*c, id="-".join(c), marks=() if c in chosen else pytest.mark.slow) for c in product]


def learner(vision: str, text: str, fusion: str, label: LabelLoss = LabelLoss.softmax, active="text image joint"):
    sees, reads = SEES[vision](), TEXT[text]()
    torch.manual_seed(0)
    terms = set(active.split()) - ({"image"} if vision == "none" else set())
    hides = fusion in JUDGING or (text in ("bert", "transformer") and vision in ("vit", "clip"))
    if fusion in JUDGING and text not in ("bert", "transformer"):
        terms -= {"text"}  # validate refuses it: such a text encoder cannot tell hidden words, the fusion no next ones
    form = schema.TextLoss.masked if hides else schema.TextLoss.next_token
    loss = schema.LossConfig(alpha=str(int("text" in terms)), text=form)
    weights = {name: Weight(float(name in terms), float(name in terms)) for name in ("text", "image", "joint")}
    model = VelmModel(
        vision=sees, text=reads, fusion=FUSIONS[fusion](), vocab_size=VOCAB, causal=reads_one_way(reads, loss)
    )
    open_gates(model)
    made = JudgingLearner(model, loss, weights=weights, labels=LABELS, concepts=CONCEPTS, label_loss=label, mask_id=3)
    with torch.no_grad():  # what starts small and equal must not hide what is wrong
        for parameter in made.label_head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.double(), Moment(frozenset(terms))


def test_the_learner_tells_batches_how_many_concepts_it_predicts():
    made, _ = learner("convnet", "transformer", "cross_modal")
    assert made.concepts == CONCEPTS == made.image_loss.classifier.out_features


def questions(vision: str) -> Batch:
    """Four questions about two images, of different lengths; the last one has an answer that is not in the list."""
    torch.manual_seed(5)
    shares = torch.zeros(4, LABELS)
    shares[[0, 0, 1, 2], [1, 4, 6, 0]] = torch.tensor([1.0, 0.3, 0.9, 0.6])
    return Batch.of(
        torch.zeros(4, 0, 0, dtype=torch.long),
        torch.zeros(4, 0, dtype=torch.long),
        images=[0, 1],
        image_XCHW=None if vision == "none" else images(vision, 2).double(),
        image_of_BI=torch.tensor([[1], [0], [1], [1]]),
        source_BL=torch.randint(3, VOCAB, (4, 7)),
        source_lengths_B=torch.tensor([7, 4, 2, 5]),
        labels={"answers": shares, "concepts": torch.randint(0, 2, (4, CONCEPTS)).double()},
    )


def rows_of(batch: Batch, rows: list[int], length: int | None = None) -> Batch:
    """These examples, each with an image of its own; sources cut to `length`."""
    image = None if batch.image_XCHW is None else batch.image_XCHW[batch.image_of_BI[rows, 0]]
    return Batch.of(
        batch.tokens_BKT[rows],
        batch.lengths_BK[rows],
        image_XCHW=image,
        source_BL=batch.source_BL[rows, :length],
        source_lengths_B=batch.source_lengths_B[rows],
        labels={name: of[rows] for name, of in batch.labels.items()},
    )


def total(task: JudgingLearner, batch: Batch, now: Moment) -> torch.Tensor:
    torch.manual_seed(1)  # the same dropout and hidden words each time
    return sum(term.sum / term.count for term in task(batch, now).values())


@pytest.mark.parametrize(("vision", "text", "fusion"), cells())
def test_judging_cell(vision, text, fusion):
    task, now = learner(vision, text, fusion)
    task.eval()
    batch = questions(vision)
    apart = rows_of(batch, [0, 1, 2, 3])
    found, repeated = task.predict(batch), task.predict(apart)
    torch.testing.assert_close(found.logits_BC, repeated.logits_BC, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.probabilities_BC.sum(1), torch.ones(4).double())
    # A question alone, without padding, gets the same answer.
    for row, length in enumerate(batch.source_lengths_B.tolist()):
        alone = task.predict(rows_of(batch, [row], length)).logits_BC
        torch.testing.assert_close(found.logits_BC[row], alone[0], rtol=1e-6, atol=1e-7)
    # Its words matter, and so does the image, where the fusion takes it.
    other = replace(
        batch, source_BL=torch.where(torch.arange(7) == 1, 3, batch.source_BL) + 1 - (batch.source_BL > 20).long()
    )
    assert (task.predict(other).logits_BC - found.logits_BC).abs().max() > 1e-9
    if task.model.fusion.uses:
        dark = task.predict(replace(batch, image_XCHW=torch.zeros_like(batch.image_XCHW)))
        assert (dark.logits_BC - found.logits_BC).abs().max() > 1e-10
    # Images that are shared give the gradients of images that are repeated.
    gradients = []
    for each in (batch, apart):
        task.zero_grad()
        loss = total(task, each, now)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in task.parameters() if p.grad is not None)])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8)
    check_learning(task, batch, now)


def check_learning(task: JudgingLearner, batch: Batch, now: Moment) -> None:
    """A tiny step along the gradient lowers the loss by as much as the gradient says; frozen weights have none."""
    task.train()
    for module in task.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics of two images curve too much for a step of this size
            module.eval()
    task.zero_grad()
    total(task, batch, now).backward()
    learning = [parameter for parameter in task.parameters() if parameter.requires_grad]
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
    with torch.no_grad():
        drop = 1e-5  # pretrained layers round to float32, 1e-7 of the loss
        step, sides = drop / float(sum((parameter.grad**2).sum() for parameter in learning)), []
        for steps in (1, -2):
            for parameter in learning:
                parameter -= steps * step * parameter.grad
            sides.append(float(total(task, batch, now)))
        assert (sides[1] - sides[0]) / 2 == pytest.approx(drop, rel=0.05)


@pytest.mark.parametrize("active", ["joint", "text", "image", "text joint", "image joint"])
@pytest.mark.parametrize("text", ["transformer", "lstm"])
def test_only_what_is_weighted_learns(active, text):
    task, now = learner("convnet", text, "cross_modal", active=active)
    found = task(questions("convnet"), now)
    assert set(found) == set(active.split())
    sum(term.sum for term in found.values()).backward()
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name


def test_images_alone_are_judged_by_their_pooled_features():
    model = VelmModel(
        vision=VISION["convnet"](), text=TEXT["transformer"](), fusion=schema.NoFusionConfig(), vocab_size=VOCAB
    )
    weights = {"text": Weight(0, 0), "image": Weight(0, 0), "joint": Weight(1, 1)}
    task = JudgingLearner(model, schema.LossConfig(), weights=weights, labels=3, reads=False, space="classes")
    shares = torch.eye(3)[:2]
    image = images("convnet", 2)
    batch = Batch.of(
        torch.zeros(2, 0, 0, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
        image_XCHW=image,
        labels={"classes": shares},
    )
    loss = task(batch, Moment(frozenset({"joint"})))["joint"]
    assert loss.count == 2
    loss.sum.backward()
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
    found = task.eval().predict(batch)
    expected = task.label_head(model.encode_image(image).pooled_BD)
    torch.testing.assert_close(found.logits_BC, expected)


def test_the_mean_of_a_question_knows_no_padding():
    task, _ = learner("convnet", "bert", "weighted_sum")
    task.source_pool = SourcePool.mean
    task.eval()
    batch = questions("convnet")
    lengths_B = batch.source_lengths_B
    assert len(set(lengths_B.tolist())) > 1
    features = task.model.encode_image(batch.image_XCHW)
    fused_BLD = task._read(task.model.memory(features, batch.image_of_BI), batch)
    means = torch.stack([row[:length].mean(0) for row, length in zip(fused_BLD, lengths_B.tolist(), strict=True)])
    torch.testing.assert_close(task.predict(batch).logits_BC, task.label_head(means))
    at_ends = task.label_head(fused_BLD[torch.arange(len(lengths_B)), lengths_B - 1])
    assert not torch.allclose(task.predict(batch).logits_BC, at_ends)
