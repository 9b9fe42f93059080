"""Streaming: shards as img2dataset and velm write them, in an order that nothing but seed and epoch decides."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_loader import all_same, take

from velm_cli.data import sources, tars
from velm_cli.data.batch import Batch, Columns, concept_labels
from velm_cli.data.examples import Corpus, captioned
from velm_cli.data.making import build_store
from velm_cli.data.opening import open_store
from velm_cli.data.order import Share
from velm_cli.data.pixels import Pixels
from velm_cli.data.sources import SourceError, list_shards, open_source
from velm_cli.data.stream_building import build_stream
from velm_cli.data.stream_store import StreamStore
from velm_cli.data.streaming import StreamLoader
from velm_cli.errors import StageError, UserError
from velm_cli.files import read_sealed, write_json
from velm_cli.schema import (
    Damaged,
    DataConfig,
    DoctorRoot,
    ManifestConfig,
    PreprocessConfig,
    TokenizerConfig,
    WebDatasetConfig,
)
from velm_cli.stages import doctor

SAMPLES = [7, 12, 1, 9, 15, 6]  # of each shard


def jpeg(number: int, size: tuple[int, int] = (40, 30), form: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """An image whose colour is its number."""
    colour = (number % 256, number // 256, 128)
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, key: str | None = None) -> list[tuple[str, bytes]]:
    """The members of a sample in img2dataset's layout."""
    key = key or f"{number:09d}"
    caption = f"photo number {number} of a dog" + " very" * (number % 7)
    about = {"caption": caption, "url": f"https://host/{number}.jpg", "key": key, "status": "success", "width": 40}
    return [(f"{key}.jpg", jpeg(number)), (f"{key}.json", json.dumps(about).encode()), (f"{key}.txt", caption.encode())]


def shards_in(folder: Path) -> None:
    number = 0
    for shard, count in enumerate(SAMPLES):
        members = [member for n in range(number, number + count) for member in sample(n)]
        write_tar(folder / f"{shard:05d}.tar", members)
        number += count


def stream(path: Path, urls, *, fresh: bool = False, **options) -> StreamStore:
    settings = {"num_val": 0, "shuffle": 12, "image_size": 24, "retries": 0} | options
    return build_stream(
        WebDatasetConfig(urls=urls, **settings), PreprocessConfig(workers=1), path, fresh=fresh, progress=False
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> StreamStore:
    place = tmp_path_factory.mktemp("stream")
    shards_in(place / "shards")
    return stream(place / "store", str(place / "shards/{00000..00005}.tar"))


def reopened(store: StreamStore, **options) -> StreamStore:
    opened = open_store(store.path, replace(store.dataset, **options))
    assert isinstance(opened, StreamStore)
    return opened


def loader(store: StreamStore, **options) -> StreamLoader:
    share = Share(**{name: options.pop(name) for name in ("rank", "world", "even") & options.keys()})
    settings = {"batch_size": 6, "pixels": Pixels(16, (0.5,) * 3, (0.5,) * 3), "seed": 3, "share": share}
    data = DataConfig(crop_scale=0.6, flip=True, workers=options.pop("workers", 0))
    tokens = store.tokens(TokenizerConfig(min_count=1))
    columns = Columns(tokens, DataConfig().captions_per_image, labels=concept_labels(store, 10))
    return StreamLoader(store, columns, data, max_tokens=40, **{**settings, **options})


def ids(batches: list[Batch]) -> list[str]:
    return [str(name) for batch in batches for name in batch.ids]


# ---------------------------------------------------------------------------------------- order


def test_an_epoch_has_every_sample_once_with_its_own_words_and_pixels(store):
    stream_loader = loader(store)
    assert store.counts == {"train": 50, "val": 0, "test": 0}
    assert stream_loader.batches_per_epoch == 8
    epoch = take(stream_loader.batches(), 8)
    assert len(set(ids(epoch))) == len(ids(epoch)) == 48
    tokenizer = store.tokens(TokenizerConfig(min_count=1)).tokenizer
    for batch in epoch:
        assert batch.image_XCHW is not None
        for row, name in enumerate(batch.ids):
            words = tokenizer.decode(batch.tokens_BKT[row, 0].tolist())
            assert words == f"photo number {int(name)} of a dog" + " very" * (int(name) % 7)
            red = (batch.image_XCHW[row, 0].mean() * 0.5 + 0.5) * 255
            assert abs(float(red) - int(name)) < 3, name
            assert [store.concept_names[c] for c in batch.labels["concepts"][row].nonzero()[:, 0]] == ["dog", "number"]
            assert batch.examples[row] == int(name)
    following = take(stream_loader.batches(8), 8)
    assert ids(following) != ids(epoch)
    assert Counter(ids(following)).most_common(1)[0][1] == 1


def test_lengths_are_alike_within_a_batch_and_batches_are_mixed(store):
    wide = reopened(store, shuffle=48)
    lengths = [sorted(batch.lengths_BK[:, 0].tolist()) for batch in take(loader(wide, batch_size=6).batches(), 8)]
    assert np.mean([row[-1] - row[0] for row in lengths]) < 2.5  # 6 in random batches
    assert [row[0] for row in lengths] != sorted(row[0] for row in lengths)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_sees_the_same_batches(store, world):
    alone = take(loader(store).batches(), 10)
    ranks = [take(loader(store, rank=rank, world=world).batches(), 10) for rank in range(world)]
    for number, whole in enumerate(alone):
        for rank in range(world):
            part = ranks[rank][number]
            assert part.ids == whole.ids[rank::world]
            assert torch.equal(part.image_XCHW, whole.image_XCHW[rank::world])
            width = part.tokens_BKT.shape[2]  # each process pads to its own longest caption
            assert torch.equal(part.tokens_BKT, whole.tokens_BKT[rank::world, :, :width])
    assert len({name for rank in ranks for name in ids(rank[:8])}) == 48


@pytest.mark.parametrize("start", [1, 7, 8, 13, 21])
def test_going_on_at_any_batch_gives_the_same_bits(store, start):
    straight = take(loader(store).batches(), 24)
    assert all_same(straight[start:], take(loader(store).batches(start), 24 - start))


def test_threads_change_nothing(store):
    assert all_same(take(loader(store).batches(), 20), take(loader(store, workers=3).batches(), 20))


def test_seeds_lanes_and_blocks_give_other_orders_of_the_same_samples(store):
    orders = [ids(take(stream_loader.batches(), 8)) for stream_loader in (
        loader(store), loader(store, seed=4), loader(reopened(store, lanes=1)), loader(reopened(store, shuffle=30)),
    )]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 4
    assert all(len(set(order)) == 48 for order in orders)


def test_too_many_processes_are_refused(store):
    with pytest.raises(UserError, match="batches of 2 images cannot be shared by 3 processes"):
        loader(store, batch_size=2, world=3)
    with pytest.raises(UserError, match=r"dataset.lanes=4 must be a multiple of the 3 processes"):
        loader(reopened(store, lanes=4), world=3)
    assert loader(store, world=5).lanes == 5


def test_reading_is_bounded_after_a_resume(store, monkeypatch):
    """Of the samples before batch 5 only those of its own block are read again."""
    read: list[int] = []
    understand = tars.samples

    def counting(file, wants, refuse=None):
        return understand(file, lambda number, ext: wants(number, ext) and (read.append(number) or True), refuse)

    monkeypatch.setattr("velm_cli.data.stream_lane.samples", counting)
    take(loader(store).batches(5), 1)  # blocks of two batches: batch 5 is the second of its block
    assert len(read) // 3 == 12


# ---------------------------------------------------------------------------------------- shards of all kinds


def test_velms_own_shards_bring_their_splits(tmp_path):
    records = []
    for number in range(30):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(jpeg(number))
        split = ("train", "val", "test")[0 if number < 20 else 1 if number < 26 else 2]
        records.append(captioned(number, split, path, (f"a cat {number}", f"one more cat {number}")))
    config = ManifestConfig(file="x", image_size=24)
    made = build_store(
        Corpus(records), config, PreprocessConfig(workers=1, shard_images=8), tmp_path / "own", progress=False
    )
    streamed = stream(tmp_path / "stream", str(made.path / "images/shard-*.tar"))
    assert streamed.counts == {"train": 20, "val": 6, "test": 4}
    assert [streamed.example_id(i) for i in streamed.split("val")] == list(range(20, 26))
    assert streamed.targets(int(streamed.split("test")[0])) == ["a cat 26", "one more cat 26"]
    stream_loader = loader(streamed, batch_size=5)
    epoch = take(stream_loader.batches(), 4)
    assert sorted(map(int, ids(epoch))) == list(range(20))
    assert all(batch.tokens_BKT.shape[1] == 2 and batch.num_targets == 10 for batch in epoch)


def test_images_to_validate_on_are_the_first_or_in_shards_of_their_own(tmp_path):
    write_tar(tmp_path / "a.tar", [member for n in range(40) for member in sample(n)])
    write_tar(tmp_path / "b.tar", [member for n in range(3) for member in sample(n)])
    first = stream(tmp_path / "first", str(tmp_path / "a.tar"), num_val=500)
    assert first.counts == {"train": 38, "val": 2, "test": 0}
    assert [first.example_id(i) for i in first.split("val")] == ["000000000", "000000001"]
    names = ids(take(loader(first, batch_size=19).batches(), 2))
    assert sorted(map(int, names)) == list(range(2, 40))
    named = stream(tmp_path / "named", [str(tmp_path / "a.tar")], val_urls=str(tmp_path / "b.tar"))
    assert named.counts == {"train": 40, "val": 3, "test": 0}
    assert Image.open(io.BytesIO(named.image_bytes(1))).height == 24
    assert named.manifest["counts"]["splits"]["train"]["captions"] == 40


def test_odd_members_are_counted_by_reason_and_survived(tmp_path):
    bomb = jpeg(1, (3000, 3000), "PNG")
    whole = jpeg(5)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG")
    noisy = buffer.getvalue()
    members = [
        *sample(0),
        ("../../escape.jpg", whole), ("/root.jpg", whole), ("noextension", b"x"), ("folder/.hidden", b"x"),
        ("b/1.jpg", whole), ("b/1.txt", "weiße Katze\nim Schnee".encode()),
        ("2.jpg", whole),
        ("3.txt", b"no image"),
        ("4.jpg", whole), ("4.json", b'{"caption": '),
        ("5.jpg", whole), ("5.json", b"[" * 100_000),
        ("6.jpg", noisy[: len(noisy) // 2]), ("6.txt", b"half a photo"),
        ("7.jpg", b"<html>404 Not Found</html>"), ("7.txt", b"text"),
        ("8.png", bomb), ("8.txt", b"bomb"),
        ("9.jpg", whole), ("9.txt", b"\xff\xfe\xff"),
        ("10.jpg", whole), ("10.txt", b"  \n "),
        ("11.webp", jpeg(7, form="WEBP")), ("11.txt", b"webp"), ("11.cls", b"7"),
        ("12.png", jpeg(8, form="PNG", mode="RGBA")), ("12.json", b'{"caption": "alpha"}'),
        ("13.PNG", jpeg(9, form="PNG", mode="P")), ("13.txt", b"palette"),
        ("14.jpg", jpeg(10, mode="CMYK")), ("14.txt", b"inks"),
        ("15.jpg", jpeg(11, (40, 10), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")),
        ("15.txt", b"turned"),
        ("long/" * 40 + "16.jpg", whole), ("long/" * 40 + "16.txt", b"long name"),
    ]  # fmt: skip
    before = sorted(path for path in tmp_path.parent.rglob("*"))
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        made = stream(
            tmp_path / f"store{form}", str(write_tar(tmp_path / f"{form}.tar", members, form)), max_pixels=1_000_000
        )
        rejects = [json.loads(line) for line in (made.path / "rejects.jsonl").read_text().splitlines()]
        assert Counter(reject["reason"].split(":")[0] for reject in rejects) == {
            "name": 4, "no caption": 2, "no image": 1, "bad JSON": 2, "truncated": 1, "not an image": 1,
            "too many pixels": 1, "bad text": 1,
        }  # fmt: skip
        batch = take(loader(made, batch_size=8).batches(), 1)[0]
        assert sorted(batch.ids) == sorted(["000000000", "b/1", "11", "12", "13", "14", "15", "long/" * 40 + "16"])
        words = made.tokens(TokenizerConfig(min_count=1)).tokenizer
        assert words.decode(batch.tokens_BKT[batch.ids.index("b/1"), 0].tolist()) == "weiße katze im schnee"
    new = {path.name for path in tmp_path.parent.rglob("*")} - {path.name for path in before}
    assert not new & {"escape.jpg", "root.jpg", "1.jpg"}


def test_the_field_of_the_captions_can_be_named(tmp_path):
    about = json.dumps({"caption": "alt text", "recaption": ["a detailed text", "another"]}).encode()
    members = [("1.jpg", jpeg(1)), ("1.txt", b"alt text"), ("1.json", about), *sample(2)]
    made = stream(tmp_path / "store", str(write_tar(tmp_path / "a.tar", members)), caption_key="recaption")
    assert made.counts["train"] == 1
    assert take(loader(made).batches(), 1)[0].num_targets == 2


# ---------------------------------------------------------------------------------------- bad days


def test_truncated_and_damaged_shards_stop_the_scan_or_are_used_as_far_as_they_go(tmp_path):
    good = write_tar(tmp_path / "0.tar", [member for n in range(6) for member in sample(n)])
    content = good.read_bytes()
    (tmp_path / "1.tar").write_bytes(content[: content.index(b"000000002.jpg") + 600])  # within the third photo
    (tmp_path / "2.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    (tmp_path / "3.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.tar: truncated: .*dataset\.damaged=skip"):
        stream(tmp_path / "store", str(tmp_path / "{0,1}.tar"))
    urls = str(tmp_path / "{0..4}.tar")
    made = stream(tmp_path / "store", urls, damaged=Damaged.skip, fresh=True)
    assert [shard.train for shard in made.shards] == [6, 2]
    reasons = [json.loads(line)["reason"] for line in (made.path / "rejects.jsonl").read_text().splitlines()]
    assert [reason[:25] for reason in reasons] == [
        "shard truncated: the tar ", "shard compressed with gzi", "shard truncated: the tar ", "shard cannot be opened: N",
    ]  # fmt: skip
    with pytest.raises(UserError, match="no sample to train on in 1 shards"):
        stream(tmp_path / "nothing", str(tmp_path / "3.tar"), damaged=Damaged.skip)


def test_a_killed_scan_goes_on_and_a_changed_list_is_refused(tmp_path, monkeypatch):
    shards_in(tmp_path / "shards")
    made = stream(tmp_path / "store", str(tmp_path / "shards"))
    (made.path / "manifest.json").unlink()
    (made.path / "scan/000003.json").unlink()
    kept = (made.path / "scan/000001.npy").stat().st_mtime_ns
    again = stream(tmp_path / "store", str(tmp_path / "shards"))
    assert again.hash == made.hash
    assert (made.path / "scan/000001.npy").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match=r"made from something else: dataset.urls=6 shards .* \(now 2 shards"):
        stream(tmp_path / "store", str(tmp_path / "shards/{00000,00001}.tar"))


@pytest.mark.parametrize("older", [False, True])
def test_a_scan_that_has_changed_is_made_again(tmp_path, capsys, older):
    shards_in(tmp_path / "shards")
    made = stream(tmp_path / "store", str(tmp_path / "shards"))
    whole = {path: path.read_bytes() for path in (made.path / "scan").iterdir()}
    for file, content in whole.items():
        (made.path / "manifest.json").unlink()
        changed = content.replace(b"dog", b"dig", 1) if file.suffix == ".json" else content[:-1] + b"?"
        assert changed != content
        file.write_bytes(changed)
        assert stream(tmp_path / "store", str(tmp_path / "shards")).hash == made.hash
        assert file.read_bytes() == content
        assert f"scanned again: {file.stem}.json" in capsys.readouterr().out
    if older:  # which sealed neither scans nor plan nor manifest
        for file in made.path.glob("scan/*.json"):
            write_json(file, json.loads(file.read_text())["scan"], indent=None)
        for name in ("plan.json", "manifest.json"):
            content = read_sealed(made.path / name)
            content.pop("crc32_of", None)
            write_json(made.path / name, content)
        assert stream(tmp_path / "store", str(tmp_path / "shards")).hash == made.hash
        (made.path / "manifest.json").unlink()
        assert stream(tmp_path / "store", str(tmp_path / "shards")).hash == made.hash
        assert "scanned again" not in capsys.readouterr().out


def test_a_changed_byte_of_the_manifest_is_found(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "store")
    file = tmp_path / "store/manifest.json"
    whole = file.read_text()
    for old, new in (('"train": 12', '"train": 11'), ('"first": 0', '"first": 1'), ('"most_captions": 1', '"most_captions": 3'),
                     ('"crc32": "', '"crc23": "'), ('"records": 50', '"records": 40')):  # fmt: skip
        assert old in whole
        file.write_text(whole.replace(old, new))
        with pytest.raises(UserError, match=r"manifest.json is damaged \("):
            open_store(tmp_path / "store")


def test_doctor_reads_the_shards_to_train_on(tmp_path, capsys):
    shards_in(tmp_path / "shards")
    made = stream(tmp_path / "store", str(tmp_path / "shards"), num_val=2)
    assert doctor.run(DoctorRoot(store=str(made.path))) == 0
    assert "50 records, all bytes are as they were written" in capsys.readouterr().out
    shard = tmp_path / "shards/00003.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"photo number")] ^= 1
    shard.write_bytes(content)
    (tmp_path / "shards/00004.tar").unlink()
    with pytest.raises(StageError, match=r"2 of . shards are damaged"):
        doctor.run(DoctorRoot(store=str(made.path)))
    said = capsys.readouterr().out
    assert "00003.tar: sample 000000020 has changed since" in said and "00004.tar: cannot be opened" in said


@pytest.mark.parametrize("fault", ["gone", "of another store"])
def test_a_stream_without_its_own_held_out_images_is_damaged(tmp_path, fault):
    """It would train without validation, and say nothing."""
    shards_in(tmp_path / "shards")
    copy = stream(tmp_path / "copy", str(tmp_path / "shards/{00000..00005}.tar"), num_val=2).path
    shutil.rmtree(copy / "held-out")
    if fault == "of another store":
        shutil.copytree(copy / "captions", copy / "held-out")
    with pytest.raises(UserError, match=r"held-out.* is (gone|of another store)"):
        open_store(copy)
    with pytest.raises(UserError, match="is damaged"):
        doctor.run(DoctorRoot(store=str(copy)))


def test_shards_that_change_or_vanish_while_training(tmp_path, capsys):
    shards_in(tmp_path / "shards")
    made = stream(tmp_path / "store", str(tmp_path / "shards/*.tar"))
    straight = ids(take(loader(made).batches(), 8))
    flipped = tmp_path / "shards/00001.tar"
    content = bytearray(flipped.read_bytes())
    content[content.index(b"\xff\xd8") + 400] ^= 1  # within the first JPEG
    flipped.write_bytes(content)
    with pytest.raises(StageError, match=r"00001\.tar: sample 000000007: it has changed since it was scanned"):
        take(loader(made).batches(), 8)
    skipping = reopened(made, damaged=Damaged.skip, urls=None)
    found = ids(take(loader(skipping).batches(), 8))
    assert len(found) == 48
    assert set(found) | {"000000007"} == set(straight) | {"000000007"}
    assert "000000007" not in found
    flipped.unlink()
    found = ids(take(loader(skipping, workers=2).batches(), 8))
    assert len(found) == 48
    lost = {f"{number:09d}" for number in range(7, 19)}
    assert set(found) == set(straight) - lost
    assert "skipped: shard " in capsys.readouterr().out
    assert found == ids(take(loader(skipping).batches(), 8))
    with pytest.raises(StageError, match="cannot be opened"):
        take(loader(reopened(made, urls=None)).batches(), 8)


def test_a_source_that_fails_midway_is_tried_again(store, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in sorted(store.path.parent.glob("shards/*.tar")):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    # One lane: fsspec's memory hands the same file, and its one position, to everybody who opens it.
    straight = take(loader(reopened(store, lanes=1)).batches(), 10)
    remote = reopened(store, urls="memory://bucket/{00000..00005}.tar", retries=2, lanes=1)
    assert all_same(straight, take(loader(remote, workers=2).batches(), 10))
    slept: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", slept.append)
    left = [0]
    opened = memory.open

    class Breaking:
        def __init__(self, file):
            self.file, self.reads = file, 0

        def read(self, count):
            self.reads += 1
            if self.reads > 12 and left[0] > 0:
                left[0] -= 1
                raise ConnectionResetError("connection reset by peer")
            return self.file.read(count)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    monkeypatch.setattr(type(memory), "open", lambda self, *a, **k: Breaking(opened(*a, **k)))
    left[0] = 2
    assert all_same(straight, take(loader(remote).batches(), 10))
    assert slept == [1, 2] or slept == [1, 1]
    left[0] = 10**9
    with pytest.raises(StageError, match=r"memory://bucket/0000\d.tar: unreadable: connection reset by peer"):
        take(loader(remote).batches(), 10)


# ---------------------------------------------------------------------------------------- sources


def test_what_urls_can_say(tmp_path):
    shards_in(tmp_path / "shards")
    names = [str(tmp_path / f"shards/{number:05d}.tar") for number in range(6)]

    def listed(urls, **options):
        return list_shards(WebDatasetConfig(urls=urls, **options))

    assert listed(str(tmp_path / "shards/{00000..00005}.tar")) == names
    assert listed(str(tmp_path / "shards")) == listed(str(tmp_path / "shards/*.tar")) == names
    assert listed(f"file://{tmp_path}/shards/0000[0-5].tar") == names
    assert listed([names[3], str(tmp_path / "shards/0000{1,4}.tar")]) == [names[3], names[1], names[4]]
    (tmp_path / "list.txt").write_text(f"# mine\n{names[5]}\n\n{tmp_path}/shards/{{00000..00001}}.tar\n")
    assert listed(str(tmp_path / "list.txt")) == [names[5], names[0], names[1]]
    assert listed("s3://b/{a,b}/{8..11}.tar") == [f"s3://b/{f}/{n}.tar" for f in "ab" for n in (8, 9, 10, 11)]
    assert listed("pipe:cat {0..1}.tar", pipes=True) == ["pipe:cat 0.tar", "pipe:cat 1.tar"]
    for urls, message in [
        (None, "give a path, a URL or a list"),
        ([1], "give a path, a URL or a list"),
        (str(tmp_path / "shards/*.tgz"), "no shard matches"),
        (str(tmp_path / "{3..1}.tar"), "counts backwards"),
        ([names[0], names[0]], "more than once"),
        (str(tmp_path / "absent.txt"), "cannot be read as a list"),
        ("pipe:cat x.tar", "say dataset.pipes=true if you trust it"),
        ("simplecache::s3://b/1.tar", "chained"),
    ]:
        with pytest.raises(UserError, match=message):
            listed(urls)


def test_protocols_whose_package_is_absent_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UserError, match="pip install fsspec s3fs"), open_source("s3://bucket/0.tar"):
        pass
    with pytest.raises(UserError, match="nothing is known by the protocol gopher://"), open_source("gopher://h/0.tar"):
        pass


def test_pipes_run_commands_without_a_shell_and_only_if_allowed(store, tmp_path):
    shards = store.path.parent / "shards"
    straight = take(loader(store).batches(), 10)
    piped = reopened(store, urls=f"pipe:cat {shards}/{{00000..00005}}.tar", pipes=True)
    assert all_same(straight, take(loader(piped).batches(), 10))
    with pytest.raises(UserError, match=r"say dataset.pipes=true"):
        loader(reopened(store, urls=f"pipe:cat {shards}/{{00000..00005}}.tar"))
    marker = tmp_path / "ran"
    command = f"pipe:cat {tmp_path}/absent.tar ; touch {marker}"
    with pytest.raises(SourceError, match=r"code 1: .*No such file"), open_source(command, pipes=True) as file:
        list(tars.samples(file, lambda number, extension: True))
    assert not marker.exists()
    with pytest.raises(SourceError, match="cannot be started"), open_source("pipe:no-such-program x", pipes=True):
        pass


def test_a_saved_config_cannot_allow_pipes(tmp_path):
    from velm_cli import configs
    from velm_cli.schema import TrainRoot

    saved = TrainRoot(dataset=WebDatasetConfig(urls="pipe:rm", pipes=True))
    folder = tmp_path / "run"
    folder.mkdir()
    text = configs.to_yaml(saved.dataset)
    (folder / "config.yaml").write_text("dataset:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    dataset = configs.load_dataset(folder)
    assert isinstance(dataset, WebDatasetConfig)
    assert dataset.urls == "pipe:rm"
    assert not dataset.pipes


def test_a_tar_that_claims_too_much_is_not_believed():
    def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT)

    def read(content: bytes):
        return list(tars.samples(io.BytesIO(content), lambda number, extension: True))

    with pytest.raises(SourceError, match="a name of 8,589,934,592 bytes"):
        read(header("pax", 8 << 30, tarfile.XHDTYPE))
    for record in (b"0 path=a\n", b"no path=a\n", b"9" * 5000 + b" path=a\n"):
        packed = record + bytes(-len(record) % tarfile.BLOCKSIZE)
        with pytest.raises(SourceError, match="damaged: pax records"):
            read(header("pax", len(record), tarfile.XHDTYPE) + packed)
    with pytest.raises(SourceError, match="ends within a member"):
        read(header("1.jpg", 8 << 30))
    huge = header("1.jpg", tars.MAX_MEMBER + 1)

    class Zeros(io.RawIOBase):
        """The header, then zeros without end: only as much as is skipped is ever asked for at once."""

        def __init__(self):
            self.sent, self.largest = 0, 0

        def read(self, count):
            self.largest = max(self.largest, count)
            data = huge[self.sent :][:count] if self.sent < len(huge) else b""
            data += bytes(count - len(data))
            self.sent += count
            return data

    zeros = Zeros()
    assert next(iter(tars.samples(zeros, lambda number, extension: True)))[1].parts == {"jpg": None}
    assert zeros.largest <= tars.SKIP


def test_a_closed_loader_leaves_no_threads(store):
    import threading

    with closing(loader(store, workers=2).batches()) as batches:
        list(islice(batches, 3))
        assert any(thread.name.startswith("velm-") for thread in threading.enumerate())
    assert not any(thread.name.startswith("velm-") for thread in threading.enumerate())
