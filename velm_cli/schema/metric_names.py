"""Columns of scores: how each is called, shown and compared; and every spelling that people type of the captions' own.

A task's columns lie beside its metric and travel with its scores, into `scores.json` too, so that tables and pages know
no metric by name. `metrics.names=`, `metrics.required=` and `velm report metric=` all use this one module, so that a
name that one of them takes is taken by all.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Requested name -> the columns it gives, under pycocoevalcap's names and in the order of papers.
COLUMNS: dict[str, tuple[str, ...]] = {
    "bleu": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "meteor": ("METEOR",),
    "rouge_l": ("ROUGE_L",),
    "cider": ("CIDEr",),
    "spice": ("SPICE",),
    "clip": ("CLIPScore", "RefCLIPScore"),
}
NAMES = tuple(name for columns in COLUMNS.values() for name in columns)
LABELS = {name: name.replace("Bleu_", "BLEU-").replace("ROUGE_L", "ROUGE-L") for name in NAMES}
METRIC_NAMES = ("bleu", "meteor", "rouge_l", "cider", "spice")  # what `metrics.names` takes; CLIPScore needs a model

# Spellings without case and punctuation that are not a column's own.
_OTHERWISE = {"bleu": "Bleu_4", "rouge": "ROUGE_L", "ciderd": "CIDEr", "clip": "CLIPScore", "clips": "CLIPScore"}
_OTHERWISE |= {"refclip": "RefCLIPScore", "refclips": "RefCLIPScore"} | {f"b{n}": f"Bleu_{n}" for n in range(1, 5)}


@dataclass(frozen=True, slots=True)
class Column:
    """A score: its name in files and to people, and how it is shown (times `scale`, with `digits` decimals)."""

    key: str  # in scores.json
    label: str  # as papers print it
    short: str = ""  # in narrow tables; empty = the label
    scale: float = 100.0  # as the field prints fractions
    digits: int = 1
    higher_is_better: bool = True
    in_tables: bool = True  # of velm report; the others appear there when they are asked for
    is_mean: bool = True  # the mean of the examples' own scores, so that runs of several seeds have an interval
    meaning: str = ""  # in the page, shown where one points at it

    def shown(self, value: float | None) -> str:
        """The value as people read it; `-` for none."""
        return "-" if value is None else f"{self.scale * value:.{self.digits}f}"

    def ends(self, interval: tuple[float, float]) -> tuple[str, str]:
        return self.shown(interval[0]), self.shown(interval[1])


def _caption_column(name: str) -> Column:
    short = name.replace("Bleu_", "B@") if name.startswith("Bleu") else name[0]
    return Column(
        key=name,
        label=LABELS[name],
        short={"CLIPScore": "CLIP", "RefCLIPScore": "RefCLIP"}.get(name, short),
        in_tables=name not in COLUMNS["bleu"][:3],
        is_mean=name not in COLUMNS["bleu"] + COLUMNS["meteor"],  # counted over the corpus
    )


CAPTION_COLUMNS = tuple(map(_caption_column, NAMES))
CAPTION_PRIMARY = "CIDEr"


def columns_as_json(columns: Iterable[Column]) -> list[dict[str, Any]]:
    return [asdict(column) for column in columns]


def columns_of_json(value: object) -> tuple[Column, ...]:
    """The columns in a `scores.json`, which may be a stranger's; the captions' own where an older velm names none.

    ValueError when they are not what velm writes.
    """
    if value is None:
        return CAPTION_COLUMNS
    found = [_column(each) for each in value] if isinstance(value, list) else []
    if not found or len({column.key for column in found}) < len(found):
        raise ValueError("columns is not what velm writes")
    return tuple(found)


def _column(value: object) -> Column:
    example = asdict(Column("", ""))
    if not isinstance(value, Mapping) or not {"key", "label"} <= value.keys() <= example.keys():
        raise ValueError("columns is not what velm writes")
    given: dict[str, Any] = {
        name: float(each) if name == "scale" and type(each) is int else each for name, each in value.items()
    }
    fits = all(type(each) is type(example[name]) for name, each in given.items())
    column = Column(**given) if fits else None
    if column is None or not (0 <= column.digits <= 9 and 0 < column.scale <= 1e9):
        raise ValueError("columns is not what velm writes")
    return column


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def score_named(spelling: str, columns: Iterable[Column] = CAPTION_COLUMNS) -> str | None:
    """The key of the column that is meant: `BLEU-4`, `bleu@4`, `B4` and `bleu` are `Bleu_4`; None for none of them."""
    known = {_bare(name): column.key for column in columns for name in (column.label, column.key)}
    keys = set(known.values())
    known |= {name: key for name, key in _OTHERWISE.items() if key in keys}
    return known.get(_bare(spelling))


def metric_named(spelling: str) -> str | None:
    """What `metrics.names` calls the metric that is meant: `BLEU-4` and `bleu` are `bleu`; None for none of velm's."""
    column = score_named(spelling)
    return next((name for name, columns in COLUMNS.items() if column in columns), None)


def metrics_asked(value: object) -> list[str]:
    """The value of `metrics.names` as a list in velm's own spelling, each once: `cider`, `[CIDEr, BLEU-4]`.

    What is no metric stays as it was typed, for `validate` to name.
    """
    typed = value if isinstance(value, (list, tuple)) else [value]
    return list(dict.fromkeys(metric_named(str(name)) or str(name) for name in typed))
