"""Summaries: a document, or several captions, with or without images, in; a short text out; scored by ROUGE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from velm_cli.schema import MetricsConfig
from velm_cli.tasks.from_source import WritesFromSource, target_of
from velm_cli.tasks.interface import Predicted

if TYPE_CHECKING:
    from velm_cli.data.store import Store
    from velm_cli.metrics.scores import Scores


class SummariseTask(WritesFromSource):
    """An example is a document; its targets are summaries."""

    kind = "summarise"
    unit, target = "document", "text"
    verb, doing = "summarise", "summaries"
    primary = "ROUGE-Lsum"

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[str]) -> dict[str, float]:
        from velm_cli.metrics.summary_scores import quick_rouge

        chosen = [number for number in map(int, numbers) if store.targets(number)]
        if not chosen:
            return {}
        references = [store.targets(number) for number in chosen]
        return {"rouge-lsum": quick_rouge(references, [predicted[store.example_id(number)] for number in chosen])}

    def score(
        self, store: Store, numbers: Iterable[int], predicted: Predicted[str], config: MetricsConfig, *, learned: bool
    ) -> Scores | None:
        from velm_cli.metrics.summary_scores import score_summaries

        truth = {
            store.example_id(number): target_of(store, number) for number in map(int, numbers) if store.targets(number)
        }
        return score_summaries(truth, {number: predicted[number] for number in truth}, config) if truth else None
