"""Whether a config fits its data and files, checked once these are open: in dry runs, and before a run writes.

`validate` knows the options alone. What it cannot know is here: how many images, captions and concepts there are, what
the weights hold, whether Java is installed. All problems are reported at once; what is legal but surprising is a note.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from velm_cli.data.allowed import refuse_unwritable
from velm_cli.data.concepts import MIN_IMAGES
from velm_cli.data.coverage import coverage_lines
from velm_cli.data.loader import TrainLoader
from velm_cli.data.masked_words import MaskedTexts
from velm_cli.data.mixed import Loader
from velm_cli.data.order import Share
from velm_cli.data.pixels import Pixels
from velm_cli.data.store import Store, Tokens
from velm_cli.data.streaming import StreamLoader, training_loader
from velm_cli.errors import UserError
from velm_cli.lineage import vocabulary_grows, vocabulary_source
from velm_cli.metrics.authority import version as jars
from velm_cli.metrics.java import java_problem
from velm_cli.objectives.weights import parse_weight
from velm_cli.place import place
from velm_cli.schema import (
    DataConfig,
    DecodeMethod,
    EvaluateRoot,
    ImageLoss,
    JointLoss,
    MetricsConfig,
    NoVisionConfig,
    PretrainedTextConfig,
    TrainRoot,
)
from velm_cli.stages.idle_options import idle_options
from velm_cli.stages.parts import Material
from velm_cli.stages.positions import position_problems
from velm_cli.stages.starting import new_learner
from velm_cli.stages.talk_notes import talk_notes
from velm_cli.stages.task_data import TaskData
from velm_cli.tasks import Task

NOT_WRITTEN = 0.1  # share of the training captions longer than decode.max_length that is worth a note
ENDLESS = 10  # times the longest caption: more words than this only a model that never ends would write
OF_JAVA = ("meteor", "spice")


def refuse_unfit(material: Material) -> None:
    """UserError with a line for every problem of every part."""
    if lines := [part.says(line) for part in material.parts for line in problems(part.config, part.data)]:
        raise UserError("\n".join(lines))


def problems(config: TrainRoot, data: TaskData) -> Iterator[str]:
    """A line for everything in `config` that fails with this data and on this machine."""
    store = data.store
    if not isinstance(config.vision, NoVisionConfig) and not store.has_images:
        yield (
            f"{store.path} holds captions only, and vision={config.vision.kind} needs images: say vision=none "
            "fusion=none dataset.images=false, or name another store"
        )
    places = not data.task.needs.talks  # else each image stands where the conversation names it
    if places and not isinstance(config.vision, NoVisionConfig) and 0 < config.vision.images < store.most_images:
        yield (
            f"{store.path} has examples of up to {store.most_images} images, and vision.images={config.vision.images}: "
            f"set vision.images={store.most_images}, which tells them apart, or 0, which takes them as a bag"
        )
    try:
        loader = loader_of(config, data)
    except UserError as error:
        yield str(error)
    else:
        yield from _too_few_images(config, data, loader)
    if _active(config, "beta") and config.loss.image is ImageLoss.concepts and not store.concept_names:
        yield (
            f"loss.beta={config.loss.beta}: there is no concept to predict, since no content word is in the captions "
            f"of {MIN_IMAGES} training images: set loss.beta=0, take more images, or loss.image=masked_patches"
        )
    if config.run.patience and not config.run.overfit_images and not len(store.split("val")):
        yield f"run.patience={config.run.patience}: {store.path} has no validation images: set run.patience=0"
    yield from position_problems(config, data)
    if not data.task.manner:
        try:
            refuse_unwritable(config.decode, data.tokenizer)
        except UserError as error:
            yield f"decode.{error}"
    yield from data.task.fitting(store, data.spaces)
    if scored := len(store.split("val")[: config.run.validate_images or None]):
        yield from data.task.unscorable(scored)
    yield from metric_problems(data.task, config.metrics)


def notes(config: TrainRoot, data: TaskData, loader: Loader) -> Iterator[str]:
    """A line for everything that is legal, and that whoever typed the command may not have meant."""
    store, tokens = data.store, data.texts
    brought = isinstance(config.text, PretrainedTextConfig) or vocabulary_source(config) is not None
    own = vocabulary_grows(config) or not brought
    noun = f"{data.task.target}s" if len(store.all_sources) and data.task.needs.source else "captions"
    if data.talks is not None:
        yield from talk_notes(config, data.talks, store)
    elif not data.task.options.judges:  # who takes answers whole, whatever their words
        yield from coverage_lines(tokens, store.all_targets, config.tokenizer, own=own, noun=noun)
    if isinstance(sources := data.sources, Tokens):
        yield from coverage_lines(
            sources, store.all_sources, config.tokenizer, own=own, noun=f"{data.task.unit}s", column="sources"
        )
    elif isinstance(sources, MaskedTexts):
        yield (
            f"masked      {sources.hidden:,} words of {len(store.all_sources):,} {data.task.unit}s "
            f"(data.mask_source={config.data.mask_source})"
        )
    yield from unread(data.task, store)
    yield from idle_options(config)
    steps, warmup = config.run.max_steps, config.optim.warmup_steps
    if warmup >= steps:
        highest = config.optim.lr * steps / warmup
        yield (
            f"note: optim.warmup_steps={warmup:,} lasts longer than the {steps:,} steps of training: the learning rate "
            f"ends at {highest:.2g}, where optim.lr={config.optim.lr:g}; set optim.warmup_steps={steps // 10}"
        )
    for name in ("alpha", "beta", "gamma", "scheduled_sampling"):
        weight = parse_weight(f"loss.{name}", text := getattr(config.loss, name))
        if (ends := weight.settled(loader.batches_per_epoch / config.run.accumulation)) > steps:
            yield f"note: loss.{name}={text} moves for {ends:,.0f} steps, and training ends after {steps:,}"
    images = store.counts["train"]
    if config.run.overfit_images > images:
        yield f"note: run.overfit_images={config.run.overfit_images}: there are {images:,} training images"
    asked, most = config.data.captions_per_image, loader.captions_per_image
    if asked > most > 0 and asked != DataConfig().captions_per_image:
        yield f"note: data.captions_per_image={asked}: no training image has more than {most}"
    together = config.data.examples_per_image
    if (store.one_image_each or not store.has_images) and together != DataConfig().examples_per_image:
        yield f"note: data.examples_per_image={together} has no effect: no two examples of this store share an image"
    if store.has_images and not config.run.overfit_images and not len(store.split("val")):
        unit = data.task.unit
        yield f"note: there are no validation {unit}s: nothing is scored, and the last weights are the ones to use"
    if data.task.manner is None and data.talks is None:  # else no text is decoded
        yield from _lengths(config, tokens, noun)


def loader_of(config: TrainRoot, data: TaskData) -> TrainLoader | StreamLoader:
    """The batches of this process as training makes them, but for how images are normalised."""
    here = place()
    return training_loader(
        data.store,
        data.to_learn(config.data.captions_per_image, 0),
        config.data,
        max_tokens=config.tokenizer.max_tokens,
        batch_size=config.run.batch_size,
        pixels=None if isinstance(config.vision, NoVisionConfig) else Pixels(config.vision.side),
        seed=config.seed,
        limit=config.run.overfit_images,
        share=Share(here.rank, here.world, even=_active(config, "gamma")),
    )


def refuse_unfit_evaluation(
    config: EvaluateRoot, task: Task, store: Store, indices: np.ndarray, *, images: int | None
) -> None:
    """UserError with a line for all that an evaluation of these examples would fail at, most of it late.

    `images`: the places that the model tells apart, as in `vision.images`; None where it sees none."""
    lines = [*metric_problems(task, config.metrics), *task.unscorable(len(indices))]
    most = store.images_of(indices)[1].shape[1] if store.most_images > 1 else 1
    if images is not None and 1 < images < most:
        lines.append(
            f"split={config.split} of {store.path} has examples of up to {most} images, and the model knows "
            f"{images} places (vision.images={images}): name another split or store"
        )
    if not lines and config.metrics.required and not _references(store, indices):
        lines.append(
            f"metrics.required={list(config.metrics.required)}: no image of split={config.split} in {store.path} has a "
            "caption to compare with: leave metrics.required empty, or name another split"
        )
    if lines:
        raise UserError("\n".join(lines))


def evaluation_notes(
    config: EvaluateRoot, task: Task, store: Store, indices: np.ndarray, *, images: int | None
) -> Iterator[str]:
    """A line for what is legal in an evaluation and may not be meant. `images` as above."""
    if images == 1 < store.most_images and not task.needs.talks:
        yield (
            f"note: examples of {store.path} have up to {store.most_images} images, and the model has learned from one "
            "(vision.images=1): it takes them as a bag"
        )
    yield from unread(task, store)
    if config.limit > len(indices):
        yield (
            f"note: limit={config.limit:,}: split={config.split} has {len(indices):,} {task.unit}s, and "
            f"{task.doing} are made of all"
        )
    if not _references(store, indices):
        yield f"note: no {task.unit} of split={config.split} has {task.doing} to compare with: nothing is scored"
    else:
        yield from metric_notes(task, config.metrics.names)


def unread(task: Task, store: Store) -> Iterator[str]:
    """A note where the store's examples have questions that the task does not read."""
    if len(store.all_sources) and not task.needs.source and not task.needs.talks:
        yield (
            f"note: the examples of {store.path} are questions, and task={task.kind} takes their answers "
            "for captions, without reading them: task=vqa reads them"
        )


def _references(store: Store, indices: np.ndarray) -> bool:
    ranges = store.target_ranges(indices)
    return bool((ranges[:, 1] > ranges[:, 0]).any())


def metric_problems(task: Task, metrics: MetricsConfig) -> Iterator[str]:
    """What of `metrics` would fail after the predictions are written."""
    required = list(metrics.required)
    if task.kind != "caption":
        if required:
            yield f"metrics.required={required} are scores of captions, and task={task.kind} has its own; leave it out"
        return
    needs_java = [name for name in OF_JAVA if name in required]
    if needs_java and (line := _no_java()):
        yield f"metrics.required={needs_java}: {line}"
    if metrics.df not in ("corpus", "coco") and not Path(metrics.df).is_file():
        yield f"metrics.df={metrics.df}: no such file (corpus, coco, or what velm score save_df=FILE writes)"


def metric_notes(task: Task, names: list[str]) -> Iterator[str]:
    """What of `metrics.names` this machine leaves out."""
    needs_java = [name for name in OF_JAVA if name in names]
    if task.kind == "caption" and needs_java and (line := _no_java()):
        yield f"note: {' and '.join(needs_java)} are left out on this machine: {line}"


def _no_java() -> str | None:
    return java_problem() or (None if jars() else "their jars come with pycocoevalcap: pip install pycocoevalcap")


def _active(config: TrainRoot, name: str) -> bool:
    return not parse_weight(f"loss.{name}", getattr(config.loss, name)).always_zero


def _too_few_images(config: TrainRoot, data: TaskData, loader: TrainLoader | StreamLoader) -> Iterator[str]:
    """What needs two images at a time and gets one: statistics of a batch, negatives."""
    together, world = loader.batch_size, place().world
    own = together // world
    joint = _active(config, "gamma")
    side_by_side = config.data.examples_per_image  # of one image; a rank's examples stand side by side
    shared = not data.store.one_image_each and own <= side_by_side
    if own > 1 and not shared:
        return
    if own > 1:
        each = f", {own} for each of {world} processes," if world > 1 else ""
        cause = f"run.batch_size={together}{each} can be examples of one image (data.examples_per_image={side_by_side})"
    elif together > 1:
        cause = f"run.batch_size={together} is one image for each of {world} processes"
    elif config.run.batch_size == 1:
        cause = "run.batch_size=1"
    elif config.run.overfit_images == 1:
        cause = "run.overfit_images=1"
    else:
        cause = "there is one training image"
    compares = config.loss.joint is JointLoss.matching or together == 1
    if joint and compares and own < 2 and config.run.batch_size > 1:
        yield f"loss.gamma={config.loss.gamma} compares the images of a batch, and {cause}: take two or more"
    if data.store.has_images and _needs_a_batch(config, data):
        name = getattr(config.vision, "net", config.vision.kind)
        frozen = ", or vision.freeze=all" if config.vision.weights != "none" else ""
        more = "fewer of an image, or a larger batch" if own > 1 else "two or more"
        yield (
            f"{cause}: the batch normalisation of {name} cannot learn from one image at a time; take {more}, "
            f"or an encoder without it (vision=vit){frozen}"
        )


def _needs_a_batch(config: TrainRoot, data: TaskData) -> bool:
    """Whether the encoder refuses to train on a single image: tried with sizes alone."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers for no concepts, which is another problem
        learner = new_learner(config, data.spaces, data.tokenizer).train()
        side = config.vision.side
        try:
            learner.model.encode_image(torch.empty(1, 3, side, side))
        except ValueError as error:
            return "more than 1 value per channel" in str(error)
    return False


def _lengths(config: TrainRoot, tokens: Tokens, noun: str) -> Iterator[str]:
    """How the lengths of the targets (captions, answers) compare with what decoding may write."""
    longest = config.decode.max_length
    lengths = np.diff(tokens.offsets)
    if not len(lengths):
        return
    # A caption that was cut is longer than its tokens.
    longer = float(np.mean(lengths > longest))
    if longer > NOT_WRITTEN:
        yield (
            f"note: decode.max_length={longest}: {longer:.0%} of the {noun} have more tokens, so what is written "
            f"ends before they do: decode.max_length={int(lengths.max())}"
        )
    most = int(lengths.max())
    if longest > max(100, ENDLESS * most) and config.decode.method is DecodeMethod.beam:
        yield f"note: decode.max_length={longest:,}: no {noun[:-1]} has more than {most:,} tokens; each more costs time"
