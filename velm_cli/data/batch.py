"""A Batch, and what it is assembled from: numbers of records and captions in, tensors out.

Suffixes: B images, K captions an image, T tokens, M predicted tokens, C concepts, S image positions, D width; in
image_BCHW, CHW is channels, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.features import FeatureCache
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.models.packing import Packing

# What a device gets, in this order: a small tensor is not in pinned memory, and would be waited for behind a large one.
PARTS = ("tokens_BKT", "lengths_BK", "packing", "concepts_BC", "image_BCHW", "feature_BSD")


class Examples(Protocol):
    """What a batch asks of a Store, or of samples that stream by, about record i."""

    def image_id(self, i: int) -> int | str: ...

    def concepts(self, i: int) -> np.ndarray: ...


class Captions(Protocol):
    """Captions as `Tokens` holds them: number c is `ids[offsets[c]:offsets[c + 1]]`."""

    tokenizer: Tokenizer
    ids: np.ndarray
    offsets: np.ndarray


@dataclass
class Batch:
    """Images with K captions each. `lengths_BK` counts BOS, words and EOS; 0 is an empty slot.

    Slots are empty where an image has fewer than K captions. K is the same for all batches of a loader.
    """

    image_ids: list[int | str]
    indices: list[int]  # records of the store, or training samples of a stream in the order of its shards
    image_BCHW: Tensor | None  # float32, normalised; None without images or with features
    tokens_BKT: Tensor  # int64: BOS, words, EOS, then pad_id
    lengths_BK: Tensor  # int64
    packing: Packing  # of the inputs (B * K, T-1): where a token is to be predicted
    concepts_BC: Tensor | None  # float32, 1 where an image has the concept; None without concepts
    num_captions: int  # non-empty slots
    num_tokens: int  # tokens to predict: words and EOS of all captions
    feature_BSD: Tensor | None = None  # instead of the image: what frozen layers said of it (`VelmModel.kept`)

    @property
    def positions_M(self) -> Tensor:
        """int64: where in the flat (B * K * (T-1)) inputs a token is to be predicted."""
        return self.packing.positions_M

    @property
    def visual(self) -> Tensor | None:
        """What the vision side of the model starts from: features or images; None without either."""
        return self.image_BCHW if self.feature_BSD is None else self.feature_BSD

    def to(self, device: torch.device | str) -> Batch:
        """This batch with its tensors on `device`; the copy may still be under way (pinned memory)."""
        parts = {name: getattr(self, name) for name in PARTS}
        return replace(self, **{n: t.to(device, non_blocking=True) for n, t in parts.items() if t is not None})

    def tensors(self) -> Iterator[Tensor]:
        """All of them that `to` has moved."""
        for name in PARTS:
            part = getattr(self, name)
            yield from (part.moved() if isinstance(part, Packing) else () if part is None else (part,))


def assemble(
    store: Examples,
    tokens: Captions | None,
    records: np.ndarray,
    captions_BK: np.ndarray,
    num_concepts: int,
    image_size: int | None,
    features: FeatureCache | None,
) -> Batch:
    """The batch of `records` with the captions number `captions_BK` (-1: none), images or features to be read."""
    indices = records.tolist()
    tokens_BKT, lengths_BK = _fill_tokens(tokens, captions_BK)
    image_BCHW = feature_BSD = concepts_BC = None
    if features is not None:
        feature_BSD = features.empty(len(indices))
    elif image_size is not None:
        shape = (len(indices), 3, image_size, image_size)
        image_BCHW = torch.empty(shape, pin_memory=torch.cuda.is_available())
    if num_concepts:
        flags_BC = np.zeros((len(indices), num_concepts), np.float32)
        for row, record in enumerate(indices):
            labels = store.concepts(record)
            flags_BC[row, labels[labels < num_concepts]] = 1
        concepts_BC = torch.from_numpy(flags_BC)
    packing = Packing.of(np.maximum(lengths_BK - 1, 0), max(tokens_BKT.shape[2], 1) - 1)
    return Batch(
        image_ids=[store.image_id(record) for record in indices],
        indices=indices,
        image_BCHW=image_BCHW,
        tokens_BKT=torch.from_numpy(tokens_BKT),
        lengths_BK=torch.from_numpy(lengths_BK),
        packing=packing,
        concepts_BC=concepts_BC,
        num_captions=int(np.count_nonzero(lengths_BK)),
        num_tokens=len(packing.positions_M),
        feature_BSD=feature_BSD,
    )


def _fill_tokens(tokens: Captions | None, captions_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [B, K, T] and [B, K]; T is that of the longest caption, at least 2."""
    if tokens is None:
        return np.zeros((*captions_BK.shape, 0), np.int64), np.zeros(captions_BK.shape, np.int64)
    tokenizer = tokens.tokenizer
    captions_N = captions_BK.reshape(-1)
    present_N = captions_N >= 0
    begins_N = np.where(present_N, tokens.offsets[captions_N], 0)
    words_N = np.where(present_N, tokens.offsets[captions_N + 1] - begins_N, 0)
    lengths_N = np.where(present_N, words_N + 2, 0)

    T = max(int(lengths_N.max(initial=0)), 2)
    tokens_NT = np.full((len(captions_N), T), tokenizer.pad_id, np.int64)
    rows = np.flatnonzero(present_N)
    tokens_NT[rows, 0] = tokenizer.bos_id
    tokens_NT[rows, lengths_N[rows] - 1] = tokenizer.eos_id
    column_T = np.arange(T)
    # Row by row, the words' places in `tokens.ids`: each caption's begin, moved back by the words before it.
    places = np.repeat(begins_N - (np.cumsum(words_N) - words_N), words_N) + np.arange(words_N.sum())
    tokens_NT[(column_T >= 1) & (column_T <= words_N[:, None])] = tokens.ids[places]
    return tokens_NT.reshape(*captions_BK.shape, T), lengths_N.reshape(captions_BK.shape)
