"""Tokenised texts beside a store: one folder a tokenizer and column, so runs with different ones share a store.

A folder is named by what the tokenizer does, not by the options it was asked for with: a fine-tuning run
that brings its checkpoint's tokenizer finds the tokens of the run that trained it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.arrays import map_array, write_array
from velm_cli.data.beside import SUMS, check_sums, damaged, make_once
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed, write_json
from velm_cli.progress import progress_bar
from velm_cli.schema import TokenizerConfig, TokenizerKind

TOKENS_FORMAT = 1
CUT = "cut.json"  # how many captions were longer than the limit, and the longest; an older velm's folders have none
CHUNK = 20_000  # captions encoded at once: lists of Python numbers are 30 times the array's size


class Tokens:
    """The captions of a store as token ids, memory-mapped.

    `ids` (uint16 or uint32) holds all captions in a row, without BOS and EOS; caption c is
    `ids[offsets[c]:offsets[c + 1]]`. `cut` captions had more than `max_tokens`, the longest of all `longest`; None
    where an older velm has not counted.
    """

    def __init__(self, folder: Path, store: str) -> None:
        """`store`: the hash of the store whose captions they are."""
        self.folder, self._store = folder, store
        self.tokenizer = Tokenizer.load(folder)
        try:
            if (folder / SUMS).exists():  # an older velm's have none
                check_sums(folder, store)
            self.ids = map_array(folder / "ids.npy")
            self.offsets = map_array(folder / "offsets.npy")
            counted = read_sealed(folder / CUT) if (folder / CUT).exists() else {}
            if not all(type(number) is int for number in counted.values()):
                raise ValueError(f"{CUT} holds no numbers")
            self.cut: int | None = counted.get("cut")
            self.longest: int | None = counted.get("longest")
        except (OSError, ValueError, EOFError) as error:
            raise damaged(folder, error) from error

    def caption(self, c: int) -> np.ndarray:
        """Token ids of caption number `c` of the store."""
        return self.ids[self.offsets[c] : self.offsets[c + 1]]

    def __reduce__(self) -> tuple[type[Tokens], tuple[Path, str]]:
        return Tokens, (self.folder, self._store)  # a copy in another process maps the files again


def tokens_in(
    folder: Path, store: str, config: TokenizerConfig, captions: Sequence[str], learned: Iterable[str]
) -> Tokens:
    """The tokens of the store's `captions` as `config` wants them, from `folder`, where they are made if absent.

    A vocabulary is made of the texts `learned`, which are read if it is. Several processes may ask at once.
    """
    if config.kind is TokenizerKind.pretrained:  # its files may change under the same name
        return encoded_in(folder, store, Tokenizer.build(config, []), config.max_tokens, captions)
    options = {**asdict(config), "kind": config.kind.name, "format": TOKENS_FORMAT}
    del options["max_source_tokens"]  # which changes neither the tokenizer nor the tokens of targets
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
    built = folder / f"{key}.json"  # which tokenizer these options have led to
    if built.exists():
        try:
            place = folder / read_sealed(built)["tokens"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{built} is damaged ({error}): delete it, and it is made again") from error
        if place.exists():
            return Tokens(place, store)
    tokenizer = Tokenizer.build(config, learned)
    return encoded_in(folder, store, tokenizer, config.max_tokens, captions, named=(built, options))


def encoded_in(
    folder: Path,
    store: str,
    tokenizer: Tokenizer,
    max_tokens: int,
    captions: Sequence[str],
    column: str = "targets",
    named: tuple[Path, dict[str, Any]] | None = None,
) -> Tokens:
    """The tokens of a column of the store's texts by `tokenizer`, from `folder`, where they are made if absent.

    `named`: a file that says which options have led to this tokenizer, and these options.
    """
    place = folder / f"{tokenizer.digest[:12]}-{max_tokens}{'' if column == 'targets' else f'-{column}'}"

    def name() -> None:
        if named:
            write_json(named[0], sealed({"options": named[1], "tokens": place.name}))

    if named or not place.exists():
        make_once(place, store, lambda empty: _fill(empty, tokenizer, max_tokens, captions), name)
    tokens = Tokens(place, store)
    tokens.tokenizer = tokenizer  # gives the same ids; the folder's may have another model's chat template
    return tokens


def _fill(empty: Path, tokenizer: Tokenizer, max_tokens: int, captions: Sequence[str]) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    parts: list[np.ndarray] = []
    lengths = np.zeros(len(captions) + 1, np.int64)
    cut = longest = 0
    for start in progress_bar(range(0, len(captions), CHUNK), "tokens", unit="part"):
        stop = min(start + CHUNK, len(captions))
        chunk = [captions[c] for c in range(start, stop)]
        whole = tokenizer.encode_batch(chunk)
        sizes = [len(ids) for ids in whole]
        cut, longest = cut + sum(size > max_tokens for size in sizes), max(longest, *sizes)
        encoded = [ids[:max_tokens] for ids in whole]
        parts.append(np.fromiter(chain.from_iterable(encoded), dtype))
        lengths[start + 1 : stop + 1] = [len(ids) for ids in encoded]

    tokenizer.save(empty)
    write_array(empty / "ids.npy", np.concatenate([np.zeros(0, dtype), *parts]))
    write_array(empty / "offsets.npy", np.cumsum(lengths))
    write_json(empty / CUT, sealed({"cut": cut, "longest": longest}))
