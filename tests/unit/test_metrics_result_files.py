"""Predictions and references in the forms people have them; what does not fit together is listed."""

from __future__ import annotations

import gzip
import json

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.result_files import matched, read_predictions, read_references
from velm_cli.schema import Mismatch


def written(folder, name: str, *, value=None, lines=None, text=None):
    path = folder / name
    content = text if text is not None else "".join(json.dumps(x) + "\n" for x in lines) if lines else json.dumps(value)
    path.write_text(content, encoding="utf-8")
    return path


ITEMS = [{"image_id": 7, "caption": "a cat"}, {"image_id": "x", "caption": "two\ndogs 🐕"}]


@pytest.mark.parametrize("form", ["list", "lines", "indented", "gzip", "bom"])
def test_predictions_in_every_form(tmp_path, form):
    if form == "lines":
        path = written(tmp_path, "p.jsonl", lines=ITEMS)
    elif form == "gzip":
        path = tmp_path / "p.json.gz"
        path.write_bytes(gzip.compress(json.dumps(ITEMS).encode()))
    elif form == "bom":
        path = written(tmp_path, "p.json", text="\ufeff" + json.dumps(ITEMS))
    else:
        path = written(tmp_path, "p.json", text=json.dumps(ITEMS, indent=2 if form == "indented" else None))
    assert read_predictions(path).captions == {7: "a cat", "x": "two\ndogs 🐕"}


def test_one_line_of_json_lines_is_enough(tmp_path):
    path = written(tmp_path, "p.jsonl", lines=ITEMS[:1])
    assert read_predictions(path).captions == {7: "a cat"}
    assert read_references(path).captions == {7: ["a cat"]}


def test_sets_of_captions_and_velms_own_files(tmp_path):
    own = {"image_id": 1, "hypothesis": "h", "references": ["r", "s"], "scores": {}}
    path = written(tmp_path, "per_image.jsonl", lines=[own, {"image_id": 2, "captions": ["a", "b"], "references": []}])
    predictions = read_predictions(path)
    assert predictions.captions == {1: "h", 2: "a"}
    assert predictions.sets == {2: ["a", "b"]}
    assert read_references(path).captions == {1: ["r", "s"], 2: []}


def test_references_of_coco_and_their_domains(tmp_path):
    images = [{"id": 1, "domain": "in-domain"}, {"id": 2, "file_name": "x.jpg"}]
    annotations = [{"id": i, "image_id": 1 + i % 2, "caption": f"c{i}"} for i in range(5)]
    references = read_references(written(tmp_path, "r.json", value={"images": images, "annotations": annotations}))
    assert references.captions == {1: ["c0", "c2", "c4"], 2: ["c1", "c3"]}
    assert references.domains == {1: "in-domain"}
    assert references.files == {2: "x.jpg"}


def test_what_does_not_fit_is_listed_or_left_out(tmp_path):
    items = [{"image_id": i, "caption": "x"} for i in (1, 2, 2, 2, 9)]
    predictions = read_predictions(written(tmp_path, "p.json", value=items))
    references = {1: ["r"], 2: ["r"], 3: ["r"], 4: ["r"], 5: []}
    with pytest.raises(UserError) as failure:
        matched(references, predictions, Mismatch.error, "p.json")
    message = str(failure.value)
    assert message.startswith("p.json: no prediction for 3 images (3, 4, 5); no references for 1 image (9); ")
    assert "more than one prediction for 1 image (2)" in message
    assert "an empty list of references for 1 image (5)" in message
    assert "mismatch=ignore" in message
    images, notes = matched(references, predictions, Mismatch.ignore)
    assert images == [1, 2]
    assert len(notes) == 4
    assert notes[0] == "left out: no prediction for 3 images (3, 4, 5)"


def test_files_that_fit_leave_nothing_out(tmp_path):
    predictions = read_predictions(written(tmp_path, "p.json", value=ITEMS))
    assert matched({"x": ["r"], 7: ["r"]}, predictions, Mismatch.error) == (["x", 7], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no predictions"),
        ("", "is empty"),
        ('{"image_id": 1, "caption": "a"}\n{"image_id"', ":2: not JSON"),
        ('{"images": []}', 'it has "images" and no "annotations"'),
        ("[1]", "1: not an object but 1"),
        ('[{"image_id": 1, "caption": "a"}, {"image_id": 1.5, "caption": "a"}]', '2: "image_id" must be a number or'),
        ('[{"image_id": true, "caption": "a"}]', '"image_id" must be'),
        ('[{"caption": "a"}]', "no image: none of image_id, image, "),
        ('[{"image_id": 1, "captoin": "a"}]', ", ... but image_id, captoin"),
        ('[{"image_id": 1, "caption": 3}]', '"caption" must be text or a list of texts, not 3'),
        ('[{"image_id": 1, "captions": []}]', '"captions" is empty'),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, text, message):
    path = written(tmp_path, "p.json", text=text)
    with pytest.raises(UserError) as failure:
        read_predictions(path)
    assert message in str(failure.value)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path):
    packed = gzip.compress(b" " * (100 << 20), compresslevel=1)
    (tmp_path / "bomb.json.gz").write_bytes(packed)
    with pytest.raises(
        UserError, match=r"bomb\.json\.gz cannot be read: it unpacks to more than \d+ MB, 50 times its size"
    ):
        read_predictions(tmp_path / "bomb.json.gz")


def test_packed_files_in_parts_with_padding_are_read_and_damaged_ones_named(tmp_path):
    whole = json.dumps(ITEMS).encode()
    path = tmp_path / "p.json.gz"
    path.write_bytes(gzip.compress(whole[:9]) + gzip.compress(whole[9:]) + bytes(5))
    assert read_predictions(path).captions == {7: "a cat", "x": "two\ndogs 🐕"}
    packed = gzip.compress(whole)
    for damaged in (packed[:-9], packed[:20] + bytes([packed[20] ^ 255]) + packed[21:], packed + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"predictions=.*p\.json\.gz cannot be read: ") as failure:
            read_predictions(path)
        assert "\n" not in str(failure.value)


def test_what_stands_beside_a_file_does_no_harm_and_odd_lists_neither(tmp_path):
    path = written(tmp_path, "p.json", value=ITEMS)
    (tmp_path / "scores.json").write_text("[" * 100_000)
    assert len(read_predictions(path).captions) == 2
    path = written(tmp_path, "r.json", value={"images": 5, "annotations": [{"image_id": 1, "caption": "a"}]})
    assert read_references(path).captions == {1: ["a"]}


def test_ids_and_keys_of_strangers_make_no_lines_and_no_commands_for_the_terminal(tmp_path):
    evil = "\x1b[2J\nvelm: all good\u202e\ud800"
    predictions = read_predictions(written(tmp_path, "p.json", value=[{"image_id": evil, "caption": "c"}]))
    with pytest.raises(UserError, match="no prediction for 1 image") as failure:
        matched({7: ["r"]}, predictions, Mismatch.error)
    assert r"(\x1b[2J\nvelm: all good\u202e\ud800)" in str(failure.value)
    assert str(failure.value).isprintable()
    with pytest.raises(UserError, match="no caption: none of caption, captions, hypothesis") as failure:
        read_predictions(written(tmp_path, "p.json", value=[{"image_id": 1, evil: "c"}]))
    assert str(failure.value).isprintable()


def test_absent_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_references(tmp_path / "nothing.json")
    (tmp_path / "r.json.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"references=.*cannot be read"):
        read_references(tmp_path / "r.json.gz")
    (tmp_path / "latin.json").write_bytes("[{'é'".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_references(tmp_path / "latin.json")
