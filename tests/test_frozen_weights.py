"""What a run never changes is written once: the same bits as in every file, found again, and missed in one line."""

import json
import os
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import folder, language_model
from velm import TINY, TINY_MODEL, call

from velm_cli.engine import checkpoint
from velm_cli.engine.frozen import Frozen
from velm_cli.errors import UserError
from velm_cli.files import sha256
from velm_cli.models.frozen import narrowed
from velm_cli.models.weights import load_state, read_state

WORDS = ["a red circle above two blue stars", "there is one green ring on a plain background"]
SHORT = [
    "run.batch_size=4", "run.log_every=1", "run.validate_images=4", "data.captions_per_image=2", "metrics.names=[cider]",
    "run.checkpoint_every=2", "run.max_steps=4",
]  # fmt: skip
EVAL = ["dataset=shapes", *TINY[:3], "metrics.names=[cider]", "limit=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two equal runs with a frozen encoder and language model: `once`, and `full` with all weights in every file."""
    where = tmp_path_factory.mktemp("frozen")
    language_model(where / "lm", WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        old_mask = os.umask(0o027)
        assert call(*train("once")) == 0
        os.umask(old_mask)
        patch.setattr(checkpoint, "keep_frozen", lambda *_, **__: Frozen())
        assert call(*train("full")) == 0
    return where


@pytest.fixture
def once(place, tmp_path, monkeypatch):
    """A copy of the run, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("stores", "lm"):
        (tmp_path / name).symlink_to(place / name)
    shutil.copytree(place / "runs/train/once", tmp_path / "runs/train/once")
    return tmp_path / "runs/train/once"


def train(name, *more):
    parts = ["vision=clip", f"vision.name={folder('clip')}", "vision.freeze=all", "text=gpt2", "text.name=lm"]
    parts += ["text.freeze=all", "fusion=prefix", "vision.image_size=32", "seed=3"]
    return ["train", "dataset=shapes", *TINY, *parts, *SHORT, f"name={name}", *more]


def one_line(capsys):
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def weights_of(run):
    return [run / "model.safetensors", run / "best.safetensors", *sorted(run.glob("checkpoints/*/task.safetensors"))]


def test_the_weights_are_the_same_to_the_bit(place):
    once, full = place / "runs/train/once", place / "runs/train/full"
    assert len(weights_of(once)) == 4 and not (full / "frozen.safetensors").exists()
    for ours, theirs in zip(weights_of(once), weights_of(full), strict=True):
        for read in (load_state, lambda path: read_state(path)[0]):
            found, wanted = read(ours), load_file(theirs)
            assert found.keys() == wanted.keys()
            assert all(
                torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in found
            )
    assert (once / "predictions.json").read_bytes() == (full / "predictions.json").read_bytes()


def test_what_never_changes_lies_in_one_file(place):
    once, full = place / "runs/train/once", place / "runs/train/full"
    frozen = load_file(once / "frozen.safetensors")
    everything = load_file(full / "model.safetensors")
    for file in weights_of(once):
        assert not load_file(file).keys() & frozen.keys()
    assert {name.split(".")[1] for name in frozen} == {"vision", "text"}
    trained = {name for name in everything if name not in frozen}
    assert trained and not any(name.startswith("model.text.net.") for name in trained)
    state = json.loads((once / "checkpoints/step-00000004/state.json").read_text())
    assert state["frozen"] == sha256(once / "frozen.safetensors")


def test_files_have_the_modes_of_the_umask(place):
    modes = {
        file.name: stat.S_IMODE(file.stat().st_mode)
        for file in (place / "runs/train/once").rglob("*.*")
        if file.is_file()
    }
    del modes[".lock"]
    assert set(modes.values()) == {0o640}, modes


def test_a_moved_run_is_evaluated_resumed_and_finetuned(once, capsys):
    moved = once.rename(once.with_name("moved"))
    assert call("eval", f"checkpoint={moved}", *EVAL) == 0
    before = sha256(moved / "frozen.safetensors")
    assert call(*train("moved", "run.max_steps=6")) == 0
    assert "resumed at step 4" in capsys.readouterr().out
    assert sha256(moved / "frozen.safetensors") == before
    tuned = [part.replace("text.freeze=all", "text.freeze=none") for part in train("tuned")[1:]]
    assert call("finetune", f"checkpoint={moved}", *tuned) == 0
    run = once.parents[1] / "finetune/tuned"
    start, end = read_state(moved / "best.safetensors")[0], read_state(run / "model.safetensors")[0]
    held = load_file(run / "frozen.safetensors").keys()
    changed = [name for name in start if name.startswith("model.text.net.") and not torch.equal(start[name], end[name])]
    assert changed and not any(name.startswith("model.text.net.") for name in held)


def test_a_run_of_an_older_velm_goes_on(place, once, capsys):
    shutil.copytree(place / "runs/train/full", full := once.with_name("full"))
    for name, run in (("once", once), ("full", full)):
        assert call(*train(name, "run.max_steps=6")) == 0
        assert "resumed at step 4" in capsys.readouterr().out
        assert not load_file(run / "model.safetensors").keys() & load_file(run / "frozen.safetensors").keys()
    assert (once / "frozen.safetensors").read_bytes() == (full / "frozen.safetensors").read_bytes()
    ours, theirs = (read_state(run / "model.safetensors")[0] for run in (once, full))
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})
    assert call("eval", f"checkpoint={full}", *EVAL) == 0


@pytest.mark.parametrize("fault", ["gone", "damaged", "of another run"])
def test_a_missing_or_foreign_file_is_one_line(once, capsys, fault):
    file = once / "frozen.safetensors"
    content = file.read_bytes()
    match fault:
        case "gone":
            file.unlink()
        case "damaged":
            file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "of another run":
            file.write_bytes((once / "model.safetensors").read_bytes())
    assert call("eval", f"checkpoint={once}", *EVAL) == 2
    assert "frozen.safetensors" in one_line(capsys)
    assert call(*train("once", "run.max_steps=6")) == 2
    line = one_line(capsys)
    assert "frozen.safetensors" in line and "put the run's own back" in line
    assert len(list(once.glob("checkpoints/step-*"))) == 2, "checkpoints that it belongs to stay where they are"
    file.write_bytes(content)
    assert call("eval", f"checkpoint={once}", *EVAL) == 0


def test_the_frozen_part_is_no_model(once, capsys):
    assert call("eval", f"checkpoint={once}/frozen.safetensors", *EVAL) == 2
    assert f"holds only what its run never changed: give the run folder, {once}" in one_line(capsys)


def test_weights_alone_are_not_a_model(once, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("best.safetensors", "config.yaml"):
        shutil.copy(once / name, alone)
    shutil.copytree(once / "tokenizer", alone / "tokenizer")
    assert call("eval", f"checkpoint={alone}/best.safetensors", *EVAL) == 2
    line = one_line(capsys)
    assert "holds only what its run trained" in line and "give the whole run folder" in line


def test_a_run_that_trains_everything_has_no_such_file(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stores").symlink_to(place / "stores")
    (tmp_path / "runs/train/all").mkdir(parents=True)
    assert call("train", "dataset=shapes", *TINY, *TINY_MODEL, *SHORT, "name=all") == 0
    assert not (tmp_path / "runs/train/all/frozen.safetensors").exists()


def test_fractions_are_kept_in_the_smallest_type_that_is_exact():
    coarse, fine = torch.tensor([1.0, -0.0, 2.0**100, 2.0**-126]), torch.tensor([1.0009765625])
    assert narrowed(coarse).dtype is torch.bfloat16
    assert narrowed(fine).dtype is torch.float16
    for odd in (torch.tensor([0.1]), torch.tensor([1.0009765625, 1e6 + 1])):
        assert narrowed(odd).dtype is torch.float32
    for tensor in (coarse, fine):
        assert torch.equal(narrowed(tensor).float().view(torch.int32), tensor.view(torch.int32))
    assert narrowed(torch.tensor([3])).dtype is torch.int64
    assert narrowed(torch.zeros(2, dtype=torch.float64)).dtype is torch.float64
    assert narrowed(torch.zeros(2).bfloat16()).dtype is torch.float32, "or reading would make another type of it"


@pytest.mark.parametrize("change", ["the key", "the word", "the digest"])
def test_metadata_that_has_changed_gives_no_part_of_a_model(once, change):
    file = once / "best.safetensors"
    content = file.read_bytes()
    old, new = {
        "the key": (b"velm_crc32", b"velm_crc33"),
        "the word": (b" frozen:", b" frozdn:"),
        "the digest": (b" frozen:", b" frozen:0"),
    }[change]
    if change == "the digest":  # of the same length: the header's is in front of it
        at = content.index(old) + len(old)
        content = content[:at] + (b"0" if content[at : at + 1] != b"0" else b"1") + content[at + 1 :]
    else:
        content = content.replace(old, new, 1)
    file.write_bytes(content)
    for read in (load_state, read_state):
        with pytest.raises(UserError):
            read(file)
