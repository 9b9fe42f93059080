"""Loader: every batch is a function of its number, whoever asks, and holds what the store says."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import fields
from io import BytesIO
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from velm_cli.data.batch import Batch, Columns, concept_labels
from velm_cli.data.examples import Corpus, captioned
from velm_cli.data.loader import TrainLoader, eval_batches, image_batches
from velm_cli.data.making import build_store
from velm_cli.data.order import Share
from velm_cli.data.pixels import Pixels
from velm_cli.data.reading import filled
from velm_cli.data.transforms import EvalTransform
from velm_cli.errors import UserError
from velm_cli.schema import DataConfig, ManifestConfig, PreprocessConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PIXELS = Pixels(16, MEAN, STD)
PAD, BOS, EOS = 7, 8, 9


class FakeStore:
    """The interface of a Store over drawn records: `held_out` for val, then `images` for training."""

    def __init__(self, images: int, *, seed: int = 0, captions: tuple[int, int] = (1, 8), held_out: int = 3):
        draw = random.Random(seed)
        self.has_images = True
        self.counts = [draw.randint(*captions) for _ in range(images + held_out)]
        self.starts = np.concatenate([[0], np.cumsum(self.counts)]).tolist()
        self.words = [[draw.randint(10, 99) for _ in range(draw.randint(0, 20))] for _ in range(self.starts[-1])]
        self.labels = [sorted(draw.sample(range(12), draw.randint(0, 5))) for _ in self.counts]
        self.held_out = held_out
        self.seed = seed
        self.sides = {record for record in range(len(self.counts)) if draw.random() < 0.3}

    def __len__(self) -> int:
        return len(self.counts)

    def split(self, name: str) -> np.ndarray:
        return {"val": np.arange(self.held_out), "train": np.arange(self.held_out, len(self))}[name]

    one_image_each = True

    def example_id(self, i: int) -> str:
        return f"image{i}"

    def image_name(self, x: int) -> str:
        return f"image{x}"

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return examples, np.arange(len(examples))[:, None]

    def target_range(self, i: int) -> tuple[int, int]:
        return self.starts[i], self.starts[i + 1]

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        return np.array([self.target_range(example) for example in examples.tolist()], np.int64)

    def source(self, i: int) -> str | None:
        return None

    def targets(self, i: int) -> list[str]:
        return ["a dog to the left" if i in self.sides else "a dog"] * self.counts[i]

    def concepts(self, i: int) -> np.ndarray:
        return np.array(self.labels[i], np.uint16)

    def image_bytes(self, i: int) -> bytes:
        draw = np.random.default_rng([self.seed, i])
        buffer = BytesIO()
        shape = (int(draw.integers(20, 40)), int(draw.integers(20, 40)), 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    @property
    def tokens(self) -> SimpleNamespace:
        return SimpleNamespace(
            ids=np.array([word for words in self.words for word in words], np.uint16),
            offsets=np.concatenate([[0], np.cumsum([len(words) for words in self.words])]).astype(np.int64),
            tokenizer=SimpleNamespace(pad_id=PAD, bos_id=BOS, eos_id=EOS),
        )


def loader(store: FakeStore, **options) -> TrainLoader:
    names = {field.name for field in fields(DataConfig)}
    data = {"crop_scale": 0.6, "flip": True}
    data |= {name: options.pop(name) for name in names & options.keys()}
    labels = concept_labels(store, options.pop("concepts", 10))
    columns = Columns(store.tokens, options.pop("per_example", 4), options.pop("source", None), labels)
    share = Share(**{name: options.pop(name) for name in ("rank", "world", "even") & options.keys()})
    settings = {"batch_size": 6, "pixels": PIXELS, "seed": 3, "share": share}
    return TrainLoader(store, columns, DataConfig(**data), **{**settings, **options})


def take(batches, count: int) -> list[Batch]:
    taken = list(islice(batches, count))
    batches.close()
    return taken


def same(a: Batch, b: Batch) -> bool:
    """Bitwise."""
    names = [field.name for field in fields(Batch) if field.name not in ("packing", "labels", "lengths")]
    pairs = [*((getattr(a, name), getattr(b, name)) for name in names), *zip(a.packing, b.packing, strict=True)]
    assert a.lengths is not None and b.lengths is not None
    if not all(map(np.array_equal, a.lengths, b.lengths)):
        return False
    pairs += [(a.labels.keys(), b.labels.keys()), *zip(a.labels.values(), b.labels.values(), strict=True)]
    for x, y in pairs:
        if isinstance(x, torch.Tensor) != isinstance(y, torch.Tensor):
            return False
        if not (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y):
            return False
    return True


def all_same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def test_batches_are_a_function_of_seed_and_number():
    store = FakeStore(40)
    first = take(loader(store).batches(), 14)
    assert all_same(first, take(loader(store).batches(), 14))
    others = take(loader(store, seed=4).batches(), 14)
    assert not any(map(same, first, others))
    epoch = loader(store).batches_per_epoch
    assert epoch == 6
    assert [b.examples for b in first[:epoch]] != [b.examples for b in first[epoch : 2 * epoch]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 5, 6, 9, 17])
def test_starting_at_n_equals_skipping_n_batches(start, workers):
    store = FakeStore(40)
    whole = take(loader(store).batches(), start + 8)
    resumed = take(loader(store, workers=workers).batches(start), 8)
    assert all_same(whole[start:], resumed)


def test_a_loader_can_be_asked_again_and_out_of_order():
    store = FakeStore(40)
    one = loader(store)
    late, early = take(one.batches(20), 3), take(one.batches(2), 3)
    assert all_same(late, take(loader(store).batches(20), 3))
    assert all_same(early, take(loader(store).batches(2), 3))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(workers):
    store = FakeStore(50)
    assert all_same(take(loader(store).batches(), 12), take(loader(store, workers=workers).batches(), 12))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_each_global_batch(world):
    store = FakeStore(50)
    whole = take(loader(store).batches(), 10)
    parts = [take(loader(store, rank=rank, world=world).batches(), 10) for rank in range(world)]
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        for rank, share in enumerate(shares):
            assert share.examples == batch.examples[rank::world]
            assert torch.equal(share.image_XCHW, batch.image_XCHW[rank::world])
            assert torch.equal(share.lengths_BK, batch.lengths_BK[rank::world])
            assert torch.equal(share.labels["concepts"], batch.labels["concepts"][rank::world])
            T = share.tokens_BKT.shape[2]
            assert torch.equal(share.tokens_BKT, batch.tokens_BKT[rank::world, :, :T])
        assert sum(share.num_tokens for share in shares) == batch.num_tokens


@pytest.mark.parametrize(("images", "batch_size"), [(60, 6), (61, 6), (1000, 3), (5, 6), (1, 6)])
def test_an_epoch_visits_every_image_once(images, batch_size):
    store = FakeStore(images)
    one = loader(store, batch_size=batch_size, pixels=None)
    size = min(images, batch_size)
    assert one.batches_per_epoch == images // size
    for epoch in range(2):
        batches = take(one.batches(epoch * one.batches_per_epoch), one.batches_per_epoch)
        assert all(len(batch.examples) == size for batch in batches)
        seen = Counter(index for batch in batches for index in batch.examples)
        assert set(seen.values()) == {1}
        assert seen.keys() <= set(store.split("train").tolist())
        assert len(seen) == images - images % size


def test_the_rest_that_an_epoch_leaves_out_is_random():
    store = FakeStore(20)
    one = loader(store, pixels=None)
    left_out = Counter()
    for epoch in range(60):
        batches = take(one.batches(epoch * 3), 3)
        left_out.update(set(range(3, 23)) - {index for batch in batches for index in batch.examples})
    assert left_out.keys() == set(range(3, 23))  # the chance that one of 20 is never left out: 0.04
    assert left_out.total() == 60 * 2


def test_batches_hold_captions_of_like_length_in_random_order():
    store = FakeStore(3000, captions=(5, 5))
    one = loader(store, batch_size=10, pixels=None)
    batches = take(one.batches(), one.batches_per_epoch)
    longest = np.array([batch.lengths_BK.max(dim=1).values.numpy() for batch in batches])
    assert (longest.max(axis=1) - longest.min(axis=1)).mean() < 1
    tops = longest.max(axis=1)
    assert abs(np.corrcoef(tops[1:], tops[:-1])[0, 1]) < 0.25


def test_tokens_and_concepts_equal_a_slow_reference():
    store = FakeStore(60, seed=5)
    for batch in take(loader(store).batches(), 20):
        assert batch.ids == [f"image{index}" for index in batch.examples]
        assert batch.tokens_BKT.dtype == batch.lengths_BK.dtype == torch.int64
        rows = []
        for row, record in enumerate(batch.examples):
            start, stop = store.target_range(record)
            slots = []
            for tokens, length in zip(batch.tokens_BKT[row].tolist(), batch.lengths_BK[row].tolist(), strict=True):
                assert set(tokens[length:]) <= {PAD}
                if length:
                    assert (tokens[0], tokens[length - 1]) == (BOS, EOS)
                    slots.append(tuple(tokens[1 : length - 1]))
            assert len(slots) == min(4, stop - start)
            assert not Counter(slots) - Counter(map(tuple, store.words[start:stop]))
            rows.append(slots)
            labels = {label for label in store.labels[record] if label < 10}
            assert set(batch.labels["concepts"][row].nonzero().flatten().tolist()) == labels
            assert batch.labels["concepts"][row].sum() == len(labels)
        _, K, T = batch.tokens_BKT.shape
        lengths = batch.lengths_BK.flatten().tolist()
        assert batch.predicted_M.tolist() == [
            row * (T - 1) + t for row in range(len(batch.examples) * K) for t in range(lengths[row] - 1)
        ]
        captions = [words for slots in rows for words in slots]
        assert batch.num_targets == len(captions)
        assert batch.num_tokens == sum(len(words) + 1 for words in captions)
        assert batch.tokens_BKT.shape[2] == max(map(len, captions)) + 2


def test_captions_and_their_slots_are_drawn_anew_each_epoch_whatever_the_batches():
    store = FakeStore(12, captions=(6, 6))
    seen = {}
    for size in (4, 12):
        for epoch in range(40):
            one = loader(store, batch_size=size, pixels=None, per_example=2)
            for batch in take(one.batches(epoch * one.batches_per_epoch), one.batches_per_epoch):
                for record, tokens, lengths in zip(batch.examples, batch.tokens_BKT, batch.lengths_BK, strict=True):
                    drawn = [t[:n].tolist() for t, n in zip(tokens, lengths, strict=True)]
                    assert seen.setdefault((epoch, record), drawn) == drawn
    firsts = Counter(tuple(seen[epoch, 3][0]) for epoch in range(40))
    assert len(firsts) == len(set(map(tuple, store.words[store.starts[3] : store.starts[4]])))


def test_captions_drawn_in_pieces_are_those_drawn_at_once(monkeypatch):
    store = FakeStore(40)
    whole = take(loader(store).batches(), 12)
    monkeypatch.setattr("velm_cli.data.order.TOGETHER", 7)
    assert all_same(whole, take(loader(store).batches(), 12))


def test_a_store_says_the_captions_of_many_records_as_it_says_those_of_one(tmp_path):
    records = [captioned(number, "train", None, ("a dog",) * (number % 4)) for number in range(30)]
    dataset = ManifestConfig(images=False)
    store = build_store(Corpus(records), dataset, PreprocessConfig(), tmp_path / "store", progress=False)
    some = np.array([3, 0, 29, 17])
    assert store.target_ranges(some).tolist() == [list(store.target_range(record)) for record in some.tolist()]


def test_no_more_slots_than_some_image_can_fill():
    batch = take(loader(FakeStore(20, captions=(1, 2)), per_example=5).batches(), 1)[0]
    assert batch.tokens_BKT.shape[1] == 2


def test_images_are_augmented_by_seed_epoch_and_record_alone():
    store = FakeStore(12)
    by_size = []
    for size in (3, 4):
        one = loader(store, batch_size=size)
        batches = take(one.batches(), 2 * one.batches_per_epoch)
        images = {}
        for number, batch in enumerate(batches):
            for record, image in zip(batch.examples, batch.image_XCHW, strict=True):
                images[number // one.batches_per_epoch, record] = image
        by_size.append(images)
    assert by_size[0].keys() == by_size[1].keys()
    assert all(torch.equal(image, by_size[1][key]) for key, image in by_size[0].items())
    assert not any(torch.equal(by_size[0][0, record], by_size[0][1, record]) for record in range(3, 15))


def test_each_record_has_a_crop_of_its_own():
    store = FakeStore(12)
    jpeg = store.image_bytes(0)
    store.image_bytes = lambda i: jpeg
    (batch,) = take(loader(store, batch_size=12).batches(), 1)
    assert len({image.numpy().tobytes() for image in batch.image_XCHW}) == 12


def test_images_whose_captions_name_a_side_are_never_mirrored():
    store = FakeStore(30)
    straight = EvalTransform(16, MEAN, STD)
    one = loader(store, crop_scale=1.0)
    mirrored = Counter()
    for batch in take(one.batches(), 8 * one.batches_per_epoch):
        for record, image in zip(batch.examples, batch.image_XCHW, strict=True):
            plain = straight(store.image_bytes(record))
            assert torch.equal(image, plain) or torch.equal(image, plain.flip(-1))
            mirrored[record in store.sides] += torch.equal(image, plain.flip(-1))
    assert store.sides & set(range(3, 33))
    assert mirrored[True] == 0
    assert mirrored[False] > 0


def test_an_epoch_takes_one_of_the_cached_views_of_each_image():
    class View:
        shape = (1, 1)

        def __init__(self, number: int) -> None:
            self.number = number

        def empty(self, images: int) -> torch.Tensor:
            return torch.empty(images, 1, 1)

        def read_into(self, record: int, out_SD: torch.Tensor) -> None:
            out_SD.fill_(100 * record + self.number)

    store = FakeStore(30)
    views = [View(number) for number in range(3)]
    one = loader(store, features=views)
    epoch = one.batches_per_epoch
    batches = take(one.batches(), 12 * epoch)
    drawn: dict[int, list[int]] = {}
    for batch in batches:
        for record, value in zip(batch.examples, batch.feature_XSD.flatten().tolist(), strict=True):
            assert int(value) // 100 == record
            drawn.setdefault(record, []).append(int(value) % 100)
    counts = Counter(view for numbers in drawn.values() for view in numbers)
    assert all(80 < counts[view] < 160 for view in range(3))  # of 360
    assert len(set(map(tuple, drawn.values()))) > 25  # each image draws for itself
    assert all_same(take(loader(store, features=views).batches(start=5 * epoch), 4), batches[5 * epoch : 5 * epoch + 4])
    (first,) = take(loader(store, features=views[:1]).batches(), 1)
    assert first.feature_XSD.flatten().tolist() == [100.0 * record for record in first.examples]


def test_a_view_of_an_image_is_the_same_in_every_run_and_another_in_every_view():
    store = FakeStore(12)
    view_of = DataConfig(crop_scale=0.6, flip=True)
    records = store.split("train")

    def images(view: int, **options) -> torch.Tensor:
        batches = image_batches(store, records, PIXELS, view=(view, view_of), **options)
        return torch.cat([batch.image_XCHW for batch in batches])

    first = images(1, batch_size=5)
    assert first.shape == (12, 3, 16, 16)
    assert torch.equal(first, images(1, batch_size=4, workers=2))
    assert not any(torch.equal(a, b) for a, b in zip(first, images(2, batch_size=5), strict=True))


def test_threads_that_read_images_start_no_others():
    """What they set for themselves changes nothing for the thread that trains."""
    own, seen = torch.get_num_threads(), set()
    batches = [(0, batch) for batch in islice(loader(FakeStore(images=8)).batches(), 3)]
    for _ in filled(batches, lambda *_: seen.add((threading.current_thread().name, torch.get_num_threads())), 2):
        assert torch.get_num_threads() == own
    assert {threads for _, threads in seen} == {1}
    assert all(name.startswith("velm-images") for name, _ in seen)


def test_closing_ends_the_threads_and_errors_come_through():
    store = FakeStore(40)
    before = threading.active_count()
    batches = loader(store, workers=3).batches()
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before

    store.image_bytes = lambda i: b"rubbish"
    for workers in (0, 3):
        with pytest.raises(UserError, match=r"image image\d+ of the store cannot be read"):
            next(loader(store, workers=workers).batches())
    assert threading.active_count() == before


def test_splits_that_cannot_be_trained_on_are_explained():
    with pytest.raises(UserError, match="train split has no images"):
        loader(FakeStore(0))
    with pytest.raises(UserError, match="train split has no captions"):
        loader(FakeStore(20, captions=(0, 0)))
    with pytest.raises(UserError, match="cannot be shared by 4 processes"):
        loader(FakeStore(3), world=4)
    with pytest.raises(UserError, match=r"change run\.batch_size=2"):
        loader(FakeStore(30), world=4, batch_size=2)
    with pytest.raises(UserError, match="cannot be shared evenly by 4 processes"):
        loader(FakeStore(30), world=4, batch_size=6, even=True)


def test_limit_keeps_the_first_images():
    one = loader(FakeStore(40), limit=8, batch_size=4, pixels=None)
    batches = take(one.batches(), one.batches_per_epoch)
    assert sorted(index for batch in batches for index in batch.examples) == list(range(3, 11))


def test_text_only_stores_and_models_read_no_images():
    store = FakeStore(20)
    with_images = take(loader(store).batches(), 2)
    store.image_bytes = None
    blind = take(loader(store, pixels=None, concepts=0).batches(), 2)
    store.has_images = False
    text_only = take(loader(store).batches(), 2)
    for a, b, c in zip(with_images, blind, text_only, strict=True):
        assert a.examples == b.examples == c.examples
        assert b.image_XCHW is None
        assert not b.labels
        assert c.image_XCHW is None
        assert torch.equal(a.tokens_BKT, c.tokens_BKT)


def test_to_moves_every_tensor():
    batch = take(loader(FakeStore(20)).batches(), 1)[0]
    moved = batch.to("meta")
    for field in fields(Batch):
        value = getattr(moved, field.name)
        if field.name in ("feature_XSD", "image_of_BI", "source_BL", "source_lengths_B", "talks"):  # captions of images
            assert value is None
            continue
        assert value.device.type == "meta" if isinstance(value, torch.Tensor) else value is not None
    assert batch.image_XCHW.device.type == "cpu"


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_sees_every_record_once_in_order(workers):
    store = FakeStore(23)
    indices = random.Random(1).sample(range(len(store)), 20)
    options = {"batch_size": 6, "pixels": PIXELS, "workers": workers}
    columns = Columns(store.tokens, 3, labels=concept_labels(store, 12))
    batches = list(eval_batches(store, columns, indices, **options))
    assert [index for batch in batches for index in batch.examples] == indices
    assert [len(batch.examples) for batch in batches] == [6, 6, 6, 2]
    transform = EvalTransform(16, MEAN, STD)
    for batch in batches:
        for row, record in enumerate(batch.examples):
            assert torch.equal(batch.image_XCHW[row], transform(store.image_bytes(record)))
            start, stop = store.target_range(record)
            slots = zip(batch.tokens_BKT[row].tolist(), batch.lengths_BK[row].tolist(), strict=True)
            captions = [tokens[1 : length - 1] for tokens, length in slots if length]
            assert captions == store.words[start : min(stop, start + 3)]
            assert batch.labels["concepts"][row].nonzero().flatten().tolist() == store.labels[record]


def test_eval_without_tokens_or_records():
    store = FakeStore(5)
    options = {"batch_size": 4, "pixels": PIXELS}
    (first, second) = eval_batches(store, Columns(), store.split("train"), **options)
    assert first.tokens_BKT.shape == (4, 0, 0)
    assert second.lengths_BK.shape == (1, 0)
    assert second.image_XCHW.shape == (1, 3, 16, 16)
    assert list(eval_batches(store, Columns(store.tokens, 5), [], **options)) == []


def test_eval_of_images_without_captions():
    store = FakeStore(5, captions=(0, 0))
    options = {"batch_size": 8, "pixels": PIXELS}
    (batch,) = eval_batches(store, Columns(store.tokens, 5), range(8), **options)
    assert batch.tokens_BKT.tolist() == [[[PAD, PAD]]] * 8
    assert batch.num_targets == batch.num_tokens == int(batch.lengths_BK.sum()) == 0
