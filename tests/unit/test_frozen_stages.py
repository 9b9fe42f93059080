"""`freeze=first:n`: what an image or a text passes first is frozen, whole; an image can be kept there and gone on from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_matrix import TEXT, VISION
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.models.text import build_text
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import build_vision, frozen_stages
from velm_cli.stages.encoding import _fingerprint, _first

KINDS = [kind for kind in VISION if kind not in ("rcnn", "pooled")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_goes_on_from_any_stage_as_if_it_had_never_stopped(kind):
    config = VISION[kind]()
    encoder = build_vision(config).eval()
    image_BCHW = torch.randn(2, 3, config.image_size, config.image_size)
    whole = encoder(image_BCHW)
    for stages in range(1, len(encoder.stages()) + 1):
        hidden_BSD = encoder.begin(image_BCHW, stages).clone()  # as a cache gives it: in another layout
        assert hidden_BSD.ndim == 3
        found = encoder.finish(hidden_BSD, stages)
        torch.testing.assert_close(found.tokens_BSD, whole.tokens_BSD)
        torch.testing.assert_close(found.pooled_BD, whole.pooled_BD)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_passes_the_frozen_stages_and_one_reaches_the_others(kind):
    config = VISION[kind]()
    image_BCHW = torch.randn(2, 3, config.image_size, config.image_size)
    count = len(build_vision(config).stages())
    for stages in {1, count // 2}:
        encoder = build_vision(dataclasses.replace(config, freeze=f"first:{stages}"))
        assert not encoder.begin(image_BCHW, stages).requires_grad  # no part of it was forgotten
        found = encoder(image_BCHW)
        (found.tokens_BSD.square().sum() + found.pooled_BD.square().sum()).backward()
        trained = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
        free = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        frozen = {id(p) for stage in frozen_stages(encoder, config.freeze) for p in stage.parameters()}
        assert trained == free and free and not frozen
        below = {id(p) for p in _first(encoder, stages).parameters()}
        assert below == {id(p) for p in encoder.parameters() if not p.requires_grad} - _of_pretraining(encoder)


def _of_pretraining(encoder) -> set[int]:
    """Frozen whatever is said, and passed by no image."""
    inside = {id(p) for stage in encoder.stages() for p in stage.parameters()}
    return {id(p) for name, p in encoder.named_parameters() if name.endswith("mask_token") and id(p) not in inside}


@pytest.mark.parametrize("kind", ["vit", "resnet18", "clip", "vit_b_16"])
def test_what_is_kept_belongs_to_the_frozen_weights_alone(kind):
    config = dataclasses.replace(VISION[kind](), freeze="first:2" if kind != "vit_b_16" else "first:1")
    stages = int(config.freeze[-1])

    def model() -> VelmModel:
        torch.manual_seed(0)
        text = schema.TransformerConfig(width=16, layers=1, heads=2)
        return VelmModel(vision=config, text=text, fusion=schema.CrossModalConfig(layers=1, heads=2), vocab_size=VOCAB)

    one, other = model().eval(), model().eval()
    image_BCHW = torch.randn(2, 3, config.image_size, config.image_size)
    kept, anew = one.encode_image(None, one.kept(image_BCHW)), one.encode_image(image_BCHW)
    torch.testing.assert_close(kept.packed(), anew.packed())
    assert _fingerprint(_first(one.vision, stages)) == _fingerprint(_first(other.vision, stages))
    with torch.no_grad():
        for parameter in other.vision.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert _fingerprint(_first(one.vision, stages)) == _fingerprint(_first(other.vision, stages))
    for parameter in _first(other.vision, stages).parameters():
        with torch.no_grad():
            parameter.flatten()[0] += 1
            assert _fingerprint(_first(one.vision, stages)) != _fingerprint(_first(other.vision, stages))
            parameter.flatten()[0] -= 1


@pytest.mark.parametrize("kind", ["gpt2", "causal_lm", "bert"])
def test_embeddings_and_first_layers_of_a_text_model_stay_as_they_are(kind):
    config = dataclasses.replace(TEXT[kind](), freeze="first:1")
    encoder = build_text(config, VOCAB)
    tokens_NT = torch.randint(5, VOCAB, (2, 6))
    entered = []
    encoder.layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: entered.append([*args, *kwargs.values()]), with_kwargs=True
    )
    encoder(tokens_NT)[0].square().sum().backward()
    assert entered and not any(torch.is_tensor(each) and each.requires_grad for each in entered[0])
    learns = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
    later = {f"{name}.{own}" for name, layer in encoder.named_modules() if layer is encoder.layers[1]
             for own, _ in layer.named_parameters()}  # fmt: skip
    assert learns and learns <= {name for name, p in encoder.named_parameters() if p.requires_grad}
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert {name for name in later if name not in learns} <= {name for name in later if name.endswith("key.bias")}
    assert any("embed" in name or "wte" in name for name in frozen) and not frozen & later


def test_more_layers_than_a_text_model_has_cannot_be_frozen():
    with pytest.raises(UserError, match=r"text\.freeze=first:3: this encoder has only 2 layers"):
        build_text(dataclasses.replace(TEXT["causal_lm"](), freeze="first:3"), VOCAB)
