"""Pictures cut into tiles: the whole and each tile pass the encoder, and everything else finds its way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_matrix import TEXT
from tiny_models import VOCAB, batch_of, folder

from velm_cli import schema
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.looking import looks
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision.tiles import cut, on_picture
from velm_cli.objectives.weights import constant

VIT = schema.ViTConfig(image_size=8, patch_size=4, width=24, layers=2, heads=2, tiles=2)  # 2 x 2 positions a view
TOKENS = schema.PrefixConfig(mapper=schema.PrefixMapper.tokens)
RESAMPLER = schema.PrefixConfig(mapper=schema.PrefixMapper.resampler, length=3, heads=2)


def build(fusion: schema.FusionConfig, vision: schema.VisionConfig = VIT) -> VelmModel:
    torch.manual_seed(0)
    return VelmModel(vision=vision, text=TEXT["transformer"](), fusion=fusion, vocab_size=VOCAB).double().eval()


def picture(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, dtype=torch.double)


def test_views_are_the_whole_and_the_tiles_row_by_row():
    image = torch.arange(36.0).view(1, 1, 6, 6)
    views = cut(image, 3)
    assert views.shape == (10, 1, 2, 2)
    assert views[1].flatten().tolist() == [0, 1, 6, 7] and views[2].flatten().tolist() == [2, 3, 8, 9]
    assert views[4].flatten().tolist() == [12, 13, 18, 19]
    assert views[0, 0, 0, 1] == image[0, 0, :3, 3:].mean()
    two = cut(torch.stack([image[0], -image[0]]), 3)
    assert torch.equal(two[10:], -views)


def test_tokens_are_those_of_each_view_and_pooled_that_of_the_whole():
    model, image = build(TOKENS), picture()
    with torch.no_grad():
        found = model.encode_image(image)
        of_views = model.vision(cut(image, 2))
    assert found.tokens_BSD.shape == (2, 5 * 4, 24)
    assert torch.equal(found.tokens_BSD.view(10, 4, 24), of_views.tokens_BSD)
    assert torch.equal(found.pooled_BD, of_views.pooled_BD[::5])


@pytest.mark.parametrize("shuffle", [1, 2])
def test_every_view_stands_behind_a_position_that_says_which_it_is(shuffle):
    model = build(replace(TOKENS, shuffle=shuffle))
    each = 1 + 4 // shuffle**2
    with torch.no_grad():
        (found,) = model.memory(model.encode_image(picture()))
        (other,) = model.memory(model.encode_image(picture()))
    assert found.shape[1] == 5 * each
    same = (found == other).all(dim=(0, 2)).view(5, each)
    assert same[:, 0].all() and not same[:, 1:].any()
    marks = model.fusion.marks().detach()
    assert len(marks) == 5 and len({tuple(mark.tolist()) for mark in marks}) == 5
    torch.testing.assert_close(marks[1] + marks[4], marks[2] + marks[3])  # row and column, and no more


@pytest.mark.parametrize("fusion", [RESAMPLER, schema.CrossModalConfig(layers=1, heads=2)], ids=lambda f: f.kind)
def test_what_attends_in_any_order_is_told_which_tile_a_token_is_of(fusion):
    """Two tiles that change places are another picture."""
    model, image = build(fusion), picture(1)
    other = torch.cat([image[:, :, :8], image[:, :, 8:].roll(8, 3)], dim=2)
    tokens = torch.randint(3, VOCAB, (1, 4))
    with torch.no_grad():
        features = model.encode_image(image)
        moved = replace(features, tokens_BSD=features.tokens_BSD.clone())
        here, there = model.encode_image(image), model.encode_image(other)
        # The tiles' own tokens, in each other's places: what else differs is the whole.
        moved.tokens_BSD[:, 12:16], moved.tokens_BSD[:, 16:] = there.tokens_BSD[:, 12:16], there.tokens_BSD[:, 16:]
        logits = [model.step(tokens, model.memory(each))[0] for each in (here, moved)]
        assert (logits[0] - logits[1]).abs().max() > 1e-6
        swapped = replace(here, tokens_BSD=here.tokens_BSD[:, [*range(12), *range(16, 20), *range(12, 16)]])
        torch.testing.assert_close(model.step(tokens, model.memory(swapped))[0], logits[0])  # marks are the order


@pytest.mark.parametrize("freeze", ["all", "first:1"])
@pytest.mark.parametrize("fusion", [TOKENS, RESAMPLER], ids=["tokens", "resampler"])
@pytest.mark.parametrize("grid", [0, 1])
def test_what_a_cache_keeps_gives_the_same_and_knows_no_marks(freeze, fusion, grid):
    model, image = build(fusion, replace(VIT, freeze=freeze, grid=grid)).float(), picture().float()
    with torch.no_grad():
        kept = model.kept(image)
        found, again = model.encode_image(image), model.encode_image(None, kept)
        for name, parameter in model.named_parameters():
            if "mark" in name:
                parameter.add_(1.0)
        assert torch.equal(model.kept(image), kept)
    torch.testing.assert_close(again.tokens_BSD, found.tokens_BSD)
    torch.testing.assert_close(again.pooled_BD, found.pooled_BD)
    assert found.tokens_BSD.shape[1] == 5 * (grid or 4)


def test_few_images_are_encoded_at_once_as_many_are(monkeypatch):
    model, image = build(TOKENS), picture(5)
    with torch.no_grad():
        together = model.encode_image(image)
        monkeypatch.setattr(type(model.vision), "images_at_once", 11)  # views: two images
        assert [len(part) for part in model._parts(image)] == [2, 2, 1]
        torch.testing.assert_close(model.encode_image(image).tokens_BSD, together.tokens_BSD)


def test_several_images_have_tiles_each():
    model = build(replace(TOKENS, shuffle=2), replace(VIT, images=2))
    with torch.no_grad():
        features = model.encode_image(picture(3))
        (found,) = model.memory(features, torch.tensor([[0, 1], [2, 0]]))
        (alone,) = model.memory(features, torch.tensor([[0, -1]]))
    assert found.shape[1] == 2 * 5 * 2
    torch.testing.assert_close(found[0, :10], alone[0, :10])


@pytest.mark.parametrize("fusion", [TOKENS, replace(TOKENS, shuffle=2, norm=False), RESAMPLER], ids=str)
@pytest.mark.parametrize("freeze", ["none", "all", "first:1"])
def test_everything_that_is_trained_gets_a_gradient(fusion, freeze):
    model = build(fusion, replace(VIT, freeze=freeze)).float()
    learner = WritingLearner(model, schema.LossConfig(), concepts=0, weights=constant("text")).train()
    loss = learner(batch_of(picture(3).float()), Moment(frozenset({"text"})))["text"]
    loss.sum.backward()
    without = {name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    assert any("mark" in name and p.grad.abs().sum() > 0 for name, p in learner.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["dinov2", "siglip"])
def test_weights_of_an_encoder_have_the_same_names_with_tiles(kind):
    whole = schema.TransformersVisionConfig(name=folder(kind), image_size=16)
    names = [set(build(TOKENS, replace(whole, tiles=tiles)).vision.state_dict()) for tiles in (1, 2)]
    assert names[0] == names[1]
    model = build(TOKENS, replace(whole, tiles=3))
    assert model.image_size == 48
    with torch.no_grad():
        (found,) = model.memory(model.encode_image(picture(1, 48)))
    assert found.shape[1] == 10 * (1 + 4 + (kind == "dinov2"))


def test_a_map_has_every_position_where_it_lies_in_the_picture():
    values = torch.zeros(1, 1, 5 * 5)  # a class token and 2 x 2 positions a view
    values[..., 0] = values[..., 5] = 7.0  # class tokens of the whole and of the first tile
    values[..., 1] = 4.0  # upper left of the whole
    values[..., 5 + 5 + 2] = 1.0  # upper right of the tile in row 1, column 2
    values[..., 5 + 5 + 5 + 3] = 2.0  # lower left of the tile in row 2, column 1
    found = on_picture(values, 2)[0, 0]
    expected = torch.zeros(4, 4)
    expected[:2, :2] = 1.0
    expected[0, 3] = 1.0
    expected[3, 0] = 2.0
    assert torch.equal(found, expected)


def test_where_words_look_is_a_map_of_the_whole_picture():
    model = build(schema.CrossModalConfig(layers=1, heads=2))
    weights = looks(model, torch.randint(3, VOCAB, (2, 3)), model.encode_image(picture()))
    assert weights.shape == (2, 3, 4, 4)
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 3, dtype=weights.dtype))
    assert looks(build(RESAMPLER), torch.randint(3, VOCAB, (2, 3)), model.encode_image(picture())) is None
