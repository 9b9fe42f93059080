"""How fast are velm's BLEU, ROUGE-L and CIDEr-D beside pycocoevalcap's, and are they equal?

    python scripts/bench_metrics.py [--images 5000] [--pairs 5] [--out bench_metrics.json]

Both score the same captions in turn, in one process on one core: velm, pycocoevalcap, velm, ... so a busy machine
slows both; the medians are printed. Then the reward of 64 images x 5 samples. References are COCO captions (inside
pycocoevalcap's SPICE jar); a hypothesis is one of its image's, with one word in ten lost and one in seven replaced.
The exit code is 1 if any image's score differs by more than 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pycocoevalcap
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from velm_cli.files import write_json
from velm_cli.metrics.overlap import Corpus, bleu, cider, rouge_l
from velm_cli.metrics.reward import CiderReward

JAR = Path(pycocoevalcap.__path__[0]) / "spice" / "spice-1.0.jar"
ANNOTATIONS = "coco/annotations/captions_val2014.json"
REFERENCES, REWARD_IMAGES, SAMPLES, MAX_TOKENS = 5, 64, 5, 20
TOLERANCE = 1e-6

Captions = tuple[dict[int, list[str]], dict[int, str]]
Steps = dict[str, tuple[float, Any]]  # what was done -> seconds, and what came out


def coco_captions(images: int, rng: random.Random) -> Captions:
    """References and hypotheses of the first `images` images, as lower-case words."""
    with zipfile.ZipFile(JAR) as jar:
        annotations = json.loads(jar.read(ANNOTATIONS))["annotations"]
    groups: dict[int, list[str]] = {}
    for annotation in annotations:
        group = groups.setdefault(annotation["image_id"], [])
        group.append(" ".join(re.findall(r"[\w']+", annotation["caption"].lower())))
    references = {image: group[:REFERENCES] for image, group in list(groups.items())[:images]}
    words = " ".join(group[0] for group in references.values()).split()
    return references, {image: edited(rng.choice(group), words, rng) for image, group in references.items()}


def edited(caption: str, words: list[str], rng: random.Random) -> str:
    kept = [word for word in caption.split() if rng.random() > 0.1]
    return " ".join(rng.choice(words) if rng.random() < 1 / 7 else word for word in kept)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def with_velm(references: dict[int, list[str]], hypotheses: dict[int, str]) -> Steps:
    steps = {"numbering": timed(lambda: Corpus(references, hypotheses))}
    corpus = steps["numbering"][1]
    steps["n-gram counts"] = timed(lambda: corpus.overlaps)
    steps["BLEU-1..4"] = timed(lambda: bleu(corpus)[1])
    steps["ROUGE-L"] = timed(lambda: rouge_l(corpus)[1])
    steps["CIDEr-D"] = timed(lambda: cider(corpus)[1])
    return steps


def with_pycocoevalcap(references: dict[int, list[str]], hypotheses: dict[int, str]) -> Steps:
    wrapped = {image: [caption] for image, caption in hypotheses.items()}
    return {
        "BLEU-1..4": timed(lambda: np.transpose(Bleu(4).compute_score(references, wrapped, verbose=0)[1])),
        "ROUGE-L": timed(lambda: Rouge().compute_score(references, wrapped)[1]),
        "CIDEr-D": timed(lambda: Cider().compute_score(references, wrapped)[1]),
    }


def compare_corpus(captions: Captions, pairs: int) -> list[dict[str, Any]]:
    """One row a step: median seconds of both and the largest difference of an image's score."""
    ours, theirs = [], []
    for pair in range(pairs):
        ours.append(with_velm(*captions))
        theirs.append(with_pycocoevalcap(*captions))
        print(f"pair {pair + 1} of {pairs}", file=sys.stderr)

    def median(runs: list[Steps], step: str | None) -> float | None:
        if step is None:
            return statistics.median(sum(seconds for seconds, _ in run.values()) for run in runs)
        return statistics.median(run[step][0] for run in runs) if step in runs[0] else None

    rows: list[dict[str, Any]] = []
    for step in (*ours[0], None):
        row = {"what": step or "all", "velm_s": median(ours, step), "pycocoevalcap_s": median(theirs, step)}
        if step in theirs[0]:
            row["largest_difference"] = float(np.abs(ours[0][step][1] - theirs[0][step][1]).max())
        rows.append(row)
    rows[-1]["times_faster"] = rows[-1]["pycocoevalcap_s"] / rows[-1]["velm_s"]
    return rows


def compare_reward(captions: Captions, rng: random.Random, repeats: int) -> dict[str, Any]:
    """Milliseconds of a batch of samples, and the largest difference from pycocoevalcap's CIDEr-D."""
    references, hypotheses = captions
    vocabulary = sorted({word for caption in hypotheses.values() for word in caption.split()})
    number = {word: token for token, word in enumerate(vocabulary)}
    packing, reward = timed(lambda: CiderReward(references, vocabulary))
    images = rng.sample(list(references), min(REWARD_IMAGES, len(references)))
    samples = {image: [edited(hypotheses[image], vocabulary, rng) for _ in range(SAMPLES)] for image in images}
    tokens_BKT = torch.zeros(len(images), SAMPLES, MAX_TOKENS, dtype=torch.long)
    length_BK = torch.zeros(len(images), SAMPLES, dtype=torch.long)
    for b, image in enumerate(images):
        for k in range(SAMPLES):
            ids = [number[word] for word in samples[image][k].split()][:MAX_TOKENS]
            tokens_BKT[b, k, : len(ids)], length_BK[b, k] = torch.tensor(ids, dtype=torch.long), len(ids)
            samples[image][k] = " ".join(vocabulary[token] for token in ids)
    row_B = torch.tensor([reward.row[image] for image in images])
    runs = [timed(lambda: reward(row_B, tokens_BKT, length_BK)) for _ in range(repeats)]
    difference = 0.0
    for k in range(SAMPLES):
        sampled = hypotheses | {image: samples[image][k] for image in images}
        wanted_I = with_pycocoevalcap_cider(references, sampled)
        difference = max(difference, float(np.abs(runs[0][1][:, k].numpy() - wanted_I[row_B.numpy()]).max()))
    return {
        "shape": list(tokens_BKT.shape),
        "packing_s": packing,
        "median_ms": 1000 * statistics.median(seconds for seconds, _ in runs),
        "least_ms": 1000 * min(seconds for seconds, _ in runs),
        "largest_difference": difference,
    }


def with_pycocoevalcap_cider(references: dict[int, list[str]], hypotheses: dict[int, str]) -> np.ndarray:
    return Cider().compute_score(references, {image: [caption] for image, caption in hypotheses.items()})[1]


def show(rows: list[dict[str, Any]], reward: dict[str, Any]) -> None:
    def cell(value: Any, form: str) -> str:
        return "" if value is None else format(value, form)

    print(f"{'':16}{'velm s':>10}{'pycocoevalcap s':>18}{'largest difference':>21}")
    for row in rows:
        print(
            f"{row['what']:16}{row['velm_s']:>10.3f}{cell(row['pycocoevalcap_s'], '.3f'):>18}"
            f"{cell(row.get('largest_difference'), '.1e'):>21}"
        )
    print(f"{rows[-1]['times_faster']:.1f} times faster")
    print(
        f"reward of {' x '.join(map(str, reward['shape']))} tokens: median {reward['median_ms']:.1f} ms, least "
        f"{reward['least_ms']:.1f} ms, largest difference {reward['largest_difference']:.1e}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=5, help="how often each of the two scores all captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    captions = coco_captions(options.images, rng)
    rows = compare_corpus(captions, options.pairs)
    reward = compare_reward(captions, rng, repeats=20)
    show(rows, reward)
    if options.out:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
        setting = {"images": len(captions[0]), "references": REFERENCES, "pairs": options.pairs, "cores": 1}
        write_json(options.out, {"setting": setting | machine, "corpus": rows, "reward": reward})
    differences = [row["largest_difference"] for row in (*rows, reward) if "largest_difference" in row]
    return int(max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
