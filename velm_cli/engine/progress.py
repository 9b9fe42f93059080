"""What a training run knows besides tensors, and how it is read back from a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

COUNTS = ("step", "bad_validations", "validated_step", "steps_at_scale", "skipped_steps")


@dataclass(slots=True)
class Progress:
    """What the loop knows besides tensors. The sampler's cursor follows from `step`."""

    step: int = 0  # optimiser steps done
    best: float | None = None  # best validation CIDEr so far; the newest while schedules move
    best_step: int | None = None
    bad_validations: int = 0  # validations since the best one; whether they are too many is decided anew
    validated_step: int = 0  # the last step whose validation was completed
    seconds: float = 0.0  # training time so far, over all sessions
    grad_scale: float = 2.0**16  # fp16: what the loss is multiplied with (engine/scaling.py)
    steps_at_scale: int = 0  # fp16: updates since that last changed
    skipped_steps: int = 0  # fp16: steps without an update so far


def read_progress(saved: Any, step: int) -> Progress:
    """The progress in the state of checkpoint `step`; ValueError when a value is not what velm writes there.

    A right checksum says nothing of that: whoever writes a file can make one.
    """
    if not isinstance(saved, dict):
        raise ValueError("its progress is not an object")
    values: dict[str, Any] = asdict(Progress()) | saved
    values.pop("stopped_early", None)  # an older velm's
    fine = {name: _is_count(values[name]) for name in COUNTS}
    fine["best_step"] = values["best_step"] is None or _is_count(values["best_step"])
    fine["best"] = values["best"] is None or _is_finite(values["best"])
    fine["seconds"] = _is_finite(values["seconds"]) and values["seconds"] >= 0
    fine["grad_scale"] = _is_finite(values["grad_scale"]) and values["grad_scale"] > 0
    if strange := [name for name in values if not fine.get(name)]:
        raise ValueError(f"its progress has a strange {str(strange[0])[:40]!r}")
    if values["step"] != step:
        raise ValueError(f"it is of step {values['step']}")
    return Progress(**values)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf
