"""Conversations to tokens by a chat template: which tokens an assistant's turns are, and where images stand.

Templates are Jinja code that comes with a checkpoint, so transformers renders them, in its sandbox, and only a
conversation whose texts are marks: what people said never meets the template. The marks are replaced by tokens
afterwards. So a text that spells out "<|im_end|>" ends no turn, no template can hide where a reply begins, and each
order of roles is rendered once. Templates that look at texts (to call tools) see none to look at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from velm_cli.data.conversations import ASSISTANT, USER, Message
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError

VERSION = 1
# For tokenizers without a template: ChatML in plain words, since their vocabularies have no tokens for turns.
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
DAY = "26 Jul 2024"  # of templates that write the date: the one that Llama's fall back to; a run has to have the same
_MARK = re.compile("\ue000(\\d+)\ue001")


class Encoded(NamedTuple):
    """A conversation as token ids. An id from the tokenizer's `vocab_size` on is the place of image id - vocab_size.

    `learned`: the tokens of the assistant's turns, each with the one that ends it. `prompt`: how many tokens stand
    before the last reply.
    """

    ids: list[int]
    learned: list[bool]
    prompt: int


class _Token(NamedTuple):
    """A special token of the template."""

    id: int
    learned: bool


class _Text(NamedTuple):
    """A text of the template."""

    text: str
    learned: bool


class ChatFormat:
    """How a tokenizer writes conversations: by its own template, else by PLAIN."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """UserError where the template is no use: it cannot be rendered, or marks no end of an assistant's turn."""
        self.tokenizer = tokenizer
        self.template = tokenizer.chat_template or PLAIN
        self._specials = tokenizer.special_tokens
        spelled = sorted(filter(None, self._specials), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._pieces = lru_cache(maxsize=10_000)(self._rendered)
        self.in_parts = False  # whether the template takes the content of a message as a list of parts
        try:
            pieces = self._rendered((USER, ASSISTANT))
        except ValueError as error:
            self.in_parts = True
            try:
                pieces = self._rendered((USER, ASSISTANT))
            except ValueError:
                raise UserError(f"the chat template cannot be used: {error}; task.template=plain needs none") from None
        # The token that ends a turn: the last of what is learned behind the reply.
        self.end_id = next(piece.id for piece in reversed(pieces) if isinstance(piece, _Token) and piece.learned)

    @property
    def digest(self) -> str:
        """sha256, hexadecimal: two formats with the same give the same tokens to every conversation."""
        return hashlib.sha256(f"{VERSION}\n{self.tokenizer.digest}\n{self.template}".encode()).hexdigest()

    @property
    def template_digest(self) -> str:
        """sha256 of the template alone, hexadecimal."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @property
    def named(self) -> str:
        """For logs and signatures: where the template is from, and its hash."""
        origin = "of the tokenizer" if self.tokenizer.chat_template not in (None, PLAIN) else "plain words"
        return f"{origin} ({self.template_digest[:12]})"

    def encode(self, talks: Iterable[tuple[Sequence[Message], str | None]]) -> list[Encoded | str]:
        """Each conversation, given as what stands before the last reply and that reply; None: nobody has replied yet.

        In the place of those that the template refuses, such as two users in a row, stands the reason.
        """
        planned: list[list[Any] | str] = []
        texts: list[str] = []
        for before, reply in talks:
            try:
                plan = list(self._plan(before, reply))
            except ValueError as error:
                planned.append(str(error))
                continue
            planned.append(plan)
            texts += [part.text for part in plan if isinstance(part, _Text)]
        rows = iter(self.tokenizer.encode_batch(texts))
        return [plan if isinstance(plan, str) else _joined(plan, rows) for plan in planned]

    def _plan(self, before: Sequence[Message], reply: str | None) -> Iterable[_Token | _Text | None]:
        """Tokens, and texts to be encoded as wholes; None stands where the prompt ends."""
        messages = [*before, Message(ASSISTANT, (reply or "",))]
        vocabulary = self.tokenizer.vocab_size
        waiting = ""  # what nobody learns goes together, as the tokenizer would read it
        for piece in self._pieces(tuple(message.role for message in messages)):
            if isinstance(piece, int):
                learned, last = messages[piece].role == ASSISTANT, piece == len(messages) - 1
                if learned and waiting:  # a reply begins with a token of its own, whether it is learned or written
                    yield _Text(waiting, False)
                    waiting = ""
                if last:
                    yield None
                    if reply is None:
                        return
                for part in messages[piece].parts:
                    if isinstance(part, int):
                        if waiting:
                            yield _Text(waiting, False)
                            waiting = ""
                        yield _Token(vocabulary + part, False)
                    elif learned:
                        yield _Text(part, True)
                    else:
                        waiting += part
            elif isinstance(piece, _Text) and not piece.learned:
                waiting += piece.text
            else:
                if waiting:
                    yield _Text(waiting, False)
                    waiting = ""
                yield piece
        # Behind the last turn's end a template has a line break at most, which nothing is learned of.

    def _rendered(self, roles: tuple[str, ...]) -> list[_Token | _Text | int]:
        """What the template makes of messages of these roles: its tokens and texts, and numbers of messages.

        ValueError where it refuses them, or loses one.
        """
        rendered = self._render(roles)
        split = _MARK.split(rendered)  # text, number, text, number, ..., text
        numbers = [int(number) for number in split[1::2]]
        if numbers != list(range(len(roles))):
            raise ValueError("the template leaves messages out, or writes them twice")
        pieces: list[_Token | _Text | int] = []
        for place, text in enumerate(split[::2]):
            ends = place > 0 and roles[place - 1] == ASSISTANT  # what follows a reply is learned until its turn ends
            ended = False
            at = 0
            for found in (*self._special.finditer(text), None):
                between = text[at : found.start() if found else None]
                if between:
                    pieces.append(_Text(between, ends and not ended and found is not None))
                if found is not None:
                    pieces.append(_Token(self._specials[found[0]], ends and not ended))
                    ended, at = True, found.end()
            if ends and not ended:
                raise ValueError("no special token ends the assistant's turn")
            if place < len(numbers):
                pieces.append(place)
        return pieces

    def _render(self, roles: Sequence[str]) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        marks = [f"\ue000{number}\ue001" for number in range(len(roles))]
        messages = [
            {"role": role, "content": [{"type": "text", "text": mark}] if self.in_parts else mark}
            for role, mark in zip(roles, marks, strict=True)
        ]
        spelled: dict[str, Any] = {"date_string": DAY, **self.tokenizer.spelled}
        try:
            rendered = render_jinja_template(conversations=[messages], chat_template=self.template, **spelled)[0]
        except TemplateError as error:
            raise ValueError(f"the template says: {' '.join(str(error).split())[:200]}") from None
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"the template fails: {' '.join(str(error).split())[:200]}") from None
        return str(rendered[0])


def _joined(plan: Sequence[_Token | _Text | None], rows: Any) -> Encoded:
    ids: list[int] = []
    learned: list[bool] = []
    prompt = 0
    for part in plan:
        if part is None:
            prompt = len(ids)
            continue
        own = [part.id] if isinstance(part, _Token) else next(rows)
        ids += own
        learned += [part.learned] * len(own)
    return Encoded(ids, learned, prompt)


def chosen_template(option: str, tokenizer: Tokenizer) -> str | None:
    """The template that `task.template` chooses: auto | plain | a file. UserError where the file cannot be read."""
    if option == "auto":
        return tokenizer.chat_template
    if option == "plain":
        return PLAIN
    try:
        return Path(option).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"task.template={option}: {said}; auto, plain, or a file of a Jinja template") from None
