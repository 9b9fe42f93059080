"""A Batch, and what it is assembled from: numbers of examples and texts in, tensors out.

Suffixes: B examples, X their distinct images, I images of an example, K targets of an example, N = B * K texts, T
tokens of a target, L tokens of a source, M predicted tokens, C labels, S image positions, D width; in image_XCHW, CHW
is channels, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.features import FeatureCache
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.models.packing import Packing

# What a device gets, in this order: a small tensor is not in pinned memory, and would be waited for behind a large one.
PARTS = (
    "tokens_BKT",
    "lengths_BK",
    "packing",
    "source_BL",
    "source_lengths_B",
    "labels",
    "image_of_BI",
    "image_XCHW",
    "feature_XSD",
)
CONCEPTS = "concepts"  # the labels that L_image predicts


class Examples(Protocol):
    """What a batch asks of a Store, or of samples that stream by, about record i."""

    def example_id(self, i: int) -> int | str: ...

    def concepts(self, i: int) -> np.ndarray: ...


class Captions(Protocol):
    """Captions as `Tokens` holds them: number c is `ids[offsets[c]:offsets[c + 1]]`."""

    tokenizer: Tokenizer
    ids: np.ndarray
    offsets: np.ndarray


@dataclass
class Batch:
    """B examples: their images, each once; the text that goes in with them; K texts to learn or to judge; labels.

    `lengths_BK` counts BOS, words and EOS of a target; 0 is an empty slot, where an example has fewer than K. K is the
    same for all batches of a loader. In captioning an example is an image.
    """

    ids: list[int | str]  # of the examples, as result files carry them
    examples: list[int]  # their numbers in the store, or in a stream by the order of its shards
    tokens_BKT: Tensor  # int64: BOS, words, EOS, then pad_id
    lengths_BK: Tensor  # int64
    packing: Packing  # of the inputs (B * K, T-1): where text is that something is predicted of
    num_targets: int  # slots that are not empty
    image_XCHW: Tensor | None = None  # float32, normalised; None without images or with features
    feature_XSD: Tensor | None = None  # instead of images: cached output of frozen layers (`VelmModel.kept`)
    images: list[int] = field(default_factory=list)  # X: their numbers in the store
    image_of_BI: Tensor | None = None  # int64, rows of X, -1 where an example has fewer; None: example b has image b
    source_BL: Tensor | None = None  # int64: BOS, words, EOS, then pad_id; None where examples have no source
    source_lengths_B: Tensor | None = None  # int64: BOS, words and EOS; 0 is an example without source
    labels: Mapping[str, Tensor] = field(default_factory=dict)  # float32 [B, C]: `concepts`, `answers` ...

    @classmethod
    def of(cls, tokens_BKT: Tensor, lengths_BK: Tensor, *, ids: Sequence[int | str] | None = None, **parts) -> Batch:
        """A batch of these targets, with the `parts` given; examples and images are numbered from 0."""
        B, _, T = tokens_BKT.shape
        numbers = list(range(B))
        return cls(
            ids=list(numbers if ids is None else ids),
            examples=parts.pop("examples", numbers),
            tokens_BKT=tokens_BKT,
            lengths_BK=lengths_BK,
            packing=Packing.of((lengths_BK - 1).clamp(min=0).numpy(), max(T, 1) - 1),
            num_targets=int((lengths_BK > 0).sum()),
            images=parts.pop("images", numbers),
            **parts,
        )

    @property
    def predicted_M(self) -> Tensor:
        """int64: where in the flat (B * K * (T-1)) inputs a token is to be predicted."""
        return self.packing.positions_M

    @property
    def num_tokens(self) -> int:
        """Tokens to predict: words and EOS of all targets."""
        return len(self.predicted_M)

    @property
    def visual(self) -> Tensor | None:
        """What the vision side of the model starts from, X first: features or images; None without either."""
        return self.image_XCHW if self.feature_XSD is None else self.feature_XSD

    def to(self, device: torch.device | str) -> Batch:
        """This batch with its tensors on `device`; the copy may still be under way (pinned memory)."""
        return replace(self, **{name: _moved(getattr(self, name), device) for name in PARTS})

    def tensors(self) -> Iterator[Tensor]:
        """All of them that `to` has moved."""
        for name in PARTS:
            part = getattr(self, name)
            if isinstance(part, Packing):
                yield from part.moved()
            elif isinstance(part, Mapping):
                yield from part.values()
            elif part is not None:
                yield part


def _moved(part, device: torch.device | str):
    if isinstance(part, Mapping):
        return {name: _moved(tensor, device) for name, tensor in part.items()}
    return None if part is None else part.to(device, non_blocking=True)


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
    numbers = records.tolist()
    tokens_BKT, lengths_BK = _fill_tokens(tokens, captions_BK)
    parts: dict[str, Tensor] = {}
    if features is not None:
        parts["feature_XSD"] = features.empty(len(numbers))
    elif image_size is not None:
        shape = (len(numbers), 3, image_size, image_size)
        parts["image_XCHW"] = torch.empty(shape, pin_memory=torch.cuda.is_available())
    labels = {}
    if num_concepts:
        flags_BC = np.zeros((len(numbers), num_concepts), np.float32)
        for row, record in enumerate(numbers):
            named = store.concepts(record)
            flags_BC[row, named[named < num_concepts]] = 1
        labels[CONCEPTS] = torch.from_numpy(flags_BC)
    return Batch.of(
        torch.from_numpy(tokens_BKT),
        torch.from_numpy(lengths_BK),
        ids=[store.example_id(record) for record in numbers],
        examples=numbers,
        images=numbers,
        labels=labels,
        **parts,
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
