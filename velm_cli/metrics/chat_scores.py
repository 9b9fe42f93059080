"""Replies, scored against the data set's own: ROUGE-L, BLEU and chrF of free text, exact match of short answers.

None of them knows whether a reply is true: what they say of long replies is how like the data set's they are. The
floors are those of rules that see nothing: the most frequent reply, and the most frequent one to the same words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from velm_cli import __version__
from velm_cli.metrics.floors import warn_of_floors
from velm_cli.metrics.sacre import bleu_summands, chrf_summands
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.significance import Summands, bootstrap_all, mean_of
from velm_cli.metrics.summary_scores import rouge_scorer
from velm_cli.metrics.targets import Target, check, per_example, require
from velm_cli.metrics.vqa import normalised
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column

CHAT_PRIMARY = "ROUGE-L"
CHAT_COLUMNS = (
    Column("ROUGE-L", "ROUGE-L", digits=2, meaning="F1 of the longest common subsequence of words, stemmed"),
    Column(
        "exact", "Exact", digits=2, meaning="share of replies that are a reference, once VQA's rules normalise both"
    ),
    Column("BLEU", "BLEU", digits=2, is_mean=False, meaning="sacreBLEU: cased, tokenised by 13a"),
    Column("chrF", "chrF", digits=2, is_mean=False, meaning="character n-grams up to 6, recall weighs twice"),
)
MOST_KINDS = 30  # under a heading: beyond, its scores are no table
_USER = re.compile(r"(?:^|\n)user: ")


def score_replies(
    truth: Mapping[ExampleId, Target],
    predicted: Mapping[ExampleId, str],
    config: MetricsConfig,
    *,
    training: Collection[Target] | None = None,
) -> Scores:
    """The scores of one reply a conversation, by the id of the example; of several references the best counts.

    Floors are learned from `training`. Without it there is that of the most frequent reply alone, of the references
    themselves, which the signature then says.
    Raises UserError when the ids differ, or an example has no reference.
    """
    require("sacrebleu", "rouge_score")
    check(truth, predicted, "conversation")
    hypotheses = {number: predicted[number] for number in truth}
    summands = _summands(truth, list(hypotheses.values()))
    corpus: dict[str, float | None] = {key: each.total() for key, each in summands.items()}
    scores = Scores(
        corpus=corpus,
        intervals=bootstrap_all(summands, resamples=config.resamples),
        reasons={},
        per_image=per_example(truth, {key: each.score(each.rows_IS) for key, each in summands.items()}),
        signature=_signature(truth, training is not None),
        warnings=empty_replies(hypotheses),
        references={number: list(target.references) for number, target in truth.items()},
        hypotheses=hypotheses,
        summands=summands,
        task="chat",
        columns=CHAT_COLUMNS,
        primary=CHAT_PRIMARY,
        groups=_groups(truth, summands),
        about={number: target.about() for number, target in truth.items()},
    )
    for name, texts in _floors(training, truth).items():
        made_of = scores.floor_summands[name] = _summands(truth, texts)
        scores.floors[name] = {key: made_of[key].total() for key in corpus}
    warn_of_floors(scores, config.resamples)
    return scores


def quick_rouge_l(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """ROUGE-L as `score_replies` has it."""
    values = _rouge_l(references, hypotheses)
    return sum(values) / max(1, len(values))


def empty_replies(replies: Mapping[ExampleId, str]) -> list[str]:
    """A warning where there are some."""
    count = sum(not text.strip() for text in replies.values())
    return [f"{count:,} of {len(replies):,} replies are empty"] if count else []


def last_words(conversation: str) -> str:
    """What the user said last, of a conversation as `shown` prints it, on one line and without places of images."""
    return " ".join(_USER.split(conversation)[-1].replace("<image>", " ").split())


def _summands(truth: Mapping[ExampleId, Target], hypotheses: Sequence[str]) -> dict[str, Summands]:
    from sacrebleu.metrics import BLEU, CHRF

    references = [target.references for target in truth.values()]
    same = [
        float(normalised(text) in {normalised(each) for each in texts})
        for text, texts in zip(hypotheses, references, strict=True)
    ]
    return {
        "ROUGE-L": mean_of(_rouge_l(references, hypotheses)),
        "exact": mean_of(same),
        "BLEU": bleu_summands(BLEU(), hypotheses, references),
        "chrF": chrf_summands(CHRF(), hypotheses, references),
    }


def _rouge_l(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> list[float]:
    scorer = rouge_scorer("rougeL")
    return [
        float(scorer.score_multi(list(texts), text)["rougeL"].fmeasure)
        for texts, text in zip(references, hypotheses, strict=True)
    ]


def _groups(
    truth: Mapping[ExampleId, Target], summands: Mapping[str, Summands]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """The means of ROUGE-L and exact match by heading and kind, where there are several kinds."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for heading in dict.fromkeys(heading for target in truth.values() for heading in target.kinds):
        rows: dict[str, list[int]] = defaultdict(list)
        for row, target in enumerate(truth.values()):
            if heading in target.kinds:
                rows[target.kinds[heading]].append(row)
        if 1 < len(rows) <= MOST_KINDS:
            found[heading] = {}
            for kind, own in sorted(rows.items()):
                means = {key: float(summands[key].rows_IS[own, 0].mean()) for key in ("ROUGE-L", "exact")}
                found[heading][kind] = {"count": float(len(own)), **means}
    return found


def _floors(training: Collection[Target] | None, truth: Mapping[ExampleId, Target]) -> dict[str, list[str]]:
    """What rules that see no image reply."""
    every: Counter[str] = Counter()
    by_words: dict[str, Counter[str]] = defaultdict(Counter)
    for target in training or truth.values():
        reply = target.references[0]
        every[reply] += 1
        by_words[last_words(target.source)][reply] += 1
    (usual, _), *_ = every.most_common(1)
    shown = usual if len(usual) <= 40 else f"{usual[:37]}..."
    floors = {f"always {shown!r}": [usual] * len(truth)}
    if training and any(target.source for target in truth.values()):
        words = [last_words(target.source) for target in truth.values()]
        floors["most frequent reply to the same words"] = [
            by_words[each].most_common(1)[0][0] if each in by_words else usual for each in words
        ]
    return floors


def _signature(truth: Mapping[ExampleId, Target], trained: bool) -> dict[str, Any]:
    from importlib.metadata import version

    from sacrebleu.metrics import BLEU, CHRF

    counts = [len(target.references) for target in truth.values()]
    number = str(counts[0]) if len(set(counts)) == 1 else "var"

    def signed(metric: Any) -> str:
        metric.num_refs = number
        return str(metric.get_signature())

    return {
        "velm": __version__,
        "ROUGE-L": f"rouge-score {version('rouge-score')}, F1, stemmer: Porter",
        "exact": "VQA's normalisation of answers",
        "BLEU": signed(BLEU()),
        "chrF": signed(CHRF()),
        "floors": "of the training part" if trained else "of the scored references themselves",
        "conversations": len(truth),
    }
