"""score: any system's captions against any references, without a model; with error bars, and against another system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from velm_cli.errors import StageError, UserError, on_one_line, visible
from velm_cli.files import sha256, write_json
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.comparison import as_json, comparison_table, differences, verdict
from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.domains import by_domain, domain_table
from velm_cli.metrics.hallucination import chair, ground_truth, hallucination_table
from velm_cli.metrics.result_files import Predictions, References, matched, read_predictions, read_references
from velm_cli.metrics.scores import ImageId, Scores, language_line, missing_scores, save, table
from velm_cli.metrics.tokenize import flatten
from velm_cli.schema import ScoreRoot
from velm_cli.stages.outputs import output_file, score_folder
from velm_cli.stages.score_finish import names, page
from velm_cli.stages.score_images import image_files, small_pictures


def run(config: ScoreRoot) -> float | None:
    """Returns the CIDEr of `predictions` (None if it was not asked for)."""
    references = read_references(config.references)
    ours = read_predictions(Path(config.predictions))
    theirs = read_predictions(Path(config.vs), "vs") if config.vs is not None else None
    training = read_references(config.training, "training") if config.training else None
    save_df = None
    if config.save_df is not None:
        save_df = output_file("save_df", config.save_df, _is_frequencies, "a table of document frequencies")
    if config.out is None:
        return _run(config, references, ours, theirs, training, save_df)
    inputs = {"predictions": ours.digest, "references": references.digest}
    if theirs is not None:
        inputs["vs"] = theirs.digest
    with score_folder("out", config.out, inputs, _options(config, training)):
        return _run(config, references, ours, theirs, training, save_df)


def _options(config: ScoreRoot, training: References | None) -> dict[str, Any]:
    """What else the numbers in `out` depend on."""
    metrics = config.metrics
    own_df = metrics.df in ("corpus", "coco") or not Path(metrics.df).is_file()
    return {
        "metrics.names": sorted(metrics.names),
        "metrics.df": metrics.df if own_df else sha256(Path(metrics.df)),
        "metrics.clip": metrics.clip and str(Path(metrics.clip).resolve()),
        "metrics.resamples": metrics.resamples,
        "mismatch": config.mismatch.value,
        "training": training and training.digest,
        "instances": config.instances and str(Path(config.instances).resolve()),
        "images": str(Path(config.images).resolve()) if config.images and metrics.clip else None,
    }


def _run(
    config: ScoreRoot,
    references: References,
    ours: Predictions,
    theirs: Predictions | None,
    training: References | None,
    save_df: Path | None,
) -> float | None:
    images, notes = matched(references, ours, config.mismatch, config.predictions)
    if ours.digest == references.digest and all(
        references.captions[image] == [ours.captions[image]] for image in images
    ):
        notes.append("predictions and references are the same captions: perfect scores say nothing here")
    if theirs is not None and theirs.digest == ours.digest:
        notes.append("predictions and vs are the same file")
    if theirs is not None:
        shared = replace(references, captions={image: references.captions[image] for image in images})
        images, more = matched(shared, theirs, config.mismatch, str(config.vs))
        notes += more

    files = None
    if config.images is not None:
        files, more = image_files(config.images, images, {**ours.files, **references.files})
        notes += more
    learned = None if training is None else flatten(training.captions)
    truth = None
    if config.instances is not None:  # before the hour of scoring
        truth = ground_truth(Path(config.instances), {image: references.captions[image] for image in images}, images)
    scores = _score(config, config.predictions, images, references, ours, learned, files)
    domains = by_domain(scores, references.domains)
    if domains:
        print(f"\n{domain_table(domains)}")
    if truth is not None:
        invented = chair(scores.hypotheses, truth)
        print(f"\n{hallucination_table(invented)}")
    others, found = None, {}
    this, that = names(config)
    if theirs is not None:
        others = _score(config, config.vs, images, references, theirs, learned, files)
        found = differences(scores.summands, others.summands, config.metrics.resamples)
        print(visible(f"\n{comparison_table(found)}\n{on_one_line(verdict(this, that, found))}"))
    for note in dict.fromkeys([*notes, *scores.warnings]):
        print(f"note: {on_one_line(note)}")
    if save_df is not None:
        verb = "replaced" if save_df.exists() else "written"
        DocumentFrequency.of(scores.reference_tokens.values(), config.references).save(save_df)
        print(f"{verb}: {config.save_df}")
    if config.out is not None:
        verb = "replaced" if Path(config.out, "scores.json").exists() else "written"
        save(scores, Path(config.out), comparison=as_json(this, that, found) if others else None)
        if config.instances is not None:
            figures = {"CHAIR_i": invented.chair_i, "CHAIR_s": invented.chair_s, "recall": invented.recall}
            named = [{"image_id": image, "words": list(words)} for image, words in invented.words.items()]
            write_json(Path(config.out) / "chair.json", figures | {"hallucinated": named})
        if domains:
            write_json(Path(config.out) / "domains.json", domains)
        shown = page(config, scores, others, found, small_pictures(files or {}))
        print(f"{verb}: {config.out}  (look at {shown})")
    if missing := missing_scores(scores, config.metrics.required):
        raise StageError(f"metrics.required: not computed: {missing}")
    return scores.headline


def _score(
    config: ScoreRoot,
    title: str | None,
    images: list[ImageId],
    references: References,
    predictions: Predictions,
    training: list[str] | None,
    files: Mapping[ImageId, Path] | None,
) -> Scores:
    scores = score_captions(
        {image: references.captions[image] for image in images},
        {image: predictions.captions[image] for image in images},
        config.metrics,
        sets={image: predictions.sets[image] for image in images if image in predictions.sets},
        training=training,
        read_image=None if files is None else files.get,
    )
    count = sum(len(references.captions[image]) for image in images)
    print(visible(f"{title}  {len(images):,} images, {count:,} references\n{table(scores)}"))
    print(language_line(scores.language), flush=True)
    return scores


def _is_frequencies(path: Path) -> bool:
    try:
        DocumentFrequency.load(path)
    except UserError:
        return False
    return True
