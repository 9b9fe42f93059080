"""score task=translate, summarise and chat: any system's texts, a line an example or with ids, over their floors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from velm_cli.errors import UserError
from velm_cli.metrics.chat_scores import score_replies
from velm_cli.metrics.result_files import Predictions, References, matched, read_predictions, read_references
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.summary_scores import score_summaries
from velm_cli.metrics.targets import Target
from velm_cli.metrics.translation_scores import score_translations
from velm_cli.schema import ScoredTask, ScoreRoot
from velm_cli.stages.score_finish import finish, results
from velm_cli.stages.score_images import image_files, small_pictures

NOUNS = {ScoredTask.translate: "sentence", ScoredTask.summarise: "document", ScoredTask.chat: "conversation"}


def run(config: ScoreRoot) -> float | None:
    """Returns the BLEU, the ROUGE-Lsum or the ROUGE-L of `predictions`."""
    references = read_references(config.references)
    ours = read_predictions(Path(config.predictions))
    theirs = read_predictions(Path(config.vs), "vs") if config.vs is not None else None
    sources = read_references(config.sources, "sources") if config.sources is not None else None
    options = {
        "mismatch": config.mismatch.value,
        "sources": sources and sources.digest,
        "language": config.language,
    }
    with results(config, ours, references.digest, theirs, **options):
        return _run(config, references, ours, theirs, sources)


def _run(
    config: ScoreRoot, references: References, ours: Predictions, theirs: Predictions | None, sources: References | None
) -> float | None:
    noun = NOUNS[config.task]
    ids, notes = matched(references, ours, config.mismatch, config.predictions, noun)
    if theirs is not None:
        shared = References({number: references.captions[number] for number in ids}, by_order=references.by_order)
        ids, more = matched(shared, theirs, config.mismatch, str(config.vs), noun)
        notes += more
        if theirs.digest == ours.digest:
            notes.append("predictions and vs are the same file")
    texts = _sources(sources, references, ids) if sources is not None else {}
    truth = {number: Target(tuple(references.captions[number]), texts.get(number, ""), number) for number in ids}
    pictures = {}
    if config.images is not None:
        files, more = image_files(config.images, ids, references.files)
        notes += more
        pictures = small_pictures(files) if config.out is not None else {}
    if sources is None and config.task is not ScoredTask.chat:
        notes.append("there are no floors: sources=FILE has what the texts were written from")
    scored = [
        _scores(config, truth, {number: each.captions[number] for number in ids})
        for each in (ours, theirs)
        if each is not None
    ]
    counted = f"{len(ids):,} {noun}s"
    return finish(config, scored[0], scored[1] if theirs is not None else None, notes, pictures, counted=counted)


def _scores(config: ScoreRoot, truth: Mapping[ExampleId, Target], predicted: Mapping[ExampleId, str]) -> Scores:
    if config.task is ScoredTask.translate:
        return score_translations(truth, predicted, config.metrics, language=config.language)
    if config.task is ScoredTask.chat:
        return score_replies(truth, predicted, config.metrics)
    return score_summaries(truth, predicted, config.metrics)


def _sources(sources: References, references: References, ids: list[ExampleId]) -> dict[ExampleId, str]:
    if sources.by_order != references.by_order or (sources.by_order and sources.lines != references.lines):
        raise UserError("sources do not go with the references: give both a line an example, or both with ids")
    if missing := [number for number in ids if not sources.captions.get(number)]:
        raise UserError(f"sources: no text for {len(missing):,} of the references (first: {missing[0]})")
    return {number: sources.captions[number][0] for number in ids}
