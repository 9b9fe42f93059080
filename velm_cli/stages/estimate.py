"""dry_run=true: what a training run would cost, found without running it.

The model is built on torch's meta device, where tensors have shapes and no storage; one step of it
counts the floating-point operations and the bytes that backward needs.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from velm_cli.data.batch import CONCEPTS, Batch, Lengths
from velm_cli.data.packing import Packing
from velm_cli.data.store import Store
from velm_cli.data.stream_store import StreamStore
from velm_cli.data.talks import Talks
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.engine.device import pick_device, pick_precision, prepare
from velm_cli.engine.meter import matrix_peak
from velm_cli.errors import UserError
from velm_cli.learners.interface import Learner, Moment
from velm_cli.models.velm import count_parameters
from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import FeatureCaching, ImageLoss, Precision, RegionsConfig, TrainRoot
from velm_cli.stages.encoding import images_of_training
from velm_cli.stages.estimate_memory import Memory, mib, parameters_by_part
from velm_cli.stages.estimate_recomputed import Watched, as_in_training
from velm_cli.stages.estimate_tokens import Taught, image_rows, longest_of_batches, pads
from velm_cli.stages.fitting import loader_of, metric_notes, notes, problems
from velm_cli.stages.opening import opened_files
from velm_cli.stages.resuming import would_find
from velm_cli.stages.starting import built, keepers, new_learner
from velm_cli.stages.task_data import TaskData

WORTH_A_CACHE = 0.7  # of the time without one: more, and the line is noise
REACHED = 0.3  # share of the matrix-multiply peak that a training step of a small model reaches, roughly


def estimate(config: TrainRoot, store: Store, tokenizer: Tokenizer | None) -> None:
    """Print parameters, tokens a step, memory and time; train nothing."""
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    prepare(device, config.run.threads)
    data = TaskData.of(config, store, tokenizer)
    tokens = data.texts
    faults = list(problems(config, data))
    said: list[str] = []
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers for no concepts, which is one of the problems
            keeper = keepers(config, None)
            learner = built(config, lambda config: new_learner(config, data.spaces, data.tokenizer), keeper).train()
        said += opened_files(config, learner, data.spaces, tokens.tokenizer)
    except UserError as error:
        faults.append(str(error))
    try:
        said += would_find(config, store, [data])
    except UserError as error:
        faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    loader = loader_of(config, data)
    examples = store.counts["train"]
    length_of_target = mean_length(store, tokens)
    per_image = loader.captions_per_image
    memory, flops = memory_of_step(learner, config, data, precision)
    images = config.run.batch_size * config.run.accumulation
    trainable, total = count_parameters(learner, trainable=True), count_parameters(learner)
    peak = matrix_peak(device, precision)

    def lasts(flops: int) -> float:
        return flops / (REACHED * peak)

    unit, text, texts, length = data.task.unit, data.task.target, per_image, length_of_target
    if data.talks is not None:
        found = data.talks.counts(store.split("train"))
        text, texts, length = unit, 1, found["tokens"] / max(1, found["kept"])
    if data.task.options.judges and data.sources is not None:  # whose targets are labels
        text, texts, length = unit, 1, len(data.sources.ids) / max(1, len(data.sources.offsets) - 1) + 1
    taught = Taught.of(config, data, length_of_target)
    steps = config.run.max_steps * config.run.accumulation
    once, kept = encoding(learner, config, store)  # where a cache keeps what frozen layers make of the images
    cached = config.data.cache is not FeatureCaching.none
    seconds = lasts(steps * flops + cached * once)
    rows = [
        ("parameters", f"{total:,} ({trainable:,} trained)"),
        *parameters_by_part(learner),
        ("training set", f"{examples:,} {unit}s, {length:.1f} tokens per {text}"),
        ("", f"{taught.targets:,} {taught.noun} to predict; the run passes over the set {taught.epochs:,.1f} times"),
        ("per step", f"{images} {unit}s, {images * texts * length:,.0f} tokens"),
        ("", f"{flops * config.run.accumulation / 1e9:,.1f} GFLOP"),
        *image_rows(learner, config, data, images=_images_shown(config, store), texts=per_image),
        *memory.rows(),
        *([("feature cache", f"{mib(kept)} MiB on the disk, of which runs read what they need")] if kept else []),
        ("device", f"{device}, {precision.value}, {peak / 1e12:.2f} TFLOP/s in matrix products (measured now)"),
        ("time", f"about {duration(seconds)} for {config.run.max_steps:,} steps, at {REACHED:.0%} of that, "
                 "without validation"),
    ]  # fmt: skip
    print("dry run: the config is valid; nothing was trained")
    for label, value in rows:
        print(f"{label:<14}{value}")
    if cached and once:
        print(f"{'':<14}of that about {duration(lasts(once))} for the features of the images, which are kept")
    elif once and not isinstance(store, StreamStore):
        config.data.cache = FeatureCaching.bf16
        with_cache = steps * one_step(learner, config, data, per_image, round(length_of_target))[0]
        config.data.cache = FeatureCaching.none
        if lasts(with_cache + once) < WORTH_A_CACHE * seconds:
            print(
                f"note: vision.freeze={config.vision.freeze} computes the same features again and again: with "
                f"data.cache=bf16 about {duration(lasts(with_cache + once))}"
            )
    if learner.pixels is not None and store.has_images:
        for note in learner.pixels.resizing.enlarges(store.image_size, learner.pixels.size):
            print(note)
    for note in [
        *said,
        *taught.notes(unit, trainable),
        *notes(config, data, loader),
        *metric_notes(data.task, config.metrics.names),
    ]:
        print(note)


def memory_of_step(learner: Learner, config: TrainRoot, data: TaskData, precision: Precision) -> tuple[Memory, int]:
    """What is in memory at the peak of a step, and the FLOPs of a micro-batch whose targets have the mean length."""
    texts, length = loader_of(config, data).captions_per_image, round(mean_length(data.store, data.texts))
    flops, activations = one_step(learner, config, data, texts, length)
    longest = longest_of_batches(config, data, texts) if pads(learner) else 0
    if longest > length:  # what is in memory, and mostly computed for nothing
        activations = one_step(learner, config, data, texts, longest)[1]
    in_training, packed = as_in_training(learner, config, precision)
    return Memory.of(in_training, config.run, precision, activations, packed=packed), flops


def mean_length(store: Store, tokens) -> float:
    """Mean number of tokens predicted a training caption (its words and the end token); of a stream, a held-out one."""
    records = store.split("train")
    if not len(records):
        return len(tokens.ids) / max(1, len(store.all_targets)) + 1
    ranges = [store.target_range(int(index)) for index in records]
    count = sum(stop - start for start, stop in ranges)
    total = sum(int(tokens.offsets[stop] - tokens.offsets[start]) for start, stop in ranges)
    return total / max(1, count) + 1


def encoding(learner: Learner, config: TrainRoot, store: Store) -> tuple[int, int]:
    """FLOPs and bytes of what a feature cache computes once: frozen layers on every image that a run uses; 0 where it
    cannot, or has none."""
    frozen = config.vision.freeze not in ("none", "first:0")
    augments = config.data.flip or config.data.crop_scale < 1 or config.data.colour_jitter
    paints = (
        config.loss.image is ImageLoss.masked_patches and not parse_weight("loss.beta", config.loss.beta).always_zero
    )
    cached = config.data.cache is not FeatureCaching.none
    if learner.model.vision is None or not frozen or isinstance(config.vision, RegionsConfig):
        return 0, 0
    if (augments or paints) and not cached:
        return 0, 0
    side = config.vision.side
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        feature_1SD = learner.model.kept(torch.empty(1, 3, side, side))
    images = len(images_of_training(config, store)) if not isinstance(store, StreamStore) else 0
    number = 2 if config.data.cache is FeatureCaching.bf16 else 4
    seen = images * config.data.views
    return counter.get_total_flops() * seen, feature_1SD.numel() * number * seen if cached else 0


def one_step(learner: Learner, config: TrainRoot, data: TaskData, K: int, length: int) -> tuple[int, int]:
    """FLOPs and activation bytes of a micro-batch of K targets an example, forward and backward, on the meta device."""
    B, side, images = config.run.batch_size, config.vision.side, data.store.has_images
    N, X = B * K, _images_shown(config, data.store)
    parts: dict[str, Any] = {}
    L = 0
    with torch.device("meta"):
        image_BCHW = torch.empty(X, 3, side, side) if images else None
        if images and not data.store.one_image_each:
            parts["image_of_BI"] = torch.empty(B, max(1, data.store.most_images), dtype=torch.long)
        if data.sources is not None:
            L = round(len(data.sources.ids) / max(1, len(data.sources.offsets) - 1)) + 2
            parts |= {
                "source_BL": torch.empty(B, L, dtype=torch.long),
                "source_lengths_B": torch.empty(B, dtype=torch.long),
                "num_sources": B,
                "num_source_tokens": B * (L - 1),
            }
        if data.talks is not None:
            parts["talks"], X = _first_talks(data, B)
            image_BCHW = torch.empty(X, 3, side, side) if X else None
        predicted = data.task.labels(data.store, data.spaces)
        labels = {name: torch.empty(B, of.width) for name, of in predicted.items()}
        labels |= {CONCEPTS: torch.empty(B, learner.concepts)} if images else {}
        feature_BSD = None
        if image_BCHW is not None and learner.model.vision and config.data.cache is not FeatureCaching.none:
            feature_BSD = learner.model.kept(image_BCHW)
            image_BCHW = None
        every_M = torch.empty(N * length, dtype=torch.long)
        batch = Batch(
            ids=list(range(B)),
            examples=list(range(B)),
            images=list(range(X)),
            image_XCHW=image_BCHW,
            feature_XSD=feature_BSD,
            tokens_BKT=torch.empty(B, K, length + 1, dtype=torch.long),
            lengths_BK=torch.empty(B, K, dtype=torch.long),
            packing=Packing(every_M, every_M, every_M[:length], every_M, N, length, B, K * length),
            predicted_M=every_M,
            labels=labels,
            labelled=dict.fromkeys(labels, B),
            num_targets=N,
            lengths=Lengths(
                np.full((B, K), length + 1),
                np.full(B, L) if "source_BL" in parts else None,
                np.arange(B) * X // B if "image_of_BI" in parts and data.store.most_images <= 1 else None,
            ),
            **parts,
        )
    saved: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage is freed and another counted under its address

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            held.append(tensor)
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, Watched(saved, counter).of(learner.model) as blocks:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = sum(term.sum for term in learner(batch, Moment(learner.active)).values())
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
    if config.run.checkpoint_activations:
        return counter.get_total_flops() + blocks.operations, blocks.kept
    return counter.get_total_flops(), sum(saved.values())


def _first_talks(data: TaskData, count: int) -> tuple[Talks, int]:
    """The first conversations that are learned from, and how many images they show."""
    assert data.talks is not None
    examples = data.store.split("train")
    examples = examples[data.talks.learnable(examples)][:count]
    images_X, image_of_BI = data.store.images_of(examples)
    return Talks.of(data.talks, examples.tolist(), image_of_BI, prompts=False), len(images_X)


def _images_shown(config: TrainRoot, store: Store) -> int:
    """Distinct images of a batch: as many as there are examples, but for those that share one."""
    if store.one_image_each or not store.num_images:
        return config.run.batch_size
    if store.num_images > len(store):
        return round(config.run.batch_size * store.num_images / len(store))
    shared = min(config.data.examples_per_image, len(store) / store.num_images)
    # Of one image alone a batch normalisation has no statistics; whether that can happen is checked elsewhere.
    return max(min(2, config.run.batch_size), round(config.run.batch_size / max(1.0, shared)))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
