"""One reader of shards: sample after sample, through failures of the source, and what is lost said once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from velm_cli.data.sources import SourceError, is_local, open_source, with_retries
from velm_cli.data.stream_scan import Example, Refused, checksum, is_wanted, understand
from velm_cli.data.stream_store import Shard, StreamStore
from velm_cli.data.tars import Sample, samples
from velm_cli.errors import StageError
from velm_cli.schema import Damaged, WebDatasetConfig


@dataclass(frozen=True, slots=True)
class Piece:
    """The samples to train on number `start` to `stop - 1` of a shard; `first` is the number in all shards of its 0."""

    shard: Shard
    start: int
    stop: int
    first: int


class Lane:
    """Reads samples one after another; a shard stays open between two blocks."""

    def __init__(self, store: StreamStore) -> None:
        self._store = store
        self._dataset: WebDatasetConfig = store.dataset
        self._lost: set[int] = set()  # numbers of shards that were given up
        self._closing = ExitStack()
        self._shard: int | None = None  # which is open
        self._next = 0  # number of the next sample to train on in it
        self._samples: Iterator[tuple[int, Sample]] = iter(())
        self._scanned: np.ndarray = np.zeros(0)  # SCANNED rows of the open shard

    def read(self, pieces: list[Piece]) -> list[tuple[int, Example | None]]:
        """(number in all shards, sample) of the pieces; None for a sample that is lost."""
        return [sample for piece in pieces for sample in self._piece(piece)]

    def close(self) -> None:
        self._shard = None
        self._samples = iter(())
        self._closing.close()

    def _piece(self, piece: Piece) -> list[tuple[int, Example | None]]:
        out: list[tuple[int, Example | None]] = []

        def go_on() -> None:
            try:
                self._open(piece.shard, piece.start + len(out))
                while len(out) < piece.stop - piece.start:
                    out.append((piece.first + piece.start + len(out), self._sample(piece.shard)))
            except SourceError as error:
                closing, self._closing = self._closing, ExitStack()
                self.close()
                closing.__exit__(type(error), error, error.__traceback__)  # which may know more
                raise

        if piece.shard.number not in self._lost:
            try:
                with_retries(go_on, 0 if is_local(piece.shard.url) else self._dataset.retries)
            except SourceError as error:
                self._lose(piece.shard, str(error))
                self._lost.add(piece.shard.number)
        return out + [(piece.first + at, None) for at in range(piece.start + len(out), piece.stop)]

    def _open(self, shard: Shard, at: int) -> None:
        """Be before the sample number `at` of those to train on."""
        if self._shard == shard.number and self._next == at:
            return
        self.close()
        self._scanned = self._store.scanned(shard)
        training = np.flatnonzero(self._scanned["use"] == 0)[at:]
        wanted = set(training.tolist())
        file = self._closing.enter_context(open_source(shard.url, pipes=self._dataset.pipes))
        self._samples = (
            sample
            for sample in samples(file, lambda number, extension: number in wanted and is_wanted(extension))
            if sample[0] in wanted
        )
        self._shard, self._next = shard.number, at

    def _sample(self, shard: Shard) -> Example | None:
        number, sample = next(self._samples, (None, None))
        if sample is None or number is None:
            raise SourceError("it has fewer samples than when it was scanned")
        self._next += 1
        try:
            if checksum(sample) != self._scanned["crc32"][number]:
                raise Refused("it has changed since it was scanned")
            return understand(sample, self._dataset.caption_key)
        except Refused as error:
            self._lose(shard, f"sample {sample.key}: {error}")
            return None

    def _lose(self, shard: Shard, reason: str) -> None:
        line = f"shard {shard.url}: {reason}"
        if self._dataset.damaged is Damaged.error:
            raise StageError(f"{line}; the last checkpoint is from before it. dataset.damaged=skip goes on without it")
        tqdm.write(f"skipped: {line}; other samples are repeated in place of it")
