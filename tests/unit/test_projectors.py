"""From image tokens to positions of a language model: pixel shuffle, projectors, learned queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_matrix import TEXT
from tiny_models import VOCAB, folder

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.models.fusion.projecting import shuffled
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures

TOKENS = schema.PrefixConfig(mapper=schema.PrefixMapper.tokens)
VIT = schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=1, heads=2)


def build(fusion: schema.PrefixConfig, vision: schema.VisionConfig = VIT, text: str = "transformer") -> VelmModel:
    torch.manual_seed(0)
    return VelmModel(vision=vision, text=TEXT[text](), fusion=fusion, vocab_size=VOCAB).double().eval()


def prefix(model: VelmModel, features: ImageFeatures) -> torch.Tensor:
    with torch.no_grad():
        return model.fusion.memory(features)[0]


@pytest.mark.parametrize("factor", [2, 4])
def test_pixel_shuffle_and_linear_projector_equal_those_of_idefics3(factor):
    from transformers import Idefics3Config
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    config = Idefics3Config(
        vision_config={"hidden_size": 24},
        text_config={"hidden_size": 16, "num_attention_heads": 2},
        scale_factor=factor,
    )
    theirs = Idefics3Connector(config).double().eval()
    linear = replace(TOKENS, projector=schema.Projector.linear, norm=False, shuffle=factor)
    model = build(linear, replace(VIT, patch_size=2))
    model.fusion.map.weight.data.copy_(theirs.modality_projection.proj.weight)
    with torch.no_grad():
        features = model.encode_image(torch.rand(3, 3, 16, 16, dtype=torch.double))
        expected = theirs(features.tokens_BSD)
    assert expected.shape[1] == 64 // factor**2
    torch.testing.assert_close(prefix(model, features), expected, rtol=1e-12, atol=1e-12)


def test_a_square_of_the_picture_is_one_position_and_the_squares_stand_row_by_row():
    """A 6 x 6 grid whose tokens are their own row and column; in front of it a class token."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    grid = torch.stack([rows, columns], dim=-1).view(1, 36, 2)
    tokens = torch.cat([torch.full((1, 1, 2), 99.0), grid], dim=1)
    found = shuffled(tokens, 3)
    assert found.shape == (1, 4, 18) and not (found == 99).any()
    for number, (row, column) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        expected = [[row + y, column + x] for y in range(3) for x in range(3)]
        assert found[0, number].view(9, 2).tolist() == expected
    assert torch.equal(shuffled(tokens, 1), tokens)  # without shuffle nothing is left out
    assert torch.equal(shuffled(tokens[:, 1:], 6)[0, 0].view(36, 2), grid[0])


@pytest.mark.parametrize(
    ("side", "factor", "advice"),
    [
        (14, 4, "take fusion.shuffle=2|7|14 or vision.grid=12 or another vision.image_size"),
        (5, 2, "take fusion.shuffle=5 or vision.grid=4 or another vision.image_size"),
        (2, 4, "take fusion.shuffle=2 or another vision.image_size"),
        (1, 2, "take another vision.image_size"),
    ],
)
def test_a_grid_that_is_no_multiple_is_one_line(side, factor, advice):
    with pytest.raises(UserError) as error:
        shuffled(torch.zeros(1, 1 + side * side, 2), factor)
    assert f"fusion.shuffle={factor}: the grid of the image has {side} x {side} positions" in str(error.value)
    assert str(error.value).endswith(advice)


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
def test_a_class_token_is_left_out_of_the_squares(kind):
    vision = schema.TransformersVisionConfig(name=folder(kind), image_size=32)  # 4 x 4 patches
    model = build(replace(TOKENS, shuffle=2), vision)
    with torch.no_grad():
        features = model.encode_image(torch.rand(2, 3, 32, 32, dtype=torch.double))
    found = prefix(model, features)
    assert found.shape[1] == 4
    other = replace(features, tokens_BSD=features.tokens_BSD.clone())
    other.tokens_BSD[:, 0] += 1
    changed = (prefix(model, other) - found).abs().amax((0, 2)) > 0
    assert changed.tolist() == [kind == "siglip", False, False, False]  # which has no class token


def test_several_images_are_shuffled_one_by_one():
    vision = replace(VIT, images=2)
    model = build(replace(TOKENS, shuffle=2), vision)
    with torch.no_grad():
        features = model.encode_image(torch.rand(2, 3, 16, 16, dtype=torch.double))
        both = model.of_examples(features, torch.tensor([[0, 1], [1, 0]]))
        found = prefix(model, both)
    assert found.shape[1] == 8
    alone = [replace(both, tokens_BSD=part, images=1) for part in both.tokens_BSD.chunk(2, dim=1)]
    torch.testing.assert_close(found, torch.cat([prefix(model, one) for one in alone], dim=1))


def test_learned_queries_read_the_image_and_only_what_is_visible():
    model = build(schema.PrefixConfig(mapper=schema.PrefixMapper.resampler, length=5, layers=2, heads=2))
    with torch.no_grad():
        features = model.encode_image(torch.rand(2, 3, 16, 16, dtype=torch.double))
        whole = prefix(model, features)
        assert whole.shape[1] == 5
        # An order of the tokens says nothing: queries attend to all of them.
        shuffled_tokens = features.tokens_BSD[:, torch.randperm(16)]
        torch.testing.assert_close(prefix(model, replace(features, tokens_BSD=shuffled_tokens)), whole)
        visible = torch.ones(2, 16, dtype=torch.bool)
        visible[0, 7:] = False
        few = prefix(model, replace(features, visible_BS=visible))
        cut = replace(features, tokens_BSD=features.tokens_BSD[:1, :7], pooled_BD=features.pooled_BD[:1])
        torch.testing.assert_close(few[:1], prefix(model, cut))
        torch.testing.assert_close(few[1], whole[1])
        assert (few[0] - whole[0]).abs().max() > 1e-6


def test_a_resampler_costs_less_than_blocks_over_all_tokens():
    from torch.utils.flop_counter import FlopCounterMode

    work = {}
    for mapper in (schema.PrefixMapper.transformer, schema.PrefixMapper.resampler):
        with torch.device("meta"):
            model = VelmModel(
                vision=replace(VIT, patch_size=1),
                text=TEXT["transformer"](),
                fusion=schema.PrefixConfig(mapper=mapper, length=4, heads=2),
                vocab_size=VOCAB,
            )
            features = model.encode_image(torch.empty(1, 3, 16, 16))
            with FlopCounterMode(display=False) as counter:
                model.fusion.memory(features)
        work[mapper] = counter.get_total_flops()
    assert work[schema.PrefixMapper.resampler] < 0.5 * work[schema.PrefixMapper.transformer]
