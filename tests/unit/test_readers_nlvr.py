"""The records of NLVR and NLVR2 in the folders of their releases; and what is wrong with them, in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from velm_cli.data.readers import read
from velm_cli.errors import UserError
from velm_cli.schema import Missing, NlvrConfig


def write(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def nlvr(root: Path, split: str, sets: range, *, folder: str | None = None) -> None:
    rows = []
    for number in sets:
        for world in range(2):
            rows.append(
                {
                    "identifier": f"{number}-{world}",
                    "sentence": f"There is tower {number}.",
                    "label": ("true", "false")[world],
                    "directory": str(number % 3),
                    "evals": {"r0": "true"},
                    "structured_rep": [[], [], []],
                }
            )
            for order in range(6):
                name = f"{split}-{number}-{world}-{order}.png"
                touch(root / (folder or split) / "images" / str(number % 3) / name)
    write(root / (folder or split) / f"{folder or split}.json", rows)


def nlvr2(root: Path, split: str, sets: range) -> None:
    rows = []
    for number in sets:
        for pair in range(2):
            for sentence in range(2):
                rows.append(
                    {
                        "identifier": f"{split}-{number}-{pair}-{sentence}",
                        "sentence": f"The left photo shows {sentence} dogs",
                        "label": ("True", "False")[(pair + sentence) % 2],
                        "synset": "dog",
                        "left_url": "http://nowhere",
                        **({"directory": number % 2} if split == "train" else {}),
                    }
                )
            where = root / "images" / (f"train/{number % 2}" if split == "train" else split)
            for side in (0, 1):
                touch(where / f"{split}-{number}-{pair}-img{side}.png")
    write(root / "data" / f"{split}.json", rows)


def test_nlvr_is_read_in_all_orders(tmp_path):
    for split, sets in (("train", range(6)), ("dev", range(10, 12)), ("test", range(20, 22))):
        nlvr(tmp_path, split, sets)
    corpus = read(NlvrConfig(root=str(tmp_path)))
    assert corpus.counts() == {"train": 72, "val": 24, "test": 24} and not corpus.refused
    one = next(example for example in corpus.examples if example.id == "dev-10-1-3")
    assert (one.split, one.source, one.targets) == ("val", "There is tower 10.", ("false",))
    assert one.about == {"group": "10"}, "the facts are no input"
    assert [image.path for image in one.images] == [tmp_path / "dev" / "images" / "1" / "dev-10-1-3.png"]
    fewer = read(NlvrConfig(root=str(tmp_path), orders=2))
    assert fewer.counts() == {"train": 24, "val": 24, "test": 24}


def test_validation_is_cut_from_training_by_whole_directories(tmp_path):
    nlvr(tmp_path, "test", range(6), folder="test_p")
    nlvr(tmp_path, "dev", range(10, 12))
    files = {part: str(tmp_path / name / f"{name}.json") for part, name in (("train", "test_p"), ("test", "dev"))}
    corpus = read(NlvrConfig(files=files, val_directories=[1]))
    assert corpus.counts() == {"train": 48, "val": 24, "test": 24}
    groups = {part: {e.about["group"] for e in corpus.examples if e.split == part} for part in ("train", "val")}
    assert groups == {"train": {"0", "2", "3", "5"}, "val": {"1", "4"}}
    assert corpus.examples[0].id.startswith("test-"), "the pictures of its test part, to train on"
    with pytest.raises(UserError, match="val_directories: no training record has the directory 7"):
        read(NlvrConfig(files=files, val_directories=[1, 7]))


def test_nlvr2_has_two_photos(tmp_path):
    for split, sets in (("train", range(4)), ("dev", range(2)), ("test1", range(2)), ("test2", range(3))):
        nlvr2(tmp_path, split, sets)
    write(tmp_path / "data" / "balanced" / "balanced_dev.json", [])
    corpus = read(NlvrConfig(root=str(tmp_path)))
    assert corpus.counts() == {"train": 16, "val": 8, "test": 8} and not corpus.refused
    assert any("left aside 2 files" in note for note in corpus.notes)
    by_id = {example.id: example for example in corpus.examples}
    one = by_id["train-3-1-0"]
    assert [str(image.path.relative_to(tmp_path)) for image in one.images] == [
        "images/train/1/train-3-1-img0.png",
        "images/train/1/train-3-1-img1.png",
    ]
    assert (one.targets, one.about) == (("false",), {"group": "train-3--0"})
    assert by_id["dev-1-0-1"].images[1].path == tmp_path / "images" / "dev" / "dev-1-0-img1.png"
    assert by_id["test1-0-0-0"].split == "test"


def test_bad_records_are_named_and_the_others_read(tmp_path):
    good = {"identifier": "1-0", "sentence": "it is", "label": "true", "images": ["a.png"]}
    touch(tmp_path / "a.png")
    touch(tmp_path / "b.png")
    rows = [
        "\ufeff" + json.dumps(good),
        "{",
        "3",
        json.dumps(good | {"sentence": "again"}),
        {**good, "identifier": "one"},
        {**good, "identifier": 7},
        {**good, "identifier": "2-0", "label": "maybe"},
        {**good, "identifier": "2-1", "sentence": None},
        {**good, "identifier": "2-2", "sentence": ["it"]},
        {**good, "identifier": "2-3", "sentence": " "},
        {**good, "identifier": "2-4", "images": []},
        {**good, "identifier": "2-5", "images": [1]},
        {**good, "identifier": "2-6", "images": ["a.png", "a.png"]},
        {**good, "identifier": "2-7", "images": ["a.png"] * 17},
        {**good, "identifier": "3-0", "label": True, "images": ["a.png", "b.png"], "directory": [2], "kind": 3},
        {**good, "identifier": "dev-4-0-0", "label": None, "images": ["b.png"], "kind": "count"},
    ]
    write(tmp_path / "train.json", rows)
    corpus = read(NlvrConfig(root=str(tmp_path)))
    assert {(e.id, e.targets, len(e.images), e.about.get("kind")) for e in corpus.examples} == {
        ("1-0", ("true",), 1, None),
        ("3-0", ("true",), 2, None),
        ("dev-4-0-0", (), 1, "count"),
    }
    assert len(corpus.refused) == 13
    said = "\n".join(reason for _, reason in corpus.refused)
    for reason in ("not JSON", "not a record but 3", "there again", "neither 12-0 (NLVR) nor dev-12-0-1", "is maybe",
                   'no "sentence"', "no list of 1 to 16 files", "names an image twice"):  # fmt: skip
        assert reason in said, reason


def test_missing_pictures(tmp_path):
    nlvr(tmp_path, "train", range(2))
    (tmp_path / "train" / "images" / "0" / "train-0-0-4.png").unlink()
    with pytest.raises(UserError, match=r"1 of 24 examples have an image that is missing, first .*train-0-0-4.png"):
        read(NlvrConfig(root=str(tmp_path)))
    assert len(read(NlvrConfig(root=str(tmp_path), missing=Missing.skip)).examples) == 23
    assert len(read(NlvrConfig(root=str(tmp_path), images=False)).examples) == 24


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "dataset.root is not set: give the folder that holds the records and pictures of NLVR"),
        ({"root": "."}, "no train.json, dev.json or test.json below it"),
        ({"files": "gone.json"}, "dataset.files: gone.json does not exist"),
        ({"files": {"middle": "x.json"}}, "middle is not train, val or test"),
        ({"root": ".", "images_root": "gone"}, "dataset.images_root: gone does not exist"),
    ],
)
def test_mistakes_in_a_line(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").touch()
    with pytest.raises(UserError) as caught:
        read(NlvrConfig(**options))
    assert said in str(caught.value)
