"""embeddings.npz: what was written is read, with the same bytes every time; what is anything else gets one line."""

import time

import numpy as np
import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.embeddings import Embeddings, read_embeddings, unit, write_embeddings


def some(ids=(7, "straße")) -> Embeddings:
    rows = unit(np.random.default_rng(0).normal(size=(5, 4))).astype(np.float32)
    return Embeddings(list(ids), rows[:2], rows[2:], np.array([0, 1, 1]), ["a dog", "Hund", "ein Hund"])


@pytest.mark.parametrize("ids", [(7, 2**40), ("7", "straße")])
def test_what_is_written_is_read_and_is_the_same_file_at_any_time(tmp_path, monkeypatch, ids):
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    write_embeddings(one, some(ids))
    with monkeypatch.context() as patch:
        now = time.time() + 1e6
        patch.setattr(time, "time", lambda: now)
        write_embeddings(other, some(ids))
    assert one.read_bytes() == other.read_bytes()
    found, wanted = read_embeddings(one, "predictions=one.npz"), some(ids)
    assert (found.image_ids, found.captions) == (wanted.image_ids, wanted.captions)
    for name in ("image_IE", "text_CE", "image_of_C"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    with np.load(one, allow_pickle=False) as plain:  # as anybody reads them
        assert sorted(plain) == ["captions", "image", "image_ids", "text", "text_image_ids"]
        assert plain["text_image_ids"].tolist() == [ids[0], ids[1], ids[1]]


def test_numbers_beside_names_become_names(tmp_path):
    write_embeddings(tmp_path / "e.npz", some((7, "straße")))
    assert read_embeddings(tmp_path / "e.npz", "e").image_ids == ["7", "straße"]


def test_a_strangers_compressed_file_in_half_precision_is_read(tmp_path):
    write_embeddings(tmp_path / "own.npz", some((1, 2)))
    with np.load(tmp_path / "own.npz") as plain:
        arrays = {name: plain[name] for name in plain}
    arrays["text"] = arrays["text"].astype(np.float16)
    np.savez_compressed(tmp_path / "theirs.npz", **arrays)
    np.testing.assert_allclose(read_embeddings(tmp_path / "theirs.npz", "e").text_CE, some().text_CE, atol=1e-3)


@pytest.mark.parametrize(("length", "kind"), [(1e30, np.float32), (1e-30, np.float32), (1e300, float), (1e-300, float)])
def test_the_length_of_an_embedding_says_nothing(tmp_path, length, kind):
    write_embeddings(tmp_path / "own.npz", some((7, 8)))
    with np.load(tmp_path / "own.npz") as plain:
        arrays = {name: plain[name] for name in plain}
    for name in ("image", "text"):
        arrays[name] = arrays[name].astype(kind) * kind(length)
    arrays["text"][2] = 0
    np.savez(tmp_path / "e.npz", **arrays)
    with np.errstate(all="raise"):
        found = read_embeddings(tmp_path / "e.npz", "e")
        np.testing.assert_allclose(unit(found.image_IE), some().image_IE, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(unit(found.text_CE[:2]), some().text_CE[:2], rtol=1e-5, atol=1e-6)
    assert not found.text_CE[2].any()


def test_what_is_no_archive_is_not_called_a_pickle(tmp_path):
    (tmp_path / "text.npz").write_text("0.5 0.5")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.ones((2, 4)))
    for name in ("text.npz", "array.npz"):
        with pytest.raises(UserError, match=r"no \.npz archive"):
            read_embeddings(tmp_path / name, "e")


def test_zeros_have_no_direction():
    np.testing.assert_allclose(np.linalg.norm(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), axis=1), [1, 0])


SPOILT = {
    "numbers that are not finite": {"text": np.full((3, 4), np.nan, np.float32)},
    "do not fit together": {"image": np.full((3, 4), 0.5, np.float32)},
    "image must be floats, not of the type int64": {"image": np.ones((2, 4), np.int64)},
    "image_ids must be numbers or text, not of the type float64": {"image_ids": np.array([7.0, 8.0])},
    r"text, captions have the shapes .*, \(1,\)": {"captions": np.array(["one"])},
    "captions of no image that is there": {"text_image_ids": np.array([7, 7, 9])},
    "an image is there twice": {"image_ids": np.array([7, 7])},
    "pickled objects": {"image": np.array([{}, {}], object)},
}


@pytest.mark.parametrize("line", SPOILT)
def test_what_is_no_such_file_gets_one_line(tmp_path, line):
    write_embeddings(tmp_path / "own.npz", some((7, 8)))
    with np.load(tmp_path / "own.npz") as plain:
        arrays = {name: plain[name] for name in plain} | SPOILT[line]
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(UserError, match=line) as error:
        read_embeddings(tmp_path / "e.npz", "predictions=e.npz")
    assert "\n" not in str(error.value) and str(error.value).startswith("predictions=e.npz")
