"""What the task adds to its model and losses: limits of parameters, validation without label smoothing."""

import math

import pytest
import torch
from tiny_models import VOCAB, batch_of

from velm_cli import schema
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.joint import ContrastiveLoss
from velm_cli.objectives.weights import constant


def task_of(active: str, **loss) -> WritingLearner:
    torch.manual_seed(0)
    model = VelmModel(
        vision=schema.ConvNetConfig(image_size=16, width=24, stages=2),
        text=schema.TransformerConfig(width=16, layers=1, heads=2, dropout=0.0),
        fusion=schema.ConcatConfig(dropout=0.0),
        vocab_size=VOCAB,
    )
    return WritingLearner(model, schema.LossConfig(**loss), concepts=5, weights=constant(*active.split()))


@pytest.mark.parametrize("chunk", [0, 3])
def test_validation_leaves_label_smoothing_out_and_training_does_not(chunk):
    plain, smoothed = (task_of("text", chunk=chunk, label_smoothing=share) for share in (0.0, 0.3))
    batch = batch_of(torch.randn(3, 3, 16, 16))
    now = Moment(frozenset({"text"}))
    for learns in (True, False):
        losses = [task.train(learns)(batch, now)["text"].sum for task in (plain, smoothed)]
        assert torch.equal(*losses) is not learns


def test_the_contrastive_scale_comes_back_from_its_limit():
    """A scale above 100, as checkpoints of earlier versions may have, has a gradient and is below after a step."""
    task = task_of("joint").train()
    assert isinstance(task.joint_loss, ContrastiveLoss)
    scale = task.joint_loss.log_scale
    with torch.no_grad():
        scale.fill_(math.log(103.22))
    optimizer = torch.optim.SGD([scale], lr=1e-9)
    batch = batch_of(torch.randn(3, 3, 16, 16))
    for _ in range(2):
        optimizer.zero_grad()
        task(batch, Moment(frozenset({"joint"})))["joint"].sum.backward()
        assert scale.grad is not None and scale.grad.abs() > 1e-3, "the limit itself must not hold it"
        optimizer.step()
        task.after_step()
        assert float(scale.detach().exp()) == pytest.approx(100.0, rel=1e-5)
    with torch.no_grad():
        scale.fill_(math.log(30.0))
    task.after_step()
    assert float(scale.detach().exp()) == pytest.approx(30.0, rel=1e-5), "below the limit it is left alone"


def test_the_sigmoid_scale_has_no_limit():
    task = task_of("joint", joint=schema.JointLoss.sigmoid)
    with torch.no_grad():
        task.joint_loss.log_scale.fill_(math.log(150.0))
    task.after_step()
    assert float(task.joint_loss.log_scale.detach().exp()) == pytest.approx(150.0, rel=1e-5)


def test_the_mean_over_concepts_is_their_sum_divided_by_their_number():
    batch = batch_of(torch.randn(3, 3, 16, 16))
    summed, mean = (
        task_of("image", image_reduction=how)(batch, Moment(frozenset({"image"})))["image"].sum
        for how in schema.Reduction
    )
    torch.testing.assert_close(mean, summed / 5)
