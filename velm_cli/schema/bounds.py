"""Which numbers an option takes: said beside its default, checked by `validate`, printed in docs/config.md."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

LARGEST = 2**53  # of a whole number that needs no bound of its own: up to it floats know each
WIDEST, DEEPEST = 65_536, 1_000  # of a layer; number of layers


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """An interval of finite numbers; its ends belong to it unless they are `above` or `below`."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """What the value must be; None when it is fine. Written so that NaN is never fine."""
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be a number{self._ends(' of ')}"
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least:g}"
        if self.above is not None and not value > self.above:
            return f"must be above {self.above:g}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {_shown(self.most)}"
        if self.below is not None and not value < self.below:
            return f"must be below {self.below:g}"
        return None

    def __str__(self) -> str:
        """For the reference of options; the bound that all whole numbers have is not worth a word."""
        return self._ends("")

    def _ends(self, before: str) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        ends = [f"{word} {_shown(end)}" for word, end in words.items() if end is not None and abs(end) < LARGEST]
        return before + ", ".join(ends) if ends else ""


def within(
    default: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a config for numbers within bounds; whole numbers are at most LARGEST without a bound."""
    if isinstance(default, int) and most is None:
        most = LARGEST
    return dataclasses.field(default=default, metadata={"bounds": Bounds(least, above, most, below)})


def bounds_of(node: type, name: str) -> Bounds | None:
    """Of an option of a dataclass; one that only gives another default has those of the class below it."""
    own = (getattr(cls, "__dataclass_fields__", {}).get(name) for cls in node.__mro__)
    return next((field.metadata["bounds"] for field in own if field is not None and "bounds" in field.metadata), None)


def out_of_bounds(config: Any, prefix: str = "") -> Iterator[str]:
    """A line for each number of a config, and of the groups in it, that is out of its bounds."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from out_of_bounds(value, f"{prefix}{field.name}.")
            continue
        bounds = bounds_of(type(config), field.name) if isinstance(value, (int, float)) else None
        if bounds and (problem := bounds.problem(value)):
            yield f"{prefix}{field.name}={_shown(value)}: {problem}"


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
