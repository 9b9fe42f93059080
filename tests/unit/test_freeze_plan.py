"""Whatever is frozen and whatever the objective, DDP finds a gradient for every parameter that is to learn.

DDP without `find_unused_parameters` stops with "finished reduction" errors where a trainable parameter gets
none, so the plan of `freeze_unused` is right exactly when two ranks get through two steps.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from test_matrix import OBJECTIVES, WRITING, learner
from tiny_models import batch_of, folder

from velm_cli import schema
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.vision import frozen_stages
from velm_cli.objectives.weights import constant

FREEZE = {
    "nothing": lambda model: None,
    "vision": lambda model: model.vision.requires_grad_(False),
    "first stage": lambda model: [stage.requires_grad_(False) for stage in frozen_stages(model.vision, "first:1")],
    "text": lambda model: model.text.requires_grad_(False),
    "both": lambda model: (model.vision.requires_grad_(False), model.text.requires_grad_(False)),
}
CELLS = [
    ("transformer", "cross_modal"), ("lstm", "add"), ("causal_lm", "prefix"), ("transformer", "gated"),
    ("transformer", "co_attention"), ("bert", "attention"),
]  # fmt: skip


def plans(every_nth: int) -> list[tuple[str, str, str, str]]:
    every = itertools.product(CELLS, OBJECTIVES, FREEZE)
    possible = [
        (text, fusion, objective, freeze)
        for (text, fusion), objective, freeze in every
        if not (fusion == "co_attention" and objective in WRITING)
        and not (OBJECTIVES[objective][1].text is schema.TextLoss.masked and text in ("lstm", "causal_lm"))
    ]
    return possible[::every_nth]


def rank_of_two(rank: int, every_nth: int, rendezvous: str, report: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    trained = skipped = 0
    for text, fusion, objective, freeze in plans(every_nth):
        torch.manual_seed(0)
        model = learner(text, fusion, objective)
        FREEZE[freeze](model)
        terms = frozenset(OBJECTIVES[objective][0].split())
        task = WritingLearner(model, OBJECTIVES[objective][1], concepts=5, weights=constant(*terms)).train()
        if not any(parameter.requires_grad for parameter in task.parameters()):
            skipped += 1
            continue
        ddp = torch.nn.parallel.DistributedDataParallel(task)
        optimizer = torch.optim.SGD((p for p in task.parameters() if p.requires_grad), lr=1e-3)
        torch.manual_seed(1 + rank)
        batch = batch_of(torch.rand(3, 3, 16, 16))
        for _ in range(2):
            found = ddp(batch, Moment(terms))
            sum(term.sum / term.count for term in found.values()).backward()
            without = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
            assert not without, (text, fusion, objective, freeze, without)
            optimizer.step()
            optimizer.zero_grad()
        mine = torch.cat([p.detach().flatten() for p in task.parameters()])
        other = mine.clone()
        torch.distributed.broadcast(other, src=0)
        assert torch.equal(mine, other), f"the ranks drifted apart: {(text, fusion, objective, freeze)}"
        trained += 1
    if rank == 0:
        Path(report).write_text(f"{trained} {skipped}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("every_nth", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_two_ranks_train_every_plan(every_nth, tmp_path, monkeypatch):
    for kind in ("llama", "bert"):  # made here: only the first rank of a group would write them whole
        monkeypatch.setenv("VELM_TINY_MODELS", str(Path(folder(kind)).parent))
    with tempfile.TemporaryDirectory() as place:
        arguments = (every_nth, os.path.join(place, "rendezvous"), str(tmp_path / "report"))
        torch.multiprocessing.spawn(rank_of_two, arguments, nprocs=2)
    trained, skipped = map(int, (tmp_path / "report").read_text().split())
    assert trained + skipped == len(plans(every_nth)) and skipped <= len(CELLS) and trained > 150 / every_nth
