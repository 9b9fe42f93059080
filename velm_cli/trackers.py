"""Where the figures of a run go besides its metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

A tracker neither stops nor delays training: a thread of its own sends the figures, and its first error ends it with
one note. What it was sent is kept as RUN/TRACKER/velm.json: a resumed run goes on in the same run of the tracker, and
steps that are computed again after a kill are not sent again.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from velm_cli.errors import on_one_line
from velm_cli.files import read_log, read_sealed, sealed, write_json
from velm_cli.schema import RunConfig
from velm_cli.tracker_kinds import PACKAGES, TRACKERS, Tracker

PATIENCE = 60.0  # seconds that the end of a run waits for figures on their way
HURRY = 10.0  # the same when a signal stopped the run, whose machine may be about to go
STATE = "velm.json"
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a run folder may come from a stranger


def missing(run: RunConfig) -> list[str]:
    """A line for each tracker that `run` asks for and that is not installed."""
    lines = []
    for option, (title, packages) in PACKAGES.items():
        if getattr(run, option) and any(find_spec(module) is None for module in packages):
            lines.append(f"run.{option}=true needs {title}: pip install {' '.join(packages.values())}")
    return lines


def without_secrets(value: Any) -> Any:
    """An option's value as it may leave the machine: without credentials in URLs, and commands without arguments."""
    if isinstance(value, list):
        return [without_secrets(part) for part in value]
    if not isinstance(value, str):
        return value
    if value.startswith("pipe:"):
        return "pipe:..."
    if "://" not in value:
        return value
    return re.sub(r"(?<=://)[^/\s]*@|[?#].*", "", value, flags=re.DOTALL)


class Trackers:
    """The trackers that a run asks for: nothing happens before `begin`, which the first process alone calls.

    with Trackers(config.run) as trackers:
        trackers.begin(path, config.run, flat_config, print)
        trackers.log("train", step, figures)
        trackers.outcome = "done"
    """

    def __init__(self) -> None:
        self.feeds: list[Feed] = []
        self.outcome = "stopped"

    def begin(self, path: Path, run: RunConfig, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Begin or go on, and send what metrics.jsonl has and a tracker has not. `config`: options by key, flat."""
        asked = [(name, make()) for name, make in TRACKERS.items() if getattr(run, name)]
        told = {key: without_secrets(value) for key, value in config.items()}
        self.feeds = [Feed(name, tracker, path, say) for name, tracker in asked]
        for feed in self.feeds:
            feed.begin(told)

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Figures of a step; their names are those of metrics.jsonl with the kind before them: train/lr."""
        for feed in self.feeds:
            feed.put(kind, step, figures)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        outcome = "failed" if kind is not None else self.outcome
        for feed in self.feeds:
            feed.end(outcome)
        until = time.monotonic() + (PATIENCE if outcome == "done" else HURRY)
        for feed in self.feeds:
            feed.wait(until)


class Feed:
    """One tracker, its thread, and what it has been sent."""

    def __init__(self, name: str, tracker: Tracker, path: Path, say: Callable[[str], None]) -> None:
        self.name, self.tracker, self.path, self.say = name, tracker, path, say
        self.folder = path / name
        self.queue: SimpleQueue[tuple[str, int, Mapping[str, Any]] | str] = SimpleQueue()
        self.thread = threading.Thread(target=self._send, name=name, daemon=True)
        self.failed = False
        self.run: str | None = None
        self.sent: dict[str, int] = {}  # the last step of each kind

    def begin(self, config: Mapping[str, Any]) -> None:
        # In the main thread: processes that load data are forked right after, and must not find imports half done.
        try:
            self.folder.mkdir(exist_ok=True)
            before = self._read()
            self.run, where = self.tracker.begin(self.folder, before, config)
            if self.run != before:
                self.sent = {}
            self._keep()
            self.say(f"tracking    {where}")
            for line in _lines_of(self.path):
                self.put(line.pop("kind", ""), line.pop("step", 0), line)
        except (Exception, SystemExit) as error:
            self._fail(error)
        else:
            self.thread.start()

    def put(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        if not self.failed:
            self.queue.put((kind, step, figures))

    def end(self, outcome: str) -> None:
        self.queue.put(outcome)

    def wait(self, until: float) -> None:
        """Until all is sent, or the clock says `until`."""
        if self.thread.ident is not None:
            self.thread.join(max(0.0, until - time.monotonic()))
            if self.thread.is_alive():
                self._fail(TimeoutError("it did not take the last figures in time"))

    def _send(self) -> None:
        try:
            while not isinstance(item := self.queue.get(), str):
                kind, step, figures = item
                if step <= self.sent.get(kind, -1):
                    continue
                numbers = {f"{kind}/{key}": value for key, value in figures.items() if isinstance(value, (int, float))}
                self.tracker.log(step, numbers)
                self.sent[kind] = step
                if self.queue.empty():
                    self._keep()
            self.tracker.finish(item)
            self._keep()
        except (Exception, SystemExit) as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            self.failed = True
            reason = on_one_line(str(error).strip())[:200] or type(error).__name__
            self.say(f"note: {self.name}: {reason}; training goes on without it, and metrics.jsonl has all figures")

    def _read(self) -> str | None:
        """The tracker's run that this run has been sent to."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            state = read_sealed(self.folder / STATE)
            if ID.fullmatch(state["run"]):
                self.sent = {str(kind): int(step) for kind, step in state["sent"].items()}
                return str(state["run"])
        return None

    def _keep(self) -> None:
        write_json(self.folder / STATE, sealed({"run": self.run, "sent": self.sent}))


def _lines_of(path: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        return read_log(path)
    return []
