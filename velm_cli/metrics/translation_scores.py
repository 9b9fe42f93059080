"""Translations, scored: BLEU in both versions that are in use, and chrF, over the floors of those who do not translate.

sacreBLEU's own (cased, its tokenisation 13a) is what can be compared across papers; those on Multi30k lower-case,
normalise and tokenise both sides with Moses' scripts and count without smoothing. The two differ by a point or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from velm_cli import __version__
from velm_cli.metrics.floors import warn_of_floors
from velm_cli.metrics.nearest import MOST, nearest
from velm_cli.metrics.sacre import bleu_summands, chrf_summands
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.significance import Summands, bootstrap_all
from velm_cli.metrics.targets import Target, check, empty_texts, per_example, require
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column

TRANSLATION_PRIMARY = "BLEU"
TRANSLATION_COLUMNS = (
    Column("BLEU", "BLEU", digits=2, is_mean=False, meaning="sacreBLEU: cased, tokenised by 13a"),
    Column(
        "BLEU_lc", "BLEU lc", digits=2, is_mean=False, meaning="lower case, Moses normalised and tokenised, unsmoothed"
    ),
    Column("chrF", "chrF", digits=2, is_mean=False, meaning="character n-grams up to 6, recall weighs twice"),
)
COPY = "copy the source"
LOOK_UP = "translation of the nearest training sentence"


def score_translations(
    truth: Mapping[ExampleId, Target],
    predicted: Mapping[ExampleId, str],
    config: MetricsConfig,
    *,
    language: str = "",
    training: Sequence[Target] = (),
) -> Scores:
    """The scores of one translation a sentence, by the id of the example.

    `language`: of the target, whose rules Moses' scripts take; empty are English's. `training`: for a floor, of
    sentences with references. Raises UserError when the ids differ, or a sentence has no reference.
    """
    require("sacrebleu", "sacremoses")
    check(truth, predicted, "sentence")
    hypotheses = {number: predicted[number] for number in truth}
    summands = _summands(truth, list(hypotheses.values()), language)
    corpus: dict[str, float | None] = {key: each.total() for key, each in summands.items()}
    scores = Scores(
        corpus=corpus,
        intervals=bootstrap_all(summands, resamples=config.resamples),
        reasons={},
        per_image=per_example(truth, {key: each.score(each.rows_IS) for key, each in summands.items()}),
        signature=_signature(truth, language),
        warnings=empty_texts(hypotheses, "translation"),
        references={number: list(target.references) for number, target in truth.items()},
        hypotheses=hypotheses,
        summands=summands,
        task="translate",
        columns=TRANSLATION_COLUMNS,
        primary=TRANSLATION_PRIMARY,
        about={number: target.about() for number, target in truth.items()},
    )
    if all(target.source for target in truth.values()):
        sources = [target.source for target in truth.values()]
        floors = {COPY: sources}
        if 0 < len(training) <= MOST:
            found = nearest(sources, [target.source for target in training])
            floors[LOOK_UP] = [training[number].references[0] for number in found]
        for name, texts in floors.items():
            made_of = scores.floor_summands[name] = _summands(truth, texts, language)
            scores.floors[name] = {key: made_of[key].total() for key in corpus}
    warn_of_floors(scores, config.resamples)
    return scores


def quick_bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """BLEU as a fraction, as `score_translations` has it."""
    from sacrebleu.metrics import BLEU

    return bleu_summands(BLEU(), hypotheses, references).total()


def _summands(truth: Mapping[ExampleId, Target], hypotheses: Sequence[str], language: str) -> dict[str, Summands]:
    from sacrebleu.metrics import BLEU, CHRF

    references = [target.references for target in truth.values()]
    lower = [moses(text, language) for text in hypotheses]
    lower_references = [[moses(text, language) for text in texts] for texts in references]
    plain = BLEU(tokenize="none", smooth_method="none", force=True)
    return {
        "BLEU": bleu_summands(BLEU(), hypotheses, references),
        "BLEU_lc": bleu_summands(plain, lower, lower_references),
        "chrF": chrf_summands(CHRF(), hypotheses, references),
    }


def moses(text: str, language: str = "") -> str:
    """As the papers on Multi30k prepare it: lower case, punctuation normalised, tokenised (Koehn et al. 2007)."""
    normaliser, tokeniser = _moses(language or "en")
    tokens: str = tokeniser.tokenize(normaliser.normalize(text.lower()), return_str=True)
    return tokens


@lru_cache(maxsize=8)
def _moses(language: str) -> tuple[Any, Any]:
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    return MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)


def _signature(truth: Mapping[ExampleId, Target], language: str) -> dict[str, Any]:
    import sacrebleu
    import sacremoses
    from sacrebleu.metrics import BLEU, CHRF

    counts = [len(target.references) for target in truth.values()]
    number = str(counts[0]) if len(set(counts)) == 1 else "var"

    def signed(metric: Any) -> str:
        metric.num_refs = number
        return str(metric.get_signature())

    return {
        "velm": __version__,
        "BLEU": signed(BLEU()),
        "BLEU_lc": (
            f"nrefs:{number}|case:lc|eff:no|tok:moses-{language or 'en'} (sacremoses {sacremoses.__version__}, "
            f"punctuation normalised)|smooth:none|version:{sacrebleu.__version__}"
        ),
        "chrF": signed(CHRF()),
        "sentences": len(truth),
    }
