"""Conversations with a model that has learned task=chat: messages and images in, its next reply out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from velm_cli.data.batch import Columns
from velm_cli.data.chat_template import ChatFormat
from velm_cli.data.conversations import USER, Message, clean
from velm_cli.data.loader import eval_batches
from velm_cli.data.processes import available_cores
from velm_cli.data.readers.chat_forms import said_in
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.inference.arguments import decoding, is_one, several, text_of
from velm_cli.inference.loaded import Loaded
from velm_cli.inference.pictures import Picture
from velm_cli.schema import DecodeConfig
from velm_cli.tasks.interface import Session

MAX_LENGTH = 256  # tokens of a reply


class Talked:
    """Conversations in memory, as a store has them: conversation i shows the images number `images_of_talk[i]`."""

    has_images = one_image_each = False

    def __init__(self, jpegs: Sequence[bytes], images_of_talk: Sequence[Sequence[int]]) -> None:
        self._jpegs, self._shown = jpegs, images_of_talk
        self.has_images = bool(jpegs)

    def example_id(self, i: int) -> int:
        return i

    def image_name(self, x: int) -> int:
        return x

    def image_bytes(self, x: int) -> bytes:
        return self._jpegs[x]

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shown = [self._shown[i] for i in examples.tolist()]
        images = list(dict.fromkeys(image for own in shown for image in own))
        image_of_BI = np.full((len(shown), max(map(len, shown), default=0)), -1, np.int64)
        for row, own in enumerate(shown):
            image_of_BI[row, : len(own)] = [images.index(image) for image in own]
        return np.array(images, np.int64), image_of_BI

    def source(self, i: int) -> None:
        return None

    def targets(self, i: int) -> list[str]:
        return []

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        return np.zeros((len(examples), 2), np.int64)


class Prompts:
    """Conversations that are to be replied to, as tokens. UserError for one that the chat template refuses."""

    def __init__(self, talks: Sequence[Sequence[Message]], tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids: list[np.ndarray] = []
        for found in ChatFormat(tokenizer).encode((talk, None) for talk in talks):
            if isinstance(found, str):
                raise UserError(f"messages: {found}")
            self._ids.append(np.array(found.ids, np.int64))

    def lengths(self, examples: np.ndarray) -> np.ndarray:
        return np.array([len(self._ids[i]) for i in examples.tolist()], np.int64)

    def learnable(self, examples: np.ndarray) -> np.ndarray:
        return np.zeros(len(examples), bool)

    def to_learn(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self._ids[example]
        return ids, np.zeros(len(ids), bool)

    def to_continue(self, example: int) -> np.ndarray:
        return self._ids[example]


class Chats:
    """What a `Model` does that has learned task=chat."""

    @property
    def answers_by(self) -> str:
        """The task by which it answers questions: vqa, unless it has learned to reply alone."""
        able = cast(Loaded, self)._able
        return "chat" if "chat" in able.tasks and "vqa" not in able.tasks else "vqa"

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        images: Picture | Sequence[Picture] | None = None,
        *,
        beams: int = 1,
        max_length: int = MAX_LENGTH,
        length_penalty: float = 1.0,
    ) -> str:
        """The reply to a conversation: the user's words, or messages `{"role": "user", "content": ...}` of which the
        last one is the user's. Content is a text in which each `<image>` is the place of an image, or a list of parts
        as chat templates take it; without any place the images stand before the user's first words."""
        model = cast(Loaded, self)
        model.needs("chat")
        how = decoding(beams=beams, max_length=max_length, length_penalty=length_penalty, batch_size=1)
        given: Iterable[Any] = () if images is None else [images] if is_one(images) else several(images)
        jpegs = [model.stored(each) for each in given]
        if jpegs and model._able.learner.pixels is None:
            raise UserError("images: this model has learned without images (vision=none)")
        talk = _messages(messages, len(jpegs))
        shown = sorted({part for message in talk for part in message.parts if isinstance(part, int)})
        return replies(model, [talk], jpegs, [shown], how)[0]


def replies(
    model: Loaded,
    talks: Sequence[Sequence[Message]],
    jpegs: Sequence[bytes],
    images_of_talk: Sequence[Sequence[int]],
    how: DecodeConfig,
) -> list[str]:
    """A reply to each conversation, whose image k is `jpegs[images_of_talk[i][k]]`."""
    able = model._able
    given, session = Talked(jpegs, images_of_talk), Session(model.device)
    columns = Columns(talks=Prompts(talks, able.tokenizer), prompts=True)
    batches = eval_batches(
        given,
        columns,
        np.arange(len(talks)),
        batch_size=how.batch_size,
        pixels=able.learner.pixels,
        workers=available_cores() if len(jpegs) > 1 else 0,
    )
    with model._steps(len(talks) > how.batch_size), model._autocast():
        found = dict(able.tasks["chat"].predict(able.learner, batches, able.spaces, able.tokenizer, how, session))
    return [found[number] for number in range(len(talks))]


def as_talks(questions: Sequence[str]) -> list[list[Message]]:
    """Each question about one image, as a conversation."""
    return [[Message(USER, (0, clean(question).strip()))] for question in questions]


def _messages(messages: str | Sequence[Mapping[str, Any]], images: int) -> list[Message]:
    listed: Any = [{"role": USER, "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(listed, Sequence) or not all(isinstance(message, Mapping) for message in listed):
        raise UserError('messages: give a text, or a list of {"role": "user", "content": ...}')
    for message in listed:
        if isinstance(message.get("content"), str):
            text_of("messages", message["content"])
    names = [f"image-{number}" for number in range(images)]
    try:
        said = said_in({"messages": [dict(message) for message in listed], "images": names}, replied=False)
    except ValueError as error:
        raise UserError(f"messages: {error}") from None
    if said.reply is not None:
        raise UserError("messages: the last one is the assistant's: there is nothing to reply to")
    if any(name not in names for name in said.images):
        raise UserError("messages: an image stands in a message: give it with images=, and <image> in its place")
    number = [names.index(name) for name in said.images]
    return [
        Message(role, tuple(part if isinstance(part, str) else number[part] for part in parts))
        for role, parts in said.before
    ]
