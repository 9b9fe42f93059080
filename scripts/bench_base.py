"""Is this tree as fast as a revision of it? Training, decoding and reading, both trees side by side in one run.

    python scripts/bench_base.py --base c40948e [--rounds 15] [--small] [--out bench_base.json]

Each tree has a process of its own, with its own package and its own benchmark scripts, and they take turns: base here,
here base, base here ..., so a busy machine slows both. With the sizes of the scripts that are used:

train    a step of `velm train` (`bench_train.py`: ViT-S/16 and 6 blocks, 16 images with five captions)
decode   beam search of 64 captions (`bench_decode.py`)
read     an epoch of 512 images, in threads (`bench_images.py`)

Printed are the medians of both, and the median and range of the ratios of each round: 1.02 is 2 % faster than the base.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
WHATS = ("train", "decode", "read")


class Tree:
    """A process that does the work of a tree, a turn at a time."""

    def __init__(self, folder: Path, small: bool) -> None:
        path = os.pathsep.join(map(str, (folder, folder / "scripts")))
        self._process = subprocess.Popen(
            [sys.executable, str(HERE), "--serve", *(["--small"] if small else [])],
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self, what: str, number: int) -> float:
        """Seconds that it took. Exits where the process has died, which has said why."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, number, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        return float(answer) if answer else sys.exit("a tree's process has died; its last words are above")


def serve(small: bool) -> None:
    """Do the turns that standard input names, and say how long each took. Imports are the tree's own."""
    seconds, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        works = contestants(Path(folder), small)
        for line in sys.stdin:
            what, number = line.split()
            began = time.perf_counter()
            works[what](int(number))
            print(time.perf_counter() - began, file=seconds, flush=True)


def contestants(folder: Path, small: bool) -> dict[str, Callable[[int], object]]:
    """What is done in a turn, by its name."""
    import bench_decode
    import bench_images
    import bench_train
    import torch

    from velm_cli.engine.device import prepare

    # As every run does. Without it chance decides whether glibc fetches the memory of each batch anew.
    prepare(torch.device("cpu"), 0)
    options = {"precision": "fp32", "compile": "off", "images": 2 if small else 16, "rounds": 4}
    sizes = {"side": 224, "width": 384, "heads": 6, "vision": 12, "text": 6}
    if small:
        sizes = {"side": 32, "width": 48, "heads": 2, "vision": 1, "text": 2}
    training = bench_train.Contestant("velm", sizes, options)

    torch.manual_seed(0)
    model = bench_decode.captioner(sizes)
    with torch.no_grad():
        features = model.encode_image(bench_decode.make_images(4 if small else 64, sizes["side"]))
    bench_decode.end_like_captions(model, features)

    images = bench_images.BATCH * (1 if small else 16)
    pictures = bench_images.make_pictures(folder / "pictures", images, (96, 64) if small else bench_images.COCO, 90)
    store = bench_images.make_store(
        folder / "store", pictures, bench_images.coco_captions(images), 48 if small else bench_images.SIDE
    )
    return {
        "train": training.step,
        "decode": lambda _: bench_decode.by_velm(model, features, bench_decode.BEAMS, ()),
        "read": bench_images.velm_epochs(store, 2),
    }


def measure(base: Path, rounds: int, small: bool) -> dict[str, dict[str, list[float]]]:
    """Seconds of the rounds, by what is done and by tree."""
    from tqdm import tqdm

    trees = {"base": Tree(base, small), "here": Tree(HERE.parents[1], small)}
    seconds: dict[str, dict[str, list[float]]] = {what: {name: [] for name in trees} for what in WHATS}
    for what in WHATS:
        for number in tqdm(range(-2, rounds), desc=what, disable=None):
            for name in sorted(trees, reverse=bool(number % 2)):
                took = trees[name].turn(what, max(number, 0))
                if number >= 0:  # the first are slower: code is loaded, and memory fetched
                    seconds[what][name].append(took)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="revision, or the folder of a checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="small models and few images, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.small)
        return 0
    if options.base is None:
        parser.error("say what to compare with: --base REVISION")
    import benching
    import golden

    with tempfile.TemporaryDirectory(prefix="velm-bench-") as folder:
        name, base = golden.base_tree(options.base, Path(folder) / "base", "velm_cli", "conf", "scripts")
        print(f"this tree against {name}")
        seconds = measure(base, options.rounds, options.small)
    rows: list[dict[str, Any]] = []
    for what, times in seconds.items():
        theirs, ours = (statistics.median(times[tree]) for tree in ("base", "here"))
        print(f"{what:<7} {theirs:8.3f} s -> {ours:8.3f} s")
        rows.append(benching.row(f"{what}: {name}", benching.ratio(times, "here", "base")))
    benching.save(options.out, rows, {"base": name, "seconds": seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
