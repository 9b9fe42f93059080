"""Several processes that train one model: who holds which weights, and how gradients become those of all.

Every rank reads its rows of each global batch (`data/loader.py`) and computes its share of the loss: a sum over its
own tokens, images and captions, divided by the counts of all ranks. Gradients are added up, so that a step is that
of one process with the whole batch.

Two ways to hold the weights. ddp: every rank has all of them (torch's DistributedDataParallel; Li et al. 2020).
fsdp: each has a slice of every matrix and of the optimiser's state, and layers are put together where they are used
(torch's fully_shard; Zhao et al. 2023).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from velm_cli.engine.ranks import Ranks
from velm_cli.learners.interface import Learner
from velm_cli.objectives.ranks import alone
from velm_cli.objectives.terms import Term
from velm_cli.schema import Parallel

if TYPE_CHECKING:  # importing it takes a moment, and one process never has any
    from torch.distributed.tensor import DTensor


class Replica:
    """A rank's part in the steps: how the learner is called, and how gradients become those of all ranks."""

    def __init__(self, learner: Learner, ranks: Ranks, how: Parallel) -> None:
        self.learner, self.ranks = learner, ranks
        self._forward: nn.Module = learner
        self._by_hand: list[nn.Parameter] = []  # parameters whose gradients are added up here, not by torch
        self._sharded: Any = None  # the learner as fully_shard has changed it
        self._plain: Learner | None = None  # and as it was, in main memory
        if ranks.world == 1:
            return
        if how is Parallel.fsdp:
            self._shard()
        else:
            self._copy()

    def _copy(self) -> None:
        # The weights of terms take part in the loss outside of the learner's forward, where DDP does not see them.
        self._by_hand = list(self.learner.log_variance.values())
        ignored = [name for name, p in self.learner.named_parameters() if any(p is q for q in self._by_hand)]
        ddp = nn.parallel.DistributedDataParallel
        ddp._set_params_and_buffers_to_ignore_for_model(self.learner, ignored)
        # Weights of terms that come and go with the schedule leave parameters without gradients. Besides, buckets
        # are then not rearranged after the first step, so a resumed run adds in the same order: the same bits.
        self._forward = ddp(self.learner, find_unused_parameters=True, gradient_as_bucket_view=True)

    def _shard(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        _show_tensors_of_terms()
        mesh = init_device_mesh(self.ranks.device.type, (self.ranks.world,))
        scalars = {p for p in self.learner.parameters() if p.ndim == 0}  # cannot be sliced
        self._by_hand = [p for p in self.learner.parameters() if p in scalars and p.requires_grad]
        # The fusion's layers stay with the rest: they are asked for more than their forward (keys and values).
        layers = dict.fromkeys(self.learner.wrapped())
        blocks = [layer for layer in layers if next(layer.parameters(), None) is not None]
        # Layers return keys and values, which are views and are never written to.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self._plain = copy.deepcopy(self.learner).to("cpu")
        for module in (*blocks, self.learner):
            self._sharded = fully_shard(module, mesh=mesh, ignored_params=scalars)

    def __call__(self, *args: Any, **options: Any) -> dict[str, Term]:
        return self._forward(*args, **options)

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward: gradients are exchanged after the last micro-batch of a step only."""
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(last)
        if isinstance(self._forward, nn.parallel.DistributedDataParallel) and not last:
            with self._forward.no_sync():
                yield
        else:
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss's sum over the ranks: torch averages them, hence the factor."""
        (loss * self.ranks.world if self.ranks.world > 1 else loss).backward()

    def add_up_the_rest(self) -> None:
        """After the last backward: the gradients that torch was not left in charge of, averaged as torch does."""
        for parameter in self._by_hand:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.ranks.world

    def clip(self, parameters: list[nn.Parameter], limit: float) -> Tensor:
        """Scale the gradients down to the norm `limit`; the norm over all ranks that they had."""
        if self._sharded is None:
            return torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
        grads = [p.grad for p in parameters if p.grad is not None]
        slices = [grad.to_local() for grad in grads if is_slice(grad)]
        wholes = [grad for grad in grads if not is_slice(grad)]
        squared = torch.nn.utils.get_total_norm(slices).square()
        distributed.all_reduce(squared)
        norm = (squared + torch.nn.utils.get_total_norm(wholes).square()).sqrt() if wholes else squared.sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            torch._foreach_mul_(slices + wholes, scale)
        return norm

    def same_buffers(self) -> None:
        """Batch statistics are each rank's own while it trains; what is validated and saved are rank 0's."""
        if self.ranks.world > 1:
            for buffer in self.learner.buffers():
                distributed.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def undivided(self) -> Iterator[Learner]:
        """The learner with all weights on every rank, which computes by itself: in validation ranks differ in work."""
        learner = self.learner
        if self._plain is not None:  # torch keeps the layers of `self.learner` in step between the ranks
            whole = {name: _whole(tensor) for name, tensor in learner.state_dict().items()}
            self._plain.load_state_dict(whole)
            learner = self._plain.to(self.ranks.device).train(learner.training)
        try:
            with alone():
                yield learner
        finally:
            if self._plain is not None:
                self._plain.to("cpu")


@functools.cache
def _show_tensors_of_terms() -> None:
    """Tell torch which tensors a Term holds: fully_shard starts the backward of what no layer holds (all that learns,
    below a frozen encoder and a recurrent text encoder) at those that the learner returns, and torch 2.11 looks into no
    dataclass that it was not told of: gradients then stay each rank's own."""
    from torch.export import register_dataclass

    register_dataclass(Term)


def is_slice(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this rank holds a slice of the tensor only (fsdp)."""
    return hasattr(tensor, "full_tensor")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_slice(tensor) else tensor


def slice_like(own: Tensor, tensor: Tensor) -> Tensor:
    """The part of a whole tensor that `own` is, on its device."""
    if not is_slice(own):
        return tensor.to(own.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = own.device_mesh, own.placements
    # src_data_rank=None: every rank has read the tensor and needs nobody else's.
    return distribute_tensor(tensor.to(own.device), mesh, placements, src_data_rank=None)


def whole_tensors(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors by name, whole, on rank 0; empty on the others, which all ask too, in the same order.

    What is put together from slices lies in main memory, one tensor after the other: no device has to hold it all.
    """
    out = {}
    for name, tensor in tensors.items():
        together = _whole(tensor)
        if ranks.first:
            out[name] = together.cpu() if is_slice(tensor) else together
    return out


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, wherever the module's lie and however they are sliced."""
    own = module.state_dict()
    module.load_state_dict({name: slice_like(own[name], t) if name in own else t for name, t in state.items()})
