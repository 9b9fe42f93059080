"""Graphs for torch.export and ONNX: the model's numbers and words without velm's code, for any number of images."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import folder, language_model
from velm import TINY, TINY_MODEL, call

import velm_cli
from velm_cli.exporting.graph_files import read_graphs
from velm_cli.exporting.graphs import greedy
from velm_cli.inference.examples import Given

SHORT = ["run.batch_size=4", "run.log_every=1", "run.validate_images=4", "optim.lr=0.01", "metrics.names=[bleu,cider]"]
PARTS = {
    "own": [*TINY_MODEL, "run.max_steps=30"],
    "pretrained": [
        "vision=clip", f"vision.name={folder('clip')}", "vision.image_size=32", "text=gpt2", "text.name=lm", "fusion=prefix",
        "run.max_steps=8",
    ],
    "lstm": ["vision=convnet", "vision.width=32", "text=lstm", "text.width=32", "fusion=attention", "run.max_steps=8"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("graphs")
    language_model(where / "lm", ["a red circle above two blue stars", "there is one green ring"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        for name, parts in PARTS.items():
            assert call("train", "dataset=shapes", *TINY, *parts, *SHORT, f"name={name}") == 0
        yield where


def words(model, runs, images, most):
    """Greedy captions by the graphs, of the pixels that the model itself would get."""
    given = Given([model.stored(image) for image in images])
    pixels, tokenizer = model._able.learner.pixels, model._able.tokenizer
    (batch,) = model._batches(given, len(images))
    mean, std = (torch.tensor(colour).view(1, 3, 1, 1) for colour in (pixels.mean, pixels.std))
    about = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "banned": tokenizer.never_written}
    rows = greedy(runs, batch.image_XCHW * std + mean, max_length=most, **about)
    return [tokenizer.decode(row) for row in rows]


@pytest.mark.parametrize(
    ("run", "form"),
    [("own", "torch_export"), ("own", "onnx"), ("pretrained", "onnx"), ("lstm", "torch_export")],
)
def test_same_logits_and_words(run, form, place, capsys):
    capsys.readouterr()
    assert call("export", f"checkpoint=runs/train/{run}", f"out={run}-{form}", f"format={form}") == 0
    assert "checked     largest difference from the model" in capsys.readouterr().out
    about = json.loads(Path(f"{run}-{form}/config.json").read_text())
    assert about["largest_difference"] < 1e-4 and set(about["graphs"]) == {"encoder", "start", "step"}
    images = sorted(map(str, Path("data/shapes").rglob("*.jpg")))[:7]
    model = velm_cli.load(f"runs/train/{run}", "cpu", precision="fp32")
    runs = read_graphs(Path(f"{run}-{form}"), ["encoder", "start", "step"])
    for some in (images[:1], images):
        assert words(model, runs, some, 12) == model.caption(some, beams=1, max_length=12)


def test_embeddings(place):
    options = ["task=retrieve", *TINY_MODEL, "run.max_steps=4", "run.batch_size=4", "run.log_every=1", "name=joint"]
    assert call("train", "dataset=shapes", *TINY, *options) == 0
    assert call("export", "checkpoint=runs/train/joint", "out=joint", "format=torch_export") == 0
    runs = read_graphs(Path("joint"), ["image_embedding", "text_embedding"])
    model = velm_cli.load("runs/train/joint", "cpu", precision="fp32")
    tokenizer = model._able.tokenizer
    (row,) = tokenizer.encode_batch(["a red circle"])
    tokens = torch.tensor([[tokenizer.bos_id, *row]])
    (vector,) = runs["text_embedding"]([tokens, torch.tensor([tokens.shape[1]])])
    assert vector.numpy() == pytest.approx(model.embed_texts(["a red circle"]), abs=1e-5)


def test_a_graph_that_differs_is_refused(place, capsys, monkeypatch):
    from velm_cli.exporting import graph_files

    monkeypatch.setattr(graph_files, "largest_difference", lambda *_: 0.5)
    assert call("export", "checkpoint=runs/train/own", "out=other", "format=torch_export") == 2
    assert (
        "the graphs differ from the model by 5.0e-01 (tolerance=0.001): nothing is written" in capsys.readouterr().err
    )
    assert not Path("other").exists()


def test_without_onnx_one_line_says_what_to_install(place, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert call("export", "checkpoint=runs/train/own", "out=none", "format=onnx") == 2
    assert 'pip install "velm-cli[onnx]"' in capsys.readouterr().err
