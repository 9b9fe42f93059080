"""Captions of a split, and their scores: shared by validation, the end of training, and evaluate."""

from __future__ import annotations

import math
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from velm_cli.data.features import FeatureCache
from velm_cli.data.loader import eval_batches
from velm_cli.data.store import Store, Tokens
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.transfer import on_device
from velm_cli.engine.device import autocast, drawing_from
from velm_cli.engine.loop import Run
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.signals import StopRequest
from velm_cli.engine.snapshot import seed_of
from velm_cli.errors import on_one_line
from velm_cli.files import write_json
from velm_cli.metrics.captions import fast_cider, score_captions
from velm_cli.metrics.scores import Scores, language_line, save, table
from velm_cli.models.decoding import converted_once, laid_out_for_steps
from velm_cli.objectives.weights import Weight
from velm_cli.report.samples import contact_sheet, stored_images
from velm_cli.schema import DecodeConfig, MetricsConfig, Precision
from velm_cli.tasks.caption import CaptionTask

Captions = dict[Any, str]  # image id -> caption


def caption_split(
    task: CaptionTask,
    store: Store,
    tokenizer: Tokenizer,
    indices: np.ndarray,
    *,
    decoding: DecodeConfig,
    image_size: int,
    ranks: Ranks,
    precision: Precision,
    seed: int,
    stop: StopRequest | None = None,
    progress: bool = True,
    features: FeatureCache | None = None,
) -> Captions:
    """A caption for every record of `indices`, exactly once, on all ranks; fewer only when a stop is requested.

    The ranks share out groups of batches, within which images whose captions end make room for others. Which images
    are captioned together, and so what is written of them, does not depend on how many ranks there are.
    """
    own: Captions = {}
    images = _images_together(len(indices), decoding.batch_size)
    groups = [indices[start : start + images] for start in range(0, len(indices), images)]
    disable = None if progress and ranks.first else True
    ready = laid_out_for_steps if precision is Precision.fp32 else converted_once
    with ready(task.model), tqdm(total=len(indices), unit="image", desc="captions", disable=disable) as bar:
        for number in range(ranks.rank, len(groups), ranks.world):
            batches = eval_batches(
                store,
                None,
                groups[number],
                batch_size=decoding.batch_size,
                image_size=image_size,
                mean=task.image_mean,
                std=task.image_std,
                resizing=task.image_resizing,
                features=features,
            )
            with autocast(ranks.device, precision):
                found = task.describe(batches, tokenizer, decoding, device=ranks.device, seed=seed)
                for image_id, caption in takewhile(lambda _: not stop, found):
                    assert image_id not in own, "an image was captioned twice"
                    own[image_id] = caption
                    bar.update(ranks.world)
            if stop:
                break
    parts = ranks.of_all((own, bool(stop)))
    together = {image: caption for part, _ in parts for image, caption in part.items()}
    assert len(together) == sum(len(part) for part, _ in parts), "an image was captioned twice"
    assert any(stopped for _, stopped in parts) or len(together) == len(indices), "an image was not captioned"
    ids = (store.example_id(int(index)) for index in indices)
    return {image: together[image] for image in ids if image in together}


def _images_together(images: int, batch_size: int) -> int:
    """How many images' captions depend on each other: of at least 16 groups where there are so many batches, each 16
    batches at most, since then hardly any place is ever free."""
    batches = -(-images // batch_size)
    return batch_size * min(16, max(1, batches // 16))


def references(store: Store, indices: np.ndarray) -> dict[Any, list[str]]:
    return {store.example_id(int(index)): store.targets(int(index)) for index in indices}


def validation_figures(
    run: Run, task: CaptionTask, store: Store, tokens: Tokens, step: int, stop: StopRequest
) -> dict[str, float]:
    """Losses (`_validation_losses`) and CIDEr of greedy captions on the validation images."""
    config = run.config
    part = "train" if config.run.overfit_images else "val"
    limit = config.run.overfit_images or config.run.validate_images or None
    indices = store.split(part)[:limit]
    if not len(indices):
        return {}
    figures = _validation_losses(run, task, store, tokens, indices, stop)
    if store.has_images and task.generates:
        greedy = DecodeConfig(batch_size=config.decode.batch_size, max_length=config.decode.max_length)
        captions = caption_split(
            task,
            store,
            tokens.tokenizer,
            indices,
            decoding=greedy,
            image_size=config.vision.image_size,
            ranks=run.ranks,
            precision=run.precision,
            seed=config.seed,
            stop=stop,
            progress=False,
            features=run.features,
        )
        if not run.ranks.any_stopped(stop):
            figures["cider"] = fast_cider(references(store, indices), captions)
            if run.ranks.first:
                shown = stored_images(store, indices[:12], captions)
                contact_sheet(shown, run.folder / "samples" / f"step-{step:08d}.png")
    return figures


def _validation_losses(
    run: Run, task: CaptionTask, store: Store, tokens: Tokens, indices: np.ndarray, stop: StopRequest
) -> dict[str, float]:
    """The mean of each objective over the images; `loss` is the text's (nats per token, without label smoothing).

    Without text it is the one there is, or their sum, weighted as training weighs them at the end of its schedules.
    """
    active = frozenset(name for name, weight in run.weights.items() if not weight.always_zero)
    own: dict[int, dict[str, tuple[float, int]]] = {}  # by the number of the batch
    batches = eval_batches(
        store,
        tokens,
        indices,
        batch_size=run.config.run.batch_size,
        image_size=run.config.vision.image_size,
        mean=task.image_mean,
        std=task.image_std,
        resizing=task.image_resizing,
        num_concepts=task.concepts,
        captions_per_image=run.config.data.captions_per_image,
        features=run.features,
        rank=run.ranks.rank,
        world=run.ranks.world,
    )
    for number, batch in zip(count(run.ranks.rank, run.ranks.world), on_device(batches, run.device)):
        if stop:
            break
        seed = seed_of(run.config.seed, number)
        with drawing_from(seed, run.device), torch.inference_mode(), autocast(run.device, run.precision):
            terms = task(batch, active)
        own[number] = {name: (float(term.sum), term.count) for name, term in terms.items()}
    # Added in the order of the batches, whoever computed them: the same bits on any number of ranks.
    by_number = sorted(item for part in run.ranks.of_all(own) for item in part.items())
    sums = {name: sum(terms[name][0] for _, terms in by_number) for name in sorted(active)}
    counts = {name: sum(terms[name][1] for _, terms in by_number) for name in sorted(active)}
    losses = {name: sums[name] / max(1, counts[name]) for name in sums}
    if len(losses) == 1:
        return {"loss": losses.popitem()[1]}
    weighed = sum(_weighed(loss, run.weights[name], task.log_variance.get(name)) for name, loss in losses.items())
    return {"loss": losses.get("text", weighed)} | {f"loss_{name}": loss for name, loss in losses.items()}


def _weighed(loss: float, weight: Weight, log_variance: Tensor | None) -> float:
    """The loss's part in what training minimises, once the weight has reached its end."""
    if log_variance is None:
        return weight.end * loss
    s = float(log_variance.detach())
    return math.exp(-s) * loss + s


def score_and_save(
    captions: Captions,
    store: Store,
    config: MetricsConfig,
    folder: Path,
    *,
    title: str,
    trained_on: bool,
    weights: str | None = None,
) -> Scores | None:
    """predictions.json, scores.json and per_image.jsonl in `folder`; the table on the console.

    Images without references are captioned and not scored; None when all are.

    `weights`: the SHA-256 of those that wrote the captions. `trained_on`: the store's training part is what the model
    learned from, so novel captions can be counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    predictions = [{"image_id": image_id, "caption": text} for image_id, text in captions.items()]
    write_json(folder / "predictions.json", predictions)
    captioned = [i for i in range(len(store)) if store.example_id(i) in captions]
    by_id = {store.example_id(i): references for i in captioned if (references := store.targets(i))}
    if not by_id:
        print(f"\n{title}  {len(captions):,} images without references: see {folder / 'predictions.json'}")
        return None
    if len(by_id) < len(captions):
        print(f"note: {len(captions) - len(by_id):,} images have no references and are captioned only")
    training = None
    if trained_on and len(train := store.split("train")):  # a store of streamed shards has none at hand
        training = [caption for i in train for caption in store.targets(int(i))]
    record = {store.example_id(i): i for i in captioned}
    scores = score_captions(
        by_id,
        {image: captions[image] for image in by_id},
        config,
        training=training,
        read_image=lambda image: store.image_bytes(record[image]),
    )
    save(scores, folder, beside=["predictions.json"], weights=weights)
    print(f"\n{title}  {len(by_id):,} images\n{table(scores)}\n{language_line(scores.language)}")
    for warning in scores.warnings:
        print(f"note: {on_one_line(warning)}")
    return scores
