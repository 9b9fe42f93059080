"""What a loss over pairs needs of the other ranks: their rows, with exact gradients back to them.

Without torch.distributed, or with one rank, a tensor's rows are all the rows there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed

_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it a rank's rows are all there are: for validation, where the ranks see unlike batches."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if _alone or not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def of_all_ranks(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the ranks' order; each must bring equally many.

    In backward a row gets the sum of the gradients that the ranks have for it: when every rank's loss is its
    share of a sum, gradients are those of the whole sum.
    """
    if rank_and_ranks()[1] == 1:
        return rows
    if rows.dtype is torch.bool:
        return _gathered(rows.to(torch.uint8)).bool()
    return _Gather.apply(rows)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, rows: Tensor) -> Tensor:
        return _gathered(rows)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        rank, ranks = rank_and_ranks()
        total = gradient.contiguous()
        distributed.all_reduce(total)
        return total.chunk(ranks)[rank]


def _gathered(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(rank_and_ranks()[1])]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
