"""The part of gpu_check.py that trains with ddp and fsdp, over NCCL on all GPUs (over gloo on two CPU processes).

One GPU is one rank: torch's wrappers and NCCL are then put around the model all the same, where velm would do without.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from pathlib import Path

import torch
from gpu_check import Report
from gpu_right import ALL_TERMS, CELLS, make_batch, make_task, without_tf32
from torch import Tensor, distributed, multiprocessing

from velm_cli import schema
from velm_cli.engine.parallel import Replica, is_slice
from velm_cli.engine.ranks import Ranks
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.objectives.ranks import alone as no_ranks
from velm_cli.place import Place

STEPS, LEARNING_RATE = 5, 0.1
IMAGES = 4  # per rank


def ranks(report: Report, device: torch.device) -> None:
    """After a few steps all ranks have the same weights, and those of one process that had the whole batch."""
    for backend in ("GLOO", "NCCL"):  # a machine without a network may not know its own name
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")
    counts = [2]
    if device.type == "cuda":
        counts = sorted({1, torch.cuda.device_count()})
    for world in counts:
        backend = "nccl" if device.type == "cuda" else "gloo"
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(_rank, (world, device.type, backend, folder), nprocs=world)
            found = {how: torch.load(Path(folder) / f"{how.value}.pt", weights_only=True) for how in schema.Parallel}
        for how, figures in found.items():
            drift, difference, moved = figures.tolist()
            name = f"{how.value}, {world} {'rank' if world == 1 else 'ranks'}, {backend}"
            report.check(f"{name}: largest difference of a weight between ranks", drift, 0)
            report.check(f"{name}: weights after {STEPS} steps, from those of one process", difference, 1e-3)
            report.check(f"{name}: the same, as a share of how far they went", difference / moved, 1e-1)


def _rank(rank: int, world: int, kind: str, backend: str, folder: str) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    without_tf32()
    distributed.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    here = Ranks(Place(rank, world, rank), device, distributed.new_group(backend="gloo"))
    for how in schema.Parallel:
        found = _trained(here, how)
        if rank == 0:
            torch.save(found.cpu(), Path(folder) / f"{how.value}.pt")
    distributed.destroy_process_group()


def _trained(here: Ranks, how: schema.Parallel) -> Tensor:
    """Largest difference between ranks; distance from one process's weights, and how far these went, by their norm."""
    world, rank, device = here.world, here.rank, here.device
    task = make_task(*CELLS[0]).to(device)
    alone = copy.deepcopy(task)
    start = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    side, images = task.model.image_size, IMAGES * world
    whole, mine = make_batch(side, images=images), make_batch(side, images=images, rows=slice(rank, None, world))
    together = Replica(task, here, how)
    if world == 1:  # velm does without the wrappers here; that they work is what is to be seen
        together._shard() if how is schema.Parallel.fsdp else together._copy()
    totals = task.counts(whole)
    for replica, batch in ((together, mine), (Replica(alone, Ranks(Place(), device), how), whole)):
        optimizer = torch.optim.SGD([p for p in replica.learner.parameters() if p.requires_grad], lr=LEARNING_RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            with contextlib.nullcontext() if replica is together else no_ranks():
                terms = replica(batch.to(device), Moment(ALL_TERMS))
                replica.backward(sum(term.sum / totals[name] for name, term in terms.items()))
            replica.add_up_the_rest()
            optimizer.step()
    found, expected = _flat(task), _flat(alone)
    first = found.clone()
    distributed.broadcast(first, src=0)
    drift = (found - first).abs().max()
    distributed.all_reduce(drift, distributed.ReduceOp.MAX)
    scale = expected.norm()
    moved = expected - torch.cat([tensor.flatten() for tensor in start.values()])
    return torch.stack([drift, (found - expected).norm() / scale, moved.norm() / scale])


def _flat(task: WritingLearner) -> Tensor:
    held = (tensor.full_tensor() if is_slice(tensor) else tensor for tensor in task.state_dict().values())
    return torch.cat([tensor.flatten() for tensor in held])
