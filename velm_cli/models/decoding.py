"""From images to token sequences: greedy, beam and nucleus decoding with a key/value cache.

The image's part of the work (`memory`) exists once an image and is shared by its beams; images that
are finished leave the batch. Shapes: B images, K beams, N = B * K sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from velm_cli.models.layers import select
from velm_cli.schema import DecodeConfig, DecodeMethod


class StepModel(Protocol):
    """What decoding needs of a model: see `VelmModel.step`."""

    def step(self, tokens_NT: Tensor, memory: tuple, state=None) -> tuple[Tensor, tuple]: ...


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

    `memory` is what `model.memory(features)` gave for the `images` images. `banned` tokens (padding,
    BOS, unknown) are never produced. `generator` is needed by nucleus sampling only.
    """
    start = torch.full((images, 1), bos_id, device=device)
    banned_ids = torch.tensor(list(banned), dtype=torch.long, device=device)
    with torch.inference_mode():
        if config.method is DecodeMethod.nucleus:
            assert generator is not None, "nucleus sampling draws from the generator it is given"
            return _nucleus(model, memory, start, config, eos_id, banned_ids, generator)
        return _beam(model, memory, start, config, eos_id, banned_ids)


def log_probs(logits_NV: Tensor, banned: Tensor) -> Tensor:
    """Log-probabilities of the tokens that may be produced; -inf for the `banned`."""
    return logits_NV.float().index_fill(1, banned, float("-inf")).log_softmax(-1)


def _beam(
    model: StepModel,
    memory: tuple,
    tokens_B1: Tensor,
    config: DecodeConfig,
    eos_id: int,
    banned: Tensor,
) -> list[list[int]]:
    """Beam search; with one beam it is greedy decoding: the likeliest token, until that is EOS.

    A hypothesis scores sum(log p) / length ** length_penalty, EOS counted. Each step looks at the 2K
    best continuations of an image: of the first K those that end in EOS become hypotheses, the best K
    others live on (as in transformers' `generate`). An image is finished when no live prefix can still
    beat its best hypothesis; since log p <= 0, a live prefix's best possible future score is its present
    sum / max_length ** length_penalty.
    """
    B, K, device = tokens_B1.shape[0], config.beams, tokens_B1.device
    penalty = config.length_penalty if K > 1 else 0.0  # else a greedy caption could go on after its EOS
    best_score = [float("-inf")] * B
    best_tokens: list[list[int]] = [[] for _ in range(B)]

    image_B = torch.arange(B, device=device)  # which image a row of the live batch belongs to
    logits_NV, state = model.step(tokens_B1, memory)
    score_BK = torch.zeros(B, 1, device=device)  # at first each image has one prefix: BOS
    prefix_BKT = torch.empty(B, 1, 0, dtype=torch.long, device=device)

    for length in range(1, config.max_length + 1):
        live, width = score_BK.shape
        total_BKV = score_BK[:, :, None] + log_probs(logits_NV, banned).view(live, width, -1)
        V = total_BKV.shape[-1]
        score, flat = total_BKV.view(live, -1).topk(min(2 * K, width * V))
        beam, token = flat // V, flat % V

        prefix = prefix_BKT.gather(1, beam[:, :, None].expand(-1, -1, prefix_BKT.shape[2]))
        prefix = torch.cat([prefix, token[:, :, None]], dim=2)
        ended = token == eos_id

        # The best hypothesis that ends here, an image.
        complete = ended[:, :K] if length < config.max_length else torch.ones_like(ended[:, :K])
        final = (score[:, :K] / length**penalty).masked_fill(~complete, float("-inf"))
        final_score, final_row = final.max(dim=1)
        final_tokens = prefix[torch.arange(live, device=device), final_row]
        images, scores = image_B.tolist(), final_score.tolist()
        for row, (image, value) in enumerate(zip(images, scores, strict=True)):
            if value > best_score[image]:
                best_score[image], best_tokens[image] = value, final_tokens[row].tolist()
        if length == config.max_length:
            break

        # The K best that go on; an ended one is pushed behind every living one.
        score = score.masked_fill(ended, float("-inf"))
        score_BK, best_BK = score.topk(min(K, score.shape[1]))
        beam, token = beam.gather(1, best_BK), token.gather(1, best_BK)
        prefix_BKT = prefix.gather(1, best_BK[:, :, None].expand(-1, -1, prefix.shape[2]))

        bound = (score_BK[:, 0] / config.max_length**penalty).tolist()
        keep = [row for row, image in enumerate(images) if bound[row] > best_score[image]]
        if not keep:
            break
        kept = torch.tensor(keep, device=device)
        source = (kept[:, None] * width + beam[kept]).flatten()  # rows of the state that go on
        if len(keep) < live:
            image_B, score_BK, token, prefix_BKT = (part[kept] for part in (image_B, score_BK, token, prefix_BKT))
            memory = select(memory, kept)
        logits_NV, state = model.step(token.reshape(-1, 1), memory, select(state, source))
    return [_without_end(tokens, eos_id) for tokens in best_tokens]


def _nucleus(
    model: StepModel,
    memory: tuple,
    tokens_B1: Tensor,
    config: DecodeConfig,
    eos_id: int,
    banned: Tensor,
    generator: torch.Generator,
) -> list[list[int]]:
    """Samples from the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    B, device = tokens_B1.shape[0], tokens_B1.device
    out: list[list[int]] = [[] for _ in range(B)]
    image_B = torch.arange(B, device=device)
    state = None
    for _ in range(config.max_length):
        logits_NV, state = model.step(tokens_B1, memory, state)
        p_NV = nucleus_probabilities(log_probs(logits_NV / config.temperature, banned).exp(), top_p=config.top_p)
        token = torch.multinomial(p_NV, 1, generator=generator)
        for image, value in zip(image_B.tolist(), token[:, 0].tolist(), strict=True):
            out[image].append(value)
        kept = (token[:, 0] != eos_id).nonzero()[:, 0]
        if not len(kept):
            break
        tokens_B1 = token[kept]
        if len(kept) < len(image_B):
            image_B, memory, state = image_B[kept], select(memory, kept), select(state, kept)
    return [_without_end(tokens, eos_id) for tokens in out]


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


def _without_end(tokens: list[int], eos_id: int) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] == eos_id else tokens
