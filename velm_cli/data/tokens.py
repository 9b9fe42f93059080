"""Tokenised captions beside a store: one folder a tokenizer, so runs with different ones share a store.

A folder is named by what the tokenizer does, not by the options it was asked for with: a fine-tuning run
that brings its checkpoint's tokenizer finds the tokens of the run that trained it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from velm_cli.data.shards import whole_file, write_array
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.schema import TokenizerConfig, TokenizerKind

TOKENS_FORMAT = 1
CHUNK = 20_000  # captions encoded at once: lists of Python numbers are 30 times the array's size


class Tokens:
    """The captions of a store as token ids, memory-mapped.

    `ids` (uint16 or uint32) holds all captions in a row, without BOS and EOS; caption c is
    `ids[offsets[c]:offsets[c + 1]]`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.load(folder)
        self.ids = np.asarray(np.load(folder / "ids.npy", mmap_mode="r"))
        self.offsets = np.asarray(np.load(folder / "offsets.npy", mmap_mode="r"))

    def caption(self, c: int) -> np.ndarray:
        """Token ids of caption number `c` of the store."""
        return self.ids[self.offsets[c] : self.offsets[c + 1]]

    def __reduce__(self) -> tuple[type[Tokens], tuple[Path]]:
        return Tokens, (self.folder,)  # a copy in another process maps the files again


def tokens_in(folder: Path, config: TokenizerConfig, captions: Sequence[str], train: np.ndarray) -> Tokens:
    """The tokens of `captions` as `config` wants them, from `folder`, where they are made if absent.

    A vocabulary is learned from the captions number `train`. Several processes may ask at once.
    """
    if config.kind is TokenizerKind.pretrained:  # its files may change under the same name
        return encoded_in(folder, Tokenizer.build(config, []), config.max_tokens, captions)
    options = {**asdict(config), "kind": config.kind.name, "format": TOKENS_FORMAT}
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
    built = folder / f"{key}.json"  # which tokenizer these options have led to
    if built.exists():
        place = folder / json.loads(built.read_text(encoding="utf-8"))["tokens"]
        if place.exists():
            return Tokens(place)
    tokenizer = Tokenizer.build(config, (captions[c] for c in train))
    tokens = encoded_in(folder, tokenizer, config.max_tokens, captions)
    with whole_file(built) as file:
        file.write(json.dumps({"options": options, "tokens": tokens.folder.name}).encode())
    return tokens


def encoded_in(folder: Path, tokenizer: Tokenizer, max_tokens: int, captions: Sequence[str]) -> Tokens:
    """The tokens of `captions` by `tokenizer`, from `folder`, where they are made if absent."""
    place = folder / f"{tokenizer.digest[:12]}-{max_tokens}"
    if not place.exists():
        try:
            _write(place, tokenizer, max_tokens, captions)
        except OSError as error:
            raise UserError(f"cannot write tokens into {folder}: {error.strerror or error}") from error
    return Tokens(place)


def _write(place: Path, tokenizer: Tokenizer, max_tokens: int, captions: Sequence[str]) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    parts: list[np.ndarray] = []
    lengths = np.zeros(len(captions) + 1, np.int64)
    for start in tqdm(range(0, len(captions), CHUNK), desc="tokens", disable=None, mininterval=0.5):
        stop = min(start + CHUNK, len(captions))
        chunk = [captions[c] for c in range(start, stop)]
        encoded = [ids[:max_tokens] for ids in tokenizer.encode_batch(chunk)]
        parts.append(np.fromiter(chain.from_iterable(encoded), dtype))
        lengths[start + 1 : stop + 1] = [len(ids) for ids in encoded]

    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    tokenizer.save(temporary)
    write_array(temporary / "ids.npy", np.concatenate(parts))
    write_array(temporary / "offsets.npy", np.cumsum(lengths))
    try:
        temporary.rename(place)
    except OSError:
        shutil.rmtree(temporary)
        if not place.exists():  # else another process was quicker, with the same result
            raise
