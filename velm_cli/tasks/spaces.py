"""The names of the labels that a learner predicts, by space: `concepts`, `answers`. A run folder keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed, write_json

FILE = "labels.json"
Spaces = Mapping[str, Sequence[str]]  # of each space its labels' names; a label is an index


def write_spaces(run: Path, spaces: Spaces) -> None:
    """Keep the spaces whose labels are predictions; nothing is written where there are none."""
    if spaces:
        write_json(run / FILE, sealed({"spaces": {name: list(labels) for name, labels in spaces.items()}}))


def read_spaces(run: Path) -> dict[str, list[str]]:
    """What `write_spaces` wrote into a run folder; nothing where there is none. UserError when it is damaged."""
    if not (run / FILE).exists():
        return {}
    try:
        spaces = read_sealed(run / FILE).get("spaces")
        if not isinstance(spaces, dict) or not all(map(_are_names, spaces.values())):
            raise ValueError("it holds no lists of names")
        return spaces
    except (OSError, ValueError) as error:
        raise UserError(f"{run / FILE} is damaged ({error}): put back the one that the run has saved") from error


def _are_names(labels: object) -> bool:
    return isinstance(labels, list) and all(isinstance(label, str) for label in labels)
