"""Examples in memory: images and questions that batches are made of, as they are of a store's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from velm_cli.data.batch import Columns, Texts
from velm_cli.data.masked_words import MaskedTexts, words_to_mask
from velm_cli.data.prompts import Prompted
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.schema import TrainRoot


class Given:
    """Example i is about image `image_of[i]`, with the question `sources[i]`; without either, example i is image i."""

    has_images = True

    def __init__(
        self,
        images: Sequence[bytes],
        *,
        names: Sequence[int | str] | None = None,
        sources: Sequence[str] | None = None,
        image_of: Sequence[int] | None = None,
    ) -> None:
        """`images`: as a store holds them (`pictures.stored`). `names`: ids of the examples, which seed what is drawn
        for them; else their numbers."""
        self.images, self.sources = images, sources
        self._image_of = None if image_of is None else np.asarray(image_of, np.int64)
        count = len(images) if self._image_of is None else len(self._image_of)
        self.ids: Sequence[int | str] = range(count) if names is None else names
        assert len(self.ids) == count and (sources is None or len(sources) == count)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def one_image_each(self) -> bool:
        return self._image_of is None

    def example_id(self, i: int) -> int | str:
        return self.ids[i]

    def image_name(self, x: int) -> int | str:
        return x

    def image_bytes(self, x: int) -> bytes:
        return self.images[x]

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own_B = examples if self._image_of is None else self._image_of[examples]
        images_X, first_X, place_B = np.unique(own_B, return_index=True, return_inverse=True)
        order_X = np.argsort(first_X)
        rank_X = np.empty_like(order_X)
        rank_X[order_X] = np.arange(len(order_X))
        return images_X[order_X], rank_X[place_B][:, None]

    def source(self, i: int) -> str | None:
        return None if self.sources is None else self.sources[i]

    def targets(self, i: int) -> list[str]:
        return []

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        return np.zeros((len(examples), 2), np.int64)

    def columns(self, tokenizer: Tokenizer, config: TrainRoot) -> Columns:
        """What goes into a batch next to images, as training had it."""
        return Columns() if self.sources is None else Columns(source=sources_of(self.sources, tokenizer, config))


class Tokenised:
    """Texts as `data.batch.Texts` wants them."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, limit: int) -> None:
        self.tokenizer = tokenizer
        rows = [row[:limit] for row in tokenizer.encode_batch(texts)]
        self.ids = np.fromiter((token for row in rows for token in row), np.int64)
        self.offsets = np.fromiter(accumulate(map(len, rows), initial=0), np.int64, len(rows) + 1)


def sources_of(texts: Sequence[str], tokenizer: Tokenizer, config: TrainRoot) -> Texts:
    """Sources as training of `config` had them: cut, with words hidden, within a prompt."""
    limit, words = config.tokenizer.max_source_tokens, words_to_mask(config.data.mask_source)
    task: Any = config.task
    if task.source_is_prompt:
        return Prompted(task.prompt, texts, tokenizer, limit, words)
    return MaskedTexts(texts, tokenizer, limit, words) if words else Tokenised(texts, tokenizer, limit)
