"""The order of examples: named random streams, what an epoch draws from them, and the share of each process.

Every random number comes from a counter-based stream named by what it is for. Raw 64-bit numbers are sorted rather
than shuffled with numpy's methods, whose results may change between releases.

Suffixes: N examples of a split, K targets of an example, R runs of examples that share an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from velm_cli.errors import UserError

CAPTIONS, ORDER, BATCHES, AUGMENT, VIEW, SHARDS, RUNS, SHUFFLED = range(8)  # names of the random streams
TOGETHER = 8192  # examples whose texts are drawn at once: sorting needs several times their memory
WINDOW = 50  # batches whose examples are sorted by text length together: the more, the less padding

Random = Callable[[int, int], np.ndarray]  # name of a stream, how many -> uint64


def random_of(count: int, *names: int) -> np.ndarray:
    """`count` uint64 of the stream of that name; the i-th depends on nothing but the name and i."""
    return np.random.Philox(np.random.SeedSequence(names)).random_raw(count)


def generator_of(*names: int) -> np.random.Generator:
    """A generator that depends on nothing but its name."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(names)))


class Share(NamedTuple):
    """Which part of each global batch a process gets: that of `rank` of `world`; `even`: all have equally many."""

    rank: int = 0
    world: int = 1
    even: bool = False

    def batch_size(self, asked: int, available: int, noun: str, where: str) -> int:
        """Examples of a global batch: no more than there are. UserError where the processes cannot share them."""
        size = min(asked, available)
        if size < self.world or (self.even and size % self.world):
            how = "shared evenly" if self.even else "shared"
            raise UserError(
                f"batches of {size} {noun} cannot be {how} by {self.world} processes: "
                f"change run.batch_size={asked} or the number of processes ({where})"
            )
        return size

    def every(self, size: int) -> slice:
        """The rows r, r + world, r + 2 world, ... of `size`."""
        return slice(self.rank, size, self.world)

    def together(self, size: int) -> slice:
        """As many rows as `every` has, side by side: what belongs together stays on one process."""
        each, more = divmod(size, self.world)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))


def runs_of(images_N: np.ndarray, keys_N: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples of each image side by side, in the order of their `keys`, and where their runs begin.

    A run has at most `longest` examples of one image. int64 [N] places of the examples, int64 [R] places in these.
    """
    order_N = np.lexsort((keys_N, images_N))
    sorted_N = images_N[order_N]
    place_N = np.arange(len(order_N))
    first_N = np.ones(len(order_N), bool)
    first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    within_N = place_N - np.maximum.accumulate(np.where(first_N, place_N, 0))
    return order_N, np.flatnonzero(within_N % longest == 0)


def spans(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int64: start, start + 1, ... of each, `sizes` many, one after the other."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


def slots_of(ranges: np.ndarray, per_example: int) -> int:
    """K: as many slots as asked for, but no more than some example can fill."""
    return max(1, min(per_example, int((ranges[:, 1] - ranges[:, 0]).max())))


def draw_targets(ranges: np.ndarray, slots: int, random: Random) -> np.ndarray:
    """int64 [N, slots]: K targets of each example in random order, -1 where it has no more.

    Each target of the store has a random number in each epoch; an example's slots are its smallest ones.
    """
    keys = random(CAPTIONS, int(ranges[:, 1].max(initial=0)))
    drawn = np.full((len(ranges), slots), -1, np.int64)
    for start in range(0, len(ranges), TOGETHER):
        rows = slice(start, start + TOGETHER)
        counts = ranges[rows, 1] - ranges[rows, 0]
        owner = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = np.repeat(ranges[rows, 0], counts) + rank
        numbers = numbers[np.lexsort((keys[numbers], owner))]
        kept = rank < slots
        drawn[rows][owner[kept], rank[kept]] = numbers[kept]
    return drawn


def bucket(
    lengths_N: np.ndarray,
    batch_size: int,
    random: Random,
    runs: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """int64 [batches, batch_size]: a random order in which a batch holds examples of like `lengths`.

    `runs` (see `runs_of`) stay together, but for those that a batch's end cuts in two; None: each example is one.
    """
    batches = len(lengths_N) // batch_size
    kept = batches * batch_size
    if runs is None:
        longest_R, sizes_R = lengths_N, np.ones(len(lengths_N), np.int64)
    else:
        order_N, starts_R = runs
        sizes_R = np.diff(starts_R, append=len(order_N))
        longest_R = np.maximum.reduceat(lengths_N[order_N], starts_R)
    turn = np.argsort(random(ORDER, len(sizes_R)), kind="stable")
    ends = np.cumsum(sizes_R[turn])
    begins = ends - sizes_R[turn]
    turn, begins = turn[begins < kept], begins[begins < kept]
    sizes_R[turn[-1]] = kept - begins[-1]  # the last run's rest is left out with the runs after it
    cuts = np.searchsorted(begins, np.arange(WINDOW * batch_size, kept, WINDOW * batch_size))
    turn = np.concatenate([part[np.argsort(longest_R[part], kind="stable")] for part in np.split(turn, cuts)])
    rows = turn if runs is None else order_N[spans(starts_R[turn], sizes_R[turn])]
    return rows.reshape(batches, batch_size)[np.argsort(random(BATCHES, batches), kind="stable")]
