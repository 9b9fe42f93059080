"""run.profile=true: where the time of a few steps went, as a trace to look into and a page to read.

`profile/trace.json.gz` opens in a browser's trace viewer (chrome://tracing, Perfetto); `profile/summary.txt` says
which part of a step and which kind of operation took how much.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from velm_cli.files import write_text

SUMMARY, TRACE = "summary.txt", "trace.json.gz"
BEFORE, WATCHED = 5, 10  # steps: the first ones also load kernels and fill caches
PARTS = ("wait for data", "forward", "backward", "optimiser")  # of a step, as the loop names them
OTHER = "everything else"
KINDS = {  # kind of operation -> parts of the names of torch's
    "attention": ("attention",),
    "convolutions": ("conv",),
    "matrix products": ("mm", "linear", "matmul"),
    "random masks": ("dropout", "bernoulli", "random", "rand"),
    "recurrent nets": ("lstm", "gru", "rnn"),
    "normalisation": ("norm",),
    "softmax and losses": ("softmax", "nll_loss", "cross_entropy"),
    "activations": ("gelu", "relu", "tanh", "sigmoid", "silu"),
    "weights' update": ("adamw", "foreach", "lerp"),
    "copies and casts": ("copy", "cat", "clone", "contiguous", "empty", "zero", "fill", "ones"),
    "lookups": ("embedding", "index", "gather", "scatter"),
    "sums and products": ("add", "mul", "sum", "div", "sub", "pow", "mean"),
}

part = record_function  # `with part("forward"):` names what a trace shows; a microsecond when nothing is profiled


class StepProfiler:
    """Watches the first steps of this process after a few that warm up, then writes what it saw."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self._device = folder, device
        self._steps = 0
        self._watch: Any = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around all of a step, the wait for its data included."""
        if self._steps == BEFORE:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            # Or torch's tracer says that it begins and ends, and calls it an error that there is no GPU.
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
            self._watch = profile(activities=activities)
            self._watch.start()
        yield
        self._steps += 1
        if self._steps == BEFORE + WATCHED:
            self.finish()

    def finish(self) -> None:
        """Write what was seen, if anything; a run that ends early has seen fewer steps."""
        if self._watch is None:
            return
        self._watch.stop()
        watch, self._watch = self._watch, None
        self.folder.mkdir(parents=True, exist_ok=True)
        watch.export_chrome_trace(str(self.folder / TRACE))
        write_text(self.folder / SUMMARY, summary(watch.key_averages(), self._steps - BEFORE))

    @property
    def outcome(self) -> str:
        """For the user: the page, or why there is none."""
        too_few = f"too few steps: the first {BEFORE} are not watched"
        return too_few if self._steps <= BEFORE else str(self.folder / SUMMARY)


def summary(events: Any, steps: int) -> str:
    """A page: parts of a step, kinds of operations, and the single operations that took most."""
    # What the program called, with the time that it took on the device; kernels of their own would count twice.
    events = [event for event in events if event.device_type == DeviceType.CPU]
    on_device = any(event.self_device_time_total for event in events)

    def own(event: Any) -> float:  # microseconds in which it ran itself
        return event.self_device_time_total if on_device else event.self_cpu_time_total

    operations = [event for event in events if event.key not in PARTS]
    kinds: dict[str, float] = {}
    for event in operations:
        kinds[_kind(event.key)] = kinds.get(_kind(event.key), 0.0) + own(event)
    parts = {event.key: event.cpu_time_total for event in events if event.key in PARTS}
    most = {event.key: own(event) for event in sorted(operations, key=own, reverse=True)[:20]}
    title = f"{steps} steps after the first {BEFORE}, milliseconds a step" + (" on the device" if on_device else "")
    tables = {
        "part of a step (as the CPU saw it)": {name: parts[name] for name in PARTS if name in parts},
        "kind of operation": dict(sorted(kinds.items(), key=lambda kind: -kind[1])),
        "operation": most,
    }
    return "\n\n".join(
        [title, *(_table(name, rows, steps, whole=name != "operation") for name, rows in tables.items())]
    )


def _kind(operation: str) -> str:
    name = operation.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def _table(title: str, microseconds: dict[str, float], steps: int, *, whole: bool) -> str:
    total = sum(microseconds.values()) or 1.0
    lines = [f"{title:<48}{'ms':>10}{'share':>8}"] if whole else [f"{title:<48}{'ms':>10}"]
    for name, time in microseconds.items():
        share = f"{100 * time / total:>7.1f}%" if whole else ""
        lines.append(f"{name[:47]:<48}{time / steps / 1000:>10.2f}{share}")
    return "\n".join(lines)
