"""The first lines of a training run: what is about to happen, in figures, and what its options imply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from velm_cli.data.loader import TrainLoader
from velm_cli.data.mixed import MixedLoader
from velm_cli.data.streaming import StreamLoader
from velm_cli.engine.loop import Run
from velm_cli.models.velm import count_parameters
from velm_cli.objectives.weights import Weight
from velm_cli.schema import JointLoss, TrainRoot
from velm_cli.stages.fitting import notes as fitting_notes
from velm_cli.stages.parts import Material


def headline(run: Run, data: Material, loader: TrainLoader | StreamLoader | MixedLoader) -> list[str]:
    """What is about to happen, in figures."""
    config, unit = run.config, data.task.unit
    trainable, total = count_parameters(run.learner, trainable=True), count_parameters(run.learner)
    parts = {name: getattr(run.learner.model, name) for name in ("vision", "text", "fusion")}
    sizes = ", ".join(f"{name} {count_parameters(part) / 1e6:.2f} M" for name, part in parts.items() if part)
    where = str(run.device)
    if run.ranks.world > 1:
        where = f"{run.ranks.world} processes ({config.run.parallel.value}), {run.device.type}"
    enlarged: list[str] = []
    loaders = {data.parts[0].name: loader} if not isinstance(loader, MixedLoader) else loader.loaders
    noted: dict[str, list[str]] = {}
    for part in data.parts:
        store = part.data.store
        if (pixels := run.learner.pixels) is not None and store.has_images:
            enlarged += [part.says(line) for line in pixels.resizing.enlarges(store.image_size, pixels.size)]
        own = run.learner.of(part.name)
        noted[part.name] = [
            *implications(part.config, own.weights, run.ranks.world),
            *fitting_notes(part.config, part.data, loaders[part.name]),
        ]
    return [
        f"run         {run.folder}",
        *_data_lines(data, loader),
        f"parameters  {total / 1e6:.2f} M, {trainable / 1e6:.2f} M trained ({sizes})",
        f"steps       {config.run.max_steps:,} of {config.run.batch_size} x {config.run.accumulation} {unit}s "
        f"({run.steps_per_epoch:.1f} steps per epoch) on {where}, {run.precision.value}",
        *enlarged,
        *(run.learner.model.vision.notes if run.learner.model.vision is not None else ()),
        *said_of_parts(noted),
    ]


def said_of_parts(lines: Mapping[str, list[str]]) -> list[str]:
    """The lines about each part, by its name; what is said of all parts once."""
    first = next(iter(lines.values()))
    of_all = [line for line in first if all(line in said for said in lines.values())]
    of_one = [f"part {name}: {line}" for name, said in lines.items() for line in said if line not in of_all]
    return of_all + of_one


def _data_lines(data: Material, loader: TrainLoader | StreamLoader | MixedLoader) -> Iterator[str]:
    words = f"vocabulary {data.tokenizer.vocab_size:,}"
    if not isinstance(loader, MixedLoader):
        one = data.only
        yield f"data        {one.store.path}  {one.store.counts['train']:,} training {one.task.unit}s, {words}"
        return
    yield f"data        {len(data.parts)} parts, {words}"
    for part in data.parts:
        store, unit = part.data.store, part.data.task.unit
        yield (
            f"  {part.name:<10}{part.data.task.kind}, {store.path}  {store.counts['train']:,} training {unit}s, "
            f"{loader.shares[part.name]:.1%} of the batches, {loader.loaders[part.name].batch_size} each"
        )


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
