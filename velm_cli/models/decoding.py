"""From images to token sequences: greedy, beam and nucleus decoding with a key/value cache.

The image's part of the work (`memory`) exists once an image and is shared by its beams; images that are finished
leave the batch, and the last ones take their places. The device is asked once a step who goes on.

Shapes: B images (live ones, in any order), K beams, N = B * K sequences, C candidates, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from velm_cli.models.state import Rows, move, own, select
from velm_cli.models.velm import VelmModel
from velm_cli.schema import DecodeConfig, DecodeMethod

CHUNK = 64  # words whose best is found before the words themselves are looked at


class StepModel(Protocol):
    """What decoding needs of a model: see `VelmModel.step`."""

    def step(self, tokens_NT: Tensor, memory: tuple, state=None) -> tuple[Tensor, tuple]: ...


@contextmanager
def laid_out_for_steps(model: VelmModel) -> Iterator[None]:
    """Within it, the matrices of text and fusion lie in a CPU's memory as products with few rows read them fastest.

    A step multiplies one row a live text. torch's linear layers keep their matrices by output, and MKL multiplies 8 to
    48 float32 rows with matrices that lie by input 1.7 to 2.6 times as fast (from 64 rows on it makes no difference).
    The numbers are the same, and the parameters get their own memory back. Laying out takes the time of a word or two,
    so this is for many batches, not for each.
    """
    linear = (
        part.weight for part in chain(model.text.modules(), model.fusion.modules()) if isinstance(part, nn.Linear)
    )
    kept = {}
    try:
        for weight in {id(each): each for each in (*linear, model.text.output_weight)}.values():
            # Anything else than a plain tensor, such as one that is spread over processes, stays as it is.
            if type(weight.data) is Tensor and weight.device.type == "cpu" and weight.dtype == torch.float32:
                kept[weight] = weight.data
                weight.data = weight.data.t().contiguous().t()
        yield
    finally:
        for weight, data in kept.items():
            weight.data = data


def decode(
    model: StepModel,
    memory: tuple,
    *,
    images: int,
    config: DecodeConfig,
    bos_id: int,
    eos_id: int,
    banned: Sequence[int] = (),
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """One token sequence an image, without BOS and EOS, at most `config.max_length` tokens with EOS.

    `memory` is what `model.memory_for(features, config)` gave for the `images` images. `banned` tokens (padding,
    BOS, unknown) are never produced. `generator` is needed by nucleus sampling only.
    """
    start_B1 = torch.full((images, 1), bos_id, device=device)
    banned_ids = torch.tensor(list(banned), dtype=torch.long, device=device)

    def likeliest(logits_BV: Tensor) -> Tensor:
        return logits_BV.index_fill(1, banned_ids, float("-inf")).argmax(dim=1)

    def drawn(logits_BV: Tensor) -> Tensor:
        p_BV = log_probs(logits_BV / config.temperature, banned_ids).exp()
        return torch.multinomial(nucleus_probabilities(p_BV, top_p=config.top_p), 1, generator=generator)[:, 0]

    with torch.inference_mode():
        memory = own(memory)
        if config.method is DecodeMethod.nucleus:
            assert generator is not None, "nucleus sampling draws from the generator it is given"
            tokens_BT = _one_by_one(model, memory, start_B1, drawn, config.max_length, eos_id)
        elif config.beams == 1:
            tokens_BT = _one_by_one(model, memory, start_B1, likeliest, config.max_length, eos_id)
        else:
            tokens_BT = _beam(model, memory, start_B1, config, eos_id, banned_ids)
    return [row[: row.index(eos_id)] if eos_id in row else row for row in tokens_BT.tolist()]


def log_probs(logits_NV: Tensor, banned: Tensor) -> Tensor:
    """Log-probabilities of the tokens that may be produced; -inf for the `banned`."""
    return logits_NV.float().index_fill(1, banned, float("-inf")).log_softmax(-1)


def _one_by_one(
    model: StepModel,
    memory: tuple,
    token_B1: Tensor,
    choose: Callable[[Tensor], Tensor],
    max_length: int,
    eos_id: int,
) -> Tensor:
    """One sequence an image, of the tokens (B) that `choose` takes by their logits (B, V), until that is EOS.

    Tokens (B, T) of all images; behind EOS stand more of it.
    """
    images, device = len(token_B1), token_B1.device
    out_BT = torch.full((images, max_length), eos_id, device=device)
    image_B, state = torch.arange(images, device=device), None  # which image a row of the live batch belongs to
    for length in range(max_length):
        logits_BV, state = model.step(token_B1, memory, state)
        token_B = choose(logits_BV)
        out_BT[image_B, length] = token_B
        goes_on = (token_B != eos_id).tolist()
        if not any(goes_on):
            break
        if not all(goes_on):
            kept_B, holes, movers = _places(goes_on, device)
            rows = Rows(kept_B[:, None], holes, movers)
            image_B, token_B = image_B[kept_B], token_B[kept_B]
            memory, state = move(memory, rows), select(state, rows)
        token_B1 = token_B[:, None]
    return out_BT


def _places(goes_on: Sequence[bool], device: torch.device) -> tuple[Tensor, ...]:
    """The images that go on, as they now stand, and the `holes` and `movers` of `Rows`."""
    live = sum(goes_on)
    holes = [place for place in range(live) if not goes_on[place]]
    movers = [place for place in range(live, len(goes_on)) if goes_on[place]]
    kept = list(range(live))
    for hole, mover in zip(holes, movers, strict=True):
        kept[hole] = mover
    return tuple(torch.tensor(places, dtype=torch.long, device=device) for places in (kept, holes, movers))


def _beam(
    model: StepModel,
    memory: tuple,
    token_B1: Tensor,
    config: DecodeConfig,
    eos_id: int,
    banned: Tensor,
) -> Tensor:
    """Beam search: tokens (B, T) of all images; behind EOS stand more of it.

    A hypothesis scores sum(log p) / length ** length_penalty, EOS counted. Each step looks at the 2K
    best continuations of an image: of the first K those that end in EOS become hypotheses, the best K
    others live on (as in transformers' `generate`). An image is finished when no live prefix can still
    beat its best hypothesis; since log p <= 0, a live prefix's best possible future score is its present
    sum / max_length ** length_penalty.
    """
    images, device = len(token_B1), token_B1.device
    K, max_length, penalty = config.beams, config.max_length, config.length_penalty
    best = _Best(images, max_length, eos_id, device)
    image_B = torch.arange(images, device=device)  # which image a row of the live batch belongs to
    logits_NV, state = model.step(token_B1, memory)
    score_BK = torch.zeros(images, 1, device=device)  # at first each image has one prefix: BOS
    prefix_BKT = torch.empty(images, 1, 0, dtype=torch.long, device=device)

    for length in range(1, max_length + 1):
        score_BC, beam_BC, token_BC = continuations(log_probs(logits_NV, banned), score_BK, 2 * K)
        prefix_BCT = torch.cat([_of(prefix_BKT, beam_BC), token_BC[:, :, None]], dim=2)
        ended_BC = token_BC == eos_id

        complete_BK = ended_BC[:, :K] | (length == max_length)
        best.offer(image_B, score_BC[:, :K] / length**penalty, complete_BK, prefix_BCT)
        if length == max_length:
            break

        # The K best that go on; an ended one is pushed behind every living one.
        width = score_BK.shape[1]
        score_BK, best_BK = score_BC.masked_fill(ended_BC, float("-inf")).topk(min(K, score_BC.shape[1]))
        token_BK, prefix_BKT = token_BC.gather(1, best_BK), _of(prefix_BCT, best_BK)
        source_BK = beam_BC.gather(1, best_BK) + width * torch.arange(len(image_B), device=device)[:, None]

        goes_on = (score_BK[:, 0] / max_length**penalty > best.score_B[image_B]).tolist()
        if not any(goes_on):
            break
        rows = Rows(source_BK)
        if not all(goes_on):
            kept_B, holes, movers = _places(goes_on, device)
            rows = Rows(source_BK[kept_B], holes, movers)
            image_B, score_BK, token_BK, prefix_BKT = (x[kept_B] for x in (image_B, score_BK, token_BK, prefix_BKT))
            memory = move(memory, rows)
        logits_NV, state = model.step(token_BK.reshape(-1, 1), memory, select(state, rows))
    return best.tokens_BT


class _Best:
    """The best hypothesis of each image."""

    def __init__(self, images: int, max_length: int, eos_id: int, device: torch.device) -> None:
        self.score_B = torch.full((images,), float("-inf"), device=device)
        self.tokens_BT = torch.full((images, max_length), eos_id, device=device)

    def offer(self, image_B: Tensor, score_BK: Tensor, complete_BK: Tensor, prefix_BCT: Tensor) -> None:
        """Prefixes of the images `image_B`: the complete ones of the first K count. They never get shorter."""
        score_B, place_B = score_BK.masked_fill(~complete_BK, float("-inf")).max(dim=1)
        tokens_BT = _of(prefix_BCT, place_B[:, None])[:, 0]
        T, before_B = tokens_BT.shape[1], self.score_B[image_B]
        better_B = score_B > before_B
        self.score_B[image_B] = torch.where(better_B, score_B, before_B)
        self.tokens_BT[image_B, :T] = torch.where(better_B[:, None], tokens_BT, self.tokens_BT[image_B, :T])


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


@torch.no_grad()
def sample(
    model: StepModel,
    memory: tuple,
    *,
    images: int,
    samples: int,
    max_length: int,
    bos_id: int,
    eos_id: int,
    banned: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """`samples` sequences an image, drawn from the model's own distribution: tokens (N, T) and lengths (N).

    The length counts EOS; behind it stand more EOS. At most `max_length` tokens. Draws from torch's generator.
    """
    device = next(part for part in _tensors(memory)).device
    tokens_N1 = torch.full((images * samples, 1), bos_id, device=device)
    banned_ids = torch.tensor(list(banned), dtype=torch.long, device=device)
    ended_N = torch.zeros(images * samples, dtype=torch.bool, device=device)
    drawn, state = [], None
    for _ in range(max_length):
        logits_NV, state = model.step(tokens_N1, memory, state)
        tokens_N1 = torch.multinomial(log_probs(logits_NV, banned_ids).exp(), 1)
        tokens_N1 = tokens_N1.masked_fill(ended_N[:, None], eos_id)
        drawn.append(tokens_N1)
        ended_N = ended_N | (tokens_N1[:, 0] == eos_id)
        if ended_N.all():
            break
    tokens_NT = torch.cat(drawn, dim=1)
    goes_on_NT = (tokens_NT != eos_id).cumprod(dim=1)
    return tokens_NT, (goes_on_NT.sum(dim=1) + 1).clamp(max=tokens_NT.shape[1])


def _tensors(nested) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    else:
        for part in nested:
            yield from _tensors(part)


def nucleus_probabilities(p_NV: Tensor, *, top_p: float) -> Tensor:
    """The probabilities with everything outside the nucleus set to 0 (not renormalised)."""
    ordered, index = p_NV.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # probability of all better tokens
    return torch.zeros_like(p_NV).scatter(-1, index, ordered.masked_fill(before >= top_p, 0.0))
