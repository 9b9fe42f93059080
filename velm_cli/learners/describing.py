"""From batches to the texts that a model writes of their examples: memories, prompts, draws, and words again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from velm_cli.data.allowed import allowed_tokens, read_allowed
from velm_cli.data.batch import Batch
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.transfer import on_device
from velm_cli.models.decoding import Given, decode_several
from velm_cli.models.search import image_draws
from velm_cli.models.velm import VelmModel
from velm_cli.schema import DecodeConfig

SOURCE_MULTIPLE = 8  # positions: batches whose sources are nearly as long are then decoded together


def described(
    model: VelmModel,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    decoding: DecodeConfig,
    *,
    device: torch.device,
    seed: int = 0,
    prompt: str = "",
    source_is_prompt: bool = False,
    stops: Sequence[int] = (),
    allowed: Sequence[str] | None = None,
) -> Iterator[tuple[int | str, list[str]]]:
    """(id, its texts) of all examples of the batches, as they end; the best or first of an example's texts first.

    Each text begins with `prompt`, as the tokenizer writes it, or goes on from its example's source. `seed`: of drawn
    texts. `stops`: tokens that end a text as EOS does. `allowed`: the texts that may be written; None: those of
    `decoding.allowed`, if that is given. Raises UserError where that list cannot be used.
    """
    ids: list[int | str] = []
    (begun,) = tokenizer.encode_batch([prompt])
    if allowed is None and decoding.allowed is not None:
        allowed = read_allowed(decoding.allowed)
    listed = None
    if allowed is not None:
        listed = allowed_tokens(allowed, tokenizer, longest=decoding.max_length, prompt=prompt)

    def memories() -> Iterator[Given]:
        for batch in on_device(batches, device):
            ids.extend(batch.ids)
            source = (None, None) if source_is_prompt else (batch.source_BL, batch.source_lengths_B)
            with torch.no_grad():
                features = model.encode_image(batch.image_XCHW, batch.feature_XSD)
                context = model.context(features, batch.image_of_BI, *source, multiple=SOURCE_MULTIPLE)
                memory = model.memory_for(context, decoding)
            if source_is_prompt:
                yield memory, len(batch.ids), prompts_of(batch)
            else:
                yield memory, len(batch.ids)

    def draws(numbers: Sequence[int]) -> Tensor:
        names = [name for number in numbers for name in draw_names(ids[number], decoding.samples)]
        rows = image_draws(names, seed=seed, count=decoding.max_length)
        return torch.from_numpy(rows).to(device, torch.float32)

    found = decode_several(
        model,
        memories(),
        config=decoding,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        banned=tokenizer.never_written,
        device=device,
        draws=draws,
        prompt=begun,
        stops=stops,
        allowed=None if listed is None else list(listed),
        vocab_size=len(model.output_bias),
    )
    for number, written in found:
        yield ids[number], [_text(tokens, tokenizer, begun, listed, source_is_prompt) for tokens in written]


def _text(
    tokens: list[int],
    tokenizer: Tokenizer,
    begun: list[int],
    listed: dict[tuple[int, ...], str] | None,
    source_is_prompt: bool,
) -> str:
    if listed is not None and (text := listed.get(tuple(tokens))) is not None:
        return text
    text = tokenizer.decode([*begun, *tokens])
    return text.strip() if source_is_prompt else text  # behind a prompt the first word has a blank before it


def prompts_of(batch: Batch) -> list[list[int]]:
    """The words of each example's source: without BOS, EOS and padding."""
    assert batch.source_BL is not None and batch.source_lengths_B is not None
    rows = zip(batch.source_BL.tolist(), batch.source_lengths_B.tolist(), strict=True)
    return [row[1 : max(1, length - 1)] for row, length in rows]


def draw_names(example: int | str, samples: int) -> Iterable[int | str]:
    """By which the numbers are drawn that the texts of an example are drawn with."""
    return [example] if samples == 1 else [f"{example}-{sample}" for sample in range(samples)]
