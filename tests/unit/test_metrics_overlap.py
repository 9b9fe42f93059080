"""BLEU, ROUGE-L and CIDEr-D equal pycocoevalcap's on every image, whatever the captions."""

from __future__ import annotations

import io
import math
import random
import time
import zipfile

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from velm_cli.errors import UserError
from velm_cli.metrics import ngrams
from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.ngrams import Tokens, count_ngrams
from velm_cli.metrics.overlap import Corpus, bleu, bleu_scores, bleu_summands, cider, rouge_l
from velm_cli.metrics.significance import Summands, bootstrap

Captions = tuple[dict[int, list[str]], dict[int, str]]


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def random_captions(rng: random.Random) -> Captions:
    """Captions of 0 to 25 words, some of them copies, from a vocabulary of 1 to 60 words, 1 to 7 an image."""
    words = [f"w{n}" for n in range(rng.choice([1, 2, 5, 20, 60]))]
    longest = rng.choice([1, 3, 12, 25])

    def caption() -> str:
        return " ".join(rng.choices(words, k=rng.randint(0, longest)))

    references, hypotheses = {}, {}
    for image in rng.sample(range(10**6), rng.randint(1, 40)):
        references[image] = ["w0", *(caption() for _ in range(rng.randint(0, 6)))]
        rng.shuffle(references[image])
        hypotheses[image] = rng.choice([caption(), rng.choice(references[image])])
    return references, dict(sorted(hypotheses.items()))  # in another order than the references


def assert_equal_to_pycocoevalcap(references: dict, hypotheses: dict, tolerance: float = 1e-9) -> None:
    wrapped = {image: [hypotheses[image]] for image in references}
    corpus = Corpus(references, hypotheses)
    total, each = bleu(corpus)
    wanted_total, wanted_each = Bleu(4).compute_score(references, wrapped, verbose=0)
    np.testing.assert_allclose(total, wanted_total, rtol=0, atol=tolerance)
    np.testing.assert_allclose(each, np.transpose(wanted_each), rtol=0, atol=tolerance)
    for ours, official in ((rouge_l, Rouge()), (cider, Cider())):
        mean, each = ours(corpus)
        wanted_mean, wanted_each = official.compute_score(references, wrapped)
        np.testing.assert_allclose(each, wanted_each, rtol=0, atol=tolerance)
        assert mean == pytest.approx(wanted_mean, abs=tolerance)


def test_random_captions(rng):
    for _ in range(60):
        assert_equal_to_pycocoevalcap(*random_captions(rng))


ODD: dict[str, Captions] = {
    "empty hypothesis": ({1: ["a dog runs", "a dog"], 2: ["a cat"]}, {1: "", 2: "a cat"}),
    "empty reference": ({1: ["", "a dog runs"], 2: ["a cat"]}, {1: "a dog", 2: "a cat"}),
    "both empty": ({1: [""], 2: ["a cat sits"]}, {1: "", 2: "a cat sits"}),
    "identical captions": ({n: ["a dog runs in the park"] * 3 for n in range(4)}, dict.fromkeys(range(4), "a dog runs in the park")),
    "one image": ({1: ["a dog runs in the park", "the dog"]}, {1: "a dog in the park"}),
    "repeated words": ({1: ["the the the cat"], 2: ["a b a b a b a b"]}, {1: "the the the the the the", 2: "b a b a b a"}),
    "nothing in common": ({1: ["a b c d"], 2: ["e f g h"]}, {1: "i j k l", 2: "m n o p"}),
    "one word": ({1: ["dog"], 2: ["cat", "cats"]}, {1: "dog", 2: "dog"}),
    "a word in every image": ({1: ["a", "a b"], 2: ["a c"]}, {1: "a", 2: "a a"}),
    "spaces": ({1: ["a  dog ", " "], 2: ["a cat"]}, {1: " a dog", 2: "a  cat"}),
    "a no-break space": ({1: ["1\u00a01/2 cups", "1 1/2 cups"], 2: ["a\tcat"]}, {1: "1\u00a01/2 cups", 2: "a cat"}),
    "what UTF-8 cannot hold": ({1: ["a \ud800 dog"], 2: ["\U0001f436 emoji"]}, {1: "a \ud800", 2: "\U0001f436 dog"}),
}  # fmt: skip


@pytest.mark.parametrize("captions", ODD.values(), ids=ODD)
def test_odd_captions(captions):
    assert_equal_to_pycocoevalcap(*captions)


def test_by_hand():
    corpus = Corpus({1: ["the cat sat on the mat", "a cat"], 2: ["x y"]}, {1: "the the cat", 2: "x y"})
    total, each = bleu(corpus)
    assert each[0, 0] == pytest.approx(
        1.0 * math.exp(1 - 2 / 3) ** 0
    )  # all correct; closest length is 2, so no penalty
    assert each[0, 1] == pytest.approx(math.sqrt(1 * 1 / 2))
    assert total[0] == pytest.approx(1.0)
    recall, precision = 2 / 6, 2 / 3  # "the cat" of the first; of the second only "cat", a recall of 1/2
    recall = max(recall, 1 / 2)
    assert rouge_l(corpus)[1][0] == pytest.approx((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    # Image 2: its words are in no other image, so unigrams and bigrams agree wholly; longer n-grams there are none.
    assert cider(corpus)[1][1] == pytest.approx(10 * 2 / 4)
    assert cider(corpus)[0] == pytest.approx(cider(corpus)[1].mean())


def test_no_reference_with_a_word_scores_zero_where_pycocoevalcap_fails():
    references, hypotheses = {1: [""], 2: ["", ""]}, {1: "a dog", 2: ""}
    with pytest.raises(ValueError, match="empty"):
        Cider().compute_score(references, {image: [caption] for image, caption in hypotheses.items()})
    assert cider(Corpus(references, hypotheses))[1].tolist() == [0.0, 0.0]
    assert cider(Corpus({1: [""]}, {1: ""}))[0] == 0.0


def test_ten_thousand_words_take_no_minutes(rng):
    words = [f"w{n}" for n in range(50)]
    long = [rng.choices(words, k=10_000) for _ in range(4)]
    references = {1: [" ".join(caption) for caption in long[:3]], 2: ["w1 w2 w3"]}
    hypotheses = {1: " ".join(long[3]), 2: " ".join(long[0])}
    start = time.process_time()
    corpus = Corpus(references, hypotheses)
    bleu(corpus), cider(corpus)
    assert time.process_time() - start < 5
    start = time.process_time()
    each = rouge_l(corpus)[1]
    assert time.process_time() - start < 5
    # The table takes too long at this length; on a tenth of it the two must agree, and a copy is exact.
    assert each[0] < 1
    assert rouge_l(Corpus({1: [" ".join(long[0])]}, {1: " ".join(long[0])}))[0] == 1.0
    shorter = {1: [" ".join(caption[:400]) for caption in long[:2]], 2: ["w1"]}
    assert_equal_to_pycocoevalcap(shorter, {1: " ".join(long[3][:300]), 2: " ".join(long[2][:300])})


def test_keys_too_large_for_one_sort_are_counted_alike(rng, monkeypatch):
    tokens = Tokens.of([" ".join(rng.choices("abcdef", k=rng.randint(0, 30))) for _ in range(50)])
    packed = list(count_ngrams(tokens))
    monkeypatch.setattr(ngrams, "KEY_BITS", 0)
    for one, other in zip(packed, count_ngrams(tokens), strict=True):
        for name in ("key_G", "gram_E", "caption_E", "count_E"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_the_summands_of_bleu_have_an_interval(rng):
    words = ["a", "dog", "cat", "runs", "sits", "on", "the", "mat"]
    references = {n: [" ".join(rng.choices(words, k=8)) for _ in range(3)] for n in range(50)}
    corpus = Corpus(references, {n: " ".join(rng.choices(words, k=8)) for n in references})
    summands = Summands(bleu_summands(corpus), lambda sums_RS: bleu_scores(sums_RS)[:, 1])
    assert summands.total() == pytest.approx(bleu(corpus)[0][1], abs=1e-12)
    low, high = bootstrap(summands)
    assert low < summands.total() < high


def test_document_frequencies_of_the_corpus_change_nothing_even_from_a_file(rng, tmp_path):
    for _ in range(20):
        references, hypotheses = random_captions(rng)
        table = DocumentFrequency.of(references.values(), source="here")
        table.save(tmp_path / "df.npz")
        loaded = DocumentFrequency.load(tmp_path / "df.npz")
        assert (loaded.source, loaded.digest) == ("here", table.digest)
        corpus = Corpus(references, hypotheses)
        assert cider(corpus, table)[1].tolist() == cider(corpus, loaded)[1].tolist()
        np.testing.assert_allclose(cider(corpus, loaded)[1], cider(corpus)[1], rtol=0, atol=1e-12)


def test_document_frequencies_of_other_references(rng):
    """pycocoevalcap has no such option; here its class is given the counts."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    for _ in range(20):
        others, _ = random_captions(rng)
        references, hypotheses = random_captions(rng)
        counter, scorer = CiderScorer(), CiderScorer()
        for group in others.values():
            counter += (None, group)
        counter.compute_doc_freq()
        for image, group in references.items():
            scorer += (hypotheses[image], group)
        scorer.document_frequency = counter.document_frequency
        scorer.crefs, real = RightLength(scorer.crefs, len(others)), scorer.crefs
        wanted = scorer.compute_cider()
        assert len(wanted) == len(real)
        got = cider(Corpus(references, hypotheses), DocumentFrequency.of(others.values()))[1]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)


class RightLength(list):
    """References that claim to be as many as the documents that were counted."""

    def __init__(self, values, length: int) -> None:
        super().__init__(values)
        self.length = length

    def __len__(self) -> int:
        return self.length


def test_a_table_keeps_only_what_two_images_mention():
    table = DocumentFrequency.of([["a dog runs", "a dog"], ["a dog sits"], ["cats"]])
    assert table.documents == 3
    assert table.words == ["a", "dog"]
    assert [keys.tolist() for keys in table.keys] == [[0, 1], [1], [], []]
    assert [counts.tolist() for counts in table.counts] == [[2, 2], [2], [], []]


def test_a_damaged_table_is_refused_in_one_line(tmp_path):
    path = tmp_path / "df.npz"
    with pytest.raises(UserError, match="there is no such file"):
        DocumentFrequency.load(path)
    DocumentFrequency.of([["a dog runs"], ["a dog sits"]]).save(path)
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    damage = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"a dog",
        "a pickle": b"\x80\x04K\x01.",
    }
    for content in damage.values():
        path.write_bytes(content)
        with pytest.raises(UserError, match="no document frequencies that velm can read") as error:
            DocumentFrequency.load(path)
        assert "\n" not in str(error.value)
    changes = [
        {"format": 99},
        {"documents": 1},
        {"counts1": np.array([2, 2, 2])},
        {"counts2": np.array([0])},
        {"keys2": np.array([4])},  # there are only two words
        {"keys2": arrays["keys2"].astype(float)},
        {"words": np.array([b"a"], dtype=object)},
    ]
    for change in changes:
        np.savez(path, **(arrays | change))
        with pytest.raises(UserError, match="no document frequencies that velm can read"):
            DocumentFrequency.load(path)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "keys3"})
    with pytest.raises(UserError, match="no document frequencies that velm can read"):
        DocumentFrequency.load(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (1 << 45,)})
    for huge in (header.getvalue(), header.getvalue().replace(b"35184372088832,", b"9007199254740,,")):
        np.savez(path, **{name: array for name, array in arrays.items() if name != "counts1"})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("counts1.npy", huge)
        with pytest.raises(UserError, match="no document frequencies that velm can read"):
            DocumentFrequency.load(path)
    np.savez_compressed(path, **(arrays | {"counts1": np.full(12 << 20, 2)}))
    with pytest.raises(UserError, match="it unpacks to many times its size"):
        DocumentFrequency.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="no document frequencies that velm can read"):
        DocumentFrequency.load(path)


def test_images_must_agree():
    with pytest.raises(AssertionError):
        Corpus({1: ["a"]}, {2: "a"})
    with pytest.raises(AssertionError):
        Corpus({1: []}, {1: "a"})
