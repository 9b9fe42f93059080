"""The figures in a run's log, with their types checked: a run folder may come from a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velm_cli.errors import UserError
from velm_cli.files import read_log

SHOWN = ("cider", "captions_per_s", "trained")  # in tables and curves, with all losses
LARGEST = 1e18


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of its metrics.jsonl. UserError when they are damaged."""
    try:
        lines = read_log(folder)
        for number, line in enumerate(lines, 1):
            if not isinstance(line.get("kind"), str) or not _is_step(line.get("step")):
                raise ValueError(f"line {number} of metrics.jsonl has no kind or step")
            shown = [value for key, value in line.items() if key in SHOWN or key.startswith("loss")]
            if not all(value is None or is_number(value) for value in shown):
                raise ValueError(f"line {number} of metrics.jsonl holds a figure that is no number")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its log is damaged ({error})") from error
    return lines


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def is_number(value: Any) -> bool:
    """Whether it is a figure of a log, as NaN and infinity are."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST)
