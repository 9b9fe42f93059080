"""`data.cache_texts`: a frozen text encoder reads each caption once, and says the same."""

import pytest
import torch
from tiny_models import folder

from velm_cli import schema
from velm_cli.models.text import build_text
from velm_cli.models.text.remembered import Remembered


@pytest.mark.parametrize("kind", ["bert", "transformer"])
def test_states_of_texts_are_those_of_the_encoder_and_are_made_once(kind):
    config = (
        schema.BertConfig(name=folder("bert"), freeze="all")
        if kind == "bert"
        else schema.TransformerConfig(width=16, layers=1, heads=2, freeze="all")
    )
    text = build_text(config, 23, causal=False).eval()
    read = []
    text.register_forward_pre_hook(lambda _, args: read.append(len(args[0])))
    remembered = Remembered(text)
    tokens_NT = torch.tensor([[1, 5, 6, 7], [1, 5, 0, 0], [1, 5, 6, 7], [0, 0, 0, 0], [1, 9, 4, 0]])
    lengths_N = torch.tensor([4, 2, 4, 0, 3])
    with torch.no_grad():
        expected_NTD, _ = text(tokens_NT, lengths_N=lengths_N)
    read.clear()
    visible_NT = torch.arange(4) < lengths_N[:, None]
    for _ in range(2):
        found_NTD = remembered(tokens_NT, lengths_N)
        torch.testing.assert_close(found_NTD[visible_NT], expected_NTD[visible_NT])
        assert not found_NTD[~visible_NT].any()
    assert read == [4]  # the two alike once, and nothing again
    remembered(tokens_NT[1:2, :3], lengths_N[1:2])  # however they are padded
    assert read == [4]
