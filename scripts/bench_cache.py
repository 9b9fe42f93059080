"""What do cached features save, and what do they cost? An epoch of a frozen VGG16, an LSTM and attention.

    python scripts/bench_cache.py [--images 192] [--rounds 3] [--workers 1] [--small] [--out bench_cache.json]

Steps of `velm train` in batches of 32 images of 224 x 224 with five of COCO's captions each: LSTM of width 512,
additive attention over the 7 x 7 positions, vocabulary 10,000; VGG16 with random weights, since its speed does not
depend on them. The contestants take turns, so a busy machine slows all:

encode    data.cache=none: the store's images are read, by threads, and encoded in each step
cached    data.cache=bf16: features are read from the files that velm has written; these lie in the system's cache
memory    the limit: the same steps on batches that were put together before

Printed are medians, and the median and range of the ratios of each round. The features are computed before the
first round; that takes as long as encoding an epoch, once for all epochs and runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import bench_images
import benching
import torch

from velm_cli import schema
from velm_cli.data.batch import Batch, Columns
from velm_cli.data.features import FeatureCache
from velm_cli.data.loader import TrainLoader
from velm_cli.data.store import Store
from velm_cli.engine.device import prepare
from velm_cli.engine.loop import Run
from velm_cli.engine.signals import StopRequest
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant
from velm_cli.stages.encoding import cached_features

VOCAB, BATCH = 10_000, 32
CPU = torch.device("cpu")


def make_config(side: int, width: int) -> schema.TrainRoot:
    return schema.TrainRoot(
        dataset=schema.ManifestConfig(),
        data=schema.DataConfig(cache=schema.FeatureCaching.bf16),
        vision=schema.TorchvisionConfig(net="vgg16", weights="none", freeze="all", image_size=side),
        text=schema.LSTMConfig(width=width),
        fusion=schema.AttentionConfig(score=schema.AttentionScore.additive, width=width),
        task=schema.CaptionTaskConfig(),
    )


def make_run(config: schema.TrainRoot, vocab: int) -> Run:
    """A model that learns to caption, in the loop of `velm train`."""
    prepare(CPU, 0)
    torch.manual_seed(0)
    model = VelmModel(vision=config.vision, text=config.text, fusion=config.fusion, vocab_size=vocab)
    task = WritingLearner(model, config.loss, concepts=0, weights=constant("text")).train()
    return benching.run_of(task, config)


def loader_of(run: Run, store: Store, workers: int, features: list[FeatureCache]) -> TrainLoader:
    return TrainLoader(
        store,
        Columns(store.tokens(schema.TokenizerConfig()), schema.DataConfig().captions_per_image),
        schema.DataConfig(workers=workers),
        batch_size=BATCH,
        pixels=run.learner.pixels,
        seed=0,
        features=features,
    )


def epoch_of(loader: TrainLoader, number: int) -> Iterable[Batch]:
    batches = loader.batches(start=number * loader.batches_per_epoch)
    yield from islice(batches, loader.batches_per_epoch)
    batches.close()


def train(run: Run, batches: Iterable[Batch]) -> None:
    for batch in batches:
        benching.step(run, batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=192, help="images an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="threads that read ahead")
    parser.add_argument("--small", action="store_true", help="few and small images, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    images, side, width = (BATCH, 32, 32) if options.small else (options.images, 224, 512)

    run = make_run(make_config(side, width), VOCAB)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = bench_images.make_pictures(folder / "pictures", images, (341, 256), 90)
        store = bench_images.make_store(folder / "store", pictures, bench_images.coco_captions(images), 256)
        began = time.perf_counter()
        cache = cached_features(
            run.config, store, store.split("train"), run.learner, CPU, run.precision, run.ranks, StopRequest()
        )
        assert cache is not None
        filling = time.perf_counter() - began
        run.learner.train()
        loaders = {
            "encode": loader_of(run, store, options.workers, []),
            "cached": loader_of(run, store, options.workers, [cache]),
        }
        ready = [list(epoch_of(loaders["cached"], number)) for number in range(options.rounds)]
        contestants: dict[str, Callable[[int], object]] = {
            name: lambda number, loader=loader: train(run, epoch_of(loader, number))  # type: ignore[misc]
            for name, loader in loaders.items()
        }
        contestants["memory"] = lambda number: train(run, ready[number])
        for _ in range(4):  # until no memory is fetched from the system any more
            train(run, ready[0])
        seconds = benching.take_turns(contestants, options.rounds)

    result: dict[str, Any] = {"setting": {**vars(options), "images": images, "side": side, "out": None}}
    print(f"filling the cache takes {filling:.1f} s, {1000 * filling / images:.0f} ms an image")
    for name, times in seconds.items():
        print(f"{name:<7} {statistics.median(times):8.2f} s an epoch of {images} images")
    rows = [
        benching.row(f"epoch of cached VGG16 + LSTM: {what}", benching.ratio(seconds, "cached", theirs), asked)
        for theirs, what, asked in (("encode", "encoding anew", 8), ("memory", "features in memory", 0.9))
    ]
    benching.save(options.out, rows, result | {"seconds": seconds, "filling_s": filling})
    return 0


if __name__ == "__main__":
    sys.exit(main())
