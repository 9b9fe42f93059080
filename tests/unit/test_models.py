"""Layers and encoders against torch, torchvision and transformers; freezing; text alone. Cells: test_matrix.py."""

from dataclasses import replace

import pytest
import torch
from tiny_models import folder
from torch import nn

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.models.layers import Block, SelfAttention
from velm_cli.models.state import ImageItself, ImageKeys, Rows, select
from velm_cli.models.text import build_text
from velm_cli.models.text.vectors import load_vectors
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.models.vision import build_vision, frozen_stages
from velm_cli.models.vision.interface import averaged
from velm_cli.models.vision.scratch import ViT
from velm_cli.models.weights import Undrawn

VOCAB = 23
VISION = {"vit": schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=2, heads=2)}
TEXT = {
    "transformer": schema.TransformerConfig(width=16, layers=2, heads=2),
    "lstm": schema.LSTMConfig(width=16, layers=2),
}
FUSION = {"concat": schema.ConcatConfig()}


def full_logits(model: VelmModel, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    fused, _ = model.fusion.read(model.text, tokens, model.memory(model.encode_image(image)))
    return model.logits(fused)


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
    wanted = reference(text, repeated, repeated)[0]
    torch.testing.assert_close(own(text, own.memory(image)), wanted)
    torch.testing.assert_close(own(text, ImageItself(image)), wanted)  # without keys and values
    assert isinstance(own.memory_for(image, 6), ImageItself)
    # 4 heads * 10 dimensions of the image a position, against 16 and once 16 * 10: even at 160 / 24 positions.
    assert isinstance(own.memory_for(image, 7), ImageKeys)


def test_resnet_tokens_equal_torchvision(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    reference = torchvision.models.resnet18(weights=None).eval()
    save_file(reference.state_dict(), tmp_path / "resnet18.safetensors")
    config = schema.TorchvisionConfig(net="resnet18", weights=str(tmp_path / "resnet18.safetensors"))
    model = VelmModel(vision=config, text=TEXT["lstm"], fusion=FUSION["concat"], vocab_size=VOCAB).eval()
    image = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)  # as velm lays it out
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
        config = schema.TorchvisionConfig(net=net, weights=str(tmp_path / f"{net}.safetensors"))
        encoder, reference = build_vision(config).double().eval(), reference.double()
        image = torch.randn(1, 3, 64, 64).double()
        tokens = encoder(image).tokens_BSD
        assert encoder.width == tokens.shape[-1] == width
        torch.testing.assert_close(tokens, reference.features(image).flatten(2).transpose(1, 2))


def test_frozen_parts_get_no_gradient_and_keep_their_statistics():
    config = schema.TorchvisionConfig(net="resnet18", image_size=32, weights="none", freeze="first:3")
    model = VelmModel(vision=config, text=TEXT["lstm"], fusion=FUSION["concat"], vocab_size=VOCAB).train()
    before = {name: value.clone() for name, value in model.vision.state_dict().items()}
    full_logits(model, torch.randint(0, VOCAB, (2, 4)), torch.randn(2, 3, 32, 32)).sum().backward()
    frozen = {id(p) for stage in frozen_stages(model.vision, "first:3") for p in stage.parameters()}
    for name, parameter in model.vision.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen), name
    after = model.vision.state_dict()
    moved = {name for name in after if "running_mean" in name and not torch.equal(after[name], before[name])}
    assert moved
    assert all(name.startswith(("parts.3", "parts.4")) for name in moved)


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
    picked = select(state, Rows(torch.tensor([[2], [2], [0]])))
    assert picked[0][0].tolist() == [2, 2, 0]
    assert picked[0][1] is None
    assert picked[1].tolist() == [[4, 5], [4, 5], [0, 1]]


@pytest.mark.parametrize("kind", ["vit", "clip", "dinov2", "siglip"])
def test_transformers_vision_equals_transformers(kind):
    import transformers

    whole = transformers.AutoModel.from_pretrained(folder(kind)).eval()
    reference = whole.vision_model if kind == "clip" else whole
    encoder = build_vision(schema.TransformersVisionConfig(name=folder(kind), image_size=16)).eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features, expected = encoder(image), reference(image)
        torch.testing.assert_close(features.tokens_BSD, expected.last_hidden_state)
        if kind != "vit":  # whose pooler the checkpoint need not have
            torch.testing.assert_close(features.pooled_BD, expected.pooler_output)
        shorter = build_vision(schema.TransformersVisionConfig(name=folder(kind), image_size=16, layer=1)).eval()
        hidden = reference(image, output_hidden_states=True).hidden_states[1]
        norm = {"vit": "layernorm", "dinov2": "layernorm", "siglip": "post_layernorm"}.get(kind)
        modules = {name.rpartition(".")[2]: module for name, module in reference.named_modules()}
        hidden = modules[norm](hidden) if norm else hidden
        torch.testing.assert_close(shorter(image).tokens_BSD, hidden)


def test_torchvision_vit_equals_torchvision(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    reference = torchvision.models.vit_b_16(weights=None).eval()
    torch.nn.init.normal_(reference.heads.head.weight)
    save_file(reference.state_dict(), tmp_path / "vit.safetensors")
    image = torch.randn(1, 3, 224, 224)
    encoder = build_vision(schema.TorchvisionConfig(net="vit_b_16", weights=str(tmp_path / "vit.safetensors"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(reference.heads(encoder(image).pooled_BD), reference(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_causal_lm_logits_equal_transformers(kind):
    import transformers

    reference = transformers.AutoModelForCausalLM.from_pretrained(folder(kind)).eval()
    model = VelmModel(
        vision=schema.NoVisionConfig(),
        text=schema.CausalLMConfig(name=folder(kind)),
        fusion=schema.NoFusionConfig(),
        vocab_size=VOCAB,
    ).eval()
    tokens = torch.randint(0, VOCAB, (3, 6))
    with torch.no_grad():
        states, _ = model.text(tokens)
        torch.testing.assert_close(model.logits(states), reference(tokens).logits)


def test_word_vectors_start_the_embedding(tmp_path):
    (tmp_path / "glove.txt").write_text("dog 1 2 3 4\nwhale 5 6 7 8\ncat 4 3 2 1\ndog 9 9 9 9\n", "utf-8")
    ids, vectors = load_vectors(str(tmp_path / "glove.txt"), {"<pad>": 0, "cat": 5, "dog": 7}, 4)
    assert ids.tolist() == [7, 5]
    torch.testing.assert_close(vectors[0], -vectors[1])
    with pytest.raises(UserError, match=r"has 4 numbers in line 1: say text.width=4"):
        load_vectors(str(tmp_path / "glove.txt"), {"dog": 7}, 300)
    with pytest.raises(UserError, match="knows none of the 1 words"):
        load_vectors(str(tmp_path / "glove.txt"), {"zebra": 7}, 4)
    for number in ("nan", "-inf", "1e38"):
        (tmp_path / "bad.txt").write_text(f"cat 1 2 3 4\ndog 1 {number} 3 4\n")
        with pytest.raises(UserError, match="line 2 is not a word and 4 numbers"):
            load_vectors(str(tmp_path / "bad.txt"), {"cat": 5, "dog": 7}, 4)


def test_more_positions_than_a_language_model_has_are_refused_with_a_line():
    text = build_text(schema.CausalLMConfig(name=folder("gpt2")), 23)
    tokens = torch.zeros(1, 97, dtype=torch.long)
    with pytest.raises(UserError, match=r"text.name=.* has 96 positions, and a text with its images takes 97: make it"):
        text(tokens)
    _, state = text(tokens[:, :96])
    with pytest.raises(UserError, match="takes 97"):
        text(tokens[:, :1], state)


@pytest.mark.parametrize("weights", ["none", "pretrained"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_models_published_in_half_precision_are_float32_here(weights, lora_rank, tmp_path):
    """Evaluation builds the model from its config alone, which names the dtype of the published weights."""
    import transformers

    transformers.LlamaForCausalLM.from_pretrained(folder("llama"), dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    text = schema.CausalLMConfig(name=str(tmp_path), weights=weights, lora_rank=lora_rank)
    model = VelmModel(vision=VISION["vit"], text=text, fusion=schema.PrefixConfig(length=2), vocab_size=VOCAB)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_images_in_parts_are_the_same_images():
    """Without gradients a CPU encodes few images at once."""
    model = VelmModel(
        vision=schema.TorchvisionConfig(net="resnet18", weights="none", image_size=32, freeze="all"),
        text=schema.LSTMConfig(width=8), fusion=schema.ConcatConfig(), vocab_size=10,
    ).eval()  # fmt: skip
    calls = []
    model.vision.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    image_BCHW = torch.randn(19, 3, 32, 32)
    with torch.no_grad():
        found, whole = model.encode_image(image_BCHW), model.vision(image_BCHW)
    assert calls == [8, 8, 3, 19]
    torch.testing.assert_close(found.tokens_BSD, whole.tokens_BSD)
    torch.testing.assert_close(found.pooled_BD, whole.pooled_BD)
    torch.testing.assert_close(model.kept(image_BCHW), whole.packed())


@pytest.mark.parametrize("vision", ["vit", "dinov2"])
def test_a_coarser_grid_is_the_mean_of_its_tokens_and_leaves_the_class_token(vision):
    config = (
        schema.ViTConfig(image_size=24, patch_size=4, width=16, layers=1, heads=2)  # 6 x 6, no class token
        if vision == "vit"
        else schema.TransformersVisionConfig(name=folder("dinov2"), image_size=48)  # patches of 8 pixels
    )
    side = config.image_size
    torch.manual_seed(0)
    fine = VelmModel(vision=config, text=TEXT["transformer"], fusion=schema.ConcatConfig(), vocab_size=VOCAB).eval()
    coarse = VelmModel(
        vision=replace(config, grid=3), text=TEXT["transformer"], fusion=schema.ConcatConfig(), vocab_size=VOCAB
    ).eval()
    coarse.load_state_dict(fine.state_dict())
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        all_of_it, found = fine.encode_image(image), coarse.encode_image(image)
    first = all_of_it.tokens_BSD.shape[1] - 36
    assert first == (vision == "dinov2") and found.tokens_BSD.shape[1] == first + 9
    assert torch.equal(found.pooled_BD, all_of_it.pooled_BD)
    assert torch.equal(found.tokens_BSD[:, :first], all_of_it.tokens_BSD[:, :first])
    for row in range(3):
        for column in range(3):
            cells = [first + 6 * (2 * row + y) + 2 * column + x for y in (0, 1) for x in (0, 1)]
            mean = all_of_it.tokens_BSD[:, cells].mean(dim=1)
            assert torch.allclose(found.tokens_BSD[:, first + 3 * row + column], mean, atol=1e-6)
    kept = coarse.kept(image)  # a cache holds the coarse grid, and gives it back as it is
    assert torch.equal(coarse.encode_image(None, kept).tokens_BSD, found.tokens_BSD)
    with pytest.raises(UserError, match=r"vision.grid=7: the encoder's grid has 6 x 6 positions"):
        averaged(all_of_it, 7)


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip", "vit"])
def test_joined_blocks_say_what_nets_say_that_end_there(kind):
    config = schema.TransformersVisionConfig(name=folder(kind), image_size=16)
    alone = [build_vision(replace(config, layer=layer)).eval() for layer in (1, 2)]
    joined = build_vision(replace(config, join=[1])).eval()
    for net in alone:  # what the tiny models leave to chance, a pooler among it
        net.load_state_dict(joined.state_dict(), strict=False)
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found, each = joined(image), [net(image) for net in alone]
    assert joined.width == 2 * alone[0].width == found.tokens_BSD.shape[-1]
    torch.testing.assert_close(found.tokens_BSD, torch.cat([one.tokens_BSD for one in each], dim=-1))
    torch.testing.assert_close(found.pooled_BD, torch.cat([one.pooled_BD for one in each], dim=-1))


@pytest.mark.parametrize("join", [[2], [0], [1, 1], [3]])
def test_what_is_no_earlier_block_is_not_joined(join):
    with pytest.raises(UserError, match=r"vision.join=.*name blocks before the last one, 2, in"):
        build_vision(schema.TransformersVisionConfig(name=folder("dinov2"), join=join))


@pytest.mark.parametrize("text", ["transformer", "lstm", "gpt2", "llama", "bert", "bloom"])
@pytest.mark.parametrize("vision", ["convnet", "vit", "resnet18", "clip", "dinov2", "siglip"])
def test_a_model_whose_weights_were_not_drawn_is_the_one_whose_weights_it_gets(text, vision):
    """Buffers that no file has (rotary frequencies, position numbers) are there, too."""
    texts = {
        "transformer": schema.TransformerConfig(width=16, layers=1, heads=2),
        "lstm": schema.LSTMConfig(width=16),
        "bert": schema.BertConfig(name=folder("bert"), weights="none"),
    }
    visions = {
        "convnet": schema.ConvNetConfig(image_size=32, width=16),
        "vit": schema.ViTConfig(image_size=32, width=16, layers=1, heads=2),
        "resnet18": schema.TorchvisionConfig(net="resnet18", weights="none", image_size=32),
    }

    def make() -> VelmModel:
        return VelmModel(
            vision=visions.get(vision)
            or schema.TransformersVisionConfig(name=folder(vision), weights="none", image_size=32),
            text=texts.get(text) or schema.CausalLMConfig(name=folder(text), weights="none"),
            fusion=schema.GatedConfig(heads=2) if text != "lstm" else schema.ConcatConfig(),
            vocab_size=VOCAB,
        ).eval()

    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with Undrawn():
        before = torch.get_rng_state()
        other = make()
    if vision in ("vit", "resnet18"):  # others draw a position or a class by torch.randn
        assert torch.equal(torch.get_rng_state(), before), "nothing was drawn"
    other.load_state_dict(model.state_dict(), assign=True)
    other.eval()
    image, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, VOCAB, (2, 5))
    with torch.no_grad():
        wanted, found = (m.step(tokens, m.memory(m.encode_image(image)))[0] for m in (model, other))
    assert torch.equal(found, wanted)
    assert not any(buffer.is_meta for buffer in other.buffers())
