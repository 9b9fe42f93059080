"""The forms of JSON that captions are handed around in, and lists that were written into a cell."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from velm_cli.data.readers.cells import listed_texts, plain_path
from velm_cli.data.readers.columns import Row
from velm_cli.data.readers.rows import read_rows
from velm_cli.errors import UserError


def read(path: Path) -> tuple[list[Row], list[str]]:
    refused: list[tuple[str, str]] = []
    return list(read_rows(path, refused)), [reason for _, reason in refused]


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def talk(question: str, answer: str = "a dog") -> dict:
    turns = [("human", f"<image>\n{question}"), ("gpt", answer), ("human", "Why?"), ("gpt", "because")]
    return {"id": "7", "image": "a.jpg", "conversations": [{"from": who, "value": text} for who, text in turns]}


COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}
FORMS = {
    "a list": [{"image": "a.jpg", "caption": "a dog"}],
    "an object": {"image": "a.jpg", "caption": "a dog"},
    "captions by image": {"a.jpg": ["a dog"]},
    "a caption by image": {"a.jpg": "a dog"},
    "objects by image": {"a.jpg": {"caption": "a dog"}},
    "parts": {"train": [{"image": "a.jpg", "caption": "a dog"}], "val": []},
    "annotations": {"info": {}, "annotations": [{"file_name": "a.jpg", "caption": "a dog"}]},
    "COCO": COCO,
    "COCO without annotation ids": {**COCO, "annotations": [{"image_id": 1, "caption": "a dog"}]},
    "COCO with ids of pandas": {**COCO, "annotations": [{"id": "x1", "image_id": 1.0, "caption": "a dog"}]},
    "COCO with ids as text": {**COCO, "annotations": [{"id": 1, "image_id": "1", "caption": "a dog"}]},
    "Karpathy": {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog", "tokens": ["a"]}]}]},
    "LLaVA": [talk("Describe the image concisely.")],
    "messages": [{"image": "a.jpg", "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a dog"}]}],
    "messages about images": {"images": ["a.jpg"], "messages": [{"role": "assistant", "content": "a dog"}]},
    "a list in a text": [{"image": "a.jpg", "captions": "['a dog']"}],
    "datasets' image": [{"image": {"path": "a.jpg", "bytes": None}, "text": "a dog"}],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".json", ".json.gz", " pretty.json", ".jsonl"])
def test_forms(tmp_path, form, ending):
    text = json.dumps(FORMS[form], indent=1 if "pretty" in ending else None)
    path = tmp_path / f"t{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    (row,), refused = read(path)
    assert (row.image, row.captions, refused) == ("a.jpg", ["a dog"], [])


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.ndjson", "t.jsonl.gz", "t.txt"])
def test_lines_whatever_the_name(tmp_path, name):
    text = '{"image": "a.jpg", "caption": "one\u2028two"}\n{"image": "b.jpg", "caption": "x\u0085y"},\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    rows, refused = read(tmp_path / name)
    assert [(row.image, row.captions) for row in rows] == [("a.jpg", ["one\u2028two"]), ("b.jpg", ["x\u0085y"])]
    assert refused == []


def test_karpathys_images_lie_in_folders_and_have_parts(tmp_path):
    image = {"filepath": "val2014", "filename": "a.jpg", "cocoid": 7, "split": "restval", "sentids": [1]}
    ((row,), _) = read(
        write(tmp_path / "k.json", {"images": [{**image, "sentences": [{"raw": "x"}]}], "dataset": "coco"})
    )
    assert (row.image, row.split, row.image_id) == ("val2014/a.jpg", "restval", 7)


def test_only_a_description_is_a_caption(tmp_path):
    path = write(tmp_path / "t.json", [talk("What colour is the car?"), talk("What is in the photo?"), talk("")])
    rows, refused = read(path)
    assert [row.captions for row in rows] == [["a dog"], ["a dog"]]
    assert refused == ["no description: the first question is What colour is the car?"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": ["a.jpg"]}, "holds lists of ids by part, and no captions: give it with dataset.split_file="),
        ({"weights": 3}, "is in no known form: its keys are weights; known are COCO's"),
        (7, "holds no captions but 7"),
        ({}, "is in no known form: its keys are none"),
    ],
)
def test_other_json_is_an_error_that_names_what_is_known(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "t.json", value))


def test_objects_without_an_image_are_refused_with_their_keys(tmp_path):
    rows, refused = read(write(tmp_path / "t.json", [{"image_id": 1, "caption": "x"}]))
    assert rows == []
    assert refused == ['no "image": the path of the image file; the keys are image_id, caption']


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("['a', \"b's\"]", ["a", "b's"]),
        ('["a", "\\u00e9"]', ["a", "\u00e9"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("['a \\'sign\\'', None, nan]", ["a 'sign'", None, None]),
        ("['a\\\\b', 'c\\d']", ["a\\b", "c\\d"]),
        ("[]", []),
        ("[1, 2]", None),
        ("[one] dog and [another]", None),
        ("['a'] dog", None),
        ("a dog", None),
        ("[" * 100_000 + "]", None),
        ("[__import__('os')]", None),
    ],
)
def test_lists_that_were_written_as_text(text, listed):
    assert listed_texts(text) == listed


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("./img//a.jpg", "img/a.jpg"),
        ("img\\a.jpg", "img/a.jpg"),
        ("C:\\img\\a.jpg", "C:/img/a.jpg"),
        ("file:///data/a%20b.jpg", "/data/a b.jpg"),
        ("file:///C:/img/a.jpg", "C:/img/a.jpg"),
        (" a.jpg#3 ", "a.jpg"),
        ("a#3", "a#3"),
    ],
)
def test_paths(written, path):
    assert plain_path(written) == path
