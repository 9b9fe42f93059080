"""What all readers share: the root check, caption cleaning, the policy for absent images, dispatch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from velm_cli import schema
from velm_cli.data import readers
from velm_cli.data.examples import Corpus
from velm_cli.data.readers.assemble import Entry, Listing, assemble, clean_captions
from velm_cli.errors import UserError

COCO = "give the folder that holds train2014/, val2014/ and annotations/"
FLICKR = "give the folder that holds the images and captions of Flickr8k or Flickr30k"


def test_captions_are_cleaned_and_refusals_are_named():
    kept, reasons = clean_captions(
        [
            "  a cat \n on\r\n\ta mat ",
            "",
            "\u200b\ufeff \n",
            None,
            "bell\x07and\x00null\x85here\u2028now",
            "family 👨‍👩‍👧 at the café",
            ["a", "list"],
            "lone \ud83d surrogate",
        ]
    )
    assert kept == (
        "a cat on a mat",
        "bell and null here now",
        "family 👨‍👩‍👧 at the café",
        "lone surrogate",
    )
    assert reasons == [
        "caption 2 is empty",
        "caption 3 is empty",
        "caption 4 is not text: None",
        "caption 7 is not text: ['a', 'list']",
    ]


def test_assemble_sorts_by_split_then_id_numbers_before_names(tmp_path):
    ids = [("b", "val"), (10, "train"), (9, "train"), ("a", "train"), (1, "test"), ("a2", "val")]
    entries = [Entry(image_id, split, tmp_path / f"{image_id}.jpg", ["x"]) for image_id, split in ids]
    corpus = assemble(Corpus(examples=[]), entries, None, schema.Missing.auto, where="here")
    assert [r.id for r in corpus.examples] == [9, 10, "a", "a2", "b", 1]
    assert corpus.counts() == {"train": 3, "val": 2, "test": 1}
    assert all(r.image is None for r in corpus.examples)


def test_one_id_for_two_images_is_an_error(tmp_path):
    entries = [Entry(1, "train", tmp_path / "a.jpg", ["x"]), Entry("1", "val", tmp_path / "b.jpg", ["y"])]
    with pytest.raises(UserError, match=r"the image id 1 stands for both .*a\.jpg and .*b\.jpg"):
        assemble(Corpus(examples=[]), entries, None, schema.Missing.auto, where="here")


def test_names_that_cannot_be_written_are_refused(tmp_path):
    entries = [
        Entry("caf\udce9.jpg", "train", tmp_path / "x", ["x"]),
        Entry("ok.jpg", "train", tmp_path, ["y"]),
    ]
    corpus = assemble(Corpus(examples=[]), entries, None, schema.Missing.auto, where="here")
    assert [r.id for r in corpus.examples] == ["ok.jpg"]
    assert corpus.refused == [("caf\\udce9.jpg", "its name is not UTF-8: rename the file")]


def test_a_listing_follows_links_and_reads_a_folder_once(tmp_path, monkeypatch):
    (tmp_path / "real.jpg").write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    calls = []
    scandir = readers.assemble.os.scandir
    monkeypatch.setattr(readers.assemble.os, "scandir", lambda path: calls.append(path) or scandir(path))
    listing = Listing()
    found = {name for name in ("real", "link", "broken", "folder", "none") if tmp_path / f"{name}.jpg" in listing}
    assert found == {"real", "link"}
    assert tmp_path / "no folder" / "a.jpg" not in listing
    assert list(map(Path, calls)) == [tmp_path, tmp_path / "no folder"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            schema.CocoConfig(root="/nowhere"),
            f"dataset.root: /nowhere does not exist; {COCO}",
        ),
        (
            schema.CocoConfig(),
            f"dataset.root is not set: {COCO}",
        ),
        (
            schema.CocoConfig(root="/nowhere", images=False),
            f"dataset.root: /nowhere does not exist; {COCO}",
        ),
        (
            schema.FlickrConfig(),
            f"dataset.root is not set: {FLICKR}",
        ),
        (
            schema.ManifestConfig(),
            'dataset.file is not set: give JSON lines such as {"image": path, "captions": [...]}',
        ),
        (
            schema.ManifestConfig(file="/nowhere.jsonl"),
            "dataset.file: /nowhere.jsonl does not exist; give a table of images and captions, such as JSON lines or CSV",
        ),
        (
            schema.FolderConfig(),
            "dataset.root is not set: give the folder that holds your images and their captions",
        ),
        (
            schema.ShapesConfig(root=None),
            "dataset.root is not set: give the folder to draw the scenes into",
        ),
    ],
)
def test_check_root_says_what_to_give(config, message):
    for check in (readers.check_root, readers.read):
        with pytest.raises(UserError) as error:
            check(config)
        assert str(error.value) == message


def test_check_root_refuses_a_file_and_accepts_what_needs_no_root(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"x")
    for kind in (schema.CocoConfig, schema.FlickrConfig, schema.FolderConfig, schema.ShapesConfig):
        with pytest.raises(UserError, match=r"photo\.jpg is not a folder; give"):
            readers.check_root(kind(root=str(file)))
    readers.check_root(schema.CocoConfig(images=False))
    readers.check_root(schema.ShapesConfig(root=str(tmp_path / "drawn later")))
    readers.check_root(schema.FolderConfig(root=str(tmp_path)))


def test_shapes_are_drawn_and_read_with_their_own_parts(tmp_path):
    config = schema.ShapesConfig(root=str(tmp_path / "shapes"), num_train=6, num_val=3, num_test=2)
    corpus = readers.read(config)
    assert corpus.counts() == {"train": 6, "val": 3, "test": 2}
    assert all(record.image.is_file() and record.targets for record in corpus.examples)
    assert (corpus.notes, corpus.refused) == ([], [])
    assert readers.read(config).examples == corpus.examples


def test_readers_import_no_torch():
    code = "import sys, velm_cli.data.readers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
