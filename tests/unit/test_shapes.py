"""The drawn data set: true to its captions, the same each time, and honest about what it holds out."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from velm_cli.data import shapes
from velm_cli.data.shapes import POLYGONS, RGB, SIDE, Placed, draw, draw_lots, place, write_shapes
from velm_cli.data.shapes_grammar import COLOURS, HELD_OUT, NOUNS, Group, Scene, make_scene, write_captions
from velm_cli.errors import UserError
from velm_cli.metrics.facts import load_scenes
from velm_cli.schema import ShapesConfig


@pytest.fixture
def seed() -> int:
    """A new one each time; pytest shows it when a test fails."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return seed


def kinds(scene: Scene) -> set[tuple[str, str, str]]:
    return {(group.size, group.colour, group.shape) for group in scene.groups}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def mask(scene: Scene, item: Placed) -> np.ndarray:
    """(SIDE, SIDE) bool: the pixels that drawing `item` changes."""
    empty = draw(scene, [], random.Random(0))
    return np.any(np.asarray(draw(scene, [item], random.Random(0))) != np.asarray(empty), axis=2)


# ---------------------------------------------------------------------------------------- scenes


def test_held_out_kinds_are_an_eighth_and_leave_every_pair_in_one_size():
    assert len(HELD_OUT) == len(set(HELD_OUT)) == 16
    for position, values in enumerate((("small", "large"), COLOURS, tuple(NOUNS))):
        assert {kind[position] for kind in HELD_OUT} == set(values)
    assert len({(colour, shape) for _, colour, shape in HELD_OUT}) == 16


def test_held_out_kinds_are_in_every_test_scene_and_in_no_other(seed):
    seen = set()
    for index in range(4000):
        train = make_scene("train", draw_lots(seed, "train", index))
        assert not kinds(train) & set(HELD_OUT)
        assert not kinds(make_scene("val", draw_lots(seed, "val", index))) & set(HELD_OUT)
        assert kinds(make_scene("test", draw_lots(seed, "test", index))) & set(HELD_OUT)
        seen |= kinds(train)
    assert seen == set(itertools.product(("small", "large"), COLOURS, NOUNS)) - set(HELD_OUT)


def test_groups_differ_in_shape_and_colour_and_every_value_occurs(seed):
    scenes = [make_scene("test", draw_lots(seed, "test", index)) for index in range(1000)]
    groups = [group for scene in scenes for group in scene.groups]
    assert {len(scene.groups) for scene in scenes} == {1, 2}
    assert {group.count for group in groups} == {1, 2, 3}
    assert {group.size for group in groups} == {"small", "large"}
    assert {scene.relation for scene in scenes} == {None, "left of", "above"}
    assert len({scene.background for scene in scenes}) == 4
    for scene in scenes:
        assert (scene.relation is None) == (len(scene.groups) == 1)
        assert len({group.shape for group in scene.groups}) == len(scene.groups)
        assert len({group.colour for group in scene.groups}) == len(scene.groups)
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


# ---------------------------------------------------------------------------------------- captions


def test_captions_are_five_different_and_of_the_right_length(seed):
    vocabulary = set()
    for index in range(1000):
        rng = draw_lots(seed, "train", index)
        captions = write_captions(make_scene("train", rng), rng)
        assert len(set(captions)) == len(captions) == 5
        for caption in captions:
            words = caption.split()
            assert 6 <= len(words) <= 18, caption
            assert caption == " ".join(words) == caption.lower()
            assert all(word.isalpha() for word in words), caption
            vocabulary |= set(words)
    assert 60 <= len(vocabulary) <= 90


def test_captions_are_good_english(seed):
    scene = Scene((Group(1, "small", "orange", "cross"), Group(3, "large", "red", "square")), "above", "plain")
    rng = random.Random(seed)
    text = " | ".join(itertools.chain.from_iterable(write_captions(scene, rng) for _ in range(300)))
    for right in ("an orange cross", "one tiny orange cross", "three red boxes", "three big red squares"):
        assert right in text
    for right in ("squares are below", "cross is above", "there is an orange", "there are three", "an image"):
        assert right in text
    for wrong in (
        "a orange",
        "an small",
        "an red",
        "crosss",
        "boxs",
        "cross are",
        "squares is",
    ):
        assert wrong not in text
    crosses = Scene((Group(2, "small", "orange", "cross"),), None, "plain")
    assert "orange crosses" in write_captions(crosses, rng)[0]


# ---------------------------------------------------------------------------------------- drawing


def test_objects_lie_inside_the_frame_and_never_touch(seed):
    for index in range(60):
        rng = draw_lots(seed, "train", index)
        scene = make_scene("train", rng)
        covered = np.zeros((SIDE, SIDE), int)
        for item in place(scene, rng):
            covered += mask(scene, item)
        assert covered.max() == 1
        frame = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
        assert not frame.any()


def test_the_placed_objects_are_those_of_the_scene(seed):
    for index in range(500):
        rng = draw_lots(seed, "train", index)
        scene = make_scene("train", rng)
        placed = place(scene, rng)
        for number, group in enumerate(scene.groups):
            items = [item for item in placed if item.group == number]
            assert len(items) == group.count
            assert all((item.radius > 16) == (group.size == "large") for item in items)
        if scene.relation is None:
            continue
        axis, across = ("x", "y") if scene.relation == "left of" else ("y", "x")
        first, second = ([item for item in placed if item.group == number] for number in (0, 1))
        end = max(getattr(item, axis) + item.radius for item in first)
        assert end < min(getattr(item, axis) - item.radius for item in second)
        shift = [
            np.mean([getattr(item, name) for item in second]) - np.mean([getattr(item, name) for item in first])
            for name in (axis, across)
        ]
        assert shift[0] > 2 * abs(shift[1])


def test_objects_have_their_colour(seed):
    for index in range(100):
        rng = draw_lots(seed, "train", index)
        scene = make_scene("train", rng)
        placed = place(scene, rng)
        pixels = np.asarray(draw(scene, placed, rng)).astype(float)
        for item in placed:
            group = scene.groups[item.group]
            x = round(item.x + (0.69 * item.radius if group.shape == "ring" else 0))  # a ring has no middle
            y = round(item.y)
            found = pixels[y - 1 : y + 1, x - 1 : x + 1].mean(axis=(0, 1))
            nearest = min(RGB, key=lambda colour: np.abs(found - RGB[colour]).sum())
            assert nearest == group.colour
            assert np.abs(found - RGB[group.colour]).max() < 20, (group, found)


def test_backgrounds_are_grey_and_objects_are_not(seed):
    for background in ("plain", "striped", "dotted", "checkered"):
        scene = Scene((Group(1, "small", "red", "star"),), None, background)
        pixels = np.asarray(draw(scene, [], random.Random(seed))).reshape(-1, 3).astype(int)
        assert (pixels.max(axis=1) - pixels.min(axis=1)).max() <= 12
        assert (len(np.unique(pixels, axis=0)) == 1) == (background == "plain")
        for rgb in RGB.values():
            assert np.abs(pixels - rgb).max(axis=1).min() > 50


def test_colours_and_shapes_are_far_apart_at_64_pixels():
    for one, other in itertools.combinations(RGB.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 80
    item = Placed(group=0, x=64, y=64, radius=13, turn=0)
    darkness = {}
    for shape in (*POLYGONS, "ring"):
        scene = Scene((Group(1, "small", "black", shape),), None, "plain")
        empty, drawn = (draw(scene, items, random.Random(0)).convert("L") for items in ([], [item]))
        small = [np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(float) for image in (empty, drawn)]
        darkness[shape] = small[0] - small[1]
    assert set(darkness) == set(NOUNS)
    for one, other in itertools.combinations(darkness.values(), 2):
        assert np.abs(one - other).sum() > 0.15 * np.maximum(one, other).sum()


# ---------------------------------------------------------------------------------------- files

CONFIG = ShapesConfig(draw_seed=3, num_train=12, num_val=4, num_test=5)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "new" / "folder"
    assert write_shapes(CONFIG, root, progress=False)
    return root


def test_written_files_are_coco_captions(written, capsys):
    split = json.loads((written / "shapes_split.json").read_text())
    assert [len(split[part]) for part in ("train", "restval", "val", "test")] == [12, 0, 4, 5]
    ids = sorted(itertools.chain.from_iterable(split.values()))
    assert ids == sorted(load_scenes(written / "scenes.json")) == list(range(1, 22))
    annotations = []
    for year, expected in (("train2014", split["train"]), ("val2014", split["val"] + split["test"])):
        coco = COCO(str(written / "annotations" / f"captions_{year}.json"))
        assert sorted(coco.getImgIds()) == sorted(expected)
        assert len(list((written / year).iterdir())) == len(expected)
        for image in coco.loadImgs(coco.getImgIds()):
            assert image["file_name"] == f"COCO_{year}_{image['id']:012d}.jpg"
            with Image.open(written / year / image["file_name"]) as picture:
                picture.load()
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                assert picture.size == (image["width"], image["height"])
            assert len(coco.getAnnIds(imgIds=[image["id"]])) == 5
        annotations += coco.getAnnIds()
    assert len(set(annotations)) == 5 * len(ids)


def test_written_image_shows_the_written_scene(written):
    """The first training image, drawn again from nothing but the seed."""
    rng = draw_lots(CONFIG.draw_seed, "train", 0)
    scene = make_scene("train", rng)
    assert load_scenes(written / "scenes.json")[1] == scene
    write_captions(scene, rng)
    with Image.open(written / "train2014" / "COCO_train2014_000000000001.jpg") as picture:
        found = np.asarray(picture).astype(float)
    assert np.abs(found - np.asarray(draw(scene, place(scene, rng), rng))).mean() < 3


def test_same_parameters_same_bytes_and_other_seed_other_scenes(written, tmp_path):
    write_shapes(CONFIG, tmp_path / "again", progress=False)
    assert files(tmp_path / "again") == files(written)
    other = ShapesConfig(draw_seed=4, num_train=12, num_val=4, num_test=5)
    write_shapes(other, tmp_path / "other", progress=False)
    assert files(tmp_path / "other")["scenes.json"] != files(written)["scenes.json"]


def test_second_call_does_nothing(written, monkeypatch):
    before = files(written)
    monkeypatch.setattr(shapes, "write_bytes", None)  # any write would fail
    assert write_shapes(CONFIG, written, progress=False) is False
    assert files(written) == before


def test_interrupted_call_goes_on_where_it_was(written, tmp_path, monkeypatch):
    write_image, names = shapes.write_image, []

    def interrupted(path: Path, image: Image.Image) -> None:
        if len(names) == 7:
            raise KeyboardInterrupt
        names.append(path.name)
        write_image(path, image)

    monkeypatch.setattr(shapes, "write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(CONFIG, tmp_path, progress=False)
    with pytest.raises(UserError, match=r"num_val=4"):
        write_shapes(ShapesConfig(draw_seed=3, num_train=12, num_val=9, num_test=5), tmp_path, progress=False)
    done = set(names)
    names = ["resumed"] * 8  # past the interruption
    assert write_shapes(CONFIG, tmp_path, progress=False)
    assert len(done) == 7
    assert not done & set(names)
    assert files(tmp_path) == files(written)


def test_other_parameters_and_foreign_folders_are_refused(written, tmp_path):
    with pytest.raises(UserError, match=r"holds other shapes \(draw_seed=3\): set dataset.root"):
        write_shapes(ShapesConfig(draw_seed=1, num_train=12, num_val=4, num_test=5), written, progress=False)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        write_shapes(CONFIG, tmp_path, progress=False)
    assert files(tmp_path) == {"thesis.tex": b"mine"}
    with pytest.raises(UserError, match="cannot write the shapes"):
        write_shapes(CONFIG, tmp_path / "thesis.tex", progress=False)


def test_scenes_are_not_drawn_through_a_link(written, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "shapes").mkdir()
    stamp = (written / "shapes.json").read_bytes()
    (tmp_path / "shapes/shapes.unfinished.json").write_bytes(stamp)  # as a stranger's folder may have
    (tmp_path / "shapes/train2014").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="does not write through links"):
        write_shapes(CONFIG, tmp_path / "shapes", progress=False)
    assert not list((tmp_path / "mine").iterdir())


def test_damaged_stamp_is_refused(tmp_path):
    for text in ("{", "[1]", "null"):
        (tmp_path / "shapes.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            write_shapes(CONFIG, tmp_path, progress=False)


def test_neither_drawing_nor_checking_imports_torch():
    code = "import sys, velm_cli.data.shapes, velm_cli.metrics.facts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
