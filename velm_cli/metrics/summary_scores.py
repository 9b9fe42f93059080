"""Summaries, scored: ROUGE-1, ROUGE-2 and ROUGE-Lsum by Google's rouge-score, over the floors of those who only copy.

Lin 2004; F1, Porter's stemmer, as the tables on CNN/DailyMail have them since 2019. Lsum takes the longest common
subsequence sentence by sentence, so two sentences in the other order lose nothing. The stemmer is English: other
alphabets lose letters, which the signature says.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from velm_cli import __version__
from velm_cli.metrics.floors import warn_of_floors
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.significance import bootstrap_all, mean_of
from velm_cli.metrics.targets import Target, check, empty_texts, per_example, require
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column

KINDS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-Lsum": "rougeLsum"}
SUMMARY_PRIMARY = "ROUGE-Lsum"
SUMMARY_COLUMNS = (
    Column("ROUGE-1", "ROUGE-1", digits=2, meaning="F1 of words, stemmed"),
    Column("ROUGE-2", "ROUGE-2", digits=2, meaning="F1 of pairs of words, stemmed"),
    Column("ROUGE-Lsum", "ROUGE-Lsum", "ROUGE-L", digits=2, meaning="F1 of common subsequences, by sentence"),
)
BETWEEN = " | "  # stands between the pieces of a source that has several, such as captions
LEAD = 3  # sentences of CNN/DailyMail's usual floor
_END = re.compile(r"([.!?][\"'”’)\]]*)\s+")
NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def score_summaries(
    truth: Mapping[ExampleId, Target], predicted: Mapping[ExampleId, str], config: MetricsConfig
) -> Scores:
    """The scores of one summary an example, by its id; of several references the best counts, as rouge-score has it.

    Raises UserError when the ids differ, or an example has no reference.
    """
    require("rouge_score")
    check(truth, predicted, "example")
    hypotheses = {number: predicted[number] for number in truth}
    values = _rouge(truth, list(hypotheses.values()))
    summands = {key: mean_of(each) for key, each in values.items()}
    corpus: dict[str, float | None] = {key: each.total() for key, each in summands.items()}
    scores = Scores(
        corpus=corpus,
        intervals=bootstrap_all(summands, resamples=config.resamples),
        reasons={},
        per_image=per_example(truth, values),
        signature=_signature(truth),
        warnings=[*empty_texts(hypotheses, "summary"), *_other_letters(truth)],
        references={number: list(target.references) for number, target in truth.items()},
        hypotheses=hypotheses,
        summands=summands,
        task="summarise",
        columns=SUMMARY_COLUMNS,
        primary=SUMMARY_PRIMARY,
        about={number: target.about() for number, target in truth.items()},
    )
    if all(target.source for target in truth.values()):
        for name, texts in _copies([target.source for target in truth.values()]).items():
            made_of = {key: mean_of(each) for key, each in _rouge(truth, texts).items()}
            scores.floor_summands[name] = made_of
            scores.floors[name] = {key: each.total() for key, each in made_of.items()}
    warn_of_floors(scores, config.resamples)
    return scores


def quick_rouge(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """ROUGE-Lsum as `score_summaries` has it."""
    truth: dict[ExampleId, Target] = {number: Target(tuple(texts)) for number, texts in enumerate(references)}
    values = _rouge(truth, hypotheses)["ROUGE-Lsum"]
    return sum(values) / max(1, len(values))


def pieces_of(text: str) -> list[str]:
    """The sentences of a text: by its lines, by BETWEEN, or where a sentence ends."""
    if "\n" not in text:
        text = text.replace(BETWEEN, "\n") if BETWEEN in text else _END.sub(r"\1\n", text)
    parts = text.split("\n")
    return [part.strip() for part in parts if part.strip()]


def _rouge(truth: Mapping[ExampleId, Target], hypotheses: Sequence[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {key: [] for key in KINDS}
    for target, text in zip(truth.values(), hypotheses, strict=True):
        references = ["\n".join(pieces_of(each)) for each in target.references]
        scored = rouge_scorer().score_multi(references, "\n".join(pieces_of(text)))
        for key, kind in KINDS.items():
            found[key].append(float(scored[kind].fmeasure))
    return found


@lru_cache(maxsize=2)
def rouge_scorer(*kinds: str) -> Any:
    """rouge-score's, of these kinds; of those of KINDS where none is named.

    Its logging, absl, keeps what sys.stderr is when it is first imported, and closes that when logging is configured
    again, unless it is the process's own: a log that copies the console would end there.
    """
    with contextlib.redirect_stderr(sys.__stderr__):
        from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds or KINDS.values()), use_stemmer=True)


# ------------------------------------------------------------------------------------- floors


def _copies(sources: Sequence[str]) -> dict[str, list[str]]:
    """What copies a source without understanding it: the first piece, the one most like the others, the lead."""
    pieces = [pieces_of(source) for source in sources]
    floors = {"first sentence": [each[0] if each else "" for each in pieces]}
    if max(map(len, pieces)) > LEAD + 2:  # documents
        floors[f"lead {LEAD} sentences"] = ["\n".join(each[:LEAD]) for each in pieces]
    else:
        floors["medoid sentence"] = [medoid(each) for each in pieces]
    return floors


def medoid(pieces: Sequence[str]) -> str:
    """The piece that has the highest mean ROUGE-L with the others; of equal ones the first."""
    if len(pieces) < 3:
        return pieces[0] if pieces else ""
    scorer = rouge_scorer()
    means = [
        sum(scorer.score(other, piece)["rougeLsum"].fmeasure for place, other in enumerate(pieces) if place != own)
        for own, piece in enumerate(pieces)
    ]
    return pieces[means.index(max(means))]


# ------------------------------------------------------------------------------------- what is told of them


def _signature(truth: Mapping[ExampleId, Target]) -> dict[str, Any]:
    from importlib.metadata import version

    counts = [len(target.references) for target in truth.values()]
    return {
        "velm": __version__,
        "ROUGE": f"rouge-score {version('rouge-score')}, F1, stemmer: Porter, sentences by line, | or full stop",
        "references_min": min(counts),
        "references_max": max(counts),
        "summaries": len(counts),
    }


def _other_letters(truth: Mapping[ExampleId, Target]) -> list[str]:
    """ROUGE's tokeniser knows a to z and 0 to 9 alone: other letters cut words in two."""
    texts = [text for target in truth.values() for text in target.references]
    letters = sum(sum(map(str.isalpha, NOT_ASCII.findall(text))) for text in texts)
    share = letters / max(1, sum(map(len, texts)))
    if share < 0.01:
        return []
    return [f"{100 * share:.0f} % of the references' characters are letters that ROUGE's tokeniser takes for blanks"]
