"""Data of people's own: manifests of JSON lines and folders of images."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from pathlib import Path

import pytest

from velm_cli import schema
from velm_cli.data.examples import captioned
from velm_cli.data.readers import read
from velm_cli.data.readers.parting import hash_part
from velm_cli.errors import UserError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


# ------------------------------------------------------------------------------------------ manifest


def test_manifest_gives_records_with_defaults(tmp_path):
    images, file = tmp_path / "photos", tmp_path / "lists" / "data.jsonl"
    touch(images / "a.jpg", images / "deep" / "b.png", tmp_path / "lists" / "c.JPG")
    write_lines(
        file,
        {"image": "deep/b.png", "captions": ["two", " three\n"], "split": "test"},
        {"image": "a.jpg", "caption": "one"},
        {"image": "c.JPG", "captions": ["beside the list"], "split": "dev", "image_id": 7},
        {"image": "a.jpg", "caption": "one more"},
    )
    corpus = read(schema.ManifestConfig(root=str(images), file=str(file)))
    assert corpus.examples == [
        captioned("a.jpg", "train", images / "a.jpg", ("one", "one more")),
        captioned(7, "val", file.parent / "c.JPG", ("beside the list",)),
        captioned("deep/b.png", "test", images / "deep" / "b.png", ("two", "three")),
    ]
    assert corpus.notes == ["1 images whose rows say no part are train, as other rows do say theirs"]
    assert corpus.refused == []
    write_lines(file, {"image": "c.JPG", "caption": "no root given"})
    assert read(schema.ManifestConfig(file=str(file))).examples[0].image == file.parent / "c.JPG"


def test_a_manifest_may_be_cocos_json_with_or_without_captions(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    images = [{"id": 7, "file_name": "a.jpg", "domain": "in-domain"}, {"id": 3, "file_name": "b.jpg"}]
    file = tmp_path / "image_info_test2014.json"
    file.write_text(json.dumps({"images": images, "categories": []}))
    corpus = read(schema.ManifestConfig(file=str(file)))
    assert corpus.examples == [captioned(3, "test", tmp_path / "b.jpg"), captioned(7, "test", tmp_path / "a.jpg")]
    assert corpus.refused == []
    annotations = [{"id": 1, "image_id": 7, "caption": "one"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    corpus = read(schema.ManifestConfig(file=str(file)))
    assert [record.targets for record in corpus.examples] == [(), ("one",)]


def test_only_images_to_test_on_may_lack_captions(tmp_path):
    touch(*(tmp_path / f"{name}.jpg" for name in "abc"))
    file = write_lines(
        tmp_path / "data.jsonl",
        {"image": "a.jpg", "captions": [], "split": "test"},
        {"image": "b.jpg", "captions": [], "split": "val"},
        {"image": "c.jpg", "captions": [" "], "split": "test"},
    )
    corpus = read(schema.ManifestConfig(file=str(file)))
    assert [record.id for record in corpus.examples] == ["a.jpg"]
    assert [entry for entry in corpus.refused if entry[1] == "no usable caption"] == [
        ("b.jpg", "no usable caption"),
        ("c.jpg", "no usable caption"),
    ]


def test_bad_manifest_lines_are_refused_with_their_place(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    file = write_lines(
        tmp_path / "data.jsonl",
        {"image": "a.jpg", "caption": "good"},
        "{broken",
        "",
        {"caption": "of nothing"},
        {"image": "b.jpg"},
        {"image": "b.jpg", "caption": "x", "split": "trian"},
        ["a list"],
        {"image": "a.jpg", "caption": "x", "split": "val"},
        {"image": "b.jpg", "caption": "x", "image_id": 1.5},
        {"image": "b.jpg", "caption": "x", "image_id": "a.jpg"},
        {"image": "b.jpg", "captions": ["", 3]},
        "[" * 100_000,
    )
    with file.open("ab") as stream:
        stream.write(b'{"image": "b.jpg", "caption": "caf\xe9"}\n')
    corpus = read(schema.ManifestConfig(file=str(file)))
    assert [r.id for r in corpus.examples] == ["a.jpg"]
    by_place = {place.removeprefix(f"{file}:"): reason for place, reason in corpus.refused if str(file) in place}
    assert by_place == {
        "2": "not JSON: Expecting property name enclosed in double quotes (column 2)",
        "4": 'no "image": the path of the image file; the keys are caption',
        "5": 'no "captions" (a list) and no "caption": the keys are image',
        "6": "unknown split: 'trian' is not train, val or test; did you mean 'train'?",
        "7": "not an object",
        "9": '"image_id" is neither a whole number nor text',
        "10": f"conflict: {file}:1 gave image id a.jpg to another image or split",
        "12": "not JSON: nested too deeply",
        "13": "not UTF-8 text: byte 35 of the line; save the file as UTF-8 (in Excel: CSV UTF-8)",
    }
    assert [pair for pair in corpus.refused if str(file) not in pair[0]] == [
        ("b.jpg", "caption 1 is empty"),
        ("b.jpg", "caption 2 is not text: 3"),
        ("b.jpg", "no usable caption"),
    ]


def test_manifest_mistakes(tmp_path):
    file = write_lines(tmp_path / "data.jsonl", "{broken", {"image": "a.jpg"})
    with pytest.raises(UserError) as error:
        read(schema.ManifestConfig(file=str(file)))
    assert str(error.value) == (
        f"{file}: no example is left: nothing in it can be used; 2 entries refused, first {file}:1 "
        "(not JSON: Expecting property name enclosed in double quotes (column 2))"
    )
    write_lines(file, {"image": "gone.jpg", "caption": "x"}, {"image": "here.jpg", "caption": "y"})
    touch(tmp_path / "here.jpg")
    with pytest.raises(UserError, match=r"1 of 2 annotated images are missing, first .*gone\.jpg"):
        read(schema.ManifestConfig(file=str(file)))
    corpus = read(schema.ManifestConfig(file=str(file), missing=schema.Missing.skip))
    assert [r.id for r in corpus.examples] == ["here.jpg"]
    with pytest.raises(UserError, match=r"^dataset.root: /nowhere does not exist; give the folder that holds the"):
        read(schema.ManifestConfig(file=str(file), root="/nowhere"))


# -------------------------------------------------------------------------------------------- folder


def test_folder_with_part_folders_sidecars_and_tables(tmp_path):
    touch(tmp_path / "train" / "x" / "a.jpg", tmp_path / "train" / "b.JPEG", tmp_path / "Val" / "c.png")
    touch(tmp_path / "test" / "d.webp", tmp_path / "stray.jpg", tmp_path / "train" / "bare.jpg")
    touch(tmp_path / "train" / ".hidden.jpg", tmp_path / "train" / "notes.md")
    write_lines(tmp_path / "train" / "x" / "a.txt", "first", "", "second")
    write_lines(tmp_path / "train" / "metadata.csv", "file_name,text", 'b.JPEG,"one, two"', "b.JPEG,three, four")
    write_lines(tmp_path / "captions.jsonl", {"image": "Val/c.png", "captions": ["see"]})
    write_lines(tmp_path / "test" / "captions.txt", "image\tcaption", "d.webp\tdee, indeed")
    corpus = read(schema.FolderConfig(root=str(tmp_path)))
    assert [(r.id, r.split, r.targets) for r in corpus.examples] == [
        ("train/b.JPEG", "train", ("one, two", "three, four")),
        ("train/x/a.jpg", "train", ("first", "second")),
        ("Val/c.png", "val", ("see",)),
        ("test/d.webp", "test", ("dee, indeed",)),
    ]
    assert all(r.image == tmp_path / r.id for r in corpus.examples)
    assert corpus.refused == [
        ("stray.jpg", "not in one of the folders Val, test, train"),
        ("train/bare.jpg", "no usable caption"),
    ]


def test_folder_without_part_folders_is_split_by_a_hash_that_stays(tmp_path):
    names = [f"{random.choice('ab')}/{number}.jpg" for number in range(300)]
    for name in names:
        touch(tmp_path / name)
        write_lines((tmp_path / name).with_suffix(".txt"), f"image {name}")
    config = schema.FolderConfig(root=str(tmp_path), val_fraction=0.2, test_fraction=0.1)
    corpus = read(config)
    parts = {r.id: r.split for r in corpus.examples}
    assert parts == {name: hash_part(name, 0.2, 0.1) for name in names}
    touch(tmp_path / "a" / "new.jpg")
    write_lines(tmp_path / "a" / "new.txt", "new")
    again = {r.id: r.split for r in read(config).examples}
    assert {name: again[name] for name in names} == parts
    (note,) = corpus.notes
    train, val, test = (corpus.counts()[part] for part in ("train", "val", "test"))
    assert note.startswith(f"split by a hash of the path (train {train}, val {val}, test {test})")


def test_hash_parts_have_their_chances():
    drawn = [hash_part(f"{random.random()}.jpg", 0.2, 0.1) for _ in range(20_000)]
    assert drawn.count("val") / len(drawn) == pytest.approx(0.2, abs=0.02)
    assert drawn.count("test") / len(drawn) == pytest.approx(0.1, abs=0.02)
    assert {hash_part(name, 0.0, 0.0) for name in drawn} == {"train"}
    assert hash_part("a/1.jpg", 0.5, 0.5) == "val"  # the same for ever, on every machine
    assert hash_part("a/2.jpg", 0.5, 0.5) == "val"
    assert hash_part("a/3.jpg", 0.5, 0.5) == "test"


def test_folder_follows_links_and_survives_circles(tmp_path):
    root, other = tmp_path / "root", tmp_path / "elsewhere"
    touch(root / "a.jpg", other / "b.jpg")
    write_lines(root / "a.txt", "a")
    write_lines(other / "b.txt", "b")
    (root / "linked").symlink_to(other, target_is_directory=True)
    (root / "circle").symlink_to(root, target_is_directory=True)
    config = schema.FolderConfig(root=str(root), val_fraction=0, test_fraction=0)
    assert [r.id for r in read(config).examples] == ["a.jpg", "linked/b.jpg"]


def test_accented_names_match_however_they_are_spelt(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    assert composed != decomposed
    touch(tmp_path / decomposed)
    write_lines(tmp_path / "captions.csv", "image,caption", f"{composed},a coffee")
    config = schema.FolderConfig(root=str(tmp_path), val_fraction=0, test_fraction=0)
    (record,) = read(config).examples
    assert (record.id, record.targets) == (composed, ("a coffee",))
    assert record.image.is_file()


def test_folder_tables_that_name_absent_images(tmp_path):
    touch(tmp_path / "a.jpg")
    write_lines(tmp_path / "captions.csv", "caption,image", "here,a.jpg", "gone,b.jpg", "only one column")
    config = schema.FolderConfig(root=str(tmp_path), val_fraction=0, test_fraction=0)
    with pytest.raises(UserError, match=r"1 of 2 annotated images are missing, first .*b\.jpg"):
        read(config)
    config.missing = schema.Missing.skip
    corpus = read(config)
    assert [r.id for r in corpus.examples] == ["a.jpg"]
    assert corpus.refused == [
        (f"{tmp_path / 'captions.csv'}:4", "no image or no caption: it has 1 cells"),
    ]


def test_folder_mistakes(tmp_path):
    config = schema.FolderConfig(root=str(tmp_path))
    with pytest.raises(UserError, match=r"^dataset.root=.*: no example is left: 0 images have captions$"):
        read(config)
    touch(tmp_path / "a.jpg")
    table = write_lines(tmp_path / "captions.csv", "a cat,a dog")
    with pytest.raises(
        UserError, match=r"no column of images, or none of captions, among a cat, a dog; known are imag"
    ):
        read(config)
    write_lines(table, "image,caption", 'a.jpg,"' + "never closed " * 20_000)
    with pytest.raises(UserError, match=r"1 entries refused|first .*captions\.csv:2 \(too long: a cell of more than"):
        read(config)
    with pytest.raises(UserError, match=r"dataset.val_fraction=0.6 and dataset.test_fraction=0.4 must not be"):
        read(schema.FolderConfig(root=str(tmp_path), val_fraction=0.6, test_fraction=0.4))


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes on POSIX only")
def test_a_file_name_that_is_not_utf8_is_refused(tmp_path):
    try:
        touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    touch(tmp_path / "a.jpg")
    write_lines(tmp_path / "a.txt", "a")
    corpus = read(schema.FolderConfig(root=str(tmp_path), val_fraction=0, test_fraction=0))
    assert [r.id for r in corpus.examples] == ["a.jpg"]
    assert corpus.refused == [("caf\\udce9.jpg", "its name is not UTF-8: rename the file")]
