"""Examples that share images: each image is read once a batch, stands with its examples, and nothing is lost."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import fields
from io import BytesIO
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_loader import BOS, EOS, MEAN, PAD, PIXELS, STD, all_same, take

from velm_cli import schema
from velm_cli.data.batch import Batch, Columns
from velm_cli.data.loader import TrainLoader, eval_batches, image_batches, of_first_images
from velm_cli.data.order import Share, runs_of
from velm_cli.data.pixels import Pixels
from velm_cli.data.transforms import EvalTransform
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.signals import StopRequest
from velm_cli.errors import UserError
from velm_cli.models.velm import VelmModel
from velm_cli.place import Place
from velm_cli.schema import DataConfig
from velm_cli.stages.encoding import cached_features

WORDS = ["what", "colour", "is", "there", "dog", "cat", "red", "left", "right", "bright", "two"]


class Questions:
    """The interface of a Store over drawn questions, in an order that mixes their images.

    With `images_each` = (0, 2), some examples show no image, some two.
    """

    has_images, one_image_each = True, False

    def __init__(self, images: int, *, each=(1, 12), images_each=(1, 1), seed: int = 0) -> None:
        draw = random.Random(seed)
        self.num_images = images
        self.shows = []
        for image in range(images):
            for _ in range(draw.randint(*each)):
                others = draw.sample(range(images), draw.randint(*images_each))
                self.shows.append([image, *others][: len(others)])
        draw.shuffle(self.shows)
        self.text = [self._text(draw) if draw.random() < 0.9 else None for _ in self.shows]
        self.text[:1] = [""] * bool(self.text)  # of no known word, and yet a question
        self.answers = [[self._text(draw, 3) for _ in range(draw.randint(1, 4))] for _ in self.shows]
        self.starts = np.cumsum([0, *map(len, self.answers)])

    @staticmethod
    def _text(draw: random.Random, most: int = 9) -> str:
        # Few texts name a side, and some have a word that only contains one.
        return " ".join(draw.choices(WORDS, [9] * 7 + [1, 1, 5, 9], k=draw.randint(1, most)))

    def __len__(self) -> int:
        return len(self.shows)

    def split(self, name: str) -> np.ndarray:
        return np.arange(len(self)) if name == "train" else np.zeros(0, np.int64)

    def example_id(self, i: int) -> int:
        return 1000 + i

    def image_name(self, x: int) -> str:
        return f"image{x}"

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shown = [self.shows[example] for example in examples]
        images = list(dict.fromkeys(image for each in shown for image in each))
        image_of_BI = np.full((len(shown), max(map(len, shown), default=0)), -1)
        for row, each in enumerate(shown):
            image_of_BI[row, : len(each)] = [images.index(image) for image in each]
        return np.array(images, np.int64), image_of_BI

    def source(self, i: int) -> str | None:
        return self.text[i]

    def targets(self, i: int) -> list[str]:
        return self.answers[i]

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        return np.stack([self.starts[examples], self.starts[examples + 1]], axis=1)

    def image_bytes(self, x: int) -> bytes:
        pixels = np.random.default_rng(x).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer := BytesIO(), "JPEG")
        return buffer.getvalue()

    def columns(self, **parts) -> Columns:
        sources = texts([text or "" for text in self.text])
        return Columns(texts([answer for each in self.answers for answer in each]), 2, sources, **parts)


def ids(text: str) -> list[int]:
    return [10 + WORDS.index(word) for word in text.split()]


def texts(all_texts: list[str]) -> SimpleNamespace:
    encoded = [ids(text) for text in all_texts]
    return SimpleNamespace(
        ids=np.array([word for each in encoded for word in each], np.uint16),
        offsets=np.cumsum([0, *map(len, encoded)]),
        tokenizer=SimpleNamespace(pad_id=PAD, bos_id=BOS, eos_id=EOS),
    )


class Weights:
    """Labels of which example i has i % 3, with weights that differ."""

    width = 5

    def row(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        names = np.arange(example % 3, dtype=np.uint16)
        return names, ((names + 1) / (example + 1)).astype(np.float32)


def loader(store: Questions, *, columns: Columns | None = None, **options) -> TrainLoader:
    names = {field.name for field in fields(DataConfig)}
    data = DataConfig(**{name: options.pop(name) for name in names & options.keys()})
    settings = {"batch_size": 20, "pixels": None, "seed": 3} | options
    return TrainLoader(store, columns or store.columns(), data, **settings)


def epoch(one: TrainLoader, number: int = 0) -> list[Batch]:
    return take(one.batches(number * one.batches_per_epoch), one.batches_per_epoch)


def words(row: torch.Tensor, length: int) -> list[int]:
    tokens = row.tolist()
    assert set(tokens[length:]) <= {PAD}
    assert not length or (tokens[0], tokens[length - 1]) == (BOS, EOS)
    return tokens[1 : length - 1] if length else []


@pytest.mark.parametrize("images_each", [(1, 1), (0, 2)])
def test_a_batch_equals_a_slow_reference(images_each):
    store = Questions(30, images_each=images_each, seed=1)
    straight = EvalTransform(16, MEAN, STD)
    columns = store.columns(labels={"answers": Weights()})
    several = 0
    for batch in epoch(loader(store, columns=columns, pixels=PIXELS)):
        assert batch.ids == [1000 + example for example in batch.examples]
        assert len(set(batch.images)) == len(batch.images) == len(batch.image_XCHW)
        assert batch.image_of_BI.dtype == torch.int64 and batch.image_of_BI.shape[0] == 20
        assert set(batch.images) == {image for example in batch.examples for image in store.shows[example]}
        for image, pixels in zip(batch.images, batch.image_XCHW, strict=True):
            assert torch.equal(pixels, straight(store.image_bytes(image)))
        for row, example in enumerate(batch.examples):
            rows = batch.image_of_BI[row].tolist()
            shown = store.shows[example]
            several += len(shown) > 1
            assert [batch.images[x] for x in rows[: len(shown)]] == shown and set(rows[len(shown) :]) <= {-1}
            length = int(batch.source_lengths_B[row])
            text = store.text[example]
            assert (length == 0) == (text is None)
            assert words(batch.source_BL[row], length) == ids(text or "")
            drawn = [words(*pair) for pair in zip(batch.tokens_BKT[row], batch.lengths_BK[row].tolist(), strict=True)]
            answers = [ids(answer) for answer in store.answers[example]]
            assert not Counter(map(tuple, filter(None, drawn))) - Counter(map(tuple, answers))
            labels = [0.0] * 5
            for name in range(example % 3):
                labels[name] = (name + 1) / (example + 1)
            torch.testing.assert_close(batch.labels["answers"][row], torch.tensor(labels))
    assert bool(several) == (images_each[1] > 1)


@pytest.mark.parametrize(("most", "batch_size"), [(1, 20), (3, 20), (8, 20), (8, 5), (100, 64), (8, 10_000)])
def test_an_epoch_has_every_example_once_and_those_of_an_image_side_by_side(most, batch_size):
    store = Questions(80, seed=2)
    one = loader(store, batch_size=batch_size, examples_per_image=most, pixels=Pixels(1))
    counts = Counter(each[0] for each in store.shows)
    runs = sum(-(-count // most) for count in counts.values())
    size = min(batch_size, len(store))
    left_out = []
    for number in range(2):
        batches = epoch(one, number)
        seen = [example for batch in batches for example in batch.examples]
        assert len(seen) == len(set(seen)) == len(store) // size * size
        left_out.append(set(range(len(store))) - set(seen))
        # A batch's end cuts one run in two at most; runs of the same image may meet in a batch.
        assert sum(len(batch.images) for batch in batches) <= runs + len(batches)
        for batch in batches:
            shown = [store.shows[example][0] for example in batch.examples]
            changes = sum(one != other for one, other in pairwise(shown))
            assert changes <= sum(-(-count // most) for count in Counter(shown).values()) + 2
    if left_out[0]:
        assert left_out[0] != left_out[1]


def test_runs_are_of_one_image_and_no_longer_than_asked_for():
    draw = np.random.default_rng(0)
    images, keys = draw.integers(-5, 20, 200), draw.permutation(200)
    for longest in (1, 3, 8, 500):
        order, starts = runs_of(images, keys, longest)
        assert sorted(order.tolist()) == list(range(200))
        assert sorted(zip(images, keys, strict=True)) == list(zip(images[order], keys[order], strict=True))
        runs = np.split(order, starts[1:])
        assert all(len(run) <= longest and len(set(images[run])) == 1 for run in runs)
        assert len(runs) == sum(-(-count // longest) for count in Counter(images.tolist()).values())


def test_each_epoch_draws_other_runs_and_a_rest_that_is_random():
    store = Questions(12, each=(10, 10), seed=3)
    one = loader(store, batch_size=50, examples_per_image=4)
    left_out, runs = Counter(), set()
    for number in range(40):
        seen = [example for batch in epoch(one, number) for example in batch.examples]
        left_out.update(set(range(120)) - set(seen))
        runs.add(tuple(sorted(example for example in seen[:4])))
    assert left_out.total() == 40 * 20 and len(left_out) > 110  # each is left out one time in six
    assert len(runs) > 35


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_get_rows_side_by_side_and_change_no_pixel(world, workers):
    store = Questions(25, each=(1, 20), seed=4)
    options = {"batch_size": 18, "pixels": PIXELS, "crop_scale": 0.5, "flip": True}
    whole = take(loader(store, **options).batches(3), 8)
    parts = [
        take(loader(store, **options, workers=workers, share=Share(rank, world)).batches(3), 8) for rank in range(world)
    ]
    split_up = 0
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert [example for share in shares for example in share.examples] == batch.examples
        assert max(len(s.examples) for s in shares) - min(len(s.examples) for s in shares) <= 1
        pixels = dict(zip(batch.images, batch.image_XCHW, strict=True))
        for share in shares:
            for image, own in zip(share.images, share.image_XCHW, strict=True):
                assert torch.equal(own, pixels[image])
        split_up += sum(len(share.images) for share in shares) - len(batch.images)
    assert 0 < split_up <= 8 * (world - 1)


def test_going_on_threads_and_seeds():
    store = Questions(25, seed=5)
    options = {"pixels": PIXELS, "crop_scale": 0.5, "flip": True}
    whole = take(loader(store, **options).batches(), 17)
    assert all_same(whole[9:], take(loader(store, **options, workers=3).batches(9), 8))
    assert not all_same(whole, take(loader(store, **options | {"seed": 4}).batches(), 17))


def test_an_image_is_augmented_by_seed_epoch_and_image_alone():
    store = Questions(10, each=(5, 5), seed=6)
    pictures = defaultdict(set)
    for batch_size in (7, 20):
        one = loader(store, batch_size=batch_size, pixels=PIXELS, crop_scale=0.5, examples_per_image=2)
        for number in range(2):
            for batch in epoch(one, number):
                for image, pixels in zip(batch.images, batch.image_XCHW, strict=True):
                    pictures[image, number].add(pixels.numpy().tobytes())
    assert len(pictures) == 20 and {len(same) for same in pictures.values()} == {1}
    assert len(set.union(*pictures.values())) == 20


def names_a_side(store: Questions, examples: list[int]) -> bool:
    said = [text for example in examples for text in [store.text[example] or "", *store.answers[example]]]
    return any(re.search(r"\b(left|right)", text) for text in said)


def test_an_image_is_mirrored_only_where_no_text_of_its_examples_names_a_side():
    store = Questions(40, each=(1, 4), images_each=(0, 2), seed=7)
    straight = EvalTransform(16, MEAN, STD)
    mirrored = Counter()
    one = loader(store, pixels=PIXELS, flip=True, batch_size=12)
    for batch in take(one.batches(), 6 * one.batches_per_epoch):
        for x, (image, pixels) in enumerate(zip(batch.images, batch.image_XCHW, strict=True)):
            plain = straight(store.image_bytes(image))
            shown_by = [e for e, rows in zip(batch.examples, batch.image_of_BI.tolist(), strict=True) if x in rows]
            assert shown_by
            side, is_plain = names_a_side(store, shown_by), torch.equal(pixels, plain)
            assert is_plain or torch.equal(pixels, plain.flip(-1))
            mirrored[side, not is_plain] += 1
    assert mirrored[True, False] > 30 and not mirrored[True, True]
    assert mirrored[False, True] > 30 and mirrored[False, False] > 30


def test_a_kept_view_is_mirrored_only_where_no_example_of_the_store_names_a_side():
    store = Questions(60, each=(1, 3), seed=8)
    straight = EvalTransform(16, MEAN, STD)
    mirrored = Counter()
    for view in range(1, 5):
        for batch in image_batches(store, range(60), PIXELS, batch_size=9, view=(view, DataConfig(flip=True))):
            assert not batch.ids
            for image, pixels in zip(batch.images, batch.image_XCHW, strict=True):
                side = names_a_side(store, [e for e, shown in enumerate(store.shows) if image in shown])
                mirrored[side, not torch.equal(pixels, straight(store.image_bytes(image)))] += 1
    assert mirrored[True, False] > 20 and not mirrored[True, True]
    assert mirrored[False, True] > 20


def test_features_are_read_by_image():
    class Features:
        def empty(self, images: int) -> torch.Tensor:
            return torch.empty(images, 1, 1)

        def read_into(self, image: int, out_SD: torch.Tensor) -> None:
            out_SD.fill_(image)

    store = Questions(20, seed=9)
    for batch in [
        *epoch(loader(store, features=[Features()], pixels=PIXELS)),
        *eval_batches(store, Columns(), range(len(store)), batch_size=7, pixels=PIXELS, features=Features()),
    ]:
        assert batch.feature_XSD.flatten().tolist() == batch.images
        assert [[batch.images[x]] for x in batch.image_of_BI[:, 0].tolist()] == [store.shows[e] for e in batch.examples]
        assert len(batch.images) == len({store.shows[e][0] for e in batch.examples})


def test_evaluation_sees_every_example_once_in_order_whatever_the_ranks():
    store = Questions(20, seed=10)
    order = random.Random(1).sample(range(len(store)), len(store))
    options = {"batch_size": 7, "pixels": PIXELS}
    whole = list(eval_batches(store, store.columns(), order, **options))
    assert [example for batch in whole for example in batch.examples] == order
    shared = [list(eval_batches(store, store.columns(), order, **options, share=Share(r, 3))) for r in range(3)]
    assert all_same(whole, [shared[n % 3][n // 3] for n in range(len(whole))])


def test_the_first_images_keep_all_their_examples():
    store = Questions(9, each=(2, 12))
    images_N = [str(store.images_of(np.array([n]))[0][0]) for n in store.split("train")]
    first = list(dict.fromkeys(images_N))[:3]
    chosen = of_first_images(store, "train", 3)
    assert [images_N[n] in first for n in store.split("train")] == [n in chosen for n in store.split("train")]
    assert len(of_first_images(store, "train", 0)) == len(of_first_images(store, "train", 99)) == len(store)
    (batch,) = epoch(loader(store, limit=3, batch_size=len(store)))
    assert sorted(batch.ids) == sorted(store.example_id(int(n)) for n in chosen)


def test_labels_alone_need_no_targets():
    store = Questions(20, seed=11)
    columns = Columns(source=store.columns().source, labels={"answers": Weights()})
    for batch in epoch(loader(store, columns=columns)):
        assert batch.tokens_BKT.shape == (20, 0, 0) and batch.num_targets == batch.num_tokens == 0
        assert batch.images == [] and batch.image_XCHW is None and batch.image_of_BI is None
        assert batch.labels["answers"].shape == (20, 5)


def test_batches_hold_texts_of_like_length():
    """Of source and longest target together, where each run is a single example; by the longest of it otherwise."""
    store = Questions(2000, seed=12)

    def spread(most: int) -> float:
        batches = epoch(loader(store, batch_size=10, examples_per_image=most))
        lengths = [b.lengths_BK.amax(1) + b.source_lengths_B.clamp(min=2) for b in batches]
        return float(np.mean([int(of_B.max() - of_B.min()) for of_B in lengths]))

    assert spread(1) < 1 < spread(3)


def test_texts_without_images_share_nothing():
    store = Questions(20, seed=14)
    options = {"share": Share(1, 2), "batch_size": 10}
    store.has_images = False
    batches = epoch(loader(store, **options))
    store.one_image_each = True
    assert [b.examples for b in batches] == [b.examples for b in epoch(loader(store, **options))]
    assert [b.examples for b in batches] == [
        b.examples[1::2] for b in epoch(loader(store, batch_size=10))
    ]  # as in captioning


def test_what_is_predicted_may_be_less_than_the_text():
    tokens_BKT, lengths_BK = torch.arange(12).view(2, 1, 6), torch.tensor([[6], [4]])
    whole = Batch.of(tokens_BKT, lengths_BK)
    assert whole.predicted_M.tolist() == [0, 1, 2, 3, 4, 5, 6, 7] and whole.num_tokens == 8
    part = Batch.of(tokens_BKT, lengths_BK, predicted_M=torch.tensor([3, 4, 7]))
    assert part.num_tokens == 3 and part.packing.positions_M.tolist() == whole.predicted_M.tolist()
    for batch in (whole, part):
        moved = batch.to("meta")
        assert moved.predicted_M.device.type == "meta" and moved.num_tokens == batch.num_tokens
        assert any(tensor is moved.predicted_M for tensor in moved.tensors())


def test_too_few_examples_are_explained():
    with pytest.raises(UserError, match=r"batches of 3 examples cannot be shared by 4 processes.*run\.batch_size=3"):
        loader(Questions(5), batch_size=3, share=Share(0, 4))
    with pytest.raises(UserError, match="train split has no examples"):
        loader(Questions(0))


@pytest.mark.parametrize("flip", [False, True])
def test_features_are_computed_once_per_image(tmp_path, flip):
    store = Questions(20, each=(20, 20), seed=13)
    store.path, store.hash = tmp_path, "a"
    config = schema.TrainRoot(
        dataset=schema.ManifestConfig(),
        vision=schema.ViTConfig(image_size=16, width=8, layers=1, heads=2, freeze="all"),
        text=schema.LSTMConfig(width=8),
        fusion=schema.AttentionConfig(heads=2),
        task=schema.VqaTaskConfig(),
        data=DataConfig(cache=schema.FeatureCaching.fp32, flip=flip, views=1 + flip),
    )
    torch.manual_seed(0)
    model = VelmModel(vision=config.vision, text=config.text, fusion=config.fusion, vocab_size=30).eval()
    learner = torch.nn.Module()
    learner.model, learner.pixels = model, PIXELS
    some = np.array([example for example, shown in enumerate(store.shows) if shown[0] < 7 and example > 256])
    cache = cached_features(
        config, store, some, learner, torch.device("cpu"), schema.Precision.fp32, Ranks(Place(), torch.device("cpu")),
        StopRequest(), view=int(flip),
    )  # fmt: skip
    assert np.load(cache.folder / "part-00000.npy").shape == (20, *cache.shape)
    for batch in eval_batches(store, Columns(), some, batch_size=9, pixels=PIXELS, features=cache):
        pixels_XCHW = torch.stack([EvalTransform(*PIXELS)(store.image_bytes(image)) for image in batch.images])
        plain, mirrored = model.kept(pixels_XCHW), model.kept(pixels_XCHW.flip(-1))
        for own, *either in zip(batch.feature_XSD, plain, mirrored, strict=True):
            assert any(torch.allclose(own, one, atol=1e-5) for one in either[: 1 + flip])
