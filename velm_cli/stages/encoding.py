"""The images of a store through frozen layers, once for all epochs, runs and sweeps (`data.cache`)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from velm_cli.data.features import Encode, FeatureCache
from velm_cli.data.loader import image_batches, of_first_images
from velm_cli.data.resizing import CENTRE_CROP
from velm_cli.data.store import Store
from velm_cli.data.transfer import on_device
from velm_cli.engine.device import autocast
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.signals import Stopped, StopRequest
from velm_cli.learners.interface import Learner
from velm_cli.models.vision import VisionEncoder
from velm_cli.schema import FeatureCaching, Precision, TrainRoot

TOGETHER = 32  # images encoded at once
READERS = 2  # threads that read images meanwhile


def cached_features(
    config: TrainRoot,
    store: Store,
    examples: np.ndarray,
    learner: Learner,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    stop: StopRequest,
    *,
    view: int = 0,
) -> FeatureCache | None:
    """Features of the images of `examples` by the encoder of the run `config`, computed now where they are not yet
    there, a share by each rank. They are the same whatever the task: nothing of it is in their key.

    `view` 0 is the image as it is evaluated, the others are augmented by the options of `data`. None without
    `data.cache`. Leaves the learner in evaluation mode. Raises Stopped on all ranks when one of them is told to stop.
    """
    model, data = learner.model, config.data
    pixels = learner.pixels
    if data.cache is FeatureCaching.none or model.vision is None or pixels is None or not store.has_images:
        return None
    learner.eval()
    side = pixels.size
    about = {"encoder": _fingerprint(model.vision), "one_token": model.one_token, "image_size": side}
    if model.grid:
        about |= {"grid": model.grid}
    if model.vision.joined:
        about |= {"join": list(model.vision.joined)}
    if model.frozen_stages:
        about = {"stages": _fingerprint(_first(model.vision, model.frozen_stages)), "image_size": side}
    if model.tiles > 1:
        about |= {"tiles": model.tiles}
    about |= {"mean": list(pixels.mean), "std": list(pixels.std), "precision": precision.value}
    if pixels.resizing != CENTRE_CROP:  # which older caches know nothing of
        about |= {"resizing": pixels.resizing._asdict()}
    if view:
        about |= {"view": view, "crop": data.crop_scale, "flip": data.flip, "jitter": data.colour_jitter}
    about |= {"store": store.hash}  # another store may be put in this one's place meanwhile
    cache = FeatureCache(store.path, store.num_images, data.cache, about)
    augmented = (view, data) if view else None

    def encode(images: np.ndarray) -> Iterator[Tensor]:
        batches = image_batches(store, images, pixels, batch_size=TOGETHER, view=augmented, workers=READERS)
        for batch in on_device(batches, device):
            with torch.inference_mode(), autocast(device, precision):
                assert batch.image_XCHW is not None
                yield model.kept(batch.image_XCHW)

    count = _fill(cache, _images_of(store, examples), encode, ranks, stop)
    which = f"view {view + 1} of {data.views}  " if view else ""
    print(f"features    {cache.folder}  {which}{f'computed for {count:,} images' if count else 'complete'}", flush=True)
    return cache


def _fill(cache: FeatureCache, images: np.ndarray, encode: Encode, ranks: Ranks, stop: StopRequest) -> int:
    """Compute what is missing of `images`, every n-th part by each of n ranks; how many images that were."""
    with contextlib.ExitStack() as writing:
        missing: list[int] | None = None
        if ranks.first:
            with contextlib.suppress(Stopped), stop.at_once():  # another run may be writing for hours
                missing = writing.enter_context(cache.missing(images))
        parts = ranks.same(missing)
        if parts is None:
            raise Stopped
        count, finished = 0, False
        with contextlib.suppress(Stopped), stop.at_once():
            count = cache.write(parts[ranks.rank :: ranks.world], encode)
            finished = True
        shares = ranks.of_all((count, finished))
    if not all(finished for _, finished in shares):
        raise Stopped
    return sum(count for count, _ in shares)


def training_views(
    config: TrainRoot,
    store: Store,
    learner: Learner,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    stop: StopRequest,
) -> list[FeatureCache]:
    """`cached_features` of all images that the run trains and validates on, and of the former's further views."""
    first = cached_features(
        config, store, _examples_of_training(config, store), learner, device, precision, ranks, stop
    )
    if first is None:
        return []
    train = of_first_images(store, "train", config.run.overfit_images)
    further = (
        cached_features(config, store, train, learner, device, precision, ranks, stop, view=view)
        for view in range(1, config.data.views)
    )
    return [first, *(cache for cache in further if cache is not None)]


def images_of_training(config: TrainRoot, store: Store) -> np.ndarray:
    """The images that a run trains and validates on, each once."""
    return _images_of(store, _examples_of_training(config, store))


def _examples_of_training(config: TrainRoot, store: Store) -> np.ndarray:
    train = of_first_images(store, "train", config.run.overfit_images)
    return np.concatenate([train, store.split("val")[: config.run.validate_images or None]])


def _images_of(store: Store, examples: np.ndarray) -> np.ndarray:
    return examples if store.one_image_each else store.images_of(examples)[0]


def _first(encoder: VisionEncoder, stages: int) -> nn.Module:
    """What an image passes in the first so many stages."""
    modules = [part for part in encoder.entrance() if isinstance(part, nn.Module)]
    parameters = [part for part in encoder.entrance() if isinstance(part, nn.Parameter)]
    return nn.ModuleList([*modules, nn.ParameterList(parameters), *encoder.stages()[:stages]])


def _fingerprint(encoder: nn.Module) -> dict[str, Any]:
    """The structure and weights of an encoder or of a part, so that no other's features are taken for its own."""
    weights = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return {"structure": hashlib.sha256(repr(encoder).encode()).hexdigest(), "weights": weights.hexdigest()}
