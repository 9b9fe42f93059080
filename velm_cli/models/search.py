"""How texts go on from the logits of their next tokens: the likeliest, a drawn one, or beams.

Shapes: B images, K beams or samples, N = B * K sequences, C candidates, H hypotheses, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from velm_cli.models.allowed import AllowedTexts
from velm_cli.models.constraints import Constraints
from velm_cli.models.layers import at_least_float32
from velm_cli.schema import DecodeConfig, DecodeMethod

Draws = Callable[[Sequence[int]], Tensor]  # of the images of these numbers: (B[, K], T), from [0, 1) for each token

CHUNK = 64  # words whose best is found before the words themselves are looked at


class Texts(NamedTuple):
    """The texts of each image that are found one by one, as far as they have come."""

    token_BK: Tensor  # the last token of each; as yet K = 1 where that is BOS
    length_B: Tensor  # tokens without BOS
    text_BKT: Tensor  # behind each text more EOS
    draw_BKT: Tensor  # from [0, 1), for texts that are drawn; else T = 0
    ended_BK: Tensor
    prompt_BP: Tensor  # as `Constraints` reads it; P = 0 where nobody does
    place_BK: Tensor  # in the list of allowed texts, where there is one


class Beams(NamedTuple):
    """The best prefixes of each image, and its H best hypotheses."""

    token_BK: Tensor  # the last token of each prefix
    length_B: Tensor  # tokens without BOS, of each prefix
    score_BK: Tensor  # sum of log p; best first
    prefix_BKT: Tensor  # behind the prefix more EOS
    best_BH: Tensor  # scores of the best hypotheses; best first
    text_BHT: Tensor  # their tokens; behind them more EOS
    prompt_BP: Tensor  # as in `Texts`
    place_BK: Tensor


class Search:
    """How texts go on by the logits of their next tokens."""

    def __init__(
        self,
        config: DecodeConfig,
        eos_id: int,
        banned: Tensor,
        *,
        stops: Sequence[int] = (),
        allowed: AllowedTexts | None = None,
    ) -> None:
        """`stops`: tokens that end a text as EOS does, in whose place EOS then stands."""
        self.config, self.eos_id, self.banned = config, eos_id, banned
        self.stops = torch.tensor(list(stops), dtype=torch.long, device=banned.device)
        self.allowed = allowed
        ends = torch.tensor(sorted({eos_id, *stops}), dtype=torch.long, device=banned.device)
        self.constraints = Constraints.of(config, ends, allowed)

    @property
    def reads_prompt(self) -> bool:
        """Whether it matters what the prompt says."""
        return self.constraints is not None and self.constraints.reads_prompt

    def begin(
        self, numbers: Sequence[int], bos_id: int, device: torch.device | str, prompt_BP: Tensor | None = None
    ) -> Any:
        """The texts of the images of these numbers: BOS. `prompt`: where it is read, -1 in front of shorter ones."""
        raise NotImplementedError

    def advance(self, texts: Any, logits_NV: Tensor) -> tuple[Any, Tensor | None, Tensor]:
        """The texts with a token more, which row each of them had before (None: its own), which images (B) go on."""
        raise NotImplementedError

    def found(self, texts: Any) -> list[list[list[int]]]:
        """Of each image its texts, the best or first of them first: the tokens before EOS."""
        raise NotImplementedError

    def _words(self, text: list[int]) -> list[int]:
        return text[: text.index(self.eos_id)] if self.eos_id in text else text

    def _ended(self, token: Tensor) -> Tensor:
        """EOS in the place of whatever ends a text."""
        return torch.where(torch.isin(token, self.stops), self.eos_id, token) if len(self.stops) else token

    def _constrained(self, score_NV: Tensor, texts: Any, text_BKT: Tensor) -> Tensor:
        """The scores by what there is of K texts an image."""
        if self.constraints is None:
            return score_NV
        K = text_BKT.shape[1]
        prompt_NP, length_N = (part.repeat_interleave(K, dim=0) for part in (texts.prompt_BP, texts.length_B))
        return self.constraints(score_NV, prompt_NP, text_BKT.flatten(0, 1), length_N, texts.place_BK.flatten())


class OneByOne(Search):
    """Each text until its token is EOS: the likeliest tokens, or drawn ones where `draws` has numbers.

    `config.samples` texts an image, which share all that was read up to BOS. An image is finished when all have ended.
    """

    def __init__(self, *args: Any, draws: Draws | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._draws = draws

    def begin(
        self, numbers: Sequence[int], bos_id: int, device: torch.device | str, prompt_BP: Tensor | None = None
    ) -> Texts:
        images, texts = len(numbers), self.config.samples
        draws = torch.zeros(images, texts, 0, device=device)
        return Texts(
            token_BK=torch.full((images, 1), bos_id, device=device),
            length_B=torch.zeros(images, dtype=torch.long, device=device),
            text_BKT=torch.full((images, texts, self.config.max_length), self.eos_id, device=device),
            draw_BKT=draws if self._draws is None else self._draws(numbers).view(images, texts, -1),
            ended_BK=torch.zeros(images, texts, dtype=torch.bool, device=device),
            prompt_BP=_prompt(prompt_BP, images, device),
            place_BK=torch.zeros(images, texts, dtype=torch.long, device=device),
        )

    def advance(self, texts: Texts, logits_NV: Tensor) -> tuple[Texts, Tensor | None, Tensor]:
        B, K = texts.ended_BK.shape
        source_BK = None
        if texts.token_BK.shape[1] < K:
            source_BK = torch.arange(B, device=logits_NV.device)[:, None].expand(-1, K)
            logits_NV = logits_NV.repeat_interleave(K, dim=0)
        here_BK1 = texts.length_B[:, None, None].expand(-1, K, -1)
        if self._draws is None:
            token_N1 = self._scores(logits_NV, texts).argmax(dim=1, keepdim=True)
        else:
            token_N1 = drawn(self._probabilities(logits_NV, texts), texts.draw_BKT.gather(2, here_BK1).view(-1, 1))
        token_BK = self._ended(token_N1.view(B, K)).masked_fill(texts.ended_BK, self.eos_id)
        text_BKT = texts.text_BKT.scatter(2, here_BK1, token_BK[:, :, None])
        length_B, ended_BK = texts.length_B + 1, texts.ended_BK | (token_BK == self.eos_id)
        place_BK = texts.place_BK if self.allowed is None else self.allowed.after(texts.place_BK, token_BK)
        goes_on_B = ~ended_BK.all(dim=1) & (length_B < self.config.max_length)
        texts = texts._replace(
            token_BK=token_BK, length_B=length_B, text_BKT=text_BKT, ended_BK=ended_BK, place_BK=place_BK
        )
        return texts, source_BK, goes_on_B

    def found(self, texts: Texts) -> list[list[list[int]]]:
        return [[self._words(text) for text in each] for each in texts.text_BKT.tolist()]

    def _scores(self, logits_NV: Tensor, texts: Texts) -> Tensor:
        """Of the tokens that may come; where none may, of EOS."""
        if self.constraints is None:
            return logits_NV.index_fill(1, self.banned, float("-inf"))
        score_NV = at_least_float32(logits_NV).index_fill(1, self.banned, float("-inf"))
        score_NV = self._constrained(score_NV, texts, texts.text_BKT)
        none_N1 = (score_NV == -torch.inf).all(dim=1, keepdim=True)
        eos_N1 = torch.full_like(none_N1, self.eos_id, dtype=torch.long)
        return score_NV.scatter(1, eos_N1, score_NV.gather(1, eos_N1).masked_fill(none_N1, 0.0))

    def _probabilities(self, logits_NV: Tensor, texts: Texts) -> Tensor:
        """Of the tokens that one is drawn among: divided by the temperature, the likeliest k, the nucleus of these."""
        config = self.config
        score_NV = logits_NV if self.constraints is None else self._scores(logits_NV, texts)
        score_NV = at_least_float32(score_NV) / config.temperature
        if config.top_k:
            score_NV = likeliest(score_NV.index_fill(1, self.banned, float("-inf")), top_k=config.top_k)
        return nucleus_probabilities(log_probs(score_NV, self.banned).exp(), top_p=config.top_p)


class Beam(Search):
    """A hypothesis scores sum(log p) / length ** length_penalty, EOS counted. Each step looks at the 2K best
    continuations of an image (a K more for each further stop): of the first K those that end become hypotheses, the
    best K others live on (as in transformers' `generate`). An image is finished when no live prefix can still beat the
    last of its `config.samples` best hypotheses; since log p <= 0, a live prefix's best possible future score is its
    present sum / max_length ** length_penalty.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        powers = [length**self.config.length_penalty for length in range(1, self.config.max_length + 1)]
        self._power_T = torch.tensor(powers, device=self.banned.device)
        self._count = (2 + len(self.stops)) * self.config.beams

    def begin(
        self, numbers: Sequence[int], bos_id: int, device: torch.device | str, prompt_BP: Tensor | None = None
    ) -> Beams:
        images, best = len(numbers), self.config.samples
        return Beams(
            token_BK=torch.full((images, 1), bos_id, device=device),
            length_B=torch.zeros(images, dtype=torch.long, device=device),
            score_BK=torch.zeros(images, 1, device=device),  # at first each image has one prefix: BOS
            prefix_BKT=torch.full((images, 1, self.config.max_length), self.eos_id, device=device),
            best_BH=torch.full((images, best), float("-inf"), device=device),
            text_BHT=torch.full((images, best, self.config.max_length), self.eos_id, device=device),
            prompt_BP=_prompt(prompt_BP, images, device),
            place_BK=torch.zeros(images, 1, dtype=torch.long, device=device),
        )

    def advance(self, texts: Beams, logits_NV: Tensor) -> tuple[Beams, Tensor, Tensor]:
        K, before_B = self.config.beams, texts.length_B
        log_p_NV = self._constrained(log_probs(logits_NV, self.banned), texts, texts.prefix_BKT)
        score_BC, beam_BC, token_BC = continuations(log_p_NV, texts.score_BK, self._count)
        token_BC = self._ended(token_BC)
        place_BC1 = before_B[:, None, None].expand(-1, token_BC.shape[1], 1)
        prefix_BCT = _of(texts.prefix_BKT, beam_BC).scatter_(2, place_BC1, token_BC[:, :, None])
        ended_BC, last_B = token_BC == self.eos_id, before_B + 1 == self.config.max_length

        complete_BK = ended_BC[:, :K] | last_B[:, None]
        hypothesis_BK = (score_BC[:, :K] / self._power_T[before_B, None]).masked_fill(~complete_BK, float("-inf"))
        best_BH, text_BHT = _best(texts, hypothesis_BK, prefix_BCT[:, :K])

        # The K best that go on; an ended one is pushed behind every living one.
        B, width = texts.score_BK.shape
        score_BK, best_BK = score_BC.masked_fill(ended_BC, float("-inf")).topk(min(K, score_BC.shape[1]))
        beam_BK = beam_BC.gather(1, best_BK)
        source_BK = beam_BK + width * torch.arange(B, device=best_BK.device)[:, None]
        goes_on_B = ~last_B & (score_BK[:, 0] / self._power_T[-1] > best_BH[:, -1])
        token_BK, prefix_BKT, place_BK = token_BC.gather(1, best_BK), _of(prefix_BCT, best_BK), texts.place_BK
        if self.allowed is not None:
            place_BK = self.allowed.after(place_BK.gather(1, beam_BK), token_BK)
        after = Beams(token_BK, before_B + 1, score_BK, prefix_BKT, best_BH, text_BHT, texts.prompt_BP, place_BK)
        return after, source_BK, goes_on_B

    def found(self, texts: Beams) -> list[list[list[int]]]:
        found = [[self._words(text) for text in each] for each in texts.text_BHT.tolist()]
        if self.config.samples == 1:
            return found
        counts = (texts.best_BH > -torch.inf).sum(dim=1).clamp(min=1).tolist()
        return [each[:count] for each, count in zip(found, counts, strict=True)]


def _best(texts: Beams, score_BK: Tensor, prefix_BKT: Tensor) -> tuple[Tensor, Tensor]:
    """The best hypotheses with new ones among them: scores (B, H) and tokens (B, H, T); of equals, the older."""
    if texts.best_BH.shape[1] == 1:
        found_B1, place_B1 = score_BK.max(dim=1, keepdim=True)
        better_B1 = found_B1 > texts.best_BH
        text_B1T = torch.where(better_B1[:, :, None], _of(prefix_BKT, place_B1), texts.text_BHT)
        return torch.where(better_B1, found_B1, texts.best_BH), text_B1T
    all_BX = torch.cat([texts.best_BH, score_BK], dim=1)
    best_BX, order_BX = all_BX.sort(dim=1, descending=True, stable=True)
    H = texts.best_BH.shape[1]
    return best_BX[:, :H], _of(torch.cat([texts.text_BHT, prefix_BKT], dim=1), order_BX[:, :H])


def _prompt(prompt_BP: Tensor | None, images: int, device: torch.device | str) -> Tensor:
    return torch.zeros(images, 0, dtype=torch.long, device=device) if prompt_BP is None else prompt_BP


def search_of(
    config: DecodeConfig,
    eos_id: int,
    banned: Tensor,
    draws: Draws | None,
    *,
    stops: Sequence[int] = (),
    allowed: AllowedTexts | None = None,
) -> Search:
    if config.method is DecodeMethod.nucleus:
        assert draws is not None, "nucleus sampling needs the numbers that it draws with"
        return OneByOne(config, eos_id, banned, stops=stops, allowed=allowed, draws=draws)
    if config.beams == 1:
        return OneByOne(config, eos_id, banned, stops=stops, allowed=allowed, draws=None)
    return Beam(config, eos_id, banned, stops=stops, allowed=allowed)


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

    So beams compare p(token | it is none of the banned), as transformers' `generate` does with `suppress_tokens` and
    `renormalize_logits=True`; by default it leaves the probability of banned tokens where it was. What `Constraints`
    forbid at a step is forbidden behind this, and leaves its probability where it was, as in `generate`.
    """
    return at_least_float32(logits_NV).index_fill(1, banned, float("-inf")).log_softmax(-1)


def likeliest(score_NV: Tensor, *, top_k: int) -> Tensor:
    """Minus infinity for all but the k best scores and those that are equal to the last of them (TopKLogitsWarper;
    Fan et al. 2018)."""
    last_N1 = score_NV.topk(min(top_k, score_NV.shape[1])).values[:, -1:]
    return score_NV.masked_fill(score_NV < last_N1, -torch.inf)


def nucleus_probabilities(p_NV: Tensor, *, top_p: float) -> Tensor:
    """The probabilities with everything outside the nucleus set to 0 (not renormalised)."""
    ordered, index = p_NV.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # probability of all better tokens
    return torch.zeros_like(p_NV).scatter(-1, index, ordered.masked_fill(before >= top_p, 0.0))
