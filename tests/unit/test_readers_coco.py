"""The COCO reader: layouts, splits, absent images, broken files, and the captions inside the jar."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import sys
import zipfile
from pathlib import Path

import pytest

from velm_cli import schema
from velm_cli.data.examples import captioned
from velm_cli.data.readers import coco, read
from velm_cli.errors import UserError

CocoSplit, Missing = schema.CocoSplit, schema.Missing


def captions_file(captions: dict[int, list[str]], folder: str, first_id: int = 1) -> dict:
    """A captions file with annotations in random order; `captions` by image id."""
    prefix = f"COCO_{folder}_" if folder.endswith("2014") else ""
    pairs = [(image_id, text) for image_id, texts in captions.items() for text in texts]
    annotations = [
        {"id": first_id + number, "image_id": image_id, "caption": text}
        for number, (image_id, text) in enumerate(pairs)
    ]
    random.shuffle(annotations)
    images = [{"id": image_id, "file_name": f"{prefix}{image_id:012d}.jpg"} for image_id in captions]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def write_coco(root: Path, train: dict, val: dict, year: str = "2014", images: bool = True) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, captions, first_id in (("train", train, 1), ("val", val, 10_000)):
        folder = f"{part}{year}"
        content = captions_file(captions, folder, first_id)
        (root / "annotations" / f"captions_{folder}.json").write_text(json.dumps(content))
        (root / folder).mkdir(exist_ok=True)
        for image in content["images"] if images else ():
            (root / folder / image["file_name"]).write_bytes(b"x")
    return root


def write_split(path: Path, **parts: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(parts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def some_captions(ids: list[int]) -> dict[int, list[str]]:
    return {i: [f"caption {random.random()} of {i}" for _ in range(random.randint(1, 6))] for i in ids}


def official(root: Path, **options) -> schema.CocoConfig:
    return schema.CocoConfig(root=str(root), split=CocoSplit.official2014, **options)


@pytest.fixture
def fake_jar(tmp_path, monkeypatch):
    """Puts a pycocoevalcap with a small jar first on the path; returns what writes the jar."""
    package = tmp_path / "site" / "pycocoevalcap"
    (package / "spice").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the reader must not import this')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)

    def write(train: dict, val: dict) -> None:
        with zipfile.ZipFile(package / "spice" / "spice-1.0.jar", "w") as jar:
            for folder, captions, first in (("train2014", train, 1), ("val2014", val, 10_000)):
                content = json.dumps(captions_file(captions, folder, first))
                jar.writestr(f"coco/annotations/captions_{folder}.json", content)

    return write


# ------------------------------------------------------------------------------- layouts and splits


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_official_split_gives_captions_in_annotation_order(tmp_path, year):
    ids = random.sample(range(1, 600_000), 40)
    train, val = some_captions(ids[:30]), some_captions(ids[30:])
    write_coco(tmp_path, train, val, year)
    corpus = read(schema.CocoConfig(root=str(tmp_path), split=CocoSplit[f"official{year}"]))
    prefix = {"2014": "COCO_{}2014_", "2017": ""}[year]
    expected = [
        captioned(i, part, tmp_path / f"{part}{year}" / f"{prefix.format(part)}{i:012d}.jpg", tuple(texts[i]))
        for part, texts in (("train", train), ("val", val))
        for i in sorted(texts)
    ]
    assert corpus.examples == expected
    assert corpus.counts() == {"train": 30, "val": 10, "test": 0}
    assert (corpus.notes, corpus.refused) == ([], [])


@pytest.mark.parametrize("where", ["", "annotations", "karpathy"])
@pytest.mark.parametrize("name", ["karpathy_split.json", "karpathy_split.json.gz"])
def test_karpathy_ids_are_found_and_restval_joins_train(tmp_path, where, name):
    write_coco(tmp_path, some_captions([1, 2]), some_captions([3, 4, 5]))
    write_split(tmp_path / where / name, train=[1, 2], restval=[3], val=[4], test=[5])
    corpus = read(schema.CocoConfig(root=str(tmp_path)))
    assert [(r.id, r.split) for r in corpus.examples] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (4, "val"),
        (5, "test"),
    ]
    assert corpus.notes == [f"split: {tmp_path / where / name} names 5 of 123,287 images (train 3, val 1, test 1)"]


def test_karpathys_own_file_gives_the_same_records_as_a_list_of_ids(tmp_path):
    write_coco(tmp_path, some_captions([1, 2]), some_captions([3, 4]))
    parts = {"train": [1, 2], "restval": [3], "test": [4]}
    ids = write_split(tmp_path / "ids.json", **parts)
    images = [
        {
            "cocoid": image_id,
            "split": part,
            "filename": f"{image_id}.jpg",
            "filepath": "val2014",
            "sentences": [{"tokens": ["a", "b"], "raw": "A b.", "imgid": 0, "sentid": 0}],
        }
        for part, members in parts.items()
        for image_id in members
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    by_file = read(schema.CocoConfig(root=str(tmp_path)))
    assert by_file.counts() == {"train": 3, "val": 0, "test": 1}
    assert by_file.examples == read(schema.CocoConfig(root=str(tmp_path), split_file=str(ids))).examples
    assert by_file.examples == read(schema.CocoConfig(root=str(tmp_path), split_file="ids.json")).examples


def test_karpathy_reads_2017_annotations_and_images_wherever_they_lie(tmp_path):
    captions = some_captions([1, 2, 3, 4])
    write_coco(tmp_path / "a", {1: captions[1], 2: captions[2]}, {3: captions[3], 4: captions[4]}, images=False)
    write_split(tmp_path / "a" / "karpathy_split.json", train=[1, 2], val=[3], test=[4])
    places = {
        1: "train2017/000000000001.jpg",
        2: "train2014/COCO_train2014_000000000002.jpg",
        3: "train2017/000000000003.jpg",  # of val2014, in train2017 since 2017
        4: "images/val2017/000000000004.jpg",
    }
    for place in places.values():
        (tmp_path / "a" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / place).write_bytes(b"x")
    corpus = read(schema.CocoConfig(root=str(tmp_path / "a")))
    assert {r.id: r.image for r in corpus.examples} == {i: tmp_path / "a" / p for i, p in places.items()}

    write_coco(tmp_path / "b", {i: captions[i] for i in (1, 2, 3)}, {4: captions[4]}, year="2017")
    split_file = str(tmp_path / "a" / "karpathy_split.json")
    moved = read(schema.CocoConfig(root=str(tmp_path / "b"), split_file=split_file))
    assert [(r.id, r.split, r.targets) for r in moved.examples] == [(r.id, r.split, r.targets) for r in corpus.examples]


def test_images_no_part_names_and_ids_without_annotation_are_noted(tmp_path):
    write_coco(tmp_path, some_captions([1, 2, 30, 4]), some_captions([5]))
    write_split(tmp_path / "karpathy_split.json", train=[1], val=[5], test=[77, 8])
    corpus = read(schema.CocoConfig(root=str(tmp_path)))
    assert [r.id for r in corpus.examples] == [1, 5]
    assert corpus.notes[1:] == [
        "left out 3 annotated images that karpathy_split.json does not name (first: 2, 4, 30)",
        "2 images of karpathy_split.json have no annotation (first: 8, 77)",
    ]


def test_a_complete_list_must_be_karpathys(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "KARPATHY_IMAGES", 5)
    monkeypatch.setattr(coco, "KARPATHY_COUNTS", {"train": 3, "val": 1, "test": 1})
    write_coco(tmp_path, some_captions([1, 2, 3]), some_captions([4, 5]))
    path = write_split(tmp_path / "karpathy_split.json", train=[1, 2], restval=[3], val=[4], test=[5])
    corpus = read(schema.CocoConfig(root=str(tmp_path)))
    assert corpus.notes == [f"split: Karpathy, from {path} (train 3, val 1, test 1)"]
    write_split(path, train=[1, 2, 3], val=[4, 5])
    with pytest.raises(UserError) as error:
        read(schema.CocoConfig(root=str(tmp_path)))
    assert str(error.value) == (
        f"{path} is not Karpathy's split: it has train 3, val 2, test 0; his has train 3, val 1, test 1"
    )


# ------------------------------------------------------------------------------------ absent images


def test_absent_images_are_an_error_that_names_the_fix(tmp_path):
    write_coco(tmp_path, some_captions([1, 2, 3]), some_captions([4]))
    absent = tmp_path / "train2014" / "COCO_train2014_000000000002.jpg"
    absent.unlink()
    for missing in (Missing.auto, Missing.error):
        with pytest.raises(UserError) as error:
            read(official(tmp_path, missing=missing))
        assert str(error.value) == (
            f"1 of 4 annotated images are missing, first {absent}; "
            "add them, or leave them out with dataset.missing=skip"
        )
    corpus = read(official(tmp_path, missing=Missing.skip))
    assert [r.id for r in corpus.examples] == [1, 3, 4]
    assert corpus.notes == ["skipped 1 of 4 annotated images whose file is missing (first: 2)"]
    captions_only = read(official(tmp_path, images=False))
    assert [(r.id, r.image) for r in captions_only.examples] == [(i, None) for i in (1, 2, 3, 4)]


def test_nothing_left_is_an_error(tmp_path):
    write_coco(tmp_path, some_captions([1]), some_captions([2]), images=False)
    with pytest.raises(UserError, match="no example is left: 2 images have captions, but none has its file"):
        read(official(tmp_path, missing=Missing.skip))
    write_coco(tmp_path, {1: ["  "]}, {2: ["\n"]})
    with pytest.raises(
        UserError, match=r"no example is left: nothing .* 4 entries refused, first 1 \(caption 1 is empty"
    ):
        read(official(tmp_path))


# ------------------------------------------------------------------------- captions out of the jar


def test_jar_gives_the_records_of_cut_annotation_files(tmp_path, fake_jar):
    train, val = some_captions(list(range(1, 20))), some_captions(list(range(20, 30)))
    fake_jar(train, val)
    kept_train, kept_val = {i: train[i] for i in (2, 3, 11)}, {i: val[i] for i in (20, 29)}
    cut = write_coco(tmp_path / "cut", kept_train, kept_val)
    bare = tmp_path / "bare"
    bare.mkdir()
    for folder in ("train2014", "val2014"):
        (bare / folder).symlink_to(cut / folder)
    for parts in ({"split": CocoSplit.official2014}, {}):
        write_split(bare / "karpathy_split.json", train=[2, 3, 20], val=[11], test=[29, 28])
        write_split(cut / "karpathy_split.json", train=[2, 3, 20], val=[11], test=[29, 28])
        from_jar = read(schema.CocoConfig(root=str(bare), **parts))
        from_cut = read(schema.CocoConfig(root=str(cut), **parts))
        assert len(from_jar.examples) == 5
        assert from_jar.examples == [
            captioned(r.id, r.split, bare / r.image.relative_to(cut), r.targets) for r in from_cut.examples
        ]
    note = "captions: the complete official COCO 2014 set inside pycocoevalcap's jar"
    assert f"{note} (no annotation files in {bare})" in from_jar.notes
    assert "skipped 1 of 6 annotated images whose file is missing (first: 28)" in from_jar.notes
    with pytest.raises(UserError, match="24 of 29 annotated images are missing"):
        read(official(bare, missing=Missing.error))

    captions_only = read(schema.CocoConfig(split=CocoSplit.official2014, images=False))
    assert captions_only.counts() == {"train": 19, "val": 10, "test": 0}
    assert captions_only.notes == [note]


def test_neither_annotations_nor_jar(tmp_path, fake_jar):
    with pytest.raises(UserError, match="no COCO annotation files, and no pycocoevalcap"):
        read(official(tmp_path, images=False))


@pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed")
def test_every_official_caption_is_read(tmp_path):
    jar = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0]) / "spice/spice-1.0.jar"
    ids = {}
    longest: tuple[int, list[str]] = (0, [])
    for part in ("train", "val"):  # the reference: parsed here, without the reader
        content = json.loads(zipfile.ZipFile(jar).read(f"coco/annotations/captions_{part}2014.json"))
        ids[part] = sorted(image["id"] for image in content["images"])
        probe = random.choice(ids[part])
        rows = sorted((a["id"], a["caption"]) for a in content["annotations"] if a["image_id"] == probe)
        longest = (probe, [caption for _, caption in rows])
        del content
    path = write_split(
        tmp_path / "split.json.gz",
        train=ids["train"],
        restval=ids["val"][10_000:],
        val=ids["val"][:5_000],
        test=ids["val"][5_000:10_000],
    )
    corpus = read(schema.CocoConfig(images=False, split_file=str(path)))
    assert corpus.counts() == {"train": 113_287, "val": 5_000, "test": 5_000}
    read_ids = {record.id for record in corpus.examples}
    assert len(read_ids & set(ids["train"])) == len(ids["train"]) == 82_783
    assert len(read_ids & set(ids["val"])) == len(ids["val"]) == 40_504
    assert sum(len(record.targets) for record in corpus.examples) == 616_767
    assert corpus.refused == []
    probe, captions = longest
    (record,) = [record for record in corpus.examples if record.id == probe]
    assert record.targets == tuple(" ".join(caption.split()) for caption in captions)
    assert not any("\n" in target for record in corpus.examples for target in record.targets)


# ----------------------------------------------------------------------------------------- mistakes


def test_an_id_in_both_files_is_an_error(tmp_path):
    write_coco(tmp_path, some_captions([1, 2]), some_captions([2]))
    with pytest.raises(UserError, match=r"1 image ids are in two annotation files \(first: 2\)"):
        read(official(tmp_path))


def test_one_of_two_annotation_files(tmp_path):
    write_coco(tmp_path, some_captions([1]), some_captions([2]))
    (tmp_path / "annotations" / "captions_val2014.json").unlink()
    with pytest.raises(UserError, match=r"captions_train2014\.json is there but captions_val2014\.json is not"):
        read(official(tmp_path))


def test_karpathy_without_a_list_says_what_to_get(tmp_path):
    write_coco(tmp_path, some_captions([1]), some_captions([2]))
    with pytest.raises(UserError) as error:
        read(schema.CocoConfig(root=str(tmp_path)))
    assert str(error.value) == (
        "dataset.split=karpathy needs Karpathy's list: put his dataset_coco.json (from caption_datasets.zip) "
        f"into {tmp_path}, or give dataset.split_file; "
        "dataset.split=official2014 and official2017 need no list"
    )
    with pytest.raises(UserError, match=r"^dataset.split_file: /none.json does not exist$"):
        read(schema.CocoConfig(root=str(tmp_path), split_file="/none.json"))


def test_official2017_needs_its_files(tmp_path):
    write_coco(tmp_path, some_captions([1]), some_captions([2]))
    with pytest.raises(UserError, match=r"official2017 needs captions_train2017\.json and captions_val2017\.json"):
        read(schema.CocoConfig(root=str(tmp_path), split=CocoSplit.official2017))
