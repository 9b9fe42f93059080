"""`velm eval checkpoint=hf:FOLDER`: models that velm did not train, with velm's data, metrics and report."""

from __future__ import annotations

import json
import os
import shutil
import signal
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hf_families import captioner
from PIL import Image
from velm import TINY, call

from velm_cli.data.opening import open_store
from velm_cli.files import read_sealed
from velm_cli.models.hf import writing

QUICK = [
    "run.precision=fp32",
    "metrics.names=[bleu,cider]",
    "metrics.resamples=20",
    "decode=greedy",
    "decode.max_length=6",
]
SHAPES = ["dataset=shapes", *[option for option in TINY if option.startswith("dataset.")]]
ASKED = [*SHAPES, "dataset.questions=true"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("eval-hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call("preprocess", *ASKED, "tokenizer.min_count=1") == 0
        yield where


def store_of(kind: str) -> Path:
    return next(
        path.parent for path in Path("stores").rglob("manifest.json") if ("question" in str(path)) == (kind == "vqa")
    )


def directly(folder: str, images: list[bytes], longest: int) -> list[str]:
    """As a user of transformers captions with GIT."""
    from transformers import AutoProcessor, GitForCausalLM

    processor, model = AutoProcessor.from_pretrained(folder), GitForCausalLM.from_pretrained(folder)
    words = []
    for image in images:
        inputs = processor(images=Image.open(BytesIO(image)).convert("RGB"), return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        words.append(" ".join(processor.decode(out[0], skip_special_tokens=True).split()))
    return words


def test_captions_of_a_folder_with_scores_report_and_comparison(place, capsys):
    git, blip = captioner("git"), captioner("blip")
    assert call("eval", f"checkpoint=hf:{git}", *SHAPES, *QUICK, "decode.batch_size=3") == 0
    said = capsys.readouterr().out
    folder = Path("runs/evaluate/hf-captioner-git-shapes-test-greedy")
    assert "model       GitForCausalLM, fp32" in said and f"done: {folder}" in said
    store = open_store(store_of("caption"))
    numbers = store.split("test")
    images = [store.image_bytes(int(store.images_of(np.array([number]))[0][0])) for number in numbers]
    told = {line["image_id"]: line["caption"] for line in json.loads((folder / "predictions.json").read_text())}
    assert [told[store.example_id(int(number))] for number in numbers] == directly(git, images, 6)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["task"] == "caption" and scores["CIDEr"] is not None and scores["intervals"]["CIDEr"]
    assert scores["signature"]["model"].startswith("GitForCausalLM by transformers")
    assert scores["signature"]["prompt"].startswith("none (")
    assert (folder / "report.html").stat().st_size > 10_000
    assert read_sealed(folder / "weights.json")["sha256"] == scores["weights"]

    assert call("eval", f"checkpoint=hf:{git}", *SHAPES, *QUICK, "decode.batch_size=3") == 0
    assert "is complete" in capsys.readouterr().out
    assert call("eval", f"checkpoint=hf:{blip}", *SHAPES, *QUICK) == 0
    other = "runs/evaluate/hf-captioner-blip-shapes-test-greedy"
    assert call("report", str(folder), other, "out=both.html") == 0
    said = capsys.readouterr().out
    assert "hf:captioner-git" in said and "hf:captioner-blip" in said
    assert "captioner-blip" in Path("both.html").read_text()


def test_answers_and_their_blind_controls(place, capsys):
    model = captioner("llava")
    answers = {}
    for blind in ("none", "image", "shuffled", "source"):
        command = ["eval", f"checkpoint=hf:{model}", "task=vqa", *ASKED, "run.precision=fp32", "decode.max_length=4"]
        assert call(*command, "decode=greedy", f"eval.blind={blind}", f"name=vqa-{blind}", "limit=12") == 0
        told = json.loads(Path(f"runs/evaluate/vqa-{blind}/predictions.json").read_text())
        answers[blind] = [line["answer"] for line in told]
        signature = json.loads(Path(f"runs/evaluate/vqa-{blind}/scores.json").read_text())["signature"]
        assert ("blind" in signature) == (blind != "none")
        assert "USER" not in signature["prompt"] and "{source}" in signature["prompt"]
    assert len({len(each) for each in answers.values()}) == 1
    assert all(answers[blind] != answers["none"] for blind in ("image", "shuffled", "source"))
    assert len(set(answers["none"])) > 1
    capsys.readouterr()
    assert call("report", "runs/evaluate/vqa-none", "runs/evaluate/vqa-image") == 0
    assert "no image" in capsys.readouterr().out


def test_a_folder_of_transformers_without_hf_and_hf_without_a_folder(place, capsys):
    git = captioner("git")
    assert call("eval", f"checkpoint={git}", *SHAPES) == 2
    assert f"a model of transformers is named by checkpoint=hf:{git}" in capsys.readouterr().err
    assert call("eval", "checkpoint=hf:", *SHAPES) == 2
    assert "checkpoint=hf: names no model" in capsys.readouterr().err


def test_weights_of_another_size_or_without_numbers(place, capsys, tmp_path):
    from safetensors.torch import load_file, save_file

    for kind, line in (
        ("size", "git.embeddings.word_embeddings.weight is [61, 16] in the file, and [68, 16] by config.json"),
        ("nan", "its weights are damaged: git."),
    ):
        folder = Path(shutil.copytree(captioner("git"), tmp_path / kind))
        if kind == "nan":
            tensors = load_file(folder / "model.safetensors")
            damaged = {name: tensor * float("nan") for name, tensor in tensors.items()}
            save_file(damaged, folder / "model.safetensors", {"format": "pt"})
        else:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 7}))
        assert call("eval", f"checkpoint=hf:{folder}", *SHAPES, *QUICK, f"name={kind}") == 2
        assert line in capsys.readouterr().err


def test_the_same_command_goes_on_after_a_kill(place, capsys, monkeypatch):
    command = ["eval", f"checkpoint=hf:{captioner('blip')}", *SHAPES, *QUICK, "decode.batch_size=2", "name=killed"]
    write, seen = writing.Writer.write, []

    def killed(self, shown):
        seen.append(len(shown))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, shown)

    monkeypatch.setattr(writing.Writer, "write", killed)
    assert call(*command) == 0
    assert "stopped by SIGTERM; the same command goes on with this evaluation" in capsys.readouterr().out
    folder = Path("runs/evaluate/killed")
    assert (folder / "PREEMPTED").exists() and not (folder / "DONE").exists()
    done = sum(seen)
    seen.clear()
    seen.append(0)  # no second kill
    seen.append(0)
    assert call(*command) == 0
    assert f"goes on     {done} of 8 images are written" in capsys.readouterr().out
    assert done + sum(seen) == 8 and (folder / "DONE").exists()
    whole = "runs/evaluate/hf-captioner-blip-shapes-test-greedy"
    if Path(whole).exists():  # the other test's, of batches of another size
        assert (folder / "predictions.json").read_bytes() == Path(whole, "predictions.json").read_bytes()


def test_an_image_that_is_refused_is_counted_and_listed(place, capsys, monkeypatch):
    write = writing.Writer.write

    def refused(self, shown):
        return [writing.Refused("too thin") if number == 1 else text for number, text in enumerate(write(self, shown))]

    monkeypatch.setattr(writing.Writer, "write", refused)
    assert call("eval", f"checkpoint=hf:{captioner('git')}", *SHAPES, *QUICK, "name=thin") == 0
    said = capsys.readouterr().out
    assert "1 images were refused by the model's processor and count as empty" in said and "too thin" in said
    (line,) = Path("runs/evaluate/thin/refused.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "too thin"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "comes with no data: name them, as in dataset=coco dataset.root=FOLDER"),
        (["task=vqa", *SHAPES], "task=vqa reads questions"),
        ([*SHAPES, "task=retrieve"], "caption, answer and chat"),
        (["task=vqa", "task.answer=classify", *ASKED], "task.answer=classify: checkpoint=hf:"),
        ([*SHAPES, "vision.name=x"], "vision.name is of velm's own runs"),
        ([*SHAPES, "eval.blind=source"], "eval.blind=source"),
        ([*SHAPES, "decode.samples=3"], "decode.samples=3 is of velm's own decoding"),
    ],
)
def test_mistakes_get_one_line(options, line, place, capsys):
    assert call("eval", f"checkpoint=hf:{captioner('llava')}", *options) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_other_stages_take_no_model_of_others(place, capsys):
    assert call("finetune", f"checkpoint=hf:{captioner('llava')}", "dataset=shapes") == 2
    assert "for velm eval, caption and answer; give a run folder" in capsys.readouterr().err


def test_a_dry_run_looks_at_the_folder_and_writes_nothing(place, capsys):
    before = sorted(Path("runs").rglob("*"))
    assert call("eval", f"checkpoint=hf:{captioner('llava')}", *SHAPES, "dry_run=true") == 0
    said = capsys.readouterr().out
    assert "LlavaForConditionalGeneration of" in said and "Describe the image in one short sentence." in said
    assert sorted(Path("runs").rglob("*")) == before


def test_caption_and_answer_take_such_models_too(place, capsys):
    """Of the files themselves: no store scales their images."""
    images = sorted(map(str, Path("data/shapes").rglob("*.jpg")))[:3]
    quick = ["decode.beams=1", "decode.max_length=6", "run.precision=fp32"]
    capsys.readouterr()
    assert call("caption", f"checkpoint=hf:{captioner('git')}", f"images=[{','.join(images)}]", *quick) == 0
    told = [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()]
    assert told == directly(captioner("git"), [Path(image).read_bytes() for image in images], 6)
    command = ["answer", f"checkpoint=hf:{captioner('llava')}", f"images={images[0]}", *quick]
    assert call(*command, "question=how many?", "out=answers.json") == 0
    (row,) = json.loads(Path("answers.json").read_text())
    assert row["question"] == "how many?" and row["answer"]
    capsys.readouterr()
    assert call(*command, "question=how many?", "choices=[yes,no]") == 2
    assert "choices= and probabilities= are for runs of velm" in capsys.readouterr().err
    assert call("caption", f"checkpoint=hf:{captioner('blip-vqa')}", f"images={images[0]}") == 2
    assert "writes no captions" in capsys.readouterr().err


def test_conversations_go_on(place):
    """Of drawn scenes: each reply by the model's own chat template."""
    talks = [*SHAPES, "dataset.examples=chat"]
    assert call("preprocess", *talks, "tokenizer.min_count=1") == 0
    command = ["eval", f"checkpoint=hf:{captioner('llava-next')}", "task=chat", *talks, "run.precision=fp32"]
    assert call(*command, "decode=greedy", "decode.max_length=5", "name=chat", "limit=6", "decode.batch_size=4") == 0
    told = [json.loads(line) for line in Path("runs/evaluate/chat/predictions.jsonl").read_text().splitlines()]
    assert len(told) == 6 and len({line["text"] for line in told}) > 1
    scores = json.loads(Path("runs/evaluate/chat/scores.json").read_text())
    assert scores["task"] == "chat" and scores["signature"]["prompt"].startswith("its chat template (")


def test_a_conversation_that_spells_the_token_of_images_shows_no_more_of_them(place, capsys):
    Image.new("RGB", (40, 40), (200, 30, 30)).save("red.jpg")
    said = [{"from": "human", "value": "<image> what does <|image_pad|> mean"}, {"from": "gpt", "value": "an image"}]
    Path("talk_test.json").write_text(json.dumps([{"id": 1, "image": "red.jpg", "conversations": said}]))
    talks = ["dataset=chat", "dataset.file=talk_test.json", "dataset.store=stores/spelled"]
    assert call("preprocess", *talks) == 0
    command = ["eval", f"checkpoint=hf:{captioner('qwen2-vl')}", "task=chat", *talks, "run.precision=fp32"]
    assert call(*command, "decode=greedy", "decode.max_length=4", "report.page=false", "name=spelled") == 0
    assert "refused by the model's processor" not in capsys.readouterr().out


def test_a_prompt_of_the_user_is_what_the_model_is_asked(place, capsys):
    words = {}
    for number, prompt in enumerate(["", "what is in the image ?"]):
        command = ["eval", f"checkpoint=hf:{captioner('llava')}", *SHAPES, *QUICK, f"name=prompt{number}"]
        assert call(*command, *([f"task.prompt={prompt}"] if prompt else [])) == 0
        folder = Path(f"runs/evaluate/prompt{number}")
        words[prompt] = (folder / "predictions.json").read_bytes()
        told = json.loads((folder / "scores.json").read_text())["signature"]["prompt"]
        assert told.startswith(repr(prompt or "Describe the image in one short sentence."))
    assert len(set(words.values())) == 2
    capsys.readouterr()
    asked = ["eval", f"checkpoint=hf:{captioner('llava')}", "task=vqa", *ASKED, "limit=4", *QUICK[:1], *QUICK[3:]]
    assert call(*asked, "task.prompt=one word : {source}", "name=asked") == 0
    assert "prompt      'one word : {source}'" in capsys.readouterr().out
    assert call(*asked, "task.prompt=one word", "name=none") == 2
    assert "has no {source}, the place of the question" in capsys.readouterr().err
    assert call(*asked, "task.prompt={source} {source}", "name=none") == 2
    assert "has several {source}, the place of the question" in capsys.readouterr().err
    assert call("eval", f"checkpoint=hf:{captioner('llava')}", *SHAPES, *QUICK, "task.prompt=a {source}") == 2
    assert "task=caption has no source, so {source} can stand for none" in capsys.readouterr().err
    assert call(*asked, "task.source=prompt", "name=none") == 2
    assert "task.source=prompt is of velm's own runs" in capsys.readouterr().err
