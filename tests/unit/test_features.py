"""Cached features: the numbers of the encoder, found again only for the same encoder, whole or not at all."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from velm_cli.data import features
from velm_cli.data.features import LOCK, PART, FeatureCache
from velm_cli.engine.signals import Stopped, StopRequest
from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed, write_json
from velm_cli.schema import FeatureCaching
from velm_cli.stages.encoding import _fill

RECORDS = 2 * PART + 37
TABLE = torch.randn(RECORDS, 3, 5, generator=torch.Generator().manual_seed(1))


class Encoder:
    """Looks features up in TABLE and remembers what it was asked for."""

    def __init__(self):
        self.asked: list[int] = []

    def __call__(self, records):
        self.asked += records.tolist()
        for start in range(0, len(records), 100):
            yield TABLE[records[start : start + 100]]


def fill(cache: FeatureCache, records: np.ndarray, encode) -> int:
    with cache.missing(records) as parts:
        return cache.write(parts, encode)


def read(cache: FeatureCache, records) -> torch.Tensor:
    out = cache.empty(len(records))
    for row, record in zip(out, records, strict=True):
        cache.read_into(record, row)
    return out


@pytest.mark.parametrize(("kind", "dtype"), [(FeatureCaching.bf16, torch.bfloat16), (FeatureCaching.fp32, torch.float)])
def test_what_was_encoded_is_read_back(tmp_path, kind, dtype):
    cache = FeatureCache(tmp_path, RECORDS, kind, {"encoder": "a"})
    assert fill(cache, np.arange(RECORDS), Encoder()) == RECORDS
    again = FeatureCache(tmp_path, RECORDS, kind, {"encoder": "a"})  # as another process would
    records = [RECORDS - 1, 0, PART, PART - 1, 7]
    assert again.shape == (3, 5)
    assert torch.equal(read(again, records), TABLE[records].to(dtype))


def test_only_the_parts_of_the_records_asked_for_are_encoded_and_only_once(tmp_path):
    cache = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {})
    first, second = Encoder(), Encoder()
    assert fill(cache, np.array([PART + 3, 2 * PART + 1]), first) == PART + 37
    assert sorted(first.asked) == list(range(PART, RECORDS))
    assert fill(cache, np.array([PART + 3, 2 * PART + 1]), second) == 0 and not second.asked
    assert fill(cache, np.arange(RECORDS), second) == PART
    assert second.asked == list(range(PART))
    (cache.folder / "part-00001.npy").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"cannot be read.*delete it"):
        read(FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {}), [PART])


def test_anything_that_features_depend_on_has_a_folder_of_its_own(tmp_path):
    caches = [
        FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {"weights": "a", "size": 224}),
        FeatureCache(tmp_path, RECORDS, FeatureCaching.bf16, {"weights": "a", "size": 224}),
        FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {"weights": "b", "size": 224}),
        FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {"weights": "a", "size": 256}),
    ]
    assert len({cache.folder for cache in caches}) == 4
    same = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {"size": 224, "weights": "a"})
    assert same.folder == caches[0].folder


def test_a_store_that_is_replaced_meanwhile_gets_no_features_of_the_old_one(tmp_path):
    old = FeatureCache(tmp_path / "store", RECORDS, FeatureCaching.fp32, {"store": "a"})

    def replaced(records):
        if 0 not in records:
            (tmp_path / "store").rename(tmp_path / "aside")
            new = FeatureCache(tmp_path / "store", RECORDS, FeatureCaching.fp32, {"store": "b"})
            fill(new, np.arange(PART), Encoder())
        yield TABLE[records] + 1

    with pytest.raises(UserError, match="is gone: was the store replaced"):
        fill(old, np.arange(RECORDS), replaced)
    again = FeatureCache(tmp_path / "store", RECORDS, FeatureCaching.fp32, {"store": "b"})
    assert fill(again, np.arange(RECORDS), Encoder()) == RECORDS - PART
    assert torch.equal(read(again, range(RECORDS)), TABLE)


def test_features_of_an_older_velm_are_found(tmp_path):
    older = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {"weights": "a"})
    fill(older, np.arange(RECORDS), Encoder())
    found = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {"weights": "a", "store": "b"})
    assert fill(found, np.arange(RECORDS), Encoder()) == 0
    assert torch.equal(read(found, range(RECORDS)), TABLE)


def test_killed_between_parts_it_goes_on_with_the_next(tmp_path):
    def dies(records):
        if 0 not in records:
            raise KeyboardInterrupt
        yield TABLE[records]

    cache = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {})
    with pytest.raises(KeyboardInterrupt):
        fill(cache, np.arange(RECORDS), dies)
    encoder = Encoder()
    assert fill(cache, np.arange(RECORDS), encoder) == RECORDS - PART
    assert 0 not in encoder.asked
    assert torch.equal(read(cache, range(RECORDS)), TABLE)


def test_two_runs_do_the_work_once(tmp_path, capfd):
    """While another process holds the lock, this one waits, and then finds the features there."""
    cache = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {})
    cache.folder.mkdir(parents=True)
    other = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {})
    encoder = Encoder()
    with (cache.folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=fill, args=(other, np.arange(RECORDS), encoder))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and not encoder.asked
        (cache.folder / "about.json").write_text(json.dumps({**cache.about, "shape": [3, 5]}))
        for part in range(3):
            np.save(cache.folder / f"part-{part:05d}.npy", TABLE[part * PART : (part + 1) * PART].numpy())
    waiting.join(10)
    assert not encoder.asked and "waiting for it" in capfd.readouterr().out
    assert torch.equal(read(other, [5, RECORDS - 1]), TABLE[[5, RECORDS - 1]])


def test_a_full_disk_is_said_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ROOM_LEFT", 1 << 60)
    cache = FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {})
    with pytest.raises(UserError, match=r"data.cache: features take .* GB are free; make room, or use data.cache=none"):
        fill(cache, np.arange(RECORDS), Encoder())
    assert not list(cache.folder.glob("part-*"))


class Threads:
    """Ranks that are threads of this process, with `engine.ranks.Ranks`' way to talk."""

    def __init__(self, world: int) -> None:
        self.world, self._here = world, threading.Barrier(world, timeout=60)
        self._said: dict[int, object] = {}

    def rank(self, number: int) -> SimpleNamespace:
        def of_all(value):
            self._said[number] = value
            self._here.wait()
            said = [self._said[rank] for rank in range(self.world)]
            self._here.wait()
            return said

        return SimpleNamespace(
            rank=number, world=self.world, first=number == 0, of_all=of_all, same=lambda value: of_all(value)[0]
        )


def fill_together(folder, encoders) -> list[int | str]:
    """What `_fill` gives on each rank: the count, or that it was stopped."""
    threads, found = Threads(len(encoders)), [None] * len(encoders)

    def one(number: int) -> None:
        cache = FeatureCache(folder, RECORDS, FeatureCaching.fp32, {})
        try:
            found[number] = _fill(cache, np.arange(RECORDS), encoders[number], threads.rank(number), StopRequest())
        except Stopped:
            found[number] = "stopped"

    ranks = [threading.Thread(target=one, args=(number,)) for number in range(len(encoders))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_work(tmp_path, world):
    encoders = [Encoder() for _ in range(world)]
    assert fill_together(tmp_path, encoders) == [RECORDS] * world
    asked = [record for encoder in encoders for record in encoder.asked]
    assert sorted(asked) == list(range(RECORDS))  # each once
    assert sum(bool(encoder.asked) for encoder in encoders) == min(world, -(-RECORDS // PART))
    straight = FeatureCache(tmp_path / "straight", RECORDS, FeatureCaching.fp32, {})
    fill(straight, np.arange(RECORDS), Encoder())
    assert {file.name: file.read_bytes() for file in straight.folder.glob("*.npy")} == {
        file.name: file.read_bytes() for file in FeatureCache(tmp_path, RECORDS, FeatureCaching.fp32, {}).folder.glob("*.npy")
    }  # fmt: skip
    assert fill_together(tmp_path, [Encoder() for _ in range(world)]) == [0] * world


def test_a_signal_to_one_rank_stops_all_and_nothing_is_lost(tmp_path):
    def told(records: np.ndarray):
        raise Stopped

    assert fill_together(tmp_path, [Encoder(), told]) == ["stopped", "stopped"]
    encoders = [Encoder(), Encoder()]
    again = fill_together(tmp_path, encoders)
    asked = sorted(record for encoder in encoders for record in encoder.asked)
    assert again == [len(asked)] * 2 and 0 < len(asked) < RECORDS


def filled(store, about: str, table: torch.Tensor) -> FeatureCache:
    cache = FeatureCache(store, RECORDS, FeatureCaching.fp32, {"encoder": about, "store": store.name})
    fill(cache, np.arange(RECORDS), lambda records: iter([table[records]]))
    return cache


def test_features_of_other_records_stores_and_encoders_do_not_pass(tmp_path):
    """Their checksums are right, and so is everything else about them."""
    ours, theirs = filled(tmp_path / "ours", "a", TABLE), filled(tmp_path / "theirs", "a", -TABLE)
    same = [PART - 1, 0]
    assert torch.equal(read(ours, same), TABLE[same]) and torch.equal(read(theirs, same), -TABLE[same])

    def again() -> FeatureCache:
        return FeatureCache(tmp_path / "ours", RECORDS, FeatureCaching.fp32, {"encoder": "a", "store": "ours"})

    for name in ("part-00000.npy", "part-00000.crc32.npy"):  # a part of another store
        shutil.copy(theirs.folder / name, ours.folder / name)
    with pytest.raises(UserError, match=r"part-00000.npy cannot be read \(the features of image 255 have changed"):
        read(again(), same)
    for name in ("part-00000.npy", "part-00000.crc32.npy"):  # rows of one store that change places
        rows = np.load(theirs.folder / name)
        rows[[0, 1]] = rows[[1, 0]]
        np.save(theirs.folder / name, rows)
    other = FeatureCache(tmp_path / "theirs", RECORDS, FeatureCaching.fp32, {"encoder": "a", "store": "theirs"})
    with pytest.raises(UserError, match="the features of image 0 have changed"):
        read(other, same)
    shutil.copy(theirs.folder / "about.json", ours.folder / "about.json")  # all of another's, under our name
    with pytest.raises(UserError, match="it is of other images or of another encoder"):
        read(again(), same)


def test_features_without_named_rows_are_read_and_added_to(tmp_path):
    """As the last version wrote them."""
    cache = filled(tmp_path, "a", TABLE)
    about = read_sealed(cache.folder / "about.json")
    del about["rows_named"]
    write_json(cache.folder / "about.json", sealed(about))
    sums = np.array([zlib.crc32(row.numpy().data) for row in TABLE[:PART]], np.uint32)
    np.save(cache.folder / "part-00000.crc32.npy", sums)
    for name in ("part-00001.npy", "part-00002.npy"):
        (cache.folder / name).unlink()
    older = filled(tmp_path, "a", TABLE)
    assert torch.equal(read(older, [0, PART, RECORDS - 1]), TABLE[[0, PART, RECORDS - 1]])
