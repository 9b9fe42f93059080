"""Tables and folders of strangers: notes that are true, reasons that are the reason, options that have an effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from velm_cli.data.readers.folder import read_folder
from velm_cli.data.readers.manifest import read_manifest
from velm_cli.errors import UserError
from velm_cli.schema import FolderConfig, ManifestConfig, Missing

NAMES = [f"{n}.jpg" for n in range(4)]


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Image.new("RGB", (20, 12)).save(name)


def manifest(name: str, content: object, **options):
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_manifest(ManifestConfig(file=name, **options), None, Path(name))


ROWS = {name: f"a dog number {name[0]}" for name in NAMES}


@pytest.mark.parametrize(
    "value",
    [
        {"image": dict(enumerate(ROWS)), "caption": dict(enumerate(ROWS.values()))},
        {"image": list(ROWS), "caption": list(ROWS.values())},
        {"columns": ["image", "caption"], "index": [0, 1, 2, 3], "data": [list(row) for row in ROWS.items()]},
        {"version": 1, "captions": [{"image": image, "caption": caption} for image, caption in ROWS.items()]},
        {n: {"image": image, "caption": caption} for n, (image, caption) in enumerate(ROWS.items())},
    ],
    ids=["columns", "lists", "split", "wrapped", "index"],
)
def test_json_of_pandas_in_every_orientation(value):
    found = manifest("t.json", value)
    assert dict(zip(found.examples.ids(), found.examples.targets(), strict=True)) == {a: [b] for a, b in ROWS.items()}
    assert not found.refused


def test_an_image_in_a_list_is_used_and_not_called_unused():
    items = [{"images": [name], "messages": [{"role": "assistant", "content": text}]} for name, text in ROWS.items()]
    found = manifest("t.json", items)
    assert len(found.examples) == 4 and not [note for note in found.notes if "not used" in note]


def test_what_two_images_are_called_is_not_missing():
    for folder in "xy":
        Path(folder).mkdir()
        Image.new("RGB", (20, 12)).save(f"{folder}/9.jpg")
    table = "image,caption\n9.jpg,a dog\n1.jpg,a cat\n"
    said = r"1 names could mean several images \(first 9.jpg: [xy]/9.jpg or [xy]/9.jpg\): write the path"
    with pytest.raises(UserError, match=f"1 of 2 annotated images are missing, first 9.jpg; {said}, or add them"):
        manifest("t.csv", table)
    Path("captions.csv").write_text(table)
    with pytest.raises(UserError, match=said):
        read_folder(FolderConfig(root="."), Path())
    Path("captions.csv").unlink()
    with pytest.raises(UserError, match=f"none has its file.*; {said}"):
        manifest("t.csv", table.replace("1.jpg", "9.jpg"), missing=Missing.skip)
    assert any("could mean several" in note for note in manifest("t.csv", table, missing=Missing.skip).notes)


def test_the_first_line_again_is_no_image():
    rows = [f"{image},{caption}\n" for image, caption in ROWS.items()]
    found = manifest("t.csv", "".join(["image,caption\n", *rows[:2], "image,caption\n", *rows[2:]]))
    assert len(found.examples) == 4 and not found.refused
    assert "t.csv: the line of column names comes 1 times more; passed over" in found.notes


def test_an_image_in_the_tables_of_two_parts_is_a_conflict():
    for part, names in (("train", NAMES), ("val", NAMES[:1])):
        Path(f"{part}.csv").write_text("image,caption\n" + "".join(f"{name},a {part} dog\n" for name in names))
    found = read_manifest(ManifestConfig(file="*.csv"), None, Path("*.csv"))
    assert found.counts() == {"train": 4, "val": 0, "test": 0} and len(next(found.examples.targets())) == 1
    assert found.refused == [("val.csv:2", "conflict: train.csv:2 gave image id 0.jpg to another image or split")]
    assert not [note for note in found.notes if "its images are val" in note]


def test_columns_without_a_name_are_called_by_their_place():
    rows = "".join(f"{image},{caption},7\n" for image, caption in ROWS.items())
    assert "t.csv: not used: column 3" in manifest("t.csv", f"image,caption,\n{rows}").notes


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "N/A"])
def test_what_tables_write_for_a_missing_caption_is_no_caption(word):
    found = manifest("t.csv", f"image,caption\n0.jpg,{word}\n1.jpg,none of the dogs\n")
    assert [record.id for record in found.examples] == ["1.jpg"]
    assert ("0.jpg", f"missing in its table: caption 1 is {word}") in found.refused


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "t.csv is a git-lfs pointer and not the file"),
        ("<!DOCTYPE html>\n<html></html>\n", "t.csv is a web page: a download that went wrong"),
        ('{"image": "0.jpg",\n "caption": "a"}\n{"image": "1.jpg",\n "caption": "b"}\n',
         "t.json holds several JSON values, the second from line 3, column 1: write each on a line of its own"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_named(content, expected):
    with pytest.raises(UserError, match=expected):
        manifest(expected.split()[0], content)


def test_options_without_effect_are_named():
    for name in NAMES:
        Path(name).with_suffix(".txt").write_text("a dog")
    with pytest.raises(UserError, match=r"dataset.caption_column=foo: there is no table in \."):
        read_folder(FolderConfig(root=".", caption_column="foo"), Path())
    Path("train").mkdir()
    for path in [*Path().glob("*.jpg"), *Path().glob("*.txt")]:
        path.rename(Path("train", path.name))
    notes = read_folder(FolderConfig(root=".", val_fraction=0.5), Path()).notes
    assert "dataset.val_fraction= without effect: no part is decided by a hash" in notes
    table = "".join(f"train/{image},{caption}\n" for image, caption in ROWS.items())
    with pytest.raises(UserError, match=r"dataset.caption_column=Image: t.csv has its images there"):
        manifest("t.csv", f"image,caption\n{table}", caption_column="Image")


def test_a_store_among_the_images_is_passed_over():
    Path("captions.csv").write_text("".join(["image,caption\n", *(f"{a},{b}\n" for a, b in ROWS.items())]))
    before = read_folder(FolderConfig(root="."), Path())
    Path("stores/own").mkdir(parents=True)
    for name in ("plan.json", "manifest.json", "ids.json", "captions.csv", "preview.png"):
        Path("stores/own", name).write_text("{}")
    after = read_folder(FolderConfig(root="."), Path())
    assert (after.refused, after.notes, len(after.examples)) == (before.refused, before.notes, 4)
