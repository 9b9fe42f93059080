"""A Batch, and what it is assembled from: numbers of examples and texts in, tensors out.

Suffixes: B examples, X their distinct images, I images of an example, K targets of an example, N = B * K texts, T
tokens of a target, L tokens of a source, M predicted tokens, C labels, S image positions, D width; in image_XCHW, CHW
is channels, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.concepts import ConceptLabels, HasConcepts
from velm_cli.data.features import Features
from velm_cli.data.packing import Packing
from velm_cli.data.talks import Conversations, Talks
from velm_cli.data.tokenizer import Tokenizer

# What a device gets, in this order: a small tensor is not in pinned memory, and would be waited for behind a large one.
PARTS = (
    "tokens_BKT",
    "lengths_BK",
    "packing",
    "predicted_M",
    "source_BL",
    "source_lengths_B",
    "labels",
    "image_of_BI",
    "image_XCHW",
    "feature_XSD",
)
CONCEPTS = "concepts"  # the labels that L_image predicts


class Examples(Protocol):
    """What a batch asks of a Store, or of samples that stream by, about examples by their numbers."""

    @property
    def one_image_each(self) -> bool: ...

    def example_id(self, i: int) -> int | str: ...

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def source(self, i: int) -> str | None: ...


class Texts(Protocol):
    """Texts as `Tokens` holds them: number c is `ids[offsets[c]:offsets[c + 1]]`."""

    tokenizer: Tokenizer
    ids: np.ndarray
    offsets: np.ndarray


class Labels(Protocol):
    """Labels of one kind, by the number of the example."""

    @property
    def width(self) -> int: ...  # C

    def row(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Its labels (unsigned, each once) and their weights (float32); all others are 0."""
        ...


@dataclass(frozen=True)
class Columns:
    """What of the store a batch has next to images: the task decides.

    `targets`: texts to learn or to judge, up to `per_example` of each example; without, batches have K = T = 0.
    `source`: text that goes in with the image, whose number is that of the example. `talks`: conversations instead of
    both; with `prompts` each up to its last reply, which is to be written.
    """

    targets: Texts | None = None
    per_example: int = 1
    source: Texts | None = None
    labels: Mapping[str, Labels] = field(default_factory=dict)
    talks: Conversations | None = None
    prompts: bool = False


def concept_labels(store: HasConcepts, width: int) -> dict[str, Labels]:
    """The labels of L_image, by their name; nothing where it predicts none."""
    return {CONCEPTS: ConceptLabels(store, width)} if width else {}


class Lengths(NamedTuple):
    """What a device would have to be waited for: how long the texts of a batch are. Never on a device."""

    targets_BK: np.ndarray  # int64: BOS, words and EOS; 0 is an empty slot
    source_B: np.ndarray | None = None  # int64: BOS, words and EOS
    image_B: np.ndarray | None = None  # int64: the row of X where every example has one image, which several may share


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
    packing: Packing  # of the inputs (B * K, T-1): where text is
    predicted_M: (
        Tensor  # int64, in the flat (B * K * (T-1)) inputs: where a token is predicted; all of the text, mostly
    )
    num_targets: int  # slots that are not empty
    image_XCHW: Tensor | None = None  # float32, normalised; None without images or with features
    feature_XSD: Tensor | None = None  # instead of images: cached output of frozen layers (`VelmModel.kept`)
    images: list[int] = field(default_factory=list)  # X: their numbers in the store
    image_of_BI: Tensor | None = None  # int64, rows of X, -1 where an example has fewer; None: example b has image b
    source_BL: Tensor | None = None  # int64: BOS, words, EOS, then pad_id; None where examples have no source
    source_lengths_B: Tensor | None = None  # int64: BOS, words and EOS; 0 is an example without source
    labels: Mapping[str, Tensor] = field(default_factory=dict)  # float32 [B, C]: `concepts`, `answers` ...
    num_sources: int = 0  # examples that have a source
    num_source_tokens: int = 0  # words and EOS of all sources
    labelled: Mapping[str, int] = field(default_factory=dict)  # examples that have a label at all, by kind of label
    part: str = ""  # of a mixture, whose examples these are
    lengths: Lengths | None = None  # None: of a dry run that has no values
    talks: Talks | None = None  # instead of targets and sources: conversations, which stay where they are

    @classmethod
    def of(cls, tokens_BKT: Tensor, lengths_BK: Tensor, *, ids: Sequence[int | str] | None = None, **parts) -> Batch:
        """A batch of these targets, with the `parts` given; examples and images are numbered from 0."""
        B, _, T = tokens_BKT.shape
        numbers = list(range(B))
        source_lengths_B = parts.get("source_lengths_B")
        if source_lengths_B is not None:  # counted here, since a device would have to be waited for
            parts["num_sources"] = int((source_lengths_B > 0).sum())
            parts["num_source_tokens"] = int((source_lengths_B - 1).clamp(min=0).sum())
        parts["labelled"] = {name: int((of_BC > 0).any(1).sum()) for name, of_BC in parts.get("labels", {}).items()}
        image_of_BI = parts.get("image_of_BI")
        lengths = Lengths(
            lengths_BK.numpy(),
            None if source_lengths_B is None else source_lengths_B.numpy(),
            None if image_of_BI is None or image_of_BI.shape[1] != 1 else image_of_BI[:, 0].numpy(),
        )
        packing = Packing.of((lengths_BK - 1).clamp(min=0).numpy(), max(T, 1) - 1)
        return cls(
            ids=list(numbers if ids is None else ids),
            examples=parts.pop("examples", numbers),
            tokens_BKT=tokens_BKT,
            lengths_BK=lengths_BK,
            packing=packing,
            predicted_M=parts.pop("predicted_M", packing.positions_M),
            num_targets=int((lengths_BK > 0).sum()),
            lengths=lengths,
            images=parts.pop("images", numbers),
            **parts,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens to predict: words and EOS of all targets."""
        return len(self.predicted_M)

    @property
    def num_learned(self) -> int:
        """What is learned from it: its targets, or the labels of its examples."""
        return self.num_targets if self.lengths_BK.shape[1] else len(self.ids)

    @property
    def visual(self) -> Tensor | None:
        """What the vision side of the model starts from, X first: features or images; None without either."""
        return self.image_XCHW if self.feature_XSD is None else self.feature_XSD

    def to(self, device: torch.device | str) -> Batch:
        """This batch with its tensors on `device`; the copy may still be under way (pinned memory)."""
        moved = {name: _moved(getattr(self, name), device) for name in PARTS if name != "predicted_M"}
        same = self.predicted_M is self.packing.positions_M  # one tensor, which moves once
        moved["predicted_M"] = moved["packing"].positions_M if same else _moved(self.predicted_M, device)
        return replace(self, **moved)

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
    columns: Columns,
    examples: np.ndarray,
    targets_BK: np.ndarray,
    image_size: int | None,
    features: Features | None,
) -> Batch:
    """The batch of `examples` with the targets number `targets_BK` (-1: none), images or features to be read."""
    numbers = examples.tolist()
    tokens_BKT, lengths_BK = _fill_tokens(columns.targets, targets_BK)
    parts: dict[str, Tensor] = {}
    talks = None
    images = numbers
    looks = features is not None or image_size is not None
    if looks and not store.one_image_each:
        images_X, image_of_BI = store.images_of(examples)
        images = images_X.tolist()
        parts["image_of_BI"] = torch.from_numpy(np.ascontiguousarray(image_of_BI, np.int64))
    if features is not None:
        parts["feature_XSD"] = features.empty(len(images))
    elif image_size is not None:
        shape = (len(images), 3, image_size, image_size)
        parts["image_XCHW"] = torch.empty(shape, pin_memory=torch.cuda.is_available())
    if columns.source is not None:
        # A question of no known character is still a question, so a source without words has BOS and EOS.
        there_B = np.array([store.source(number) is not None for number in numbers], bool)
        source_B1L, lengths_B1 = _fill_tokens(columns.source, np.where(there_B, examples, -1)[:, None])
        parts["source_BL"] = torch.from_numpy(source_B1L[:, 0])
        parts["source_lengths_B"] = torch.from_numpy(lengths_B1[:, 0])
    if columns.talks is not None:
        own_B1 = np.arange(len(numbers))[:, None] if looks else None  # every example has an image of its own
        shown_BI = parts["image_of_BI"].numpy() if "image_of_BI" in parts else own_B1
        talks = Talks.of(columns.talks, numbers, shown_BI, prompts=columns.prompts)
    return Batch.of(
        torch.from_numpy(tokens_BKT),
        torch.from_numpy(lengths_BK),
        ids=[store.example_id(number) for number in numbers],
        examples=numbers,
        images=images if looks or store.one_image_each else [],
        labels={name: _fill_labels(labels, numbers) for name, labels in columns.labels.items()},
        talks=talks,
        **parts,
    )


def _fill_labels(labels: Labels, examples: Sequence[int]) -> Tensor:
    """float32 [B, C]"""
    weights_BC = np.zeros((len(examples), labels.width), np.float32)
    for row, example in enumerate(examples):
        named, weights = labels.row(example)
        weights_BC[row, named] = weights
    return torch.from_numpy(weights_BC)


def _fill_tokens(tokens: Texts | None, texts_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [B, K, T] and [B, K]; T is that of the longest text, at least 2."""
    if tokens is None:
        return np.zeros((*texts_BK.shape, 0), np.int64), np.zeros(texts_BK.shape, np.int64)
    tokenizer = tokens.tokenizer
    texts_N = texts_BK.reshape(-1)
    present_N = texts_N >= 0
    begins_N = np.where(present_N, tokens.offsets[texts_N], 0)
    words_N = np.where(present_N, tokens.offsets[texts_N + 1] - begins_N, 0)
    lengths_N = np.where(present_N, words_N + 2, 0)

    T = max(int(lengths_N.max(initial=0)), 2)
    tokens_NT = np.full((len(texts_N), T), tokenizer.pad_id, np.int64)
    rows = np.flatnonzero(present_N)
    tokens_NT[rows, 0] = tokenizer.bos_id
    tokens_NT[rows, lengths_N[rows] - 1] = tokenizer.eos_id
    column_T = np.arange(T)
    # Row by row, the words' places in `tokens.ids`: each text's begin, moved back by the words before it.
    places = np.repeat(begins_N - (np.cumsum(words_N) - words_N), words_N) + np.arange(words_N.sum())
    tokens_NT[(column_T >= 1) & (column_T <= words_N[:, None])] = tokens.ids[places]
    return tokens_NT.reshape(*texts_BK.shape, T), lengths_N.reshape(texts_BK.shape)
