"""Dropout whose masks share draws: the same distribution as torch's."""

import pytest
import torch
from tiny_models import VOCAB

from velm_cli.models.fusion import build_fusion
from velm_cli.models.layers import Dropout
from velm_cli.models.text import build_text
from velm_cli.models.vision import ImageFeatures
from velm_cli.schema import CrossModalConfig, TransformerConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_kept_with_their_probability_and_enlarged_by_it(p, dtype):
    count = 400_003  # no multiple of the four that share a draw
    kept = Dropout(p)(torch.ones(count, dtype=dtype))
    values = kept.double().unique()
    assert len(values) == 2 and values[0] == 0
    assert values[1].item() == pytest.approx(1 / (1 - p), rel=2**-8 if dtype == torch.bfloat16 else 1e-3)
    for part in (kept, *(kept[lane::4] for lane in range(4)), kept[: count // 2], kept[count // 2 :]):
        share = (part != 0).double().mean().item()
        assert share == pytest.approx(1 - p, abs=5 * (p * (1 - p) / len(part)) ** 0.5)  # five standard deviations


def test_neighbours_are_dropped_independently():
    dropped = (Dropout(0.3)(torch.ones(1_000_000)) == 0).double() - 0.3
    for distance in (1, 2, 3, 4, 5, 8):
        assert abs((dropped[distance:] * dropped[:-distance]).mean().item() / 0.21) < 0.006  # six standard deviations


def test_what_is_dropped_has_no_gradient_and_the_rest_is_scaled_alike():
    x = torch.randn(7, 5, 3, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.4)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.4)(x), y), "the generator's state decides"


def test_nothing_is_dropped_at_evaluation_or_with_probability_0_and_all_with_1():
    x = torch.randn(10)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    assert Dropout(0.5)(torch.empty(0, 4)).shape == (0, 4)


def test_a_fusion_hides_a_part_of_what_the_text_says_while_it_learns_alone():
    text = build_text(TransformerConfig(width=16, layers=1, heads=2), VOCAB)
    whole = build_fusion(CrossModalConfig(layers=1, heads=2, dropout=0.0), 8, text)
    hidden = build_fusion(CrossModalConfig(layers=1, heads=2, dropout=0.0, text_dropout=0.5), 8, text)
    hidden.load_state_dict(whole.state_dict())
    features, text_NTD = ImageFeatures(torch.randn(2, 5, 8), torch.randn(2, 8)), torch.randn(2, 4, 16)

    def fused(fusion, states_NTD):
        return fusion(states_NTD, fusion.memory(features))[0]

    torch.manual_seed(7)
    learning = fused(hidden, text_NTD)
    torch.manual_seed(7)
    torch.testing.assert_close(learning, fused(whole, Dropout(0.5)(text_NTD)))
    torch.testing.assert_close(fused(hidden.eval(), text_NTD), fused(whole.eval(), text_NTD))
