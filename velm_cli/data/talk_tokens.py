"""The conversations of a store as tokens, kept beside it: which are learned, and where each last reply begins.

They are kept whole. How many a run takes of each is its own business (`task.max_tokens`), so runs with other limits
share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from velm_cli.data.arrays import map_array, write_array
from velm_cli.data.beside import check_sums, damaged, make_once
from velm_cli.data.chat_template import ChatFormat, Encoded
from velm_cli.data.conversations import Message, is_conversation, parsed
from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed, write_json
from velm_cli.progress import progress_bar

if TYPE_CHECKING:
    from velm_cli.data.store import Store

FORMAT = 1
CHUNK = 5_000  # conversations encoded at once
ARRAYS = ("ids", "learned", "offsets", "prompts", "firsts")
REFUSED = "refused.json"  # why some have no tokens, with counts


class TalkTokens:
    """Conversations as token ids, memory-mapped; that of example i is `ids[offsets[i]:offsets[i + 1]]`, with images at
    the ids from the tokenizer's `vocab_size` on (see `Encoded`).

    An example without tokens is one that the template refuses: `refused` counts the reasons. `limit`: tokens that
    are learned from, the first ones of each; 0 = all. `drops`: of those that are longer none is learned.
    """

    def __init__(self, folder: Path, store: str, form: ChatFormat, *, limit: int = 0, drops: bool = False) -> None:
        self.folder, self.form, self.limit, self.drops = folder, form, limit, drops
        self.tokenizer = form.tokenizer
        self._store = store
        try:
            check_sums(folder, store)
            arrays = (map_array(folder / f"{name}.npy") for name in ARRAYS)
            self.ids, self._learned, self.offsets, self.prompts, self._firsts = arrays
            self.refused: dict[str, int] = read_sealed(folder / REFUSED)["reasons"]
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise damaged(folder, error) from error

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self) -> Any:
        return _again, (self.folder, self._store, self.form.tokenizer, self.limit, self.drops)

    def lengths(self, examples: np.ndarray) -> np.ndarray:
        """int64: tokens that are learned from, images counted as one each."""
        length = self.offsets[examples + 1] - self.offsets[examples]
        return np.minimum(length, self.limit) if self.limit else np.asarray(length)

    def learnable(self, examples: np.ndarray) -> np.ndarray:
        """bool: whether anything is learned from these, within the limit."""
        found = self._firsts[examples] < self.lengths(examples)
        if self.limit and self.drops:
            found &= self.offsets[examples + 1] - self.offsets[examples] <= self.limit
        return found

    def to_learn(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and which of them are learned (bool), within the limit."""
        start = int(self.offsets[example])
        stop = int(self.offsets[example + 1])
        if self.limit:
            stop = min(stop, start + self.limit)
        return self.ids[start:stop], self._learned[start:stop].astype(bool)

    def to_continue(self, example: int) -> np.ndarray:
        """Token ids of what stands before the last reply, whole."""
        start = int(self.offsets[example])
        return self.ids[start : start + int(self.prompts[example])]

    def counts(self, examples: np.ndarray) -> dict[str, int]:
        """Of these examples: `kept` and their `tokens` within the limit, of which so many are `learned`; `cut` ones
        among them, those that are `dropped` or `refused`, and the tokens of the `longest` whole one."""
        whole = self.offsets[examples + 1] - self.offsets[examples]
        kept = examples[self.learnable(examples)]
        return {
            "kept": len(kept),
            "tokens": int(self.lengths(kept).sum()),
            "learned": sum(int(self.to_learn(int(example))[1].sum()) for example in kept),
            "cut": int((self.offsets[kept + 1] - self.offsets[kept] > self.lengths(kept)).sum()),
            "dropped": len(examples) - len(kept) - int((whole == 0).sum()),
            "refused": int((whole == 0).sum()),
            "longest": int(whole.max(initial=0)),
        }


def _again(folder: Path, store: str, tokenizer: Any, limit: int, drops: bool) -> TalkTokens:
    return TalkTokens(folder, store, ChatFormat(tokenizer), limit=limit, drops=drops)


def talk_tokens(store: Store, form: ChatFormat, *, limit: int = 0, drops: bool = False) -> TalkTokens:
    """Those of a store, made where they are absent. Several processes may ask at once."""
    place = store.path / "tokens" / f"{form.digest[:12]}-{FORMAT}-conversations"
    if not place.exists():
        make_once(place, store.hash, lambda empty: _fill(empty, store, form))
    return TalkTokens(place, store.hash, form, limit=limit, drops=drops)


def conversation_of(store: Any, example: int) -> tuple[list[Message], str | None]:
    """What stands before the last reply, and that reply; None where there is none. UserError for other examples."""
    source = store.source(example)
    if not is_conversation(source):
        raise UserError(f"example {store.example_id(example)} of {store.path} is no conversation")
    replies = store.targets(example)
    try:
        return parsed(source), replies[0] if replies else None
    except ValueError as error:
        raise UserError(f"example {store.example_id(example)} of {store.path} is damaged: {error}") from None


def _fill(empty: Path, store: Store, form: ChatFormat) -> None:
    count = len(store)
    dtype = np.uint16 if form.tokenizer.vocab_size + store.most_images <= 1 << 16 else np.uint32
    ids: list[np.ndarray] = [np.zeros(0, dtype)]
    learned: list[np.ndarray] = [np.zeros(0, np.uint8)]
    lengths, prompts, firsts = (np.zeros(size, np.int64) for size in (count + 1, count, count))
    refused: Counter[str] = Counter()
    for start in progress_bar(range(0, count, CHUNK), "tokens", unit="part"):
        numbers = range(start, min(start + CHUNK, count))
        some: list[Encoded] = []
        for number, found in zip(numbers, _encoded(store, form, numbers), strict=True):
            if isinstance(found, str):
                refused[found] += 1
                continue
            some.append(found)
            lengths[number + 1], prompts[number] = len(found.ids), found.prompt
            firsts[number] = found.learned.index(True) if any(found.learned) else len(found.ids)
        ids.append(np.fromiter(chain.from_iterable(each.ids for each in some), dtype))
        learned.append(np.fromiter(chain.from_iterable(each.learned for each in some), np.uint8))
    arrays = (np.concatenate(ids), np.concatenate(learned), np.cumsum(lengths), prompts, firsts)
    for name, values in zip(ARRAYS, arrays, strict=True):
        write_array(empty / f"{name}.npy", values)
    write_json(empty / REFUSED, sealed({"reasons": dict(refused)}))


def _encoded(store: Store, form: ChatFormat, numbers: range) -> Iterator[Encoded | str]:
    yield from form.encode(conversation_of(store, number) for number in numbers)
