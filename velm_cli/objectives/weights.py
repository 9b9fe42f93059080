"""The weights alpha, beta, gamma: a number or a schedule over the optimiser steps. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from velm_cli.errors import UserError
from velm_cli.schema import LossConfig

LARGEST = 1e6  # weight of a term: beyond, float32 has no room for gradients
_SCHEDULE = re.compile(r"(linear|cosine|step)\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*,\s*(\d+)\s*(ep)?\s*\)")


@dataclass(frozen=True, slots=True)
class Weight:
    """From `start` to `end` over the first `duration` steps (or epochs), then `end`; `step` jumps at their end."""

    start: float
    end: float
    duration: int = 0
    in_epochs: bool = False
    shape: str = "linear"
    learned: bool = False  # exp(-s) with a trained s that starts at 0 (Kendall et al. 2018)

    @property
    def always_zero(self) -> bool:
        return self.start == 0 and self.end == 0

    def settled(self, steps_per_epoch: float) -> float:
        """The first optimiser step (of 0, 1, ...) from which on the weight stays at `end`; 0 where it never moves."""
        if self.start == self.end:
            return 0
        return self.duration * steps_per_epoch if self.in_epochs else self.duration

    def at(self, step: int, steps_per_epoch: float) -> float:
        """The weight at optimiser step `step` (the first is 0)."""
        steps = self.settled(steps_per_epoch)
        if step >= steps:
            return self.end
        if self.shape == "step":
            return self.start
        progress = step / steps
        if self.shape == "cosine":
            progress = 0.5 - 0.5 * math.cos(math.pi * progress)
        return self.start + (self.end - self.start) * progress


def parse_weight(key: str, text: str) -> Weight:
    """`0.5`, `linear(0,1,500)`, `step(0,1,500)` (steps), `cosine(1,0,5ep)` (epochs) or `learned`.

    `key` is named in the error.
    """
    if text.strip() == "learned":
        return Weight(1.0, 1.0, learned=True)
    try:
        match = _SCHEDULE.fullmatch(text.strip())
        if match is None:
            value = _finite(text)
            return Weight(value, value)
        shape, start, end, duration, epochs = match.groups()
        return Weight(_finite(start), _finite(end), int(duration), epochs is not None, shape)
    except ValueError:
        raise UserError(
            f"{key}: {text!r} is neither a number from 0 to {LARGEST:g} nor a schedule such as "
            "linear(0,1,500) (steps) or cosine(1,0.1,5ep) (epochs), nor the word learned"
        ) from None


def term_weights(loss: LossConfig) -> dict[str, Weight]:
    """alpha, beta, gamma by the term that they weigh."""
    names = {"text": "alpha", "image": "beta", "joint": "gamma"}
    return {term: parse_weight(f"loss.{name}", getattr(loss, name)) for term, name in names.items()}


def constant(*terms: str) -> dict[str, Weight]:
    """1 for these terms, 0 for the others."""
    return {name: Weight(float(name in terms), float(name in terms)) for name in ("text", "image", "joint")}


def _finite(text: str) -> float:
    value = float(text)
    if not 0 <= value <= LARGEST:  # NaN is not, either
        raise ValueError(text)
    return value
