"""From images to token sequences: greedy, beam and nucleus decoding with a key/value cache.

The image's part of the work (`memory`) exists once an image and is shared by its beams. Images whose captions have
ended leave the batch, the last ones take their places, and other images enter. The device is asked once a step who
goes on.

Shapes: B images (live ones, in any order), K beams, N = B * K sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from velm_cli.models.search import Draws, Search, log_probs, search_of
from velm_cli.models.state import Memory, Rows, alike, images_of, joined, select
from velm_cli.models.velm import VelmModel
from velm_cli.schema import DecodeConfig


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


@contextmanager
def converted_once(model: VelmModel) -> Iterator[None]:
    """Within it autocast converts a weight once, and not for every word.

    It keeps what it made of weights that learn, outside of torch's inference mode: here all are said to. Training
    through frozen weights keeps as much.
    """
    frozen = [each for each in model.parameters() if each.is_floating_point() and not each.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def decoded_together(examples: int, batch_size: int) -> int:
    """How many of so many examples are decoded in one stream: what is written of one may depend on the others there.

    At least 16 groups where there are so many batches, each 16 batches at most, since then hardly any place is ever
    free. Whoever groups alike gets the same words, to the last rounding.
    """
    batches = -(-examples // batch_size)
    return batch_size * min(16, max(1, batches // 16))


def decode_stream(
    model: StepModel,
    memories: Iterable[tuple[tuple, int]],
    *,
    config: DecodeConfig,
    bos_id: int,
    eos_id: int,
    banned: Sequence[int] = (),
    device: torch.device | str = "cpu",
    draws: Draws | None = None,
    prompt: Sequence[int] = (),
) -> Iterator[tuple[int, list[int]]]:
    """(number of the image, its tokens) as captions end: without BOS and EOS, at most `config.max_length` with EOS.

    Each caption goes on from the tokens of `prompt`, which are neither returned nor scored.

    `memories`: what `model.memory_for(features, config)` gave, and of how many images. So many images as the first has
    are decoded together: where captions have ended, images of the next take their places (see `_open`), and only then
    the next is asked for. `banned` tokens (padding, BOS, unknown) are never produced. `draws` is needed by nucleus
    sampling only: with the same numbers an image gets the same caption, whatever it is decoded together with.
    """
    search = search_of(config, eos_id, torch.tensor(list(banned), dtype=torch.long, device=device), draws)
    coming: Iterator[tuple[tuple, int] | None] = chain(memories, repeat(None))
    begun = places = 0
    live = waiting = None  # images that are decoded together, images that have begun and wait for a place
    while True:
        is_open = live is None or _open(live, places)
        if waiting is None and is_open and (found := next(coming)) is not None:
            memory, images = found
            waiting = _Live.of(
                search.begin(range(begun, begun + images), bos_id, device), memory, begun, prompt, device
            )
            begun, places = begun + images, places or images
            yield from waiting.step(model, search)
            waiting = waiting if waiting.images else None
        elif live is None and waiting is None:
            return
        elif live is None:
            live, waiting = waiting, None
        else:
            if waiting is not None and is_open and live.alike(waiting):
                waiting = live.join(waiting, places - live.images, config.max_length)
            yield from live.step(model, search)
            live = live if live.images else None


def _open(live: _Live, places: int) -> bool:
    """Whether it is time for others to enter.

    A step takes a GPU the same time however many texts there are, so places that are free are lost. A CPU's time goes
    by the texts: it gains little (1.02 x), and with beams it loses (0.94 x), since attention then passes over the slots
    of as many steps as the oldest text has.
    """
    if live.image_B.device.type == "cpu" and live.texts.token_BK.shape[1] > 1:
        return False
    return live.images <= 7 * places // 8


class _Live:
    """Images that are decoded together: which, their texts, and what the model knows of both."""

    def __init__(self, image_B: Tensor, texts: Any, memory: Memory, state: Any, prompt: Sequence[int] = ()) -> None:
        """`prompt`: tokens that are read right after BOS, where there is no state yet."""
        self.image_B, self.texts, self.memory, self.state, self.prompt = image_B, texts, memory, state, prompt

    @staticmethod
    @torch.no_grad()
    def of(texts: Any, memory: tuple, first: int, prompt: Sequence[int], device: torch.device | str) -> _Live:
        """Images number `first` and so on, at their beginning."""
        images = len(texts.token_BK)
        return _Live(torch.arange(first, first + images, device=device), texts, Memory(memory, images), None, prompt)

    @property
    def images(self) -> int:
        return len(self.image_B)

    @torch.no_grad()
    def step(self, model: StepModel, search: Search) -> list[tuple[int, list[int]]]:
        """One more token; the captions that have ended with it, whose images leave."""
        token_NT = self.texts.token_BK.reshape(-1, 1)
        if self.state is None and self.prompt:
            prompt_NP = torch.tensor([self.prompt], device=token_NT.device).expand(len(token_NT), -1)
            token_NT = torch.cat([token_NT, prompt_NP], dim=1)
        logits_NV, state = model.step(token_NT, self.memory.nested(), self.state)
        texts, source_BK, goes_on_B = search.advance(self.texts, logits_NV)
        goes_on = goes_on_B.tolist()  # the one time in a step that the device is waited for
        if all(goes_on):
            self.texts, self.state = texts, state if source_BK is None else select(state, Rows(source_BK))
            return []
        ended = list(zip(self.image_B[~goes_on_B].tolist(), texts.text_BT[~goes_on_B].tolist(), strict=True))
        kept_B, holes, movers = _places(goes_on, self.image_B.device)
        self.image_B, self.texts = self.image_B[kept_B], _each(texts, lambda part: part[kept_B])
        if any(goes_on):
            rows = Rows(kept_B[:, None] if source_BK is None else source_BK[kept_B], holes, movers)
            self.memory.move(rows)
            self.state = select(state, rows)
        return [(image, search.words(row)) for image, row in ended]

    def alike(self, other: _Live) -> bool:
        """Whether the other's images can join."""
        return alike(self.texts, other.texts) and alike(self.state, other.state) and self.memory.alike(other.memory)

    @torch.no_grad()
    def join(self, other: _Live, most: int, positions: int) -> _Live | None:
        """Take the first images of one that has just begun, at most so many; what is left of it."""
        taken = other._part(0, min(most, other.images))
        self.image_B = torch.cat([self.image_B, taken.image_B])
        self.texts = type(self.texts)(*map(torch.cat, zip(self.texts, taken.texts, strict=True)))
        self.state = joined(self.state, taken.state, positions)
        self.memory.join(taken.memory)
        return other._part(most, other.images) if most < other.images else None

    def _part(self, start: int, stop: int) -> _Live:
        return _Live(
            self.image_B[start:stop],
            _each(self.texts, lambda part: part[start:stop]),
            self.memory.images_of(start, stop),
            images_of(self.state, start, stop, self.texts.token_BK.shape[1]),
        )


def _each(texts: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return type(texts)(*map(change, texts))


def _places(goes_on: Sequence[bool], device: torch.device) -> tuple[Tensor, ...]:
    """The images that go on, as they now stand, and the `holes` and `movers` of `Rows`."""
    live = sum(goes_on)
    holes = [place for place in range(live) if not goes_on[place]]
    movers = [place for place in range(live, len(goes_on)) if goes_on[place]]
    kept = list(range(live))
    for hole, mover in zip(holes, movers, strict=True):
        kept[hole] = mover
    return tuple(torch.tensor(places, dtype=torch.long, device=device) for places in (kept, holes, movers))


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
    elif nested is not None:
        for part in nested:
            yield from _tensors(part)
