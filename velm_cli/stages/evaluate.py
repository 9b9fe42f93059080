"""evaluate: predict a split with a model, score the predictions, print one table.

The model is a run of velm (`evaluate_run.py`) or one that velm did not train (`evaluate_hf.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from velm_cli import configs, naming
from velm_cli.data.store import Store
from velm_cli.engine.device import prepare
from velm_cli.engine.folder import again, mark, open_run
from velm_cli.engine.ranks import Ranks, together
from velm_cli.engine.signals import stop_on_signals
from velm_cli.errors import StageError, UserError
from velm_cli.files import sealed, sha256, write_json
from velm_cli.metrics.scores import missing_scores
from velm_cli.report.about import decoding_words
from velm_cli.report.tables import BLIND
from velm_cli.schema import LATER_DECODING, Blind, DecodeConfig, EvaluateRoot
from velm_cli.stages.evaluate_hf import HfModel
from velm_cli.stages.evaluate_run import TrainedRun
from velm_cli.stages.evaluations import report_again, result_path
from velm_cli.stages.fitting import evaluation_notes, refuse_unfit_evaluation, unread
from velm_cli.stages.opening import opened_judge
from velm_cli.stages.predicting import score_and_save
from velm_cli.stages.predictors import Predictor
from velm_cli.stages.starting import open_store
from velm_cli.stages.submitting import submission, submit
from velm_cli.stages.task_data import refuse_other_examples
from velm_cli.stages.using import plain
from velm_cli.tasks import Task


def run(config: EvaluateRoot) -> float | None:
    """Returns the task's primary score, such as CIDEr (None if it was not asked for)."""
    predictor: Predictor = HfModel(config) if configs.foreign_model(config.checkpoint) else TrainedRun(config)
    task = predictor.task
    store = open_store(config)
    refuse_other_examples(task, store)
    indices = _indices(config, task, store)
    place = submission(config, task, len(indices))
    refuse_unfit_evaluation(config, task, store, indices, images=predictor.images)
    predictor.refuse_unfit(store, indices)
    if config.name is None:
        config.name = _default_name(config, predictor, store)
    if config.dry_run:
        lines = [*predictor.opened(store), *opened_judge(config.metrics.clip)]
        what = f"{len(indices):,} {task.unit}s of {store.path} with {predictor.weights}{_blind_words(config)}"
        print(f"would {task.verb} {what}")
        for line in (*lines, *evaluation_notes(config, task, store, indices, images=predictor.images)):
            print(line)
        return None
    with together(config.run.device) as ranks:
        about = {"file": str(predictor.weights), "sha256": predictor.digest(store, ranks), "data": store.hash}
        if config.metrics.df not in ("corpus", "coco") and "cider" in config.metrics.names:
            about["df"] = sha256(Path(config.metrics.df))
        if config.decode.allowed is not None:
            about["allowed"] = sha256(Path(config.decode.allowed))
        path = ranks.same(result_path(config, about))
        if (path / "DONE").exists():
            return report_again(path)
        predictor.make_ready(store)
        return _evaluate(config, predictor, store, indices, path, ranks, about, place)


def _evaluate(
    config: EvaluateRoot,
    predictor: Predictor,
    store: Store,
    indices: np.ndarray,
    path: Path,
    ranks: Ranks,
    about: dict[str, str],
    place: tuple[str, Path] | None,
) -> float | None:
    """Predict on all ranks; score and write on the first."""
    task = predictor.task
    prepare(ranks.device, config.run.threads, deterministic=config.run.deterministic)
    print(f"weights     {about['file']}\ndata        {store.path}  {config.split}  {len(indices):,} {task.unit}s")
    if words := _blind_words(config):
        print(f"control     {words.removeprefix(', ')}")
    for line in unread(task, store):
        print(line)
    with open_run(path, config, writes=ranks.first) as opened, stop_on_signals() as stop:
        if ranks.first:
            write_json(path / "weights.json", sealed(about))
        predicted = predictor.predict(store, indices, path, about, ranks, stop)
        stopped = ranks.any_stopped(stop)
        if not ranks.first:
            return None
        opened.refuse_if_gone()
        if stopped:
            signal = stop.signal_name or "a signal to another process"
            mark(path, "PREEMPTED", f"{signal} after {len(predicted)} {task.unit}s")
            does = "goes on with this evaluation" if predictor.goes_on else "starts this evaluation again"
            print(f"stopped by {signal}; {again(config, path)} {does}")
            return None
        if place:
            submit(config, place, predicted)
        scores = score_and_save(
            task,
            predicted,
            store,
            indices,
            config.metrics,
            path,
            title=f"{config.checkpoint}  {config.split}{_blind_words(config)}",
            trained_on=predictor.trained_on(store),
            weights=about["sha256"],
            told=predictor.told() | _decoding(config, task),
        )
        facts = task.further(config, predicted, path)
        if config.report.page and scores:
            shown = np.array([index for index in indices if store.example_id(int(index)) in scores.per_image])
            page = predictor.report(path, scores, store, shown, predicted, facts)
            print(f"report      {page}")
        opened.refuse_if_gone()
        mark(path, "DONE")
    print(f"done: {path}")
    if scores is None:
        return None
    if missing := missing_scores(scores, config.metrics.required):
        raise StageError(f"metrics.required: not computed: {missing}")
    return scores.headline


def _decoding(config: EvaluateRoot, task: Task) -> dict[str, str]:
    """What the signature of the scores says of how texts were found; nothing where none are written."""
    if task.manner is not None:
        return {}
    words = decoding_words(plain(config.decode))
    listed = f" (sha256 {sha256(Path(config.decode.allowed))[:12]})" if config.decode.allowed is not None else ""
    return {"decoding": words + listed}


def _blind_words(config: EvaluateRoot) -> str:
    return f", {BLIND[config.eval.blind.value]}" if config.eval.blind is not Blind.none else ""


def _indices(config: EvaluateRoot, task: Task, store: Store) -> np.ndarray:
    counts = ", ".join(f"{name} {count:,}" for name, count in store.counts.items())
    if config.split not in store.counts:
        raise UserError(f"split={config.split}: the data set has {counts}")
    if not store.has_images and not task.needs.source:
        raise UserError(f"{store.path} holds captions only (dataset.images=false); nothing to {task.verb}")
    indices = store.split(config.split)
    if not len(indices):
        raise UserError(f"split={config.split} has no {task.unit}s; {store.path} has {counts}")
    return indices[: config.limit or None]


def _default_name(config: EvaluateRoot, predictor: Predictor, store: Store) -> str:
    decode = config.decode
    how = "greedy" if decode.beams == 1 else f"beam{decode.beams}"
    if decode.method.value == "nucleus":
        how = f"nucleus{decode.top_p:g}-seed{config.seed}"
    for name in LATER_DECODING:
        if (value := getattr(decode, name)) != getattr(DecodeConfig(), name):
            how += f"-{name}_{naming.short_name(value) if name == 'allowed' else f'{value:g}'}"
    how = predictor.task.manner or how
    limit = f"-first{config.limit}" if config.limit else ""
    blind = f"-{BLIND[config.eval.blind.value].replace(' ', '-')}" if config.eval.blind is not Blind.none else ""
    return naming.slug(f"{predictor.name}-{predictor.data(store)}-{config.split}{limit}-{how}{blind}")
