"""The weights that are shown are the weights that were used."""

from __future__ import annotations

import pytest
import torch

from velm_cli.models.fusion.attending import AdditiveAttention
from velm_cli.models.layers import CrossAttention
from velm_cli.models.looking import looks
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.schema import (
    AddConfig,
    AttentionConfig,
    AttentionScore,
    CrossModalConfig,
    GatedConfig,
    PrefixConfig,
    TransformerConfig,
    ViTConfig,
)

VISION = ViTConfig(image_size=32, patch_size=8, width=24, layers=1, heads=2)
TEXT = TransformerConfig(width=16, layers=2, heads=2, dropout=0.0)


@pytest.mark.parametrize("kind", ["dot", "additive"])
def test_a_word_sees_the_weighted_mean_of_the_values(kind):
    torch.manual_seed(torch.seed() % 2**31)
    image_BSD, x_NTD = torch.randn(2, 9, 24), torch.randn(6, 5, 16)
    if kind == "dot":
        layer = CrossAttention(16, 24, heads=1)
        memory = layer.memory(image_BSD)
        value_BSD = memory[1][:, 0]
    else:
        layer = AdditiveAttention(16, 24, inner=8)
        memory = layer.memory(image_BSD)
        value_BSD = memory[1]
    weights_NTS = layer.weights(x_NTD, memory)
    assert weights_NTS.shape == (6, 5, 9)
    seen_NTD = weights_NTS @ value_BSD.repeat_interleave(3, dim=0)
    wanted_NTD = layer.out(seen_NTD) if kind == "dot" else seen_NTD
    torch.testing.assert_close(layer(x_NTD, memory), wanted_NTD)


@pytest.mark.parametrize(
    ("fusion", "attends"),
    [
        (AttentionConfig(score=AttentionScore.dot, heads=2), True),
        (AttentionConfig(score=AttentionScore.additive, width=8), True),
        (CrossModalConfig(layers=2, heads=2), True),
        (GatedConfig(heads=2), True),
        (AddConfig(), False),
        (PrefixConfig(length=2), False),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
@pytest.mark.parametrize("class_tokens", [0, 1])
def test_maps_are_of_the_grid_and_of_each_word(fusion, attends, class_tokens):
    model = VelmModel(vision=VISION, text=TEXT, fusion=fusion, vocab_size=11).eval()
    features = model.encode_image(torch.randn(3, 3, 32, 32))
    extra_BSD = torch.zeros(3, class_tokens, 24)
    features = ImageFeatures(torch.cat([extra_BSD, features.tokens_BSD], dim=1), features.pooled_BD)
    maps_NThw = looks(model, torch.randint(11, (3, 6)), features)
    if not attends:
        assert maps_NThw is None
        return
    assert maps_NThw.shape == (3, 6, 4, 4)
    total_NT = maps_NThw.sum(dim=(2, 3))
    if class_tokens:
        assert (total_NT < 1).all()
    else:
        torch.testing.assert_close(total_NT, torch.ones(3, 6))
    assert not any(part._forward_hooks for part in model.modules())


def test_one_token_is_no_grid():
    model = VelmModel(vision=VISION, text=TEXT, fusion=CrossModalConfig(layers=1, heads=2), vocab_size=11).eval()
    pooled_BD = torch.randn(1, 24)
    assert looks(model, torch.randint(11, (1, 3)), ImageFeatures(pooled_BD[:, None], pooled_BD)) is None
