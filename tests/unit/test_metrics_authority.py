"""Without pycocoevalcap: what its jars are not needed for works, the rest says in a line what to install."""

import importlib.util

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics import authority
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.frequencies import document_frequencies
from velm_cli.schema import MetricsConfig

LINE = "its jar is in the package pycocoevalcap, which is not installed: pip install pycocoevalcap"


@pytest.fixture
def not_installed(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "pycocoevalcap" else find(name))
    monkeypatch.setattr(authority.importlib.metadata, "version", _no_version)
    authority.pycocoevalcap.cache_clear()
    yield
    authority.pycocoevalcap.cache_clear()


def _no_version(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_scores_that_need_no_jar_are_there_and_the_others_say_why_not(not_installed):
    scores = score_captions({1: ["a cat on a mat"]}, {1: "a cat on a mat"}, MetricsConfig(), progress=False)
    assert scores.corpus["Bleu_4"] == pytest.approx(1.0) and scores.corpus["ROUGE_L"] == pytest.approx(1.0)
    assert scores.corpus["METEOR"] is None and scores.corpus["SPICE"] is None
    assert scores.reasons["METEOR"] == scores.reasons["SPICE"] == LINE
    assert scores.signature["pycocoevalcap"] is None


def test_document_frequencies_of_coco_say_what_to_install(not_installed, tmp_path):
    with pytest.raises(UserError, match=f"metrics.df=coco: {LINE}"):
        document_frequencies("coco", tmp_path, list)
