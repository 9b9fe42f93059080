"""What a step keeps with run.checkpoint_activations, found by watching one that keeps everything."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from velm_cli.engine.device import PRODUCTS
from velm_cli.engine.narrowing import narrow_frozen
from velm_cli.engine.recomputing import blocks_of
from velm_cli.learners.interface import Learner
from velm_cli.models.quantized import is_packed, packed_bytes
from velm_cli.models.velm import VelmModel
from velm_cli.schema import FrozenDtype, Precision, TrainRoot


class Watched:
    """The blocks of a model, while it computes: their inputs, what backward needs of each, its operations."""

    def __init__(self, saved: Mapping[int, int], counter: FlopCounterMode) -> None:
        """`saved`: bytes of the storages that are kept so far, by their addresses; it grows."""
        self.saved, self.counter = saved, counter
        self.inputs: dict[int, int] = {}
        self.within: list[set[int]] = []  # of each pass through a block: the storages that it alone keeps
        self.operations = 0
        self._begun: list[tuple[set[int], int]] = []
        self._held: list[Tensor] = []

    @contextmanager
    def of(self, model: VelmModel) -> Iterator[Watched]:
        hooks = []
        for block in blocks_of(model):
            hooks += [
                block.register_forward_pre_hook(self._enter, with_kwargs=True),
                block.register_forward_hook(self._leave),
            ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._begun.append((set(self.saved), self.counter.get_total_flops()))
        if torch.is_grad_enabled():
            for given in (*inputs, *options.values()):
                if isinstance(given, Tensor) and not isinstance(given, nn.Parameter):
                    self._held.append(given)
                    storage = given.untyped_storage()
                    self.inputs[storage._cdata] = storage.nbytes()

    def _leave(self, *_: Any) -> None:
        before, operations = self._begun.pop()
        if torch.is_grad_enabled():
            self.within.append(self.saved.keys() - before)
            self.operations += self.counter.get_total_flops() - operations

    @property
    def kept(self) -> int:
        """Bytes: what lies outside of blocks, the inputs of all, and all that the largest one needs."""
        inside = set().union(*self.within)
        outside = {address: size for address, size in self.saved.items() if address not in inside}
        largest = max((sum(self.saved[address] for address in block) for block in self.within), default=0)
        return sum((outside | self.inputs).values()) + largest


def as_in_training(learner: Learner, config: TrainRoot, precision: Precision) -> tuple[Learner, int]:
    """A learner on the meta device whose frozen matrices have the type that training keeps them in, and the bytes that
    4 bits save more. Tables of words are taken for exact in that type, as published language models' are."""
    learner = copy.deepcopy(learner)
    if precision is not Precision.fp32 and config.run.frozen_dtype is FrozenDtype.auto:
        names = {name for name, parameter in learner.named_parameters() if not parameter.requires_grad}
        narrow_frozen(learner.model, dict.fromkeys(names, PRODUCTS[precision]), PRODUCTS[precision])
    return learner, packed_bytes(learner.model.text) if is_packed(config.text) else 0
