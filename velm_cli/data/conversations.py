"""A conversation as a store keeps it: who says what in turn, with the places of its images, in one canonical form.

An example of task=chat is what an assistant is to say next: its source is the conversation before that as JSON, its
target the reply. The JSON is that of the messages which chat templates take, so other programs read it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
PLACE = "<image>"  # how an image is shown in a conversation that is printed
_BEGINS = '[{"role":"'
# What has no place in a text: see `readers/assemble.py`. Line breaks and tabs stay.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\u200b]")
_LINE_ENDS = re.compile("\r\n?|\x85|\u2028|\u2029")


class Message(NamedTuple):
    """One turn: texts, and the numbers of the example's images where these stand, in their order."""

    role: str
    parts: tuple[str | int, ...]

    @property
    def text(self) -> str:
        """Its texts alone."""
        return "".join(part for part in self.parts if isinstance(part, str))


def clean(text: str) -> str:
    """A text without what cannot be printed; its lines end with \\n. Blanks at its ends stay."""
    return _UNPRINTABLE.sub(" ", _LINE_ENDS.sub("\n", text))


def dumped(messages: Iterable[Message]) -> str:
    """The canonical JSON of messages whose texts are `clean`."""
    listed = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
                for part in message.parts
            ],
        }
        for message in messages
    ]
    return json.dumps(listed, ensure_ascii=False, separators=(",", ":"))


def is_conversation(text: str | None) -> bool:
    """Whether a source is one that `dumped` has written."""
    return text is not None and text.startswith(_BEGINS)


def parsed(text: str) -> list[Message]:
    """The messages of what `dumped` has written. ValueError for anything else."""
    try:
        return [
            Message(turn["role"], tuple(part["text"] if part["type"] == "text" else part["image"] for part in content))
            for turn in json.loads(text)
            for content in [turn["content"]]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a conversation: {error}") from None


def words_of(text: str) -> str:
    """The words of a source, for vocabularies: of a conversation what is said, without JSON around it."""
    if not is_conversation(text):
        return text
    said: list[str] = []
    for message in parsed(text):
        said += (message.role, message.text)
    return " ".join(said)


def shown(messages: Sequence[Message]) -> str:
    """A conversation to look at, a turn a line: `user: <image> what is it`."""
    lines = []
    for message in messages:
        parts = (part.strip() if isinstance(part, str) else PLACE for part in message.parts)
        lines.append(f"{message.role}: {' '.join(part for part in parts if part)}")
    return "\n".join(lines)
