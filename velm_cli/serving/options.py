"""What each endpoint takes: one table, from which requests are checked and /openapi.json is written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velm_cli.schema import DecodeConfig, ServeConfig
from velm_cli.schema.bounds import Bounds, bounds_of
from velm_cli.serving.refusing import Refused

MOST_IMAGES, MOST_TEXTS = 64, 256  # of a request to /embed
MOST_CHOICES = 100
MOST_CHARACTERS = 2000  # of a text


@dataclass(frozen=True, slots=True)
class Option:
    """`kind`: image, text, whole or number. With `many` it is a list of at most that many."""

    name: str
    kind: str
    meaning: str
    default: Any = None
    bounds: Bounds | None = None
    many: int = 0
    required: bool = False

    def checked(self, values: Sequence[Any]) -> Any:
        """The value, or values, of the option as they came: from a query or form as text, from JSON as they are.

        Raises Refused (422) with a line for what does not fit.
        """
        if len(values) == 1 and isinstance(values[0], list):
            values = values[0]
        if self.many:
            if len(values) > self.many:
                raise Refused(422, f"{self.name}: {len(values)} given, at most {self.many}")
            return tuple(self._one(value) for value in values)
        if len(values) != 1:
            raise Refused(422, f"{self.name}: give one")
        return self._one(values[0])

    def _one(self, value: Any) -> Any:
        match self.kind:
            case "image":
                return value if isinstance(value, bytes) else _from_base64(self.name, value)
            case "text":
                return self._text(value)
            case "whole":
                return self._number(value, int)
        return self._number(value, float)

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise Refused(422, f"{self.name}: must be text")
        if len(value) > MOST_CHARACTERS:
            raise Refused(422, f"{self.name}: {len(value):,} characters, at most {MOST_CHARACTERS:,}")
        if not _is_unicode(value):
            raise Refused(422, f"{self.name}: not valid Unicode")
        return value

    def _number(self, value: Any, kind: type[int] | type[float]) -> Any:
        number: Any = value
        if isinstance(value, str) and len(value) < 40:
            try:
                number = kind(value)
            except ValueError:
                number = None
        if isinstance(number, int) and not isinstance(number, bool) and kind is float and abs(number) < 2**53:
            number = float(number)
        if isinstance(number, bool) or not isinstance(number, kind):
            raise Refused(422, f"{self.name}: must be a {'whole ' if kind is int else ''}number")
        if (problem := (self.bounds or Bounds()).problem(number)) is not None:
            raise Refused(422, f"{self.name}={number}: {problem}")
        return number


def _from_base64(name: str, value: Any) -> bytes:
    import base64
    import binascii

    if not isinstance(value, str):
        raise Refused(422, f"{name}: must be an image: a file of the form, or base64 in JSON")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{name}: is not base64") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def options_of(limits: ServeConfig) -> dict[str, tuple[Option, ...]]:
    """Path -> its options, within the limits of this server."""
    image = Option("image", "image", "JPEG, PNG, WebP, GIF, BMP, TIFF", required=True)
    usual = DecodeConfig()
    most = limits.max_length
    length = Option("max_length", "whole", "tokens at most", min(30, most), Bounds(1, most=most))

    def beams(default: int) -> Option:
        bounds = Bounds(1, most=limits.max_beams)
        return Option("beams", "whole", "of the search; 1 = greedy", min(default, limits.max_beams), bounds)

    def decoding(name: str, meaning: str, kind: str = "number") -> Option:
        return Option(name, kind, meaning, getattr(usual, name), bounds_of(DecodeConfig, name))

    words = (
        Option("min_length", "whole", "tokens before a text may end", 0, Bounds(0, most=most)),
        decoding("repetition_penalty", "above 1: words that the text has already become less likely"),
        Option("no_repeat_ngram", "whole", "no so many tokens in a row come twice; 0 = off", 0, Bounds(0, most=most)),
    )

    drawn, best = Bounds(0, most=limits.max_captions), Bounds(0, most=min(limits.max_captions, limits.max_beams))
    return {
        "/caption": (
            image,
            beams(5),
            Option("n", "whole", "so many different captions, drawn at random; 0 = the best one", 0, drawn),
            Option("best", "whole", "so many of the beams' captions, the best first; 0 = one", 0, best),
            Option("prompt", "text", "what the caption begins with", ""),
            Option("allowed", "text", "the texts of which one is written behind the prompt", many=MOST_CHOICES),
            length,
            *words,
            decoding("length_penalty", "above 1: longer captions (beams)"),
            decoding("top_p", "draw among the likeliest words that have this probability together (n)"),
            decoding("top_k", "draw among so many of the likeliest words; 0 = all (n)", "whole"),
            decoding("temperature", "of the draw (n)"),
            Option("seed", "whole", "of the draw (n)", 0, Bounds(0, most=2**63 - 1)),
        ),
        "/answer": (
            image,
            Option("question", "text", "about the image", required=True),
            Option("choices", "text", "the answer is the likeliest of these", many=MOST_CHOICES),
            Option("probabilities", "whole", "also return so many of the likeliest answers", 0, Bounds(0, most=10)),
            beams(1),
            length,
            *words,
        ),
        "/embed": (
            Option("images", "image", "to embed; `image` is another name", many=MOST_IMAGES),
            Option("texts", "text", "to embed", many=MOST_TEXTS),
        ),
        "/attention": (image, Option("text", "text", "whose words are looked up in the image", required=True)),
    }


def checked(options: Sequence[Option], given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The options' values, defaults where nothing is given. Raises Refused (422) with one line."""
    by_name: dict[str, list[Any]] = {}
    known = {option.name for option in options}
    for name, value in given:
        if name == "image" and name not in known and "images" in known:
            name = "images"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
            raise Refused(422, f"no option {name[:40]!r}{hint}")
        if value is not None:
            by_name.setdefault(name, []).append(value)
    return {option.name: _value(option, by_name) for option in options}


def _value(option: Option, by_name: Mapping[str, list[Any]]) -> Any:
    if option.name in by_name:
        return option.checked(by_name[option.name])
    if option.required:
        raise Refused(422, f"{option.name} is missing")
    return option.default
