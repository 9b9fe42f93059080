"""What the bench scripts share: contestants that take turns, ratios with their spread, the machine described.

A busy machine slows all contestants of a round alike, so the ratios of single rounds say more than times do. Where
memory matters each contestant has a process of its own (`Apart`), so that its settings and its heap are its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from velm_cli.data.batch import Batch
from velm_cli.data.processes import available_cores
from velm_cli.engine.checkpoint import Checkpoints
from velm_cli.engine.folder import OpenRun
from velm_cli.engine.loop import Run, train_step
from velm_cli.engine.meter import Meter
from velm_cli.engine.optim import build_optimizer
from velm_cli.engine.parallel import Replica
from velm_cli.engine.progress import Progress
from velm_cli.engine.ranks import Ranks
from velm_cli.files import write_json
from velm_cli.learners.interface import Learner
from velm_cli.place import Place
from velm_cli.schema import Precision, TrainRoot

Seconds = dict[str, list[float]]
CPU = torch.device("cpu")
COMMAND = tuple(map(str, sys.argv))  # as it was typed: a call of velm in this process has a sys.argv of its own


class Apart:
    """An object made and kept in a new process by `make(*arguments)`; `call` runs its methods there."""

    def __init__(self, make: Callable[..., Any], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()

    def call(self, method: str, *arguments: object) -> Any:
        """What the method returns. Raises RuntimeError with what it raised, EOFError where its process has died."""
        self._connection.send((method, arguments))
        result, failure = self._connection.recv()
        if failure:
            raise RuntimeError(failure)
        return result

    def close(self) -> None:
        """End its process, and free its memory."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    made = make(*arguments)
    with contextlib.suppress(EOFError):  # the end of the script
        while True:
            method, given = connection.recv()
            try:
                connection.send((getattr(made, method)(*given), None))
            except Exception:
                connection.send((None, traceback.format_exc()))


def take_turns(contestants: Mapping[str, Callable[[int], object]], rounds: int) -> Seconds:
    """Seconds of each contestant in each of `rounds` rounds: A B C, A B C ... Each is given the round's number."""
    seconds: Seconds = {name: [] for name in contestants}
    for number in tqdm(range(rounds), desc="rounds", disable=None):
        for name, work in contestants.items():
            began = time.perf_counter()
            work(number)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Seconds, ours: str, theirs: str) -> dict[str, float]:
    """How many times faster `ours` is than `theirs`: the median and the range of the rounds' ratios."""
    ratios = [their / our for our, their in zip(seconds[ours], seconds[theirs], strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def run_of(
    learner: Learner, config: TrainRoot, precision: Precision = Precision.fp32, device: torch.device = CPU
) -> Run:
    """What `train_step` needs to train `learner` where it is."""
    alone = Ranks(Place(), device)
    return Run(
        config=config,
        opened=OpenRun(Path()),
        learner=learner,
        ranks=alone,
        replica=Replica(learner, alone, config.run.parallel),
        checkpoints=Checkpoints(Path(), alone, keep=1),
        optimizer=build_optimizer(learner, config.optim),
        ema=None,
        steps_per_epoch=1000,
        precision=precision,
        progress=Progress(),
        meter=Meter(device, precision),
        profiler=None,
    )


def step(run: Run, batch: Batch) -> None:
    """A training step in the middle of the run."""
    train_step(run, 500, [batch], run.learner.counts(batch))


def row(what: str, times: Mapping[str, float], asked: float | None = None) -> dict[str, Any]:
    """A line of docs/performance.md: what is compared, its ratio, and what the project asks of itself."""
    return {"what": what, "asked": asked, **times}


def said(row: Mapping[str, Any]) -> str:
    """A row in words: `what  3.21 x  (2.90 to 3.55), asked 3`."""
    words = f"{row['what']:<58} {row['median']:6.2f} x  ({row['low']:.2f} to {row['high']:.2f})"
    return words if row["asked"] is None else f"{words}, asked {row['asked']:g}"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def save(path: Path | None, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """Print the rows; write them and the other figures with the machine to `path`, if there is one."""
    for each in rows:
        print(said(each))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["python", Path(COMMAND[0]).name, *COMMAND[1:]]
        write_json(path, {"command": " ".join(command), "machine": machine(), "rows": rows} | result)
