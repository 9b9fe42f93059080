"""The images of a store through a frozen encoder, once for all epochs, runs and sweeps (`data.cache`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.features import FeatureCache
from velm_cli.data.loader import eval_batches
from velm_cli.data.store import Store
from velm_cli.engine.device import autocast
from velm_cli.models.vision import VisionEncoder
from velm_cli.schema import FeatureCaching, Precision, TrainRoot
from velm_cli.tasks.caption import CaptionTask

TOGETHER = 32  # images encoded at once
READERS = 2  # threads that read images meanwhile


def cached_features(
    config: TrainRoot,
    store: Store,
    records: np.ndarray,
    task: CaptionTask,
    device: torch.device,
    precision: Precision,
) -> FeatureCache | None:
    """Features of `records` by the encoder of the run `config`, computed now where they are not yet there.

    None without `data.cache`. Leaves the task in evaluation mode.
    """
    model = task.model
    if config.data.cache is FeatureCaching.none or model.vision is None or not store.has_images:
        return None
    task.eval()
    side = config.vision.image_size
    cache = FeatureCache(
        store.path,
        len(store),
        config.data.cache,
        {"encoder": _fingerprint(model.vision), "one_token": model.one_token, "image_size": side}
        | {"mean": list(task.image_mean), "std": list(task.image_std), "precision": precision.value},
    )

    def encode(records: np.ndarray) -> Iterator[Tensor]:
        for batch in eval_batches(
            store,
            None,
            records,
            batch_size=TOGETHER,
            image_size=side,
            mean=task.image_mean,
            std=task.image_std,
            workers=READERS,
        ):
            with torch.inference_mode(), autocast(device, precision):
                features = model.encode_image(batch.to(device).image_BCHW)
            assert features is not None
            yield features.packed()

    count = cache.fill(records, encode)
    print(f"features    {cache.folder}  {f'computed for {count:,} images' if count else 'complete'}", flush=True)
    return cache


def images_of_training(config: TrainRoot, store: Store) -> np.ndarray:
    """The records that a run trains and validates on."""
    train = store.split("train")[: config.run.overfit_images or None]
    return np.concatenate([train, store.split("val")[: config.run.validate_images or None]])


def _fingerprint(encoder: VisionEncoder) -> dict[str, Any]:
    """The encoder's structure and weights, so that no other encoder's features are taken for its own."""
    weights = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return {"structure": hashlib.sha256(repr(encoder).encode()).hexdigest(), "weights": weights.hexdigest()}
