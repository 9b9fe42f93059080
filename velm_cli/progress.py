"""How far work has come: a bar where somebody watches a terminal, a line a minute where the output goes into a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds until the first line and between lines
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {percentage:.0f}%, {elapsed} gone, {remaining} left"
UNKNOWN = "{desc}: {n_fmt} {unit}, {elapsed} gone"  # where nobody knows how much there is


class _Lines(tqdm):  # type: ignore[type-arg]
    """A tqdm whose states are lines, one below the other."""

    disable: bool

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
    return _Lines(work, **{**options, "mininterval": EVERY, "delay": EVERY, "bar_format": said})
