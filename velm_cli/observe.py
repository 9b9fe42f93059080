"""What a training run says while it runs: console lines, metrics.jsonl, trackers if asked for."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from velm_cli.files import sealed
from velm_cli.trackers import Trackers


class Observer:
    """Collects the figures of a run. Numbers arrive on log steps only, so nothing waits for the device."""

    def __init__(
        self,
        folder: Path | None,
        *,
        max_steps: int,
        step: int,
        utilisation: Callable[[float], float],
        target: str = "caption",
        trackers: Trackers | None = None,
    ) -> None:
        """`utilisation`: from captions a second to the share of the machine's peak. No folder: nothing is said.

        `target`: what lines call a caption; in files its name stays, whatever the task.
        """
        self.target = target
        self.quiet = folder is None
        self.path = folder / "metrics.jsonl" if folder else Path(os.devnull)
        self.file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (see close)
        disable = True if self.quiet else None  # None: where there is no terminal
        self.bar = tqdm(
            total=max_steps, initial=step, unit="step", disable=disable, mininterval=0.5, dynamic_ncols=True
        )
        self.max_steps = max_steps
        self.utilisation = utilisation
        self.began, self.first_step = time.perf_counter(), step
        self.trackers = trackers
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.since = time.perf_counter()
        self.captions = self.images = 0
        self.waiting = 0.0  # seconds spent waiting for data

    def advance(self, *, captions: int, images: int, waited: float) -> None:
        """Count a step that has been launched."""
        self.captions += captions
        self.images += images
        self.waiting += waited
        self.bar.update()

    def log(self, step: int, figures: dict[str, float]) -> None:
        """A line for the console and one for metrics.jsonl, with the throughput since the last one."""
        seconds = max(time.perf_counter() - self.since, 1e-9)
        figures = figures | {
            "captions_per_s": self.captions / seconds,
            "images_per_s": self.images / seconds,
            "data_wait": self.waiting / seconds,
            "utilisation": self.utilisation(self.captions / seconds),
        }
        self.record("train", step, figures)
        self.say(
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}  {_loss(figures)}  lr {figures['lr']:.2e}  "
            f"norm {figures['grad_norm']:.2f}  {_skipped(figures)}{figures['captions_per_s']:.0f} {self.target}s/s  "
            f"wait {100 * figures['data_wait']:.0f}%  mfu {100 * figures['utilisation']:.0f}%  {self._left(step)} left"
        )
        self._restart_clock()

    def _left(self, step: int) -> str:
        """Until the last step, at the pace so far of this process, validations included: 1:02:03."""
        pace = (time.perf_counter() - self.began) / max(1, step - self.first_step)
        return tqdm.format_interval(pace * (self.max_steps - step))

    def pause(self) -> PauseClock:
        """`with observer.pause():` keeps validation and saving out of the throughput."""
        return PauseClock(self)

    def record(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        # What is not finite has no form in JSON: null.
        strict = {key: None if _is_not_finite(value) else value for key, value in figures.items()}
        with self._naming_the_file():
            self.file.write(json.dumps(sealed({"kind": kind, "step": step, **strict}), allow_nan=False) + "\n")
        if self.trackers is not None:
            self.trackers.log(kind, step, figures)

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        """A full disk's error names no file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def say(self, line: str) -> None:
        if not self.quiet:
            self.bar.write(line)

    def close(self) -> None:
        self.bar.close()
        with self._naming_the_file():
            self.file.close()  # writes what could not be written before, once more


def _loss(figures: dict[str, float]) -> str:
    """What is minimised, and where there are several terms or a weight, what it is made of: the two may differ much."""
    losses = {key.removeprefix("loss_"): value for key, value in figures.items() if key.startswith("loss_")}
    weights = {name: figures.get(f"weight_{name}", 1.0) for name in losses}
    out = f"loss {sum(weights[name] * value for name, value in losses.items()):.4f}"
    if set(weights.values()) != {1.0} or len(losses) > 1:
        out += f" = {' + '.join(f'{weights[name]:.3g} {name} {value:.4f}' for name, value in losses.items())}"
    return out + "".join(f"  {name} {figures[name]:.4f}" for name in ("reward", "matching") if name in figures)


def _skipped(figures: dict[str, float]) -> str:
    """How many steps were left out since gradients overflowed float16, if any."""
    return f"skipped {skipped:.0f}  " if (skipped := figures.get("skipped_steps")) else ""


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class PauseClock:
    """Moves the throughput clock past the time spent in the block."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.observer.since += time.perf_counter() - self.began
