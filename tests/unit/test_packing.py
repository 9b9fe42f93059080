"""Padding changes nothing: a packed batch has the loss and the gradients of the padded one, and computes less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_matrix import FUSION, TEXT, VISION, images
from tiny_models import VOCAB, batch_of
from torch.utils.flop_counter import FlopCounterMode

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.data.packing import Packing
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant


def test_texts_go_in_and_come_out_again():
    rng = np.random.default_rng()
    for _ in range(200):
        B, K, T, D = rng.integers(1, 6, 4).tolist()
        lengths_BK = rng.integers(0, T + 1, (B, K))
        packing = Packing.of(lengths_BK, T)
        x_NTD = torch.from_numpy(rng.random((B * K, T, D)))
        texts = [[x_NTD[b * K + k, : lengths_BK[b, k]] for k in range(K)] for b in range(B)]
        packed_1MD = packing.pack(x_NTD)
        assert torch.equal(packed_1MD[0], torch.cat([text for row in texts for text in row]))
        padded_NTD, by_image_BYD = packing.pad(packed_1MD), packing.by_image(packed_1MD)
        inside_NT = torch.arange(T) < torch.from_numpy(lengths_BK).view(-1, 1)
        assert torch.equal(padded_NTD, x_NTD * inside_NT[..., None])
        assert by_image_BYD.shape == (B, int(lengths_BK.sum(1).max()), D)
        for row_YD, row in zip(by_image_BYD, texts, strict=True):
            side_by_side = torch.cat(row)
            assert torch.equal(row_YD[: len(side_by_side)], side_by_side)
            assert not row_YD[len(side_by_side) :].any()
        assert torch.equal(packing.pack(padded_NTD), packed_1MD)
        assert torch.equal(packing.pack_images(by_image_BYD), packed_1MD)
        assert packing.image_M.tolist() == [b for b in range(B) for _ in range(lengths_BK[b].sum())]


def task_of(text: str, fusion: str) -> WritingLearner:
    torch.manual_seed(0)
    model = VelmModel(vision=VISION["convnet"](), text=TEXT[text](), fusion=FUSION[fusion](), vocab_size=VOCAB)
    return WritingLearner(model, schema.LossConfig(joint_width=8), concepts=5, weights=constant("text", "joint"))


CELLS = [
    (text, fusion)
    for text in ("transformer", "lstm", "gpt2")
    for fusion in FUSION
    if fusion != "gated" or text == "transformer"  # which it needs
]


@pytest.mark.parametrize(("text", "fusion"), CELLS)
@pytest.mark.parametrize("terms", [{"text"}, {"text", "joint"}])
def test_a_packed_batch_has_the_same_loss_and_gradients(text, fusion, terms):
    task = task_of(text, fusion).double().eval()  # without dropout
    batch = batch_of(images("convnet", 3).double())
    batch.lengths_BK[1, 1] = 0  # an image with fewer captions
    batch = Batch.of(batch.tokens_BKT, batch.lengths_BK, image_XCHW=batch.image_XCHW, labels=batch.labels)
    found = []
    for packs in (True, False):
        task.model.text.packs &= packs
        task.model.fusion.packs &= packs
        task.zero_grad()
        losses = {name: term.sum for name, term in task(batch, Moment(frozenset(terms))).items()}
        sum(losses.values()).backward()
        found.append((losses, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("text", "fusion"), [("transformer", "cross_modal"), ("lstm", "attention"), ("lstm", "concat")]
)
def test_padding_is_hardly_computed(text, fusion):
    """By linear layers and the LSTM, that is: softmax sees padding yet."""
    wide = {"transformer": schema.TransformerConfig(width=128, layers=2, heads=2), "lstm": schema.LSTMConfig(width=128)}
    model = VelmModel(vision=VISION["convnet"](), text=wide[text], fusion=FUSION[fusion](), vocab_size=VOCAB)
    with torch.no_grad():
        memory = model.memory(model.encode_image(images("convnet", 3)))
    tokens_NT = torch.randint(3, VOCAB, (6, 40))
    lengths_BK = np.array([[4, 30], [30, 4], [2, 32]])
    operations = {}
    for name, tokens, lengths in (
        ("text alone", tokens_NT[:, :4], np.full((3, 2), 4)),
        ("packed", tokens_NT, lengths_BK),
        ("padded", tokens_NT, np.full((3, 2), 40)),
    ):
        packing = Packing.of(lengths, tokens.shape[1])
        with FlopCounterMode(display=False) as counted:
            model.fusion.read(model.text, tokens, memory, packing=packing)[0].sum().backward()
        operations[name] = counted.get_total_flops() / (24 if name == "text alone" else lengths_BK.sum())
    assert operations["packed"] < 1.3 * operations["text alone"], operations
    assert operations["padded"] > 2 * operations["text alone"], operations


def test_positions_by_time():
    """The order in which a recurrent net takes them, by brute force."""
    rng = np.random.default_rng()
    for _ in range(30):
        lengths_BK = rng.integers(0, 6, (4, 3))
        lengths_BK[0, 0] = 1
        packing = Packing.of(lengths_BK, 7)
        lengths_N = lengths_BK.flatten()
        longest_first = sorted(range(12), key=lambda text: -lengths_N[text])
        expected = [
            [text * 7 + time for text in longest_first if lengths_N[text] > time] for time in range(lengths_N.max())
        ]
        assert packing.by_time_M.tolist() == [position for row in expected for position in row]
        assert packing.sizes.tolist() == [len(row) for row in expected]
