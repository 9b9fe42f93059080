"""Translation: a sentence, with or without an image, in; its translation out; scored by BLEU and chrF."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from velm_cli.schema import MetricsConfig
from velm_cli.tasks.from_source import WritesFromSource, target_of
from velm_cli.tasks.interface import Predicted

if TYPE_CHECKING:
    from velm_cli.data.store import Store
    from velm_cli.metrics.scores import Scores


class TranslateTask(WritesFromSource):
    """An example is a sentence; its targets are translations."""

    kind = "translate"
    unit, target = "sentence", "translation"
    verb, doing = "translate", "translations"
    primary = "BLEU"

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[str]) -> dict[str, float]:
        from velm_cli.metrics.translation_scores import quick_bleu

        chosen = [number for number in map(int, numbers) if store.targets(number)]
        if not chosen:
            return {}
        references = [store.targets(number) for number in chosen]
        return {"bleu": quick_bleu(references, [predicted[store.example_id(number)] for number in chosen])}

    def score(
        self, store: Store, numbers: Iterable[int], predicted: Predicted[str], config: MetricsConfig, *, learned: bool
    ) -> Scores | None:
        from velm_cli.metrics.translation_scores import score_translations

        truth = {
            store.example_id(number): target_of(store, number) for number in map(int, numbers) if store.targets(number)
        }
        if not truth:
            return None
        language = str(store.manifest["options"].get("target_lang") or "")
        known = map(int, store.split("train")) if learned else ()
        return score_translations(
            truth,
            {number: predicted[number] for number in truth},
            config,
            language=language,
            training=[target_of(store, number) for number in known if store.targets(number)],
        )
