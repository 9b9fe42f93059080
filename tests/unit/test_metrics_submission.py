"""A submission is what the servers take, or it is not written at all."""

from __future__ import annotations

import json
import random
import zipfile

import numpy as np
import pytest
from pycocotools.coco import COCO

from velm_cli.errors import UserError
from velm_cli.metrics.submission import SPLITS, pack_submission, write_submission

WORDS = ["a", "cat", "dog", "sits", "on", "the", "red", "table", "while", "two", "people", "watch"]


def made_up(split: str) -> dict[int, str]:
    """A caption for as many images as the split has, under random ids in random order."""
    ids = random.sample(range(10, 600_000), SPLITS[split])
    return {image: " ".join(random.choices(WORDS, k=random.randint(1, 9))) for image in ids}


def test_pycocotools_reads_the_same_captions_back(tmp_path):
    captions = made_up("val2014")
    path = write_submission(tmp_path / "new", "val2014", "velm-1.0", captions, captions.keys())
    assert path.name == "captions_val2014_velm-1.0_results.json"
    annotations = [{"id": number, "image_id": image, "caption": "?"} for number, image in enumerate(captions, 1)]
    content = {"info": {}, "images": [{"id": image} for image in captions], "annotations": annotations}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    results = COCO(str(tmp_path / "annotations.json")).loadRes(str(path))
    assert {image: [item["caption"] for item in results.imgToAnns[image]] for image in results.getImgIds()} == {
        image: [text] for image, text in captions.items()
    }
    assert all(item.keys() == {"image_id", "caption"} for item in json.loads(path.read_text()))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_zip_has_both_files_at_its_top(tmp_path):
    files = {"captions_val2014_velm_results.json": b'[{"image_id": 1}]', "captions_test2014_velm_results.json": b"[]"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    packed = pack_submission(tmp_path, "velm")
    assert packed == tmp_path / "results.zip"
    with zipfile.ZipFile(packed) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_half_a_submission_is_not_packed(tmp_path):
    (tmp_path / "captions_val2014_velm_results.json").write_text("[]")
    with pytest.raises(UserError, match=r"captions_test2014_velm_results\.json is missing"):
        pack_submission(tmp_path, "velm")
    assert not (tmp_path / "results.zip").exists()


@pytest.mark.parametrize("split", ["nocaps_val", "nocaps_test"])
def test_nocaps_takes_one_list(tmp_path, split):
    captions = {np.int64(image): "a lynx" for image in range(SPLITS[split])}
    path = write_submission(tmp_path, split, "velm", captions, range(SPLITS[split]))
    assert json.loads(path.read_text()) == [{"image_id": i, "caption": "a lynx"} for i in range(SPLITS[split])]


def test_a_caption_stays_on_one_line_and_keeps_its_letters(tmp_path):
    captions = made_up("nocaps_val")
    first, second = list(captions)[:2]
    captions[first], captions[second] = " un café\r\n\u2028 au  lait\t\0", "犬 ||| 🐕"
    path = write_submission(tmp_path, "nocaps_val", "velm", captions, captions.keys())
    written = {item["image_id"]: item["caption"] for item in json.loads(path.read_text())}
    assert (written[first], written[second]) == ("un café au lait", "犬 ||| 🐕")


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(tmp_path):
    captions: dict = made_up("nocaps_val")
    expected = list(captions)
    captions[expected[0]] = " \n "
    captions[expected[1]] = None
    del captions[expected[2]]
    captions[-7] = "of another split"
    captions[-8] = "of another split"
    with pytest.raises(UserError) as error:
        write_submission(tmp_path, "nocaps_val", "velm", captions, expected)
    message = str(error.value)
    assert f"empty captions: 1 image ({expected[0]})" in message
    assert f"captions that are not text: 1 image ({expected[1]})" in message
    assert f"no caption for 1 image ({expected[2]})" in message
    assert "not of this split: 2 images (-8, -7)" in message
    assert "it has 4,501 captions where the server wants all 4,500" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_ids_must_be_whole_numbers(tmp_path):
    captions: dict = made_up("nocaps_val")
    for image, key in zip(list(captions)[:3], ["7", 1.5, True], strict=True):
        captions[key] = captions.pop(image)
    with pytest.raises(UserError, match=r"not whole numbers: 3 images \('7', 1\.5, True\)"):
        write_submission(tmp_path, "nocaps_val", "velm", captions, None)


def test_a_part_of_a_split_is_no_submission(tmp_path):
    captions = dict.fromkeys(range(5_000), "a cat")
    with pytest.raises(UserError, match=r"5,000 captions where the server wants all 40,504"):
        write_submission(tmp_path, "val2014", "velm", captions, captions.keys())


@pytest.mark.parametrize("algorithm", ["", "my_model", "a/b", "../up", "ein Modell", ".hidden", "modèle"])
def test_names_that_break_the_file_name(tmp_path, algorithm):
    with pytest.raises(UserError, match="use letters, digits"):
        write_submission(tmp_path, "val2014", algorithm, {}, None)


def test_an_unknown_split_gets_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'test2014'"):
        write_submission(tmp_path, "test2015", "velm", {}, None)


def test_a_second_submission_replaces_the_first(tmp_path):
    write_submission(tmp_path, "nocaps_val", "velm", made_up("nocaps_val"), None)
    captions = made_up("nocaps_val")
    path = write_submission(tmp_path, "nocaps_val", "velm", captions, None)
    assert {item["image_id"]: item["caption"] for item in json.loads(path.read_text())} == captions
