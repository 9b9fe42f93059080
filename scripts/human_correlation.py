"""How well do the metrics agree with people? Kendall's tau-c with the expert judgements of Flickr8k.

    python scripts/human_correlation.py FLICKR8K [--spice] [--out human_correlation.json]

FLICKR8K holds `ExpertAnnotations.txt` and `captions_test.json` (COCO's form) or the original `Flickr8k.token.txt`.
Each of its 5,822 pairs of an image and a caption was judged by three experts from 1 to 4; pairs whose caption is one
of the image's own references are left out, and every judgement counts for itself, as in the metrics' papers.
Published: METEOR about 0.42, CIDEr 0.44, SPICE 0.45 (Hessel et al. 2021, CLIPScore, table 1).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from velm_cli.files import write_json
from velm_cli.metrics.captions import score_captions
from velm_cli.schema import METRIC_NAMES, MetricsConfig
from velm_cli.schema.metric_names import LABELS

Judgement = tuple[str, str, list[int]]  # image file, caption, the experts' scores


def captions_of(folder: Path) -> dict[str, list[str]]:
    """The five captions of each image file, in the order of their numbers."""
    tokens = folder / "Flickr8k.token.txt"
    captions: dict[str, list[str]] = {}
    if tokens.exists():
        for line in tokens.read_text("utf-8").splitlines():
            name, caption = line.split("\t", 1)
            captions.setdefault(name.split("#")[0], []).append(caption)
        return captions
    content = json.loads((folder / "captions_test.json").read_text("utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
        captions.setdefault(names[annotation["image_id"]], []).append(annotation["caption"])
    return captions


def judgements(folder: Path, captions: dict[str, list[str]]) -> list[Judgement]:
    """The judged pairs whose caption was not written for the image."""
    found = []
    for line in (folder / "ExpertAnnotations.txt").read_text("utf-8").splitlines():
        image, caption_id, *scores = line.split("\t")
        source, number = caption_id.split("#")
        caption = captions[source][int(number)]
        if caption not in captions[image]:
            found.append((image, caption, list(map(int, scores))))
    return found


def tau_c(scores: Sequence[float], judged: Sequence[int]) -> float:
    """Stuart's tau-c: 2m (C - D) / (n^2 (m - 1)), C and D the concordant and discordant pairs, m the fewer levels."""
    scores_N, judged_N = np.asarray(scores, dtype=float), np.asarray(judged)
    levels = np.unique(judged_N)
    groups = [np.sort(scores_N[judged_N == level]) for level in levels]
    agree = 0
    for low, high in itertools.combinations(groups, 2):
        below = np.searchsorted(low, high, side="left").sum()
        above = (len(low) - np.searchsorted(low, high, side="right")).sum()
        agree += int(below - above)
    m = min(len(levels), len(np.unique(scores_N)))
    return 2 * m * agree / (len(scores_N) ** 2 * (m - 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--spice", action="store_true", help="SPICE too, for many minutes")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    captions = captions_of(options.folder)
    pairs = judgements(options.folder, captions)
    references = {number: captions[image] for number, (image, _, _) in enumerate(pairs)}
    hypotheses = {number: caption for number, (_, caption, _) in enumerate(pairs)}
    names = [name for name in METRIC_NAMES if name != "spice" or options.spice]
    scores = score_captions(references, hypotheses, MetricsConfig(names=names, resamples=0))
    found = {}
    for name in (name for name, value in scores.corpus.items() if value is not None):
        ours, theirs = [], []
        for number, (_, _, judged) in enumerate(pairs):
            value = scores.per_image[number][name]
            ours += [0.0 if value is None else value] * len(judged)
            theirs += judged
        found[name] = tau_c(ours, theirs)
        print(f"{LABELS[name]:<8}{found[name]:>7.3f}")
    print(f"{len(pairs):,} pairs, {sum(len(judged) for *_, judged in pairs):,} judgements")
    for note in scores.warnings:
        print(f"note: {note}")
    if options.out:
        write_json(options.out, {"tau_c": found, "pairs": len(pairs), "signature": scores.signature})
    return 0


if __name__ == "__main__":
    sys.exit(main())
