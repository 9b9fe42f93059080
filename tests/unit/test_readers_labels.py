"""Labels of images: folders that are classes, columns of tables, COCO's instances; and what people do to these."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from velm_cli import schema
from velm_cli.data.readers import read
from velm_cli.errors import UserError


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)


def labels_of(corpus) -> dict:
    return {example.id: (example.split, *example.targets) for example in corpus.examples}


def folders(root: Path, **options) -> schema.FolderConfig:
    return schema.FolderConfig(root=str(root), labels=True, **options)


def test_folders_below_parts_are_classes(tmp_path):
    put(*(tmp_path / name for name in ("train/ants/a.jpg", "train/bees/b.JPG", "val/ants/c.png", "val/wasps/d.jpg")))
    put(tmp_path / "train/ants/far/down/e.jpg", tmp_path / "train/alone.jpg", tmp_path / "readme.jpg")
    (tmp_path / "train/ants/a.txt").write_text("no caption is read here")
    (tmp_path / "labels.csv").write_text("image,label\na.jpg,bees\n")
    corpus = read(folders(tmp_path))
    assert labels_of(corpus) == {
        "train/ants/a.jpg": ("train", "ants"), "train/ants/far/down/e.jpg": ("train", "ants"),
        "train/bees/b.JPG": ("train", "bees"), "val/ants/c.png": ("val", "ants"), "val/wasps/d.jpg": ("val", "wasps"),
    }  # fmt: skip
    refused = dict(corpus.refused)
    assert refused["train/alone.jpg"] == refused["readme.jpg"] == "it lies in no folder of a class"
    notes = "\n".join(corpus.notes)
    assert "3 labels" in notes and "wasps" in notes and "1 tables" in notes and "train, val" in notes


@pytest.mark.parametrize(
    "names",
    [
        ("ants/{}.jpg", "bees/{}.jpg"),
        ("images/ants/{}.jpg", "images/bees/{}.jpg"),
        ("train/{}.jpg", "bees/{}.jpg"),  # a class that is called train
        ("ants/train/{}.jpg", "bees/train/{}.jpg"),
        ("data/train/ants/{}.jpg", "data/train/bees/x/{}.jpg"),
        ("none/{}.jpg", "nan/{}.jpg"),
    ],
)
def test_the_folder_that_differs_is_the_class(tmp_path, names):
    put(*(tmp_path / name.format(number) for name in names for number in range(20)))
    found = labels_of(read(folders(tmp_path, val_fraction=0.2, test_fraction=0.2)))
    expected = (
        {"train", "bees"} if names[0] == "train/{}.jpg" else {"none", "nan"} if "nan" in names[1] else {"ants", "bees"}
    )
    assert len(found) == 40 and {label for _, label in found.values()} == expected
    parted = any("train" in name for name in names) and names[0] != "train/{}.jpg"
    assert {part for part, _ in found.values()} == ({"train"} if parted else {"train", "val", "test"})


@pytest.mark.parametrize("names", [("a.jpg",), ("ants/a.jpg", "ants/b.jpg"), ("train/a.jpg", "val/b.jpg")])
def test_one_class_is_none(tmp_path, names):
    put(*(tmp_path / name for name in names))
    with pytest.raises(UserError, match=r"the folders below .* are the labels, and .*one folder for each class"):
        read(folders(tmp_path))


def test_a_folder_of_classes_that_is_not_said_to_be_one(tmp_path):
    put(tmp_path / "train/ants/a.jpg", tmp_path / "train/bees/b.jpg")
    assert any("dataset.labels=true" in note for note in read(schema.FolderConfig(root=str(tmp_path))).notes)


def manifest(path: Path, **options) -> schema.ManifestConfig:
    return schema.ManifestConfig(file=str(path), **options)


def test_labels_in_a_table(tmp_path):
    put(*(tmp_path / f"{name}.jpg" for name in "abcdef"))
    table = tmp_path / "train.csv"
    table.write_text(
        "\ufeffimage,label\na.jpg,ants\na.jpg,red\nb.jpg,none\nc.jpg,3\nd.jpg,\"['x', 'y']\"\ne.jpg,\nf.jpg, bees \ng.jpg\n"
    )
    corpus = read(manifest(table, labels=True))
    assert labels_of(corpus) == {
        "a.jpg": ("train", "ants", "red"), "b.jpg": ("train", "none"), "c.jpg": ("train", "3"), "d.jpg": ("train", "x", "y"),
        "f.jpg": ("train", "bees"),
    }  # fmt: skip
    assert ("e.jpg", "no usable label") in corpus.refused and len(corpus.refused) >= 2
    assert labels_of(read(manifest(table, label_column="Label"))) == labels_of(corpus)
    with pytest.raises(UserError, match=r"dataset.label_column=kind: .* has the columns image, label"):
        read(manifest(table, label_column="kind"))
    with pytest.raises(UserError, match=r"dataset.label_column="):
        read(manifest(table))


def test_labels_with_a_separator_and_of_a_folder_with_a_table(tmp_path):
    put(*(tmp_path / f"x/{name}.jpg" for name in "ab"))
    (tmp_path / "metadata.csv").write_text("file_name,tags,split\nx/a.jpg,haze;primary,train\nx/b.jpg,clear,val\n")
    options = {"label_column": "tags", "label_separator": ";"}
    expected = {"x/a.jpg": ("train", "haze", "primary"), "x/b.jpg": ("val", "clear")}
    assert labels_of(read(manifest(tmp_path / "metadata.csv", **options))) == expected
    assert labels_of(read(schema.FolderConfig(root=str(tmp_path), **options))) == expected


def test_labels_in_json_lines(tmp_path):
    put(*(tmp_path / f"{name}.jpg" for name in "abcde"))
    lines = [
        {"image": "a.jpg", "labels": ["x", "y", "x"]}, {"image": "b.jpg", "label": 7}, {"image": "c.jpg", "labels": []},
        {"image": "d.jpg", "label": True}, {"image": "e.jpg", "label": None}, "no object", {"label": "z"},
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    corpus = read(manifest(tmp_path / "train.jsonl", labels=True))
    assert labels_of(corpus) == {"a.jpg": ("train", "x", "y", "x"), "b.jpg": ("train", "7")}
    assert len(corpus.refused) >= 5


def coco(root: Path, **changed) -> schema.CocoConfig:
    """COCO's layout with three training images and one to validate on."""
    put(
        *(root / "train2014" / f"COCO_train2014_{n:012d}.jpg" for n in (1, 2, 3)),
        root / "val2014/COCO_val2014_000000000004.jpg",
    )
    categories = [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}]
    for part, images in (("train", (1, 2, 3)), ("val", (4,))):
        there = [{"id": n, "file_name": f"COCO_{part}2014_{n:012d}.jpg"} for n in images]
        objects = [(1, 2), (1, 9), (1, 2), (2, 9), (4, 2)]
        content = {
            "images": there,
            "categories": categories,
            "annotations": [
                {"id": k, "image_id": i, "category_id": c, "bbox": [0, 0, 1, 1], "segmentation": []}
                for k, (i, c) in enumerate(objects)
                if i in images
            ],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{part}2014.json").write_text(json.dumps(content | changed.get(part, {})))
    return schema.CocoConfig(root=str(root), labels=True, split=schema.CocoSplit.official2014)


def test_the_categories_of_coco_are_labels(tmp_path):
    corpus = read(coco(tmp_path))
    assert labels_of(corpus) == {1: ("train", "cat", "dog"), 2: ("train", "cat"), 4: ("val", "dog")}
    assert corpus.refused == [("3", "no object of any category is in it")]


def test_broken_instances(tmp_path):
    bad = [{"image_id": 1}, {"image_id": 1, "category_id": 5}, {"image_id": 77, "category_id": 2}, "x", None,
           {"image_id": [1], "category_id": 2}, {"image_id": 1, "category_id": [2]}, {"image_id": "1", "category_id": 2}]  # fmt: skip
    corpus = read(coco(tmp_path, train={"annotations": bad}))
    assert labels_of(corpus) == {1: ("train", "dog"), 4: ("val", "dog")}
    assert len(corpus.refused) == 9
    for changed, said in (
        ({"categories": None}, 'no list "categories"'),
        ({"categories": [{"id": 1}]}, 'categories.0. needs "id" and "name"'),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "is there twice"),
        ({"images": {}}, 'no list "images"'),
    ):
        with pytest.raises(UserError, match=said):
            read(coco(tmp_path, train=changed))
    with pytest.raises(UserError, match=r"instances_train2014.json and its like"):
        read(schema.CocoConfig(root=str(tmp_path / "train2014"), labels=True, split=schema.CocoSplit.official2014))


def test_drawn_labels_and_classes(tmp_path):
    config = schema.ShapesConfig(root=str(tmp_path / "s"), num_train=24, num_val=16, num_test=16)
    config.examples = schema.Drawn.labels
    corpus = read(config)
    scenes = json.loads((tmp_path / "s/scenes.json").read_text())
    assert len(corpus.examples) == 56 and not corpus.refused
    for example in corpus.examples:
        groups = scenes[str(example.id)]["groups"]
        assert set(example.targets) == {word for _, _, colour, shape in groups for word in (colour, shape)}
    instances = json.loads((tmp_path / "s/annotations/instances_train2014.json").read_text())
    objects = sum(group[0] for n in range(1, 25) for group in scenes[str(n)]["groups"])
    assert len(instances["annotations"]) == 2 * objects
    assert all(x >= 0 and x + w <= 128.1 and w > 20 for x, _, w, _ in (a["bbox"] for a in instances["annotations"]))

    config.examples = schema.Drawn.classes
    found = labels_of(read(config))
    counts: dict = {}
    for key, (part, label) in found.items():
        assert key.startswith(f"{part}/{label}/")
        counts[part, label] = counts.get((part, label), 0) + 1
    assert len(counts) == 24 and set(counts.values()) == {2, 3}
    before = {path: path.read_bytes() for path in (tmp_path / "s/classes").rglob("*.jpg")}
    (tmp_path / "s/classes/written.json").unlink()
    next(iter(before)).unlink()
    assert labels_of(read(config)) == found
    assert {path: path.read_bytes() for path in before} == before
