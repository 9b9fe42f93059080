"""Tables whose examples have several images, as lists of paths in any form of table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from velm_cli import schema
from velm_cli.data.readers import read


@pytest.fixture
def home(tmp_path):
    for name in "abcd":
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.jpg")
    return tmp_path


def shown(file: Path, **options) -> dict:
    corpus = read(schema.ManifestConfig(file=str(file), **options))
    return {one.id: ([image.path.name for image in one.images], one.source, one.targets) for one in corpus.examples}


def jsonl(file: Path, *rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_captions_of_several_images(home):
    rows = (
        {"images": ["a.jpg", "b.jpg"], "captions": ["a then b"], "split": "train"},
        {"images": ["b.jpg", "a.jpg"], "caption": "b then a", "split": "train", "image_id": 7},
        {"images": ["c.jpg"], "caption": "c", "split": "train"},
        {"images": ["a.jpg", "b.jpg"], "captions": ["once more"], "split": "train"},
    )
    assert shown(jsonl(home / "t.jsonl", *rows)) == {
        "a.jpg+b.jpg": (["a.jpg", "b.jpg"], None, ("a then b", "once more")),
        7: (["b.jpg", "a.jpg"], None, ("b then a",)),
        "c.jpg": (["c.jpg"], None, ("c",)),
    }


def test_lists_in_cells(home):
    (home / "t.csv").write_text(
        'images,question,answer,id,split\n"[""a.jpg"", ""b.jpg""]",which is red,left,1,train\n'
        "\"['c.jpg', 'd.jpg', 'a.jpg']\",how many,3,2,train\nb.jpg,what,dog,3,train\n"
    )
    assert shown(home / "t.csv", image_column="images") == {
        1: (["a.jpg", "b.jpg"], "which is red", ("left",)),
        2: (["c.jpg", "d.jpg", "a.jpg"], "how many", ("3",)),
        3: (["b.jpg"], "what", ("dog",)),
    }


def test_lists_in_parquet(home):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"image": [["a.jpg", "b.jpg"], ["c.jpg"]], "caption": ["two", "one"], "split": ["train", "train"]}
    parquet.write_table(pyarrow.table(rows), home / "t.parquet")
    assert shown(home / "t.parquet") == {
        "a.jpg+b.jpg": (["a.jpg", "b.jpg"], None, ("two",)),
        "c.jpg": (["c.jpg"], None, ("one",)),
    }


def test_longer_lists_are_cut_and_counted(home):
    rows = [{"images": [f"{name}.jpg" for name in names], "caption": names} for names in ("abcd", "ab", "dcb")]
    config = schema.ManifestConfig(file=str(jsonl(home / "t.jsonl", *rows)), max_images=2, test_fraction=0)
    corpus = read(config)
    assert sorted([image.path.name[0] for image in one.images] for one in corpus.examples) == [
        ["a", "b"], ["a", "b"], ["d", "c"]
    ]  # fmt: skip
    assert any("2 examples had more images than dataset.max_images=2" in note for note in corpus.notes)


def test_what_is_no_list_of_paths_is_refused_and_the_others_stay(home):
    rows = (
        {"images": ["a.jpg", 3], "caption": "a number", "split": "train"},
        {"images": ["a.jpg", ""], "caption": "nothing", "split": "train"},
        {"images": [], "caption": "none", "split": "train"},
        {"images": ["a.jpg", "a.jpg"], "caption": "one twice", "split": "train"},
        {"images": ["a.jpg", "b.jpg"], "caption": "good", "split": "train"},
    )
    corpus = read(schema.ManifestConfig(file=str(jsonl(home / "t.jsonl", *rows))))
    assert [one.targets for one in corpus.examples] == [("good",)] and len(corpus.refused) == 4
