"""How much of the machine a step uses: floating-point operations counted, and the peak measured on the spot.

Model FLOP utilisation (Chowdhery et al. 2022, appendix B) is the operations that a step's mathematics needs, a
second, over those of large matrix products. What is computed twice to save memory counts once only where it is
not asked for; masks, norms and activations count nothing, as is usual.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from velm_cli.engine.device import PRODUCTS
from velm_cli.schema import Precision

SIDE = {"cpu": 1536, "cuda": 8192, "mps": 2048}  # of the matrices: large enough for the peak, done in milliseconds
TOGETHER = {"cuda": 10}  # products that are waited for together: a GPU's would end before the wait has begun
EMULATED = 384  # SIDE of float16 on a CPU, which most multiply a hundred times as slowly
REPEATS = 5


def matrix_peak(device: torch.device, precision: Precision) -> float:
    """FLOP/s of a large matrix product in `precision`, the best of a few.

    On a CPU by the processor's time, since the peak is of the machine: beside other work the clock goes on meanwhile.
    """
    clock = _processor_clock if device.type == "cpu" else time.perf_counter
    dtype = PRODUCTS[precision]
    side, together = SIDE.get(device.type, 1024), TOGETHER.get(device.type, 1)
    if device.type == "cpu" and dtype is torch.float16:
        side = EMULATED
    # Drawn, since a GPU multiplies ones faster (its clock rises where bits do not change); by itself, since the run's
    # own draws must not move.
    draw = torch.Generator(device).manual_seed(0)
    a = torch.randn(side, side, generator=draw, device=device).to(dtype)
    best = float("inf")
    for _ in range(REPEATS):
        began = clock()
        for _ in range(together):
            product = a @ a
        float(product[0, 0])  # reading a number waits for the device
        best = min(best, clock() - began)
    return 2 * side**3 * together / best


def _processor_clock() -> float:
    """Seconds that each of torch's threads has had of the processor."""
    return time.process_time() / torch.get_num_threads()


def _counting() -> Any:
    """A context that counts, by torch's own formulas, the operations that are called within it."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        operations = 0

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # Always True, as in torch's FlopCounterMode, would import the whole compiler, for two seconds.
            return "torch._dynamo" in sys.modules

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            formula = flop_registry.get(func._overloadpacket)
            if formula is not None:
                try:
                    self.operations += formula(*args, **(kwargs or {}), out_val=out)
                except AssertionError:  # torch's formula knows no keys that several queries share
                    self.operations += formula(*_with_all_heads(args), **(kwargs or {}), out_val=out)
            return out

    return Counter()


def _with_all_heads(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an attention (B, heads, T, D), keys and values as if each query had its own."""
    heads = max(each.shape[1] for each in args if isinstance(each, torch.Tensor) and each.ndim == 4)

    def whole(each: Any) -> Any:
        if isinstance(each, torch.Tensor) and each.ndim == 4 and each.shape[1] < heads:
            B, _, T, D = each.shape
            return torch.empty(B, heads, T, D, device="meta")
        return each

    return tuple(map(whole, args))


class Meter:
    """Counts the operations of a process's first step, and of the next after `forget`; others in proportion.

    In a mixture, of the first step of each kind: what a text costs depends on the task.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.peak = matrix_peak(device, precision)
        self._counted: dict[str, float] = {}  # operations a caption, by the kind of step
        self._captions: dict[str, int] = {}  # of all steps so far

    @property
    def per_caption(self) -> float | None:
        """Operations, on the mean of the steps so far; None before anything was counted."""
        captions = {kind: self._captions[kind] for kind in self._counted}
        operations = sum(self._counted[kind] * count for kind, count in captions.items())
        return operations / max(1, sum(captions.values())) if captions else None

    @contextlib.contextmanager
    def watching(self, captions: int, kind: str = "") -> Iterator[None]:
        """Around a step of so many captions."""
        self._captions[kind] = self._captions.get(kind, 0) + captions
        if kind in self._counted:
            yield
            return
        with _counting() as counted:
            yield
        self._counted[kind] = counted.operations / max(1, captions)

    def forget(self) -> None:
        """Count the next step again."""
        self._counted.clear()

    def utilisation(self, captions_per_s: float) -> float:
        """Share of the peak, 0 to 1; 0 before anything was counted."""
        return (self.per_caption or 0.0) * captions_per_s / self.peak
