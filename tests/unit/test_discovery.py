"""What lies in a folder of photos: everything is used, or named with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from velm_cli import schema
from velm_cli.data.examples import Corpus
from velm_cli.data.readers import read
from velm_cli.data.readers.levels import find_level
from velm_cli.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def folder(root: Path, **options) -> Corpus:
    return read(schema.FolderConfig(root=str(root), **options))


def splits(corpus: Corpus) -> dict[object, str]:
    return {record.id: record.split for record in corpus.examples}


def captions(corpus: Corpus) -> dict[object, tuple[str, ...]]:
    return {record.id: record.targets for record in corpus.examples}


ALL = {"val_fraction": 0.0, "test_fraction": 0.0}


# -------------------------------------------------------------------------------- images and text files


def test_every_readable_suffix_is_taken_and_others_are_named(tmp_path):
    good = ["a.jpg", "b.JFIF", "c.avif", "d.Jp2", "e.ppm", "f.tif", "g.jpe", "h"]
    bad = {
        "i.HEIC": "unsupported: HEIC; convert it to JPEG",
        "j.svg": "unsupported: not a format",
        "k.nef": "unsupported",
    }
    files = dict.fromkeys([*good, *bad], PNG) | {f"{name[0]}.txt": f"photo {name}" for name in [*good, *bad]}
    corpus = folder(make(tmp_path, files | {"LICENSE": "text", "run.py": "x"}), **ALL)
    assert captions(corpus) == {name: (f"photo {name}",) for name in good}
    reasons = dict(corpus.refused)
    assert all(reasons[name].startswith(reason) for name, reason in bad.items())
    assert reasons["i.txt"] == "a text file of no image: i.HEIC is not read"
    assert "left aside 2 files that are neither images nor captions (no suffix 1, .py 1)" in corpus.notes


def test_text_files_beside_images(tmp_path):
    files: dict[str, str | bytes] = {f"{name}.jpg": b"x" for name in "abcdef"}
    files |= {"a.TXT": "upper", "b.jpg.txt": "double", "c.caption": "kohya", "d.txt": "first", "d.caption": "second"}
    files |= {"e.json": json.dumps({"caption": "of an object", "url": "x"}), "F.txt": "case", "notes.txt": "for me"}
    corpus = folder(make(tmp_path, files), **ALL)
    expected = {"a": "upper", "b": "double", "c": "kohya", "d": "first", "e": "of an object", "f": "case"}
    assert captions(corpus) == {f"{name}.jpg": (text,) for name, text in expected.items()}
    assert dict(corpus.refused) == {
        "d.caption": "not used: d.txt has the captions of d.jpg",
        "notes.txt": "a text file of no image: no image has its name",
    }


def test_what_systems_leave_behind_is_no_image(tmp_path):
    files = {"a.jpg": b"x", "a.txt": "a", "._a.jpg": b"x", "__MACOSX/._a.jpg": b"x", "__MACOSX/b.jpg": b"x"}
    corpus = folder(make(tmp_path, files | {"Thumbs.db": b"x", ".DS_Store": b"x", ".hidden.jpg": b"x"}), **ALL)
    assert captions(corpus) == {"a.jpg": ("a",)} and corpus.refused == []
    assert corpus.notes[-1] == "left aside 1 files that are neither images nor captions (hidden images 1)"


# --------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("names", [["one.jpg"], [f"{n}.jpg" for n in range(10)], ["train/a.jpg", "val/b.jpg"]])
def test_photos_without_any_caption_are_all_to_be_captioned(tmp_path, names):
    corpus = folder(make(tmp_path, dict.fromkeys(names, b"x")))
    assert set(splits(corpus).values()) == {"test"} and len(corpus.examples) == len(names)
    assert corpus.notes == ["no image has a caption: all are test, to be captioned"] and corpus.refused == []


def test_among_captioned_photos_one_without_is_refused_wherever_the_hash_puts_it(tmp_path):
    make(tmp_path, {f"{number}.jpg": b"x" for number in range(40)} | {f"{n}.txt": "x" for n in range(20)})
    corpus = folder(tmp_path, test_fraction=0.5)
    assert len(corpus.examples) == 20 and all(record.targets for record in corpus.examples)
    assert corpus.refused == [(f"{n}.jpg", "no usable caption") for n in sorted(range(20, 40), key=str)]
    make(tmp_path / "2", {"train/a.jpg": b"x", "train/a.txt": "a", "test/b.jpg": b"x"})
    assert splits(folder(tmp_path / "2")) == {"train/a.jpg": "train", "test/b.jpg": "test"}


def test_a_broken_table_is_no_folder_without_captions(tmp_path):
    make(tmp_path, {"a.jpg": b"x", "captions.jsonl": "{broken\n{broken\n"})
    with pytest.raises(UserError, match=r"no example is left: .* first .*captions\.jsonl:1 \(not JSON"):
        folder(tmp_path)


# ----------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", ["captions.csv", "metadata.jsonl"])
def test_a_split_column_decides(tmp_path, name):
    rows = [(f"{n}.jpg", part) for n, part in enumerate(["train", "Validation", "TEST", "test_set", "trian", ""])]
    if name.endswith(".csv"):
        text = "image,split,caption\n" + "".join(f"{image},{part},x\n" for image, part in rows)
    else:
        text = "".join(json.dumps({"file_name": i, "split": part, "text": "x"}) + "\n" for i, part in rows)
    corpus = folder(make(tmp_path, {f"{n}.jpg": b"x" for n in range(6)} | {name: text}))
    assert splits(corpus) == {"0.jpg": "train", "1.jpg": "val", "2.jpg": "test", "3.jpg": "test", "5.jpg": "train"}
    assert corpus.notes == ["1 images whose rows say no part are train, as other rows do say theirs"]
    assert corpus.refused[0][1] == "unknown split: 'trian' is not train, val or test; did you mean 'train'?"


def test_folders_and_tables_may_not_disagree(tmp_path):
    files = {"train/a.jpg": b"x", "test/b.jpg": b"x", "captions.csv": "image,split,caption\ntrain/a.jpg,test,x\n"}
    corpus = folder(make(tmp_path, files))
    assert splits(corpus) == {"test/b.jpg": "test"}
    assert corpus.refused == [("train/a.jpg", "conflict: its folder says train, its table test")]


def test_ids_of_a_table_are_taken(tmp_path):
    files = {"a.jpg": b"x", "b.jpg": b"x", "captions.csv": "image_id,image,caption\n7,a.jpg,x\n007,b.jpg,y\n"}
    assert set(captions(folder(make(tmp_path, files), **ALL))) == {7, "007"}


def test_names_are_found_below_the_root_where_one_image_can_be_meant(tmp_path):
    named = {
        "bare.jpg": "Images/bare.jpg",
        "IMAGES/CASE.JPG": "Images/case.jpg",
        "Images/a%20b.jpg": "Images/a b.jpg",
        "Images/stem": "Images/stem.jpg",
        "C:\\Users\\me\\Images\\win.jpg": "Images/win.jpg",
        "/home/me/old/Images/unix.jpg": "Images/unix.jpg",
    }
    table = "image,caption\n" + "".join(f"{name},a\n{name},b\n" for name in named)
    corpus = folder(make(tmp_path, {"captions.csv": table} | dict.fromkeys(named.values(), b"x")), **ALL)
    assert captions(corpus) == dict.fromkeys(named.values(), ("a", "b"))
    assert "tables: 1 names found by the bare name (bare.jpg is Images/bare.jpg)" in corpus.notes
    assert "tables: 2 names found by the end of an absolute path" in "\n".join(corpus.notes)


def test_two_images_of_a_bare_name_are_not_guessed(tmp_path):
    files = {
        "x/a.jpg": b"x",
        "y/a.jpg": b"x",
        "captions.csv": "image,caption\na.jpg,x\n",
        "y/b.jpg": b"x",
        "y/b.txt": "b",
    }
    with pytest.raises(UserError, match=r"1 of 2 annotated images are missing, first .*/a\.jpg"):
        folder(make(tmp_path, files), **ALL)
    corpus = folder(tmp_path, **ALL, missing=schema.Missing.skip)
    assert captions(corpus) == {"y/b.jpg": ("b",)}


def test_nothing_left_to_train_on_is_said(tmp_path):
    rows = (
        '{"image": "gone.jpg", "caption": "x", "split": "train"}\n{"image": "a.jpg", "caption": "x", "split": "test"}\n'
    )
    corpus = folder(make(tmp_path, {"a.jpg": b"x", "captions.jsonl": rows}), missing=schema.Missing.skip)
    assert corpus.notes[-1] == "nothing is left to train on: every image of the train part is missing"


def test_tables_of_other_names(tmp_path):
    table = "image,caption\na.jpg,x\n"
    make(tmp_path, {"a.jpg": b"x", "mine.csv": table})
    assert captions(folder(tmp_path, **ALL)) == {"a.jpg": ("x",)}, "the only one"
    make(tmp_path, {"captions.csv": table, "annotations.json": '{"images": [], "categories": []}'})
    corpus = folder(tmp_path, **ALL)
    assert captions(corpus) == {"a.jpg": ("x",)}
    reasons = {Path(name).name: reason for name, reason in corpus.refused}
    assert reasons["mine.csv"].startswith("a table of another name: call it captions.csv")
    make(tmp_path, {"annotations.json": '{"weights": 1}'})
    assert "not a table of captions: " in folder(tmp_path, **ALL).refused[0][1]


def test_a_text_file_that_begins_with_an_image_is_a_table(tmp_path):
    """As in Flickr8k_text/Flickr8k.token.txt; a list of names without captions is none."""
    rows = "".join(
        f"{image}#{number}\ta {number} dog, running\n" for image in ("a.jpg", "b.jpg") for number in range(2)
    )
    make(tmp_path, {"a.jpg": PNG, "b.jpg": PNG, "Flickr8k.token.txt": rows, "train.txt": "a.jpg\nb.jpg\n"})
    corpus = folder(tmp_path, **ALL)
    assert captions(corpus)["a.jpg"] == ("a 0 dog, running", "a 1 dog, running") and len(corpus.examples) == 2
    assert [where for where, _ in corpus.refused] == ["train.txt"]


def test_one_table_a_part(tmp_path):
    files = {f"{part}.csv": f"image,caption\n{part}.jpg,x\n" for part in ("train", "val", "test")}
    corpus = folder(make(tmp_path, files | {f"{part}.jpg": b"x" for part in ("train", "val", "test")}))
    assert splits(corpus) == {f"{part}.jpg": part for part in ("train", "val", "test")}


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (["images/train/a", "images/test/b"], {"images/train/a": "train", "images/test/b": "test"}),
        (["data/x/Training/a/b", "data/x/Testing/c"], {"data/x/Training/a/b": "train", "data/x/Testing/c": "test"}),
        (["train2014/a", "val2014/b"], {"train2014/a": "train", "val2014/b": "val"}),
        (["cats/train/a", "dogs/test/b"], {"cats/train/a": "train", "dogs/test/b": "test"}),
        (["dev/a", "b"], {"dev/a": "val", "b": None}),
        (["a", "b"], {"a": None}),
    ],
)
def test_folders_that_are_parts(images, parts):
    level = find_level(images)
    assert {image: level.part_of(image) for image in parts} == parts


def test_a_folder_that_was_not_taken_for_a_part_is_named(tmp_path):
    files = {"x/train/a.jpg": b"x", "x/train/a.txt": "a", "y/b.jpg": b"x", "y/b.txt": "b"}
    note = folder(make(tmp_path, files), **ALL).notes[-1]
    assert "(x/train/ was not taken for a part: not all images lie in such folders)" in note
