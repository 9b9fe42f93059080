"""Document frequencies that outlive their corpus: CIDEr's word weights from the training references.

CIDEr weighs an n-gram by how few images mention it. Over a small test set, or in a reward, these counts
should come from a larger corpus, so they are kept in a file of their own, which names words and not the
numbers they had in one run. N-grams of a single image are left out: CIDEr weighs them as it does those of
none, log max(1, df), and they are nine tenths of all. Imports no torch.

Shapes: V words of the table, W words of a corpus, C captions, G distinct n-grams of one order, E entries as in
`ngrams.py`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from velm_cli.errors import UserError
from velm_cli.files import write_bytes
from velm_cli.lines import most_unpacked
from velm_cli.metrics.ngrams import MAX_ORDER, Ints, NGrams, Tokens, count_ngrams, run_starts

FORMAT = 1
# What numpy raises for archives that are damaged, or of a stranger: a header may ask for any size of array.
READING_ERRORS = (OSError, EOFError, KeyError, ValueError, TypeError, OverflowError, MemoryError, RecursionError,
                  NotImplementedError, zipfile.BadZipFile, zlib.error)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DocumentFrequency:
    """In how many of `documents` images' references an n-gram occurs, for all that occur in two or more.

    N-grams of order n are numbered by their place in `keys[n - 1]`, which ascends. The key of a word is its
    own number, that of a longer n-gram the number of its first n - 1 words times V plus its last word's.
    """

    documents: int
    words: list[str]
    keys: list[Ints]  # one array an order
    counts: list[Ints]  # at least 2, at most `documents`
    source: str  # what the references were, for people

    @classmethod
    def of(cls, references: Iterable[Sequence[str]], source: str = "") -> DocumentFrequency:
        """Counted over the tokenised references of each image."""
        groups = list(references)
        assert groups, "no documents"
        tokens = Tokens.of(caption for group in groups for caption in group)
        image_C = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        spelled = list(tokens.vocabulary)
        words: list[str] = []
        keys: list[Ints] = []
        counts: list[Ints] = []
        place_G = np.zeros(1, np.int64)  # in `keys`, of each n-gram of the corpus that is kept
        for order, ngrams in enumerate(count_ngrams(tokens)):
            in_image = run_starts(ngrams.gram_E, image_C[ngrams.caption_E])
            count_G = np.bincount(ngrams.gram_E[in_image], minlength=len(ngrams.key_G))
            kept_G = np.flatnonzero(count_G >= 2)
            prefix_G, last_G = np.divmod(ngrams.key_G[kept_G], max(1, len(spelled)))
            if order == 0:
                words = [spelled[word] for word in last_G.tolist()]
                place_W = _places(last_G, len(spelled))
            keys.append(place_G[prefix_G] * len(words) + place_W[last_G])  # all parts of what is kept are kept
            counts.append(count_G[kept_G])
            place_G = _places(kept_G, len(count_G))
        return cls(len(groups), words, keys, counts, source)

    def look_up(self, vocabulary: Mapping[str, int], orders: Iterable[NGrams]) -> Iterator[Ints]:
        """The document frequency of each n-gram of another corpus, an order at a time (0: not in two images)."""
        number = {word: place for place, word in enumerate(self.words)}
        known_W = np.array([word in number for word in vocabulary], dtype=bool)
        word_W = np.array([number.get(word, 0) for word in vocabulary], dtype=np.int64)
        place_G = np.zeros(1, np.int64)  # of each of their n-grams; that of the unknown is behind the last
        for keys, counts, ngrams in zip(self.keys, self.counts, orders, strict=True):
            prefix_G, last_G = np.divmod(ngrams.key_G, max(1, len(vocabulary)))
            key_G = place_G[prefix_G] * len(self.words) + word_W[last_G]
            place_G = np.searchsorted(keys, key_G)
            place_G[(np.append(keys, -1)[place_G] != key_G) | ~known_W[last_G]] = len(keys)
            yield np.append(counts, 0)[place_G]

    def save(self, path: Path) -> None:
        """Write everything to `path`, a compressed NumPy archive without pickles, whole or not at all."""
        arrays: dict[str, NDArray] = {f"keys{n}": keys for n, keys in enumerate(self.keys[1:], 2)}
        arrays |= {f"counts{n}": counts for n, counts in enumerate(self.counts, 1)}
        arrays |= {"words": _bytes(" ".join(self.words)), "source": _bytes(self.source)}
        file = io.BytesIO()
        np.savez_compressed(file, format=FORMAT, documents=self.documents, **arrays)  # type: ignore[arg-type]
        write_bytes(path, [file.getvalue()])

    @classmethod
    def load(cls, path: Path) -> DocumentFrequency:
        """What `save` wrote. Raises UserError when the file is absent, damaged or something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if not isinstance(file, np.lib.npyio.NpzFile) or int(file["format"]) != FORMAT:
                    raise ValueError("not a table of this version of velm")
                unpacked = sum(member.file_size for member in file.zip.infolist()) if file.zip else 0
                if unpacked > most_unpacked(path.stat().st_size):
                    raise ValueError("it unpacks to many times its size")
                words = _text(file["words"]).split()
                keys = [np.arange(len(words)), *(file[f"keys{n}"] for n in range(2, MAX_ORDER + 1))]
                counts = [file[f"counts{n}"] for n in range(1, MAX_ORDER + 1)]
                table = cls(int(file["documents"]), words, keys, counts, _text(file["source"]))
            table._check()
        except FileNotFoundError:
            raise UserError(f"no document frequencies in {path}: there is no such file") from None
        except READING_ERRORS as error:
            # numpy says of whatever it does not know that it is a pickle, and how to load it unsafely
            why = "it is not a file of save_df=" if "pickle" in str(error) else error
            raise UserError(f"{path} holds no document frequencies that velm can read: {why}") from error
        return table

    @cached_property
    def digest(self) -> str:
        """sha256 of what the scores depend on, in hexadecimal: equal tables give equal scores."""
        sizes = [self.documents, *map(len, self.keys)]
        parts = [f"{sizes}\n".encode(), _bytes(" ".join(self.words)).tobytes()]
        parts += [array.astype("<i8").tobytes() for array in (*self.keys, *self.counts)]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def _check(self) -> None:
        prefixes = 1
        for keys, counts in zip(self.keys, self.counts, strict=True):
            if not (keys.ndim == 1 and keys.shape == counts.shape and keys.dtype == counts.dtype == np.int64):
                raise ValueError("its arrays do not fit together")
            in_order = (np.diff(keys, prepend=-1, append=prefixes * len(self.words)) > 0).all()
            if not in_order or (counts < 2).any() or (counts > self.documents).any():
                raise ValueError("its numbers are out of range")
            prefixes = len(keys)


def inverse_frequency(documents: int) -> NDArray[np.float64]:
    """CIDEr's weight of an n-gram by its document frequency 0 to `documents`: log documents - log max(1, df).

    From one table of logarithms, so that an n-gram of every document weighs exactly nothing.
    """
    logarithm = np.log(np.maximum(1.0, np.arange(documents + 1)))
    return logarithm[-1] - logarithm


def _places(kept: Ints, total: int) -> Ints:
    """The place in `kept` of each of the numbers 0 to total - 1 that is there; the rest are not asked for."""
    place = np.zeros(total, np.int64)
    place[kept] = np.arange(len(kept))
    return place


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _text(array: NDArray[np.uint8]) -> str:
    return array.tobytes().decode("utf-8", "surrogatepass")
