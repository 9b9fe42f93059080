"""One reader of lines and of JSON lines, for whatever editor or system wrote them."""

from __future__ import annotations

import gzip
import json

import pytest

from velm_cli.errors import UserError
from velm_cli.lines import json_lines, load_json, text_lines

LINES = ["one\u2028two", "caf\u00e9\u0085", "three"]


@pytest.mark.parametrize(
    ("encoding", "end"),
    [(encoding, end) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32") for end in ("\n", "\r\n", "\r")
     if end != "\r" or encoding.startswith("utf-8")],  # no old Mac wrote UTF-16
)  # fmt: skip
def test_lines_end_where_editors_end_them(tmp_path, encoding, end):
    path = tmp_path / "lines.txt"
    path.write_bytes(end.join(["", *LINES[:2], "  ", LINES[2]]).encode(encoding))
    refused: list[tuple[str, str]] = []
    assert list(text_lines(path, refused)) == [(2, LINES[0]), (3, LINES[1]), (5, LINES[2])]
    assert refused == []


def test_packed_lines_are_unpacked_and_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "lines.jsonl.gz"
    whole = gzip.compress(b'{"a": 1}\n{"a": 2}\n')
    path.write_bytes(whole)
    assert list(json_lines(path, [])) == [(1, {"a": 1}), (2, {"a": 2})]
    for damaged in (whole[:-12], b"not gzip"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"lines\.jsonl\.gz cannot be read: "):
            list(json_lines(path, []))
    path.write_bytes(gzip.compress(b" " * (100 << 20)))
    with pytest.raises(UserError, match="unpacks to more than"):
        list(text_lines(path, []))


def test_broken_utf16_is_one_line(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("one\ntwo".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"is not whole UTF-16 text: .*; save the file as UTF-8"):
        list(text_lines(path, []))


def test_json_lines_are_refused_by_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "x\xe2\x80\xa8y"},\n\n{"a": 1,}\n{"a": NaN}\n\xff\n{"a": 1} {"a": 2}\n' + b"[" * 100_000)
    refused: list[tuple[str, str]] = []
    (first, second) = json_lines(path, refused)
    assert first == (1, {"a": "x\u2028y"}) and second[0] == 4
    assert [place.rpartition(":")[2] for place, _ in refused] == ["3", "5", "6", "7"]
    assert refused[1][1].startswith("not UTF-8 text: byte 1")
    assert refused[3][1] == "not JSON: nested too deeply"


def test_json_may_begin_with_a_byte_order_mark_or_be_utf16(tmp_path):
    path = tmp_path / "a.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(json.dumps({"a": 1}).encode(encoding))
        assert load_json(path) == {"a": 1}
