"""How texts go on from the logits of their next tokens: the likeliest, a drawn one, or beams.

Shapes: B images, K beams, N = B * K sequences, C candidates, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from velm_cli.models.layers import at_least_float32
from velm_cli.schema import DecodeConfig, DecodeMethod

Draws = Callable[[range], Tensor]  # of the images of these numbers: (B, T), a number from [0, 1) per token

CHUNK = 64  # words whose best is found before the words themselves are looked at


class Texts(NamedTuple):
    """One text an image, as far as it has come."""

    token_BK: Tensor  # the last token; K = 1
    length_B: Tensor  # tokens without BOS
    text_BT: Tensor  # behind the text more EOS
    draw_BT: Tensor  # from [0, 1), for a text that is drawn; else T = 0


class Beams(NamedTuple):
    """The best prefixes of each image, and its best hypothesis."""

    token_BK: Tensor  # the last token of each prefix
    length_B: Tensor  # tokens without BOS, of each prefix
    score_BK: Tensor  # sum of log p; best first
    prefix_BKT: Tensor  # behind the prefix more EOS
    best_B: Tensor  # score of the best hypothesis
    text_BT: Tensor  # its tokens; behind them more EOS


class Search:
    """How texts go on by the logits of their next tokens."""

    def __init__(self, config: DecodeConfig, eos_id: int, banned: Tensor) -> None:
        self.config, self.eos_id, self.banned = config, eos_id, banned

    def begin(self, numbers: range, bos_id: int, device: torch.device | str) -> Any:
        """The texts of the images of these numbers: BOS."""
        raise NotImplementedError

    def advance(self, texts: Any, logits_NV: Tensor) -> tuple[Any, Tensor | None, Tensor]:
        """The texts with a token more, which row each of them had before (None: its own), which images (B) go on."""
        raise NotImplementedError

    def words(self, text: list[int]) -> list[int]:
        """The tokens before EOS."""
        return text[: text.index(self.eos_id)] if self.eos_id in text else text


class OneByOne(Search):
    """One text per image, until its token is EOS: the likeliest tokens, or drawn ones where `draws` has numbers."""

    def __init__(self, config: DecodeConfig, eos_id: int, banned: Tensor, draws: Draws | None) -> None:
        super().__init__(config, eos_id, banned)
        self._draws = draws

    def begin(self, numbers: range, bos_id: int, device: torch.device | str) -> Texts:
        images = len(numbers)
        return Texts(
            torch.full((images, 1), bos_id, device=device),
            torch.zeros(images, dtype=torch.long, device=device),
            torch.full((images, self.config.max_length), self.eos_id, device=device),
            torch.zeros(images, 0, device=device) if self._draws is None else self._draws(numbers),
        )

    def advance(self, texts: Texts, logits_NV: Tensor) -> tuple[Texts, None, Tensor]:
        here_B1 = texts.length_B[:, None]
        if self._draws is None:
            token_B1 = logits_NV.index_fill(1, self.banned, float("-inf")).argmax(dim=1, keepdim=True)
        else:
            p_NV = log_probs(at_least_float32(logits_NV) / self.config.temperature, self.banned).exp()
            token_B1 = drawn(nucleus_probabilities(p_NV, top_p=self.config.top_p), texts.draw_BT.gather(1, here_B1))
        text_BT = texts.text_BT.scatter(1, here_B1, token_B1)
        length_B = texts.length_B + 1
        goes_on_B = (token_B1[:, 0] != self.eos_id) & (length_B < self.config.max_length)
        return texts._replace(token_BK=token_B1, length_B=length_B, text_BT=text_BT), None, goes_on_B


class Beam(Search):
    """A hypothesis scores sum(log p) / length ** length_penalty, EOS counted. Each step looks at the 2K best
    continuations of an image: of the first K those that end in EOS become hypotheses, the best K others live on (as in
    transformers' `generate`). An image is finished when no live prefix can still beat its best hypothesis; since
    log p <= 0, a live prefix's best possible future score is its present sum / max_length ** length_penalty.
    """

    def __init__(self, config: DecodeConfig, eos_id: int, banned: Tensor) -> None:
        super().__init__(config, eos_id, banned)
        powers = [length**config.length_penalty for length in range(1, config.max_length + 1)]
        self._power_T = torch.tensor(powers, device=banned.device)

    def begin(self, numbers: range, bos_id: int, device: torch.device | str) -> Beams:
        images = len(numbers)
        texts = (images, self.config.max_length)
        return Beams(
            token_BK=torch.full((images, 1), bos_id, device=device),
            length_B=torch.zeros(images, dtype=torch.long, device=device),
            score_BK=torch.zeros(images, 1, device=device),  # at first each image has one prefix: BOS
            prefix_BKT=torch.full((images, 1, self.config.max_length), self.eos_id, device=device),
            best_B=torch.full((images,), float("-inf"), device=device),
            text_BT=torch.full(texts, self.eos_id, device=device),
        )

    def advance(self, texts: Beams, logits_NV: Tensor) -> tuple[Beams, Tensor, Tensor]:
        K, before_B = self.config.beams, texts.length_B
        score_BC, beam_BC, token_BC = continuations(log_probs(logits_NV, self.banned), texts.score_BK, 2 * K)
        place_BC1 = before_B[:, None, None].expand(-1, token_BC.shape[1], 1)
        prefix_BCT = _of(texts.prefix_BKT, beam_BC).scatter_(2, place_BC1, token_BC[:, :, None])
        ended_BC, last_B = token_BC == self.eos_id, before_B + 1 == self.config.max_length

        complete_BK = ended_BC[:, :K] | last_B[:, None]
        hypothesis_BK = (score_BC[:, :K] / self._power_T[before_B, None]).masked_fill(~complete_BK, float("-inf"))
        found_B, place_B = hypothesis_BK.max(dim=1)
        better_B = found_B > texts.best_B
        best_B = torch.where(better_B, found_B, texts.best_B)
        text_BT = torch.where(better_B[:, None], _of(prefix_BCT, place_B[:, None])[:, 0], texts.text_BT)

        # The K best that go on; an ended one is pushed behind every living one.
        B, width = texts.score_BK.shape
        score_BK, best_BK = score_BC.masked_fill(ended_BC, float("-inf")).topk(min(K, score_BC.shape[1]))
        source_BK = beam_BC.gather(1, best_BK) + width * torch.arange(B, device=best_BK.device)[:, None]
        goes_on_B = ~last_B & (score_BK[:, 0] / self._power_T[-1] > best_B)
        token_BK, prefix_BKT = token_BC.gather(1, best_BK), _of(prefix_BCT, best_BK)
        return Beams(token_BK, before_B + 1, score_BK, prefix_BKT, best_B, text_BT), source_BK, goes_on_B


def search_of(config: DecodeConfig, eos_id: int, banned: Tensor, draws: Draws | None) -> Search:
    if config.method is DecodeMethod.nucleus:
        assert draws is not None, "nucleus sampling needs the numbers that it draws with"
        return OneByOne(config, eos_id, banned, draws)
    return OneByOne(config, eos_id, banned, None) if config.beams == 1 else Beam(config, eos_id, banned)


def image_draws(image_ids: Iterable[int | str], *, seed: int, count: int) -> np.ndarray:
    """float64 [B, count] from [0, 1): functions of `seed` and the image's id alone, so that a caption that is drawn
    depends on nothing that it is decoded together with."""

    def row(image_id: int | str) -> np.ndarray:
        digest = hashlib.blake2b(str(image_id).encode(), digest_size=16).digest()
        key = np.random.SeedSequence([seed, int.from_bytes(digest, "little")])
        return np.random.Generator(np.random.Philox(key)).random(count)

    return np.stack([row(image_id) for image_id in image_ids])


def drawn(p_NV: Tensor, draw_N1: Tensor) -> Tensor:
    """(N, 1): the token at which the sum of the probabilities, which need not add up to 1, passes this share of all."""
    sum_NV = p_NV.cumsum(-1)
    all_N1 = sum_NV[:, -1:]
    below_N1 = torch.minimum(draw_N1 * all_N1, all_N1.nextafter(torch.zeros_like(all_N1)))  # a product may round up
    return torch.searchsorted(sum_NV, below_N1, right=True)


def continuations(log_p_NV: Tensor, score_BK: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best continuations of each image's K prefixes: score, beam and token (B, C), best first.

    A large vocabulary is searched in chunks of words: the best C are in the C chunks that have the best words.
    """
    B, K = score_BK.shape
    V = log_p_NV.shape[1]
    log_p_BKV = log_p_NV.view(B, K, V)
    if count * CHUNK > V // 2:
        score_BC, place_BC = (score_BK[:, :, None] + log_p_BKV).flatten(1).topk(min(count, K * V))
        return score_BC, place_BC // V, place_BC % V

    whole = (V - 1) // CHUNK * CHUNK  # words in whole chunks; the last chunk is what is left
    best_BKM = log_p_BKV[:, :, :whole].unflatten(2, (-1, CHUNK)).amax(dim=3)
    best_BKM = torch.cat([best_BKM, log_p_BKV[:, :, whole:].amax(dim=2, keepdim=True)], dim=2)
    M = best_BKM.shape[2]
    chunk_BC = (score_BK[:, :, None] + best_BKM).flatten(1).topk(count).indices
    beam_BC = chunk_BC // M
    token_BCX = (chunk_BC % M * CHUNK)[:, :, None] + torch.arange(CHUNK, device=log_p_NV.device)
    place_BX = (beam_BC[:, :, None] * V + token_BCX.clamp(max=V - 1)).flatten(1)
    score_BCX = score_BK.gather(1, beam_BC)[:, :, None] + log_p_BKV.flatten(1).gather(1, place_BX).view_as(token_BCX)
    score_BC, place_BC = score_BCX.masked_fill(token_BCX >= V, float("-inf")).flatten(1).topk(count)
    return score_BC, beam_BC.gather(1, place_BC // CHUNK), token_BCX.flatten(1).gather(1, place_BC)


def _of(prefix_BKT: Tensor, index_BC: Tensor) -> Tensor:
    """The prefixes (B, C, T) that `index` picks of each image's."""
    return prefix_BKT.gather(1, index_BC[:, :, None].expand(-1, -1, prefix_BKT.shape[2]))


def log_probs(logits_NV: Tensor, banned: Tensor) -> Tensor:
    """Log-probabilities among the tokens that may be produced; -inf for the `banned`.

    So beams compare p(token | it is none of the banned), as transformers' `generate` does with
    `renormalize_logits=True`; by default it leaves the probability of banned tokens where it was.
    """
    return at_least_float32(logits_NV).index_fill(1, banned, float("-inf")).log_softmax(-1)


def nucleus_probabilities(p_NV: Tensor, *, top_p: float) -> Tensor:
    """The probabilities with everything outside the nucleus set to 0 (not renormalised)."""
    ordered, index = p_NV.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # probability of all better tokens
    return torch.zeros_like(p_NV).scatter(-1, index, ordered.masked_fill(before >= top_p, 0.0))
