"""The store: same content, same hash, whatever happened on the way; and nothing is lost silently."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velm_cli.data import making
from velm_cli.data.examples import Corpus, ImageRef, captioned
from velm_cli.data.making import build_part, build_store
from velm_cli.data.opening import open_store
from velm_cli.data.parts import Part
from velm_cli.data.store import Ids, Store, preprocess_command, store_path
from velm_cli.data.store_folder import strangers
from velm_cli.errors import StageError, UserError
from velm_cli.files import read_sealed, sealed, write_json
from velm_cli.schema import (
    CocoConfig,
    CocoSplit,
    DoctorRoot,
    FlickrConfig,
    FolderConfig,
    ManifestConfig,
    PreprocessConfig,
    TokenizerConfig,
    TokenizerKind,
    VqaConfig,
)
from velm_cli.stages import doctor

DATASET = ManifestConfig(root="photos", image_size=48)
SMALL = PreprocessConfig(workers=2, shard_images=30, num_concepts=20)
THINGS = ["dog", "cat", "tree", "house", "kite", "wave", "man", "woman", "red", "green"]
WORDS = [*THINGS, "the", "a", "on", "with", "of"]


def make_corpus(folder: Path, count: int, damaged: int = 0, seed: int = 0) -> Corpus:
    """`count` pictures with captions in three splits; some files empty, cut short or not images."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    bad = set(rng.choice(count, damaged, replace=False).tolist())
    records = []
    for i in range(count):
        file = folder / f"{i}.jpg"
        pixels = rng.integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        damage = [b"", buffer.getvalue()[:300], b"no image at all"][i % 3]
        file.write_bytes(damage if i in bad else buffer.getvalue())
        split = "train" if i < 0.8 * count else "val" if i < 0.9 * count else "test"
        captions = tuple(" ".join(rng.choice(WORDS, 8)) + " é" for _ in range(int(rng.integers(0, 6))))
        records.append(captioned(1000 + i if i % 2 else f"name-{i}", split, file, captions))
    return Corpus(records)


def files_of(path: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `path`: time of change and content."""
    return {
        str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    corpus = make_corpus(tmp_path_factory.mktemp("corpus") / "photos", 200, damaged=20)
    return replace(corpus, refused=[("line 7", "not JSON")], notes=["a note"])


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory) -> Store:
    return build_store(corpus, DATASET, SMALL, tmp_path_factory.mktemp("stores") / "whole", progress=False)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 1000, 300_000])
def test_ids_are_found_in_their_file(tmp_path, count):
    rng = np.random.default_rng()
    texts = ["a,b", "ü\n", '"],', "", "7", "\ud800"]
    ids = [texts[n % 6] if n % 3 == 0 else n for n in rng.integers(-(2**62), 2**62, count).tolist()]
    write_json(tmp_path / "ids.json", ids)
    found = Ids(tmp_path / "ids.json")
    assert len(found) == count
    some = [*range(min(count, 200)), *rng.integers(0, count, 2000).tolist(), count - 1]
    assert [found[i] for i in some] == [ids[i] for i in some]
    for beyond in (-1, count):
        with pytest.raises(IndexError):
            found[beyond]


def test_everything_readable_comes_back(corpus, store):
    kept = [record for record in corpus.examples if record.image.stat().st_size > 300]
    assert len(kept) == len(store) == 180
    assert list(store.ids) == [record.id for record in kept]
    assert store.has_images
    for i, record in enumerate(kept):
        assert store.example_id(i) == record.id
        assert store.targets(i) == list(record.targets)
        start, stop = store.target_range(i)
        assert stop - start == len(record.targets)
        original, stored = Image.open(record.image), Image.open(io.BytesIO(store.image_bytes(i)))
        assert (stored.format, stored.size) == ("JPEG", (72, 48))
        small = original.resize((72, 48), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(stored, float) - np.asarray(small, float)).mean() < 6
    for name in ("train", "val", "test"):
        assert [kept[i].split == name for i in range(len(kept))] == np.isin(range(180), store.split(name)).tolist()
        assert store.counts[name] == len(store.split(name))


def test_labels_are_the_concept_words_of_the_captions(store):
    assert set(store.concept_names) == set(THINGS)
    for i in range(len(store)):
        said = set(" ".join(store.targets(i)).split())
        assert {store.concept_names[label] for label in store.concepts(i)} == said & set(store.concept_names)


def test_rejects_name_every_refused_input(corpus, store):
    rejects = [json.loads(line) for line in (store.path / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == 21 == store.manifest["counts"]["refused"]
    assert rejects == sorted(rejects, key=lambda reject: (str(reject["image_id"]), str(reject["file"])))
    by_id = {reject["image_id"]: reject for reject in rejects}
    assert by_id.pop("line 7") == {"image_id": "line 7", "file": None, "reason": "not JSON"}
    for record in corpus.examples:
        size = record.image.stat().st_size
        if size <= 300:
            reject = by_id.pop(record.id)
            kind = {0: "empty: ", 300: "truncated: "}.get(size, "not an image: ")
            assert reject["reason"].startswith(kind)
            assert reject["file"] == str(record.image)
    assert by_id == {}


def test_manifest_says_what_is_inside(store):
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["notes"] == ["a note"]
    assert manifest["options"]["image_size"] == 48
    counts = manifest["counts"]
    assert (counts["records"], counts["images"]) == (180, 180)
    assert counts["captions"] == sum(len(store.targets(i)) for i in range(180))
    assert counts["splits"]["val"]["records"] == store.counts["val"]
    assert len(manifest["shards"]) == 7
    names = []
    for shard in manifest["shards"]:
        with tarfile.open(store.path / "images" / shard["file"]) as tar:
            names += [name for name in tar.getnames() if name.endswith(".jpg")]
    assert len(names) == len(set(names)) == 180


def test_a_second_run_builds_and_writes_nothing(corpus, store, monkeypatch):
    before = files_of(store.path)
    monkeypatch.setattr(making, "build", lambda *_, **__: pytest.fail("it is complete"))
    again = build_store(corpus, DATASET, SMALL, store.path, progress=False)
    assert files_of(store.path) == before
    assert again.hash == store.hash


def test_hash_is_of_the_content(corpus, store, tmp_path):
    """Not of paths, times, shard sizes or workers; but of every caption, split, pixel and id."""
    shutil.copytree(corpus.examples[0].image.parent, tmp_path / "elsewhere")
    moved = [captioned(r.id, r.split, tmp_path / "elsewhere" / r.image.name, r.targets) for r in corpus.examples]
    other = PreprocessConfig(workers=1, shard_images=77, num_concepts=20)
    same = build_store(Corpus(moved), DATASET, other, tmp_path / "same", progress=False)
    assert same.hash == store.hash

    text = replace(DATASET, images=False)
    plain = build_store(Corpus(moved), text, SMALL, tmp_path / "text")
    assert not plain.has_images
    assert not (tmp_path / "text" / "images").exists()
    hashes = {store.hash, plain.hash}
    changes = [
        replace(moved[0], id="other", images=(ImageRef("other", moved[0].image),)),
        replace(moved[0], split="val"),
        replace(moved[0], targets=("other",)),
    ]
    for n, change in enumerate(changes):
        hashes.add(build_store(Corpus([change, *moved[1:]]), text, SMALL, tmp_path / f"{n}").hash)
    Image.new("RGB", (96, 64), "red").save(moved[0].image)
    hashes.add(build_store(Corpus(moved), DATASET, SMALL, tmp_path / "pixels", progress=False).hash)
    assert len(hashes) == 6


KILLED = """
import sys, pickle
from pathlib import Path
from velm_cli.data import making
from velm_cli.data.making import build_part, build_store
from velm_cli.data.parts import Part
corpus, dataset, preprocess = pickle.loads(Path(sys.argv[1]).read_bytes())
build_store(corpus, dataset, preprocess, Path(sys.argv[2]), progress=False)
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")
def test_a_killed_build_goes_on_from_its_shards(tmp_path):
    corpus = make_corpus(tmp_path / "photos", 20)
    rng = np.random.default_rng()
    for record in corpus.examples:  # large enough to take a while
        Image.fromarray(rng.integers(0, 256, (450, 600, 3), np.uint8)).save(record.image)
    many = [
        captioned(10_000 * n + i, r.split, r.image, r.targets) for n in range(20) for i, r in enumerate(corpus.examples)
    ]
    corpus = Corpus(many)
    few = PreprocessConfig(workers=2, shard_images=20, num_concepts=20)
    (tmp_path / "arguments").write_bytes(pickle.dumps((corpus, DATASET, few)))
    path = tmp_path / "store"
    build = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "arguments", path])
    while len(list(path.glob("images/shard-*.tar"))) < 3:
        assert build.poll() is None
        time.sleep(0.005)
    workers = children_of(build.pid)
    build.kill()
    build.wait()
    left = files_of(path / "images")
    whole = [name for name in left if name.endswith(".tar")]
    assert 3 <= len(whole) < 20
    with pytest.raises(UserError, match="is not finished; run: velm preprocess"):
        open_store(path)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # none is left behind
        assert time.monotonic() < deadline
        time.sleep(0.05)

    resumed = build_store(corpus, DATASET, few, path, progress=False)
    straight = build_store(corpus, DATASET, few, tmp_path / "straight", progress=False)
    assert resumed.hash == straight.hash
    after = files_of(path)
    assert all(after[f"images/{name}"] == left[name] for name in whole)  # not written again
    assert {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in files_of(tmp_path / "straight").items()
    }


def test_an_unfinished_store_of_something_else_is_started_over(corpus, store, tmp_path):
    path = tmp_path / "store"
    shutil.copytree(store.path, path)
    (path / "manifest.json").unlink()
    plan = {**read_sealed(path / "plan.json"), "dataset.image_size": 47}
    write_json(path / "plan.json", plan)  # without a seal, as an older velm's
    (path / "images" / "shard-00000.tar").write_bytes(b"of another build")
    for name in ("notes.txt", "images/notes.txt", "thesis/a.tex", ".git/config"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("precious")
    assert build_store(corpus, DATASET, SMALL, path, progress=False).hash == store.hash
    kept = [
        str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.read_bytes() == b"precious"
    ]
    assert sorted(kept) == [".git/config", "images/notes.txt", "notes.txt", "thesis/a.tex"]


def test_another_plan_is_refused_and_fresh_replaces(corpus, store, tmp_path):
    path = tmp_path / "store"
    shutil.copytree(store.path, path)
    smaller = replace(DATASET, image_size=32)
    before = files_of(path)
    with pytest.raises(UserError, match=r"dataset.image_size=48 \(now 32\); .*fresh=true.*dataset.store="):
        build_store(corpus, smaller, SMALL, path)
    one_less = replace(corpus, examples=corpus.examples[1:])
    with pytest.raises(UserError, match="other image ids or splits, other captions, other image files"):
        build_store(one_less, DATASET, SMALL, path)
    assert files_of(path) == before
    fresh = build_store(corpus, smaller, SMALL, path, fresh=True, progress=False)
    assert Image.open(io.BytesIO(fresh.image_bytes(0))).size == (48, 32)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_swap_that_was_cut_off_is_undone(corpus, store, tmp_path):
    shutil.copytree(store.path, tmp_path / ".store.old")
    assert build_store(corpus, DATASET, SMALL, tmp_path / "store").hash == store.hash
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_folders_that_are_no_store_are_left_alone(corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(UserError, match="is not a store"):
            build_store(corpus, DATASET, SMALL, tmp_path, fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '{"name": "app"}', "[" * 100_000, "no JSON", '{"format": 1, "steps": []}']
)
def test_a_plan_of_somebody_else_makes_no_store_of_a_folder(corpus, tmp_path, content):
    for name, text in (("plan.json", content), ("thesis/a.tex", "precious"), ("images/a.png", "precious")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = files_of(tmp_path)
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"is not a store|not velm's"):
            build_store(corpus, DATASET, SMALL, tmp_path, fresh=fresh)
        with pytest.raises(UserError, match=r"is not a store|not velm's"):
            build_part(corpus, DATASET, SMALL, tmp_path, Part(1, 2), fresh=fresh)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", [".store.old", ".store.new"])
@pytest.mark.parametrize("there", [False, True])
def test_hidden_folders_of_ones_own_beside_a_store_stay(corpus, store, tmp_path, name, there):
    (tmp_path / name).mkdir()
    (tmp_path / name / "diary.txt").write_text("precious")
    if there:
        shutil.copytree(store.path, tmp_path / "store")
    with pytest.raises(UserError, match=f"{name} exists and is not a store"):
        build_store(corpus, DATASET, SMALL, tmp_path / "store", fresh=True)
    build_store(corpus, DATASET, SMALL, tmp_path / "store", progress=False)
    assert (tmp_path / name / "diary.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["notes.txt", "images/a.png", "tokens/mine/ids.npy"])
def test_fresh_names_what_else_lies_in_a_store_before_it_does_anything(corpus, store, tmp_path, name):
    path = tmp_path / "store"
    shutil.copytree(store.path, path)
    (path / name).parent.mkdir(exist_ok=True, parents=True)
    (path / name).write_text("precious")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=f"holds {name}, which velm did not write"):
        build_store(corpus, DATASET, SMALL, path, fresh=True)
    assert files_of(tmp_path) == before


def test_fresh_replaces_a_store_with_tokens(corpus, tmp_path):
    for fresh in (False, True):
        made = build_store(corpus, DATASET, SMALL, tmp_path / "store", fresh=fresh, progress=False)
        assert made.tokens(TokenizerConfig(min_count=1)).cut == 0
        assert not list(strangers(made.path))


def test_a_store_behind_a_link_is_replaced_where_it_lies(corpus, tmp_path):
    disk, path = tmp_path / "disk/shapes", tmp_path / "stores/shapes"
    path.parent.mkdir()
    disk.mkdir(parents=True)
    path.symlink_to(disk)
    for size in (48, 32, 24):
        made = build_store(corpus, replace(DATASET, image_size=size), SMALL, path, fresh=size < 48, progress=False)
        assert made.path == path and made.image_size == size
        assert path.readlink() == disk
        assert [entry.name for entry in (*path.parent.iterdir(), *disk.parent.iterdir())] == ["shapes", "shapes"]


@pytest.mark.parametrize("name", ["/", "loop", "file", "file/store"])
def test_places_that_cannot_be_a_store_are_said_in_a_line(corpus, tmp_path, name):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for fresh in (False, True):
        with pytest.raises(UserError) as error:
            build_store(corpus, DATASET, SMALL, tmp_path / name, fresh=fresh)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        open_store(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"


def test_two_builds_at_once_are_refused(corpus, tmp_path):
    import fcntl

    path = tmp_path / "store"
    path.mkdir()
    with (path / ".writing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another velm preprocess is writing"):
            build_store(corpus, DATASET, SMALL, path)


def test_nothing_to_store(tmp_path):
    with pytest.raises(UserError, match="no examples"):
        build_store(Corpus([]), DATASET, SMALL, tmp_path / "a")
    corpus = make_corpus(tmp_path / "photos", 6, damaged=6)
    with pytest.raises(UserError, match=r"all 6 examples were refused \(the first: "):
        build_store(corpus, DATASET, SMALL, tmp_path / "b", progress=False)
    assert len((tmp_path / "b" / "rejects.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("option", ["memory_per_image", "seconds_per_image"])
@pytest.mark.parametrize("value", [0, -1, 1e30, float("nan"), float("inf")])
def test_limits_of_an_image_that_no_system_knows_are_refused(corpus, tmp_path, option, value):
    with pytest.raises(UserError, match=f"preprocess.{option}="):
        build_store(corpus, DATASET, replace(SMALL, **{option: value}), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_captions_may_be_absent(tmp_path):
    records = [captioned(i, "test", None, ()) for i in range(3)]
    store = build_store(Corpus(records), replace(DATASET, images=False), SMALL, tmp_path / "store")
    assert [store.targets(i) for i in range(3)] == [[], [], []]
    assert store.concepts(1).tolist() == []
    with pytest.raises(UserError, match="captions"):
        store.tokens(TokenizerConfig())


# ---------------------------------------------------------------------------------- open


def test_open_says_what_to_do(store, tmp_path):
    dataset = CocoConfig(root="/data/my coco", split=CocoSplit.official2014, image_size=300)
    command = "velm preprocess dataset=coco 'dataset.root=\"/data/my coco\"' dataset.image_size=300"
    with pytest.raises(UserError, match="does not exist; run: velm preprocess dataset=coco") as error:
        open_store(tmp_path / "absent", dataset)
    assert str(error.value).endswith(f"{command} dataset.split=official2014")
    path = tmp_path / "store"
    shutil.copytree(store.path, path)
    manifest = read_sealed(path / "manifest.json")
    (path / "manifest.json").write_text(json.dumps(sealed({**manifest, "format": 99})))
    with pytest.raises(UserError, match=r"has format 99.*fresh=true"):
        open_store(path)
    (path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    os.truncate(path / "images" / "shard-00001.tar", 5000)
    with pytest.raises(UserError, match=r"is damaged \(shard-00001.tar .*fresh=true"):
        open_store(path)


def test_store_paths_and_commands():
    assert store_path(CocoConfig()) == Path("stores/coco")
    assert store_path(CocoConfig(split=CocoSplit.official2014)) == Path("stores/coco-official2014")
    assert store_path(CocoConfig(images=False)) == Path("stores/coco-text")
    assert store_path(FolderConfig(store="x/y")) == Path("x/y")
    assert preprocess_command(FolderConfig(root="photos")) == "velm preprocess dataset=folder dataset.root=photos"
    flickr = FlickrConfig(root="/data/f30k", release="flickr30k")
    assert preprocess_command(flickr) == "velm preprocess dataset=flickr30k dataset.root=/data/f30k"


@pytest.mark.parametrize("value", ["a b.json", ["a.json", "b c.json"], {"train": "a, b.json", "val": ["c=.json"]}])
def test_commands_name_lists_as_hydra_reads_them(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    *_, word = shlex.split(preprocess_command(VqaConfig(questions=value)))
    assert OverridesParser.create().parse_override(word).value() == value


@pytest.mark.parametrize(
    "content",
    ["[]", '{"name": "app"}', '{"manifest_version": 3, "format": 1}', "[" * 100_000, "no JSON", '{"crc32": "0"}', "7",
     '{"format": 1, "hash": "x", "splits": [], "counts": 3, "shards": [], "options": {"images": true}}',
     '{"stream": {"shards": [{"number": "x"}]}}'],
)  # fmt: skip
def test_a_manifest_of_somebody_else_is_no_store(tmp_path, content, capsys):
    (tmp_path / "manifest.json").write_text(content)
    for work in (open_store, lambda path: doctor.run(DoctorRoot(store=str(path)))):
        with pytest.raises(UserError, match="is not a store of velm"):
            work(tmp_path)


def test_a_shard_that_is_cut_short_while_it_is_open_is_said_in_a_line(store, tmp_path):
    """Under a map this would be a SIGBUS, which ends the process without a word."""
    shutil.copytree(store.path, tmp_path / "store")
    opened = open_store(tmp_path / "store")
    opened.image_bytes(0)
    os.truncate(tmp_path / "store/images/shard-00000.tar", 0)
    with pytest.raises(UserError, match=f"image {opened.example_id(1)} of the store .* cannot be read"):
        opened.image_bytes(1)


def test_unknown_split_is_named(store):
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        store.split("dev")


def test_stores_and_tokens_travel_to_other_processes_by_name(store):
    tokens = store.tokens(TokenizerConfig(min_count=1))
    data = pickle.dumps((store, tokens))
    assert len(data) < 2000
    other, other_tokens = pickle.loads(data)
    assert other.image_bytes(3) == store.image_bytes(3)
    assert other_tokens.ids.tolist() == tokens.ids.tolist()


# ---------------------------------------------------------------------------------- tokens


def test_tokens_equal_the_tokenizer(store):
    tokens = store.tokens(TokenizerConfig(min_count=1))
    captions = [caption for i in range(len(store)) for caption in store.targets(i)]
    assert len(tokens.offsets) == len(captions) + 1
    assert tokens.ids.dtype == np.uint16
    for c, expected in enumerate(tokens.tokenizer.encode_batch(captions)):
        assert tokens.caption(c).tolist() == expected


def test_tokens_are_cut_and_kept_by_tokenizer(store):
    long, short = (
        store.tokens(TokenizerConfig(min_count=2)),
        store.tokens(TokenizerConfig(min_count=2, max_tokens=3)),
    )
    assert long.folder != short.folder
    for c in range(len(long.offsets) - 1):
        assert short.caption(c).tolist() == long.caption(c)[:3].tolist()
    before = files_of(store.path / "tokens")
    assert store.tokens(TokenizerConfig(min_count=2)).folder == long.folder
    assert store.encode(long.tokenizer, 40).folder == long.folder  # as a fine-tuning run asks
    assert files_of(store.path / "tokens") == before


def test_vocabulary_comes_from_training_captions_only(tmp_path):
    records = [
        captioned(1, "train", None, ("dog",)),
        captioned(2, "val", None, ("cat",)),
        captioned(3, "test", None, ("emu",)),
    ]
    store = build_store(Corpus(records), replace(DATASET, images=False), SMALL, tmp_path / "store")
    tokens = store.tokens(TokenizerConfig(kind=TokenizerKind.word, min_count=1))
    unknown = tokens.tokenizer.unk_id
    assert (tokens.ids != unknown).tolist() == [True, False, False]


def test_a_store_of_an_older_velm_without_checksums_still_opens(store, tmp_path):
    path = tmp_path / "store"
    shutil.copytree(store.path, path)
    manifest = read_sealed(path / "manifest.json")
    del manifest["crc32_of"]
    for shard in manifest["shards"]:
        del shard["index"]
        index_file = (path / "images" / shard["file"]).with_suffix(".idx.npy")
        np.save(index_file, np.load(index_file)[["record", "offset", "length", "sha256"]])
    (path / "manifest.json").write_text(json.dumps(manifest))
    old = open_store(path)
    assert [old.image_bytes(i) for i in range(len(old))] == [store.image_bytes(i) for i in range(len(store))]
    tar = path / "images/shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[np.load(tar.with_suffix(".idx.npy"))["offset"][0] + 99] ^= 4
    tar.write_bytes(data)
    with pytest.raises(UserError, match=r"image .* cannot be read .*changed since it was stored.*fresh=true"):
        [open_store(path).image_bytes(i) for i in range(len(old))]


def test_doctor_reads_every_byte_of_a_store(store, tmp_path, capsys):
    from velm_cli.schema import DoctorRoot
    from velm_cli.stages.doctor import run

    path = tmp_path / "store"
    shutil.copytree(store.path, path)
    assert run(DoctorRoot(store=str(path))) == 0
    assert "all bytes are as they were written" in capsys.readouterr().out
    tar = path / "images/shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[5] ^= 1  # in the name of a member, which velm itself never reads
    tar.write_bytes(data)
    with pytest.raises(StageError, match=r"1 of . shards are damaged"):
        run(DoctorRoot(store=str(path)))
    assert "shard-00000.tar has changed since it was written" in capsys.readouterr().out
    shutil.copy(store.path / "images/shard-00000.tar", tar)
    index = tar.with_suffix(".idx.npy")
    for damage in (lambda: index.write_bytes(index.read_bytes()[:-1] + b"x"), index.unlink):
        damage()
        with pytest.raises(StageError, match=r"1 of . shards are damaged"):
            run(DoctorRoot(store=str(path)))
        assert "shard-00000.idx.npy" in capsys.readouterr().out
