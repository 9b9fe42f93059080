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

from velm_cli.models.allowed import AllowedTexts
from velm_cli.models.memories import Memory
from velm_cli.models.search import Draws, Search, log_probs, search_of
from velm_cli.models.state import Rows, alike, bounded, gathered, images_of, joined, select
from velm_cli.models.velm import VelmModel
from velm_cli.schema import DecodeConfig

Given = tuple[tuple, int] | tuple[tuple, int, Sequence[Sequence[int]]]  # a memory, its images, their prompts
First = tuple[Tensor, tuple[Tensor, ...]]  # BOS and prompt of each text, and, with padding, the place of its last token

PROMPTS_MULTIPLE = 8  # positions: batches whose prompts are nearly as long are then decoded together


class StepModel(Protocol):
    """What decoding needs of a model: see `VelmModel.step`. One that `hides_padding` also takes `last_N`."""

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


def decode_stream(model: StepModel, memories: Iterable[Given], **options: Any) -> Iterator[tuple[int, list[int]]]:
    """`decode_several`, of each image the best or first text alone."""
    return ((image, texts[0]) for image, texts in decode_several(model, memories, **options))


def decode_several(
    model: StepModel,
    memories: Iterable[Given],
    *,
    config: DecodeConfig,
    bos_id: int,
    eos_id: int,
    banned: Sequence[int] = (),
    device: torch.device | str = "cpu",
    draws: Draws | None = None,
    prompt: Sequence[int] = (),
    stops: Sequence[int] = (),
    allowed: Sequence[Sequence[int]] | None = None,
    vocab_size: int = 0,
) -> Iterator[tuple[int, list[list[int]]]]:
    """(number of the image, its texts as tokens) as captions end: without BOS and EOS, at most `config.max_length`
    with EOS. An image has `config.samples` texts, and with beams fewer where there are no more; the best is first.

    Each caption goes on from the tokens of `prompt`, which are neither returned nor scored.

    `memories`: what `model.memory_for(features, config)` gave, of how many images, and prompts of the images' own, of
    any lengths, where they have some. What is read of image and prompt exists once, for all texts of an image. So many
    images as the largest batch has are decoded together: where captions have ended, images of the next take their
    places (see `_open`), and only then the next is asked for.

    `banned` tokens (padding, BOS, unknown) are never produced. `stops` end a text as `eos_id` does, such as a chat
    template's end of a turn. `allowed`: the tokens of all texts that may be written, of a vocabulary of `vocab_size`.
    `draws` is needed by nucleus sampling only: with the same numbers an image gets the same captions, whatever it is
    decoded together with.
    """
    listed = None if allowed is None else AllowedTexts(allowed, {eos_id, *stops}, vocab_size, device)
    never = torch.tensor([each for each in banned if each not in stops], dtype=torch.long, device=device)
    search = search_of(config, eos_id, never, draws, stops=stops, allowed=listed)
    hides = getattr(model, "hides_padding", False)
    coming: Iterator[_Live | None] = chain(_beginnings(memories, search, bos_id, prompt, hides, device), repeat(None))
    places = 0
    live = waiting = None  # images that are decoded together, images that have begun and wait for a place
    while True:
        is_open = live is None or _open(live, places)
        if waiting is None and is_open and (waiting := next(coming)) is not None:
            places = max(places, waiting.images)
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


def _beginnings(
    memories: Iterable[Given], search: Search, bos_id: int, prompt: Sequence[int], hides: bool, device: Any
) -> Iterator[_Live]:
    """The images of each batch before anything is read of them; where padding cannot be hidden (a recurrent net, a
    cache of transformers' own), in groups whose prompts are equally long."""
    begun = 0
    for memory, images, *given in memories:
        numbers = range(begun, begun + images)
        begun += images
        prompts = list(given[0]) if given else [prompt] * images
        longest = max(map(len, prompts))
        if hides and given:
            yield _Live.of(search, memory, numbers, prompts, -longest % PROMPTS_MULTIPLE + longest, bos_id, device)
            continue
        lengths = sorted(set(map(len, prompts)))
        if len(lengths) == 1:
            yield _Live.of(search, memory, numbers, prompts, longest, bos_id, device)
            continue
        for length in lengths:
            some = [image for image in range(images) if len(prompts[image]) == length]
            rows_B = torch.tensor(some, device=device)
            texts = [prompts[image] for image in some]
            of_some = gathered(memory, rows_B)
            yield _Live.of(search, of_some, [numbers[image] for image in some], texts, length, bos_id, device)


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

    def __init__(self, image_B: Tensor, texts: Any, memory: Memory, state: Any, first: First | None) -> None:
        """`first`: what is read at the beginning, where there is no state yet."""
        self.image_B, self.texts, self.memory, self.state, self.first = image_B, texts, memory, state, first

    @staticmethod
    @torch.no_grad()
    def of(
        search: Search,
        memory: tuple,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        longest: int,
        bos_id: int,
        device: torch.device | str,
    ) -> _Live:
        """Images of these numbers at their beginning: BOS, and their prompts padded to `longest` behind their ends."""
        lengths = [len(each) for each in prompts]
        rows = [[bos_id, *each, *[search.eos_id] * (longest - len(each))] for each in prompts]
        last = (torch.tensor(lengths, device=device),) if min(lengths) < longest else ()
        before = None
        if search.reads_prompt:
            before = torch.tensor([[*[-1] * (longest - len(each)), *each] for each in prompts], device=device)
            before = before.view(len(prompts), longest).long()
        texts = search.begin(numbers, bos_id, device, before)
        image_B = torch.tensor(list(numbers), device=device)
        return _Live(image_B, texts, Memory(memory, len(numbers)), None, (torch.tensor(rows, device=device), last))

    @property
    def images(self) -> int:
        return len(self.image_B)

    @torch.no_grad()
    def step(self, model: StepModel, search: Search) -> list[tuple[int, list[list[int]]]]:
        """One more token; the captions of the images that have ended with it, which leave."""
        memory = self.memory.nested()
        if self.first is None:
            logits_NV, state = model.step(self.texts.token_BK.reshape(-1, 1), memory, self.state)
        else:
            tokens_NT, last = self.first
            logits_NV, state = model.step(tokens_NT, memory, None, *last)
            state, self.first = bounded(state, search.config.max_length), None
        texts, source_BK, goes_on_B = search.advance(self.texts, logits_NV)
        goes_on = goes_on_B.tolist()  # the one time in a step that the device is waited for
        if all(goes_on):
            self.texts, self.state = texts, state if source_BK is None else select(state, Rows(source_BK))
            return []
        numbers = self.image_B[~goes_on_B].tolist()
        ended = list(zip(numbers, search.found(_each(texts, lambda part: part[~goes_on_B])), strict=True))
        kept_B, holes, movers = _places(goes_on, self.image_B.device)
        self.image_B, self.texts = self.image_B[kept_B], _each(texts, lambda part: part[kept_B])
        if any(goes_on):
            if source_BK is None:  # each text goes on from itself
                K = texts.token_BK.shape[1]
                source_BK = torch.arange(len(goes_on) * K, device=kept_B.device).view(-1, K)
            rows = Rows(source_BK[kept_B], holes, movers)
            self.memory.move(rows)
            self.state = select(state, rows)
        return ended

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
            None,
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
