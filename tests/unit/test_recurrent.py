"""LSTMs and GRUs that compute no padding against torch's."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from velm_cli import schema
from velm_cli.data.packing import Packing, spread
from velm_cli.models.text.recurrent import packed_layer
from velm_cli.models.text.scratch import RecurrentText


def sizes_of(lengths):
    return [sum(length > time for length in lengths) for time in range(max(lengths))]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("lengths", [[1], [4, 4, 4], [7, 5, 5, 2, 1], [3] * 50], ids=str)
def test_states_and_gradients_are_torchs(lengths, kind):
    sizes = sizes_of(lengths)
    cells = kind(6, 6, 2).double()
    x_MD = torch.randn(sum(lengths), 6, dtype=torch.double, requires_grad=True)
    packed, _ = cells(PackedSequence(x_MD, torch.tensor(sizes)))
    ours_MD = packed_layer(packed_layer(x_MD, cells, 0, sizes), cells, 1, sizes)
    dy_MD = torch.randn_like(ours_MD)
    torch.testing.assert_close(ours_MD, packed.data, rtol=1e-12, atol=1e-12)
    inputs = (x_MD, *cells.parameters())
    found, expected = (torch.autograd.grad(y, inputs, dy_MD) for y in (ours_MD, packed.data))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", [schema.LSTMConfig, schema.GRUConfig])
def test_what_gpus_do_says_the_same(config):
    text = RecurrentText(config(width=6, layers=2, dropout=0.0), 20).double()
    packing = Packing.of(np.array([[3, 0, 5], [1, 5, 2]]), 6)
    embedded_NTE = torch.randn(6, 6, 6, dtype=torch.double)
    expected, _ = text.run(embedded_NTE, packing=packing)
    x_MD = embedded_NTE.flatten(0, 1)[packing.by_time_M]
    found = spread(text._by_torch(PackedSequence(x_MD, packing.sizes))[0].data, packing.by_time_M, 6, 6)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_bfloat16_is_as_exact_as_its_products(kind):
    lengths = [20, 18, 11, 11, 3]
    sizes, cells = sizes_of(lengths), kind(64, 64)
    x_MD = torch.randn(sum(lengths), 64, requires_grad=True)
    exact = packed_layer(x_MD, cells, 0, sizes)
    with torch.autocast("cpu", torch.bfloat16):
        rough = packed_layer(x_MD, cells, 0, sizes)
    assert rough.dtype == torch.bfloat16
    inputs = (x_MD, *cells.parameters())
    dy_MD = torch.randn_like(exact)
    pairs = zip(
        [rough, *torch.autograd.grad(rough, inputs, dy_MD.bfloat16())],
        [exact, *torch.autograd.grad(exact, inputs, dy_MD)],
        strict=True,
    )
    errors = [((found.float() - whole).norm() / whole.norm()).item() for found, whole in pairs]
    assert max(errors) < 0.02, errors
