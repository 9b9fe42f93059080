"""score task=reason: any system's labels of NLVR's or NLVR2's sentences, by the official rules, over their floors."""

from __future__ import annotations

from pathlib import Path

from velm_cli.metrics.reason_files import Judgements, matched_statements, read_judgements, read_statements
from velm_cli.metrics.reason_scores import Statement, score_reason
from velm_cli.metrics.scores import ExampleId
from velm_cli.schema import ScoreRoot
from velm_cli.stages.score_finish import finish, results


def run(config: ScoreRoot) -> float | None:
    """Returns the accuracy of `predictions`."""
    statements, digest = read_statements(Path(config.references))
    ours = read_judgements(Path(config.predictions))
    theirs = read_judgements(Path(config.vs), "vs") if config.vs is not None else None
    training, of_training = (
        read_statements(Path(config.training), "training") if config.training is not None else ({}, None)
    )
    options = {"mismatch": config.mismatch.value, "training": of_training}
    with results(config, ours, digest, theirs, **options):
        return _run(config, statements, ours, theirs, training)


def _run(
    config: ScoreRoot,
    statements: dict[str, Statement],
    ours: Judgements,
    theirs: Judgements | None,
    training: dict[str, Statement],
) -> float | None:
    truth, labels, notes = matched_statements(statements, ours, config.mismatch, config.predictions)
    others: dict[ExampleId, str] = {}
    if theirs is not None:
        shared, others, more = matched_statements(statements, theirs, config.mismatch, str(config.vs))
        notes += more
        truth = {key: one for key, one in truth.items() if key in shared}
        if theirs.digest == ours.digest:
            notes.append("predictions and vs are the same file")
    learned = [one.label for one in training.values()] or None
    scored = [
        score_reason(truth, {key: given[key] for key in truth}, config.metrics, training=learned)
        for given in ([labels, others] if theirs is not None else [labels])
    ]
    if learned is None:
        notes.append("the majority is that of the scored labels themselves; training=RECORDS takes others")
    counted = f"{len(truth):,} examples in {scored[0].signature['groups']:,} groups"
    return finish(config, scored[0], scored[1] if theirs is not None else None, notes, {}, counted=counted)
