"""From shards to Batches, in an order that is a pure function of (seed, epoch), as the loader's of a store.

The scan of `velm preprocess` counted what can be used of every shard, so an epoch is planned without reading: its
shards in random order are one long row of samples, cut into as many equal lanes as are read side by side. Row i of a
batch comes from lane i modulo their number, and a process reads whole lanes, so the batches are the same for any
number of processes that divides the lanes, and a shard is read by one process (a few at the cuts by two).

A block is what is shuffled together: as many samples of every lane as make `dataset.shuffle` in all. They are put
in random order, then sorted by the length of their captions into batches of like length, and the batches are put in
random order, the same for all lanes. To go on at batch n, its block is read again: in each lane one shard up to
where the block begins, and the block. Nothing else is repeated and nothing is lost: batch n has the same bits.

Samples that cannot be read any more stop the run, or, with `dataset.damaged=skip`, others of the block take
their places, so that batches keep their size on all processes.

Suffixes: B images, K captions an image; the others are those of `batch.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count, pairwise

import numpy as np
from torch import Tensor

from velm_cli.data.batch import Batch, assemble
from velm_cli.data.concepts import labels_of
from velm_cli.data.features import FeatureCache
from velm_cli.data.images import is_plain, normalise_image
from velm_cli.data.loader import AUGMENT, BATCHES, CAPTIONS, ORDER, TrainLoader, filled
from velm_cli.data.resizing import CENTRE_CROP, Resizing
from velm_cli.data.store import Store
from velm_cli.data.stream_lane import Lane, Piece
from velm_cli.data.stream_scan import Example
from velm_cli.data.stream_store import StreamStore
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.tokens import Tokens
from velm_cli.data.transforms import TrainTransform, may_flip
from velm_cli.errors import StageError, UserError
from velm_cli.schema import DataConfig

LANES = 16  # shards read side by side, where processes and shards allow
SHARDS = 5  # name of the random stream that orders them, after those of the loader
Reads = list[Future[list[tuple[int, Example | None]]]]  # what each lane of this process reads
_PILLOW = threading.Lock()  # normalising changes Pillow's limits for the whole process


def training_loader(
    store: Store,
    tokens: Tokens,
    data: DataConfig,
    *,
    max_tokens: int,
    batch_size: int,
    image_size: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    resizing: Resizing = CENTRE_CROP,
    num_concepts: int,
    seed: int,
    limit: int = 0,
    features: Sequence[FeatureCache] = (),
    rank: int = 0,
    world: int = 1,
    even: bool = False,
) -> TrainLoader | StreamLoader:
    """The batches to train on, from the store itself or from the shards that it stands for."""
    if isinstance(store, StreamStore):
        assert not limit and not features, "validate refuses these for streams"
        return StreamLoader(
            store, tokens.tokenizer, data, max_tokens=max_tokens, batch_size=batch_size, image_size=image_size or 1,
            mean=mean, std=std, resizing=resizing, num_concepts=num_concepts, seed=seed, rank=rank, world=world,
            even=even,
        )  # fmt: skip
    return TrainLoader(
        store, tokens, data, batch_size=batch_size, image_size=image_size, mean=mean, std=std, resizing=resizing,
        num_concepts=num_concepts, seed=seed, limit=limit, features=features, rank=rank, world=world, even=even,
    )  # fmt: skip


class StreamLoader:
    """Endless training batches of shards, for one of `world` processes; the interface of TrainLoader.

    `batch_size` is that of a global batch, of which rank r gets the rows r::world. An epoch visits every sample
    at most once and leaves out a random rest smaller than a batch. Raises UserError where the batches or
    `dataset.lanes` cannot be shared by so many processes, and while reading what `dataset.damaged` says.
    """

    def __init__(
        self,
        store: StreamStore,
        tokenizer: Tokenizer,
        data: DataConfig,
        *,
        max_tokens: int,
        batch_size: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resizing: Resizing = CENTRE_CROP,
        num_concepts: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        even: bool = False,
    ) -> None:
        self._store, self._tokenizer, self._max_tokens = store, tokenizer, max_tokens
        self._num_concepts, self._seed, self._rank, self._world = num_concepts, seed, rank, world
        self._workers, self._image_size = data.workers, image_size
        self._shards = store.shards
        self._counts = np.array([shard.train for shard in self._shards], np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts  # samples in the shards before
        total = int(self._counts.sum())
        self.batch_size = min(batch_size, total)
        if self.batch_size < world or (even and self.batch_size % world):
            how = "shared evenly" if even else "shared"
            raise UserError(
                f"batches of {self.batch_size} images cannot be {how} by {world} processes: change "
                f"run.batch_size={batch_size} or the number of processes (there are {total:,} training images)"
            )
        self.batches_per_epoch = total // self.batch_size
        self.lanes = _lanes(store.dataset.lanes, self.batch_size, len(self._shards), world)
        rows = [len(range(lane, self.batch_size, self.lanes)) for lane in range(self.lanes)]
        self._rows = np.array(rows)  # of a batch that come from each lane
        self._starts = (np.cumsum(self._rows) - self._rows) * self.batches_per_epoch  # of each lane in the epoch
        self._per_block = max(1, store.dataset.shuffle // self.batch_size)  # batches
        self.captions_per_image = max(1, min(data.captions_per_image, store.most_captions))
        self._transform = TrainTransform(
            image_size, mean, std, data.crop_scale, data.flip, data.colour_jitter, resizing
        )

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches number `start`, `start + 1`, ... since the beginning of training, without end."""
        with closing(self._planned(start)) as planned, closing(filled(planned, self._read, self._workers)) as batches:
            yield from batches

    def _planned(self, start: int) -> Generator[tuple[_Block, Batch], None, None]:
        """(where its images are, batch) with room for the images."""
        epoch, within = divmod(start, self.batches_per_epoch)
        first_block, skipped = divmod(within, self._per_block)
        with closing(self._blocks(epoch, first_block)) as blocks:
            for block in blocks:
                for rows in block.rows[skipped:]:
                    drawn = block.drawn[[block.row_of[number] for number in rows.tolist()]]
                    yield block, assemble(block, block, rows, drawn, self._num_concepts, self._image_size, None)
                skipped = 0

    def _blocks(self, epoch: int, block: int) -> Generator[_Block, None, None]:
        """The blocks from number `block` of `epoch` on, without end; each is read while the one before is used."""
        lanes = [Lane(self._store) for _ in range(self._rank, self.lanes, self._world)]
        pool = ThreadPoolExecutor(max(1, min(len(lanes), self._workers)), thread_name_prefix="velm-shards")

        def begin(place: tuple[int, int]) -> Reads:
            return [pool.submit(lane.read, mine) for lane, mine in zip(lanes, self._pieces(*place), strict=True)]

        places = ((e, b) for e in count(epoch) for b in self._blocks_from(block if e == epoch else 0))
        ahead: Reads | None = None
        try:
            for place, following in pairwise(places):
                block_read = self._block(*place, ahead or begin(place))
                ahead = begin(following) if self._workers else None  # a lane reads one block at a time
                yield block_read
        finally:
            pool.shutdown(cancel_futures=True)
            for lane in lanes:
                lane.close()

    def _blocks_from(self, block: int) -> range:
        return range(block, -(-self.batches_per_epoch // self._per_block))

    def _batches_in(self, block: int) -> int:
        return min(self._per_block, self.batches_per_epoch - block * self._per_block)

    def _pieces(self, epoch: int, block: int) -> list[list[Piece]]:
        """Of which shards the lanes of this process read which samples."""
        order = np.argsort(_random(len(self._shards), self._seed, epoch, SHARDS), kind="stable")
        stops = np.cumsum(self._counts[order])
        out = []
        for lane in range(self._rank, self.lanes, self._world):
            rows = int(self._rows[lane])
            at = int(self._starts[lane]) + block * self._per_block * rows
            end = at + self._batches_in(block) * rows
            pieces = []
            for place in range(int(np.searchsorted(stops, at, side="right")), len(order)):
                if at >= end:
                    break
                shard = int(order[place])
                begins, ends = int(stops[place] - self._counts[shard]), min(int(stops[place]), end)
                piece = Piece(self._shards[shard], at - begins, ends - begins, int(self._firsts[shard]))
                pieces.append(piece)
                at = ends
            out.append(pieces)
        return out

    def _block(self, epoch: int, number: int, reads: Reads) -> _Block:
        """The samples that were read, their captions drawn and tokenised, in batches."""
        lanes = _filled_up([read.result() for read in reads])
        examples = {at: example for lane in lanes for at, example in lane}
        block = _Block(epoch, examples, self._store.concept_numbers)
        block.tokenise(self._tokenizer, self._max_tokens, self.captions_per_image, self._seed)
        batches = self._batches_in(number)
        turn = np.argsort(_random(batches, self._seed, epoch, BATCHES, number), kind="stable")
        rows = np.empty((batches, len(range(self._rank, self.batch_size, self._world))), np.int64)
        for mine, lane in enumerate(range(self._rank, self.lanes, self._world)):
            samples_L = np.array([at for at, _ in lanes[mine]], np.int64)
            samples_L = samples_L[
                np.argsort(_random(len(samples_L), self._seed, epoch, ORDER, number, lane), kind="stable")
            ]
            lengths_L = block.lengths[[block.row_of[at] for at in samples_L.tolist()]]
            alike = samples_L[np.argsort(lengths_L, kind="stable")].reshape(batches, -1)
            rows[:, mine :: len(lanes)] = alike[turn]
        block.rows = rows
        return block

    def _read(self, record: int, block: _Block, out_CHW: Tensor) -> None:
        example = block.examples[record]
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self._seed, block.epoch, AUGMENT, record]))
        )
        draw = partial(
            self._transform,
            generator=generator,
            may_flip=self._transform.flip and may_flip(example.captions),
            out_CHW=out_CHW.numpy(),
        )
        try:
            draw(self._plain(example.image))
        except Exception as error:  # the scan has decoded it, with the same bytes
            raise UserError(
                f"image {example.image_id} of the shards cannot be decoded, which the scan could ({error}): "
                "was another version of Pillow installed? run velm preprocess ... fresh=true"
            ) from error

    def _plain(self, image: bytes) -> bytes:
        """The image as it is, or as a store would keep it: upright, opaque, RGB."""
        if is_plain(image):
            return image
        dataset = self._store.dataset
        with _PILLOW:
            return normalise_image(
                image,
                image_size=dataset.image_size,
                quality=dataset.image_quality,
                max_pixels=dataset.max_pixels,
            ).jpeg


def _random(values: int, *names: int) -> np.ndarray:
    """`values` uint64 of the stream of that name; the i-th depends on nothing but the name and i."""
    return np.random.Philox(np.random.SeedSequence(names)).random_raw(values)


def _lanes(asked: int, batch_size: int, shards: int, world: int) -> int:
    """How many lanes an epoch has. UserError where the processes cannot share them, or a batch has too few rows."""
    lanes = asked or min(LANES, batch_size, shards)
    if not asked and lanes % world:
        return world
    if lanes % world or lanes > batch_size:
        raise UserError(
            f"dataset.lanes={lanes} must be a multiple of the {world} processes, and at most the {batch_size} images "
            "of a batch"
        )
    return lanes


def _filled_up(lanes: list[list[tuple[int, Example | None]]]) -> list[list[tuple[int, Example]]]:
    """The lanes with other samples of theirs, or of the others, in the places of those that were lost."""
    there = [[(at, example) for at, example in lane if example is not None] for lane in lanes]
    others = [sample for lane in there for sample in lane]
    if not others:
        raise StageError("no sample of a whole block of shards can be read; see the lines above")
    out = []
    for lane, mine in zip(lanes, there, strict=True):
        spare = mine or others
        lost = len(lane) - len(mine)
        out.append(mine + [spare[place % len(spare)] for place in range(lost)])
    return out


class _Block:
    """Samples that are shuffled together, as a Store and its Tokens to `assemble`; they are known by their number."""

    def __init__(self, epoch: int, examples: dict[int, Example], concept_numbers: dict[str, int]) -> None:
        self.epoch, self.examples, self._concept_numbers = epoch, examples, concept_numbers
        self.row_of = {number: row for row, number in enumerate(examples)}
        self.rows = np.zeros((0, 0), np.int64)  # [batches, B of this process]: numbers of samples

    def tokenise(self, tokenizer: Tokenizer, max_tokens: int, slots: int, seed: int) -> None:
        """Encode the captions and draw up to `slots` of each sample, in random order."""
        self.tokenizer = tokenizer
        texts = [caption for example in self.examples.values() for caption in example.captions]
        encoded = [ids[:max_tokens] for ids in tokenizer.encode_batch(texts)]
        self.ids = np.array([token for ids in encoded for token in ids], np.int64)
        self.offsets = np.cumsum([0, *(len(ids) for ids in encoded)])
        self.drawn = np.full((len(self.examples), slots), -1, np.int64)
        first = 0
        for row, (number, example) in enumerate(self.examples.items()):
            captions = len(example.captions)
            turn = [0]
            if captions > 1:
                turn = np.argsort(_random(captions, seed, self.epoch, CAPTIONS, number), kind="stable")[:slots].tolist()
            self.drawn[row, : len(turn)] = [first + caption for caption in turn]
            first += captions
        words = np.diff(self.offsets)
        self.lengths = np.where(self.drawn >= 0, words[self.drawn], 0).max(axis=1)  # of the longest caption drawn

    def example_id(self, i: int) -> int | str:
        return self.examples[i].image_id

    def concepts(self, i: int) -> np.ndarray:
        return labels_of(self.examples[i].captions, self._concept_numbers)
