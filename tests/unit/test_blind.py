"""What is kept from a model: grey images, other examples' images, no source; all else is the store's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from velm_cli.data.batch import Columns
from velm_cli.data.blind import NoTexts, SameFeatures, grey, shuffled
from velm_cli.data.loader import eval_batches
from velm_cli.data.pixels import Pixels
from velm_cli.errors import UserError


class FakeStore:
    """Examples with these images each, the first `train` of them in another split."""

    has_images, one_image_each, path, image_size = True, False, "stores/fake", 8

    def __init__(self, images: list[tuple[int, ...]], train: int = 0) -> None:
        self.images, self.train = images, train

    def __len__(self) -> int:
        return len(self.images)

    def split(self, name: str) -> np.ndarray:
        return np.arange(self.train) if name == "train" else np.arange(self.train, len(self))

    def example_id(self, i: int) -> int:
        return 100 + i

    def source(self, i: int) -> str | None:
        return None if i == 1 else f"question {i}"

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = [self.images[int(example)] for example in examples]
        distinct = list(dict.fromkeys(image for each in wanted for image in each))
        rows = np.full((len(wanted), max(map(len, wanted), default=0)), -1, np.int64)
        for row, each in enumerate(wanted):
            rows[row, : len(each)] = [distinct.index(image) for image in each]
        return np.array(distinct, np.int64), rows


def shown(store, examples) -> list[tuple[int, ...]]:
    images_X, image_of_BI = store.images_of(np.asarray(examples))
    return [tuple(images_X[row] for row in rows if row >= 0) for rows in image_of_BI.tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_shows_everybody_the_images_of_another(seed):
    draw = random.Random(seed)
    own = [tuple(draw.sample(range(draw.choice([3, 9, 40])), draw.choice([1, 1, 2]))) for _ in range(50)]
    store = FakeStore(own, train=10)
    test = store.split("test")
    seen = shown(shuffled(store, "test", seed), test)
    before = [own[example] for example in test]
    assert all(set(a) != set(b) for a, b in zip(seen, before, strict=True))
    largest = max(sum(set(a) == set(b) for b in before) for a in before)
    if 2 * largest <= len(before):
        assert sorted(seen) == sorted(before), "each example's images are shown once"
    again = shuffled(store, "test", seed)
    assert [shown(again, [example])[0] for example in test] == seen, "an example alone is as among others"
    others = [shown(shuffled(store, "test", seed + n), test) for n in (1, 2, 3)]
    assert any(each != seen for each in others), "the seed decides"
    assert shown(again, store.split("train")) == own[:10], "other parts are as they are"


def test_shuffled_where_most_have_the_same_image():
    store = FakeStore([(7,)] * 8 + [(1,), (2,), ()])
    seen = shown(shuffled(store, "test", 0), range(11))
    assert set(seen[:8]) == {(1,), (2,)} and seen[8:] == [(7,), (7,), ()]
    with pytest.raises(UserError, match="all examples of split=test in stores/fake show the same"):
        shuffled(FakeStore([(3,)] * 4 + [()]), "test", 0)


def test_grey_has_one_image_where_there_is_any():
    store = grey(FakeStore([(4, 5), (), (6,)]))
    images_X, image_of_BI = store.images_of(np.arange(3))
    assert images_X.tolist() == [0] and image_of_BI.tolist() == [[0, 0], [-1, -1], [0, -1]]
    assert store.images_of(np.array([1]))[0].tolist() == []
    assert len(store) == 3 and store.example_id(2) == 102 and not store.one_image_each


def test_batches_of_what_is_left():
    class Tokenizer:
        bos_id, eos_id, pad_id = 1, 2, 0

    feature_SD = torch.randn(3, 4)
    (batch,) = eval_batches(
        grey(FakeStore([(4,), (5,), (6,)])),
        Columns(source=NoTexts(Tokenizer(), 3)),
        range(3),
        batch_size=8,
        pixels=Pixels(8),
        features=SameFeatures(feature_SD),
    )
    assert batch.feature_XSD.shape == (1, 3, 4) and torch.equal(batch.feature_XSD[0], feature_SD)
    assert batch.image_of_BI.tolist() == [[0], [0], [0]] and batch.image_XCHW is None
    assert batch.source_BL.tolist() == [[1, 2], [0, 0], [1, 2]], "who has no source still has none"
    assert batch.source_lengths_B.tolist() == [2, 0, 2]
