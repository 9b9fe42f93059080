"""task=chat on drawn conversations: trained, evaluated, scored, asked; and the data that it does not take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from velm import TINY, call

from velm_cli.data.conversations import parsed
from velm_cli.data.opening import open_store
from velm_cli.errors import UserError
from velm_cli.report.evaluations import read_evaluation

DATA = ["dataset=shapes", "dataset.examples=chat", *TINY]
MODEL = [
    "vision=vit", "vision.width=32", "vision.layers=1", "vision.heads=2", "vision.image_size=32", "vision.patch_size=16",
    "text.width=32", "text.layers=1", "text.heads=2", "fusion=prefix", "fusion.mapper=tokens", "run.batch_size=4",
    "run.log_every=1", "run.max_steps=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("chat")


@pytest.fixture
def run(home, monkeypatch, capsys):
    """A trained run, in the working directory."""
    monkeypatch.chdir(home)
    if not Path("runs/train/talks/DONE").exists():
        assert call("preprocess", *DATA) == 0
        assert call("train", "task=chat", *DATA, *MODEL, "name=talks", "dry_run=true") == 0
        assert call("train", "task=chat", *DATA, *MODEL, "name=talks") == 0
    capsys.readouterr()
    return "runs/train/talks"


def test_drawn_conversations_are_llavas(run):
    rows = json.loads(Path("data/shapes/chat/train.json").read_text())
    assert len(rows) == 24 and all(row["conversations"][0]["value"].startswith("<image>\n") for row in rows)
    several = [row for row in rows if isinstance(row["image"], list)]
    assert len(several) == 12
    for row in several:
        assert "now look at <image> too" in row["conversations"][2]["value"]
    store = open_store(Path("stores/shapes-chat"))
    for i in range(len(store)):
        before, images = parsed(store.source(i)), store.images_of([i])[0]
        places = [part for message in before for part in message.parts if isinstance(part, int)]
        assert sorted(set(places)) == list(range(len(images)))


def test_evaluated_with_controls_and_scored(run, capsys):
    assert call("eval", f"checkpoint={run}", "name=test", "decode.max_length=4") == 0
    predicted = [json.loads(line) for line in Path("runs/evaluate/test/predictions.jsonl").read_text().splitlines()]
    store = open_store(Path("stores/shapes-chat"))
    truth = {store.example_id(int(i)): store.targets(int(i)) for i in store.split("test")}
    assert {line["id"] for line in predicted} == truth.keys()
    found = read_evaluation(Path("runs/evaluate/test"))
    assert found.signature["template"].startswith("plain words (")
    assert found.task == "chat" and set(found.scores) == {"ROUGE-L", "exact", "BLEU", "chrF"}
    assert "most frequent reply to the same words" in found.floors
    page = Path("runs/evaluate/test/report.html").read_text()
    assert "now look at" in page and "assistant: " in page
    for blind, word in (("image", "no image"), ("shuffled", "shuffled")):
        assert call("eval", f"checkpoint={run}", f"name={blind}", f"eval.blind={blind}", "report.page=false") == 0
        assert word in json.loads(Path(f"runs/evaluate/{blind}/scores.json").read_text())["signature"]["blind"]
    assert call("eval", f"checkpoint={run}", "eval.blind=source") == 2
    assert "has no source" in capsys.readouterr().err

    Path("references.json").write_text(json.dumps({str(name): texts[0] for name, texts in truth.items()}))
    Path("predictions.json").write_text(json.dumps({str(line["id"]): line["text"] for line in predicted}))
    assert call("score", "task=chat", "predictions=predictions.json", "references=references.json", "out=scored") == 0
    scored = read_evaluation(Path("scored"))
    assert scored.scores == pytest.approx(found.scores)


def test_asked_from_python_and_from_the_shell(run, capsys):
    import velm_cli

    model = velm_cli.load(run)
    assert model.can == ("chat",)
    store = open_store(Path("stores/shapes-chat"))
    number = next(int(i) for i in store.split("test") if len(store.images_of([i])[0]) == 2)
    before = json.loads(store.source(number))
    said = [
        {"role": turn["role"], "content": "".join(part.get("text", "<image>") for part in turn["content"])}
        for turn in before
    ]
    jpegs = [store.image_bytes(int(x)) for x in store.images_of([number])[0]]
    assert call("eval", f"checkpoint={run}", "name=all", "decode.max_length=8", "report.page=false") == 0
    lines = map(json.loads, Path("runs/evaluate/all/predictions.jsonl").read_text().splitlines())
    told = {line["id"]: line["text"] for line in lines}
    assert model.chat(said, jpegs, max_length=8) == told[store.example_id(number)]
    one = model.chat("is there a red circle", jpegs[0], max_length=8)
    assert model.answer(jpegs[:1] * 2, "is there a red circle", max_length=8) == [one, one]
    for messages, images, line in (
        ([*said, {"role": "assistant", "content": "no"}], jpegs, "nothing to reply to"),
        (said, jpegs[:1], "1 images, and 2 places for them"),
        ([{"role": "tool", "content": "x"}], None, "unknown role 'tool'"),
        ([{"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]}], None, "give it with images="),
        (7, None, "give a text, or a list"),
    ):
        with pytest.raises(UserError, match=line):
            model.chat(messages, images)
    with pytest.raises(UserError, match="has not learned task=caption"):
        model.caption(jpegs[0])
    Path("one.jpg").write_bytes(jpegs[0])
    capsys.readouterr()
    assert (
        call("answer", f"checkpoint={run}", "images=one.jpg", "question=is there a red circle", "decode.max_length=8")
        == 0
    )
    assert one in capsys.readouterr().out


def test_exported_with_its_template(run, capsys):
    import velm_cli

    assert call("export", f"checkpoint={run}", "out=exported") == 0
    assert "can chat" in capsys.readouterr().out
    assert "replies in conversations about images" in Path("exported/README.md").read_text()
    store = open_store(Path("stores/shapes-chat"))
    jpeg, asked = store.image_bytes(0), "how many <image> are there"
    alike = [velm_cli.load(folder).chat(asked, jpeg, max_length=8) for folder in (run, "exported")]
    assert alike[0] == alike[1]


def test_in_a_mixture_with_captions(run, capsys):
    assert call("preprocess", "dataset=shapes", *TINY, "dataset.store=stores/captions") == 0
    parts = "dataset.parts=[{store: stores/captions, task: caption}, {store: stores/shapes-chat, task: chat}]"
    train = ["train", "task=mix", "dataset=mix", parts, *MODEL, "tokenizer.min_count=1", "name=both"]
    assert call(*train, "dry_run=true") == 0
    assert call(*train) == 0
    assert "chat/text" in capsys.readouterr().out
    of_chat = ["eval", "checkpoint=runs/train/both", "task=chat", "dataset.store=stores/shapes-chat", "name=both"]
    assert call(*of_chat, "report.page=false", "decode.max_length=3") == 0
    assert read_evaluation(Path("runs/evaluate/both")).task == "chat"


def test_the_template_is_kept_with_the_run(run, capsys):
    Path("own.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ' says ' + m['content'] + eos_token }}{% endfor %}"
    )
    assert call("train", "task=chat", *DATA, *MODEL, "name=own", "task.template=own.jinja") == 0
    assert "template    of the tokenizer" in capsys.readouterr().out
    Path("own.jinja").unlink()
    assert call("eval", "checkpoint=runs/train/own", "name=own", "report.page=false", "decode.max_length=3") == 0


def test_conversations_that_are_too_long(run, capsys):
    short = ["task=chat", *DATA, *MODEL, "dry_run=true", "task.max_tokens=20"]
    assert call("train", *short) == 0
    assert "conversations have more tokens than task.max_tokens=20" in capsys.readouterr().out
    assert call("train", *short, "task.too_long=drop") == 0
    out = capsys.readouterr().out
    assert "are left out" in out and "learned     24 of 24" not in out
    assert "positions a batch, those of images among them, without padding" in out and " tokens to predict" in out


def test_what_does_not_go_together(run, capsys):
    for options, line in (
        (["task=caption"], "are conversations: say task=chat"),
        (["task=vqa"], "are conversations: say task=chat"),
        (["task=chat", "fusion=cross_modal"], "fusion=cross_modal: task=chat puts images between the words"),
        (["task=chat", "loss.gamma=1"], "loss.gamma=1: task=chat learns by the words of replies alone"),
        (["task=chat", "loss.text=masked"], "loss.text=masked: task=chat predicts next words"),
        (["task=chat", "decode.samples=2"], "decode.samples=2: task=chat gives one answer"),
        (["task=chat", "vision.images=2"], "vision.images=2 tells images apart by their number"),
    ):
        model = [each for each in MODEL if not (options[-1].startswith("fusion=") and each.startswith("fusion"))]
        assert call("train", *DATA, *model, *options, "name=not") == 2, options
        assert line in capsys.readouterr().err
    assert call("preprocess", "dataset=shapes", *TINY) == 0
    assert call("train", "task=chat", "dataset=shapes", *TINY, *MODEL, "name=not") == 2
    assert "are no conversations: name data that have them (dataset=chat)" in capsys.readouterr().err


def test_each_model_has_its_own_template_on_a_store_that_they_share(run, capsys):
    """Models of a family have one vocabulary: the tokens of a store know the template of the first of them."""
    from chat_tokenizers import CHATML, LLAMA3, in_transformers, talking
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, template in (("chatml", CHATML), ("llama3", LLAMA3), ("base", None)):
        tokenizer = in_transformers(talking(template))
        tokenizer.save_pretrained(name)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(name)
    model = [option for option in MODEL if not option.startswith("text.")]
    said = []
    for name in ("chatml", "llama3", "base"):
        capsys.readouterr()
        command = ["train", "task=chat", *DATA, *model, "text=causal_lm", f"text.name={name}", f"name={name}"]
        assert call(*command, "dry_run=true") == 0
        said.append(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("template")))
    assert "ends with <|im_end|>" in said[0] and "ends with <|eot_id|>" in said[1] and "plain words" in said[2]


def test_a_run_does_not_go_on_with_another_template(run, capsys):
    Path("changed.jinja").write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    command = ["train", "task=chat", *DATA, *MODEL, "name=changed", "task.template=changed.jinja"]
    assert call(*command) == 0
    Path("changed.jinja").write_text("{% for m in messages %}{{ m['content'] + '!' + eos_token }}{% endfor %}")
    longer = [*(option for option in command if not option.startswith("run.max_steps")), "run.max_steps=5"]
    for more in ([], ["dry_run=true"]):
        assert call(*longer, *more) == 2
        assert "was trained with another template" in capsys.readouterr().err


def test_what_a_language_model_has_no_positions_for_is_said_before_it_learns(run, capsys, tmp_path):
    from chat_tokenizers import CHATML, in_transformers, talking
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = in_transformers(talking(CHATML))
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=190, **sizes),
    ).save_pretrained(tmp_path)
    model = [option for option in MODEL if not option.startswith("text.")]
    command = ["train", "task=chat", *DATA, *model, "text=causal_lm", f"text.name={tmp_path}", "name=short"]
    for more in ([], ["dry_run=true"]):
        assert call(*command, *more) == 2
        said = capsys.readouterr().err
        assert "training conversations take up to" in said and "the text encoder has 190: lower task.max_tokens" in said
    assert call(*command, "task.max_tokens=60", "decode.max_length=150") == 2
    assert "decode.max_length=150 come behind, and the text encoder has 190" in capsys.readouterr().err
    assert not Path("runs/train/short").exists()
    assert call(*command, "task.max_tokens=60", "decode.max_length=4") == 0
    evaluated = ["eval", "checkpoint=runs/train/short", "report.page=false"]
    capsys.readouterr()
    assert call(*evaluated, "decode.max_length=150", "name=all") == 0
    longest = int(re.search(r"take up to (\d+) positions before the reply", capsys.readouterr().out)[1])
    assert call(*evaluated, f"decode.max_length={191 - longest}", "name=some") == 0
    said = capsys.readouterr().out
    assert "Here they count as empty replies" in said
    replies = [
        json.loads(line)["text"] for line in Path("runs/evaluate/some/predictions.jsonl").read_text().splitlines()
    ]
    too_long = int(said.partition("note: ")[2].split()[0])
    assert 0 < too_long <= replies.count("") and too_long < len(replies) == 8
