"""What a dry run says of positions: as the batches of a training have them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.models.velm import VelmModel
from velm_cli.stages.estimate_memory import Memory, weights_by_part
from velm_cli.stages.estimate_tokens import Taught, rows_of_batches
from velm_cli.stages.image_tokens import image_positions
from velm_cli.stages.positions import position_problems

VIT = schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=1, heads=2)
TOKENS = schema.PrefixConfig(mapper=schema.PrefixMapper.tokens)


def texts(words: list[int]) -> SimpleNamespace:
    return SimpleNamespace(offsets=np.cumsum([0, *words]))


def test_rows_are_counted_as_batches_have_them():
    data = SimpleNamespace(texts=texts([3, 5, 1, 7]), sources=None)
    rows = rows_of_batches(data, positions=10, examples=2, images=2, texts=2, prompts=False)
    # BOS and the words are read: 4 + 6 and 2 + 8 behind an image each; padded, four rows of 10 + 8.
    assert (rows.branches, rows.padded, rows.longest) == (2 * 10 + 20, 4 * 18, 8)
    shared = rows_of_batches(data, positions=10, examples=4, images=1, texts=1, prompts=False)
    assert (shared.branches, shared.padded) == (10 + 20, 4 * 18)
    asked = SimpleNamespace(texts=texts([1, 1, 2, 1]), sources=texts([4, 4, 4, 4]))
    prompts = rows_of_batches(asked, positions=10, examples=4, images=1, texts=1, prompts=True)
    # [BOS, 4 words] and the answer but for its last word and EOS.
    assert prompts.branches == 10 + 4 * 5 + (1 + 1 + 2 + 1)


@pytest.mark.parametrize(
    ("vision", "fusion", "positions"),
    [
        (VIT, TOKENS, 16),
        (VIT, schema.PrefixConfig(mapper=schema.PrefixMapper.tokens, shuffle=2), 4),
        (schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=1, heads=2, tiles=2), TOKENS, 5 * 17),
        (VIT, schema.PrefixConfig(mapper=schema.PrefixMapper.resampler, length=3, heads=2), 3),
        (VIT, schema.ConcatConfig(), 1),
        (VIT, schema.CrossModalConfig(heads=2), 16),
    ],
)
def test_image_positions_are_those_of_the_model(vision, fusion, positions):
    with torch.device("meta"):
        model = VelmModel(vision=vision, text=schema.TransformerConfig(width=16), fusion=fusion, vocab_size=VOCAB)
    assert image_positions(model) == positions


def test_few_tokens_for_many_parameters_are_a_note():
    (line,) = Taught(10, 1_000, "tokens", 3.0).notes("image", 200_000)
    assert line.startswith("note: 200,000 trained parameters for 1,000 tokens of 10 images, 200 for each")
    assert not list(Taught(10, 1_000, "tokens", 3.0).notes("image", 90_000))


def test_memory_of_frozen_parts_is_weights_alone():
    model = VelmModel(
        vision=schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=1, heads=2, freeze="all"),
        text=schema.TransformerConfig(width=16),
        fusion=TOKENS,
        vocab_size=VOCAB,
    )
    learner = torch.nn.Module()
    learner.model = model
    memory = Memory.of(learner, schema.RunConfig(), schema.Precision.fp32, 1000)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.gradients == 4 * trained and memory.optimiser == 8 * trained and memory.activations == 1000
    assert memory.copies == 0 and memory.peak == sum(memory.weights.values()) + 12 * trained + 1000
    assert set(dict(weights_by_part(learner))) == {"vision", "text", "fusion"}
    assert sum(memory.weights.values()) == sum(4 * t.numel() for t in [*model.parameters(), *model.buffers()])
    half = Memory.of(learner, schema.RunConfig(), schema.Precision.bf16, 1000)
    text, fusion = (sum(p.numel() for p in part.parameters() if p.ndim > 1) for part in (model.text, model.fusion))
    assert half.copies == 2 * (text + fusion) and half.activations == 600


def test_a_bag_of_images_has_no_row_of_positions():
    """As many positions of each example stand before its text."""

    def problems(fusion: schema.PrefixConfig, images: int, most: int, talks: object = None) -> list[str]:
        vision = schema.ViTConfig(images=images)
        config = schema.TrainRoot(dataset=schema.ShapesConfig(), vision=vision, fusion=fusion)
        data = SimpleNamespace(store=SimpleNamespace(most_images=most, has_images=True, path="stores/s"), talks=talks)
        return list(position_problems(config, data))

    (line,) = problems(TOKENS, 0, 3)
    assert line.endswith("examples of stores/s have up to 3 images: set vision.images=3, or fusion.mapper=resampler")
    resampler = schema.PrefixConfig(mapper=schema.PrefixMapper.resampler)
    assert not problems(TOKENS, 3, 3) and not problems(TOKENS, 0, 1) and not problems(resampler, 0, 3)
    assert not problems(TOKENS, 0, 3, talks=object())
