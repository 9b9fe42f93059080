"""The reward is pycocoevalcap's CIDEr-D of each sample, and the host never waits for it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pycocoevalcap.cider.cider import Cider
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.overlap import Corpus, cider
from velm_cli.metrics.reward import CiderReward

SPECIAL = ["<pad>", "<bos>", "<eos>"]


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def random_references(rng: random.Random, words: list[str], images: int) -> dict[str, list[str]]:
    """1 to 7 captions of 0 to 15 words an image."""

    def caption() -> str:
        return " ".join(rng.choices(words, k=rng.randint(0, 15)))

    return {f"image {n}": [caption() for _ in range(rng.randint(1, 7))] for n in range(images)}


def random_samples(
    rng: random.Random, vocabulary: list[str], shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids with rubbish behind their ends, and lengths from 0 to all."""
    tokens = torch.tensor([rng.randrange(len(vocabulary)) for _ in range(int(np.prod(shape)))]).view(shape)
    lengths = torch.tensor([rng.randint(0, shape[-1]) for _ in range(int(np.prod(shape[:-1])))]).view(shape[:-1])
    return tokens, lengths


def spell(vocabulary: list[str], tokens: torch.Tensor, lengths: torch.Tensor) -> list[str]:
    rows = zip(tokens.flatten(0, -2).tolist(), lengths.flatten().tolist(), strict=True)
    return [" ".join(vocabulary[i] for i in row[:length]) for row, length in rows]


def official(references: dict, images: list[str], captions: list[str]) -> list[float]:
    """pycocoevalcap's CIDEr-D of one caption for each of `images`, which may repeat."""
    wanted: list[float] = []
    for image, caption in zip(images, captions, strict=True):
        hypotheses = {other: [caption if other == image else ""] for other in references}
        wanted.append(Cider().compute_score(references, hypotheses)[1][list(references).index(image)])
    return wanted


@pytest.mark.parametrize("size", [1, 3, 12, 200])
def test_random_samples_have_pycocoevalcaps_cider(rng, size):
    words = [f"w{n}" for n in range(size)]
    references = random_references(rng, words, images=12)
    references["image 0"].append("w0")
    vocabulary = [*SPECIAL, *rng.sample(words, max(1, size // 2)), "unseen", "never"]  # lacks words of the references
    reward = CiderReward(references, vocabulary)
    images = rng.choices(list(references), k=5)
    row_B = torch.tensor([reward.row[image] for image in images])
    tokens, lengths = random_samples(rng, vocabulary, (5, 3, 14))
    got = reward(row_B, tokens, lengths)
    assert got.shape == (5, 3) and got.dtype == torch.float64
    wanted = official(references, [image for image in images for _ in range(3)], spell(vocabulary, tokens, lengths))
    np.testing.assert_allclose(got.flatten(), wanted, rtol=0, atol=1e-9)


def test_samples_like_the_references_agree_with_the_corpus_function_and_a_foreign_table(rng):
    words = [f"w{n}" for n in range(30)]
    references = random_references(rng, words, images=64)
    table = DocumentFrequency.of(random_references(rng, [*words[:20], "other"], images=200).values())
    vocabulary = SPECIAL + words
    number = {word: i for i, word in enumerate(vocabulary)}
    tokens = torch.zeros(64, 20, dtype=torch.long)
    lengths = torch.zeros(64, dtype=torch.long)
    for row, group in enumerate(references.values()):  # a reference with some words changed
        ids = [number[w if rng.random() < 0.8 else rng.choice(words)] for w in rng.choice(group).split()]
        tokens[row, : len(ids)], lengths[row] = torch.tensor(ids, dtype=torch.long), len(ids)
    hypotheses = dict(zip(references, spell(vocabulary, tokens, lengths), strict=True))
    corpus = Corpus(references, hypotheses)
    for df in (None, table):
        wanted = cider(corpus, df)[1]
        assert wanted.max() > 1
        got = CiderReward(references, vocabulary, df)(torch.arange(64), tokens, lengths)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
        single = CiderReward(references, vocabulary, df, dtype=torch.float32)(torch.arange(64), tokens, lengths)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, wanted, rtol=0, atol=2e-5)


def test_what_stands_behind_the_end_does_not_matter(rng):
    references = random_references(rng, ["a", "b", "c"], images=4)
    reward = CiderReward(references, ["a", "b", "c"])
    tokens, lengths = random_samples(rng, ["a", "b", "c"], (4, 2, 9))
    behind = torch.arange(9) >= lengths[..., None]
    for rubbish in (0, -100, 10**6):
        assert torch.equal(
            reward(torch.arange(4), tokens, lengths),
            reward(torch.arange(4), tokens.masked_fill(behind, rubbish), lengths),
        )


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4])
def test_samples_shorter_than_four_words(width):
    references = {"x": ["a b c d", "b"], "y": ["a"], "z": ["c d"]}
    vocabulary = ["a", "b", "c", "d"]
    reward = CiderReward(references, vocabulary)
    tokens, lengths = torch.arange(width).expand(3, 1, width), torch.full((3, 1), width)
    wanted = official(references, list(references), spell(vocabulary, tokens, lengths))
    np.testing.assert_allclose(reward(torch.arange(3), tokens, lengths).flatten(), wanted, rtol=0, atol=1e-12)


def test_references_without_a_word_give_nothing():
    reward = CiderReward({1: ["", ""], 2: [""]}, ["a"])
    assert reward(torch.tensor([1, 0]), torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 0])).tolist() == [0, 0]


def test_words_that_are_equal_are_equal_whatever_their_ids():
    reward = CiderReward({1: ["a dog"], 2: ["cats"]}, ["a", "dog", "dog"])
    score = reward(torch.tensor([0, 0]), torch.tensor([[0, 1], [0, 2]]), torch.tensor([2, 2]))
    assert score.tolist() == pytest.approx([5, 5])  # unigrams and bigrams agree


def test_autocast_does_not_blunt_the_counts(rng):
    references = {1: [" ".join(["a"] * 301 + ["b"])], 2: ["c"]}
    reward = CiderReward(references, ["a", "b"], dtype=torch.float32)
    arguments = torch.tensor([0]), torch.zeros(1, 310, dtype=torch.long), torch.tensor([310])
    wanted = reward(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward(*arguments), wanted)


def test_the_host_reads_nothing_back():
    """On fake tensors, which have shapes but no values, anything that needed a value would raise."""
    references = {1: ["a dog runs", "a dog"], 2: ["a cat"]}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        reward = CiderReward(references, ["a", "dog", "cat"])
        row_B, tokens, lengths = (mode.from_tensor(torch.zeros(s, dtype=torch.long)) for s in ((2,), (2, 5, 8), (2, 5)))
        assert reward(row_B, tokens, lengths).shape == (2, 5)
        with pytest.raises(DataDependentOutputException):
            reward(row_B, tokens, lengths).max().item()
