"""CIDEr-D of sampled captions, on the device that sampled them: the reward of self-critical training.

Rennie et al. 2017 raise the CIDEr of samples over that of a baseline. The usual way turns the samples into
strings and counts them in dictionaries while the device waits, for longer than it took to sample. Here the
references become tensors once, and a batch is scored by comparing word numbers: nothing is hashed, the host
reads nothing back, and the scores are those of `overlap.cider`.

Shapes: I images, B images of a batch, K samples an image, T tokens of a sample, R references of the image that
has most, S words of the longest references of one image together, V tokens of the vocabulary, C captions,
P = K * T.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from velm_cli.metrics.document_frequency import DocumentFrequency, inverse_frequency
from velm_cli.metrics.ngrams import MAX_ORDER, Tokens, count_ngrams
from velm_cli.metrics.overlap import SIGMA
from velm_cli.metrics.tokenize import Id

NO_WORD = -1  # between two references, and after the end


class CiderReward:
    """CIDEr-D of token ids against the references of their images.

    `references` has at least one tokenised caption an image, words separated by spaces. `vocabulary` spells the
    word of each token id: samples are scored as these words, so tokens must be whole words (a word tokenizer's).
    Words of the references that it lacks count all the same. Without `df` the document frequencies are those of
    `references`. To reward the end of a caption, lest samples stop at "with a", let references, samples and
    `df` all end with the same word.

    `row` is the place of each image id. Memory and time grow with the image that has the longest references.
    float64 agrees with `overlap.cider` to 1e-12, float32 to 2e-5.
    """

    def __init__(
        self,
        references: Mapping[Id, Sequence[str]],
        vocabulary: Sequence[str],
        df: DocumentFrequency | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        assert references and all(references.values()), "an image without references"
        self.row: dict[Hashable, int] = {image: row for row, image in enumerate(references)}
        self._device, self._dtype = torch.device(device), dtype
        df = df or DocumentFrequency.of(references.values())
        tokens = Tokens.of(caption for group in references.values() for caption in group)
        number: dict[str, int] = {}  # the words of the table come first: a number below theirs is known there
        for word in (*df.words, *tokens.vocabulary, *vocabulary):
            number.setdefault(word, len(number))
        self._word_V = self._tensor([number[word] for word in vocabulary])
        self._pack_table(df)
        self._pack_references(tokens, [len(group) for group in references.values()], number, df)

    def _tensor(self, values: np.ndarray | Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self._device)

    def _pack_table(self, df: DocumentFrequency) -> None:
        """The n-grams of each order and their squared weights; last, what stands for all others."""
        last = np.iinfo(np.int64).max  # behind every key
        weight = inverse_frequency(df.documents)
        self._table_words = len(df.words)
        self._keys = [self._tensor(np.append(keys, last)) for keys in df.keys]
        self._squared_weights = [self._tensor(weight[np.append(counts, 0)] ** 2, self._dtype) for counts in df.counts]

    def _pack_references(
        self, tokens: Tokens, references_I: Sequence[int], number: Mapping[str, int], df: DocumentFrequency
    ) -> None:
        """The references' words in one row, each caption followed by NO_WORD, and the captions' norms."""
        captions, images, most = len(tokens.length_C), len(references_I), max(references_I)
        image_C = np.repeat(np.arange(images), references_I)
        slot_C = np.concatenate([np.arange(count) for count in references_I])  # 0 to R - 1

        spelled_W = np.array([number[word] for word in tokens.vocabulary], dtype=np.int64)
        caption_T = np.repeat(np.arange(captions), tokens.length_C)
        words = np.full(len(caption_T) + captions, NO_WORD)
        words[np.arange(len(caption_T)) + caption_T] = spelled_W[tokens.word_T]
        size_I = np.bincount(image_C, tokens.length_C + 1).astype(np.int64)
        self._longest = int(size_I.max())
        padding = (0, self._longest)  # a window of S words starts at every image, the last one too
        self._words = self._tensor(np.pad(words, padding, constant_values=NO_WORD), torch.int32)
        self._slot = self._tensor(np.pad(np.repeat(slot_C, tokens.length_C + 1), padding), torch.int32)
        self._start_I, self._size_I = self._tensor(np.cumsum(size_I) - size_I), self._tensor(size_I)

        norm_IRO = np.zeros((images, most, MAX_ORDER))
        weight = inverse_frequency(df.documents)
        orders = list(count_ngrams(tokens))
        for order, documents_G in enumerate(df.look_up(tokens.vocabulary, orders)):
            ngrams = orders[order]
            squared_E = np.square(ngrams.count_E * weight[documents_G][ngrams.gram_E])
            norm_C = np.sqrt(np.bincount(ngrams.caption_E, squared_E, minlength=captions))
            norm_IRO[image_C, slot_C, order] = norm_C
        bigrams_IR = np.zeros((images, most), np.int64)
        bigrams_IR[image_C, slot_C] = np.maximum(0, tokens.length_C - 1)
        self._norm_IRO, self._bigrams_IR = self._tensor(norm_IRO, self._dtype), self._tensor(bigrams_IR)
        self._references_I = self._tensor(references_I)

    @torch.no_grad()
    def __call__(self, row_B: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """CIDEr-D, 0 to 10, of each sample: (B, K) for tokens (B, K, T), or (B,) for tokens (B, T).

        `row_B` are places of images, as `row` has them. `lengths` counts the tokens that belong to each sample;
        what stands behind them does not matter. All on the reward's device, which is not made to wait.
        """
        with torch.autocast(self._device.type, enabled=False):  # half precision cannot count
            if tokens.ndim == 2:
                return self._score(row_B, tokens[:, None], lengths[:, None])[:, 0]
            return self._score(row_B, tokens, lengths)

    def _score(self, row_B: Tensor, tokens_BKT: Tensor, length_BK: Tensor) -> Tensor:
        word_BKT, present_BKT = self._read(tokens_BKT, length_BK)
        reference_BS, slot_BSR = self._gather(row_B)
        # Whether the n-grams that start at two places are equal: so far, words.
        same_word_BKTS = (word_BKT[..., None] == reference_BS[:, None, None]) & present_BKT[..., None]
        same_own_word_BKTT = (word_BKT[..., None] == word_BKT[..., None, :]) & present_BKT[..., None]
        same_BKTS, same_own_BKTT = same_word_BKTS, same_own_word_BKTT
        place_BKT = torch.zeros_like(word_BKT)
        cosine_BKR = torch.zeros((), dtype=self._dtype, device=self._device)
        for order in range(MAX_ORDER):
            if order:
                same_BKTS = same_BKTS[..., :-1, :-1] & same_word_BKTS[..., order:, order:]
                same_own_BKTT = same_own_BKTT[..., :-1, :-1] & same_own_word_BKTT[..., order:, order:]
                place_BKT = place_BKT[..., :-1]
            place_BKT = self._look_up(order, place_BKT, word_BKT[..., order:])
            squared_BKT = self._squared_weights[order][place_BKT]
            own_BKT = same_own_BKTT.sum(-1)  # how often the sample has the n-gram; 0 behind its end
            norm_BK = (own_BKT * squared_BKT).sum(-1).sqrt()  # n places with the n-gram: n times n, the square
            count_BPR = same_BKTS.flatten(1, 2).to(self._dtype) @ slot_BSR[:, : same_BKTS.shape[-1]]
            count_BKTR = count_BPR.view(*place_BKT.shape, slot_BSR.shape[-1])
            each_BKT = squared_BKT / own_BKT.clamp(min=1)
            product_BKR = ((torch.minimum(own_BKT[..., None], count_BKTR) * count_BKTR) * each_BKT[..., None]).sum(2)
            norms_BKR = norm_BK[..., None] * self._norm_IRO[row_B, None, :, order]
            cosine_BKR = cosine_BKR + product_BKR / torch.where(norms_BKR > 0, norms_BKR, 1)
        difference_BKR = (length_BK[..., None] - 1).clamp(min=0) - self._bigrams_IR[row_B, None]
        penalised_BKR = cosine_BKR * torch.exp(-difference_BKR.to(self._dtype).square() / (2 * SIGMA**2))
        return penalised_BKR.sum(-1) / (MAX_ORDER * self._references_I[row_B, None]) * 10

    def _read(self, tokens_BKT: Tensor, length_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The samples as word numbers, NO_WORD behind their ends, and where their words are."""
        present_BKT = torch.arange(tokens_BKT.shape[-1], device=self._device) < length_BK[..., None]
        word_BKT = self._word_V[tokens_BKT.where(present_BKT, 0)]
        return word_BKT.where(present_BKT, NO_WORD), present_BKT

    def _gather(self, row_B: Tensor) -> tuple[Tensor, Tensor]:
        """The words of the images' references (B, S), NO_WORD behind the last, and whose each is, one-hot (B, S, R)."""
        place_S = torch.arange(self._longest, device=self._device)
        place_BS = self._start_I[row_B, None] + place_S
        reference_BS = self._words[place_BS].where(place_S < self._size_I[row_B, None], NO_WORD)
        slot_R = torch.arange(self._bigrams_IR.shape[1], device=self._device)
        return reference_BS, (self._slot[place_BS][..., None] == slot_R).to(self._dtype)

    def _look_up(self, order: int, prefix: Tensor, word: Tensor) -> Tensor:
        """Places in the table of n-grams, given those of their first n - 1 words and their last words."""
        key = prefix * self._table_words + word
        keys = self._keys[order]
        place = torch.searchsorted(keys, key)
        known = (keys[place] == key) & (word >= 0) & (word < self._table_words)
        return place.where(known, len(keys) - 1)
