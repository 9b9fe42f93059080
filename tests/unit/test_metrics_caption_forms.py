"""One set of captions in every form that people's tools write it in; what is no such form is named in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.result_files import matched, read_predictions, read_references
from velm_cli.schema import Mismatch

CAPTIONS = {1: "a red circle, on a wall", 2: 'two dogs "run"', 37: "un café\u2028 bleu\x85 ici"}
REFERENCES = {image: [caption, f"{caption} outside"] for image, caption in CAPTIONS.items()}
ITEMS = [{"image_id": image, "caption": caption} for image, caption in CAPTIONS.items()]
NAMES = {image: f"{image:012d}.jpg" for image in CAPTIONS}
COCO = {
    "images": [{"id": image, "file_name": name} for image, name in NAMES.items()],
    "annotations": [
        {"id": 9, "image_id": image, "caption": one} for image, group in REFERENCES.items() for one in group
    ],
}


def table(delimiter: str, *names: str, end: str = "\n", quoting: int = csv.QUOTE_MINIMAL, **more: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting, **more)
    writer.writerow(names)
    writer.writerows([image, caption] for image, caption in CAPTIONS.items())
    return out.getvalue()


def lines(*keys: str, end: str = "\n") -> str:
    rows = (dict(zip(keys, row, strict=True)) for row in CAPTIONS.items())
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


PREDICTED = {
    "list.json": ITEMS,
    "extra.json": [item | {"id": 7, "score": 0.5, "split": "x"} for item in ITEMS],
    "floats.json": [item | {"image_id": float(item["image_id"])} for item in ITEMS],
    "text.json": [item | {"image_id": str(item["image_id"])} for item in ITEMS],
    "padded.json": [item | {"image_id": f"{item['image_id']:012d}"} for item in ITEMS],
    "names.json": [item | {"image_id": NAMES[item["image_id"]]} for item in ITEMS],
    "coco_names.json": [item | {"image_id": f"COCO_val2014_{NAMES[item['image_id']]}"} for item in ITEMS],
    "blip.json": [{"image": f"val/{NAMES[image]}", "caption": [caption]} for image, caption in CAPTIONS.items()],
    "windows.json": [{"file_name": f"D:\\val\\{NAMES[image]}", "caption": one} for image, one in CAPTIONS.items()],
    "llava.jsonl": lines("question_id", "text"),
    "own.json": [{"id": image, "prediction": one, "caption": "the truth"} for image, one in CAPTIONS.items()],
    "by_id.json": {str(image): caption for image, caption in CAPTIONS.items()},
    "by_stem.json": {f"{image:012d}": [caption] for image, caption in CAPTIONS.items()},
    "by_name.json": {NAMES[image]: caption for image, caption in CAPTIONS.items()},
    "res.json": {str(image): [{"image_id": image, "caption": caption}] for image, caption in CAPTIONS.items()},
    **{f"{key}.json": {"model": "x", key: ITEMS} for key in ("results", "predictions", "annotations", "data", "captions")},
    "batches.json": [ITEMS[:2], ITEMS[2:]],
    "pairs.json": [[image, caption] for image, caption in CAPTIONS.items()],
    "index.json": {str(number): item for number, item in enumerate(ITEMS)},
    "columns.json": {key: {str(n): item[key] for n, item in enumerate(ITEMS)} for key in ("image_id", "caption")},
    "lists.json": {"image_id": list(CAPTIONS), "caption": list(CAPTIONS.values())},
    "split.json": {"columns": ["image_id", "caption"], "index": [0, 1, 2], "data": [list(row) for row in CAPTIONS.items()]},
    "lines.jsonl": lines("image_id", "caption"),
    "lines.ndjson": "\ufeff" + lines("image_id", "caption", end="\r\n") + "\r\n",
    "commas.jsonl": lines("image_id", "caption", end=",\n"),
    "p.csv": table(",", "image_id", "caption"),
    "index.csv": ",image_id,caption\n" + "".join(f'{n},{i},"{c.replace(chr(34), chr(34) * 2)}"\n' for n, (i, c) in enumerate(CAPTIONS.items())),
    "excel.csv": "\ufeffsep=;\r\n" + table(";", "image_id", "caption", end="\r\n"),
    "quoted.csv": table(",", "image_id", "caption", quoting=csv.QUOTE_ALL),
    "p.tsv": table("\t", "filepath", "title", quoting=csv.QUOTE_NONE, quotechar=None),
    "plain.txt": table("|", "image_name", " comment"),
    "utf16.json": json.dumps(ITEMS).encode("utf-16"),
    "p.json.gz": gzip.compress(json.dumps(ITEMS).encode()),
    "p.jsonl.gz": gzip.compress(lines("image_id", "caption").encode()),
}  # fmt: skip


def written(folder, name: str, content):
    path = folder / name
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_in_every_form_are_the_same(tmp_path, name):
    predictions = read_predictions(written(tmp_path, name, PREDICTED[name]))
    images, notes = matched(read_references(written(tmp_path, "coco.json", COCO)), predictions, Mismatch.error)
    assert images == list(CAPTIONS)
    assert predictions.captions == CAPTIONS
    form = "differ in form" in "".join(notes)
    assert form == (name.split(".")[0] in {"text", "padded", "names", "coco_names", "blip", "windows", "by_id", "by_stem", "by_name", "res"})  # fmt: skip
    assert ('those under "prediction"' in "".join(notes)) == (name == "own.json")


KARPATHY = {
    "images": [
        {"cocoid": image, "filename": NAMES.get(image, "x.jpg"), "split": "val" if image == 5 else "test", "sentences": [{"raw": c} for c in group]}
        for image, group in {**REFERENCES, 5: ["another"]}.items()
    ]
}  # fmt: skip
REFERRED = {
    "coco.json": COCO,
    "gts.json": {str(image): [{"caption": one} for one in group] for image, group in REFERENCES.items()},
    "by_name.json": {NAMES[image]: group for image, group in REFERENCES.items()},
    "karpathy.json": KARPATHY,
    "blip.json": [{"image": f"val2014/COCO_val2014_{NAMES[image]}", "caption": g} for image, g in REFERENCES.items()],
    "own.jsonl": "".join(json.dumps({"image_id": i, "hypothesis": "h", "references": g}) + "\n" for i, g in REFERENCES.items()),
    "Flickr8k.token.txt": "".join(f"{NAMES[i]}#{n}\t{c}\n" for i, g in REFERENCES.items() for n, c in enumerate(g)),
    "wide.tsv": "image_id\tcaption_1\tcaption_2\n" + "".join("\t".join([str(i), *g]) + "\n" for i, g in REFERENCES.items()),
}  # fmt: skip


@pytest.mark.parametrize("name", REFERRED)
def test_references_in_every_form_are_the_same(tmp_path, name):
    references = read_references(written(tmp_path, name, REFERRED[name]))
    predictions = read_predictions(written(tmp_path, "p.json", ITEMS))
    images, notes = matched(references, predictions, Mismatch.error)
    assert [references.captions[image] for image in images] == list(REFERENCES.values())
    assert list(predictions.captions.values()) == list(CAPTIONS.values())
    assert ("the references are those of the split test: 3 images" in notes) == (name == "karpathy.json")


def test_kaggles_captions_are_references(tmp_path):
    text = 'image,caption\na.jpg,"A dog, a cat ."\na.jpg,One dog, unquoted .\nb.jpg,"two\nlines"\n'
    references = read_references(written(tmp_path, "captions.txt", text))
    assert references.captions == {"a.jpg": ["A dog, a cat .", "One dog, unquoted ."], "b.jpg": ["two\nlines"]}


def test_captions_by_line_and_by_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hypotheses = written(tmp_path, "hyp.txt", "a cat\n\na dog\n")
    written(tmp_path, "ref0.txt", "the cat\nthe cow\nthe dog\n")
    written(tmp_path, "ref1.txt", "\ufeffa cat\r\n\r\none dog\r\n")
    for several in ("ref0.txt,ref1.txt", "[ref0.txt, ref1.txt]", "ref*.txt"):
        references = read_references(several)
        assert references.captions == {1: ["the cat", "a cat"], 2: ["the cow"], 3: ["the dog", "one dog"]}
        predictions = read_predictions(hypotheses)
        assert matched(references, predictions, Mismatch.error) == ([1, 2, 3], [])
        assert predictions.captions == {1: "a cat", 2: "", 3: "a dog"}
    both = {"predictions": ["a cat", "a dog"], "references": [["x", "y"], ["z"]]}
    path = written(tmp_path, "evaluate.json", both)
    assert read_predictions(path).captions == {1: "a cat", 2: "a dog"}
    assert read_references(path).captions == {1: ["x", "y"], 2: ["z"]}
    for one, other in ((hypotheses, "coco.json"), (written(tmp_path, "p.json", ITEMS), "ref0.txt")):
        written(tmp_path, "coco.json", COCO)
        with pytest.raises(UserError, match="give both with ids, or both in order"):
            matched(read_references(other), read_predictions(one), Mismatch.ignore)
    with pytest.raises(UserError, match="has 2 captions and the references 3"):
        matched(read_references("ref0.txt"), read_predictions(written(tmp_path, "h2.txt", "a\nb\n")), Mismatch.error)
    with pytest.raises(UserError, match="only one of them names its images"):
        read_references("ref0.txt,coco.json")


def test_ids_that_two_images_share_in_form_are_not_matched(tmp_path):
    for ids, wanted in (
        (["a/1.jpg", "b/1.jpg"], [1, 2]),
        (["7", "007"], [7, 8]),
        (["photo_3", "photo_4"], ["img_3", "img_4"]),
        (["x.jpg"], ["x.png", "x.webp"]),
        (["-1", -2], [1, 2]),
    ):
        items = [{"image_id": image, "caption": "c"} for image in ids]
        predictions = read_predictions(written(tmp_path, "p.json", items))
        references = {image: ["r"] for image in wanted}
        if "7" in ids:  # the same text is nearer than the same number
            assert matched(references, predictions, Mismatch.ignore)[0] == [7]
            continue
        with pytest.raises(UserError, match="no prediction for"):
            matched(references, predictions, Mismatch.error)


def test_equal_ids_are_never_taken_for_others(tmp_path):
    predictions = read_predictions(written(tmp_path, "p.json", {"2": "by text", "b.jpg": "by name"}))
    references = read_references(
        written(tmp_path, "r.json", {"images": [{"id": 2, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
                                     "annotations": [{"image_id": image, "caption": "r"} for image in (2, 3)]})
    )  # fmt: skip
    images, notes = matched(references, predictions, Mismatch.error)
    assert predictions.captions == {2: "by text", 3: "by name"} and images == [2, 3]
    assert notes == ['ids that differ in form are matched: 2 by equal text, such as "2" is 2']


PACKED = io.BytesIO()
with zipfile.ZipFile(PACKED, "w") as archive:
    archive.writestr("results.json", json.dumps(ITEMS))
REFUSED = {
    "empty.json": ("", "predictions=.* is empty"),
    "blank.txt": (" \n\n", "predictions=.* is empty"),
    "mark.csv": ("\ufeff", "predictions=.* is empty"),
    "none.json": ({}, "an object of nothing, in which velm finds no captions; known are"),
    "info.json": ({"images": [{"id": 1}]}, 'it has "images" and no "annotations"'),
    "other.json": ({"epoch": 3, "loss": 1.5}, "an object of epoch, loss, in which velm finds no captions"),
    "nan.json": ('[{"image_id": 1, "caption": NaN}]', 'must be text or a list of texts, not NaN: it is missing'),
    "null.json": ([{"image_id": 1, "caption": None}], "not null: it is missing in the table"),
    "twice.json": ('{"1": "a cat", "1": "a dog"}', r"more than once in it: 1 image \(1\)"),
    "printed.json": (repr(ITEMS), "what Python prints: write it with json.dump"),
    "yaml.json": ("1: a cat\n", "is not JSON: it begins with 1: a cat; known are"),
    "zip.json": (PACKED.getvalue(), "is a zip archive or spreadsheet: unpack it"),
    "p.parquet": (b"PAR1\x15\x04", "is parquet: turn it into JSON"),
    "p.pkl": (b"\x80\x04\x95", "is a pickle or other binary data"),
    "packed.json": (gzip.compress(b"[]"), "its name must end in .gz"),
    "latin.csv": ("image_id,caption\n1,un café\n".encode("cp1252"), r"latin\.csv:2: not UTF-8 text"),
    "columns.csv": ("foo,bar\n1,a cat\n", "its first line must name a column of images .* and is foo,bar"),
    "open.csv": ('image_id,caption\n1,"a cat\n2,a dog\n', "line 2: a quotation mark is left open"),
    "cells.csv": ("image_id,caption,score\n1,a cat, a dog,3\n", "line 2: 4 cells in 3 columns: put quotes"),
    "short.csv": ("image_id,caption\n1\n", "line 2: no image or no caption in its 1 columns"),
    "lines.jsonl": ('{"image_id": 1, "caption": "a"}\n{"image_id": 2\n{\n', r"lines\.jsonl:2: not JSON.*\(and 1 more lines\)"),
    "deep.json": ('{"data": ' * 400 + "[]" + "}" * 400, "holds no predictions|nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_captions_is_named_in_one_line(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as failure:
        read_predictions(written(tmp_path, name, content))
    assert "\n" not in str(failure.value) and name in str(failure.value)


def test_the_other_system_is_read_like_the_first_and_named_as_it_was_given(tmp_path):
    path = written(tmp_path, "hyp.txt", "a cat\n\na dog\n")
    assert read_predictions(path, "vs").captions == read_predictions(path).captions == {1: "a cat", 2: "", 3: "a dog"}
    with pytest.raises(UserError, match=r"vs=.*: its first line must name"):
        read_predictions(written(tmp_path, "p.csv", "foo,bar\n"), "vs")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is a folder: give a file"):
        read_predictions(tmp_path)


def test_lists_written_into_cells_are_captions(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text('image_id,caption\n1,"[\'a dog\']"\n2,"[""a cat"", ""two cats""]"\n3,[sic] a bird\n')
    found = read_predictions(file)
    assert found.captions == {1: "a dog", 2: "a cat", 3: "[sic] a bird"} and found.sets == {2: ["a cat", "two cats"]}


def test_lines_that_are_too_few_are_refused_whatever_the_policy(tmp_path):
    """Any line may be the one that is missing, so leaving the last image out would score all against others."""
    for name, count in (("three", 3), ("two", 2)):
        (tmp_path / f"{name}.txt").write_text("".join(f"a dog number {n}\n" for n in range(count)))
    three, two = tmp_path / "three.txt", tmp_path / "two.txt"
    for policy in Mismatch:
        with pytest.raises(UserError, match="has 2 captions and the references 3, and only their order says"):
            matched(read_references(three), read_predictions(two), policy)
    with pytest.raises(UserError, match=r"three.txt has 3 captions and .*two.txt 2"):
        read_references(f"{three},{two}")


def test_captions_under_the_names_that_pipelines_give(tmp_path):
    file = tmp_path / "p.json"
    for value in (
        [{"image_id": 1, "generated_text": "a dog"}, {"image_id": 2, "generated_text": "a cat"}],
        {"image_ids": [1, 2], "captions": ["a dog", "a cat"]},
    ):
        file.write_text(json.dumps(value))
        assert read_predictions(file).captions == {1: "a dog", 2: "a cat"}
