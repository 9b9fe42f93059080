"""The forms in which instruction data is handed around, each row turned into one conversation.

LLaVA: {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nwhat is it?"}, {"from": "gpt", ...}]}.
The Cauldron and FineVision: {"images": [...], "texts": [{"user": ..., "assistant": ...}]}. Messages, as chat templates
take them: {"messages": [{"role": "user", "content": "..." or [{"type": "image"}, {"type": "text", "text": "..."}]}]}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from velm_cli.data.conversations import ASSISTANT, SYSTEM, USER, Message, clean
from velm_cli.data.readers.cells import plain_path

TURNS = ("conversations", "messages", "conversation", "texts")  # keys of the turns, in the order of preference
IMAGES = ("images", "image")
ROLES = {
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "system": SYSTEM,
}
MOST_TURNS = 10_000
_PLACE = re.compile(r"\n*<image>\n*")  # a line break that parts image and text is left out
_OWN = ("image", "path", "url", "image_url")  # keys of a part that names its image itself


class Said(NamedTuple):
    """A conversation: what stands before the last reply, the reply (None: it is to be written), and its images.

    Part k of a message that is a number is image k of `images`, each of which is named once. `lost`: turns that no
    reply follows or that begin it without a question, which are left out.
    """

    before: tuple[Message, ...]
    reply: str | None
    images: tuple[str, ...]
    lost: int


def said_in(row: dict[str, Any], inside: str | None = None, *, replied: bool = True) -> Said:
    """The conversation of a row. ValueError, with the reason, for what is none.

    `inside`: what begins the path of an image that has no path since its content is in the row: its number is added.
    `replied`: turns behind the last reply are left out; else the conversation may end with a question.
    """
    images = _images(row, inside)
    messages, lost = _in_turn(list(_places(list(_turns(row)), images)))
    while replied and messages and messages[-1].role != ASSISTANT:
        del messages[-1]
        lost += 1
    if not messages:
        raise ValueError("no assistant turn")
    reply = None
    if messages[-1].role == ASSISTANT:
        *messages, last = messages
        if any(not isinstance(part, str) for part in last.parts):
            raise ValueError("an image stands in the last reply, and images are not written")
        reply = last.text.strip()
        if not reply:
            raise ValueError("the last reply is empty")
    if not any(message.role == USER for message in messages):
        raise ValueError("nobody is replied to: there is no user turn before the reply")
    if any(message.role == ASSISTANT and not message.text.strip() for message in messages):
        raise ValueError("an assistant's turn is empty")
    return _renumbered(messages, reply, images, lost)


# ------------------------------------------------------------------------------------------ turns


def _turns(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(role, content) of each turn, as they stand there."""
    key = next((key for key in TURNS if row.get(key) is not None), None)
    if key is None:
        raise ValueError(f"no conversations, messages or texts: the keys are {', '.join(map(str, row))[:80] or 'none'}")
    listed = row[key]
    if not isinstance(listed, list) or not listed or len(listed) > MOST_TURNS:
        raise ValueError(f'its "{key}" is no list of turns')
    for number, turn in enumerate(listed):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number + 1} is not an object")
        if "user" in turn or "assistant" in turn:  # the Cauldron's pairs
            for name in (SYSTEM, USER, ASSISTANT):
                if turn.get(name) is not None:
                    yield name, turn[name]
            continue
        given = turn.get("from", turn.get("role"))
        role = ROLES.get(given.strip().lower()) if isinstance(given, str) else None
        if role is None:
            raise ValueError(f"unknown role {str(given)[:40]!r} in turn {number + 1}: there are {', '.join(ROLES)}")
        yield role, turn.get("value", turn.get("content", turn.get("text")))


def _places(turns: list[tuple[str, Any]], images: list[str]) -> Iterator[Message]:
    """Messages whose images stand at their places: the first place has the first image, and so on.

    Where no turn has a place, all images stand before the first of the user's words.
    """
    found: list[tuple[str, list[str | int]]] = []
    named = places = 0
    for number, (role, content) in enumerate(turns, start=1):
        parts: list[str | int] = []
        for part in _parts(content, number):
            if isinstance(part, str):
                parts.append(part)
                continue
            if part is None:
                parts.append(places)
                places += 1
            else:
                parts.append(-1 - named)
                named += 1
                images.append(part.path)
        found.append((role, parts))
    given = len(images) - named
    if places != given:
        if places:
            raise ValueError(f"{given} images, and {places} places for them")
        first = next((parts for role, parts in found if role == USER), None)
        if first is None:
            raise ValueError("images, and no user turn to stand in")
        first[:0] = range(given)
    for role, parts in found:
        yield Message(role, _tidy([given - 1 - part if isinstance(part, int) and part < 0 else part for part in parts]))


class _Own(NamedTuple):
    path: str


def _parts(content: Any, turn: int) -> Iterator[str | _Own | None]:
    """Texts, images that a part names, and None for the place of one that the row names."""
    if isinstance(content, str):
        for number, text in enumerate(_PLACE.split(clean(content))):
            if number:
                yield None
            yield text
        return
    if not isinstance(content, list):
        raise ValueError(f"turn {turn} is not text: {str(content)[:40]}")
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield from _parts(part["text"], turn)
        elif kind in ("image", "image_url"):
            own = next((part[key] for key in _OWN if part.get(key) is not None), None)
            own = own.get("url") if isinstance(own, dict) else own
            if own is None:
                yield None
            elif isinstance(own, str):
                yield _Own(_path(own))
            else:
                raise ValueError(f"an image of turn {turn} is no path")
        else:
            raise ValueError(f"turn {turn} has a part that is neither text nor image: {str(kind)[:40]}")


def _tidy(parts: list[str | int]) -> tuple[str | int, ...]:
    """Without blanks at the ends of the message, and without empty texts."""
    while parts and isinstance(parts[0], str) and not parts[0].strip():
        del parts[0]
    while parts and isinstance(parts[-1], str) and not parts[-1].strip():
        del parts[-1]
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return tuple(part for part in parts if part != "")


def _in_turn(messages: list[Message]) -> tuple[list[Message], int]:
    """Turns of one role side by side made one, without those that no reply follows; how many were left out."""
    joined: list[Message] = []
    lost = 0
    for message in messages:
        if message.role == SYSTEM and any(each.role != SYSTEM for each in joined):
            raise ValueError("a system turn stands behind others")
        if not message.parts and message.role == SYSTEM:
            continue
        if message.role == ASSISTANT and not any(each.role == USER for each in joined):
            lost += 1
            continue
        if not message.parts and message.role == USER:
            raise ValueError("a user's turn is empty")
        if joined and joined[-1].role == message.role:
            between = ("\n",) if joined[-1].parts and message.parts else ()
            joined[-1] = Message(message.role, joined[-1].parts + between + message.parts)
        else:
            joined.append(message)
    return joined, lost


# ------------------------------------------------------------------------------------------ images


def _images(row: dict[str, Any], inside: str | None) -> list[str]:
    key = next((key for key in IMAGES if row.get(key) not in (None, "", [])), None)
    if key is None:
        return []
    given = row[key]
    found = []
    for number, image in enumerate(given if isinstance(given, list) else [given]):
        if isinstance(image, dict):  # as `datasets` writes it
            has_content = "bytes" in image and inside is not None
            image = image.get("path") or image.get("file_name") if not has_content else f"{inside}{number}"
            if has_content:
                found.append(str(image))
                continue
        if not isinstance(image, str) or not image.strip():
            raise ValueError(f'"{key}" holds no paths: images inside a file are read from parquet alone')
        found.append(_path(image))
    return found


def _path(text: str) -> str:
    if text.startswith("data:"):
        raise ValueError("the image is inside the text (data:), not a file: write it to one")
    return plain_path(text)


def _renumbered(messages: list[Message], reply: str | None, images: list[str], lost: int) -> Said:
    """With images numbered by their first place; of a file that stands in several places each has its number."""
    number: dict[str, int] = {}
    for message in messages:
        for part in message.parts:
            if not isinstance(part, str):
                number.setdefault(images[part], len(number))
    before = tuple(
        Message(role, tuple(part if isinstance(part, str) else number[images[part]] for part in parts))
        for role, parts in messages
    )
    return Said(before, reply, tuple(number), lost)
