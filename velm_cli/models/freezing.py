"""`freeze`: which part of an encoder stays as it was loaded, none | all | first:n."""

from __future__ import annotations


def is_freeze(freeze: str) -> bool:
    return freeze in ("none", "all") or (freeze.startswith("first:") and freeze.removeprefix("first:").isdigit())


def count_frozen(freeze: str) -> int:
    """How many stages or layers `freeze` names: n of first:n, else 0."""
    return int(freeze.removeprefix("first:")) if freeze.startswith("first:") else 0
