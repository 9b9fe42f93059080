"""Caption scores equal pycocoevalcap's; what cannot be computed is None with a reason, never a zero."""

from __future__ import annotations

import json
import math
import os
import random
import time

import pytest
from java_support import fake_java, needs_java, random_captions
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from velm_cli.errors import UserError
from velm_cli.metrics import captions as metrics
from velm_cli.metrics import ptb
from velm_cli.metrics.captions import _number, fast_cider, score_captions
from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.scores import save, table
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import NAMES

CLIP = ["CLIPScore", "RefCLIPScore"]
ORDER = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE", *CLIP]
IN_PYTHON = ["bleu", "rouge_l", "cider"]


@pytest.fixture
def captions() -> tuple[dict[int, list[str]], dict[int, str]]:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random_captions(random.Random(seed), 30)


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def official(references: dict, hypotheses: dict) -> dict:
    """pycocoevalcap's own results for tokenised captions: column -> (corpus, one value an image)."""
    wrapped = {image: [caption] for image, caption in hypotheses.items()}
    bleu, each_bleu = Bleu(4).compute_score(references, wrapped, verbose=0)
    found = {f"Bleu_{n + 1}": (bleu[n], each_bleu[n]) for n in range(4)}
    found["ROUGE_L"] = Rouge().compute_score(references, wrapped)
    found["CIDEr"] = Cider().compute_score(references, wrapped)
    return found


def assert_equal(scores, wanted: dict) -> None:
    for name, (corpus, each) in wanted.items():
        assert scores.corpus[name] == pytest.approx(corpus, abs=1e-6), name
        got = [values[name] for values in scores.per_image.values()]
        assert got == pytest.approx(list(each), abs=1e-6), name


def test_without_java_scores_are_there_and_missing_ones_have_reasons(captions, no_java, capfd):
    references, hypotheses = captions
    scores = score_captions(references, hypotheses, MetricsConfig())
    tokenized = {image: ptb.tokenize(group) for image, group in references.items()}
    answers = ptb.tokenize(list(hypotheses.values()))
    assert_equal(scores, official(tokenized, dict(zip(hypotheses, answers, strict=True))))
    assert list(scores.corpus) == list(NAMES) == ORDER
    missing = {"METEOR", "SPICE", *CLIP}
    assert {name for name, value in scores.corpus.items() if value is None} == set(scores.reasons) == missing
    assert all("install a Java runtime" in scores.reasons[name] for name in ("METEOR", "SPICE"))
    assert scores.signature["tokenizer"] == "PTB, as stanford-corenlp-3.4.1"
    assert capfd.readouterr().out == ""  # pycocoevalcap's own prints are silenced


def test_without_java_captions_beyond_velms_reader_are_counted(no_java):
    references, hypotheses = {1: ["a dog", "ሀ dog"], 2: ["a cat"]}, {1: "a dog", 2: "ሁ"}
    scores = score_captions(references, hypotheses, MetricsConfig(names=["bleu"]))
    assert scores.signature["tokenizer"].endswith("but 2 captions are read by velm alone")
    assert any("2 captions hold" in warning and "install a Java" in warning for warning in scores.warnings)


def test_without_java_the_document_frequencies_of_a_file_count(captions, no_java, tmp_path):
    references, hypotheses = captions
    table = DocumentFrequency.of([["a dog runs"], ["a dog sits"], ["a cat"]], "three images")
    table.save(tmp_path / "df.npz")
    config = MetricsConfig(names=["cider"], df=str(tmp_path / "df.npz"))
    scores = score_captions(references, hypotheses, config)
    assert scores.signature["cider_df"] == "three images, 3 images"
    assert (
        scores.corpus["CIDEr"] != score_captions(references, hypotheses, MetricsConfig(names=["cider"])).corpus["CIDEr"]
    )


def test_order_of_the_hypotheses_does_not_matter(captions, no_java):
    references, hypotheses = captions
    config = MetricsConfig(names=IN_PYTHON)
    shuffled = dict(reversed(hypotheses.items()))
    assert score_captions(references, shuffled, config) == score_captions(references, hypotheses, config)


@pytest.mark.java
@pytest.mark.parametrize("large", [False, True])
def test_with_java_everything_but_spice_equals_pycocoevalcap(captions, large, monkeypatch):
    needs_java()
    if large:  # METEOR then shares the images among processes, each with a part of its paraphrases
        monkeypatch.setattr(metrics, "IMAGES_PER_TABLE", 1)
        monkeypatch.setattr(metrics, "IMAGES_PER_METEOR", 10)
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references, hypotheses = captions
    tokenizer = PTBTokenizer()
    tokenized = tokenizer.tokenize({i: [{"caption": c} for c in group] for i, group in references.items()})
    answers = tokenizer.tokenize({image: [{"caption": c}] for image, c in hypotheses.items()})
    wanted = official(tokenized, {image: caption for image, (caption,) in answers.items()})
    wanted["METEOR"] = Meteor().compute_score(tokenized, answers)
    scores = score_captions(references, hypotheses, MetricsConfig(names=[*IN_PYTHON, "meteor"]))
    assert_equal(scores, wanted)
    assert scores.signature["tokenizer"] == "PTB, as stanford-corenlp-3.4.1"
    assert scores.signature["java"]
    assert scores.reasons == dict.fromkeys(["SPICE", *CLIP], "not requested")


@pytest.mark.java
def test_odd_captions_spoil_nothing(tmp_path):
    needs_java()
    odd = ["a\ndog", "a\u2028dog", "😀", "a ||| dog", "", "a dog " * 5000, "\ud800"]
    references = {i: ["a dog on a street"] for i in range(len(odd))}
    scores = score_captions(references, dict(enumerate(odd)), MetricsConfig(names=[*IN_PYTHON, "meteor"]))
    values = [scores.per_image[i] for i in range(len(odd))]
    assert values[0] == values[1]
    assert values[0]["METEOR"] > 0
    assert values[4]["METEOR"] == values[4]["Bleu_1"] == 0
    assert any("METEOR saw only the first 500 words of captions of 1 image (5)" in w for w in scores.warnings)
    save(scores, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "per_image.jsonl").read_text().splitlines()]
    assert [line["hypothesis"] for line in lines] == odd


def test_a_hung_java_costs_its_time_limit_and_only_its_scores(captions, monkeypatch, tmp_path):
    references, hypotheses = captions
    fake_java(tmp_path / "bin", "exec sleep 600")
    for jar in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / jar).touch()
    monkeypatch.setenv("VELM_CORENLP", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    started = time.monotonic()
    scores = score_captions(references, hypotheses, MetricsConfig(java_timeout=1), cache_dir=tmp_path / "cache")
    assert time.monotonic() - started < 300, "it was waited for"
    assert set(scores.reasons) == {"METEOR", "SPICE", *CLIP}
    assert "no answer in 1 s" in scores.reasons["METEOR"]
    assert "raise metrics.java_timeout" in scores.reasons["SPICE"]
    assert scores.corpus["CIDEr"] > 0


def test_a_java_that_crashes_is_a_reason(captions, monkeypatch, tmp_path):
    fake_java(tmp_path / "bin", "echo 'Error: could not find libjava.so' >&2; exit 2")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("VELM_CORENLP", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    scores = score_captions(*captions, MetricsConfig(names=["bleu", "meteor"]), cache_dir=tmp_path)
    assert "libjava.so" in scores.reasons["METEOR"]
    assert scores.corpus["Bleu_1"] > 0


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        (
            {i: ["a"] for i in range(9)},
            {0: "a"},
            r"no caption for 8 images \(1, 2, 3, 4, 5, \.\.\.\): predict them",
        ),
        ({0: ["a"]}, {0: "a", 5: "b"}, r"no references for 1 image \(5\): are the captions of another split"),
        ({0: ["a"], 1: []}, {0: "a", 1: "b"}, r"an empty list of references for 1 image \(1\)"),
        ({1: ["a"]}, {"1": "a"}, "ids are numbers on one side and text on the other"),
        ({}, {}, "no captions to score"),
    ],
)
def test_mistakes_are_named(references, hypotheses, message):
    with pytest.raises(UserError, match=message) as error:
        score_captions(references, hypotheses, MetricsConfig(names=["bleu"]))
    assert "\n" not in str(error.value)


def test_an_unknown_metric_is_named():
    with pytest.raises(UserError, match="did you mean 'cider'"):
        score_captions({1: ["a"]}, {1: "a"}, MetricsConfig(names=["ciderr"]))


def test_few_images_are_warned_of(no_java):
    config = MetricsConfig(names=["cider"])
    few = score_captions({i: ["a dog", "a cat"] for i in range(99)}, dict.fromkeys(range(99), "a"), config)
    assert any("99 images only" in warning for warning in few.warnings)
    assert few.signature["cider_df"] == "corpus, 99 images"
    assert (few.signature["references"], few.signature["references_max"]) == (198, 2)
    enough = score_captions({i: ["a dog"] for i in range(100)}, dict.fromkeys(range(100), "a"), config)
    assert not any("images only" in warning for warning in enough.warnings)


def test_references_without_words(no_java):
    scores = score_captions({1: ["..."], 2: [""]}, {1: "a dog", 2: ""}, MetricsConfig(names=IN_PYTHON))
    assert scores.corpus["CIDEr"] is None
    assert scores.reasons["CIDEr"] == "no reference holds a word"
    assert scores.corpus["Bleu_1"] == pytest.approx(0, abs=1e-6)


def test_table_and_files(captions, no_java, tmp_path):
    scores = score_captions(*captions, MetricsConfig(names=["bleu", "meteor", "cider"]))
    rows = table(scores).splitlines()
    assert [row.split()[0] for row in rows] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "CIDEr"]
    cider = scores.corpus["CIDEr"]
    low, high = scores.intervals["CIDEr"]
    assert low < cider < high
    assert rows[5].split() == [
        *("CIDEr", f"{cider:.3f}", f"{100 * cider:.1f}"),
        *(f"{100 * low:.1f}", "to", f"{100 * high:.1f}"),
    ]
    assert rows[4].split()[1:4] == ["-", "-", "Java"]
    scores.per_image[next(iter(scores.per_image))]["SPICE"] = None
    save(scores, tmp_path / "new" / "folder")
    saved = json.loads((tmp_path / "new" / "folder" / "scores.json").read_text())
    assert list(saved)[:10] == ORDER
    assert saved["METEOR"] is None
    assert saved["CIDEr"] == cider
    assert saved["images"] == 30
    assert saved["reasons"]["ROUGE_L"] == "not requested"
    assert saved["signature"]["velm"]
    lines = [json.loads(line) for line in (tmp_path / "new" / "folder" / "per_image.jsonl").read_text().splitlines()]
    assert {line["image_id"]: line["scores"] for line in lines} == scores.per_image
    assert {line["image_id"]: line["references"] for line in lines} == captions[0]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "per_image.jsonl",
        "scores.json",
    ]


def test_a_nan_cannot_be_written(captions, no_java, tmp_path):
    scores = score_captions(*captions, MetricsConfig(names=["bleu"]))
    scores.corpus["Bleu_1"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        save(scores, tmp_path)
    assert not (tmp_path / "scores.json").exists()


def test_fast_cider_is_cider(captions, no_java):
    references, hypotheses = captions
    scores = score_captions(references, hypotheses, MetricsConfig(names=["cider"]))
    assert fast_cider(references, hypotheses) == pytest.approx(scores.corpus["CIDEr"])
    assert fast_cider({1: [""]}, {1: "a"}) == 0.0


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
def test_what_is_no_finite_number_is_no_score(value):
    """JSON has no room for it, and a mean with it says nothing."""
    assert _number(value) is None
    assert _number(0.5) == 0.5
