"""Questions about drawn scenes through every stage, in each way of answering; and what blind evaluations keep away."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from harness import Checked, check_task, evaluated
from test_distributed import torchrun
from velm import TINY, TINY_MODEL, call

from velm_cli.data.batch import Batch, Columns
from velm_cli.data.loader import eval_batches
from velm_cli.data.opening import open_store
from velm_cli.inference.abilities import load_able
from velm_cli.report.about import about_folder
from velm_cli.tasks.interface import Session
from velm_cli.tasks.spaces import read_spaces

DATA = ["dataset=shapes", "dataset.questions=true", *TINY]
OF = "data/shapes/vqa"
SCORE = ["task=vqa", f"references={OF}/test/annotations.json", f"training={OF}/train/annotations.json"]
MODES = {
    "classify": ["task=vqa"],
    "generate": ["task=vqa", "task.answer=generate", "loss=caption"],
    "rank": ["task=vqa", "task.answer=rank", "loss=caption", "task.candidates=5"],
}
BLIND = ("image", "shuffled", "source")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


DONE: dict[str, Checked] = {}  # by the way of answering


@pytest.fixture
def checked(place, capsys):
    """The run and evaluations of a way of answering; made for the first test that asks, whichever process it is in."""

    def of(mode: str) -> Checked:
        if mode not in DONE:
            DONE[mode] = check_task(mode, MODES[mode], DATA, primary="VQA", score=SCORE, blind=BLIND, capsys=capsys)
        return DONE[mode]

    return of


@pytest.mark.parametrize("mode", MODES)
def test_every_stage(place, checked, mode):
    assert len(read_spaces(checked(mode).run)["answers"]) > 5, "also where it generates: an evaluation may rank"
    about, control = about_folder(checked(mode).full), about_folder(checked(mode).blind["source"])
    assert about["task"] == f"vqa, {mode}" and ("decoding" in about) is (mode == "generate")
    assert control == about | {"control": "eval.blind=source"}


def probabilities(folder: Path) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (folder / "probabilities.jsonl").read_text().splitlines())
    return {line["question_id"]: line["probabilities"] for line in lines}


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    return found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("mode", ["classify", "rank"])
def test_blind_predictions_are_those_of_what_is_left(place, checked, mode):
    """Each is made again from a batch that is changed by hand: grey, every other image, an empty question."""
    run, store = load_able(checked(mode).run, torch.device("cpu")), open_store(Path("stores/shapes-questions"))
    numbers = store.split("test")
    sources = store.encode(run.tokenizer, 64, "sources")
    batches = eval_batches(store, Columns(source=sources), numbers, batch_size=1000, pixels=run.learner.pixels)
    (batch,) = batches

    def predicted(**changed) -> dict[int, dict[str, float]]:
        parts = {
            name: getattr(batch, name)
            for name in ("ids", "image_XCHW", "images", "image_of_BI", "source_BL", "source_lengths_B")
        }
        own = Batch.of(batch.tokens_BKT, batch.lengths_BK, **(parts | changed))
        spaces = read_spaces(checked(mode).run)
        found = run.tasks["vqa"].predict(
            run.learner, [own], spaces, run.tokenizer, run.config.decode, Session(torch.device("cpu"))
        )
        return {number: dict(answered.alternatives) for number, answered in found}

    B = len(numbers)
    full, blind = predicted(), {kind: probabilities(folder) for kind, folder in checked(mode).blind.items()}
    now = probabilities(checked(mode).full)
    grey = predicted(image_XCHW=torch.zeros_like(batch.image_XCHW))
    empty = torch.tensor([[run.tokenizer.bos_id, run.tokenizer.eos_id]]).expand(B, 2).contiguous()
    silent = predicted(source_BL=empty, source_lengths_B=torch.full((B,), 2))
    with_image = [predicted(image_of_BI=torch.full_like(batch.image_of_BI, row)) for row in range(len(batch.images))]
    seen = []
    for question, own in zip(batch.ids, batch.image_of_BI[:, 0].tolist(), strict=True):
        assert same(now[question], full[question])
        assert same(blind["image"][question], grey[question])
        assert same(blind["source"][question], silent[question])
        (row,) = [row for row, each in enumerate(with_image) if same(blind["shuffled"][question], each[question])]
        assert row != own
        seen.append(row)
    assert set(seen) == set(range(len(batch.images))), "all are shown"
    differ = {kind: sum(not same(blind[kind][q], now[q]) for q in now) for kind in BLIND}
    assert min(differ.values()) > B / 2, "the model looks at neither"


def test_a_run_that_learned_the_words_of_questions_too_is_evaluated_as_it_was_trained(place, checked, capsys):
    """It has learned to read one way, since it predicts each word from those before."""
    checked("classify")  # its store
    train = ["train", *DATA, *TINY_MODEL, "task=vqa", "loss.alpha=1", "name=words", "run.max_steps=3"]
    assert call(*train, "run.precision=fp32") == 0
    wanted = probabilities(Path("runs/train/words"))
    found = probabilities(
        evaluated("eval", "checkpoint=runs/train/words", "split=val", "run.precision=fp32", "report.page=false")
    )
    assert wanted and all(same(found[question], wanted[question]) for question in wanted)


def test_other_options_are_another_evaluation(place, checked, capsys):
    evaluate = ["eval", "run.precision=fp32", "report.page=false"]
    ranked = evaluated(*evaluate, f"checkpoint={checked('generate').run}", "task.answer=rank")
    assert ranked.name == "generate-shapes-test-rank"
    fewer = evaluated(*evaluate, f"checkpoint={checked('generate').run}", "task.answer=rank", "task.candidates=3")
    assert fewer.name == "generate-shapes-test-rank.2"
    assert len(probabilities(ranked)) == len(probabilities(fewer)) > 8
    shares = [share for of in probabilities(fewer).values() for share in of.values()]
    assert sum(share > 0 for share in shares) <= 3 * len(probabilities(fewer))
    written = evaluated(*evaluate, f"checkpoint={checked('rank').run}", "task.answer=generate")
    assert written.name == "rank-shapes-test-beam5" and not (written / "probabilities.jsonl").exists()
    capsys.readouterr()
    assert call(*evaluate, f"checkpoint={checked('generate').run}", "task=vqa", "task.answer=rank") == 0
    assert f"{ranked} is complete" in capsys.readouterr().out, "task=vqa is the run's, with its options"


@pytest.mark.parametrize(
    ("mode", "options", "said"),
    [
        ("classify", ["task.answer=generate"], "task.answer=generate: runs/train/classify was trained with"),
        ("rank", ["task.answer=classify"], "can generate and rank"),
        ("classify", ["task=caption"], "(task=vqa) has not learned task=caption"),
        ("generate", ["task=caption"], "(task=vqa) has not learned task=caption"),
        ("classify", ["task.dropout=0.5"], "task.dropout=0.5 has no effect: runs/train/classify was trained with"),
        ("generate", ["task.candidates=7"], "task.candidates=7 has no effect"),
        ("classify", ["decode=beam"], "decode has no effect: task.answer=classify writes no text"),
        ("rank", ["decode.beams=3"], "decode.beams has no effect: task.answer=rank writes no text"),
        ("generate", ["task.answer=rank", "decode.max_length=3"], "decode.max_length has no effect: task.answer=rank"),
        ("classify", ["metrics.required=[cider]"], "metrics.required is of the scores of captions: task=vqa"),
        ("generate", ["metrics.names=[cider]"], "metrics.names is of the scores of captions: task=vqa"),
        ("classify", ["eval.submit=coco"], "eval.submit=coco is a server of captions, and task=vqa writes none"),
    ],
)
def test_what_makes_no_sense_gets_one_line(place, checked, capsys, mode, options, said):
    run = checked(mode).run
    capsys.readouterr()
    before = set(Path("runs").rglob("*"))
    assert call("eval", f"checkpoint={run}", *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert set(Path("runs").rglob("*")) == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("debug", ["overfit", "smoke"])
def test_debug_configs_take_questions(place, checked, capsys, mode, debug):
    """With the encoder that needs several images a batch: the first 8 examples are of one image."""
    checked(mode)  # the store
    capsys.readouterr()
    small = ["text.width=32", "text.layers=1", "vision.image_size=32", "run.threads=1"]
    asked = ["run.max_steps=2", f"name={mode}-{debug}", f"debug={debug}", *small]
    assert call("train", *DATA, *MODES[mode], *asked, "optim.warmup_steps=0") == 0
    lines = [json.loads(line) for line in Path(f"runs/train/{mode}-{debug}/metrics.jsonl").read_text().splitlines()]
    assert [line["vqa"] for line in lines if line["kind"] == "validation"]
    assert "no training image has more than 0" not in capsys.readouterr().out


def test_two_ranks_predict_what_one_does(place, checked):
    command = ["eval", f"checkpoint={checked('rank').run}", "run.precision=fp32", "eval.blind=shuffled"]
    done = subprocess.run(
        torchrun(2, *command, "name=two", "report.page=false", "decode.batch_size=4", "run.threads=1"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = Path("runs/evaluate/two"), checked("rank").blind["shuffled"]
    assert (two / "per_example.jsonl").read_text().count("\n") == len(found := probabilities(two))
    assert list(found) == list(wanted := probabilities(one))
    assert all(same(found[question], wanted[question]) for question in wanted)
