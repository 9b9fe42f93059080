"""score: any system's predictions against any references, without a model; with error bars, and against another system.

Each task has a scorer of its own; here stands which one, and which options have an effect on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from typing import Any

from velm_cli.errors import UserError
from velm_cli.schema import MetricsConfig, ScoredTask, ScoreRoot

_COMMON = {"predictions", "vs", "out", "metrics.resamples"}
_TEXTS = _COMMON | {"references", "mismatch", "sources", "images"}
# Task -> its module in this folder, and the options that it uses; captions use all but those of the others.
SCORERS: dict[ScoredTask, tuple[str, set[str]]] = {
    ScoredTask.vqa: (
        "score_vqa",
        _COMMON | {"references", "mismatch", "training", "questions", "images"},
    ),
    ScoredTask.classify: ("score_labels", _COMMON | {"references", "mismatch", "training", "images"}),
    ScoredTask.reason: ("score_reason", _COMMON | {"references", "mismatch", "training"}),
    ScoredTask.retrieve: ("score_retrieval", _COMMON | {"references", "fold", "images"}),
    ScoredTask.translate: ("score_texts", _TEXTS | {"language"}),
    ScoredTask.summarise: ("score_texts", _TEXTS),
    ScoredTask.chat: ("score_texts", _TEXTS),
}
OTHERS = {"questions", "fold", "sources", "language"}


def run(config: ScoreRoot) -> float | None:
    """The task's primary score of `predictions`, CIDEr for captions (None if it was not asked for)."""
    module, used = SCORERS.get(config.task, ("score_captions", None))
    for option, shown in _changed(config):
        if option in OTHERS if used is None else option not in used:
            tasks = ", ".join(task.value for task in ScoredTask if option in _used(task))
            raise UserError(
                f"{option}={shown} has no effect with task={config.task.value}, only with {tasks}: leave it out"
            )
    found: float | None = importlib.import_module(f"velm_cli.stages.{module}").run(config)
    return found


def _used(task: ScoredTask) -> set[str]:
    if task in SCORERS:
        return SCORERS[task][1]
    every = {field.name for field in fields(ScoreRoot)} | {f"metrics.{field.name}" for field in fields(MetricsConfig)}
    return every - OTHERS


def _changed(config: ScoreRoot) -> Iterator[tuple[str, str]]:
    """(name, value as it is typed) of the options that are not as they are by default."""
    for node, prefix, usual in ((config, "", None), (config.metrics, "metrics.", MetricsConfig())):
        for field in fields(node):  # type: ignore[arg-type]
            value: Any = getattr(node, field.name)
            default = getattr(usual, field.name) if usual is not None else field.default
            if field.name not in ("stage", "task", "metrics", "predictions", "references") and value != default:
                shown = value.value if isinstance(value, Enum) else value
                yield prefix + field.name, f"[{','.join(map(str, shown))}]" if isinstance(shown, list) else str(shown)
