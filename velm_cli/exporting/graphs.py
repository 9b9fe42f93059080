"""A model as graphs without Python: an image encoder, the first step of a caption and each further one.

    encoder  image [B, 3, S, S], float32 in 0..1           -> memory: what decoding needs of the images
    start    tokens [B, T] (BOS, or with a prompt), memory -> logits [B, V] of the next token, state (recurrent: T = 1)
    step     token [B, 1], memory, state                   -> logits [B, V], state with one position more

For comparing images with texts: `image_embedding` (image -> unit vectors [B, E]) and `text_embedding` (tokens [N, T]
and lengths [N], EOS not counted -> [N, E]). B, T and N are dynamic. `largest_difference` compares with the model.

velm's own decoding writes new positions into memory that it has; a graph makes new tensors, so its past is `Growing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from velm_cli.errors import UserError
from velm_cli.inference.abilities import Able
from velm_cli.models.state import KeyValue, Past
from velm_cli.models.text.scratch import RecurrentText

IMAGES, TOKENS = 3, 4  # of the examples that graphs are traced with: no size may be 0 or 1
LONGEST = 512  # positions that a graph takes, where the model itself has no limit


@dataclass(frozen=True)
class Graph:
    """A module, inputs to trace it with, which of their sizes are dynamic, and names for inputs and outputs."""

    module: nn.Module
    inputs: tuple[Any, ...]
    dynamic: tuple[Any, ...]
    names: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))


class Growing:
    """A past as `models.state.Past` is used by the text encoders, of one text an image, by new tensors alone."""

    def __init__(self, rooms: Sequence[KeyValue], new: int = 0) -> None:
        self.rooms = list(rooms)
        self.images = self.rooms[0].keys.shape[0]
        self.slots = self.rooms[0].keys.shape[2] + new

    def grown(self, texts: int, positions: int = 1) -> Growing:
        return Growing(self.rooms, positions)

    def layers(self) -> Iterator[GrowingLayer]:
        return (GrowingLayer(self, number) for number in range(len(self.rooms)))

    def longest(self, texts: int) -> int:
        return self.slots

    def visible(self, positions: int) -> Tensor | None:
        """None: one position sees all before it."""
        assert positions == 1
        return None


class GrowingLayer:
    def __init__(self, past: Growing, number: int) -> None:
        self.past, self.number = past, number

    def write(self, key: Tensor, value: Tensor) -> KeyValue:
        before = self.past.rooms[self.number]
        now = KeyValue(torch.cat([before.keys, key], dim=2), torch.cat([before.values, value], dim=2))
        self.past.rooms[self.number] = now
        return now

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.write(key, value)
        return F.scaled_dot_product_attention(query, keys, values)


def flat(nested: Any) -> list[Tensor]:
    """The tensors of a nested memory or state, in their order."""
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, (Past, Growing)):
        stop = nested.slots
        return [part[:, :, :stop] if isinstance(nested, Past) else part for room in nested.rooms for part in room]
    return [] if nested is None else [tensor for part in nested for tensor in flat(part)]


def nested(outline: Any, tensors: Iterator[Tensor]) -> Any:
    """The tensors nested as `outline` is, with `Growing` pasts."""
    if isinstance(outline, Tensor):
        return next(tensors)
    if isinstance(outline, (Past, Growing)):
        return Growing([KeyValue(next(tensors), next(tensors)) for _ in outline.rooms])
    if outline is None:
        return None
    parts = [nested(part, tensors) for part in outline]
    return outline._make(parts) if hasattr(outline, "_make") else tuple(parts)


class Encoder(nn.Module):
    def __init__(self, learner: Any, finish: Callable[[Any], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.finish = learner.model, finish
        for name, colours in (("mean", learner.pixels.mean), ("std", learner.pixels.std)):
            self.register_buffer(name, torch.tensor(colours).view(1, 3, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        return self.finish(self.model.encode_image((image_BCHW - self.mean) / self.std))


class Start(nn.Module):
    def __init__(self, model: nn.Module, memory: Any) -> None:
        super().__init__()
        self.model, self.outline = model, memory

    def forward(self, tokens_NT: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits_NV, state = self.model.step(tokens_NT, nested(self.outline, iter(memory)), None)  # type: ignore
        return logits_NV, tuple(flat(state))


class Step(nn.Module):
    def __init__(self, model: nn.Module, memory: Any, state: Any) -> None:
        super().__init__()
        self.model, self.outlines = model, (memory, state)

    def forward(
        self, token_N1: Tensor, memory: tuple[Tensor, ...], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        of_images, before = (nested(o, iter(t)) for o, t in zip(self.outlines, (memory, state), strict=True))
        logits_NV, after = self.model.step(token_N1, of_images, before)  # type: ignore[operator]
        return logits_NV, tuple(flat(after))


class TextEmbedding(nn.Module):
    def __init__(self, learner: Any) -> None:
        super().__init__()
        self.model, self.space = learner.model, learner.joint_loss

    def forward(self, tokens_NT: Tensor, lengths_N: Tensor) -> Tensor:
        states_NTD, _ = self.model.text(tokens_NT, lengths_N=lengths_N)
        return self.space.embed_texts(self.space.pool_texts(states_NTD, lengths_N))


@torch.no_grad()
def graphs_of(able: Able) -> dict[str, Graph]:
    """By name; for captions, else for embeddings. UserError for models of other tasks."""
    learner: Any = able.learner
    model = learner.model
    if model.vision is None or not set(able.can) & {"caption", "retrieve"}:
        raise UserError(
            "format=onnx and format=torch_export are for models that caption or embed images; this one can do: "
            f"{', '.join(able.can)}"
        )
    if getattr(learner, "prompts", False):
        raise UserError("format=onnx and format=torch_export: a graph begins with BOS, and this run with task.prompt")
    for parameter in learner.parameters():
        parameter.requires_grad_(False)
    model._parts = lambda image_BCHW: [image_BCHW]  # a graph takes all images at once
    size, vocabulary = model.image_size, len(model.output_bias)
    image = torch.rand(IMAGES, 3, size, size)
    tokens = torch.randint(vocabulary, (IMAGES, TOKENS))
    longest = getattr(model.text, "positions", None) or LONGEST
    batch = Dim("batch", min=1)
    if "caption" not in able.can:
        space, texts = learner.joint_loss, Dim("texts", min=1)
        encoder = Encoder(learner, lambda features: (space.embed_images(space.pool_images(features)),))
        lengths, length = torch.arange(1, IMAGES + 1), Dim("tokens", min=1, max=longest)
        return {
            "image_embedding": Graph(encoder, (image,), ({0: batch},), (["image"], ["embedding"])),
            "text_embedding": Graph(
                TextEmbedding(learner), (tokens, lengths), ({0: texts, 1: length}, {0: texts}),
                (["tokens", "lengths"], ["embedding"]),
            ),
        }  # fmt: skip
    encoder = Encoder(learner, lambda features: tuple(flat(model.memory(features))))
    memory = model.memory(model.encode_image(image))
    parts = tuple(encoder(image))
    recurrent = isinstance(model.text, RecurrentText)  # torch unrolls it: a prompt is then read step by step
    first = tokens[:, :1] if recurrent else tokens
    _, state = model.step(first, memory, None)
    _, longer = model.step(torch.cat([tokens, tokens[:, :1]], dim=1), memory, None)
    before = tuple(flat(state))
    prefix = max((a.shape[2] for a in before if a.dim() == 4), default=TOKENS) - TOKENS  # positions of the image
    past, length = Dim("past", min=1, max=longest - 1), Dim("tokens", min=1, max=longest - prefix)
    of_memory = tuple({0: batch} for _ in parts)
    of_state = tuple(
        {0: batch, **{d: past for d in range(1, a.dim()) if a.shape[d] != b.shape[d]}}
        for a, b in zip(before, flat(longer), strict=True)
    )
    named = [f"memory_{i}" for i in range(len(parts))], [f"state_{i}" for i in range(len(before))]
    after = ["logits", *(f"{name}_after" for name in named[1])]
    return {
        "encoder": Graph(encoder, (image,), ({0: batch},), (["image"], named[0])),
        "start": Graph(
            Start(model, memory), (first, parts), ({0: batch} if recurrent else {0: batch, 1: length}, of_memory),
            (["tokens", *named[0]], ["logits", *named[1]]),
        ),
        "step": Graph(
            Step(model, memory, state), (tokens[:, :1], parts, before), ({0: batch}, of_memory, of_state),
            (["token", *named[0], *named[1]], after),
        ),
    }  # fmt: skip


def traced(name: str, graph: Graph) -> Any:
    """The ExportedProgram. UserError where torch cannot make one of it."""
    try:
        with torch.no_grad():
            return torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.dynamic, strict=False)
    except Exception as error:  # torch raises many kinds, each about a line of its own code
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"torch.export cannot make a graph of this model's {name}: {line[:200]}") from error


# What runs a graph: flat tensors in, flat tensors out.
Run = Callable[[Sequence[Tensor]], list[Tensor]]


@torch.no_grad()
def largest_difference(graphs: dict[str, Graph], runs: dict[str, Run], *, seed: int = 0, steps: int = 6) -> float:
    """Of logits (embeddings), between the model and the graphs, on random images in batches of 1, 2 and 5."""
    generator = torch.Generator().manual_seed(seed)
    largest, mine, theirs = 0.0, [], []
    for images in (1, 2, 5):
        for graph, run in ((graphs[name], runs[name]) for name in graphs if name in ("encoder", "image_embedding")):
            image = torch.rand(images, *graph.inputs[0].shape[1:], generator=generator)
            mine, theirs = list(graph.module(image)), run([image])
            largest = max(largest, _apart(mine, theirs))
        if "text_embedding" in graphs:
            graph, lengths = graphs["text_embedding"], torch.full((images,), 2)
            tokens = graph.inputs[0][:1, :3].expand(images, -1).contiguous()
            both = [graph.module(tokens, lengths)], runs["text_embedding"]([tokens, lengths])
            largest = max(largest, _apart(*both))
        if "start" not in graphs:
            continue
        first, start, step = [mine, theirs], graphs["start"].module, graphs["step"].module
        token = torch.ones(images, 1, dtype=torch.long)
        (logits, state), (other, *their_state) = start(token, tuple(first[0])), runs["start"]([token, *first[1]])
        largest = max(largest, _apart([logits], [other]))
        for _ in range(steps):
            token = logits.argmax(dim=-1, keepdim=True)
            logits, state = step(token, tuple(first[0]), tuple(state))
            other, *their_state = runs["step"]([token, *first[1], *their_state])
            largest = max(largest, _apart([logits], [other]))
    return largest


def _apart(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    assert [tuple(t.shape) for t in mine] == [tuple(t.shape) for t in theirs]
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(mine, theirs, strict=True))


def greedy(
    runs: dict[str, Run], image_BCHW: Tensor, *, bos: int, eos: int, banned: Sequence[int], max_length: int
) -> list[list[int]]:
    """Tokens of a caption of each image by the graphs alone, the likeliest token at each step."""
    memory = runs["encoder"]([image_BCHW])
    token = torch.full((len(image_BCHW), 1), bos)
    logits, *state = runs["start"]([token, *memory])
    written: list[list[int]] = [[] for _ in image_BCHW]
    live = [True] * len(written)
    for _ in range(max_length):
        logits[:, list(banned)] = -torch.inf
        token = logits.argmax(dim=-1, keepdim=True)
        for row, word in enumerate(token[:, 0].tolist()):
            live[row] = live[row] and word != eos
            if live[row]:
                written[row].append(word)
        if not any(live):
            break
        logits, *state = runs["step"]([token, *memory, *state])
    return written
