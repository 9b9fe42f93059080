"""The Flickr reader: every form the data sets are handed around in gives the same Records."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from velm_cli import schema
from velm_cli.data.readers import read
from velm_cli.data.readers.parting import hash_part
from velm_cli.errors import UserError

PARTS = ("train", "val", "test")


@pytest.fixture
def photos() -> dict[str, tuple[str, list[str]]]:
    """File name -> (part, captions) of twelve photos."""
    numbers = random.sample(range(10**8, 10**10), 12)
    return {
        f"{number}_{random.randrange(16**10):010x}.jpg": (
            PARTS[position % 3],
            [f"Photo {number} , said {random.random()} ." for _ in range(5)],
        )
        for position, number in enumerate(numbers)
    }


def write_images(root: Path, photos: dict, folder: str = "images") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in photos:
        (root / folder / name).write_bytes(b"x")


def write_karpathy(root: Path, photos: dict) -> None:
    images = [
        {
            "filename": name,
            "split": part,
            "imgid": 0,
            "sentences": [{"raw": c, "tokens": []} for c in captions],
        }
        for name, (part, captions) in photos.items()
    ]
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))


def write_tokens(root: Path, photos: dict, name: str = "Flickr8k.token.txt") -> None:
    lines = [f"{n}#{i}\t{c}" for n, (_, captions) in photos.items() for i, c in enumerate(captions)]
    random.shuffle(lines)
    (root / name).write_text("\n".join(lines) + "\n")


def write_lists(root: Path, photos: dict, pattern: str = "Flickr_8k.{}Images.txt", val: str = "dev") -> None:
    for part in PARTS:
        names = [name for name, (p, _) in photos.items() if p == part]
        (root / pattern.format(val if part == "val" else part)).write_text("\n".join(names) + "\n")


def write_coco_form(root: Path, photos: dict) -> None:
    for part in PARTS:
        members = [(n, captions) for n, (p, captions) in photos.items() if p == part]
        content = {
            "images": [{"id": int(n.split("_")[0]), "file_name": n} for n, _ in members],
            "annotations": [
                {"id": 10 * k + i, "image_id": int(n.split("_")[0]), "caption": c}
                for k, (n, captions) in enumerate(members)
                for i, c in enumerate(captions)
            ],
        }
        (root / f"captions_{'dev' if part == 'val' else part}.json").write_text(json.dumps(content))


def write_table(root: Path, photos: dict) -> None:
    rows = [f'{name},"{c}"' for name, (_, captions) in photos.items() for c in captions]
    (root / "captions.txt").write_text("image,caption\n" + "\n".join(rows) + "\n")


def write_table_and_split_file(root: Path, photos: dict) -> None:
    write_table(root, photos)
    parts = {part: [n for n, (p, _) in photos.items() if p == part] for part in PARTS}
    (root / "parts.json").write_text(json.dumps(parts))


FORMS = {
    "karpathy": lambda root, photos: write_karpathy(root, photos),
    "original": lambda root, photos: (write_tokens(root, photos), write_lists(root, photos)),
    "flickr30k": lambda root, photos: (
        write_tokens(root, photos, "results_20130124.token"),
        write_lists(root, photos, "{}.txt", val="val"),
    ),
    "coco form": lambda root, photos: write_coco_form(root, photos),
    "kaggle": lambda root, photos: (write_table(root, photos), write_lists(root, photos)),
    "split file": write_table_and_split_file,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("folder", ["images", "Flicker8k_Dataset", "."])
def test_every_form_gives_the_same_records(tmp_path, photos, form, folder):
    write_images(tmp_path, photos, folder)
    FORMS[form](tmp_path, photos)
    config = schema.FlickrConfig(root=str(tmp_path))
    if form == "split file":
        config.split_file = "parts.json"
    corpus = read(config)
    found = [(r.id, r.split, r.image, r.targets) for r in corpus.examples]
    assert found == [
        (int(name.split("_")[0]), part, tmp_path / folder / name, tuple(captions))
        for part in PARTS
        for name, (p, captions) in sorted(photos.items(), key=lambda item: int(item[0].split("_")[0]))
        if p == part
    ]
    assert (corpus.notes, corpus.refused) == ([], [])


def test_bad_token_lines_are_refused_and_unlisted_images_noted(tmp_path, photos):
    write_images(tmp_path, photos)
    long = f"{'9' * 5000}.jpg"  # more digits than Python makes a number of
    write_tokens(tmp_path, {**photos, "5_a.jpg.1": ("train", ["of no photo"]), long: ("train", ["of none too"])})
    write_lists(tmp_path, {**photos, "6_b.jpg": ("test", [])})
    file = tmp_path / "Flickr8k.token.txt"
    count = len(file.read_text().splitlines())
    with file.open("ab") as stream:
        stream.write(b"no tab here\n\n7_c.jpg\tno number\n\xff\xfe\n")
    corpus = read(schema.FlickrConfig(root=str(tmp_path)))
    assert corpus.counts() == {"train": 4, "val": 4, "test": 4}
    assert corpus.refused == [
        (f"{file}:{count + 1}", "not of the form NAME#NUMBER, tab, caption"),
        (f"{file}:{count + 3}", "not of the form NAME#NUMBER, tab, caption"),
        (f"{file}:{count + 4}", "not UTF-8 text: byte 1 of the line; save the file as UTF-8 (in Excel: CSV UTF-8)"),
    ]
    assert corpus.notes == [
        f"left out 2 annotated images that Flickr_8k.*Images.txt does not name (first: 5_a.jpg.1, {long})",
        "1 images of Flickr_8k.*Images.txt have no annotation (first: 6_b.jpg)",
    ]


def test_absent_images_follow_the_policy(tmp_path, photos):
    write_images(tmp_path, photos)
    write_karpathy(tmp_path, photos)
    gone = random.choice(list(photos))
    (tmp_path / "images" / gone).unlink()
    with pytest.raises(UserError, match=f"1 of 12 annotated images are missing, first .*{gone}; add them, or"):
        read(schema.FlickrConfig(root=str(tmp_path)))
    corpus = read(schema.FlickrConfig(root=str(tmp_path), missing=schema.Missing.skip))
    assert len(corpus.examples) == 11
    number = gone.split("_")[0]
    assert corpus.notes == [f"skipped 1 of 12 annotated images whose file is missing (first: {number})"]


def test_without_lists_a_hash_splits_and_images_without_captions_are_named(tmp_path, photos):
    """Kaggle's form: Images/ and captions.txt, nothing else."""
    write_images(tmp_path, photos, "Images")
    write_table(tmp_path, photos)
    (tmp_path / "Images" / "77_bare.jpg").write_bytes(b"x")
    corpus = read(schema.FlickrConfig(root=str(tmp_path)))
    names = {int(name.split("_")[0]): name for name in photos}
    assert {r.id: r.split for r in corpus.examples} == {i: hash_part(n, 0.05, 0.05) for i, n in names.items()}
    bare, split = corpus.notes
    assert bare == f"left out 1 images of {tmp_path / 'Images'} that have no caption (first: 77_bare.jpg)"
    assert split.startswith("split by a hash of the file name (train ") and "dataset.split_file=" in split


def test_mistakes_say_what_to_add(tmp_path, photos):
    config = schema.FlickrConfig(root=str(tmp_path))
    with pytest.raises(UserError, match=r"no Flickr captions in .*: looked for dataset_flickr8k\.json"):
        read(config)
    write_tokens(tmp_path, photos)
    write_lists(tmp_path, photos)
    with pytest.raises(UserError, match=r"holds no images: put them into images/"):
        read(config)
    config.images = False
    assert [r.image for r in read(config).examples] == [None] * 12
    (tmp_path / "Flickr_8k.testImages.txt").write_text(next(iter(photos)) + "\n")
    with pytest.raises(UserError, match=f"{next(iter(photos))} is in train as well"):
        read(config)
