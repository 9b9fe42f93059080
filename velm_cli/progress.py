"""How far work has come: a bar where somebody watches a terminal, a line a minute where the output goes into a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds until the first line and between lines
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {percentage:.0f}%, {elapsed} gone, {remaining} left"
UNKNOWN = "{desc}: {n_fmt} {unit}, {elapsed} gone"  # where nobody knows how much there is


class _Lines(tqdm):  # type: ignore[type-arg]
    """A tqdm whose states are lines, one below the other."""

    disable: bool

    def __init__(self, *given: Any, **options: Any) -> None:
        self._due = time.monotonic() + EVERY
        super().__init__(*given, **options)

    def refresh(self, *given: Any, **options: Any) -> Any:
        """Whoever asks for it: a line in time."""
        if (now := time.monotonic()) < self._due:
            return True
        self._due = now + EVERY
        return super().refresh(*given, **options)

    @staticmethod
    def status_printer(file: Any) -> Any:
        def say(text: str) -> None:
            file.write(text + "\n")
            file.flush()

        return say

    def close(self) -> None:
        """Its last line stands: there is no bar to be cleared."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)


def progress_bar(work: Iterable[Any] | None = None, what: str = "", *, shown: bool = True, **options: Any) -> tqdm[Any]:
    """A progress bar as tqdm has them, on standard error; `what` is done. Nothing is said if it is not `shown`.

    Without a terminal: work of less than a minute says nothing.
    """
    options = {"desc": what, **options}
    if not shown:
        return tqdm(work, disable=True, **options)
    if sys.stderr.isatty():
        return tqdm(work, **{"mininterval": 0.5, **options})
    total = options.get("total") or (len(work) if isinstance(work, Sized) else None)
    unit = options.get("unit", "step")
    said = (LINE if total else UNKNOWN).replace("{unit}", unit if unit == "B" else f"{unit}s")
    return _Lines(work, **{**options, "mininterval": EVERY, "bar_format": said})
