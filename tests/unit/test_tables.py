"""Tables of cells as people's programs write them: every row is read or refused by its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from velm_cli.data.readers.columns import Wanted
from velm_cli.data.readers.rows import read_rows
from velm_cli.errors import UserError

NAMES = [f"{number:03d}.jpg" for number in range(6)]


def rows(path: Path, wanted: Wanted | None = None) -> tuple[dict[str, list[object]], list[str], list[str]]:
    """(image -> captions, what was refused without the file's name, notes without it)."""
    refused: list[tuple[str, str]] = []
    notes: list[str] = []
    found: dict[str, list[object]] = {}
    for row in read_rows(path, refused, wanted, notes):
        found.setdefault(row.image, []).extend(row.captions)
    assert all(place.startswith(str(path)) for place, _ in refused)
    lines = [f"{place.removeprefix(str(path) + ':')} {reason}" for place, reason in refused]
    return found, lines, [note.removeprefix(f"{path}: ") for note in notes]


def table(path: Path, *lines: str, end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["image first", "caption first"])
def test_a_mark_that_is_never_closed_costs_no_row(tmp_path, delimiter, order):
    captions = ["a dog", '"Look at this', "a cat", 'a "sign"', '6" tall', '"Another']
    cells = [(name, caption) for name, caption in zip(NAMES, captions, strict=True)]
    head, *lines = [delimiter.join(row[at] for at in order) for row in [("image", "caption"), *cells]]
    found, refused, notes = rows(table(tmp_path / "t.csv", head, *lines))
    assert found == {name: [caption] for name, caption in cells}
    assert refused == []
    assert notes == ["2 rows with a quotation mark that is never closed, taken as it is written (line 3, 7)"]


def test_an_unclosed_mark_before_rows_with_proper_quotes(tmp_path):
    lines = [
        "image,caption",
        '000.jpg,"Look at this',
        '001.jpg,"a dog, running"',
        '002.jpg,"a ""sign"""',
        "003.jpg,end",
    ]
    found, refused, notes = rows(table(tmp_path / "t.csv", *lines))
    assert found == {
        "000.jpg": ['"Look at this'],
        "001.jpg": ["a dog, running"],
        "002.jpg": ['a "sign"'],
        "003.jpg": ["end"],
    }
    assert refused == [] and len(notes) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_breaks_in_proper_quotes_stay_in_the_caption(tmp_path, end):
    lines = ["image,caption", '000.jpg,"a dog,', "", 'parked on grass"', '001.jpg,"one', 'two"', "002.jpg,three"]
    found, refused, notes = rows(table(tmp_path / "t.csv", *lines, end=end))
    assert found == {"000.jpg": ["a dog,\nparked on grass"], "001.jpg": ["one\ntwo"], "002.jpg": ["three"]}
    assert (refused, notes) == ([], [])


def test_names_without_suffix_bound_an_unclosed_mark_too(tmp_path):
    found, refused, _ = rows(table(tmp_path / "t.tsv", "image\tcaption", 'a1\t"open', "a2\ttwo", 'a3\tthree"', "a4\tx"))
    assert found == {"a1": ['"open'], "a2": ["two"], "a3": ['three"'], "a4": ["x"]}
    assert refused == []


def test_a_hundred_thousand_open_marks_take_no_time(tmp_path):
    path = table(tmp_path / "t.csv", "image,caption", *['x y z,"open'] * 20_000)
    found, refused, notes = rows(path)
    assert len(found["x y z"]) == 20_000 and refused == []
    assert notes[0].startswith("20,000 rows with a quotation mark that is never closed")


def test_commas_that_nobody_quoted(tmp_path):
    lines = ["caption,image", "a dog, running,000.jpg", "a cat,001.jpg"]
    assert rows(table(tmp_path / "a.csv", *lines))[0] == {"000.jpg": ["a dog, running"], "001.jpg": ["a cat"]}
    lines = ["image,caption_1,caption_2", "000.jpg,a dog, running,a pet", "001.jpg,a cat,"]
    found, refused, _ = rows(table(tmp_path / "b.csv", *lines))
    assert found == {"001.jpg": ["a cat"]}  # which comma is whose cannot be known
    assert refused == ["2 too many cells: 4 cells in 3 columns: put cells that hold the delimiter in quotation marks"]


FORMS = {
    "open_clip": ["filepath\ttitle", "000.jpg\ta dog"],
    "datasets": ["file_name,text", "000.jpg,a dog"],
    "Kaggle's Flickr30k": ["image_name| comment_number| comment", "000.jpg| 0| a dog"],
    "Excel": ["sep=;", '"Image Name";Caption', "000.jpg;a dog"],
    "quoted names": ['"image","caption"', '"000.jpg","a dog"'],
    "blanks around": [" Image , Caption ", ' 000.jpg , "a dog" '],
    "of an index": [",image_path,caption", "0,000.jpg,a dog"],
    "CC3M": ["a dog\t000.jpg"],
    "no names": ["000.jpg,a dog"],
    "Flickr's tokens": ["000.jpg#0\ta dog"],
    "Windows": ["image,caption", ".\\000.jpg,a dog"],
    "a list of pandas": ["image,captions", "000.jpg,\"['a dog']\""],
    "a list of numpy": ["image,captions", "000.jpg,['a dog']"],
    "upper case": ["IMAGE,CAPTION", "file:000.jpg".removeprefix("file:") + ",a dog"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_forms(tmp_path, form, encoding):
    found, refused, _ = rows(table(tmp_path / "t.csv", *FORMS[form], end="\r\n", encoding=encoding))
    assert [[str(text).strip() for text in texts] for texts in found.values()] == [["a dog"]]
    assert list(found) == ["000.jpg"] and refused == []


def test_a_packed_table(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"image,caption\n000.jpg,a dog\n"))
    assert rows(tmp_path / "t.csv.gz")[0] == {"000.jpg": ["a dog"]}


def test_columns_that_are_not_used_are_named_and_several_of_captions_are(tmp_path):
    lines = ["image,caption_1,caption_2,caption_10,licence,id", "000.jpg,one,two,,CC,1", "001.jpg,,,,CC,2"]
    found, refused, notes = rows(table(tmp_path / "t.csv", *lines))
    assert found == {"000.jpg": ["one", "two"]}
    assert refused == ["3 no image or no caption: it has 6 cells"]
    assert notes == ["not used: licence, id"]


def test_columns_may_be_named(tmp_path):
    path = table(tmp_path / "t.csv", "Bild,Text de,Text en,teil", "a.jpg,ein Hund,a dog,test")
    with pytest.raises(UserError) as error:
        rows(path)
    assert str(error.value).startswith(
        f"{path}: no column of images, or none of captions, among Bild, Text de, Text en, teil; known are images: image, "
    )
    assert "dataset.image_column= and dataset.caption_column=" in str(error.value)
    (row,) = read_rows(path, [], Wanted("bild", ("Text en", "Text de"), "teil"))
    assert (row.image, row.captions, row.split) == ("a.jpg", ["a dog", "ein Hund"], "test")
    with pytest.raises(UserError, match=r"dataset.caption_column=Test: .*t\.csv has the columns Bild, Text de"):
        list(read_rows(path, [], Wanted("Bild", ("Test",))))


def test_a_column_twice(tmp_path):
    path = table(tmp_path / "t.csv", "image,caption,caption", "a.jpg,one,two")
    assert rows(path)[0] == {"a.jpg": ["one", "two"]}
    with pytest.raises(UserError, match="has 2 columns called image: rename one"):
        rows(table(path, "image,image,caption", "a.jpg,b.jpg,one"))


def test_excel_s_ansi_lines_are_refused_with_the_cure(tmp_path):
    path = table(tmp_path / "t.csv", "image;caption", "a.jpg;a caf\u00e9", "b.jpg;a dog", encoding="cp1252")
    found, refused, _ = rows(path)
    assert found == {"b.jpg": ["a dog"]}
    assert refused == ["2 not UTF-8 text: byte 12 of the line; save the file as UTF-8 (in Excel: CSV UTF-8)"]


@pytest.mark.parametrize("line", ["a dog\thttps://example.org/1.jpg", "a dog\thttp://x/image?id=1"])
def test_addresses_are_no_files(tmp_path, line):
    with pytest.raises(UserError, match=r"an address on the web, not a file: download .* with img2dataset"):
        rows(table(tmp_path / "t.tsv", line))
    found, refused, _ = rows(table(tmp_path / "u.tsv", "caption\turl", line, "a cat\tb.jpg"))
    assert found == {"b.jpg": ["a cat"]} and "img2dataset" in refused[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"PK\x03\x04", "is a spreadsheet: save it as CSV UTF-8"),
        ("t.csv", b"PK\x03\x04", "is an archive: unpack it"),
        ("t.zip", b"PK\x03\x04", "is an archive: unpack it"),
        ("t.pkl", b"\x80\x04", "is a pickle, which may run code: write it as CSV or JSON lines"),
        ("t.csv", b"", "is empty: its first line must name the columns"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name)


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs pyarrow: pip install pyarrow$"):
        rows(tmp_path / "t.parquet")


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    values = {"image": ["a.jpg", "b.jpg"], "captions": [["one", "two"], ["three"]], "split": ["train", "test"]}
    parquet.write_table(pyarrow.table(values), tmp_path / "t.parquet")
    assert rows(tmp_path / "t.parquet")[0] == {"a.jpg": ["one", "two"], "b.jpg": ["three"]}


@pytest.mark.parametrize("cell", ["nul\0.jpg", "x" * 300 + ".jpg", "a/" * 3000 + "b.jpg", "./"])
def test_what_no_file_can_be_called_is_refused(tmp_path, cell):
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"image": cell, "caption": "x"}) + '\n{"image": "a.jpg", "caption": "y"}\n'
    )
    found, refused, _ = rows(tmp_path / "t.jsonl")
    assert list(found) == ["a.jpg"] and refused[0].startswith("1 no image: ")
