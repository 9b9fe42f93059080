"""velm score: options without effect, models and files that do not fit, and captions that nobody wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from velm import call

CAPTIONS = {1: "a red dog runs", 2: "two cats sit on grass", 3: "a man near an old house"}


@pytest.fixture
def files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_text(json.dumps([{"image_id": i, "caption": c} for i, c in CAPTIONS.items()]))
    Path("r.json").write_text(json.dumps([{"image_id": i, "captions": [c, f"{c} now"]} for i, c in CAPTIONS.items()]))
    for name in ("images", "clip"):
        Path(name).mkdir()


def score(capsys, *words: str) -> tuple[int, str, str]:
    code = call("score", "predictions=p.json", "references=r.json", "metrics.names=[bleu]", *words)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["images=images"], "images=images is for the page in out=FOLDER and for metrics.clip=FOLDER: give one of them"),
        (["metrics.clip=clip"], "metrics.clip=clip looks at the images: say where they are (images=FOLDER)"),
        (["metrics.clip=clip", "images=images", "metrics.names=CLIPScore", "metrics.required=CLIPScore"],
         "metrics.clip=clip is no folder of a CLIP-like model and its processor"),
        (["metrics.df=coco"], "metrics.df=coco weighs the words of CIDEr, and metrics.names has no cider"),
        (["metrics.df=p.json", "metrics.names=cider"], "p.json holds no document frequencies that velm can read: it is not a file of save_df="),
    ],
)  # fmt: skip
def test_what_cannot_have_its_effect_is_one_line(files, capsys, words, expected):
    code, _, err = score(capsys, *words)
    assert code == 2 and len(err.splitlines()) == 1 and expected in err
    assert "pickle" not in err


def test_a_wrong_instances_file_is_named_before_the_scores(files, capsys):
    code, out, err = score(capsys, "instances=r.json")
    assert code == 2 and "BLEU" not in out and "is not an instances file of COCO" in err


@pytest.mark.parametrize(
    ("caption", "warned"),
    [
        ("<s> a red dog </s><pad>", "the predictions of 1 image (1) hold signs of a tokenizer, such as <s>"),
        ("a red dog<|endoftext|>", "signs of a tokenizer, such as <|endoftext|>"),
        ("startseq a red dog endseq", "such as startseq"),
        ("nan", "the predictions of 1 image (1) are nan, None or the like"),
        ("a dog <3 a bus that ends here", None),
    ],
)
def test_captions_that_nobody_wrote_are_named(files, capsys, caption, warned):
    Path("p.json").write_text(json.dumps({i: caption if i == 1 else c for i, c in CAPTIONS.items()}))
    code, out, _ = score(capsys)
    assert code == 0 and (warned in out if warned else "signs" not in out)


def test_captions_scored_against_themselves_are_named(files, capsys):
    assert "are the same captions" in score(capsys, "references=p.json")[1]
    assert "predictions and vs are the same file" in score(capsys, "vs=p.json")[1]
    assert "the same" not in score(capsys)[1]
    Path("r.json").write_text(json.dumps([{"image_id": i, "captions": [c, ""]} for i, c in CAPTIONS.items()]))
    assert "3 images (1, 2, 3) have an empty reference" in score(capsys)[1]
