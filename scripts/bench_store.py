"""Does `velm preprocess` stay as quick a sample, and as small, when the data grows? A small store against a large one.

    python scripts/bench_store.py [--sizes 20000 2000000] [--folder FOLDER] [--reads 20000] [--out bench_store.json]

The data are synthetic and tiny: a manifest of so many lines, each with an id of its own and two captions of 8 words
drawn from 2,000, about 256 pictures of 32 x 32 pixels of noise that the lines share. So every sample is read,
decoded, encoded, hashed and written by itself, but the input's files are few; listing a folder of as many files as
samples takes 130 bytes a name besides.

Each measurement is a new process with one worker: `velm preprocess`'s own steps (read, plan, images, check, manifest)
killed by SIGKILL when half of the shards are there, then resumed to the end; opening the store; reading samples
(image, captions, concepts, id) in random order, once every shard has been opened. Memory of preprocessing is the
largest that the process has had, without its worker; that of reading is what it has got of its own (pages of mapped
files are the system's to drop). `resume` is the time from the start of the resumed process to the first new shard.
With --folder what is there is used again.
"""
# Worker processes import this file: what takes long to import is imported where it is used.

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resident import memory

SIDE, PICTURES, WORDS = 32, 256, 2000
STEP = 0.05  # seconds between two looks at a folder


def make_input(folder: Path, size: int) -> Path:
    """The manifest of `size` samples, and the pictures beside it."""
    import numpy as np
    from PIL import Image

    path = folder / f"{size}.jsonl"
    if path.exists():
        return path
    draw = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = draw.integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=90)
    words = ["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(WORDS)]
    part = path.with_suffix(".part")
    with part.open("w") as file:
        for start in range(0, size, 10_000):
            drawn = draw.integers(0, WORDS, (10_000, 2, 8))
            for number in range(start, min(start + 10_000, size)):
                captions = [" ".join(words[word] for word in caption) for caption in drawn[number - start]]
                line = {"image": f"{number % PICTURES:03d}.jpg", "image_id": number, "captions": captions}
                file.write(json.dumps(line) + "\n")
    part.rename(path)
    return path


def build(manifest: Path, store: Path) -> dict[str, Any]:
    """Preprocess, or go on with it; the seconds until images are begun, and until the end, and the peak in bytes."""
    from velm_cli.data.making import build_store
    from velm_cli.data.readers import read
    from velm_cli.schema import ManifestConfig, PreprocessConfig

    began = time.perf_counter()
    dataset = ManifestConfig(file=str(manifest), image_size=SIDE)
    corpus = read(dataset)
    ready = time.perf_counter() - began
    build_store(corpus, dataset, PreprocessConfig(workers=1), store, progress=False)
    return {"read_s": ready, "seconds": time.perf_counter() - began, "peak": memory("VmHWM")}


def access(store: Path, reads: int) -> dict[str, Any]:
    """Open the store and read samples at random."""
    import numpy as np

    from velm_cli.data.opening import open_store
    from velm_cli.schema import PreprocessConfig

    before, began = memory("RssAnon"), time.perf_counter()
    opened = open_store(store)
    open_s = time.perf_counter() - began
    began = time.perf_counter()
    first_id = opened.example_id(len(opened) - 1)
    ids_s = time.perf_counter() - began
    numbers = np.random.default_rng(1).integers(0, len(opened), reads).tolist()
    began = time.perf_counter()
    for number in range(0, len(opened), PreprocessConfig().shard_images):
        opened.image_bytes(number)
    maps_s = time.perf_counter() - began
    seconds = []
    for _ in range(2):  # the first time each sample's pages have to be mapped
        began = time.perf_counter()
        for number in numbers:
            opened.image_bytes(number), opened.targets(number), opened.concepts(number), opened.example_id(number)
        seconds.append((time.perf_counter() - began) / reads)
    return {
        "samples": len(opened), "last_id": first_id, "open_s": open_s, "ids_s": ids_s, "maps_s": maps_s,
        "read_s": seconds[0], "again_s": seconds[1], "memory": memory("RssAnon") - before,
    }  # fmt: skip


def measure(folder: Path, size: int, reads: int) -> dict[str, Any]:
    """All figures of one size; those of building as they were when the store in the folder was built."""
    store, kept = folder / f"store-{size}", folder / f"{size}.json"
    found = json.loads(kept.read_text()) if kept.exists() else measure_build(make_input(folder, size), store, size)
    kept.write_text(json.dumps(found))
    done = subprocess.run(command("--access", store, str(reads)), check=True, stdout=subprocess.PIPE, text=True)
    return found | {"access": json.loads(done.stdout)}


def measure_build(manifest: Path, store: Path, size: int) -> dict[str, Any]:
    """Seconds and memory of a build that is killed half-way and resumed."""
    images, half = store / "images", size // 2000
    began = time.perf_counter()
    first = subprocess.Popen([*command("--build", manifest, store)], stdout=subprocess.DEVNULL)
    while len(list(images.glob("*.tar"))) < half:
        assert first.poll() is None, "the build ended before it was killed"
        time.sleep(STEP)
    first.kill()
    first.wait()
    until_killed = time.perf_counter() - began
    there, began = len(list(images.glob("*.tar"))), time.perf_counter()
    second = subprocess.Popen(command("--build", manifest, store), stdout=subprocess.PIPE, text=True)
    while second.poll() is None and len(list(images.glob("*.tar"))) <= there:
        time.sleep(STEP)
    resume = time.perf_counter() - began
    said, _ = second.communicate()
    assert second.returncode == 0, "the resumed build failed"
    resumed = json.loads(said)
    return {
        "until_killed_s": until_killed, "resume_s": resume, "shards_at_kill": there, "resumed": resumed,
        "preprocess_s": until_killed + resumed["seconds"],
    }  # fmt: skip


def command(*words: str | Path) -> list[str]:
    """This script with other options."""
    return [sys.executable, __file__, *map(str, words)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=[20_000, 2_000_000], help="samples of the two stores")
    parser.add_argument("--folder", type=Path, help="keep the data here, to go on another time")
    parser.add_argument("--reads", type=int, default=20_000, help="samples read at random")
    parser.add_argument("--small", action="store_true", help="few samples, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--build", type=Path, nargs=2, metavar=("MANIFEST", "STORE"), help=argparse.SUPPRESS)
    parser.add_argument("--access", nargs=2, metavar=("STORE", "READS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        print(json.dumps(build(*options.build)))
        return 0
    if options.access:
        print(json.dumps(access(Path(options.access[0]), int(options.access[1]))))
        return 0
    import benching

    sizes = [2000, 4000] if options.small else sorted(options.sizes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[int, dict[str, Any]] = {}
        for size in sizes:
            found[size] = measure(folder, size, options.reads)
            print(f"{size:,}: {json.dumps(found[size])}", flush=True)
    small, large = sizes
    rows = []
    peaks = {size: found[size]["resumed"]["peak"] for size in sizes}
    figures = {
        "preprocess, a sample": {size: found[size]["preprocess_s"] / size for size in sizes},
        "preprocess resumed after SIGKILL, a sample": {size: found[size]["resume_s"] / size for size in sizes},
        "reading a sample of a store at random": {size: found[size]["access"]["read_s"] for size in sizes},
        "the same samples again": {size: found[size]["access"]["again_s"] for size in sizes},
        "opening a store": {size: found[size]["access"]["open_s"] for size in sizes},
    }
    if all(peaks.values()):
        figures["memory of preprocess"] = dict(peaks)
        figures["memory of reading"] = {size: found[size]["access"]["memory"] for size in sizes}
    for what, values in figures.items():
        times = benching.ratio({"large": [values[large]], "small": [values[small]]}, "large", "small")
        asked = None if what == "opening a store" else 1.0
        rows.append(benching.row(f"{what}: {large:,} samples against {small:,}", times, asked))
    bytes_a_record = (peaks[large] - peaks[small]) / (large - small)
    print(f"memory of preprocess grows by {bytes_a_record:.0f} bytes a record")
    benching.save(options.out, rows, {"found": found, "bytes_a_record": bytes_a_record})
    return 0


if __name__ == "__main__":
    sys.exit(main())
