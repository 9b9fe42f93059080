"""Retrieval in both directions: the rank of what belongs together, among all images or all captions.

Text to image: the rank of a caption's own image. Image to text: the rank of the best of an image's own captions (Hodosh
et al. 2013; Karpathy & Fei-Fei 2015). R@K is the share of queries with a rank of at most K, rsum the sum of the six R@K
in percent. Published code disagrees on ties, and a collapsed model scores 100 or 0 by the rule alone; here equal
candidates stand in random order, and the rank is its expectation, which for a single right candidate is
1 + better + (equal - 1) / 2.

Shapes: I images, C captions, D width of the shared space; B captions of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TIE = 1e-6  # similarities that differ by less are equal: rounding in float32 is ten times smaller
AT_ONCE = 1 << 24  # similarities of a block: 64 MB
KS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of each query's right answer, from 1 on; fractions where candidates tie."""

    text_C: np.ndarray  # of a caption's image among all images
    image_I: np.ndarray  # of an image's best caption among all captions


def rank_both_ways(image_ID: Tensor, text_CD: Tensor, image_of_C: Tensor) -> Ranks:
    """Ranks by the dot products of unit vectors, in blocks of fixed memory; `image_of_C`: each caption's image.

    ValueError where an image has no caption.
    """
    captions_of_I = torch.bincount(image_of_C, minlength=len(image_ID))
    if len(captions_of_I) != len(image_ID) or not bool(captions_of_I.all()):
        raise ValueError("every image needs a caption, and every caption an image")
    step = max(1, AT_ONCE // len(image_ID))

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        """Similarities of all images with a block of captions; the same bits each time."""
        for start in range(0, len(text_CD), step):
            part = slice(start, start + step)
            yield part, image_ID @ text_CD[part].T

    text_C = torch.empty(len(text_CD), dtype=torch.float64)
    own_C = torch.empty(len(text_CD), dtype=image_ID.dtype, device=image_ID.device)
    for part, similarity_IB in blocks():
        own_C[part] = similarity_IB.gather(0, image_of_C[None, part])[0]
        better_B, equal_B = _compared(similarity_IB, own_C[None, part], 0)
        text_C[part] = _expected_rank(better_B, equal_B, torch.ones_like(equal_B)).cpu()
    best_I = torch.full((len(image_ID),), -torch.inf, dtype=own_C.dtype, device=own_C.device)
    best_I.scatter_reduce_(0, image_of_C, own_C, "amax")
    better_I, equal_I, own_I = torch.zeros(3, len(image_ID), dtype=torch.long, device=own_C.device)
    for _, similarity_IB in blocks():
        better, equal = _compared(similarity_IB, best_I[:, None], 1)
        better_I += better
        equal_I += equal
    own_I.scatter_add_(0, image_of_C, (own_C >= best_I[image_of_C] - TIE).long())
    return Ranks(text_C.numpy(), _expected_rank(better_I, equal_I, own_I).cpu().numpy())


def _compared(similarity: Tensor, own: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """How many are better than `own`, and how many are equal, along `dim`."""
    better = (similarity > own + TIE).sum(dim)
    return better, (similarity >= own - TIE).sum(dim) - better


def _expected_rank(better: Tensor, equal: Tensor, own: Tensor) -> Tensor:
    """Of the first of `own` right candidates among `equal` ones in random order, after the `better` ones."""
    return 1 + better.double() + (equal - own) / (own + 1)


def recall(ranks: np.ndarray, k: int) -> float:
    """Share of queries with a rank of at most `k`."""
    return float((ranks <= k).mean())


def figures(ranks: Ranks) -> dict[str, float]:
    """`i2t_R@1` ... `t2i_R@10` as fractions, the median ranks, and `rsum`, the sum of the six in percent."""
    found: dict[str, float] = {}
    for way, of_queries in (("i2t", ranks.image_I), ("t2i", ranks.text_C)):
        found |= {f"{way}_R@{k}": recall(of_queries, k) for k in KS}
        found[f"{way}_median_rank"] = float(np.median(of_queries))
    found["rsum"] = 100 * sum(value for name, value in found.items() if "R@" in name)
    return found
