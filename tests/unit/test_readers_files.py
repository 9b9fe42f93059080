"""Captions files and split files by themselves: what is refused, what is an error, and how it is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from velm_cli.data.readers.captions_json import parse_captions
from velm_cli.data.readers.splits import read_split
from velm_cli.errors import UserError
from velm_cli.lines import load_json


def test_unusable_entries_are_refused_and_the_rest_is_read():
    good = {"id": 1, "file_name": "one.jpg"}
    images = [
        good,
        {"id": 2, "file_name": "two.jpg"},
        {"id": 6, "file_name": "six.jpg"},
        good,
        {"id": 6, "file_name": "other.jpg"},
        {"file_name": "no_id.jpg"},
        {"id": 7.5, "file_name": "a.jpg"},
    ]
    annotations = [
        {"id": 30, "image_id": 2, "caption": "later"},
        {"id": 4, "image_id": 2, "caption": "earlier\n"},
        {"id": 5, "image_id": 1, "caption": 5},
        {"id": 6, "image_id": 6, "caption": "of which image?"},
        {"id": 100, "image_id": 99, "caption": "of an unknown image"},
        {"id": 101, "image_id": 99, "caption": "of an unknown image"},
        {"id": 102, "image_id": 2},
        {"id": "103", "image_id": [2], "caption": "x"},
        {"id": 104, "image_id": [2], "caption": "x"},
        "not an object",
    ]
    refused: list[tuple[str, str]] = []
    captioned = parse_captions({"images": images, "annotations": annotations}, "here", refused)
    # captions stay raw: cleaning them is the same for all formats
    assert {i: (image.file_name, image.captions) for i, image in captioned.items()} == {
        1: ("one.jpg", [5]),
        2: ("two.jpg", ["earlier\n", "later"]),
    }
    assert refused == [
        ("1", "duplicate id in here: kept once"),
        ("here images[5]", 'no "id"'),
        ("here images[6]", '"id" or "file_name" is of a wrong type'),
        ("6", "duplicate id in here: it stands for six.jpg and other.jpg"),
        ("here annotations[6]", 'no "caption"'),
        ("here annotations[7]", '"image_id" is of a wrong type'),
        ("here annotations[8]", '"image_id" is of a wrong type'),
        ("here annotations[9]", "not an object"),
        ("6", '1 captions, but "images" of here has no such id'),
        ("99", '2 captions, but "images" of here has no such id'),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [],\n "annotations": [}', "is broken JSON at line 2, column 18: Expecting value"),
        (b"", "is broken JSON at line 1, column 1: Expecting value; is the file complete?"),
        (b"[1, 2]", 'is not a COCO captions file: it has no list "images"'),
        (b'{"images": []}', 'is not a COCO captions file: it has no list "annotations"'),
        (
            b'{"images": [], "annotations": [{"id": 1, "image_id": 1, "bbox": []}]}',
            'is not a COCO captions file: annotations[0]: no "caption"',
        ),
        (b'{"images": "caf\xe9"}', "is not UTF-8 text (byte 15)"),
        (b"[" * 200_000, "is nested too deeply"),
    ],
)
def test_a_file_that_holds_no_captions_is_named(tmp_path, content, message):
    path = tmp_path / "captions_train2014.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        parse_captions(load_json(path), str(path), [])
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [1, 2], "val": [2]}, "the image 2 is in both train and val"),
        ({"train": [1], "restval": [1]}, "the image 1 is in both train and restval"),
        ({"trian": [1]}, "'trian' is not a part"),
        ({"train": 3}, "'train' is not a list of image ids"),
        ({"train": [[1]]}, "'train' is not a list of image ids"),
        ([], "is not a split file"),
        ({"images": [{"split": "train", "sentences": []}]}, 'images[0] has no "cocoid"'),
        ({"images": [{"cocoid": 1, "split": "tast", "sentences": []}]}, "in the unknown split 'tast'"),
        ({"images": [{"cocoid": [1], "split": "test", "sentences": []}]}, "neither a number nor text"),
    ],
)
def test_mistakes_in_a_split_file(tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_split(path, key="cocoid")
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_damaged_archive_is_named(tmp_path):
    path: Path = tmp_path / "split.json.gz"
    whole = gzip.compress(json.dumps({"train": [1], "val": [2]}).encode())
    path.write_bytes(whole)
    assert read_split(path, key="cocoid").part_of == {1: "train", 2: "val"}
    for damaged in (whole[:-12], b"not gzip at all"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"split\.json\.gz cannot be read: "):
            read_split(path, key="cocoid")


def test_a_number_of_thousands_of_digits_is_said_in_a_line(tmp_path):
    (tmp_path / "captions.json").write_text('{"images": [{"id": ' + "7" * 5000 + "}]}")
    with pytest.raises(UserError, match=r"captions.json is no annotation file: .*digits"):
        load_json(tmp_path / "captions.json")
