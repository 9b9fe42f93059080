"""Questions as prompts of a language model, through every stage; and a prompt before captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from harness import check_task, evaluated
from tiny_models import language_model
from velm import TINY, call

import velm_cli
from velm_cli.data.prompts import Prompted
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.schema import TokenizerConfig, TokenizerKind

DATA = ["dataset=shapes", "dataset.questions=true", *TINY]
MODEL = [
    "vision=vit", "vision.width=32", "vision.layers=1", "vision.heads=2", "text=causal_lm", "text.name=language_model",
    "fusion=prefix", "fusion.length=3", "run.batch_size=4", "run.log_every=1",
]  # fmt: skip
OF = "data/shapes/vqa"
SCORE = ["task=vqa", f"references={OF}/test/annotations.json", f"training={OF}/train/annotations.json"]
ASKED = ["task=vqa", "task.answer=generate", "task.source=prompt", "loss=caption"]
TEXTS = ["what colour is the circle?", "red", "a red circle above a blue square", "Question: Answer:"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        language_model(Path("language_model"), TEXTS)
        yield folder


def test_questions_as_prompts(place, capsys):
    checked = check_task(
        "prompt",
        ASKED,
        DATA,
        primary="VQA",
        score=SCORE,
        blind=("image", "shuffled", "source"),
        model=MODEL,
        capsys=capsys,
    )
    scores = json.loads((checked.full / "scores.json").read_text())
    assert "'Question: {source} Answer:' (" in json.dumps(scores)
    ranked = evaluated("eval", f"checkpoint={checked.run}", "task.answer=rank", "report.page=false")
    assert len(json.loads((ranked / "predictions.json").read_text())) > 8
    model = velm_cli.load(checked.run)
    picture = next(Path(OF, "test").rglob("*.jpg"), None) or next(Path("data").rglob("*.jpg"))
    assert isinstance(model.answer(picture, "what colour is the circle?"), str)
    looked = model.attention(picture, "red", question="what colour is the circle?", method="gradient")
    assert list(looked.words) == ["red"] and looked.maps_THW.sum() > 0


def test_a_prompt_before_captions(place, capsys):
    data = ["dataset=shapes", "dataset.root=data/captions", *TINY]
    train = ["train", *data, *MODEL, "task.prompt='A photo of'", "run.max_steps=2", "name=captions"]
    assert call("preprocess", *data) == 0 and call(*train) == 0
    folder = evaluated("eval", "checkpoint=runs/train/captions", "report.page=false", "metrics=fast")
    captions = [each["caption"] for each in json.loads((folder / "predictions.json").read_text())]
    assert captions and not any(caption.startswith("A photo of") for caption in captions)
    assert "A photo of" in (folder / "scores.json").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["task.prompt=why"], "{source} has to be in it once"),
        (["fusion=cross_modal"], "fusion=prefix puts the image before both"),
        (["task.source_layers=3"], "task.source_layers=3 has no effect"),
    ],
)
def test_mistakes(place, capsys, options, said):
    assert call("train", *DATA, *ASKED, *[each for each in MODEL if "fusion" not in each or "fusion" not in options[0]], *options) == 2  # fmt: skip
    assert said in capsys.readouterr().err


def test_captions_that_the_image_leaves_no_positions_for(place, capsys):
    data = ["dataset=shapes", *TINY, "dataset.store=stores/captions"]
    assert call("preprocess", *data) == 0
    model = [option for option in MODEL if option != "fusion.length=3"]
    assert call("train", *data, *model, "fusion.length=250", "dry_run=true") == 2
    said = capsys.readouterr().err
    assert "takes 250 positions before the text and the longest text 41, and the text encoder has 256" in said
    assert "lower tokenizer.max_tokens, or lower fusion.length" in said


def words_of(texts: Prompted) -> list[list[int]]:
    return [texts.ids[a:b].tolist() for a, b in zip(texts.offsets, texts.offsets[1:], strict=False)]


def test_tokens_of_prompts(place):
    tokenizer = Tokenizer.build(TokenizerConfig(kind=TokenizerKind.pretrained, name="language_model"), [])
    asked = ["what colour?", "", "red " * 50]
    found = Prompted("Question: {source} Answer:", asked, tokenizer, 6)
    whole, empty, cut = words_of(found)
    assert (
        tokenizer.decode(whole) == "Question: what colour? Answer:" and tokenizer.decode(empty) == "Question:  Answer:"
    )
    (first,), (last,) = tokenizer.encode_batch(["Question: "]), tokenizer.encode_batch([" Answer:"])
    assert found.cut == 1 and cut == [*first, *tokenizer.encode_batch(asked)[2][:6], *last]
    hidden = Prompted("colour: {source} Answer:", ["what colour?"], tokenizer, 60, frozenset({"colour"}))
    assert hidden.hidden == 1 and tokenizer.mask_id in hidden.ids and words_of(hidden)[0][: len(first)] != []
    assert torch.from_numpy(hidden.offsets).diff().sum() == len(hidden.ids)
