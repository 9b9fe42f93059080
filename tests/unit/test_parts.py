"""An array job makes the same store as one process, whatever its parts meet; and nobody destroys another's work."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from velm_cli import files
from velm_cli.data.examples import Corpus, captioned
from velm_cli.data.making import build_part, build_store
from velm_cli.data.parts import Part, parse_part, sole_writer
from velm_cli.errors import UserError
from velm_cli.schema import FolderConfig, ManifestConfig, PreprocessConfig, PreprocessRoot, TokenizerConfig
from velm_cli.stages import preprocess

DATASET = ManifestConfig(root="photos", image_size=32)
OPTIONS = PreprocessConfig(workers=1, shard_images=8, num_concepts=20)
MERGE = replace(OPTIONS, part="merge")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """70 images in 9 shards, five of them refused."""
    folder = tmp_path_factory.mktemp("photos")
    records = []
    for i in range(70):
        Image.new("RGB", (40, 30), (3 * i, 0, 99)).save(folder / f"{i}.png")
        if i % 15 == 7:
            (folder / f"{i}.png").write_bytes(b"")
        records.append(captioned(i, "train", folder / f"{i}.png", (f"a dog and number {i}", "a dog")))
    return Corpus(records)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> dict[str, bytes]:
    """Every file of the store that one process makes."""
    path = tmp_path_factory.mktemp("stores") / "whole"
    build_store(corpus, DATASET, OPTIONS, path, progress=False)
    return contents(path)


@pytest.fixture
def merged(corpus, whole, tmp_path) -> Path:
    """A store whose parts are all made; only merging is left."""
    path = tmp_path / "store"
    path.mkdir()
    for name, data in whole.items():
        if name.startswith("images/") or name == "plan.json":
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(data)
    (path / ".parts").write_text("4\n")
    return path


def test_parts_side_by_side_make_the_same_bytes(corpus, whole, tmp_path):
    path = tmp_path / "store"

    def make(number: int) -> tuple[int, int]:
        return build_part(corpus, DATASET, OPTIONS, path, Part(number, 3), progress=False)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(make, (1, 2, 3))) == [(3, 3)] * 3
    assert make(2) == (0, 3)
    store = build_store(corpus, DATASET, MERGE, path, progress=False)
    assert contents(path) == whole
    assert len(store) == 65
    assert make(1) == (0, 0), "the store is complete"


def test_without_locks_the_same_part_may_be_made_twice_at_once(corpus, whole, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    path = tmp_path / "store"

    def make(number: int) -> None:
        build_part(corpus, DATASET, OPTIONS, path, Part(number, 2), progress=False)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(make, (1, 2, 2)))
    build_store(corpus, DATASET, OPTIONS, path, progress=False)
    assert contents(path) == whole


def test_merge_names_the_parts_that_are_missing(corpus, whole, merged, capsys):
    for shard in (2, 6, 3):  # of parts 3, 3 and 4 of 4
        (merged / f"images/shard-{shard:05d}.tar").unlink()
    before = contents(merged)
    with pytest.raises(UserError) as error:
        build_store(corpus, DATASET, MERGE, merged, progress=False)
    assert str(error.value) == (
        f"the store {merged} is not finished (3 of 9 shards are missing, first shard-00002.tar); run: velm preprocess "
        "dataset=manifest dataset.root=photos dataset.image_size=32 preprocess.workers=1 preprocess.shard_images=8 "
        "preprocess.num_concepts=20 preprocess.part=3/4 (and parts 4/4), or without preprocess.part to make all here"
    )
    assert {name for name in contents(merged) if not name.startswith(".")} == {n for n in before if n[0] != "."}
    assert build_part(corpus, DATASET, OPTIONS, merged, Part(3, 4), progress=False) == (2, 2)
    build_store(corpus, DATASET, OPTIONS, merged, progress=False)  # finishes what is left
    assert contents(merged) == whole
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", ["tar", "idx.npy", "json"])
def test_a_damaged_shard_is_found_and_made_again(corpus, whole, merged, suffix, capsys):
    file = merged / f"images/shard-00005.{suffix}"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    with pytest.raises(
        UserError, match=r"is damaged \(1 of 9 shards, now removed: .*shard-00005.*part=2/4, or without"
    ):
        build_store(corpus, DATASET, MERGE, merged, progress=False)
    assert build_part(corpus, DATASET, OPTIONS, merged, Part(2, 4), progress=False) == (1, 2)
    file.write_bytes(data)
    build_store(corpus, DATASET, OPTIONS, merged, progress=False)
    assert contents(merged) == whole
    said = capsys.readouterr().out
    assert said.startswith("made again: ") and f"shard-00005.{suffix}" in said and said.count("\n") == 1


def test_parts_of_other_options_are_left_alone(corpus, whole, merged):
    before = contents(merged)
    other = replace(DATASET, image_size=24)
    for act in (
        lambda: build_part(corpus, other, OPTIONS, merged, Part(1, 4), progress=False),
        lambda: build_store(corpus, other, OPTIONS, merged, progress=False),
        lambda: build_store(corpus, other, MERGE, merged, progress=False),
    ):
        with pytest.raises(UserError, match=r"begun from something else: dataset.image_size=32 \(now 24\); give the"):
            act()
        assert {n: d for n, d in contents(merged).items() if ".writing" not in n} == before


def test_who_may_write_at_once(tmp_path):
    with sole_writer(tmp_path, Part(1, 4)), sole_writer(tmp_path, Part(2, 4)):
        for part, words in ((Part(2, 4), "making part 2/4"), (None, "writing")):
            with pytest.raises(UserError, match=f"another velm preprocess is {words}"), sole_writer(tmp_path, part):
                pass
    with sole_writer(tmp_path, None):
        for part in (Part(1, 4), None):
            with pytest.raises(UserError, match="is writing"), sole_writer(tmp_path, part):
                pass
    assert list(tmp_path.iterdir()) == []


def test_spelling():
    assert (parse_part("3/8"), parse_part("merge"), parse_part(None)) == (Part(3, 8), None, None)
    for text in ("0/8", "9/8", "3", "3/", "-1/8", "all", "1/0", "¹/8", ""):
        with pytest.raises(UserError, match="parts of 8 are 1/8, 2/8 to 8/8; merge checks"):
            parse_part(text)
    shards = [[shard for shard in range(10) if Part(number, 3).has(shard)] for number in (1, 2, 3)]
    assert shards == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_the_stage_says_what_is_next(tmp_path, capsys):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text("a red picture\n")
    config = PreprocessRoot(
        dataset=FolderConfig(root=str(root), store=str(tmp_path / "store"), val_fraction=0, test_fraction=0),
        tokenizer=TokenizerConfig(min_count=1),
        preprocess=replace(OPTIONS, shard_images=2),
    )
    for part, made in (("2/2", 1), ("1/2", 2), ("1/2", 0)):
        config.preprocess.part = part
        assert preprocess.run(config) == made
        out = capsys.readouterr().out
        assert f"part {part}    {made} of its {3 - int(part[0])} shards made now, all are there" in out
        assert "run the same with preprocess.part=merge" in out
    config.preprocess.part = "merge"
    assert preprocess.run(config) == 6
    assert json.loads((tmp_path / "store/manifest.json").read_text())["complete"]


KILLED = """
import pickle, sys
from pathlib import Path
from velm_cli.data.making import build_part
arguments = pickle.loads(Path(sys.argv[1]).read_bytes())
build_part(*arguments, progress=False)
"""


def test_a_killed_part_is_repeated_and_nothing_is_left_of_it(corpus, whole, tmp_path):
    import pickle

    path = tmp_path / "store"
    (tmp_path / "arguments").write_bytes(pickle.dumps((corpus, DATASET, OPTIONS, path, Part(1, 2))))
    part = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "arguments")])
    while not list(path.glob("images/shard-*.tar")):
        assert part.poll() is None
        time.sleep(0.002)
    os.kill(part.pid, signal.SIGKILL)
    part.wait()
    (path / "images" / ".shard-00002.tar.77-abc.tmp").write_bytes(b"half")
    (path / ".plan.json.77-abc.part").write_bytes(b"half")
    for number in (1, 2):
        build_part(corpus, DATASET, OPTIONS, path, Part(number, 2), progress=False)
    build_store(corpus, DATASET, MERGE, path, progress=False)
    assert contents(path) == whole


def test_a_full_disk_ends_in_one_line_and_leaves_what_is_whole(corpus, whole, tmp_path):
    """A limit on files' sizes stands for the disk: the third shard is the first that is over it."""
    path, bounds = tmp_path / "store", resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [len(whole[f"images/shard-{shard:05d}.tar"]) for shard in range(9)]
    large = Corpus([replace(r, targets=(r.targets[0] + " x" * (30_000 if i == 17 else 0),)) for i, r in
                    enumerate(corpus.examples)])  # fmt: skip
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) + 20_000, bounds[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*shard-00002\.tar: File too large; make room and run the"):
            build_store(large, DATASET, OPTIONS, path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert sorted(file.name for file in (path / "images").glob("*")) == sorted(
        f"shard-{shard:05d}.{suffix}" for shard in (0, 1) for suffix in ("tar", "idx.npy", "json")
    )
    build_store(large, DATASET, OPTIONS, path, progress=False)
    shutil.rmtree(path / "images")
    before = build_store(corpus, DATASET, OPTIONS, tmp_path / "old", progress=False).hash
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, bounds[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            build_store(large, DATASET, OPTIONS, tmp_path / "old", fresh=True, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert build_store(corpus, DATASET, OPTIONS, tmp_path / "old", progress=False).hash == before
