"""A run folder is whole: it is evaluated and finetuned from anywhere, also when what it was made from is gone."""

import json
import os
import shutil

import pytest
from tiny_models import folder, language_model
from velm import TINY, TINY_MODEL, call

WORDS = ["a red circle above two blue stars", "there is one green ring on a plain background"]
EVAL = ["metrics.names=[bleu]", "report.page=false", "decode=greedy", "limit=4"]
SHORT = ["run.batch_size=4", "run.validate_images=2", "data.captions_per_image=2", "metrics.names=[bleu]"]
MODELS = ["vision=dinov2", "vision.name=models/vision", "vision.image_size=32", "text=causal_lm", "text.name=models/lm",
          "fusion=prefix"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """home/ with a store, pretrained models in models/, and two runs: of these models, and from scratch."""
    home = tmp_path_factory.mktemp("moving") / "home"
    home.mkdir()
    language_model(home / "models/lm", WORDS)
    shutil.copytree(folder("dinov2"), home / "models/vision")
    (home / "models/vision/preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call("train", *TINY, *MODELS, *SHORT, "run.max_steps=2", "name=big") == 0
        assert call("eval", "checkpoint=runs/train/big", *EVAL, "name=before") == 0
        assert call("train", *TINY, *TINY_MODEL, *SHORT, "run.max_steps=2", "name=small") == 0
    return home


@pytest.fixture
def away(trained, monkeypatch):
    """A folder with copies of the runs and of the store alone, as on another machine; the working folder."""
    away = trained.parent / "away"
    shutil.rmtree(away, ignore_errors=True)
    shutil.copytree(trained / "runs/train", away / "taken")
    shutil.copytree(trained / "stores/shapes", away / "data")
    for file in away.glob("taken/*/environment.json"):  # where the runs were is nowhere on this machine
        about = json.loads(file.read_text())
        assert about["folder"] == str(trained)
        file.write_text(json.dumps(about | {"folder": "/gone"}))
    monkeypatch.chdir(away)
    return away


def test_a_copied_run_gives_the_same_captions_without_its_models(trained, away):
    assert call("eval", "checkpoint=taken/big", "dataset.store=data", *EVAL, "name=after") == 0
    before, after = trained / "runs/evaluate/before", away / "runs/evaluate/after"
    assert (after / "predictions.json").read_bytes() == (before / "predictions.json").read_bytes()
    small = sum(file.stat().st_size for group in ("vision", "text") for file in (away / "taken/big" / group).iterdir())
    assert small < 10_000, "configs, no weights"


def test_a_copied_run_is_finetuned_and_that_one_evaluated(away):
    command = ["finetune", "checkpoint=taken/big", "dataset.store=data", *SHORT, "name=on", "vision.freeze=all"]
    assert call(*command, "run.max_steps=1") == 0
    assert call(*command, "run.max_steps=2") == 0, "goes on"
    config = (away / "runs/finetune/on/config.yaml").read_text()
    assert "name: models/vision" in config, "what it is called still tells experiments apart"
    shutil.rmtree(away / "taken")
    assert call("eval", "checkpoint=runs/finetune/on", *EVAL) == 0


def test_training_goes_on_without_the_models(trained, away):
    """Its weights are those of the checkpoint."""
    shutil.copytree(away / "taken/big", away / "runs/train/big")
    shutil.copytree(away / "data", away / "stores/shapes")
    assert call("train", *TINY, *MODELS, *SHORT, "run.max_steps=3", "name=big") == 0


def test_without_a_checkpoint_nothing_is_drawn_in_place_of_pretrained_weights(away, capsys):
    run = away / "runs/train/big"
    shutil.copytree(away / "taken/big", run)
    shutil.copytree(away / "data", away / "stores/shapes")
    for name in ("checkpoints", "best.safetensors", "model.safetensors", "DONE"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).unlink(missing_ok=True)
    assert call("train", *TINY, *MODELS, *SHORT, "run.max_steps=3", "name=big") == 2
    assert "text.name=models/lm could not be fetched" in capsys.readouterr().err


def test_the_folders_of_an_older_run_can_be_given(trained, away, capsys):
    for group in ("vision", "text"):
        shutil.rmtree(away / "taken/big" / group)
    command = ["eval", "checkpoint=taken/big", "dataset.store=data", *EVAL, "name=older"]
    assert call(*command) == 2
    assert "give a local folder with vision.name=FOLDER" in capsys.readouterr().err
    given = [f"{group}.name={trained}/models/{name}" for group, name in (("vision", "vision"), ("text", "lm"))]
    assert call(*command, *given) == 0
    before = trained / "runs/evaluate/before"
    found = away / "runs/evaluate/older/predictions.json"
    assert found.read_bytes() == (before / "predictions.json").read_bytes()
    assert call("eval", "checkpoint=taken/small", "dataset.store=data", *EVAL, given[0]) == 2
    assert "has no effect: taken/small has vision=vit; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["eval", "finetune"])
def test_relative_paths_are_found_from_another_folder(stage, trained, tmp_path, monkeypatch):
    """Data and models are where they were, and the command is given elsewhere."""
    monkeypatch.chdir(tmp_path)
    run = os.path.relpath(trained / "runs/train/big")
    more = EVAL if stage == "eval" else [*SHORT, "run.max_steps=1"]
    assert call(stage, f"checkpoint={run}", *more) == 0


def test_what_was_trained_from_a_weight_file_needs_it_no_more(away):
    import torchvision
    from safetensors.torch import save_file

    save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), "w.safetensors")
    shutil.copytree("data", "stores/shapes")
    vision = ["vision=squeezenet1_1", "vision.weights=w.safetensors", "vision.image_size=64"]
    command = ["train", *TINY, *vision, "text=gru", "fusion=concat", *SHORT, "run.max_steps=1", "name=filled"]
    assert call(*command) == 0
    os.unlink("w.safetensors")
    assert call("eval", "checkpoint=runs/train/filled", *EVAL) == 0
    assert call("finetune", "checkpoint=runs/train/filled", *SHORT, "run.max_steps=1") == 0


def test_a_store_that_is_nowhere_is_named_with_its_place(away, capsys):
    for run in ("small", "big"):
        assert call("eval", f"checkpoint=taken/{run}", *EVAL) == 2
        line = capsys.readouterr().err
        assert "the store stores/shapes does not exist" in line and "it was /gone/stores/shapes" in line
