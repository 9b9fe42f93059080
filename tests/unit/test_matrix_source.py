"""Every text encoder x fusion that writes, with a source as memory: what must hold of each cell, on tiny sizes.

The vision encoders take turns; without vision the source is all there is to look at.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from one_batch import decode
from test_matrix import BOS, EOS, FUSION, PAD, REFUSED, TEXT, VISION, images, open_gates
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.models.context import BothWays
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures

SEEN = ("convnet", "none", "vit", "pooled")
TAKES_NONE = {"prefix_tokens"}  # validate refuses it: padding between source and text would count as positions
CELLS = [
    (SEEN[number % len(SEEN)], text, fusion)
    for number, (text, fusion) in enumerate(itertools.product(TEXT, sorted(FUSION.keys() - TAKES_NONE)))
    if (text, fusion) not in REFUSED
]


def build(vision: str, text: str, fusion: str, *, layers: int = 2) -> VelmModel:
    TEXT[text]()  # the first to ask for a tiny model makes it, by drawing numbers
    torch.manual_seed(0)
    sees = schema.NoVisionConfig() if vision == "none" else VISION[vision]()
    model = VelmModel(vision=sees, text=TEXT[text](), fusion=FUSION[fusion](), vocab_size=VOCAB, source=layers)
    open_gates(model)
    return model.double()


def pictures(vision: str, count: int) -> torch.Tensor | None:
    return None if vision == "none" else images(vision, count).double()


def context(model: VelmModel, image, source, lengths, image_of=None, **how) -> ImageFeatures:
    features = None if model.vision is None else model.encode_image(image)
    found = model.context(features, image_of, source, lengths, **how)
    assert found is not None
    return found


def logits(model: VelmModel, tokens: torch.Tensor, features: ImageFeatures) -> torch.Tensor:
    return model.logits(model.fusion.read(model.text, tokens, model.memory(features))[0])


@pytest.mark.parametrize("layers", [2, 0])
@pytest.mark.parametrize(("vision", "text", "fusion"), CELLS)
def test_a_source_is_memory(vision, text, fusion, layers):
    model = build(vision, text, fusion, layers=layers).eval()
    image = pictures(vision, 3)
    source, lengths = torch.randint(3, VOCAB, (3, 6)), torch.tensor([6, 4, 2])
    tokens = torch.randint(3, VOCAB, (6, 5))  # two texts an example
    with torch.no_grad():
        features = context(model, image, source, lengths)
        whole = logits(model, tokens, features)
        # What stands behind a source, and how much of it, changes nothing.
        other = torch.cat([source, torch.zeros(3, 3, dtype=torch.long)], dim=1)
        behind = torch.arange(9) >= lengths[:, None]
        other[behind] = torch.randint(3, VOCAB, (int(behind.sum()),))
        for how in ({}, {"multiple": 8}):
            torch.testing.assert_close(logits(model, tokens, context(model, image, other, lengths, **how)), whole)
        # Nor does what other examples have.
        for row in range(3):
            one = slice(row, row + 1)
            alone = context(model, None if image is None else image[one], source[one, : lengths[row]], lengths[one])
            torch.testing.assert_close(
                logits(model, tokens[2 * row : 2 * row + 2], alone), whole[2 * row : 2 * row + 2]
            )
        # Each word of the source matters, the last and the first, and so does their order.
        for place in (0, 3):
            changed = source.clone()
            changed[1, place] = 3 + (changed[1, place] - 2) % (VOCAB - 3)
            moved = (logits(model, tokens, context(model, image, changed, lengths)) - whole).abs().amax(dim=(1, 2))
            assert moved[2:4].min() > 1e-10
            assert moved[[0, 1, 4, 5]].max() < 1e-12
        turned = source.clone()
        turned[0] = turned[0].flip(0)
        assert (logits(model, tokens, context(model, image, turned, lengths)) - whole).abs().max() > 1e-10
        # The future changes nothing; words one by one say the same.
        later = tokens.clone()
        later[:, 3:] = 3 + (later[:, 3:] - 2) % (VOCAB - 3)
        torch.testing.assert_close(logits(model, later, features)[:, :3], whole[:, :3])
        for memory in (model.memory(features), model.fusion.memory_for(features, 1)):
            state = None
            for place in range(5):
                step, state = model.step(tokens[:, place : place + 1], memory, state)
                torch.testing.assert_close(step, whole[:, place], rtol=1e-6, atol=1e-7)
    # Whatever is trained has a gradient, finite and of something.
    model.train()
    model.freeze_unused(text=True, pooled=False, states=False)
    logits(model, tokens, context(model, image, source, lengths)).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.source.parameters())


@pytest.mark.parametrize(("text", "fusion"), [("transformer", "cross_modal"), ("gru", "concat"), ("gpt2", "gated")])
def test_a_source_without_an_encoder_is_read_with_its_image(text, fusion):
    """Which changes the states of its words, as it changes those that a judge reads; nothing else is learned."""
    model, own = (build("convnet", text, fusion, layers=layers).eval() for layers in (0, 2))
    image, source, lengths = pictures("convnet", 2), torch.randint(3, VOCAB, (2, 4)), torch.tensor([4, 3])
    with torch.no_grad():
        found = [context(model, image[[row, row]], source, lengths) for row in (0, 1)]
        words = [features.tokens_BSD[:, features.of_image :] for features in found]
        read, _ = model.fusion.read(model.text, source, model.memory(model.encode_image(image[:1])))
        alone = [context(own, image[[row, row]], source, lengths) for row in (0, 1)]
    assert (words[0] - words[1])[0].abs().amax(-1).min() > 1e-10, "each word has met the image"
    torch.testing.assert_close(words[0][0], model.source.project(read[0]))
    assert torch.equal(*(features.tokens_BSD[:, features.of_image :] for features in alone))
    assert {name.split(".")[0] for name, _ in model.source.named_parameters()} == {
        "project",
        "norm_source",
        "norm_image",
    }


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_source_is_read_from_both_ends(cell):
    """As torch's bidirectional nets do, on texts without their padding."""
    torch.manual_seed(0)
    config = {"lstm": schema.LSTMConfig, "gru": schema.GRUConfig}[cell](width=8)
    both = BothWays(config).eval()
    reference = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](8, 8, batch_first=True, bidirectional=True)
    weights = dict(both.forth.cells.named_parameters())
    weights |= {f"{name}_reverse": part for name, part in both.back.cells.named_parameters()}
    reference.load_state_dict(weights)
    embedded, lengths = torch.randn(4, 6, 8), torch.tensor([6, 3, 1, 5])
    with torch.no_grad():
        found, _ = both.run(embedded, lengths_N=lengths)
        for row, length in enumerate(lengths.tolist()):
            expected, _ = reference(embedded[row : row + 1, :length])
            torch.testing.assert_close(found[row, :length], expected[0])


@pytest.mark.parametrize(("text", "fusion"), [("transformer", "cross_modal"), ("gru", "attention"), ("gpt2", "prefix")])
@pytest.mark.parametrize(("beams", "layers"), [(1, 2), (3, 2), (3, 0)])
def test_examples_are_decoded_as_if_alone(text, fusion, beams, layers):
    """Sources of different lengths, images that are shared, batches that join others."""
    from velm_cli.models.decoding import decode_stream

    model = build("convnet", text, fusion, layers=layers).eval()
    image, image_of = pictures("convnet", 2), torch.tensor([[1], [0], [1], [1], [0]])
    source, lengths = torch.randint(3, VOCAB, (5, 11)), torch.tensor([3, 11, 2, 7, 9])
    config = schema.DecodeConfig(beams=beams, max_length=6)
    options = {"config": config, "bos_id": BOS, "eos_id": EOS, "banned": [PAD, BOS]}

    def memory(rows, **how):
        rows = torch.tensor(rows)
        longest = int(lengths[rows].max())
        with torch.no_grad():
            found = context(model, image, source[rows, :longest], lengths[rows], image_of[rows], **how)
            return model.memory_for(found, config)

    alone = [decode(model, memory([row]), images=1, **options)[0] for row in range(5)]
    batches = [[0, 2], [3], [4, 1]]
    stream = decode_stream(model, ((memory(rows, multiple=8), len(rows)) for rows in batches), **options)
    found = dict(stream)
    assert [found[place] for place in range(5)] == [alone[row] for rows in batches for row in rows]


def test_several_images_of_an_example_stand_side_by_side():
    features = ImageFeatures(torch.randn(3, 4, 5), torch.randn(3, 5))
    found = features.of_examples(torch.tensor([[2, 0], [1, -1], [-1, -1]]))
    assert torch.equal(found.tokens_BSD[0], torch.cat([features.tokens_BSD[2], features.tokens_BSD[0]]))
    assert found.visible_BS.tolist() == [[True] * 8, [True] * 4 + [False] * 4, [True] + [False] * 7]
    torch.testing.assert_close(found.pooled_BD[0], features.pooled_BD[[2, 0]].mean(dim=0))
    assert torch.equal(found.pooled_BD[1], features.pooled_BD[1])
    assert not found.tokens_BSD[2].any() and not found.pooled_BD[2].any()
    one = features.of_examples(torch.tensor([[2], [2]]))
    assert torch.equal(one.tokens_BSD, features.tokens_BSD[[2, 2]]) and one.visible_BS is None
    with pytest.raises(IndexError):
        features.of_examples(torch.tensor([[-1]]))


@pytest.mark.parametrize("fusion", ["cross_modal", "prefix_transformer", "concat"])
@pytest.mark.parametrize("rows", [[1], [2, 0, 1], [0, 2, 2, 1, 2]])
def test_a_memory_of_examples_is_that_of_their_images(fusion, rows):
    torch.manual_seed(0)
    model = VelmModel(vision=VISION["convnet"](), text=TEXT["gru"](), fusion=FUSION[fusion](), vocab_size=VOCAB).eval()
    with torch.no_grad():
        features, tokens = model.encode_image(images("convnet", 3)), torch.randint(3, VOCAB, (len(rows), 4))
        found, _ = model.step(tokens, model.memory(features, torch.tensor(rows)[:, None]))
        expected, _ = model.step(tokens, model.memory(features.select(torch.tensor(rows))))
    torch.testing.assert_close(found, expected)


def test_an_example_without_source_or_image_has_something_to_look_at():
    for vision in ("none", "convnet"):
        model = build(vision, "transformer", "cross_modal").eval()
        source, lengths = torch.randint(3, VOCAB, (2, 4)), torch.tensor([0, 3])
        tokens, image = torch.randint(3, VOCAB, (2, 3)), pictures(vision, 2)
        found = logits(model, tokens, context(model, image, source, lengths))
        assert found.isfinite().all()
        other = source.clone()
        other[0] = 3 + (other[0] - 2) % (VOCAB - 3)
        torch.testing.assert_close(logits(model, tokens, context(model, image, other, lengths)), found)


def test_the_looks_are_at_the_image():
    from velm_cli.models.looking import looks

    model = build("vit", "transformer", "cross_modal").eval()
    source, lengths = torch.randint(3, VOCAB, (2, 6)), torch.tensor([6, 4])
    features = context(model, pictures("vit", 2), source, lengths)
    shares = looks(model, torch.randint(3, VOCAB, (2, 3)), features)
    assert shares.shape == (2, 3, 4, 4)
    assert (shares.sum(dim=(2, 3)) < 1 - 1e-3).all() and (shares > 0).all(), "the rest was for the source"
    blind = build("none", "transformer", "cross_modal").eval()
    assert looks(blind, torch.randint(3, VOCAB, (2, 3)), context(blind, None, source, lengths)) is None
