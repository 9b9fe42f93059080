"""The first lines of a training run: what is about to happen, in figures, and what its options imply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from velm_cli.data.loader import TrainLoader
from velm_cli.data.streaming import StreamLoader
from velm_cli.engine.loop import Run
from velm_cli.models.velm import count_parameters
from velm_cli.objectives.weights import Weight
from velm_cli.schema import JointLoss, TrainRoot
from velm_cli.stages.fitting import notes as fitting_notes
from velm_cli.stages.task_data import TaskData


def headline(run: Run, data: TaskData, loader: TrainLoader | StreamLoader) -> list[str]:
    """What is about to happen, in figures."""
    config, store, unit = run.config, data.store, data.task.unit
    trainable, total = count_parameters(run.learner, trainable=True), count_parameters(run.learner)
    parts = {name: getattr(run.learner.model, name) for name in ("vision", "text", "fusion")}
    sizes = ", ".join(f"{name} {count_parameters(part) / 1e6:.2f} M" for name, part in parts.items() if part)
    where = str(run.device)
    if run.ranks.world > 1:
        where = f"{run.ranks.world} processes ({config.run.parallel.value}), {run.device.type}"
    enlarged: list[str] = []
    if (pixels := run.learner.pixels) is not None and store.has_images:
        enlarged = pixels.resizing.enlarges(store.image_size, pixels.size)
    return [
        f"run         {run.folder}",
        f"data        {store.path}  {store.counts['train']:,} training {unit}s, "
        f"vocabulary {data.tokenizer.vocab_size:,}",
        f"parameters  {total / 1e6:.2f} M, {trainable / 1e6:.2f} M trained ({sizes})",
        f"steps       {config.run.max_steps:,} of {config.run.batch_size} x {config.run.accumulation} {unit}s "
        f"({run.steps_per_epoch:.1f} steps per epoch) on {where}, {run.precision.value}",
        *enlarged,
        *(run.learner.model.vision.notes if run.learner.model.vision is not None else ()),
        *implications(config, run.learner.weights, run.ranks.world),
        *fitting_notes(config, data, loader),
    ]


def implications(config: TrainRoot, weights: Mapping[str, Weight], world: int) -> Iterator[str]:
    """A line for each consequence of the options that their names do not tell."""
    active = [name for name, weight in weights.items() if not weight.always_zero]
    if "text" not in active and len(active) > 1:
        terms = (
            f"exp(-s) loss_{name} + s" if weights[name].learned else f"{weights[name].end:g} loss_{name}"
            for name in active
        )
        yield f"best        by the lowest validation loss: {' + '.join(terms)}"
    if "joint" not in active or config.loss.joint is JointLoss.label:
        return
    images, micro_batches = config.run.batch_size, config.run.accumulation
    if micro_batches > 1:
        yield (
            f"note: L_joint compares the images of one micro-batch: each has {images - 1} negatives, and would have "
            f"{images * micro_batches - 1} with run.batch_size={images * micro_batches} run.accumulation=1"
        )
    if world > 1 and config.loss.joint is JointLoss.matching:
        yield f"note: loss.joint=matching draws its hard negatives among the {images // world} images of one process"
