"""score: any system's captions against any references, without a model; with error bars, and against another system."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from velm_cli.errors import StageError, UserError, on_one_line, visible
from velm_cli.files import write_json
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.domains import by_domain, domain_table
from velm_cli.metrics.hallucination import chair, ground_truth, hallucination_table
from velm_cli.metrics.result_files import Predictions, References, matched, read_predictions, read_references
from velm_cli.metrics.scores import LABELS, NAMES, ImageId, Scores, language_line, missing_scores, save, table
from velm_cli.metrics.significance import paired_permutation
from velm_cli.metrics.tokenize import flatten
from velm_cli.report.evaluations import evaluated_of
from velm_cli.report.page import Picture, thumbnail, write_page
from velm_cli.schema import ScoreRoot
from velm_cli.stages.outputs import output_file, score_folder


def run(config: ScoreRoot) -> float | None:
    """Returns the CIDEr of `predictions` (None if it was not asked for)."""
    references = read_references(Path(config.references))
    ours = read_predictions(Path(config.predictions))
    theirs = read_predictions(Path(config.vs)) if config.vs is not None else None
    save_df = None
    if config.save_df is not None:
        save_df = output_file("save_df", config.save_df, _is_frequencies, "a table of document frequencies")
    if config.out is None:
        return _run(config, references, ours, theirs, save_df)
    inputs = {"predictions": ours.digest, "references": references.digest}
    if theirs is not None:
        inputs["vs"] = theirs.digest
    with score_folder("out", config.out, inputs):
        return _run(config, references, ours, theirs, save_df)


def _run(
    config: ScoreRoot, references: References, ours: Predictions, theirs: Predictions | None, save_df: Path | None
) -> float | None:
    images, notes = matched(references.captions, ours, config.mismatch, config.predictions)
    if theirs is not None:
        shared = {image: references.captions[image] for image in images}
        images, more = matched(shared, theirs, config.mismatch, str(config.vs))
        notes += more

    files = _images(config.images, references, images) if config.images else None
    training = flatten(read_references(Path(config.training), "training").captions) if config.training else None
    scores = _score(config, config.predictions, images, references, ours, training, files)
    domains = by_domain(scores, references.domains)
    if domains:
        print(f"\n{domain_table(domains)}")
    if config.instances is not None:
        invented = chair(scores.hypotheses, ground_truth(Path(config.instances), scores.references, images))
        print(f"\n{hallucination_table(invented)}")
    others, p_values = None, {}
    if theirs is not None:
        others = _score(config, config.vs, images, references, theirs, training, files)
        p_values = {n: paired_permutation(scores.summands[n], others.summands[n]) for n in others.summands}
        print(f"\n{comparison(scores, others, p_values)}")
    for note in dict.fromkeys([*notes, *scores.warnings]):
        print(f"note: {on_one_line(note)}")
    if save_df is not None:
        verb = "replaced" if save_df.exists() else "written"
        DocumentFrequency.of(scores.reference_tokens.values(), config.references).save(save_df)
        print(f"{verb}: {config.save_df}")
    if config.out is not None:
        verb = "replaced" if Path(config.out, "scores.json").exists() else "written"
        save(scores, Path(config.out))
        if config.instances is not None:
            figures = {"CHAIR_i": invented.chair_i, "CHAIR_s": invented.chair_s, "recall": invented.recall}
            named = [{"image_id": image, "words": list(words)} for image, words in invented.words.items()]
            write_json(Path(config.out) / "chair.json", figures | {"hallucinated": named})
        if domains:
            write_json(Path(config.out) / "domains.json", domains)
        page = _page(config, scores, others, p_values, files or {})
        print(f"{verb}: {config.out}  (look at {page})")
    if missing := missing_scores(scores, config.metrics.required):
        raise StageError(f"metrics.required: not computed: {missing}")
    return scores.corpus["CIDEr"]


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
        read_image=None if files is None else lambda image: files[image].read_bytes() if image in files else None,
    )
    count = sum(len(references.captions[image]) for image in images)
    print(visible(f"{title}  {len(images):,} images, {count:,} references\n{table(scores)}"))
    print(language_line(scores.language), flush=True)
    return scores


def _images(folder: str, references: References, images: list[ImageId]) -> dict[ImageId, Path]:
    """The files of those images that lie in `folder`."""
    # The bare name: what a file from a stranger calls an image must not lead out of the folder.
    paths = {image: Path(folder, Path(references.files[image]).name) for image in images if image in references.files}
    there = {image: path for image, path in paths.items() if path.is_file()}
    print(f"images: {len(there):,} of {len(images):,} in {folder}")
    return there


def _is_frequencies(path: Path) -> bool:
    try:
        DocumentFrequency.load(path)
    except UserError:
        return False
    return True


def _page(
    config: ScoreRoot, ours: Scores, theirs: Scores | None, p_values: Mapping[str, float], files: Mapping[ImageId, Path]
) -> Path:
    """report.html in `out`, with the images in `files`."""
    assert config.out is not None
    runs = [evaluated_of(ours, Path(config.predictions).stem)]
    if theirs is not None:
        runs.append(evaluated_of(theirs, Path(str(config.vs)).stem, p_values))
    pictures = {}
    for image, path in files.items():
        with contextlib.suppress(OSError):  # its captions are shown without it
            pictures[image] = Picture(thumbnail(path.read_bytes()))
    page = Path(config.out) / "report.html"
    write_page(page, runs, pictures, title=" against ".join(run.name for run in runs))
    return page


def comparison(ours: Scores, theirs: Scores, p_values: Mapping[str, float]) -> str:
    """The differences as aligned text, with p of the paired permutation test."""
    rows = [f"{'against':<8}{'this':>7}{'that':>7}{'diff':>7}{'p':>9}"]
    for name in NAMES:
        mine, other = ours.corpus[name], theirs.corpus[name]
        if mine is None or other is None:
            continue
        p = p_values[name]
        rows.append(f"{LABELS[name]:<8}{100 * mine:>7.1f}{100 * other:>7.1f}{100 * (mine - other):>+7.1f}{p:>9.4f}")
    return "\n".join(rows)
