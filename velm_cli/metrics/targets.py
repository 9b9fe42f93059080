"""What texts written from a source are compared with, and the checks that translations and summaries share."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from velm_cli.errors import UserError, on_one_line
from velm_cli.metrics.scores import ExampleId


@dataclass(frozen=True, slots=True)
class Target:
    """The references of an example; `source` and `image` are for floors and the page, where they are known."""

    references: tuple[str, ...]
    source: str = ""
    image: ExampleId | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)  # by heading, the kind of example: scores are split by them

    def about(self) -> dict[str, Any]:
        """What the page shows beside predictions and references; only what is known."""
        told = {"source": self.source, "image": self.image}
        return {key: value for key, value in told.items() if value not in ("", None)}


def check(truth: Mapping[ExampleId, Target], predicted: Mapping[ExampleId, str], noun: str) -> None:
    """UserError where there is nothing to score, or an example is without prediction or reference."""
    if not truth:
        raise UserError(f"there are no {noun}s to score")
    for problem, ids in (
        ("no prediction for", [number for number in truth if number not in predicted]),
        ("no reference for", [number for number in predicted if number not in truth]),
        ("no reference for", [number for number, target in truth.items() if not target.references]),
    ):
        if ids:
            shown = ", ".join(on_one_line(str(number)) for number in ids[:5])
            raise UserError(f"{problem} {len(ids):,} {noun}{'s' * (len(ids) > 1)} (first: {shown})")


def require(*packages: str) -> None:
    """UserError where one of the packages that score texts is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise UserError(f"the scores of texts need {name}: pip install {name}, or velm-cli with the extra texts")


def empty_texts(predicted: Mapping[ExampleId, str], noun: str) -> list[str]:
    """A warning where predictions are empty."""
    count = sum(not text.strip() for text in predicted.values())
    return [f"{count:,} of {len(predicted):,} {noun}s are empty"] if count else []


def per_example(
    truth: Mapping[ExampleId, Target], values: Mapping[str, Any]
) -> dict[ExampleId, dict[str, float | None]]:
    """The scores of each example, a list or an array of each score: as if the example were the whole corpus."""
    return {number: {key: float(each[row]) for key, each in values.items()} for row, number in enumerate(truth)}
