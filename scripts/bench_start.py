"""How soon does `velm train` make its first step, and does it slow down with the data? Seconds and megabytes.

    python scripts/bench_start.py [--rounds 5] [--sizes 1000 10000 100000] [--steps 200] [--small]
                                  [--out bench_start.json]

Start: from the command to the line of the first step in the run's metrics.jsonl, a tiny model on the embedded data set,
whose store is complete; and in turn `python -c "import torch"`, the part of it that no program can save.

Growth: stores of so many images (of 32 pixels, a few hundred of them drawn) with captions of as many of COCO's,
built by velm; then training steps of a tiny model from each, in turn, each in a new process, all with the frequent
words of the largest. Printed are medians: milliseconds from batch to batch, seconds from opening the store to the
first batch, and the largest anonymous memory of the process, to which pages of files that are only mapped do not count.
"""
# Worker processes import this file: what takes long to import (torch, above all) is imported where it is used.

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_images
from resident import memory

if TYPE_CHECKING:
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer

SHAPES = ["dataset=shapes", "dataset.num_train=200", "dataset.num_val=20", "dataset.num_test=20"]
TINY = [
    "vision=vit", "vision.width=32", "vision.layers=1", "vision.heads=2", "text.width=32", "text.layers=1",
    "text.heads=2", "fusion.layers=1", "fusion.heads=2",
]  # fmt: skip
WARM_UP = 5  # steps
MIN_COUNT = 500  # of a word in the largest store: few words, so that logits do not hide the memory of the data
SIDE, BATCH, MAX_TOKENS = 32, 32, 40
PATIENCE = 300  # seconds

# ---------------------------------------------------------------------------------------- start


def first_step(folder: Path, name: str) -> None:
    """Start `velm train`, wait for its first step, and end it."""
    command = [sys.executable, "-m", "velm_cli", "train", *SHAPES, *TINY, "run.log_every=1", f"name={name}"]
    log, began = folder / "runs/train" / name / "metrics.jsonl", time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        while not (log.exists() and '"train"' in log.read_text()):
            assert process.poll() is None, f"velm train ended with {process.returncode}"
            assert time.monotonic() - began < PATIENCE, "no step in five minutes"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()


def compare_start(folder: Path, rounds: int) -> dict[str, Any]:
    """The seconds of both."""
    import benching

    subprocess.run(
        [sys.executable, "-m", "velm_cli", "preprocess", *SHAPES], cwd=folder, check=True, capture_output=True
    )
    contestants = {
        "velm train": lambda number: first_step(folder, f"round{number}"),
        "import torch": lambda _: subprocess.run([sys.executable, "-c", "import torch"], check=True),
    }
    seconds = benching.take_turns(contestants, rounds)
    for name, times in seconds.items():
        print(f"{name:<12} {statistics.median(times):6.2f} s")
    return {"seconds": seconds}


# ---------------------------------------------------------------------------------------- growth


def build_stores(folder: Path, sizes: list[int]) -> list[Path]:
    """A store of each size, with its tokens; the larger begin with the smaller's images and captions."""
    pictures = bench_images.make_pictures(folder / "pictures", min(256, max(sizes)), (SIDE, SIDE), 90)
    captions = bench_images.coco_captions(max(sizes))
    stores = []
    for size in sizes:
        began = time.perf_counter()
        stores.append(bench_images.make_store(folder / f"{size}", islice(cycle(pictures), size), captions[:size], SIDE))
        print(f"store of {size:,} images built in {time.perf_counter() - began:.0f} s", flush=True)
    tokenizer = words_of(stores[sizes.index(max(sizes))])
    for store in stores:
        store.encode(tokenizer, MAX_TOKENS)
    return [store.path for store in stores]


def words_of(store: Store) -> Tokenizer:
    """The frequent words of a store."""
    from velm_cli.schema import TokenizerConfig

    return store.tokens(TokenizerConfig(min_count=MIN_COUNT)).tokenizer


def train_on(path: Path, words: Path, steps: int) -> dict[str, Any]:
    """Train from the store `path` with the tokens of the store `words`; what that took."""
    import benching
    from bench_cache import make_run

    from velm_cli import schema
    from velm_cli.data.batch import Columns
    from velm_cli.data.loader import TrainLoader
    from velm_cli.data.opening import open_store

    tokenizer = words_of(open_store(words))
    config = schema.TrainRoot(
        dataset=schema.ManifestConfig(),
        vision=schema.ViTConfig(image_size=SIDE, width=32, layers=1, heads=2),
        text=schema.LSTMConfig(width=32),
        fusion=schema.AttentionConfig(heads=2),
        task=schema.CaptionTaskConfig(),
    )
    run = make_run(config, tokenizer.vocab_size)

    began = time.perf_counter()
    store = open_store(path)
    loader = TrainLoader(
        store, Columns(store.encode(tokenizer, MAX_TOKENS), schema.DataConfig().captions_per_image),
        schema.DataConfig(), batch_size=BATCH, pixels=run.learner.pixels, seed=0,
    )  # fmt: skip
    times, anonymous = [began], 0
    for batch in islice(loader.batches(), WARM_UP + steps):
        if len(times) == 1:
            first = time.perf_counter() - began
        benching.step(run, batch)
        times.append(time.perf_counter())
        anonymous = max(anonymous, memory("RssAnon"))
    between = [after - before for before, after in pairwise(times[1 + WARM_UP :])]
    return {
        "first_batch_s": first, "step_s": statistics.median(between), "anonymous": anonymous, "peak": memory("VmHWM"),
    }  # fmt: skip


def compare_growth(
    folder: Path, sizes: list[int], rounds: int, steps: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Speed and memory with the largest store against those with the smallest as rows, and all runs' figures."""
    import benching

    paths = build_stores(folder, sizes)
    words = max(zip(sizes, paths, strict=True))[1]
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, path in zip(sizes, paths, strict=True):
            command = [sys.executable, __file__, "--train-on", str(path), str(words), "--steps", str(steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[size].append(json.loads(done.stdout))
    print("images    ms/step  first batch s  anonymous MB  peak MB")
    for size, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{size:<8,} {1000 * middle['step_s']:8.1f}  {middle['first_batch_s']:13.2f}  "
            f"{middle['anonymous'] / 1e6:12.0f}  {middle['peak'] / 1e6:7.0f}"
        )
    most, least = max(sizes), min(sizes)
    rows = []
    for key, what in (("step_s", "training step"), ("anonymous", "memory of training")):
        values = {str(size): [run[key] for run in found[size]] for size in (most, least)}
        if all(values[str(most)]):
            times = benching.ratio(values, str(most), str(least))
            rows.append(benching.row(f"{what}: {most:,} images against {least:,}", times, 1))
    return rows, {"runs": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000], help="images of the stores")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="few and small, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--train-on", type=Path, nargs=2, metavar=("STORE", "WORDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_on:
        path, words = options.train_on
        print(json.dumps(train_on(path, words, options.steps)))
        return 0
    import benching

    sizes, steps = ([64, 256], 8) if options.small else (options.sizes, options.steps)
    result: dict[str, Any] = {"setting": {"rounds": options.rounds, "sizes": sizes, "steps": steps}}
    with tempfile.TemporaryDirectory() as temporary:
        result["start"] = compare_start(Path(temporary), options.rounds)
        growth, result["growth"] = compare_growth(Path(temporary), sizes, options.rounds, steps)
    benching.save(options.out, growth, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
