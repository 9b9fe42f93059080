"""How fast are velm's scores beside pycocoevalcap's, and are they equal?

    python scripts/bench_metrics.py [--images 5000] [--pairs 5] [--java-pairs 1] [--spice] [--out bench_metrics.json]

Both score the same captions in turn: velm, pycocoevalcap, velm, ... so a busy machine slows both; the medians are
printed. First BLEU, ROUGE-L and CIDEr-D of tokens, in one process on one core; then from raw captions, tokenising
included, without METEOR and with it, on all cores. `--spice`: SPICE twice with an empty cache of parses, the second
time of other captions against the same references. Last the reward of 64 images x 5 samples. References are COCO
captions (inside pycocoevalcap's SPICE jar); a hypothesis is one of its image's, with one word in ten lost and one in
seven replaced. The exit code is 1 if any image's score differs by more than 1e-6.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from velm_cli.files import write_json
from velm_cli.metrics.authority import SPICE_JAR, pycocoevalcap
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.java import cache_home
from velm_cli.metrics.overlap import Corpus, bleu, cider, rouge_l
from velm_cli.metrics.reward import CiderReward
from velm_cli.metrics.spice import find_corenlp
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import COLUMNS

ANNOTATIONS = "coco/annotations/captions_val2014.json"
REFERENCES, REWARD_IMAGES, SAMPLES, MAX_TOKENS = 5, 64, 5, 20
TOLERANCE = 1e-6

Captions = tuple[dict[int, list[str]], dict[int, str]]
Steps = dict[str, tuple[float, Any]]  # what was done -> seconds, and what came out


def coco_captions(images: int, rng: random.Random) -> Captions:
    """References and hypotheses of the first `images` images, as they were written."""
    with zipfile.ZipFile(pycocoevalcap() / SPICE_JAR) as jar:
        annotations = json.loads(jar.read(ANNOTATIONS))["annotations"]
    groups: dict[int, list[str]] = {}
    for annotation in annotations:
        group = groups.setdefault(annotation["image_id"], [])
        group.append(annotation["caption"])
    references = {image: group[:REFERENCES] for image, group in list(groups.items())[:images]}
    words = " ".join(group[0] for group in references.values()).split()
    return references, {image: edited(rng.choice(group), words, rng) for image, group in references.items()}


def words_only(captions: Captions) -> Captions:
    """The captions as lower-case words."""

    def words(caption: str) -> str:
        return " ".join(re.findall(r"[\w']+", caption.lower()))

    references, hypotheses = captions
    return (
        {image: [words(caption) for caption in group] for image, group in references.items()},
        {image: words(caption) for image, caption in hypotheses.items()},
    )


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


def whole_pycocoevalcap(captions: Captions, *, meteor: bool) -> dict[str, Any]:
    """Every image's scores from raw captions, as pycocoevalcap's own example does it."""
    references, hypotheses = captions
    aligner = Meteor() if meteor else None  # its process loads while the others score
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({image: [{"caption": c} for c in group] for image, group in references.items()})
    answers = tokenizer.tokenize({image: [{"caption": caption}] for image, caption in hypotheses.items()})
    with contextlib.redirect_stdout(None):
        found = dict(zip(COLUMNS["bleu"], Bleu(4).compute_score(truth, answers, verbose=0)[1], strict=True))
        found["ROUGE_L"] = Rouge().compute_score(truth, answers)[1]
        found["CIDEr"] = Cider().compute_score(truth, answers)[1]
        if aligner:
            found["METEOR"] = aligner.compute_score(truth, answers)[1]
    return found


def compare_whole(captions: Captions, pairs: int, *, meteor: bool) -> dict[str, Any]:
    """Seconds from raw captions to every image's scores: medians, and the largest difference."""
    names = ["bleu", "rouge_l", "cider", *(["meteor"] if meteor else [])]
    ours, theirs, difference = [], [], 0.0
    for _ in range(pairs):
        seconds, scores = timed(lambda: score_captions(*captions, MetricsConfig(names=names), progress=False))
        ours.append(seconds)
        seconds, wanted = timed(lambda: whole_pycocoevalcap(captions, meteor=meteor))
        theirs.append(seconds)
        for name, values in wanted.items():
            got = np.array([image[name] for image in scores.per_image.values()])
            difference = max(difference, float(np.abs(got - np.array(values)).max()))
    what = "raw captions" + (", METEOR" if meteor else "")
    row = {"what": what, "velm_s": statistics.median(ours), "pycocoevalcap_s": statistics.median(theirs)}
    return row | {"largest_difference": difference, "times_faster": row["pycocoevalcap_s"] / row["velm_s"]}


def spice_twice(captions: Captions, rng: random.Random) -> dict[str, float]:
    """Seconds of SPICE with an empty cache of parses, and then of other captions of the same images."""
    references, _ = captions
    words = " ".join(group[0] for group in references.values()).split()
    # Edited: a reference as it stands would be in the cache of parses already.
    others = {image: edited(rng.choice(group), words, rng) for image, group in references.items()}
    corenlp = find_corenlp(cache_home())
    assert corenlp, "velm doctor fix=spice"
    os.environ["VELM_CORENLP"] = str(corenlp)  # the cache of its own has none
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for hypotheses in (captions[1], others):
            config = MetricsConfig(names=["spice"])
            taken, scores = timed(lambda: score_captions(references, hypotheses, config, cache_dir=Path(cache)))  # noqa: B023
            assert scores.corpus["SPICE"] is not None, scores.reasons["SPICE"]
            seconds.append(taken)
    return {"first_s": seconds[0], "second_s": seconds[1], "times_faster": seconds[0] / seconds[1]}


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


def show(rows: list[dict[str, Any]], reward: dict[str, Any], spice: dict[str, float] | None) -> None:
    def cell(value: Any, form: str) -> str:
        return "" if value is None else format(value, form)

    print(f"{'':16}{'velm s':>10}{'pycocoevalcap s':>18}{'largest difference':>21}")
    for row in rows:
        print(
            f"{row['what']:16}{row['velm_s']:>10.3f}{cell(row['pycocoevalcap_s'], '.3f'):>18}"
            f"{cell(row.get('largest_difference'), '.1e'):>21}"
        )
    for row in rows:
        if "times_faster" in row:
            print(f"{row['what']}: {row['times_faster']:.1f} times faster")
    if spice:
        print(
            f"SPICE: {spice['first_s']:.0f} s, then {spice['second_s']:.0f} s for other captions against the same "
            f"references: {spice['times_faster']:.1f} times faster"
        )
    print(
        f"reward of {' x '.join(map(str, reward['shape']))} tokens: median {reward['median_ms']:.1f} ms, least "
        f"{reward['least_ms']:.1f} ms, largest difference {reward['largest_difference']:.1e}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=5, help="how often each of the two scores all captions")
    parser.add_argument("--java-pairs", type=int, default=1, help="how often each scores raw captions; 0: not at all")
    parser.add_argument("--spice", action="store_true", help="also time SPICE, for many minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    raw = coco_captions(options.images, rng)
    captions = words_only(raw)
    rows = compare_corpus(captions, options.pairs)
    if options.java_pairs:
        rows += [compare_whole(raw, options.java_pairs, meteor=meteor) for meteor in (False, True)]
    reward = compare_reward(captions, rng, repeats=20)
    spice = spice_twice(raw, rng) if options.spice else None
    show(rows, reward, spice)
    if options.out:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
        setting = {
            "images": len(captions[0]),
            "references": REFERENCES,
            "pairs": options.pairs,
            "cores": os.cpu_count(),
        }
        write_json(options.out, {"setting": setting | machine, "corpus": rows, "reward": reward, "spice": spice})
    differences = [row["largest_difference"] for row in (*rows, reward) if "largest_difference" in row]
    return int(max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
