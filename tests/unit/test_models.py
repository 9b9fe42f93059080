"""Interfaces of vision, text and fusion: causality, incremental decoding, padding, freezing, sharing."""

import itertools

import pytest
import torch
from torch import nn

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.models.layers import Block, SelfAttention, select
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.models.vision import ViT, build_vision, frozen_stages

VOCAB = 23
VISION = {
    "vit": schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=2, heads=2),
    "convnet": schema.ConvNetConfig(image_size=16, width=24, stages=2),
    "resnet": schema.ResNetConfig(depth=18, image_size=32),
    "squeezenet": schema.ConvFeaturesConfig(image_size=32),
}
TEXT = {
    "transformer": schema.TransformerConfig(width=16, layers=2, heads=2),
    "lstm": schema.LSTMConfig(width=16, layers=2),
}
FUSION = {"concat": schema.ConcatConfig(), "cross_modal": schema.CrossModalConfig(layers=2, heads=2)}
CELLS = list(itertools.product(VISION, TEXT, FUSION))


def build(vision: str, text: str, fusion: str) -> VelmModel:
    return VelmModel(vision=VISION[vision], text=TEXT[text], fusion=FUSION[fusion], vocab_size=VOCAB)


def images(vision: str, count: int) -> torch.Tensor:
    return torch.randn(count, 3, VISION[vision].image_size, VISION[vision].image_size)


def full_logits(model: VelmModel, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    text, _ = model.text(tokens)
    fused, _ = model.fusion(text, model.memory(model.encode_image(image)))
    return model.logits(fused)


@pytest.mark.parametrize(("vision", "text", "fusion"), CELLS)
def test_matrix_every_cell_learns(vision, text, fusion):
    torch.manual_seed(0)
    model = build(vision, text, fusion).train()
    tokens, image = torch.randint(0, VOCAB, (6, 8)), images(vision, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        logits = full_logits(model, tokens[:, :-1], image)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        unused = {name for name, gradient in gradients.items() if gradient is None}
        assert not unused, f"no gradient for {unused}"
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("vision", "text", "fusion"), CELLS)
def test_matrix_the_future_changes_nothing(vision, text, fusion):
    model = build(vision, text, fusion).eval()
    tokens, image = torch.randint(0, VOCAB, (4, 9)), images(vision, 2)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + torch.randint(1, VOCAB, (4, 4))) % VOCAB
    before, after = full_logits(model, tokens, image), full_logits(model, changed, image)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=1e-5, atol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-4


@pytest.mark.parametrize(("vision", "text", "fusion"), CELLS)
def test_matrix_one_token_at_a_time_equals_the_whole(vision, text, fusion):
    model = build(vision, text, fusion).eval().double()
    tokens, image = torch.randint(0, VOCAB, (6, 7)), images(vision, 3).double()
    whole = full_logits(model, tokens, image)
    memory, state = model.memory(model.encode_image(image)), None
    # one token, then three at once, then one at a time: the state must not care
    for start, stop in [(0, 1), (1, 4), (4, 5), (5, 6), (6, 7)]:
        logits, state = model.step(tokens[:, start:stop], memory, state)
        torch.testing.assert_close(logits, whole[:, stop - 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("vision", "text", "fusion"), CELLS)
def test_matrix_captions_of_an_image_share_it_and_not_each_other(vision, text, fusion):
    """K captions an image at once == each (image, caption) pair alone."""
    model = build(vision, text, fusion).eval().double()
    tokens, image = torch.randint(0, VOCAB, (6, 5)), images(vision, 2).double()
    together = full_logits(model, tokens, image)
    for row in range(6):
        alone = full_logits(model, tokens[row : row + 1], image[row // 3 : row // 3 + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("vision", "text", "fusion"), CELLS)
def test_matrix_the_image_matters(vision, text, fusion):
    model = build(vision, text, fusion).eval()
    tokens = torch.randint(0, VOCAB, (2, 5))
    one, other = full_logits(model, tokens, images(vision, 2)), full_logits(model, tokens, images(vision, 2))
    assert (one - other).abs().max() > 1e-6


def test_self_attention_equals_pytorch():
    own, reference = SelfAttention(16, 4).double(), nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(own.qkv.weight)
        reference.in_proj_bias.copy_(own.qkv.bias)
        reference.out_proj.weight.copy_(own.out.weight)
        reference.out_proj.bias.copy_(own.out.bias)
    x = torch.randn(3, 6, 16).double()
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(own(x, causal=True)[0], reference(x, x, x, attn_mask=mask)[0])
    torch.testing.assert_close(own(x, causal=False)[0], reference(x, x, x)[0])


def test_cross_attention_equals_pytorch_with_repeated_images():
    own = Block(16, 4, 0.0, image_width=10).cross.double()
    reference = nn.MultiheadAttention(16, 4, batch_first=True, kdim=10, vdim=10).double()
    with torch.no_grad():
        reference.q_proj_weight.copy_(own.query.weight)
        reference.k_proj_weight.copy_(own.key_value.weight[:16])
        reference.v_proj_weight.copy_(own.key_value.weight[16:])
        reference.in_proj_bias.copy_(torch.cat([own.query.bias, own.key_value.bias]))
        reference.out_proj.weight.copy_(own.out.weight)
        reference.out_proj.bias.copy_(own.out.bias)
    text, image = torch.randn(6, 5, 16).double(), torch.randn(2, 7, 10).double()
    repeated = image.repeat_interleave(3, dim=0)
    torch.testing.assert_close(own(text, own.memory(image)), reference(text, repeated, repeated)[0])


def test_resnet_tokens_equal_torchvision(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    reference = torchvision.models.resnet18(weights=None).eval()
    save_file(reference.state_dict(), tmp_path / "resnet18.safetensors")
    config = schema.ResNetConfig(depth=18, weights=str(tmp_path / "resnet18.safetensors"))
    model = VelmModel(vision=config, text=TEXT["lstm"], fusion=FUSION["concat"], vocab_size=VOCAB).eval()
    image = torch.randn(2, 3, 64, 64)
    features = model.encode_image(image)
    nodes = nn.Sequential(*list(reference.children())[:-2])(image)
    torch.testing.assert_close(features.tokens_BSD, nodes.flatten(2).transpose(1, 2))
    torch.testing.assert_close(reference.fc(features.pooled_BD), reference(image), rtol=1e-4, atol=1e-5)


def test_squeezenet_and_vgg_tokens_equal_torchvision(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    for net, width in (("squeezenet1_1", 512), ("vgg16", 512)):
        reference = torchvision.models.get_model(net, weights=None).eval()
        save_file(reference.features.state_dict(prefix="features."), tmp_path / f"{net}.safetensors")
        config = schema.ConvFeaturesConfig(net=net, weights=str(tmp_path / f"{net}.safetensors"))
        encoder = build_vision(config).eval()
        image = torch.randn(1, 3, 64, 64)
        tokens = encoder(image).tokens_BSD
        assert encoder.width == tokens.shape[-1] == width
        torch.testing.assert_close(tokens, reference.features(image).flatten(2).transpose(1, 2))


def test_frozen_parts_get_no_gradient_and_keep_their_statistics():
    config = schema.ResNetConfig(depth=18, image_size=32, freeze="first:3")
    model = VelmModel(vision=config, text=TEXT["lstm"], fusion=FUSION["concat"], vocab_size=VOCAB).train()
    before = {name: value.clone() for name, value in model.vision.state_dict().items()}
    full_logits(model, torch.randint(0, VOCAB, (2, 4)), torch.randn(2, 3, 32, 32)).sum().backward()
    frozen = {id(p) for stage in frozen_stages(model.vision, "first:3") for p in stage.parameters()}
    for name, parameter in model.vision.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen), name
    after = model.vision.state_dict()
    moved = {name for name in after if "running_mean" in name and not torch.equal(after[name], before[name])}
    assert moved
    assert all(name.startswith(("layer3", "layer4")) for name in moved)


def test_freezing_more_stages_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"vision.freeze=first:9: this encoder has only 4 stages"):
        frozen_stages(ViT(VISION["vit"]), "first:9")


def test_text_alone_needs_no_image():
    model = VelmModel(
        vision=schema.NoVisionConfig(),
        text=TEXT["transformer"],
        fusion=schema.NoFusionConfig(),
        vocab_size=VOCAB,
    )
    assert model.encode_image(None) is None
    logits, _ = model.step(torch.randint(0, VOCAB, (2, 4)), model.memory(None))
    assert logits.shape == (2, VOCAB)
    assert count_parameters(model) == count_parameters(model.text) + VOCAB


def test_select_reaches_every_tensor_of_a_nested_state():
    state = ((torch.arange(4), None), torch.arange(8).view(4, 2))
    picked = select(state, torch.tensor([2, 2, 0]))
    assert picked[0][0].tolist() == [2, 2, 0]
    assert picked[0][1] is None
    assert picked[1].tolist() == [[4, 5], [4, 5], [0, 1]]
