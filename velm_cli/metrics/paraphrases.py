"""METEOR's paraphrases, cut to those that the captions at hand can need.

METEOR's table has 5.3 million pairs of phrases, and reading it takes longer than aligning the captions of five
thousand images. A pair counts only where both of its phrases stand in captions; so velm keeps the table as numbers
in a file of its cache, chooses the pairs whose words stand side by side in the captions, and gives METEOR these
alone. METEOR rewrites captions before it aligns them (hyphens, dots, numbers), so every way a token could come out
is looked for: too many pairs cost milliseconds, one too few would change a score.

Shapes: W words of the table, E pairs, P = 2 * E phrases.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from velm_cli.metrics import cache

FORMAT = 2
CHUNK = 1 << 24  # bytes of the table in hand at a time
_PLAIN = re.compile("[a-z0-9 ]*")
ARRAYS = {"words_W": "<u2", "lengths_P": "u1", "weights_E": "<f8"}  # as the cache has them, in this order
_PART = re.compile(r"[^\W_]+|[^\w\s]|_")


@dataclass(frozen=True, eq=False)
class ParaphraseTable:
    """The whole table as numbers. A pair's phrases are adjacent, the words of all phrases stand in one row."""

    vocabulary: list[str]
    words_W: np.ndarray  # uint16
    lengths_P: np.ndarray  # uint8, words
    weights_E: np.ndarray  # float64

    @classmethod
    def cached(cls, table: Path, cache_dir: Path, *, make: bool = True) -> ParaphraseTable | None:
        """The table in METEOR's file `table`, read once into a file of `cache_dir`.

        None where it is not there, or damaged, and `make` is false. A cache that cannot be written costs time only.
        Raises OSError or ValueError where `table` cannot be read.
        """
        digest = hashlib.sha256(table.read_bytes()).hexdigest()
        path = cache_dir / f"meteor-paraphrases-{FORMAT}-{digest[:16]}"
        with contextlib.suppress(OSError, ValueError):
            return cls._kept(path)
        if not make:
            return None
        made = cls.parse(table)
        with contextlib.suppress(OSError):
            cache.keep(path, made._parts())
        return made

    @classmethod
    def _kept(cls, path: Path) -> ParaphraseTable:
        data = b"".join(cache.read_pieces(path))
        end = data.index(b"\n") + 1
        sizes = json.loads(data[:end])
        arrays = []
        for name, kind in ARRAYS.items():
            arrays.append(np.frombuffer(data, kind, sizes[name], end))
            end += arrays[-1].nbytes
        return cls(data[end:].decode().split("\n"), *arrays)

    def _parts(self) -> Iterator[bytes]:
        arrays = {name: np.asarray(getattr(self, name), kind) for name, kind in ARRAYS.items()}
        yield json.dumps({name: array.size for name, array in arrays.items()}).encode() + b"\n"
        yield from (array.tobytes() for array in arrays.values())
        yield "\n".join(self.vocabulary).encode()

    @classmethod
    def parse(cls, table: Path) -> ParaphraseTable:
        """Three lines a pair: its weight, a phrase, the phrase that may stand for it."""
        number: defaultdict[str, int] = defaultdict(lambda: len(number))
        words, lengths, weights = [], [], []
        try:
            with gzip.open(table, "rt", encoding="utf-8", newline="\n") as file:
                while lines := file.readlines(CHUNK):
                    while len(lines) % 3:
                        lines.append(file.readline())
                    if not lines[-1]:
                        raise ValueError(f"{table} ends within a pair")
                    weights.append(np.array(lines[::3], dtype=float))
                    del lines[::3]
                    spaces = map(str.count, lines, itertools.repeat(" "))
                    lengths.append(np.fromiter(spaces, np.uint8, len(lines)) + np.uint8(1))
                    flat = "".join(lines).split()
                    if len(flat) != lengths[-1].sum(dtype=np.int64):
                        raise ValueError(f"{table} has a phrase whose words are not one space apart")
                    words.append(np.fromiter(map(number.__getitem__, flat), np.uint16, len(flat)))
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{table} is damaged: {error}") from error
        if len(number) > np.iinfo(np.uint16).max:
            raise ValueError(f"{table} has more different words than velm's numbers go")
        return cls(list(number), np.concatenate(words), np.concatenate(lengths), np.concatenate(weights))

    def of(self, captions: Iterable[str]) -> bytes:
        """METEOR's file of the pairs that tokenised captions can need, compressed."""
        number = {word: place for place, word in enumerate(self.vocabulary)}
        pairs = [(number.get(first, -1), number.get(second, -1)) for first, second in neighbours(captions)]
        pair_N2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        known_V = np.zeros(len(number), dtype=bool)
        known_V[pair_N2[pair_N2 >= 0]] = True
        beside = pair_N2[(pair_N2 >= 0).all(axis=1)]
        beside_sorted = np.sort((beside[:, 0] << 16) + beside[:, 1])
        start_P = np.concatenate([[0], np.cumsum(self.lengths_P[:-1], dtype=np.int64)])
        known_P = np.logical_and.reduceat(known_V[self.words_W], start_P)
        pair_E = np.flatnonzero(known_P[::2] & known_P[1::2])
        # Of these, the pairs whose words also follow each other somewhere.
        phrase_P = (2 * pair_E[:, None] + [0, 1]).ravel()
        start_P, length_P = start_P[phrase_P], self.lengths_P[phrase_P].astype(np.int64)
        follows_P = np.ones(len(phrase_P), dtype=bool)
        for place in range(1, int(length_P.max(initial=1))):
            longer = np.flatnonzero(follows_P & (length_P > place))
            at = start_P[longer] + place
            code = (self.words_W[at - 1].astype(np.int64) << 16) + self.words_W[at]
            follows_P[longer] = np.isin(code, beside_sorted)
        kept_E = np.flatnonzero(follows_P[::2] & follows_P[1::2])
        kept_P = (2 * kept_E[:, None] + [0, 1]).ravel()
        phrases = self._phrases(start_P[kept_P], length_P[kept_P])
        weights = map(repr, self.weights_E[pair_E[kept_E]].tolist())
        lines = [f"{weight}\n{next(phrases)}\n{next(phrases)}\n" for weight in weights]
        return gzip.compress("".join(lines).encode(), compresslevel=1, mtime=0)

    def _phrases(self, start_P: np.ndarray, length_P: np.ndarray) -> Iterator[str]:
        """The phrases that begin at `start_P` in the row of words."""
        first_P = np.cumsum(length_P) - length_P  # of each phrase, in the row of these phrases' words
        word_W = np.repeat(start_P - first_P, length_P) + np.arange(int(length_P.sum()))
        words = [self.vocabulary[number] for number in self.words_W[word_W].tolist()]
        for first, length in zip(first_P.tolist(), length_P.tolist(), strict=True):
            yield " ".join(words[first : first + length])


def neighbours(captions: Iterable[str]) -> set[tuple[str, str]]:
    """Words that may stand side by side once METEOR has rewritten the captions; "" is beside a caption's ends."""
    found: set[tuple[str, str]] = set()
    for caption in captions:
        if _PLAIN.fullmatch(caption):
            found.update(pairwise(["", *caption.split(), ""]))
            continue
        before = {""}
        for token in [*caption.split(), ""]:
            after: set[str] = set()
            for words in _rewritten(token) if token else [[""]]:
                if not words:  # taken out: its neighbours meet
                    after |= before
                else:
                    found.update((word, words[0]) for word in before)
                    found.update(pairwise(words))
                    after.add(words[-1])
            before = after
    return found


def _rewritten(token: str) -> list[list[str]]:
    """What METEOR may make of a token: itself, without marks and accents, in parts with their marks or without."""
    spelled = {token, token.lower()}
    spelled |= {
        "".join(c for c in unicodedata.normalize("NFKD", each) if not unicodedata.combining(c)) for each in spelled
    }
    ways = []
    for each in spelled:
        parts = _PART.findall(each)
        bare = [part for part in parts if part.isalnum()]
        ways += [[each], parts, bare, ["".join(bare)] if bare else []]
    return ways
