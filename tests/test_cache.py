"""`data.cache`: training from cached features is the training that encodes every image every time."""

import fcntl
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import folder
from velm import TINY, TINY_MODEL, call

from velm_cli.data.features import LOCK
from velm_cli.models.weights import load_state

COMMAND = [
    "train", *TINY, *TINY_MODEL, "vision.freeze=all", "run.max_steps=8", "run.validate_every=4", "loss.beta=0.1",
    "loss.gamma=0.1", "metrics.names=[cider]", "run.precision=fp32",
]  # fmt: skip
WAY = sum(1e-3 * step / 100 for step in range(1, 9))  # that a weight can go in eight steps of AdamW in warm-up


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call(*COMMAND, "name=plain") == 0
        yield folder / "runs/train"


def losses(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith(("loss", "cider"))} for line in lines if "step" in line]


@pytest.mark.parametrize(("cache", "tolerance", "share"), [("fp32", 1e-5, 0.02), ("bf16", 3e-2, 0.5)])
def test_the_losses_and_weights_are_those_without_a_cache(place, cache, tolerance, share, capsys):
    assert call(*COMMAND, f"name={cache}", f"data.cache={cache}") == 0
    # the parts that hold the 24 training and 8 validation images: here the store's one part, of all 40
    assert "computed for 40 images" in capsys.readouterr().out
    plain, cached = losses(place / "plain"), losses(place / cache)
    assert len(plain) == len(cached) > 8
    for a, b in zip(plain, cached, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    weights, found = (load_state(place / name / "model.safetensors") for name in ("plain", cache))
    assert weights.keys() == found.keys()
    apart = torch.cat([(tensor - found[name]).abs().flatten() for name, tensor in weights.items()])
    assert apart.mean() < share * WAY
    assert call("eval", f"checkpoint=runs/train/{cache}", "metrics.names=[cider]", "run.precision=fp32") == 0
    assert "features" in capsys.readouterr().out, "an evaluation shares the features"
    assert call("eval", "checkpoint=runs/train/plain", "metrics.names=[cider]", "run.precision=fp32") == 0
    if cache == "fp32":
        plain_captions, captions = (
            json.loads((place.parent / f"evaluate/{name}-shapes-test-beam5/predictions.json").read_text())
            for name in ("plain", cache)
        )
        assert captions == plain_captions


def test_a_second_run_and_a_resumed_one_find_the_features(place, capsys):
    assert call(*COMMAND, "name=again", "data.cache=fp32", "optim.lr=1e-4") == 0
    capsys.readouterr()
    assert call(*COMMAND, "name=again", "data.cache=fp32", "optim.lr=1e-4", "run.max_steps=10") == 0
    out = capsys.readouterr().out
    assert "complete" in out and "computed for" not in out and "resumed at step 8" in out


def test_a_coarser_grid_has_features_of_its_own(place, capsys):
    assert call(*COMMAND, "name=coarse", "data.cache=fp32", "vision.grid=2") == 0
    assert "computed for 40 images" in capsys.readouterr().out
    assert call(*COMMAND, "name=coarse_uncached", "vision.grid=2") == 0
    for a, b in zip(losses(place / "coarse"), losses(place / "coarse_uncached"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    assert losses(place / "coarse") != losses(place / "plain")


def test_joined_blocks_have_features_of_their_own(place, capsys):
    net = ["vision=dinov2", f"vision.name={folder('dinov2')}", "vision.image_size=16", "vision.freeze=all"]
    small = ["text.width=32", "text.layers=1", "text.heads=2", "fusion.layers=1", "fusion.heads=2", "run.max_steps=1"]
    for join in ("[]", "[1]"):
        command = [*net, *small, f"vision.join={join}", "data.cache=fp32", f"name=joined{len(join)}"]
        assert call("train", *TINY, *command, "metrics.names=[cider]") == 0
        assert "computed for 40 images" in capsys.readouterr().out


def test_texts_that_are_read_once_give_the_same_losses(place):
    once = [*COMMAND, "text.freeze=all", "loss.joint=matching"]
    assert call(*once, "name=read_anew") == 0
    assert call(*once, "name=read_once", "data.cache_texts=true") == 0
    for a, b in zip(losses(place / "read_anew"), losses(place / "read_once"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    assert call(*once, "data.cache_texts=true", "dry_run=true") == 0


def test_captions_that_are_read_once_are_learned_from_as_if_read_anew(place):
    """Words are predicted behind a frozen text encoder."""
    once = [*COMMAND, "text.freeze=all", "loss.gamma=0.0"]
    assert call(*once, "name=written_anew") == 0
    assert call(*once, "name=written_once", "data.cache_texts=true") == 0
    for a, b in zip(losses(place / "written_anew"), losses(place / "written_once"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


def test_questions_that_are_read_once_give_the_same_losses(place):
    data = ["dataset.questions=true", "dataset.store=stores/asked", "dataset.root=data/asked"]
    assert call("preprocess", "dataset=shapes", *TINY, *data) == 0
    asked = [word for word in COMMAND if not word.startswith(("loss.", "metrics."))] + [*data, "task=vqa"]
    asked += ["text.freeze=all", "task.min_answers=1"]
    assert call(*asked, "name=asked_anew") == 0
    assert call(*asked, "name=asked_once", "data.cache_texts=true") == 0
    for a, b in zip(losses(place / "asked_anew"), losses(place / "asked_once"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


def test_texts_that_nobody_reads_alone_are_not_kept(place, capsys):
    alone = ["text.freeze=all", "data.cache_texts=true", "name=alone"]
    asked = [word for word in COMMAND if not word.startswith(("loss.", "metrics."))]
    for command in ([*COMMAND, "loss.gamma=0.0", "fusion=prefix"], [*asked, "task=vqa", "fusion=prefix"]):
        assert call(*command, *alone) == 2
        assert "data.cache_texts keeps texts that are read without an image, and none is" in capsys.readouterr().err


def test_views_of_the_training_images_are_kept_beside_the_plain_one(place, capsys):
    more = ["name=views", "data.cache=fp32", "data.views=3", "data.crop_scale=0.5", "data.flip=true"]
    assert call(*COMMAND, *more) == 0
    out = capsys.readouterr().out
    assert "view 2 of 3  computed for 40 images" in out and "view 3 of 3  computed for 40 images" in out
    plain, views = losses(place / "plain"), losses(place / "views")
    # The text's loss of the first step is that of an untrained model; then other images tell in it.
    assert plain[-2]["loss_text"] != pytest.approx(views[-2]["loss_text"], rel=1e-6)
    folders = {
        json.loads(file.read_text()).get("view", 0): file.parent
        for file in (place.parents[1] / "stores/shapes/features").glob("*/about.json")
        if json.loads(file.read_text())["dtype"] == "fp32"
    }
    assert set(folders) == {0, 1, 2}
    first, second, third = (np.load(folders[view] / "part-00000.npy") for view in range(3))
    assert first.shape == second.shape == third.shape
    assert not np.allclose(first, second) and not np.allclose(second, third)
    assert call(*COMMAND, *more, "run.max_steps=10") == 0
    assert "view 3 of 3  complete" in capsys.readouterr().out
    assert call("eval", "checkpoint=runs/train/views", "metrics.names=[cider]", "run.precision=fp32") == 0
    assert "complete" in capsys.readouterr().out, "evaluation sees images as they are"


def test_a_signal_ends_the_computing_of_features_and_the_waiting_for_it(place):
    folder = place.parents[1]
    command = [*COMMAND, "name=stopped", "data.cache=fp32", "vision.width=40"]
    assert call(*command, "run.max_steps=1") == 0
    newest = max((folder / "stores/shapes/features").iterdir(), key=lambda path: path.stat().st_mtime)
    for part in newest.glob("part-*.npy"):
        part.unlink()
    with (newest / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as if another run computed them
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "velm_cli", *command], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        while "waiting for it" not in (line := process.stdout.readline()):
            assert line, "it ended before it waited"
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped by SIGTERM; the same command goes on with the next features" in said
    assert (place / "stopped/PREEMPTED").read_text().startswith("SIGTERM while features were computed")
    assert call(*command) == 0
    assert (place / "stopped/DONE").exists()


def test_the_layers_above_frozen_ones_learn_from_what_those_say(place, capsys):
    command = [*COMMAND, "vision.freeze=first:2"]
    assert call(*command, "name=part-plain") == 0
    assert call(*command, "name=part", "data.cache=fp32") == 0
    assert "computed for 40 images" in capsys.readouterr().out
    plain, cached = losses(place / "part-plain"), losses(place / "part")
    assert len(plain) == len(cached) > 8
    for a, b in zip(plain, cached, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    weights, found = (load_state(place / name / "model.safetensors") for name in ("part-plain", "part"))
    apart = torch.cat([(tensor - found[name]).abs().flatten() for name, tensor in weights.items()])
    assert apart.mean() < 0.02 * WAY
    # those above have learned: the encoder that was frozen whole has other weights now
    assert any(not torch.equal(found[name], whole) for name, whole in load_state(place / "plain/model.safetensors").items()
               if name.startswith("model.vision.") and name in found)  # fmt: skip
    assert call("eval", "checkpoint=runs/train/part", "metrics.names=[cider]", "run.precision=fp32") == 0
    assert "complete" in capsys.readouterr().out, "after training the frozen layers are the same, and so is their cache"
    assert call("eval", "checkpoint=runs/train/part-plain", "metrics.names=[cider]", "run.precision=fp32") == 0
    plain_captions, captions = (
        json.loads((place.parent / f"evaluate/{name}-shapes-test-beam5/predictions.json").read_text())
        for name in ("part-plain", "part")
    )
    assert captions == plain_captions


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (
            "vision.freeze=none",
            "data.cache=bf16 keeps what frozen layers say: use it with vision.freeze=all, or with "
            "vision.freeze=first:n for those below the others",
        ),
        ("vision.freeze=first:1 loss.image=masked_patches", "data.cache=bf16 keeps none: leave it out"),
        (
            "data.flip=true",
            "data.cache=bf16 sees each image in one way: keep several with data.views=4, or leave "
            "data.flip=false data.crop_scale=1 data.colour_jitter=0",
        ),
        ("data.views=2", "data.views=2 would be alike: set data.crop_scale, data.flip or data.colour_jitter too"),
        ("data.views=0", "data.views=0: must be at least 1"),
        (
            "data.cache_texts=true",
            "data.cache_texts keeps what a frozen text encoder says: set text.freeze=all and run.compile=off",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(place, wrong, line, capsys):
    assert call(*COMMAND, "data.cache=bf16", *wrong.split()) == 2
    assert line in capsys.readouterr().err


def test_half_a_detector_is_not_cached(place, capsys):
    assert call("train", *TINY, "vision=rcnn", "vision.freeze=first:1", "data.cache=bf16") == 2
    assert "data.cache=bf16 keeps regions of a wholly frozen detector only" in capsys.readouterr().err


def test_a_dry_run_counts_no_encoder(place, capsys):
    def gflop(*options: str) -> float:
        assert call(*COMMAND, "dry_run=true", *options) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.endswith("GFLOP"))
        return float(line.split()[0])

    capsys.readouterr()
    assert gflop("data.cache=bf16", "vision.width=256") < gflop("vision.width=256")
