"""The scores' names: those that files use, those that papers print, and every spelling that people type.

`metrics.names=`, `metrics.required=` and `velm report metric=` all ask this one module, so that a name that one of
them takes is taken by all.
"""

import re

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


def score_named(spelling: str) -> str | None:
    """The column that is meant: `BLEU-4`, `bleu@4`, `B4` and `bleu` are `Bleu_4`; None for no score of velm's."""
    bare = re.sub(r"[\W_]", "", spelling).casefold()
    known = {re.sub(r"[\W_]", "", name).casefold(): name for name in NAMES} | _OTHERWISE
    return known.get(bare)


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
