"""The moving average of the weights, against its formula in double precision, and how it starts."""

import pytest
import torch
from torch import nn

from velm_cli.engine.optim import Ema


@pytest.mark.parametrize("decay", [0.9, 0.998])
def test_the_average_follows_the_formula_also_when_it_goes_on_from_a_checkpoint(decay):
    layer = nn.Linear(3, 2).double()
    ema = Ema(layer, decay)
    expected = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for step in range(150):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter))
        if step == 70:  # of the average alone, as a checkpoint has it
            stored, ema = ema.average, Ema(layer, decay)
            ema.load(stored)
        ema.update(step)
        share = min(decay, (1 + step) / (10 + step))
        expected = {name: share * expected[name] + (1 - share) * p for name, p in layer.named_parameters()}
    for name, average in ema.average.items():
        torch.testing.assert_close(average, expected[name])


def test_a_short_run_exports_its_own_weights_and_not_the_first_ones():
    """Weights that jump from 0 to 1 with the first step: after 200 steps of decay 0.998 the average is there, too."""
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    ema = Ema(layer, 0.998)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for step in range(200):
        ema.update(step)
    assert float(ema.average["weight"]) > 0.999
