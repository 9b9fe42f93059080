"""What a core does a second with image-text pairs in shards: the rates that docs/scale.md calculates with.

    python scripts/bench_stream.py --images FOLDER [--out rates.json]

One thread's work by the processor's time, so that other work on the machine counts little; each rate is the median of
some rounds. Photos of 3000 x 2000 pixels are enlarged from those of
the folder, since hardly any set of small files has them; their detail is less than a camera's, so they decode faster.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benching import run_of, step
from PIL import Image, ImageOps

from velm_cli.data.batch import Batch, Columns
from velm_cli.data.images import check_image, normalise_image
from velm_cli.data.opening import open_store
from velm_cli.data.pixels import Pixels
from velm_cli.data.sources import open_source
from velm_cli.data.stream_building import build_stream
from velm_cli.data.stream_store import StreamStore
from velm_cli.data.streaming import StreamLoader
from velm_cli.data.tars import samples
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.transforms import TrainTransform
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.objectives.weights import constant
from velm_cli.schema import (
    CaptionTaskConfig,
    CrossModalConfig,
    DataConfig,
    LossConfig,
    PreprocessConfig,
    TokenizerConfig,
    TrainRoot,
    TransformerConfig,
    ViTConfig,
    WebDatasetConfig,
)

PIXELS = 178_956_970


def rate(work: Callable[[], float], rounds: int) -> float:
    """Units of work a second: the median of the rounds, after one that does not count."""
    work()
    rates = []
    for _ in range(rounds):
        began = cpu_seconds()
        units = work()
        rates.append(units / (cpu_seconds() - began))
    return statistics.median(rates)


def cpu_seconds() -> float:
    """Of this process, its threads, and those of its processes that have ended."""
    return sum(os.times()[:4])


def photos(folder: Path, size: tuple[int, int], count: int) -> list[bytes]:
    """Photos of the folder cut and scaled to one size, JPEG of quality 90."""
    out = []
    for path in sorted(folder.rglob("*.jpg"))[:count]:
        with Image.open(path) as image:
            buffer = io.BytesIO()
            ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            out.append(buffer.getvalue())
    return out


def write_shards(folder: Path, images: list[bytes], shards: int, each: int, captions: list[str]) -> None:
    """img2dataset's layout; images come round again."""
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * each, (shard + 1) * each):
                caption = captions[number % len(captions)]
                parts = {
                    "jpg": images[number % len(images)],
                    "json": json.dumps({"caption": caption, "url": f"https://host/{number}.jpg"}).encode(),
                    "txt": caption.encode(),
                }
                for extension, content in parts.items():
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def image_rates(folder: Path, rounds: int) -> dict[str, float]:
    """Images a second."""
    rates = {}
    for name, size, count in (("camera 3000x2000", (3000, 2000), 12), ("web 500x375", (500, 375), 60)):
        taken = photos(folder, size, count)
        rates[f"{name}, kilobytes"] = sum(map(len, taken)) / len(taken) / 1000
        for side in (256, 384):

            def prepare(side: int = side, taken: list[bytes] = taken) -> float:
                for content in taken:
                    normalise_image(content, image_size=side, quality=90, max_pixels=PIXELS)
                return len(taken)

            rates[f"{name} to {side}: decode, resize, encode"] = rate(prepare, rounds)
    for side in (256, 384):
        taken = photos(folder, (side * 4 // 3, side), 60)
        rates[f"stored {side}, kilobytes"] = sum(map(len, taken)) / len(taken) / 1000
        transform = TrainTransform(224, (0.5,) * 3, (0.5,) * 3, 0.5, True)

        def read(taken: list[bytes] = taken, transform: TrainTransform = transform) -> float:
            for number, content in enumerate(taken):
                transform(content, generator=np.random.default_rng(number))
            return len(taken)

        def check(taken: list[bytes] = taken) -> float:
            for content in taken:
                check_image(content, max_pixels=PIXELS)
            return len(taken)

        rates[f"stored {side}: decode and augment to 224"] = rate(read, rounds)
        rates[f"stored {side}: check as the scan does"] = rate(check, rounds)
    return rates


def shard_rates(images: Path, captions: list[str], rounds: int) -> dict[str, float]:
    """Reading, scanning and streaming shards of 256-pixel images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, photos(images, (341, 256), 200), 4, 1000, captions)
        size = sum(path.stat().st_size for path in folder.glob("*.tar")) / 1e6
        urls = sorted(str(path) for path in folder.glob("*.tar"))

        def read() -> float:
            for url in urls:
                with open_source(url) as file:
                    for _, sample in samples(file, lambda number, extension: True):
                        for content in sample.parts.values():
                            zlib.crc32(content or b"")
            return size

        megabytes = rate(read, rounds)
        began = cpu_seconds()
        config = WebDatasetConfig(urls=urls, num_val=0, shuffle=2048)
        store = build_stream(config, PreprocessConfig(workers=1), folder / "store", progress=False)
        scanned = 4000 / (cpu_seconds() - began)
        store = open_store(folder / "store", config)
        assert isinstance(store, StreamStore)
        columns = Columns(store.tokens(TokenizerConfig()), DataConfig().captions_per_image)
        pixels = Pixels(224, (0.5,) * 3, (0.5,) * 3)
        loader = StreamLoader(
            store, columns, DataConfig(crop_scale=0.5), max_tokens=40, batch_size=64, pixels=pixels, seed=0
        )
        batches = loader.batches()

        def stream() -> float:
            return sum(len(next(batches).ids) for _ in range(32))  # a block

        streamed = rate(stream, rounds)
        batches.close()
    return {
        "megabytes a shard of 1,000 samples": size / 4,
        "tar read and checked, MB/s": megabytes,
        "tar read and checked, samples/s": megabytes / size * 4000,
        "velm preprocess of the shards, samples/s, a process's start included": scanned,
        "stream: read, decode and augment to 224, tokenise, samples/s": streamed,
    }


def text_rates(captions: list[str], rounds: int) -> dict[str, float]:
    """Captions a second on the cores that the process has."""
    tokenizer = Tokenizer.build(TokenizerConfig(min_count=1), captions)
    many = (captions * (20_000 // len(captions) + 1))[:20_000]
    return {"tokenise, captions/s": rate(lambda: len(tokenizer.encode_batch(many)), rounds)}


def step_rates(rounds: int) -> dict[str, float]:
    """Training steps of bench_train.py's model (ViT-S/16 and 6 blocks with cross-attention), one caption an image."""
    config = TrainRoot(
        dataset=WebDatasetConfig(), vision=ViTConfig(), text=TransformerConfig(), fusion=CrossModalConfig(),
        task=CaptionTaskConfig(),
    )  # fmt: skip
    torch.manual_seed(0)
    model = VelmModel(
        vision=ViTConfig(image_size=224, patch_size=16, width=384, layers=12, heads=6, conv_stem=False),
        text=TransformerConfig(width=384, layers=0, heads=6),
        fusion=CrossModalConfig(layers=6, heads=6),
        vocab_size=10_000,
    )
    task = WritingLearner(model, LossConfig(), concepts=1, weights=constant("text")).train()
    run = run_of(task, config)
    batch = fake_batch(images=16, length=14, side=224, vocabulary=10_000)

    def train() -> float:
        step(run, batch)
        return 16

    return {
        "training step, parameters in millions": count_parameters(task) / 1e6,
        "training step, pairs/s": rate(train, rounds),
    }


def fake_batch(*, images: int, length: int, side: int, vocabulary: int) -> Batch:
    """Random pixels and words."""
    image_XCHW = torch.randn(images, 3, side, side)
    tokens_BKT = torch.randint(4, vocabulary, (images, 1, length))
    return Batch.of(tokens_BKT, torch.full((images, 1), length), image_XCHW=image_XCHW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos")
    parser.add_argument("--captions", type=Path, help="COCO's captions file; without one, made up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    captions = [f"a photo of number {number} on a wooden table beside the door" for number in range(1000)]
    if args.captions:
        captions = [found["caption"] for found in json.loads(args.captions.read_text())["annotations"]]
    rates = text_rates(captions, args.rounds) | image_rates(args.images, args.rounds)
    rates |= shard_rates(args.images, captions, args.rounds) | step_rates(args.rounds)
    for name, value in rates.items():
        print(f"{name:<70} {value:>12,.1f}")
    if args.out:
        args.out.write_text(json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    main()
