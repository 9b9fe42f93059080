"""run.checkpoint_activations: blocks keep their inputs only, and backward computes the rest again (Chen et al. 2016).

One more forward pass of the blocks, for the memory of one block's activations instead of all. transformers' own
switch (`gradient_checkpointing_enable`) is not used: it knows its own layers only, and takes the cache away from
them in a way that leaves its model's caller without one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from velm_cli.models.layers import layers_in
from velm_cli.models.velm import VelmModel


def checkpoint_activations(model: VelmModel) -> int:
    """Let each of the model's blocks keep its inputs only, in passes that learn; the number of blocks.

    Changes the blocks' classes, which a copy of the model then has, too, and neither their parameters' names nor hooks.
    """
    blocks = list(blocks_of(model))
    for block in blocks:
        kind: Any = type(block)
        block.__class__ = _recomputed(kind)  # type: ignore[assignment]
    for text in (model.text, model.source.encoder if model.source is not None else None):
        if text is not None:
            text.keeps_state = False
    return len(blocks)


def blocks_of(model: VelmModel) -> Iterator[nn.Module]:
    """The blocks that repeat in its parts; of lists within lists (a mixture of experts) the outer ones."""
    parts = [part for part in (model.text, model.source, model.fusion) if part is not None]
    found = dict.fromkeys(chain(model.vision.stages() if model.vision else (), *map(layers_in, parts)))
    inner = {id(part) for block in found for part in block.modules() if part is not block}
    return (block for block in found if id(block) not in inner and next(block.parameters(), None) is not None)


@functools.cache
def _recomputed(block: Any) -> type[nn.Module]:
    """The class of a block, with a forward that is run again in backward."""

    class Recomputed(block):  # type: ignore[misc]
        @functools.wraps(block.forward)  # some callers look at its signature
        def forward(self, *args: Any, **options: Any) -> Any:
            run = functools.partial(block.forward, self)
            if not torch.is_grad_enabled():
                return run(*args, **options)
            from torch.utils.checkpoint import checkpoint

            norms = [part for part in self.modules() if isinstance(part, _BatchNorm) and part.training]
            more: dict[str, Any] = {"context_fn": lambda: (contextlib.nullcontext(), _still(norms))} if norms else {}
            return checkpoint(run, *args, use_reentrant=False, **more, **options)

    Recomputed.__name__, Recomputed.__qualname__ = block.__name__, block.__qualname__
    return Recomputed


@contextlib.contextmanager
def _still(norms: list[_BatchNorm]) -> Iterator[None]:
    """Within it batch normalisations add a batch's statistics to none: the first pass has."""
    before = [(norm.momentum, _copied(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and batches is not None:
                norm.num_batches_tracked.copy_(batches)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
