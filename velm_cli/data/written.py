"""A text that was written of an example, with the others where several were asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Written(str):
    """The first of several texts, which is what is scored; whoever shows all finds them in `texts`.

    A text itself, so that whatever takes one text of an example takes this one.
    """

    texts: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Written:
        all_of_them = tuple(texts)
        found = cls(all_of_them[0])
        found.texts = all_of_them
        return found


def all_texts(text: str) -> Sequence[str]:
    """All that was written of the example."""
    return text.texts if isinstance(text, Written) else (text,)
