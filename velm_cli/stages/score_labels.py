"""score task=classify: any system's labels of images, or its scores of labels, over their floors."""

from __future__ import annotations

from pathlib import Path

from velm_cli.metrics.label_files import Given, found_of, matched, read_labels
from velm_cli.metrics.label_scores import score_labels
from velm_cli.schema import ScoreRoot
from velm_cli.stages.score_finish import finish, results
from velm_cli.stages.score_images import image_files, small_pictures


def run(config: ScoreRoot) -> float | None:
    """Returns the top-1 accuracy of `predictions`, or its mAP where images have several labels."""
    truth = read_labels(Path(config.references), "references")
    ours = read_labels(Path(config.predictions), "predictions")
    theirs = read_labels(Path(config.vs), "vs") if config.vs is not None else None
    training = read_labels(Path(config.training), "training") if config.training is not None else None
    options = {"mismatch": config.mismatch.value, "training": training and training.digest}
    with results(config, ours, truth.digest, theirs, **options):
        return _run(config, truth, ours, theirs, training)


def _run(config: ScoreRoot, truth: Given, ours: Given, theirs: Given | None, training: Given | None) -> float | None:
    ids, ours, notes = matched(truth.labels, ours, config.mismatch, f"predictions={config.predictions}")
    if theirs is not None:
        shared = {name: truth.labels[name] for name in ids}
        ids, theirs, more = matched(shared, theirs, config.mismatch, f"vs={config.vs}")
        notes += more
    labels = {name: truth.labels[name] for name in ids}
    single = all(len(each) == 1 for given in (truth, training) if given is not None for each in given.labels.values())
    learned = None if training is None else list(training.labels.values())
    scored = [
        score_labels(labels, found_of(given, ids, single=single), config.metrics, single=single, training=learned)
        for given in (ours, theirs)
        if given is not None
    ]
    if learned is None:
        notes.append("floors are learned from the scored images themselves; training=LABELS takes others")
    pictures = {}
    if config.images is not None:
        files, more = image_files(config.images, ids, {name: str(name) for name in ids})
        notes += more
        pictures = small_pictures(files) if config.out is not None else {}
    theirs_scored = scored[1] if theirs is not None else None
    return finish(config, scored[0], theirs_scored, notes, pictures, counted=f"{len(ids):,} images")
