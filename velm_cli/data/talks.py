"""The conversations of a batch: their tokens, which of them are predicted, and which image stands where.

An image is as many positions as the model makes of it, which batches do not know: `Talks.row` puts them in.

Shapes: B conversations, X distinct images of P positions each, M positions of all conversations behind each other, J
those of images, L tokens that are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.tokenizer import Tokenizer


class Conversations(Protocol):
    """Conversations as `TalkTokens` holds them, or some in memory, by the number of their example."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def lengths(self, examples: np.ndarray) -> np.ndarray: ...

    def learnable(self, examples: np.ndarray) -> np.ndarray: ...

    def to_learn(self, example: int) -> tuple[np.ndarray, np.ndarray]: ...

    def to_continue(self, example: int) -> np.ndarray: ...


class TalkRow(NamedTuple):
    """Conversations behind each other, without padding."""

    token_M: Tensor  # int64; 0 where an image stands
    image_J: Tensor  # int64: positions of images in the row
    from_J: Tensor  # int64: what stands there, in the flat (X * P) positions of images
    before_L: Tensor  # int64: the positions that each predicted token follows
    target_L: Tensor  # int64: these tokens
    lengths: tuple[int, ...]  # B: positions of each conversation

    def to(self, device: torch.device | str) -> TalkRow:
        """The same on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in self._fields[:5]}
        return self._replace(**moved)


@dataclass(frozen=True, slots=True)
class Talks:
    """Of each conversation its tokens (an id from `vocabulary` on is an image), which are learned, and its images."""

    tokens: Sequence[np.ndarray]
    learned: Sequence[np.ndarray]  # bool
    images: Sequence[np.ndarray]  # rows of X, by the number of the image in the conversation
    vocabulary: int

    @staticmethod
    def of(source: Conversations, examples: Sequence[int], image_of_BI: np.ndarray | None, *, prompts: bool) -> Talks:
        """Of these examples of a store; `image_of`: their images' rows of X, -1 where they have fewer. `prompts`: what
        stands before the last reply only."""
        tokens, learned = [], []
        for example in examples:
            if prompts:
                ids = source.to_continue(example)
                marks = np.zeros(len(ids), bool)
            else:
                ids, marks = source.to_learn(example)
            tokens.append(np.asarray(ids, np.int64))
            learned.append(marks)
        rows = (
            [np.zeros(0, np.int64)] * len(examples) if image_of_BI is None else [row[row >= 0] for row in image_of_BI]
        )
        return Talks(tokens, learned, rows, source.tokenizer.vocab_size)

    @property
    def num_learned(self) -> int:
        """Tokens that are predicted: the first of a conversation follows nothing."""
        return sum(int(marks[1:].sum()) for marks in self.learned)

    def row(self, positions: int) -> TalkRow:
        """All of them behind each other, with images of so many positions each."""
        token, learned = np.concatenate(self.tokens), np.concatenate(self.learned)
        counts = np.array([len(ids) for ids in self.tokens], np.int64)
        talk = np.repeat(np.arange(len(counts)), counts)
        is_image = token >= self.vocabulary
        takes = np.where(is_image, positions, 1)
        begins = np.cumsum(takes) - takes
        total = int(takes.sum())
        flat = np.zeros(total, np.int64)
        flat[begins[~is_image]] = token[~is_image]
        shown = np.array([self._image(talk[place], token[place]) for place in np.flatnonzero(is_image)], np.int64)
        within = np.arange(positions)
        first = np.ones(len(token), bool)  # of its conversation, which follows nothing
        first[1:] = talk[1:] != talk[:-1]
        predicted = learned & ~first
        lengths = np.bincount(talk, weights=takes, minlength=len(counts)).astype(np.int64)
        return TalkRow(
            torch.from_numpy(flat),
            torch.from_numpy((begins[is_image][:, None] + within).reshape(-1)),
            torch.from_numpy((shown[:, None] * positions + within).reshape(-1)),
            torch.from_numpy(begins[predicted] - 1),
            torch.from_numpy(token[predicted]),
            tuple(lengths.tolist()),
        )

    def _image(self, talk: int, token: int) -> int:
        """The row of X: of a conversation that is shown another one's images (a blind control), these by turns."""
        rows = self.images[talk]
        return int(rows[(token - self.vocabulary) % len(rows)]) if len(rows) else 0
