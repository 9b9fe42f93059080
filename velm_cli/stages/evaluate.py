"""evaluate: predict a split with a trained model, score the predictions, print one table."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from velm_cli import configs, naming
from velm_cli.data.features import Features
from velm_cli.data.store import Store, store_path
from velm_cli.engine.device import pick_precision, prepare
from velm_cli.engine.folder import again, mark, open_run
from velm_cli.engine.ranks import Ranks, together
from velm_cli.engine.signals import Stopped, stop_on_signals
from velm_cli.errors import StageError, UserError
from velm_cli.files import sealed, sha256, write_json
from velm_cli.lineage import noted_store, weight_file
from velm_cli.loading import KEPT, has_learned, run_spaces, run_tokenizer, trained_learner, with_kept_models
from velm_cli.metrics.scores import missing_scores
from velm_cli.mixture import for_task, has_tasks, is_mixture, store_of
from velm_cli.report.tables import BLIND
from velm_cli.schema import Blind, EvaluateRoot, MixConfig, MixTaskConfig, TrainRoot
from velm_cli.stages.blinding import blind_problems, blinded, grey_features, told
from velm_cli.stages.encoding import cached_features
from velm_cli.stages.evaluations import report_again, result_path
from velm_cli.stages.fitting import evaluation_notes, refuse_unfit_evaluation
from velm_cli.stages.opening import opened_judge, opened_run
from velm_cli.stages.predicting import predict_split, score_and_save
from velm_cli.stages.showing import write_report
from velm_cli.stages.starting import open_store, same_weights
from velm_cli.stages.submitting import submission, submit
from velm_cli.stages.task_data import TaskData, refuse_other_examples
from velm_cli.tasks import Task, task_of
from velm_cli.tasks.interface import ExampleId
from velm_cli.tasks.mix import kinds_of


def run(config: EvaluateRoot) -> float | None:
    """Returns the task's primary score, such as CIDEr (None if it was not asked for)."""
    home = configs.run_folder_of(config.checkpoint)
    trained = _with_models(config, configs.load_run_config(config.checkpoint), home)
    trained = _of_mixture(config, trained, home)
    task = _task(config, trained, home)
    weights = weight_file(config.checkpoint)
    store = open_store(config)
    refuse_other_examples(task, store)
    indices = _indices(config, task, store)
    place = submission(config, task, len(indices))
    refuse_unfit_evaluation(config, trained, task, store, indices)
    if config.name is None:
        config.name = _default_name(config, task, trained)
    spaces = task.named_by(store, run_spaces(home, task))
    if config.dry_run:
        lines = [*opened_run(trained, home, weights), *opened_judge(config.metrics.clip)]
        print(f"would {task.verb} {len(indices):,} {task.unit}s of {store.path} with {weights}{_blind_words(config)}")
        for line in (*lines, *evaluation_notes(config, trained, task, store, indices)):
            print(line)
        return None
    then = noted_store(home)
    if then not in (None, store.hash) and store_path(config.dataset) == store_path(trained.dataset):
        print(f"note: {store.path} has other data now ({store.hash[:12]}) than when {home} was trained ({then[:12]})")
    with together(config.run.device) as ranks:
        state, digest = same_weights(weights, ranks)
        about = {"file": str(weights), "sha256": digest, "data": store.hash}
        if config.metrics.df not in ("corpus", "coco") and "cider" in config.metrics.names:
            about["df"] = sha256(Path(config.metrics.df))
        path = ranks.same(result_path(config, about))
        if (path / "DONE").exists():
            return report_again(path)
        tokenizer = run_tokenizer(home)
        data = TaskData.to_predict(trained, task, store, tokenizer, spaces)
        return _evaluate(config, trained, data, indices, path, ranks, about, state, place)


def _evaluate(
    config: EvaluateRoot,
    trained: TrainRoot,
    data: TaskData,
    indices: np.ndarray,
    path: Path,
    ranks: Ranks,
    about: dict[str, str],
    state: dict[str, Tensor],
    place: tuple[str, Path] | None,
) -> float | None:
    """Predict on all ranks; score and write on the first."""
    device, task, store = ranks.device, data.task, data.store
    precision = pick_precision(config.run.precision, device)
    prepare(device, config.run.threads, deterministic=config.run.deterministic)
    print(f"weights     {about['file']}\ndata        {store.path}  {config.split}  {len(indices):,} {task.unit}s")
    if words := _blind_words(config):
        print(f"control     {words.removeprefix(', ')}")
    seen = blinded(data, config)
    with open_run(path, config, writes=ranks.first) as opened, stop_on_signals() as stop:
        if ranks.first:
            write_json(path / "weights.json", sealed(about))
        home, file = configs.run_folder_of(config.checkpoint), Path(about["file"])
        learner = trained_learner(trained, task, data.tokenizer, home, file, state).to(device)
        for note in learner.pixels.resizing.enlarges(store.image_size, learner.pixels.size) if learner.pixels else ():
            print(note)
        predicted: dict[ExampleId, Any] = {}
        features: Features | None = None
        with contextlib.suppress(Stopped):
            if config.eval.blind is Blind.image:
                features = grey_features(learner, device, precision)
            else:
                features = cached_features(trained, seen.store, indices, learner, device, precision, ranks, stop)
        if not ranks.any_stopped(stop):
            predicted = predict_split(
                seen,
                learner,
                indices,
                decoding=config.decode,
                ranks=ranks,
                precision=precision,
                seed=config.seed,
                stop=stop,
                features=features,
            )
        stopped = ranks.any_stopped(stop)
        if not ranks.first:
            return None
        opened.refuse_if_gone()
        if stopped:
            signal = stop.signal_name or "a signal to another process"
            mark(path, "PREEMPTED", f"{signal} after {len(predicted)} {task.unit}s")
            print(f"stopped by {signal}; {again(config, path)} starts this evaluation again")
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
            trained_on=_trained_on(store, trained, home),
            weights=about["sha256"],
            told=told(config, trained),
        )
        facts = task.further(config, predicted, path)
        if config.report.page and scores:
            page = write_report(
                path,
                scores,
                store,
                learner,
                data.tokenizer,
                np.array([index for index in indices if store.example_id(int(index)) in scores.per_image]),
                predicted,
                attention=config.report.attention if config.eval.blind is Blind.none else 0,
                looking=config.report.looking,
                columns=data.given(),
                answers=data.spaces.get(getattr(learner, "space", ""), ()),
                facts=facts,
            )
            print(f"report      {page}")
        opened.refuse_if_gone()
        mark(path, "DONE")
    print(f"done: {path}")
    if scores is None:
        return None
    if missing := missing_scores(scores, config.metrics.required):
        raise StageError(f"metrics.required: not computed: {missing}")
    return scores.headline


def _of_mixture(config: EvaluateRoot, trained: TrainRoot, home: Path) -> TrainRoot:
    """The config of the run with the task that is evaluated, of those that a mixture has; its store where the command
    names no data. UserError where it has not that task."""
    if has_tasks(trained):
        found = for_task(trained, config.task.kind)
        if found is None:
            said = "say which of them" if isinstance(config.task, MixTaskConfig) else f"not task={config.task.kind}"
            kinds = ", ".join(f"task={kind}" for kind in kinds_of(trained))
            raise UserError(f"checkpoint: {home} learned {kinds}: {said}")
        trained = found
    if is_mixture(trained) and isinstance(config.dataset, MixConfig) and config.dataset.store is None:
        config.dataset.store = store_of(trained, config.task.kind)
    return trained


def _task(config: EvaluateRoot, trained: TrainRoot, home: Path) -> Task:
    """The task by the options of the evaluation, which take the place of the run's in `trained`.

    UserError where the run has not learned it, or an option comes too late.
    """
    task = task_of(config.task).by_run(trained)
    if not has_learned(task, trained, home):
        raise UserError(task.why_not_learned(trained, home))
    lines = list(blind_problems(config, task, trained, home))
    if type(config.task) is type(trained.task):
        for field in fields(config.task):
            now, then = getattr(config.task, field.name), getattr(trained.task, field.name)
            if now != then and field.name not in task.evaluated:
                lines.append(
                    f"task.{field.name}={getattr(now, 'value', now)} has no effect: {home} was trained with "
                    f"task.{field.name}={getattr(then, 'value', then)}; leave it out"
                )
    if lines:
        raise UserError("\n".join(lines))
    trained.task = config.task
    return task


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


def _default_name(config: EvaluateRoot, task: Task, trained: TrainRoot) -> str:
    dataset, decode = config.dataset, config.decode
    how = "greedy" if decode.beams == 1 else f"beam{decode.beams}"
    if decode.method.value == "nucleus":
        how = f"nucleus{decode.top_p:g}-seed{config.seed}"
    how = task.manner or how
    limit = f"-first{config.limit}" if config.limit else ""
    data = dataset.kind
    if dataset.store is not None and store_path(dataset) != store_path(trained.dataset):
        data += f"-{naming.short_name(dataset.store)}"
    blind = f"-{BLIND[config.eval.blind.value].replace(' ', '-')}" if config.eval.blind is not Blind.none else ""
    return naming.slug(f"{naming.checkpoint_name(config.checkpoint)}-{data}-{config.split}{limit}-{how}{blind}")


def _with_models(config: EvaluateRoot, trained: TrainRoot, home: Path) -> TrainRoot:
    """The config of the run; its pretrained models where the command says, else where the run keeps their configs."""
    trained = with_kept_models(trained, dict.fromkeys(KEPT, home))
    for group in KEPT:
        if (name := getattr(config, group).name) is None:
            continue
        node = getattr(trained, group)
        if not hasattr(node, "name"):
            raise UserError(f"{group}.name={name} has no effect: {home} has {group}={node.kind}; leave it out")
        node.name = name
    return trained


def _trained_on(store: Store, trained: TrainRoot, home: Path) -> bool:
    """Whether this is the store that the run was trained on; where an older velm noted none, by its path."""
    then = noted_store(home)
    return store_path(trained.dataset) == store.path if then is None else then == store.hash
