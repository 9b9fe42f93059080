"""Multi30k in both forms, its parts by the names of files, and hostile files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from velm_cli.data.examples import Example, ImageRef
from velm_cli.data.readers import read
from velm_cli.data.readers.multi30k import part_of_stem
from velm_cli.errors import UserError
from velm_cli.schema import Missing, Multi30kConfig

NAMES = {"train": "train", "val": "val", "test_2016_flickr": "test2016", "test_2017_mscoco": "testcoco"}


def rows_of(part: str, count: int = 3) -> list[dict[str, str]]:
    return [
        {"image": f"{part}{n}.jpg", "en": f"A dog, {part} {n}.", "de": f"Ein Hund, {part} {n}.", "fr": f"Un chien {n}."}
        for n in range(count)
    ]


def jsonl(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")


def test_json_lines_and_official_text_files_are_the_same_examples(tmp_path):
    for name in NAMES:
        rows = rows_of(name)
        jsonl(tmp_path / "json" / f"{name}.jsonl", rows)
        raw = tmp_path / "text" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for language in ("en", "de", "fr"):
            text = "".join(f"{row[language]}\n" for row in rows)
            (raw / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode()))
            (raw / f"{name}.lc.norm.tok.{language}").write_text(text.lower())  # the official tokenised ones: not read
        (tmp_path / "text" / "image_splits").mkdir(exist_ok=True)
        listed = "".join(f"{row['image']}#1\n" for row in rows)
        (tmp_path / "text" / "image_splits" / f"{name}.txt").write_text(listed)
        for row in rows:
            (tmp_path / "photos").mkdir(exist_ok=True)
            (tmp_path / "photos" / row["image"]).touch()
    photos = tmp_path / "photos"
    for folder in ("json", "text"):
        corpus = read(Multi30kConfig(root=str(tmp_path / folder), images_root=str(photos), target_lang="fr"))
        expected = [
            Example(row["image"], part, (ImageRef(row["image"], photos / row["image"]),), row["en"], (row["fr"],))
            for name, part in NAMES.items()
            for row in rows_of(name)
        ]
        assert list(corpus.examples) == expected and not corpus.refused
        assert corpus.counts() == dict.fromkeys(("train", "val", "test2016", "testcoco"), 3)
    for file in (tmp_path / "text" / "image_splits").iterdir():
        file.unlink()
    config = Multi30kConfig(root=str(tmp_path / "text"), images=False)
    assert [example.source for example in read(config).examples][:2] == ["A dog, train 0.", "A dog, train 1."]
    config.images = True
    with pytest.raises(UserError, match="no list of its images"):
        read(config)


def test_the_file_that_names_images_is_read_where_images_are(tmp_path):
    jsonl(tmp_path / "train.jsonl", rows_of("train", 5))
    joined = [{**row, "file_name": f"x_{row['image']}"} for row in rows_of("train", 2)]
    jsonl(tmp_path / "with_flickr8k_images_train.jsonl", joined)
    for row in joined:
        (tmp_path / row["file_name"]).touch()
    assert len(read(Multi30kConfig(root=str(tmp_path), images=False)).examples) == 5
    examples = read(Multi30kConfig(root=str(tmp_path))).examples
    assert [example.image for example in examples] == [tmp_path / "x_train0.jpg", tmp_path / "x_train1.jpg"]
    jsonl(tmp_path / "again" / "train.jsonl", rows_of("train", 5))
    with pytest.raises(UserError, match="are both of the part train"):
        read(Multi30kConfig(root=str(tmp_path), images=False))


@pytest.mark.parametrize(
    ("stem", "part"),
    [
        ("train", "train"), ("dev", "val"), ("valid", "val"), ("test", "test"), ("test2016", "test2016"),
        ("test_2017_flickr", "test2017"), ("testcoco", "testcoco"), ("flickr.test_2018", "test2018"),
        ("train.lc.norm.tok", None), ("test1999", None), ("train.1", None), ("", None), ("contest", None),
    ],
)  # fmt: skip
def test_parts_of_names(stem, part):
    assert part_of_stem(stem) == part


def test_bad_rows_are_refused_and_survived(tmp_path):
    good = rows_of("train")
    bad = [
        '{"image": "a.jpg", "en": "x", "de": ',
        "[]",
        "7",
        {"image": "b.jpg", "en": " ", "de": "x"},
        {"image": "c.jpg", "en": "x", "de": 7},
        {"image": "d.jpg", "en": "x"},
        {"image": "../e.jpg", "en": "x", "de": "y"},
        {"image": "/f.jpg", "en": "x", "de": "y"},
        {"image": "a\0b.jpg", "en": "x", "de": "y"},
        {"image": 8, "en": "x", "de": "y"},
    ]
    jsonl(tmp_path / "train.jsonl", ["\ufeff" + json.dumps(good[0]), *bad, *good[1:], good[2]])
    for row in good:
        (tmp_path / row["image"]).touch()
    corpus = read(Multi30kConfig(root=str(tmp_path)))
    assert len(corpus.refused) == len(bad)
    assert [example.id for example in corpus.examples] == [
        "train0.jpg",
        "train1.jpg",
        "train2.jpg",
        "train2.jpg#train-6",
    ]
    (tmp_path / "train1.jpg").unlink()
    with pytest.raises(UserError, match="have an image that is missing"):
        read(Multi30kConfig(root=str(tmp_path)))
    assert len(read(Multi30kConfig(root=str(tmp_path), missing=Missing.skip)).examples) == 3


def test_lines_that_do_not_go_together(tmp_path):
    (tmp_path / "train.en").write_text("a\nb\nc\n")
    (tmp_path / "train.de").write_text("x\ny\n")
    config = Multi30kConfig(root=str(tmp_path), images=False)
    with pytest.raises(UserError, match=r"they differ: .*train\.en 3, .*train\.de 2 lines"):
        read(config)
    (tmp_path / "train.de").write_text("x\n\nz\n")
    corpus = read(config)
    assert [(example.id, example.targets) for example in corpus.examples] == [("train-1", ("x",)), ("train-2", ("z",))]
    assert corpus.refused == [(f"{tmp_path}/train.en:2", "no text in de")]
    with pytest.raises(UserError, match="both en: give two languages"):
        read(Multi30kConfig(root=str(tmp_path), images=False, target_lang="en"))
    with pytest.raises(UserError, match="neither JSON lines"):
        read(Multi30kConfig(root=str(tmp_path), images=False, target_lang="fr"))
