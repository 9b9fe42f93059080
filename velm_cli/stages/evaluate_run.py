"""A run of velm as an evaluation needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from velm_cli import configs, naming
from velm_cli.data.allowed import refuse_unwritable
from velm_cli.data.features import Features
from velm_cli.data.store import Store, store_path
from velm_cli.engine.device import pick_precision
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.signals import Stopped, StopRequest
from velm_cli.errors import UserError
from velm_cli.learners.interface import Learner
from velm_cli.lineage import noted_store, weight_file
from velm_cli.loading import KEPT, has_learned, run_spaces, run_tokenizer, trained_learner, with_kept_models
from velm_cli.metrics.scores import Scores
from velm_cli.mixture import for_task, has_tasks, is_mixture, store_of
from velm_cli.schema import Blind, EvaluateRoot, MixConfig, MixTaskConfig, NoVisionConfig, TrainRoot
from velm_cli.stages.blinding import blind_problems, blinded, grey_features, told
from velm_cli.stages.encoding import cached_features
from velm_cli.stages.opening import opened_run
from velm_cli.stages.positions import too_long_to_reply
from velm_cli.stages.predicting import predict_split
from velm_cli.stages.showing import write_report
from velm_cli.stages.starting import same_weights
from velm_cli.stages.task_data import TaskData
from velm_cli.tasks import Task, task_of
from velm_cli.tasks.interface import ExampleId
from velm_cli.tasks.mix import kinds_of
from velm_cli.tasks.spaces import Spaces


class TrainedRun:
    """A `Predictor` (which says what its members are): what `checkpoint` names in a run folder."""

    goes_on = False

    def __init__(self, config: EvaluateRoot) -> None:
        self._config = config
        self._home = configs.run_folder_of(config.checkpoint)
        trained = _with_models(config, configs.load_run_config(config.checkpoint), self._home)
        self._trained = _of_mixture(config, trained, self._home)
        self.task = _task(config, self._trained, self._home)
        self.name = naming.checkpoint_name(config.checkpoint)
        self.weights = weight_file(config.checkpoint)
        vision = self._trained.vision
        self.images = None if isinstance(vision, NoVisionConfig) else vision.images
        self._spaces: Spaces = {}
        self._state: dict[str, Tensor] = {}
        self._learner: Learner | None = None
        self._data: TaskData | None = None
        self._seen: TaskData | None = None  # as the model gets them

    def data(self, store: Store) -> str:
        dataset = self._config.dataset
        if dataset.store is not None and store_path(dataset) != store_path(self._trained.dataset):
            return f"{dataset.kind}-{naming.short_name(dataset.store)}"
        return dataset.kind

    def refuse_unfit(self, store: Store, indices: np.ndarray) -> None:
        self._spaces = self.task.named_by(store, run_spaces(self._home, self.task))
        if self._config.decode.allowed is not None and not self.task.manner:
            refuse_unwritable(self._config.decode, run_tokenizer(self._home))

    def opened(self, store: Store) -> Iterator[str]:
        return opened_run(self._trained, self._home, self.weights)

    def digest(self, store: Store, ranks: Ranks) -> str:
        then, of_run = noted_store(self._home), store_path(self._trained.dataset)
        if then not in (None, store.hash) and store_path(self._config.dataset) == of_run:
            was = f"when {self._home} was trained ({str(then)[:12]})"
            print(f"note: {store.path} has other data now ({store.hash[:12]}) than {was}")
        self._state, digest = same_weights(self.weights, ranks)
        return digest

    def make_ready(self, store: Store) -> None:
        data = TaskData.to_predict(self._trained, self.task, store, run_tokenizer(self._home), self._spaces)
        self._data, self._seen = data, blinded(data, self._config)

    def predict(
        self, store: Store, indices: np.ndarray, path: Path, about: Mapping[str, str], ranks: Ranks, stop: StopRequest
    ) -> dict[ExampleId, Any]:
        config, trained, device = self._config, self._trained, ranks.device
        precision = pick_precision(config.run.precision, device)
        seen, data = self._seen, self._data
        assert seen is not None and data is not None, "it was made ready"
        learner = trained_learner(trained, self.task, data.tokenizer, self._home, self.weights, self._state).to(device)
        self._learner = learner
        silent: dict[ExampleId, Any] = {}  # of examples that nothing can be written of
        if data.talks is not None:
            long, line = too_long_to_reply(learner.model, data.talks, store, indices, config.decode.max_length)
            silent = {store.example_id(int(index)): "" for index in long}
            if ranks.first and silent:
                print(f"note: {line}. Here they count as empty replies")
        for note in learner.pixels.resizing.enlarges(store.image_size, learner.pixels.size) if learner.pixels else ():
            print(note)
        features: Features | None = None
        with contextlib.suppress(Stopped):
            if config.eval.blind is Blind.image:
                features = grey_features(learner, device, precision)
            else:
                features = cached_features(trained, seen.store, indices, learner, device, precision, ranks, stop)
        if ranks.any_stopped(stop):
            return {}
        found = predict_split(
            seen,
            learner,
            indices[[store.example_id(int(index)) not in silent for index in indices]] if silent else indices,
            decoding=config.decode,
            ranks=ranks,
            precision=precision,
            seed=config.seed,
            stop=stop,
            features=features,
        )
        return found | silent

    def trained_on(self, store: Store) -> bool:
        """By its path where an older velm noted no hash."""
        then = noted_store(self._home)
        return store_path(self._trained.dataset) == store.path if then is None else then == store.hash

    def told(self) -> dict[str, str]:
        return told(self._config, self._trained)

    def report(
        self,
        path: Path,
        scores: Scores,
        store: Store,
        indices: np.ndarray,
        predicted: Mapping[ExampleId, Any],
        facts: Mapping[str, float | None],
    ) -> Path:
        config, learner, data = self._config, self._learner, self._data
        assert learner is not None and data is not None, "it has predicted"
        return write_report(
            path,
            scores,
            store,
            learner,
            data.tokenizer,
            indices,
            predicted,
            attention=config.report.attention if config.eval.blind is Blind.none else 0,
            looking=config.report.looking,
            columns=data.given(),
            answers=data.spaces.get(getattr(learner, "space", ""), ()),
            facts=facts,
        )


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
