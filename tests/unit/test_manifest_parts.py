"""Manifests: which part an image belongs to, which file a row means, several tables as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from velm import call

from velm_cli import schema
from velm_cli.data.examples import Corpus
from velm_cli.data.readers import check_root, read
from velm_cli.data.readers.parting import hash_part
from velm_cli.errors import UserError

NAMES = [f"{number}.jpg" for number in range(40)]


@pytest.fixture
def root(tmp_path) -> Path:
    for name in NAMES:
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def manifest(file: Path | str, **options) -> Corpus:
    return read(schema.ManifestConfig(file=str(file), **options))


def splits(corpus: Corpus) -> dict[object, str]:
    return {record.id: record.split for record in corpus.examples}


def lines(path: Path, *items: dict) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def coco(path: Path, names: list[str], captions: bool = True, **about) -> Path:
    images = [{"id": number, "file_name": name, **about} for number, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "caption": f"photo {n}"} for n in range(len(names))] if captions else []
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_where_no_row_says_its_part_a_hash_splits(root):
    corpus = manifest(lines(root / "m.jsonl", *({"image": name, "caption": "x"} for name in NAMES)), val_fraction=0.3)
    assert splits(corpus) == {name: hash_part(name, 0.3, 0.05) for name in NAMES}
    assert len(set(splits(corpus).values())) > 1
    (note,) = corpus.notes
    assert note.startswith("split by a hash of the path (train ") and "dataset.val_fraction=" in note
    with pytest.raises(UserError, match=r"dataset.val_fraction=0.5 and dataset.test_fraction=0.5 must not"):
        manifest(root / "m.jsonl", val_fraction=0.5, test_fraction=0.5)


def test_coco_of_ones_own_is_split_and_trained_on(root):
    corpus = manifest(coco(root / "annotations.json", NAMES))
    assert splits(corpus) == {number: hash_part(name, 0.05, 0.05) for number, name in enumerate(NAMES)}
    corpus = manifest(coco(root / "annotations.json", NAMES[:2], split="dev"))
    assert splits(corpus) == {0: "val", 1: "val"}


@pytest.mark.parametrize("pattern", ["captions_*.json", "captions_{train,val2014,test}.json"])
def test_one_file_a_part(root, pattern):
    for at, part in enumerate(("train", "val2014", "test")):
        coco(root / f"captions_{part}.json", NAMES[at * 5 : at * 5 + 5])
    corpus = manifest(root / pattern)
    assert splits(corpus) == {name: ("train", "val", "test")[at // 5] for at, name in enumerate(NAMES[:15])}
    assert "the tables give the same ids to different images: the path of an image is its id instead" in corpus.notes
    check_root(schema.ManifestConfig(file=str(root / pattern)))
    with pytest.raises(UserError, match=r"dataset.file: .*none_\*\.json does not exist; give a table"):
        check_root(schema.ManifestConfig(file=str(root / "none_*.json")))


def test_a_file_that_is_named_after_a_part_is_that_part(root):
    assert set(splits(manifest(coco(root / "my_train.json", NAMES[:5]))).values()) == {"train"}
    corpus = manifest(coco(root / "nocaps_val.json", NAMES[:5]))  # alone it can only be there to be scored on
    assert set(splits(corpus).values()) == {"test"}
    assert corpus.notes == [f"{root / 'nocaps_val.json'}: its images are test, as its name says"]
    corpus = manifest(coco(root / "image_info_test2014.json", NAMES[:5], captions=False))
    assert set(splits(corpus).values()) == {"test"}


def test_a_list_of_images_without_captions_is_all_test(root):
    corpus = manifest(lines(root / "m.jsonl", *({"image": name, "captions": []} for name in NAMES)))
    assert set(splits(corpus).values()) == {"test"} and len(corpus.examples) == 40
    assert corpus.notes == ["no image has a caption: all are test, to be captioned"]


def test_rows_of_an_image_may_say_its_part_once(root):
    rows = [{"image": "0.jpg", "caption": "x"}, {"image": "0.jpg", "caption": "y", "split": "val"}]
    assert splits(manifest(lines(root / "m.jsonl", *rows))) == {"0.jpg": "val"}


def test_paths_of_other_machines(root):
    (root / "deep").mkdir()
    (root / "deep" / "b\u00e9.JPG").write_bytes(b"x")
    rows = ["./0.jpg", f"file://{root}/1.jpg", "D:\\photos\\2.jpg", "b\u00e9.jpg", str(root / "4.jpg")]
    corpus = manifest(lines(root / "m.jsonl", *({"image": name, "caption": "x"} for name in rows)))
    assert {record.image for record in corpus.examples} == {
        *(root / name for name in ("0.jpg", "1.jpg", "2.jpg", "4.jpg")),
        root / "deep" / "b\u00e9.JPG",
    }


def test_columns_by_option_from_the_command_line(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    (root / "m.csv").write_text("Bild,Satz,Teil\n0.jpg,ein Hund,train\n1.jpg,eine Katze,test\n")
    words = ["preprocess", "dataset=manifest", "dataset.file=m.csv", "dataset.store=s", "dry_run=true"]
    assert call(*words) == 2
    assert "no column of images, or none of captions, among Bild, Satz, Teil; known are" in capsys.readouterr().err
    assert call(*words, "dataset.image_column=Bild", "dataset.caption_column=Satz", "dataset.split_column=Teil") == 0
    out = capsys.readouterr().out
    assert "train       1 images  1 captions" in out and "test        1 images  1 captions" in out


def test_an_archive_or_a_folder_is_named(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"photos\.zip is an archive: unpack it; give the folder"):
        check_root(schema.FolderConfig(root=str(tmp_path / "photos.zip")))
    with pytest.raises(UserError, match=r"is a folder; give a table .* give dataset=folder dataset.root="):
        check_root(schema.ManifestConfig(file=str(tmp_path)))
