"""How fast are pictures prepared and read beside Pillow and torchvision? Images a second, side by side in one run.

    python scripts/bench_images.py [--workers 2] [--rounds 5] [--photos FOLDER] [--small] [--out bench_images.json]

The pictures are drawn: noise whose strength falls with its fineness, as in photos, so that a JPEG takes as many bits
a pixel; `--photos` makes them of your own instead (small ones side by side). The contestants take turns, so a busy
machine slows all; every file lies in the system's cache.

Preparing: camera pictures of 3000 x 2000 pixels to JPEGs of a shorter side of 256, in as many processes each, whose
start counts.

velm      what `velm preprocess` does with each file (`normalise_many`)
pillow    the usual loop: open, convert to RGB, resize, save
decoder   the limit: libjpeg alone, at the fraction of the size that velm decodes at

Reading: an epoch of pictures of 640 x 480, in random order, randomly cropped to 224 x 224, mirrored, normalised, in
batches of 32.

velm      its loader on the store that `velm preprocess` makes of them (shorter side 256), in threads; captions as
          tokens
coco      torchvision's CocoCaptions on the files, with torch's DataLoader: as many processes, started before; captions
          as strings
shrunk    the same, on files that somebody has shrunk to 256 pixels before
decoder   the limit: libjpeg alone on the store's pictures, whole, in threads

Printed are medians, and the median and range of the ratios of each round.
"""
# Worker processes import this file: what takes long to import (torch, above all) is imported where it is used.

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from velm_cli.data.images import OVERSAMPLING, NormalisedImage, normalise_image, normalise_many
from velm_cli.data.processes import Limits, available_cores, new_pool

if TYPE_CHECKING:
    from velm_cli.data.store import Store

CAMERA, COCO = (3000, 2000), (640, 480)  # width and height, pixels
SIDE, QUALITY = 256, 90  # what velm keeps of an image
CROP_SIDE, CROP_SCALE, BATCH = 224, 0.5, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FALL = 2**0.5  # a scale of the noise is this much stronger than the next finer one
CONTRAST = (55.0, 8.0, 8.0)  # standard deviations of brightness and of the two colour differences

TITLES = {"preparing": "preparing camera photos", "reading": "reading an epoch"}
OTHERS = {
    "pillow": "Pillow", "decoder": "libjpeg alone", "coco": "torchvision's CocoCaptions",
    "shrunk": "CocoCaptions on files shrunk before",
}  # fmt: skip

Size = tuple[int, int]

# ---------------------------------------------------------------------------------------- pictures


def draw_picture(size: Size, seed: int) -> Image.Image:
    """Noise of all scales, whose JPEG of quality 90 takes about as many bits a pixel as a photo's."""
    draw = np.random.default_rng(seed)
    planes = [128 + contrast * _noise(size, draw) for contrast in CONTRAST]
    return Image.merge("YCbCr", [Image.fromarray(p.clip(0, 255).astype(np.uint8)) for p in planes]).convert("RGB")


def _noise(size: Size, draw: np.random.Generator) -> np.ndarray:
    """float32 [height, width] of deviation 1: each scale is the coarser one enlarged, and a little of its own."""
    pixels = draw.standard_normal((3, 4), np.float32)
    for halvings in reversed(range(int(math.log2(min(size) / 4)))):
        width, height = (math.ceil(side / 2**halvings) for side in size)
        enlarged = Image.fromarray(pixels * FALL).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(enlarged) + draw.standard_normal((height, width), np.float32)
    return pixels / pixels.std()


def lay_out(size: Size, photos: Sequence[Path], seed: int) -> Image.Image:
    """Photos side by side until they cover the size: enlarging them would leave nothing for a JPEG to say."""
    choose, picture = random.Random(seed), Image.new("RGB", size)
    top = 0
    while top < size[1]:
        left, rows = 0, []
        while left < size[0]:
            photo = Image.open(choose.choice(photos)).convert("RGB")
            picture.paste(photo, (left, top))
            left += photo.width
            rows.append(photo.height)
        top += min(rows)
    return picture


def make_pictures(folder: Path, count: int, size: Size, quality: int, photos: Sequence[Path] = ()) -> list[Path]:
    """JPEG files of so many pictures, drawn or made of `photos`."""

    def make(seed: int) -> Path:
        path = folder / f"{seed:06d}.jpg"
        picture = lay_out(size, photos, seed) if photos else draw_picture(size, seed)
        picture.save(path, quality=quality)
        return path

    folder.mkdir(parents=True)
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(make, range(count)))


def bits_a_pixel(paths: Sequence[Path], size: Size) -> float:
    return 8 * statistics.mean(path.stat().st_size for path in paths) / math.prod(size)


# ---------------------------------------------------------------------------------------- store


def coco_captions(images: int) -> list[list[str]]:
    """The captions of so many of COCO's images (of 123,287), about five each."""
    from velm_cli.metrics.authority import SPICE_JAR, pycocoevalcap

    groups: dict[int, list[str]] = {}
    with zipfile.ZipFile(pycocoevalcap() / SPICE_JAR) as jar:
        for part in ("val2014", "train2014"):
            if len(groups) < images:
                for annotation in json.loads(jar.read(f"coco/annotations/captions_{part}.json"))["annotations"]:
                    groups.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return list(groups.values())[:images]


def make_store(path: Path, pictures: Iterable[Path], captions: Sequence[Sequence[str]], image_size: int) -> Store:
    """velm's store of training images with these captions, one an entry of `captions`."""
    from velm_cli.data.examples import Corpus, captioned
    from velm_cli.data.making import build_store
    from velm_cli.schema import ManifestConfig, PreprocessConfig

    records = [
        captioned(number, "train", picture, tuple(texts))
        for number, (picture, texts) in enumerate(zip(pictures, captions, strict=True))
    ]
    dataset = ManifestConfig(store=str(path), image_size=image_size)
    return build_store(Corpus(records), dataset, PreprocessConfig(), path, progress=False)


# ---------------------------------------------------------------------------------------- preparing


def with_velm(paths: Sequence[Path], workers: int) -> None:
    normalise = partial(normalise_image, image_size=SIDE, quality=QUALITY, max_pixels=CAMERA[0] * CAMERA[1])
    results = list(normalise_many(paths, normalise, workers, Limits(60, 4 << 30)))
    assert all(isinstance(result, NormalisedImage) for result in results)


def with_pillow(path: Path) -> bytes:
    """The usual loop's body: the shorter side to SIDE pixels, as JPEG."""
    image = Image.open(path).convert("RGB")
    scale = SIDE / min(image.size)
    buffer = BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def decode(path: Path, least: int) -> None:
    """Decode at the smallest fraction of at least so many pixels on the shorter side."""
    with Image.open(path) as image:
        scale = least / min(image.size)
        image.draft(None, (round(image.width * scale), round(image.height * scale)))
        image.load()


def in_processes(work: Callable[[Path], object], paths: Sequence[Path], workers: int) -> None:
    with new_pool(workers) as pool:
        list(pool.map(work, paths, chunksize=16))


def preparing(paths: Sequence[Path], workers: int) -> dict[str, Callable[[int], object]]:
    return {
        "velm": lambda _: with_velm(paths, workers),
        "pillow": lambda _: in_processes(with_pillow, paths, workers),
        "decoder": lambda _: in_processes(partial(decode, least=round(OVERSAMPLING * SIDE)), paths, workers),
    }


# ---------------------------------------------------------------------------------------- reading


def velm_epochs(store: Store, workers: int) -> Callable[[int], None]:
    """Reads epoch number n."""
    from velm_cli.data.batch import Columns
    from velm_cli.data.loader import TrainLoader
    from velm_cli.data.pixels import Pixels
    from velm_cli.schema import DataConfig, TokenizerConfig

    loader = TrainLoader(
        store,
        Columns(store.tokens(TokenizerConfig()), DataConfig().captions_per_image),
        DataConfig(crop_scale=CROP_SCALE, flip=True, workers=workers),
        batch_size=BATCH,
        pixels=Pixels(CROP_SIDE, MEAN, STD),
        seed=0,
    )

    def read(number: int) -> None:
        batches = loader.batches(start=number * loader.batches_per_epoch)
        for batch in islice(batches, loader.batches_per_epoch):
            assert batch.image_XCHW is not None
        batches.close()

    return read


def coco_epochs(
    folder: Path, pictures: Sequence[Path], captions: Sequence[Sequence[str]], workers: int
) -> Callable[[int], None]:
    """Reads an epoch with torchvision's CocoCaptions and torch's DataLoader; writes the annotations it needs."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CocoCaptions

    names = [str(picture) for picture in pictures]
    texts = [(image, text) for image, group in enumerate(captions) for text in group]
    about = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(texts)],
    }
    folder.mkdir(parents=True)
    (folder / "captions.json").write_text(json.dumps(about))
    steps = [
        transforms.RandomResizedCrop(CROP_SIDE, scale=(CROP_SCALE, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    dataset = CocoCaptions("", str(folder / "captions.json"), transforms.Compose(steps))
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=workers > 0,
    )

    def read(_: int) -> None:
        for image_BCHW, _ in loader:
            assert len(image_BCHW) == BATCH

    return read


def collate(samples: list[tuple[Any, list[str]]]) -> tuple[Any, list[list[str]]]:
    """The images in one tensor; their captions as they are, since they differ in number."""
    import torch

    images, captions = zip(*samples, strict=True)
    return torch.stack(images), list(captions)


def decode_stored(store: Store, workers: int) -> None:
    """Decode every picture of the store, and nothing else."""
    with ThreadPoolExecutor(workers or 1) as pool:
        list(pool.map(lambda record: Image.open(BytesIO(store.image_bytes(record))).load(), range(len(store))))


def reading(folder: Path, pictures: Sequence[Path], workers: int) -> dict[str, Callable[[int], object]]:
    import torch

    from velm_cli.engine.device import prepare

    prepare(torch.device("cpu"), 0)  # as `velm train` does; the processes of the others inherit it
    captions = coco_captions(len(pictures))
    store = make_store(folder / "store", pictures, captions, SIDE)
    shrunk = [folder / "shrunk" / f"{record}.jpg" for record in range(len(store))]
    shrunk[0].parent.mkdir()
    for record, path in enumerate(shrunk):
        path.write_bytes(store.image_bytes(record))
    return {
        "velm": velm_epochs(store, workers),
        "coco": coco_epochs(folder / "coco", pictures, captions, workers),
        "shrunk": coco_epochs(folder / "coco256", shrunk, captions, workers),
        "decoder": lambda _: decode_stored(store, workers),
    }


# ---------------------------------------------------------------------------------------- the table


def compare(
    what: str, contestants: dict[str, Callable[[int], object]], images: int, rounds: int, asked: dict[str, float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of velm against each of the others, and the figures they come from; prints images a second."""
    import benching

    for work in contestants.values():  # the first time is slower: processes start, files come into the cache
        work(0)
    shifted = {name: lambda number, work=work: work(number + 1) for name, work in contestants.items()}
    seconds = benching.take_turns(shifted, rounds)
    speed = {name: images / statistics.median(times) for name, times in seconds.items()}
    for name, value in speed.items():
        print(f"{what}  {name:<9} {value:8.1f} images/s")
    rows = [
        benching.row(f"{TITLES[what]}: {OTHERS[name]}", benching.ratio(seconds, "velm", name), asked.get(name))
        for name in contestants
        if name != "velm"
    ]
    return rows, {"images": images, "seconds": seconds, "images_per_s": speed}


def main() -> int:
    import benching

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes, or velm's threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs to make the pictures of")
    parser.add_argument("--small", action="store_true", help="few and small pictures, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    photos = sorted(options.photos.rglob("*.jp*g")) if options.photos else []
    small = options.small
    kinds = {  # size, quality, how many are drawn, how many are used: each several times, for drawing takes long
        "preparing": ((750, 500), 90, 4, 16) if small else (CAMERA, 90, 24, 192),
        "reading": ((160, 120), 95, 16, 64) if small else (COCO, 95, 256, 1024),  # COCO's files: 4 bits a pixel
    }
    asked: dict[str, dict[str, float]] = {"preparing": {"pillow": 3, "decoder": 0.8}, "reading": {"coco": 3}}
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"setting": {**vars(options), "photos": bool(photos), "out": None}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for what, (size, quality, drawn, used) in kinds.items():
            files = make_pictures(folder / what, drawn, size, quality, photos)
            paths = list(islice(cycle(files), used))
            bits = bits_a_pixel(files, size)
            print(f"{what}  {used} pictures of {size[0]} x {size[1]}, {bits:.1f} bits a pixel")
            contestants = (
                preparing(paths, options.workers) if what == "preparing" else reading(folder, paths, options.workers)
            )
            found, figures = compare(what, contestants, used, options.rounds, asked[what])
            rows += found
            result[what] = figures | {"size": size, "bits_a_pixel": bits}
    benching.save(options.out, rows, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
