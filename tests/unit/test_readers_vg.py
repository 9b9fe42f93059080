"""Visual Genome: its official files, and what may be wrong with them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from velm_cli import schema
from velm_cli.data.readers import read
from velm_cli.errors import UserError

EVERYONE = {"val_fraction": 0.0, "test_fraction": 0.0}


def region(number, phrase="a red ball", box=(10, 10, 40, 40), **more):
    return {"region_id": number, "phrase": phrase, **dict(zip(("x", "y", "width", "height"), box, strict=True)), **more}


@pytest.fixture
def root(tmp_path):
    for folder, image in (("VG_100K", 1), ("VG_100K_2", 2), ("VG_100K", 3)):
        (tmp_path / folder).mkdir(exist_ok=True)
        picture = Image.new("RGB", (100, 80), (10, 20, 30))
        picture.paste((250, 0, 0), (50, 40, 100, 80))
        picture.save(tmp_path / folder / f"{image}.jpg")
    put(tmp_path, "image_data", [{"image_id": n, "coco_id": coco} for n, coco in ((1, None), (2, 77), (3, 78))])
    put(
        tmp_path, "region_descriptions", [{"id": n, "regions": [region(10 * n), region(10 * n + 1)]} for n in (1, 2, 3)]
    )
    asked = [
        {"qa_id": 5, "question": "What is it?", "answer": "A Ball."},
        {"qa_id": 6, "question": "Where?", "answer": "Here"},
    ]
    put(tmp_path, "question_answers", [{"id": 1, "qas": asked}])
    return tmp_path


def put(root, name, rows):
    (root / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")


def corpus_of(root, **options):
    return read(schema.VgConfig(root=str(root), **(EVERYONE | options)))


def test_a_region_is_cut_out_and_has_its_phrase(root):
    put(root, "region_descriptions", [{"id": 1, "regions": [region(4, "the red part", (50, 40, 60, 60))]}])
    corpus = corpus_of(root)
    (example,) = corpus.examples
    assert (example.id, example.targets) == (4, ("the red part",))
    with Image.open(example.image) as cut:
        assert cut.size == (50, 40), "the image's edge cuts the box"
        red, green, _ = cut.getpixel((25, 20))
        assert red > 200 > 60 > green
    written = example.image.stat().st_mtime_ns
    assert next(iter(corpus_of(root).examples)).image.stat().st_mtime_ns == written, "cut once"


def test_the_largest_regions_of_an_image_are_taken_and_small_ones_refused(root):
    boxes = {1: (0, 0, 33, 33), 2: (0, 0, 90, 70), 3: (0, 0, 50, 50), 4: (0, 0, 10, 70)}
    put(root, "region_descriptions", [{"id": 1, "regions": [region(n, box=box) for n, box in boxes.items()]}])
    corpus = corpus_of(root, regions_per_image=2)
    assert [example.id for example in corpus.examples] == [2, 3]
    assert corpus.refused == [("1/4", "its box is smaller than dataset.min_side=32")]


def test_questions_have_one_answer_as_vqa_writes_them(root):
    found = list(corpus_of(root, examples=schema.VgExamples.questions).examples)
    assert [(one.id, one.source, one.targets, one.images[0].id) for one in found] == [
        (5, "What is it?", ("a ball",), 1),
        (6, "Where?", ("here",), 1),
    ]


def test_objects_with_attributes_are_texts_of_the_image(root):
    things = [{"object_id": 7, "names": ["Table"]}, {"object_id": 8, "names": ["cup"]}, {"object_id": 9, "names": []}]
    put(root, "objects", [{"image_id": 1, "objects": things}])
    put(root, "attributes", [{"image_id": 1, "attributes": [{"object_id": 7, "attributes": ["old", "Wooden "]}, 3]}])
    corpus = corpus_of(root, examples=schema.VgExamples.objects)
    (example,) = corpus.examples
    assert example.targets == ("old wooden table", "cup")
    assert corpus.refused == [("1", 'an object has no usable "names"')]


def test_images_that_a_model_is_tested_on_are_left_out(root):
    put(root, "exclude", [77])
    corpus = corpus_of(root, exclude=str(root / "exclude.json"))
    assert [example.id for example in corpus.examples] == [10, 11, 30, 31]
    assert "left out 1 images whose COCO number dataset.exclude names" in corpus.notes
    put(root, "split", {"train": [77], "val": [78], "test": []})
    corpus = corpus_of(root, exclude=str(root / "split.json"))
    assert [example.id for example in corpus.examples] == [10, 11, 20, 21], "those of val and test"
    (root / "image_data.json").unlink()
    with pytest.raises(UserError, match="which says which images are COCO's"):
        corpus_of(root, exclude=str(root / "split.json"))


def test_parts_are_of_images_never_of_regions(root):
    put(root, "parts", {"train": [1], "test": [3]})
    corpus = corpus_of(root, split_file=str(root / "parts.json"))
    assert [(example.id, example.split) for example in corpus.examples] == [
        (10, "train"), (11, "train"), (30, "test"), (31, "test"),
    ]  # fmt: skip
    many = corpus_of(root, val_fraction=0.3, test_fraction=0.3)
    of_image = {}
    for example in many.examples:
        assert of_image.setdefault(int(example.id) // 10, example.split) == example.split


def test_what_cannot_be_used_is_refused_and_the_rest_is_read(root):
    hostile = [
        None, [], "x", {"id": "1", "regions": []}, {"id": True, "regions": []}, {"id": 1, "regions": None}, {"regions": []},
        {"id": 1, "regions": [None, {}, region("9"), region(11, None), region(12, box=(0, 0, -5, 9)),
                              region(13, box=(0, 0, 1e99, 50)), region(14, box=(500, 500, 50, 50)), region(15, " \u200b"),
                              region(16), region(16), region(True)]},
        {"id": 99, "regions": [region(17)]},
    ]  # fmt: skip
    put(root, "region_descriptions", hostile)
    with pytest.raises(UserError, match="annotated images are missing"):
        corpus_of(root)
    (root / "VG_100K" / "3.jpg").write_bytes(b"no image")
    put(root, "region_descriptions", [*hostile[:-1], {"id": 3, "regions": [region(18)]}])
    corpus = corpus_of(root)
    assert [example.id for example in corpus.examples] == [16]
    said = "\n".join(reason for _, reason in corpus.refused)
    for reason in (
        "no usable image id",
        'no usable "region_id"',
        "outside",
        "again",
        "cannot be cut out",
        "no usable caption",
    ):
        assert reason in said, reason


@pytest.mark.parametrize(
    ("content", "said"), [("{}", "it is no list"), ("", "json"), ("\ufeff[", "json"), (None, "is not there")]
)
def test_files_that_are_others_get_a_line(root, content, said):
    file = root / "region_descriptions.json"
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        corpus_of(root)
