"""A captioner becomes a model for questions, and back: what is taken over, what is new, and what the command says."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from velm import TINY, TINY_MODEL, call

from velm_cli import configs, naming, schema
from velm_cli.data.opening import open_store
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.lineage import vocabulary_grows, weight_file
from velm_cli.loading import read_weights
from velm_cli.stages import _settle_task
from velm_cli.tasks.spaces import read_spaces, write_spaces

ASKED = [*TINY, "dataset.questions=true"]
SHORT = ["run.max_steps=1", "run.batch_size=4", "optim.warmup_steps=0", "metrics.resamples=0", "run.validate_images=4"]
STILL = [*SHORT, "optim.lr=0"]  # what is taken over is then what the run ends with
FINETUNE = ["finetune", "checkpoint=runs/train/captioner", "task=vqa", "dataset.questions=true"]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain-finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call("preprocess", "dataset=shapes", *ASKED) == 0
        assert call("train", *TINY, *TINY_MODEL, *SHORT, "metrics.names=[cider]", "name=captioner") == 0
        yield folder


def weights(run: str) -> dict[str, torch.Tensor]:
    return read_weights(weight_file(run))[0]


def tokenizer(run: str) -> Tokenizer:
    return Tokenizer.load(f"{run}/tokenizer")


NEW = {"classify": "label_head", "generate": "model.source"}


@pytest.mark.parametrize("answer", NEW)
def test_a_captioner_hands_on_its_parts_and_its_words(answer, capsys):
    name = f"runs/finetune/{answer}"
    assert call(*FINETUNE, f"task.answer={answer}", *STILL, f"name={answer}") == 0
    said = capsys.readouterr().out
    before, after = weights("runs/train/captioner"), weights(name)
    old, new = tokenizer("runs/train/captioner"), tokenizer(name)
    known = old.vocab_size
    assert f"vocabulary  {known} -> {new.vocab_size} words" in said
    assert f"tensors (from scratch: {NEW[answer].rpartition('.')[2]}); best validation there: CIDEr" in said
    assert "task        caption -> vqa" in said

    rows = {"model.text.embedding.weight", "model.output_bias"}
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key][:known] if key in rows else after[key]), key
    assert {key for key in after if key not in before} == {key for key in after if key.startswith(NEW[answer])}
    grown = after["model.text.embedding.weight"][known:]
    assert len(grown) == new.vocab_size - known and 0.01 < float(grown.std()) < 0.03

    assert {word: new.word_ids[word] for word in old.word_ids} == old.word_ids
    store = open_store(Path("stores/shapes-questions"))
    train = [int(number) for number in store.split("train")]
    asked = [text for number in train for text in (store.source(number), *store.targets(number))]
    assert all(new.unk_id not in ids for ids in new.encode_batch(asked))
    assert any(old.unk_id in ids for ids in old.encode_batch(asked))

    loss = configs.load_run_config(name).loss
    wanted = {"classify": ("0", "1", "label"), "generate": ("1", "0", "contrastive")}[answer]
    assert (loss.alpha, loss.gamma, loss.joint.value) == wanted
    page = ["report.page=false", "limit=4", "metrics.resamples=0"]
    assert call("eval", f"checkpoint={name}", *page) == 0
    assert (configs.run_folder_of(name) / "labels.json").exists() or answer == "generate"


def test_a_killed_finetuning_goes_on_with_the_same_words(place, capsys):
    command = [*FINETUNE, *SHORT, "run.max_steps=4", "run.checkpoint_every=2", "name=killed"]
    run = place / "runs/finetune/killed"
    assert call(*command) == 0
    whole, digest = weights(str(run)), tokenizer(str(run)).digest
    for left in ("DONE", "model.safetensors", "best.safetensors", "predictions.json", "scores.json"):
        (run / left).unlink()
    shutil.rmtree(run / "checkpoints/step-00000004")
    shutil.rmtree(run / "tokenizer")
    capsys.readouterr()
    assert call(*command) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    again = weights(str(run))
    assert tokenizer(str(run)).digest == digest
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    assert call(*command, "tokenizer.min_count=9") == 2  # other words would be other rows
    assert "was trained with another tokenizer" in capsys.readouterr().err


def test_new_words_are_counted_as_the_command_says():
    assert call(*FINETUNE, *STILL, "tokenizer.min_count=9", "name=often") == 0
    assert call(*FINETUNE, *STILL, "name=always") == 0
    known, often, always = (tokenizer(f"runs/{run}").vocab_size for run in
                            ("train/captioner", "finetune/often", "finetune/always"))  # fmt: skip
    assert known < often < always


def test_words_of_a_captioner_alone_are_taken_by_init_text(capsys):
    assert call("train", *ASKED, *TINY_MODEL, *STILL, "task=vqa", "init.text=runs/train/captioner", "name=text") == 0
    known = tokenizer("runs/train/captioner").vocab_size
    assert f"vocabulary  {known} -> {tokenizer('runs/train/text').vocab_size} words" in capsys.readouterr().out
    before, after = weights("runs/train/captioner"), weights("runs/train/text")
    embedding = "model.text.embedding.weight"
    taken = {key for key in before if torch.equal(before[key], after[key][:known] if key == embedding else after[key])}
    assert {key for key in before if key.startswith("model.text.")} <= taken
    assert not {key for key in before if key.startswith("model.vision.") and before[key].ndim > 1} & taken


def test_new_words_start_from_word_vectors(place, capsys):
    old = tokenizer("runs/train/captioner")
    (place / "glove.txt").write_text("".join(
        f"{word} {' '.join(str((row * 7 + column * 3) % 5) for column in range(32))}\n"
        for row, word in enumerate(["what", "red", "how"])
    ))  # fmt: skip
    assert {"what", "how"}.isdisjoint(old.word_ids) and "red" in old.word_ids
    assert call(*FINETUNE, *STILL, "text.vectors=glove.txt", "name=vectors") == 0
    assert "word vectors of 2 of" in capsys.readouterr().out
    before, after = weights("runs/train/captioner"), weights("runs/finetune/vectors")
    ids, key = tokenizer("runs/finetune/vectors").word_ids, "model.text.embedding.weight"
    assert torch.equal(after[key][ids["red"]], before[key][ids["red"]])
    read = torch.tensor([[(row * 7 + column * 3) % 5 for column in range(32)] for row in range(3)], dtype=torch.float)
    scaled = (read - read.mean()) / read.std() * 0.02
    torch.testing.assert_close(after[key][[ids["what"], ids["how"]]], scaled[[0, 2]])
    (place / "glove.txt").rename(place / "gone.txt")
    assert call(*FINETUNE, *STILL, "text.vectors=glove.txt", "name=vectors-gone") == 0
    assert "note: text.vectors=glove.txt is not there: the new words start at random" in capsys.readouterr().out


def test_answers_go_by_their_names(place, capsys):
    assert call(*FINETUNE, *STILL, "name=judge") == 0
    run, turned = place / "runs/finetune/judge", place / "runs/finetune/turned"
    shutil.copytree(run, turned)
    answers = read_spaces(run)["answers"]
    write_spaces(turned, {"answers": answers[::-1]})
    again = ["finetune", "checkpoint=runs/finetune/turned", *STILL]
    capsys.readouterr()
    assert call(*again, "name=turned-back") == 0
    count = len(answers)
    assert f"answers     {count} -> {count}, {count} of them known" in capsys.readouterr().out
    before, after = weights(str(run)), weights("runs/finetune/turned-back")
    heads = [key for key in before if key.startswith("label_head.") and len(before[key]) == count]
    assert len(heads) == 2
    assert all(torch.equal(after[key], before[key].flip(0)) for key in heads)
    assert any(before[key].std() > 0 for key in heads)

    assert call(*again, "task.answers=5", "name=five") == 0
    assert f"answers     {count} -> 5, 5 of them known" in capsys.readouterr().out
    five, places = weights("runs/finetune/five"), [answers[::-1].index(answer) for answer in answers[:5]]
    assert all(torch.equal(five[key], before[key][places]) for key in heads)


def test_back_to_captions(capsys):
    assert call(*FINETUNE, *STILL, "name=asked") == 0
    capsys.readouterr()
    back = ["finetune", "checkpoint=runs/finetune/asked", "task=caption", "dataset.questions=false"]
    assert call(*back, *STILL, "metrics.names=[cider]", "name=back") == 0
    said = capsys.readouterr().out
    assert "left behind: label_head; best validation there: VQA" in said
    assert "vqa -> caption, loss.alpha 0 -> 1, loss.gamma 1 -> 0, loss.joint label -> contrastive" in said
    assert tokenizer("runs/finetune/back").digest == tokenizer("runs/finetune/asked").digest  # it knew all of these


def test_data_of_another_task_are_said(capsys):
    line = "task=vqa reads questions, and stores/shapes has none: name data that have them (dataset=vqa, dataset=shapes"
    for command in (["train", *TINY, *TINY_MODEL, "task=vqa"], [*FINETUNE, "dataset.questions=false"]):
        for dry in ("dry_run=true", "dry_run=false"):
            assert call(*command, *SHORT, dry) == 2
            assert capsys.readouterr().err.startswith(f"velm: {line}")
    assert call("train", *ASKED, *TINY_MODEL, *SHORT, "metrics.names=[cider]", "name=answers") == 0
    note = (
        "note: the examples of stores/shapes-questions are questions, and task=caption takes their answers for "
        "captions, without reading them: task=vqa reads them\n"
    )
    assert note in capsys.readouterr().out
    assert call("eval", "checkpoint=runs/train/answers", "metrics.names=[cider]", "report.page=false") == 0
    assert note in capsys.readouterr().out


def test_questions_are_answered_without_images_on_the_same_store(capsys):
    text = ["text.width=32", "text.layers=1", "text.heads=2"]
    assert call("train", *ASKED, *text, *SHORT, "task=vqa", "vision=none", "fusion=none", "name=blind") == 0
    said = capsys.readouterr().out
    assert "questions cut at" in said and "answers cut at" not in said, "an answer of a list is no text"
    assert not [key for key in weights("runs/train/blind") if "vision" in key]


def test_a_file_of_options_that_names_a_task_gets_its_loss(place):
    (place / "own.yaml").write_text("task: {kind: vqa, answer: generate}\n")
    assert call("train", *ASKED, *TINY_MODEL, *SHORT, "config=own.yaml", "name=own") == 0
    assert shown(configs.load_run_config("runs/train/own")) == ("1", "0", "contrastive")
    assert call("train", *ASKED, *TINY_MODEL, *SHORT, "config=own.yaml", "task=vqa", "name=own-judge") == 0
    assert shown(configs.load_run_config("runs/train/own-judge")) == ("0", "1", "label")


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_only_a_vocabulary_of_words_grows_and_only_for_another_task(kind, tmp_path):
    trained = schema.TrainRoot(
        dataset=schema.ShapesConfig(),
        tokenizer=schema.TokenizerConfig(kind=schema.TokenizerKind[kind]),
        vision=schema.ViTConfig(),
        text=schema.GRUConfig(),
        fusion=schema.AddConfig(),
        task=schema.CaptionTaskConfig(),
    )
    configs.write_config(tmp_path / "config.yaml", trained)
    for task, grows in ((schema.VqaTaskConfig(), kind == "word"), (schema.CaptionTaskConfig(), False)):
        now = schema.FinetuneRoot(checkpoint=str(tmp_path), task=task, text=schema.GRUConfig())
        assert vocabulary_grows(now) is grows
        now.text = schema.BertConfig(name="folder")  # which has a vocabulary of its own
        assert not vocabulary_grows(now)


# ------------------------------------------------------------------------------------------------------- the options


def settled(task, *overrides, trained=None, tmp_path=None, **loss):
    """The config of a command after `_settle_task`; `trained`: the config of the checkpoint's run."""
    root = schema.TrainRoot()
    if trained is not None:
        trained.vision, trained.text, trained.fusion = schema.ViTConfig(), schema.GRUConfig(), schema.ConcatConfig()
        trained.dataset = schema.ShapesConfig()
        configs.write_config(tmp_path / "config.yaml", trained)
        root = schema.FinetuneRoot(checkpoint=str(tmp_path), loss=trained.loss)
    root.task = task
    for name, value in loss.items():
        setattr(root.loss, name, value)
    _settle_task(root, list(overrides))
    return root


LABEL = {"alpha": "0", "gamma": "1", "joint": schema.JointLoss.label}
GENERATE = schema.VqaTaskConfig(answer=schema.Answer.generate)


def shown(config):
    return config.loss.alpha, config.loss.gamma, config.loss.joint.value


def test_written_answers_are_learned_as_captions_are():
    assert shown(settled(GENERATE, **LABEL)) == ("1", "0", "contrastive")
    assert shown(settled(schema.VqaTaskConfig(answer=schema.Answer.rank), **LABEL)) == ("1", "0", "contrastive")
    assert shown(settled(schema.VqaTaskConfig(), **LABEL)) == ("0", "1", "label")


def test_what_the_command_says_of_the_loss_counts():
    assert shown(settled(GENERATE, "loss=vqa", **LABEL)) == ("0", "1", "label")
    assert shown(settled(GENERATE, "loss=_checkpoint", **LABEL)) == ("0", "1", "label")  # a file of options
    gamma = {**LABEL, "gamma": "0.5"}
    assert shown(settled(GENERATE, "loss.gamma=0.5", **gamma)) == ("1", "0.5", "contrastive")
    assert shown(settled(GENERATE, **gamma)) == ("0", "0.5", "label")  # an experiment's


def test_a_checkpoint_of_another_task_brings_no_loss(tmp_path):
    critic = {"text": schema.TextLoss.self_critical, "scheduled_sampling": "0.1", "label_smoothing": 0.1}

    def of_captioner(task, *overrides, **loss):
        trained = schema.TrainRoot(task=schema.CaptionTaskConfig(), loss=schema.LossConfig(**critic))
        return settled(task, *overrides, trained=trained, tmp_path=tmp_path, **loss).loss

    judged = of_captioner(schema.VqaTaskConfig(), "loss.label_smoothing=0.2", label_smoothing=0.2)
    assert judged == schema.LossConfig(**LABEL, label_smoothing=0.2)
    assert of_captioner(GENERATE) == schema.LossConfig()
    assert of_captioner(schema.RetrieveTaskConfig()) == schema.LossConfig(alpha="0", gamma="1")
    assert of_captioner(schema.CaptionTaskConfig()) == schema.LossConfig(**critic)


def test_another_way_to_answer_leaves_the_options_of_the_first(tmp_path):
    judge = schema.VqaTaskConfig(dropout=0.3, answers=500)
    trained = schema.TrainRoot(task=judge, loss=schema.LossConfig(**LABEL))
    generates = schema.VqaTaskConfig(answer=schema.Answer.generate, dropout=0.3, answers=500)
    config = settled(generates, "task.answer=generate", trained=trained, tmp_path=tmp_path)
    assert config.task == replace(GENERATE, answers=500) and shown(config) == ("1", "0", "contrastive")
    told = settled(
        schema.VqaTaskConfig(answer=schema.Answer.rank, dropout=0.3, answers=500),
        "task.answer=rank",
        "task.dropout=0.3",
        trained=trained,
        tmp_path=tmp_path,
    )
    assert told.task.dropout == 0.3 and told.task.answers == 500  # the first is then refused


def test_names_tell_tasks_apart():
    root = schema.TrainRoot(
        dataset=schema.ShapesConfig(), vision=schema.ViTConfig(), text=schema.GRUConfig(), fusion=schema.AddConfig()
    )
    choices = {"dataset": "shapes", "vision": "vit", "text": "gru", "fusion": "add"}
    commands = [
        [], ["task=vqa"], ["task=retrieve"], ["task=vqa", "task.answer=generate"], ["task=vqa", "task.answer=rank"],
        ["task=vqa", "task.dropout=0.2"], ["text.dropout=0.2"], ["task=vqa", "text.dropout=0.2"],
        ["dataset.questions=true"], ["task=vqa", "dataset.questions=true"], ["task=vqa", "task.answers=100"],
        ["task=vqa", "task.min_answers=100"], ["loss=vqa"], ["tokenizer.max_source_tokens=9"],
    ]  # fmt: skip
    names = [naming.default_name(root, command, choices | {"task": "vqa"}) for command in commands]
    assert len(set(names)) == len(names)
    assert all("vqa" in name for name, command in zip(names, commands, strict=True) if "task=vqa" in command)
