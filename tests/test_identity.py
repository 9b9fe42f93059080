"""A result is of the weights and data that were really used: they are read once, and known again by their content."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from velm import TINY, TINY_MODEL, call

from velm_cli.data.opening import open_store
from velm_cli.data.tokenizer import SpecialIds, Tokenizer
from velm_cli.files import read_sealed, sealed, sha256
from velm_cli.models import weights
from velm_cli.stages import evaluate_run

EVAL = ["metrics.names=[bleu]", "report.page=false", "decode=greedy"]
FINETUNE = ["finetune", "run.max_steps=2", "run.batch_size=4", "metrics.names=[bleu]"]
WORD = "model.text.embedding.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call("train", *TINY, *TINY_MODEL, "name=source", "run.max_steps=3", "metrics.names=[bleu]") == 0
        yield folder


@pytest.fixture
def run(place, request):
    """A copy of the trained run for the test alone; its best weights may be replaced."""
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    shutil.copytree(place / "runs/train/source", place / "runs/train" / name)
    return place / "runs/train" / name


def change(run, edit) -> None:
    state = load_file(run / "best.safetensors")
    edit(state)
    save_file(state, run / "best.safetensors.new")
    os.replace(run / "best.safetensors.new", run / "best.safetensors")


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    assert said.startswith("velm: ") and said.count("\n") == 1, said
    return said


def test_captions_are_of_the_weights_whose_digest_is_kept(run, monkeypatch):
    """The file is replaced as soon as it has been read: what was read counts, and it is not read again."""
    read, seen = weights.read_state, []

    def replaced_after(path, *of_run):
        seen.append(sha256(path))
        found = read(path, *of_run)
        change(run, lambda state: state[WORD].mul_(-1))
        return found

    monkeypatch.setattr("velm_cli.loading.read_state", replaced_after)
    used = []
    load_task = evaluate_run.trained_learner

    def loaded(*args):
        used.append(load_task(*args))
        return used[-1]

    monkeypatch.setattr(evaluate_run, "trained_learner", loaded)
    first = load_file(run / "best.safetensors")[WORD]
    assert call("eval", f"checkpoint={run}", "name=replaced", *EVAL) == 0
    assert torch.equal(used[0].model.text.embedding.weight, first)
    assert [read_sealed(run.parent.parent / "evaluate/replaced/weights.json")["sha256"]] == seen
    assert sha256(run / "best.safetensors") != seen[0]


def test_an_evaluation_notices_that_its_store_holds_other_data(run, place, capsys):
    command = ["eval", f"checkpoint={run}", *EVAL]
    assert call(*command) == call(*command) == 0
    assert "is complete" in capsys.readouterr().out
    folder = place / f"runs/evaluate/{run.name}-shapes-test-greedy"
    kept = (folder / "predictions.json").read_bytes()
    for part in ("stores", "data"):
        shutil.copytree(place / part, place / f"{part}.kept")
        shutil.rmtree(place / part)
    try:
        assert call("preprocess", "dataset=shapes", *TINY, "dataset.draw_seed=9", "dataset.store=stores/shapes") == 0
        capsys.readouterr()
        assert call(*command) == 0
        said = capsys.readouterr().out
        assert "is complete" not in said and "note: stores/shapes has other data now (" in said
        about = read_sealed(place / f"{folder}.2/weights.json")
        assert about["data"] == open_store(place / "stores/shapes").hash
        assert (folder / "predictions.json").read_bytes() == kept
    finally:
        for part in ("stores", "data"):
            shutil.rmtree(place / part)
            (place / f"{part}.kept").rename(place / part)


def test_an_evaluation_of_an_older_velm_does_not_say_its_data_and_stays_complete(run, place, capsys):
    assert call("eval", f"checkpoint={run}", "name=older", *EVAL) == 0
    file = place / "runs/evaluate/older/weights.json"
    about = read_sealed(file)
    del about["data"]
    file.write_text(json.dumps(sealed(about)))
    assert call("eval", f"checkpoint={run}", "name=older", *EVAL) == 0
    assert "older is complete" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["checkpoint", "init.vision", "init.text"])
def test_a_run_from_other_weights_is_another_run(option, run, place, capsys):
    """Refused when it is complete, and when it would go on."""
    name = f"from-{option}"
    command = [*FINETUNE, f"checkpoint={run}", f"name={name}"]
    if option != "checkpoint":
        command = [
            "train",
            *TINY,
            *TINY_MODEL,
            "metrics.names=[bleu]",
            "run.max_steps=2",
            f"{option}={run}",
            f"name={name}",
        ]
    assert call(*command) == call(*command) == 0
    assert "complete" in capsys.readouterr().out
    folder = place / "runs" / command[0] / name
    assert read_sealed(folder / "sources.json")[option]["sha256"] == sha256(run / "best.safetensors")
    kept = (folder / "model.safetensors").read_bytes()
    change(run, lambda state: state[WORD].mul_(2))
    for more in ([], ["run.max_steps=4"]):
        assert call(*command, *more) == 2
        assert f"{option}) has changed since then; give another name=, or fresh=true" in one_line(capsys)
    assert (folder / "DONE").exists() and (folder / "model.safetensors").read_bytes() == kept
    (folder / "sources.json").unlink()  # as an older velm left it
    assert call(*command, "run.max_steps=4") == 0


def test_a_run_does_not_go_on_with_other_data(run, place, capsys):
    """By what it notes itself, and where that is gone by its checkpoints; an older velm's, which says nothing, does."""
    command = ["train", *TINY, *TINY_MODEL, f"name={run.name}", "run.max_steps=4", "metrics.names=[bleu]"]
    saved, now = read_sealed(run / "sources.json"), open_store(place / "stores/shapes").hash[:12]
    (run / "sources.json").write_text(json.dumps(sealed(saved | {"store": "0" * 64})))
    assert call(*command) == 2
    line = one_line(capsys)
    assert "the store stores/shapes of hash 000000000000, and stores/shapes now has " + now in line
    assert f"velm finetune checkpoint={run.relative_to(place)}" in line and "another name=, or fresh=true" in line
    (run / "sources.json").write_text(json.dumps(sealed({"run": saved["run"]})))
    (state,) = run.glob("checkpoints/*/state.json")
    of_checkpoint = read_sealed(state)
    assert {key: of_checkpoint[key] for key in ("store", "tokenizer")} == {
        key: saved[key] for key in ("store", "tokenizer")
    }
    state.write_text(json.dumps(sealed(of_checkpoint | {"store": "0" * 64})))
    assert call(*command) == 2
    assert "was trained with another store (000000000000) than this one" in one_line(capsys)
    del of_checkpoint["store"], of_checkpoint["tokenizer"]
    state.write_text(json.dumps(sealed(of_checkpoint)))
    assert call(*command) == 0
    assert read_sealed(run / "sources.json")["store"] == saved["store"], "noted from now on"


def test_weights_are_used_with_the_tokenizer_that_they_were_trained_with(run, capsys):
    """Another one with a right digest, and as many words: nothing else could tell."""
    folder = run / "tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text())
    words = model["model"]["vocab"]
    ordinary = sorted(word for word in words if word.isalpha())
    model["model"]["vocab"] = words | dict(zip(ordinary, (words[word] for word in reversed(ordinary)), strict=True))
    saved = Tokenizer.load(folder)
    Tokenizer(json.dumps(model), SpecialIds(saved.pad_id, saved.bos_id, saved.eos_id, saved.unk_id)).save(folder)
    for command in (["eval", *EVAL], FINETUNE):
        assert call(*command, f"checkpoint={run}", "name=other-words") == 2
        line = one_line(capsys)
        assert f"{run} was trained with another tokenizer" in line and "put back the one" in line
    resumed = read_sealed(run / "sources.json") | {"tokenizer": "0" * 64}
    (run / "sources.json").write_text(json.dumps(sealed(resumed)))
    assert call("train", *TINY, *TINY_MODEL, f"name={run.name}", "run.max_steps=4", "metrics.names=[bleu]") == 2
    assert "another tokenizer (000000000000) than this one" in one_line(capsys)
    (run / "sources.json").unlink()  # as an older velm left it
    assert call("eval", *EVAL, f"checkpoint={run}", "name=other-words") == 0


def test_a_folder_of_ones_own_is_no_run(place, capsys):
    own = place / "runs/train/thesis"
    own.mkdir()
    (own / "environment.json").write_text("mine")
    assert call("train", *TINY, *TINY_MODEL, "name=thesis", "run.max_steps=2") == 2
    assert "runs/train/thesis is not a run of velm and holds environment.json" in one_line(capsys)
    assert [path.name for path in own.iterdir()] == ["environment.json"]
    assert (own / "environment.json").read_text() == "mine"


@pytest.fixture(scope="module")
def other(place):
    """Another run of the same sizes, of another seed."""
    assert call("train", *TINY, *TINY_MODEL, "name=other", "seed=1", "run.max_steps=3", "metrics.names=[bleu]") == 0
    return place / "runs/train/other"


def test_a_checkpoint_of_another_run_is_not_gone_on_from(run, other, capsys):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    assert call("train", *TINY, *TINY_MODEL, f"name={run.name}", "run.max_steps=4", "metrics.names=[bleu]") == 2
    assert "checkpoints/step-00000003 is of another run" in one_line(capsys)


def test_weights_of_another_run_are_not_taken_for_its_own(run, other, capsys):
    for name in ("best.safetensors", "model.safetensors"):
        shutil.copy(other / name, run / name)
    for command in (["eval", *EVAL], FINETUNE):
        assert call(*command, f"checkpoint={run}", "name=foreign") == 2
        assert "best.safetensors holds the weights of another run" in one_line(capsys)
    assert (
        call(
            "train", *TINY, *TINY_MODEL, f"name={run.name}", "run.max_steps=3", "run.threads=1", "metrics.names=[bleu]"
        )
        == 2
    )
    assert "best.safetensors holds the weights of another run" in one_line(capsys)


def test_scores_of_other_weights_are_not_shown_for_its_own(place, other, capsys):
    for name, trained in (("mine", "source"), ("others", "other")):
        assert call("eval", f"checkpoint=runs/train/{trained}", f"name={name}", *EVAL) == 0
    for file in ("predictions.json", "scores.json", "per_image.jsonl"):
        shutil.copy(place / "runs/evaluate/others" / file, place / "runs/evaluate/mine" / file)
    capsys.readouterr()
    assert call("eval", "checkpoint=runs/train/source", "name=mine", *EVAL) == 2
    assert "scores.json is of other weights than weights.json names" in one_line(capsys)


def test_an_evaluation_with_other_document_frequencies_is_another(run, place, capsys):
    captions = ["predictions=runs/train/source/predictions.json", "references=runs/train/source/per_image.jsonl"]
    how = [f"checkpoint={run}", "name=by-df", "metrics.names=[cider]", "metrics.df=df.npz", *EVAL[1:]]
    folders = []
    for number in range(2):
        if number:  # other frequencies under the same name
            (place / "df.npz").unlink()
            rows = (place / "runs/train/source/per_image.jsonl").read_text().splitlines()
            (place / "fewer.jsonl").write_text("\n".join(rows[:5]))
            captions = ["predictions=fewer.jsonl", "references=fewer.jsonl"]
        assert call("score", *captions, "metrics.names=[bleu]", "save_df=df.npz") == 0
        for _ in range(2):  # the second time it is complete
            assert call("eval", *how) == 0
        folders.append(capsys.readouterr().out.count("is complete"))
    assert folders == [1, 1] and (place / "runs/evaluate/by-df.2/DONE").exists()


def test_tokens_of_another_store_are_refused(place, capsys):
    capsys.readouterr()
    assert (
        call(
            "preprocess",
            "dataset=shapes",
            *TINY,
            "dataset.draw_seed=1",
            "dataset.root=more",
            "dataset.store=more-store",
        )
        == 0
    )
    ours, theirs = ({path.name.rpartition("-")[2]: path for path in (place / store / "tokens").iterdir() if path.is_dir()}
                    for store in ("stores/shapes", "more-store"))  # fmt: skip
    for length, folder in ours.items():
        kept = folder.with_name("kept")
        folder.rename(kept)
        shutil.copytree(theirs[length], folder)
        capsys.readouterr()
        try:  # the tests that follow use the same store
            assert call("train", *TINY, *TINY_MODEL, "name=other-tokens", "run.max_steps=1") == 2
            assert "they are of the texts of another store" in one_line(capsys)
        finally:
            shutil.rmtree(folder)
            kept.rename(folder)


def cast(kind):
    return lambda state: state.update({name: tensor.to(kind) for name, tensor in state.items()})


def one_number(value):
    return lambda state: state[WORD][3].fill_(value)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "one"])
def test_weights_of_other_floating_types_are_read_as_the_models(kind, run):
    if kind == "one":
        change(run, lambda state: state.update({WORD: state[WORD].half()}))
    else:
        change(run, cast(getattr(torch, kind)))
    assert call("eval", f"checkpoint={run}", f"name=cast-{kind}", *EVAL) == 0
    assert call(*FINETUNE, f"checkpoint={run}", f"name=cast-{kind}") == 0


HOPELESS = {
    "int8": (cast(torch.int8), "is int8, the model's is float32: save the weights as float32"),
    "nan": (one_number(float("nan")), "holds numbers that are not finite (model.text.embedding.weight)"),
    "inf": (one_number(float("inf")), "holds numbers that are not finite (model.text.embedding.weight)"),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_weights_that_are_none_are_refused_in_one_line(kind, run, capsys):
    edit, expected = HOPELESS[kind]
    change(run, edit)
    for command in (["eval", *EVAL], FINETUNE):
        assert call(*command, f"checkpoint={run}", f"name={kind}") == 2
        assert expected in one_line(capsys)


def test_folders_called_as_weights_are_none(run, capsys):
    for name in ("best.safetensors", "model.safetensors"):
        (run / name).unlink()
        (run / name).mkdir()
    assert call("eval", f"checkpoint={run}", *EVAL) == 2
    assert "has no weights yet" in one_line(capsys)
    assert call("eval", f"checkpoint={run}/best.safetensors", *EVAL) == 2
    assert "is a folder; give a .safetensors or .pth file in it" in one_line(capsys)
