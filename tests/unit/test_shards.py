"""Shards are ordinary tars, are whole or absent, and give back any row by its number."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tarfile

import numpy as np
import pytest

from velm_cli.data.images import ImageRefused, NormalisedImage
from velm_cli.data.shards import (
    ShardReader,
    check_shard,
    index_path,
    read_index,
    shard_path,
    write_shard,
)  # fmt: skip
from velm_cli.errors import UserError
from velm_cli.files import whole_file


def random_samples(start: int, count: int):
    """(record, what its JSON says, image): bytes of any length, some refused."""
    rng = np.random.default_rng()
    samples = []
    for record in range(start, start + count):
        about = {
            "image_id": int(rng.integers(1 << 40)),
            "split": "train",
            "captions": ["ein Mädchen", "ünï\n"],
        }
        image = NormalisedImage(rng.bytes(int(rng.integers(1, 3000))), int(rng.integers(9, 999)), 77)
        samples.append((record, about, ImageRefused("bad: luck") if record % 7 == 3 else image))
    return samples


def good(samples):
    return [sample for sample in samples if isinstance(sample[2], NormalisedImage)]


def test_tarfile_reads_what_was_written(tmp_path):
    samples = random_samples(40, 30)
    write_shard(tmp_path, 2, samples, "plan")
    with tarfile.open(shard_path(tmp_path, 2)) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"{record:09d}.{suffix}" for record, _, _ in good(samples) for suffix in ("jpg", "json")
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        for record, about, image in good(samples):
            assert tar.extractfile(f"{record:09d}.jpg").read() == image.jpeg
            content = json.load(tar.extractfile(f"{record:09d}.json"))
            assert content == {**about, "width": image.width, "height": image.height}


def test_random_access_equals_the_tar(tmp_path):
    shards = [random_samples(0, 50), random_samples(50, 20)]
    for number, samples in enumerate(shards):
        write_shard(tmp_path, number, samples, "plan")
    reader = ShardReader(tmp_path)
    rows = [(shard, row) for shard in (0, 1) for row in range(len(good(shards[shard])))]
    np.random.default_rng().shuffle(rows)
    for shard, row in rows:
        record, _, image = good(shards[shard])[row]
        assert reader.read(shard, row) == image.jpeg
        entry = reader.index(shard)[row]
        assert entry["record"] == record
        assert entry["sha256"].tobytes() == hashlib.sha256(image.jpeg).digest()


def test_readers_work_in_forked_and_spawned_processes(tmp_path):
    samples = good(random_samples(0, 9))
    write_shard(tmp_path, 0, samples, "plan")
    reader = ShardReader(tmp_path)
    reader.read(0, 0)  # opened before the fork
    child = os.fork()
    if child == 0:
        same = all(reader.read(0, row) == image.jpeg for row, (_, _, image) in enumerate(samples))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    data = pickle.dumps(reader)
    assert len(data) < 500  # the folder's name, not the images
    assert pickle.loads(data).read(0, 5) == samples[5][2].jpeg


def test_same_samples_same_files(tmp_path):
    samples = random_samples(0, 25)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_shard(folder, 0, iter(samples), "plan")
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["shard-00000.idx.npy", "shard-00000.json", "shard-00000.tar"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_summary_names_size_digest_and_refusals(tmp_path):
    samples = random_samples(0, 25)
    write_shard(tmp_path, 0, samples, "plan")
    tar = shard_path(tmp_path, 0).read_bytes()
    summary = json.loads((tmp_path / "shard-00000.json").read_text())
    assert len(summary.pop("summary")) == 64
    assert summary == {
        "plan": "plan",
        "rows": len(good(samples)),
        "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
        "index": hashlib.sha256((tmp_path / "shard-00000.idx.npy").read_bytes()).hexdigest(),
        "refused": [[3, "bad: luck"], [10, "bad: luck"], [17, "bad: luck"], [24, "bad: luck"]],
    }
    assert len(tar) % tarfile.RECORDSIZE == 0


def test_any_flipped_byte_of_a_shard_is_found(tmp_path):
    samples = random_samples(0, 25)
    write_shard(tmp_path, 0, samples, "plan")
    summary = check_shard(tmp_path, 0, range(25), "plan")
    index = read_index(shard_path(tmp_path, 0), summary["index"])
    assert (summary["rows"], len(index)) == (len(good(samples)),) * 2
    rng = np.random.default_rng()
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        for where in rng.integers(0, len(whole), 40).tolist():
            file.write_bytes(whole[:where] + bytes([whole[where] ^ 1 << int(rng.integers(8))]) + whole[where + 1 :])
            with pytest.raises(ValueError, match="shard-00000"):
                check_shard(tmp_path, 0, range(25), "plan")
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="shard-00000"):
            check_shard(tmp_path, 0, range(25), "plan")
        file.write_bytes(whole)
    for records, plan in ((range(24), "plan"), (range(1, 26), "plan"), (range(25), "other")):
        with pytest.raises(ValueError, match=r"shard-00000\.tar (holds other records|was made from something else)"):
            check_shard(tmp_path, 0, records, plan)


def test_a_shard_of_refusals_only_is_an_empty_tar(tmp_path):
    write_shard(tmp_path, 0, [(0, {}, ImageRefused("bad: luck"))], "plan")
    with tarfile.open(shard_path(tmp_path, 0)) as tar:
        assert tar.getmembers() == []
    assert len(np.load(index_path(shard_path(tmp_path, 0)))) == 0


def test_a_shard_that_breaks_off_does_not_exist(tmp_path):
    def breaks_off():
        yield from random_samples(0, 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, 0, breaks_off(), "plan")
    assert list(tmp_path.iterdir()) == []


def test_the_index_is_there_before_the_tar(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(b.suffix), replace(a, b)))
    write_shard(tmp_path, 0, random_samples(0, 5), "plan")
    assert order == [".npy", ".json", ".tar"]


def test_whole_file_keeps_the_old_content_until_the_new_is_whole(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def fail_half_way():
        with whole_file(file) as new:
            new.write(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(UserError, match="cannot write"), whole_file(tmp_path / "no" / "folder"):
        pass
