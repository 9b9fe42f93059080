"""Validation is a look at the weights: it changes nothing, and says the same of the same weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from velm import TINY, TINY_MODEL, call

from velm_cli.engine.device import drawing_from

DRAWING = {  # objectives that draw numbers where they are validated
    "masked": ["loss.text=masked"],
    "patches": ["loss.beta=1", "loss.image=masked_patches", "loss.patch_size=8"],
    "matching": ["loss.gamma=1", "loss.joint=matching"],
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield folder / "runs/train"


def train(name: str, *options: str) -> None:
    assert call("train", *TINY, *TINY_MODEL, f"name={name}", "run.max_steps=6", "metrics.names=[bleu]", *options) == 0


@pytest.mark.parametrize("objective", DRAWING)
def test_how_often_is_validated_changes_no_weight(objective, place):
    for every in (0, 1):
        train(f"{objective}-{every}", *DRAWING[objective], f"run.validate_every={every}")
    never, always = (load_file(place / f"{objective}-{every}" / "model.safetensors") for every in (0, 1))
    assert never.keys() == always.keys()
    assert all(torch.equal(never[name], always[name]) for name in never)


@pytest.mark.parametrize("objective", DRAWING)
def test_the_same_weights_have_the_same_losses(objective, place):
    train(f"{objective}-still", *DRAWING[objective], "run.validate_every=1", "optim.lr=0")
    lines = map(json.loads, (place / f"{objective}-still" / "metrics.jsonl").read_text().splitlines())
    figures = [
        {k: v for k, v in line.items() if k.startswith("loss")} for line in lines if line["kind"] == "validation"
    ]
    assert len(figures) == 6
    assert all(each == figures[0] for each in figures)


def test_draws_go_on_as_if_none_had_been_made_in_between():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with drawing_from(1, torch.device("cpu")):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with drawing_from(1, torch.device("cpu")):
        assert torch.equal(torch.rand(3), inside)
