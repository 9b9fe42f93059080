"""How long does ranking COCO's 5,000 test images with their 25,010 captions take, both ways, and how much memory?

    python scripts/bench_retrieval.py [--images 5000] [--captions 25010] [--widths 128 512] [--rounds 3]
        [--out bench_retrieval.json]

Random unit vectors, in a process of its own for each width: its peak counts Python and NumPy too. `judged` is the
choice of 128 candidates a query and their order by given logits. Seconds are those of the clock, and in brackets those
of all cores together, which a busy machine changes less. The exit code is 1 if ranks differ from those of a sort in
float64 for some queries, or if ranking takes more than 5 seconds or 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.files import write_json
from velm_cli.metrics.retrieval import Ranks, best_both_ways, figures, rank_both_ways, rerank_both_ways

SECONDS, MEMORY = 5.0, 1e9  # what the project asks of itself
CANDIDATES, CHECKED = 128, 200


def drawn(images: int, captions: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Captions near their images, so that ranks are neither all first nor all by chance."""
    draw = np.random.default_rng(0)
    owner = np.arange(captions) * images // captions
    image = draw.standard_normal((images, width), np.float32)
    text = image[owner] + 3 * draw.standard_normal((captions, width), np.float32)
    return unit(image), unit(text), owner


def unit(rows: np.ndarray) -> np.ndarray:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def wrong(image: np.ndarray, text: np.ndarray, owner: np.ndarray, ranks: Ranks) -> int:
    """Queries, of the first ones, whose rank is more than one tie away from that of a sort in float64."""
    found = 0
    for c in range(CHECKED):
        cosines = image.astype(np.float64) @ text[c].astype(np.float64)
        found += abs(1 + (cosines > cosines[owner[c]]).sum() - ranks.text_C[c]) > 1
    for i in range(CHECKED):
        cosines = text.astype(np.float64) @ image[i].astype(np.float64)
        found += abs(1 + (cosines > cosines[owner == i].max()).sum() - ranks.image_I[i]) > 1
    return int(found)


def measured(images: int, captions: int, width: int, rounds: int) -> dict[str, Any]:
    image, text, owner = drawn(images, captions, width)
    seconds, of_cores = [], []
    for _ in range(rounds):
        began, worked = time.perf_counter(), time.process_time()
        ranks = rank_both_ways(image, text, owner)
        seconds.append(time.perf_counter() - began)
        of_cores.append(time.process_time() - worked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began, worked = time.perf_counter(), time.process_time()
    best = best_both_ways(image, text, owner, CANDIDATES)
    logits = tuple(np.zeros(each.numbers_Qk.shape, np.float32) for each in best)
    rerank_both_ways(image, text, owner, best, (logits[0], logits[1]))
    judged, judged_of_cores = time.perf_counter() - began, time.process_time() - worked
    return {
        "what": f"{images:,} images x {captions:,} captions, width {width}",
        "seconds": statistics.median(seconds),
        "seconds_of_cores": statistics.median(of_cores),
        "peak_mb": peak / 1e6,
        "wrong": wrong(image, text, owner, ranks),
        "rsum": figures(ranks)["rsum"],
        "judged_seconds": judged,
        "judged_seconds_of_cores": judged_of_cores,
        "judged_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25010)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the process that is measured
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measured(given.images, given.captions, given.widths[0], given.rounds)))
        return 0
    rows = []
    for width in given.widths:
        sizes = ["--images", given.images, "--captions", given.captions, "--rounds", given.rounds, "--widths", width]
        command = [sys.executable, __file__, "--here", *map(str, sizes)]
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
        row = rows[-1]
        print(f"{row['what']}: {row['seconds']:.2f} s ({row['seconds_of_cores']:.2f}), {row['peak_mb']:,.0f} MB")
        times = f"{row['judged_seconds']:.1f} s ({row['judged_seconds_of_cores']:.1f})"
        print(f"  {CANDIDATES} candidates in {times}, {row['judged_peak_mb']:,.0f} MB")
        print(f"  {row['wrong']} of {2 * CHECKED} ranks wrong")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "numpy": np.__version__}
        write_json(given.out, {"command": " ".join(["python", *sys.argv]), "machine": machine, "rows": rows})
    return int(any(row["wrong"] or row["seconds"] > SECONDS or row["peak_mb"] > MEMORY / 1e6 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
