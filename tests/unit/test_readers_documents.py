"""Documents with summaries, and captions of an image made into one."""

from __future__ import annotations

import json

import pytest

from velm_cli.data.examples import Corpus, Examples, captioned
from velm_cli.data.readers import read
from velm_cli.data.readers.summaries import captions_into_one
from velm_cli.errors import UserError
from velm_cli.schema import DocumentsConfig


def test_the_form_of_cnn_dailymail(tmp_path):
    rows = [
        {"id": "a1", "article": "One. Two.\nThree.", "highlights": "First thing\nSecond thing ."},
        {"id": "a2", "document": "Four.", "summary": ["Five.", "Six."], "images": ["x.jpg", "y.jpg"]},
        {"text": "Seven.", "target": "Eight"},
    ]
    bad = [{"id": "a1", "article": "x", "highlights": "y"}, {"article": "x"}, [], {"article": 3, "summary": "x"}]
    bad += [{"article": "x", "summary": "y", "image": "../x.jpg"}, {"article": "x", "summary": "y", "images": [1]}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows + bad)) + "\n{")
    (tmp_path / "validation.jsonl").write_text(json.dumps({"article": "a", "highlights": "b"}))
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / name).touch()
    corpus = read(DocumentsConfig(root=str(tmp_path)))
    first, second, third, fourth = corpus.examples
    assert (first.id, first.source, first.targets) == ("a1", "One. Two. Three.", ("First thing . Second thing .",))
    assert second.targets == ("Five.", "Six.") and [image.id for image in second.images] == ["x.jpg", "y.jpg"]
    assert (third.id, third.source, third.targets, third.images) == ("train-3", "Seven.", ("Eight",), ())
    assert (fourth.split, fourth.id) == ("val", "val-1")
    assert len(corpus.refused) == len(bad) + 1
    named = DocumentsConfig(root=str(tmp_path), images=False, source_column="summary", target_column="document")
    with pytest.raises(UserError, match="nothing in it can be used"):
        read(named)
    (tmp_path / "test.jsonl").write_text(json.dumps({"summary": "a", "document": "b"}))
    assert [example.source for example in read(named).examples] == ["a"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no JSON lines"):
        read(DocumentsConfig(root=str(tmp_path / "nothing")))


def test_captions_into_one():
    captions = ["a dog", "b | c", "d", "e"]
    given = [captioned(n, split, targets=captions) for n, split in enumerate(("train", "val", "test"))]
    corpus = captions_into_one(Corpus(Examples([*given, captioned(9, "train", targets=["only", "two"])])))
    found = [(example.id, example.source, example.targets) for example in corpus.examples]
    assert found == [
        ("0#1", "b   c | d | e", ("a dog",)),
        ("0#2", "a dog | d | e", ("b   c",)),
        ("0#3", "a dog | b   c | e", ("d",)),
        ("0#4", "a dog | b   c | d", ("e",)),
        (1, "a dog | b   c | d", ("e",)),
        (2, "a dog | b   c | d", ("e",)),
    ]
    assert corpus.notes == ["1 images have fewer than 3 captions, and are left out"]
    with pytest.raises(UserError, match="these examples have a source"):
        captions_into_one(corpus)
    with pytest.raises(UserError, match="no image has 3 captions"):
        captions_into_one(Corpus(Examples([captioned(9, "train", targets=["only"])])))
