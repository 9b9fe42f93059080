"""Predictions for a split, and their scores: shared by validation, the end of training, and evaluate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.batch import Columns
from velm_cli.data.features import Features
from velm_cli.data.loader import eval_batches, of_first_images
from velm_cli.data.order import Share
from velm_cli.data.store import Store
from velm_cli.data.transfer import on_device
from velm_cli.engine.device import autocast, drawing_from
from velm_cli.engine.loop import Run, Validation
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.signals import StopRequest
from velm_cli.engine.snapshot import seed_of
from velm_cli.errors import on_one_line
from velm_cli.files import write_text
from velm_cli.learners.interface import Learner, Moment
from velm_cli.metrics.scores import Scores, language_line, save, table
from velm_cli.models.decoding import converted_once, decoded_together, laid_out_for_steps
from velm_cli.objectives.weights import Weight
from velm_cli.progress import progress_bar
from velm_cli.report.samples import contact_sheet, stored_images
from velm_cli.schema import DecodeConfig, MetricsConfig, Precision, TrainRoot
from velm_cli.stages.parts import Material, Part
from velm_cli.stages.task_data import TaskData
from velm_cli.tasks import Task
from velm_cli.tasks.interface import ExampleId, Session

SHOWN = 12  # examples in a validation's picture


def predict_split(
    data: TaskData,
    learner: Learner,
    indices: np.ndarray,
    *,
    decoding: DecodeConfig,
    ranks: Ranks,
    precision: Precision,
    seed: int,
    stop: StopRequest | None = None,
    progress: bool = True,
    features: Features | None = None,
) -> dict[ExampleId, Any]:
    """A prediction for every example of `indices`, exactly once, on all ranks; fewer only when a stop is requested.

    The ranks share out groups of batches, within which examples that end make room for others. Which examples are
    predicted together, and so what is written of them, does not depend on how many ranks there are.
    """
    task, store = data.task, data.store
    own: dict[ExampleId, Any] = {}
    together = decoded_together(len(indices), decoding.batch_size)
    groups = [indices[start : start + together] for start in range(0, len(indices), together)]
    shown = progress and ranks.first
    ready = laid_out_for_steps if precision is Precision.fp32 else converted_once
    with ready(learner.model), progress_bar(what=task.doing, shown=shown, total=len(indices), unit=task.unit) as bar:
        for number in range(ranks.rank, len(groups), ranks.world):
            batches = eval_batches(
                store,
                data.given(),
                groups[number],
                batch_size=decoding.batch_size,
                pixels=learner.pixels,
                features=features,
            )
            with autocast(ranks.device, precision):
                found = task.predict(
                    learner, batches, data.spaces, data.tokenizer, decoding, Session(ranks.device, seed)
                )
                for example, prediction in takewhile(lambda _: not stop, found):
                    assert example not in own, "an example was predicted twice"
                    own[example] = prediction
                    bar.update(ranks.world)
            if stop:
                break
    parts = ranks.of_all((own, bool(stop)))
    all_of_them = {example: prediction for part, _ in parts for example, prediction in part.items()}
    assert len(all_of_them) == sum(len(part) for part, _ in parts), "an example was predicted twice"
    assert any(stopped for _, stopped in parts) or len(all_of_them) == len(indices), "an example was not predicted"
    ids = (store.example_id(int(index)) for index in indices)
    predicted = {example: all_of_them[example] for example in ids if example in all_of_them}
    if not task.refines or any(stopped for _, stopped in parts):
        return predicted
    with autocast(ranks.device, precision):
        batches = eval_batches(
            store,
            Columns(),
            indices,
            batch_size=decoding.batch_size,
            pixels=learner.pixels,
            features=features,
            share=Share(ranks.rank, ranks.world),
        )
        refined = task.refine(learner, batches, predicted, Session(ranks.device, seed))
    return task.joined(ranks.of_all(refined))


def validated(run: Run, data: Material, learner: Learner, step: int, stop: StopRequest) -> Validation:
    """Of a mixture each part by itself, and as `score` the mean of what they reached, or that of `task.primary`."""
    if not data.mixed:
        return validation(run, data.parts[0], learner, step, stop)
    figures: dict[str, float] = {}
    reached: dict[str, float] = {}
    for part in data.parts:
        found = validation(run, part, learner.of(part.name), step, stop)
        figures |= {f"{part.name}/{name}": value for name, value in found.figures.items()}
        if found.figures:
            only_loss = all(name.startswith("loss") for name in found.figures)
            reached[part.name] = math.exp(found.score) if only_loss else part.data.task.of_one(found.score)
    if not reached:
        return Validation({})
    primary = getattr(run.config.task, "primary", None)
    score = reached[primary] if primary in reached else sum(reached.values()) / len(reached)
    return Validation({"score": score} | figures, score)


def validation(run: Run, part: Part, learner: Learner, step: int, stop: StopRequest) -> Validation:
    """Losses (`_validation_losses`) and the task's quick figures of greedy predictions on the validation examples."""
    config, data = part.config, part.data
    task, store = data.task, data.store
    if config.run.overfit_images:
        indices = of_first_images(store, "train", config.run.overfit_images)
    else:
        indices = store.split("val")[: config.run.validate_images or None]
    if not len(indices):
        return Validation({})
    figures = _validation_losses(run, part, learner, indices, stop)
    if (store.has_images or task.needs.source) and predicts(task, config, learner):
        greedy = DecodeConfig(batch_size=config.decode.batch_size, max_length=config.decode.max_length)
        predicted = predict_split(
            data,
            learner,
            indices,
            decoding=greedy,
            ranks=run.ranks,
            precision=run.precision,
            seed=config.seed,
            stop=stop,
            progress=False,
            features=part.features,
        )
        if not run.ranks.any_stopped(stop):
            quick = task.quick(store, indices, predicted)
            first = indices[:SHOWN]
            if run.ranks.first and (texts := task.shown(store, first, predicted)):
                name = "-".join(filter(None, [f"step-{step:08d}", part.name]))
                _show(store, first, texts, run.folder / "samples" / name)
            return Validation(figures | quick, next(iter(quick.values())))
    return Validation(figures, -figures.get("loss", 0.0))


def _show(store: Store, examples: np.ndarray, texts: list[str], path: Path) -> None:
    """A picture of the examples with their texts; of a store without images the texts alone."""
    if store.has_images:
        contact_sheet(stored_images(store, examples, texts), path.with_name(f"{path.name}.png"))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path.with_name(f"{path.name}.txt"), "".join(f"{on_one_line(text)}\n" for text in texts))


def predicts(task: Task[Any], config: TrainRoot, learner: Learner) -> bool:
    """Whether this training run can make the task's predictions."""
    return task.is_learned(config) and task.cannot_predict(learner, config, Path()) is None


def _validation_losses(
    run: Run, part: Part, learner: Learner, indices: np.ndarray, stop: StopRequest
) -> dict[str, float]:
    """The mean of each objective over the images; `loss` is the text's (nats per token, without label smoothing).

    Without text it is the one there is, or their sum, weighted as training weighs them at the end of its schedules.
    """
    active, config = learner.active, part.config
    own: dict[int, dict[str, tuple[float, int]]] = {}  # by the number of the batch
    batches = eval_batches(
        part.data.store,
        part.data.to_learn(config.data.captions_per_image, learner.concepts),
        indices,
        batch_size=config.run.batch_size,
        pixels=learner.pixels,
        features=part.features,
        share=Share(run.ranks.rank, run.ranks.world),
    )
    for number, batch in zip(count(run.ranks.rank, run.ranks.world), on_device(batches, run.device)):
        if stop:
            break
        seed = seed_of(config.seed, number)
        with drawing_from(seed, run.device), torch.inference_mode(), autocast(run.device, run.precision):
            terms = learner(batch, Moment(active))
        own[number] = {name: (float(term.sum), term.count) for name, term in terms.items()}
    # Added in the order of the batches, whoever computed them: the same bits on any number of ranks.
    by_number = sorted(item for part in run.ranks.of_all(own) for item in part.items())
    sums = {name: sum(terms[name][0] for _, terms in by_number) for name in sorted(active)}
    counts = {name: sum(terms[name][1] for _, terms in by_number) for name in sorted(active)}
    losses = {name: sums[name] / max(1, counts[name]) for name in sums}
    if len(losses) == 1:
        return {"loss": losses.popitem()[1]}
    weighed = sum(
        _weighed(loss, learner.weights[name], learner.log_variance.get(name)) for name, loss in losses.items()
    )
    return {"loss": losses.get("text", weighed)} | {f"loss_{name}": loss for name, loss in losses.items()}


def _weighed(loss: float, weight: Weight, log_variance: Tensor | None) -> float:
    """The loss's part in what training minimises, once the weight has reached its end."""
    if log_variance is None:
        return weight.end * loss
    s = float(log_variance.detach())
    return math.exp(-s) * loss + s


def score_and_save(
    task: Task[Any],
    predicted: dict[ExampleId, Any],
    store: Store,
    indices: np.ndarray,
    config: MetricsConfig,
    folder: Path,
    *,
    title: str,
    trained_on: bool,
    weights: str | None = None,
    told: Mapping[str, str] | None = None,
) -> Scores | None:
    """Predictions and scores in `folder`, in the task's formats; the table on the console.

    Examples without anything to compare with are predicted and not scored; None when all are.

    `weights`: the SHA-256 of those that predicted. `trained_on`: the store's training part is what the model learned
    from. `told`: what the signature says beside that of the metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = task.write_results(folder, predicted)
    scores = task.score(store, indices, predicted, config, learned=trained_on)
    if scores is None:
        print(f"\n{title}  {len(predicted):,} {task.unit}s without references: see {folder / files[0]}")
        return None
    scores.signature |= told or {}
    count = len(scores.per_image)
    if count < len(predicted):
        print(f"note: {len(predicted) - count:,} {task.unit}s have no references and are predicted only")
    save(scores, folder, beside=files, weights=weights)
    print(f"\n{title}  {count:,} {task.unit}s\n{table(scores)}")
    if line := language_line(scores.language):
        print(line)
    for warning in scores.warnings:
        print(f"note: {on_one_line(warning)}")
    return scores
