"""embeddings.npz: what was written is read, with the same bytes every time; what is anything else gets one line."""

import time
import zipfile

import numpy as np
import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.embeddings import Embeddings, read_embeddings, write_embeddings


def some() -> Embeddings:
    rows = np.random.default_rng(0).normal(size=(5, 4))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    names = ["7#0", "straße#0", "straße#1"]
    return Embeddings([7, "straße"], names, rows[:2], rows[2:], np.array([0, 1, 1]))


def test_what_is_written_is_read_and_is_the_same_file_at_any_time(tmp_path, monkeypatch):
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    write_embeddings(one, some())
    with monkeypatch.context() as patch:
        now = time.time() + 1e6
        patch.setattr(time, "time", lambda: now)
        write_embeddings(other, some())
    assert one.read_bytes() == other.read_bytes()
    found, wanted = read_embeddings(one), some()
    assert (found.image_ids, found.text_ids) == (wanted.image_ids, wanted.text_ids)
    for name in ("image_IE", "text_CE", "image_of_C"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    with np.load(one, allow_pickle=False) as plain:  # as anybody reads them
        assert sorted(plain) == ["image_ids", "image_of_text", "images", "text_ids", "texts"]
        assert plain["images"].dtype == np.float32 and plain["image_of_text"].dtype == np.int64


def test_a_strangers_compressed_file_in_half_precision_is_read(tmp_path):
    write_embeddings(tmp_path / "own.npz", some())
    with np.load(tmp_path / "own.npz") as plain:
        arrays = {name: plain[name] for name in plain}
    arrays["texts"] = arrays["texts"].astype(np.float16)
    np.savez_compressed(tmp_path / "theirs.npz", **arrays)
    np.testing.assert_allclose(read_embeddings(tmp_path / "theirs.npz").text_CE, some().text_CE, atol=1e-3)


SPOILT = {
    "images are not unit vectors": {"images": np.ones((2, 4), np.float32)},
    "texts are not unit vectors": {"texts": np.full((3, 4), np.nan, np.float32)},
    "images is float32 (3, 4)": {"images": np.full((3, 4), 0.5, np.float32)},
    "images is int64 (2, 4)": {"images": np.ones((2, 4), np.int64)},
    "images have width 1 and texts 4": {"images": np.ones((2, 1), np.float32)},
    "image_of_text names an image that is not there": {"image_of_text": np.array([0, 1, 2])},
    "image_of_text is float64 (3,)": {"image_of_text": np.array([0.0, 1.0, 1.0])},
    "image_ids has one of them twice": {"image_ids": np.frombuffer(b"[7, 7]", np.uint8)},
    "image_ids is no list of numbers and names": {"image_ids": np.frombuffer(b"[7, null]", np.uint8)},
    "Object arrays cannot be loaded": {"images": np.array([{}, {}], object)},
    "would unpack into": {"images": np.zeros((2, 10**6), np.float32)},
    "Expecting value": {"text_ids": np.frombuffer(b"x", np.uint8)},
}


@pytest.mark.parametrize("said", SPOILT)
def test_anything_else_gets_one_line(said, tmp_path):
    path = tmp_path / "spoilt.npz"
    write_embeddings(path, some())
    with np.load(path) as plain:
        arrays = {name: plain[name] for name in plain} | SPOILT[said]
    np.savez_compressed(path, **arrays)
    with pytest.raises(UserError) as refused:
        read_embeddings(path)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"no archive", "an archive of something else", "cut short"])
def test_no_archive_of_embeddings_gets_one_line(content, tmp_path):
    path = tmp_path / "other.npz"
    if content == "cut short":
        write_embeddings(path, some())
        content = path.read_bytes()[:300]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", "x")
    with pytest.raises(UserError, match="holds no embeddings") as refused:
        read_embeddings(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="holds no embeddings"):
        read_embeddings(tmp_path / "absent.npz")
