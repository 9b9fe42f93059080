"""What velm uses of transformers beyond its documented interface, vision side: each test fails with what changed and who needs it."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
import transformers
from tiny_models import folder
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from velm_cli.models.transformers_internals import (
    FAMILIES,
    TABLES,
    any_size,
    attends_quickly,
    blocks_of,
    embed,
    parts_of,
    pass_block,
    tables_of,
)

KINDS = {"vit": "vit", "clip": "clip", "dinov2": "dinov2", "siglip": "siglip_vision_model"}  # folder: model_type
BLOCKS = 2  # of the tiny models
SIDE = 24  # other than their own 16


def net_of(kind: str) -> nn.Module:
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    config = transformers.AutoConfig.from_pretrained(folder(kind))
    config = getattr(config, "vision_config", config)
    maker = getattr(transformers, FAMILIES[KINDS[kind]].class_name)
    return maker.from_pretrained(folder(kind), config=config, **options).eval()


def changed(what: str, needed_by: str) -> str:
    return f"transformers {transformers.__version__}: {what}; needed by {needed_by}"


@pytest.mark.parametrize("kind", KINDS)
def test_model_types_are_those_of_families(kind):
    found = transformers.AutoConfig.from_pretrained(folder(kind)).model_type
    assert found == KINDS[kind], changed(f"the model_type of {kind} is {found}", "FAMILIES (vision.name)")
    assert hasattr(transformers, FAMILIES[found].class_name), changed(
        f"{FAMILIES[found].class_name} is gone", "FAMILIES (vision.name)"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_names_of_their_family(kind):
    family = FAMILIES[KINDS[kind]]
    names = {"embeddings", *filter(None, family[1:])}
    missing = names - parts_of(net_of(kind), family).keys()
    assert not missing, changed(f"{kind} has no part {missing}", "parts_of (vision.freeze=first:n with data.cache)")


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_list_of_modules_is_the_blocks(kind):
    net = net_of(kind)
    found = blocks_of(net)
    assert len(found) == net.config.num_hidden_layers == BLOCKS, changed(
        f"{kind} keeps {len(found)} modules in its longest list", "blocks_of (vision.layer, vision.freeze=first:n)"
    )
    del found[1:]
    assert len(net(torch.randn(1, 3, 16, 16), output_hidden_states=True).hidden_states) == 2, changed(
        f"{kind} runs other blocks than its list holds", "vision.layer"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_blocks_make_what_the_net_makes(kind):
    net = net_of(kind)
    image_BCHW = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        wanted = net(image_BCHW, output_hidden_states=True, **any_size(net)).hidden_states
        parts = parts_of(net, FAMILIES[KINDS[kind]])
        x_BSD = embed(net.get_submodule(parts["embeddings"]), image_BCHW)
        if "pre_layrnorm" in parts:
            x_BSD = net.get_submodule(parts["pre_layrnorm"])(x_BSD)
        torch.testing.assert_close(
            x_BSD, wanted[0], msg=changed(f"{kind}'s embeddings are not what its first block gets", "embed")
        )
        out = pass_block(blocks_of(net)[0], x_BSD)
    assert isinstance(out, torch.Tensor), changed(f"a block of {kind} returns a {type(out).__name__}", "pass_block")
    torch.testing.assert_close(
        out, wanted[1], msg=changed(f"{kind}'s first block makes something else of its input", "pass_block")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_other_sizes_are_taken(kind):
    net = net_of(kind)
    positions = net(torch.randn(1, 3, SIDE, SIDE), **any_size(net)).last_hidden_state.shape[1]
    wanted = (SIDE // 8) ** 2 + (kind != "siglip")
    assert positions == wanted, changed(
        f"{kind} makes {positions} positions of {SIDE} pixels: {signature(net.forward)}", "any_size (vision.image_size)"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_that_is_no_matrix_is_among_the_tables(kind):
    """Linear maps and convolutions hold matrices, norms vectors; what else there is must have a name velm knows."""
    net = net_of(kind)
    known = {
        f"{path}.{name}".lstrip(".")
        for path, part in net.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.MultiheadAttention))
        for name, _ in part.named_parameters(recurse=False)
    }
    tables = tables_of(net)
    others = {
        name
        for name, parameter in net.named_parameters()
        if parameter.ndim > 1
        and name not in known
        and not any(name == table or name.startswith(f"{table}.") for table in tables)
    }
    assert not others, changed(f"{kind} has parameters {others}, which are not in {sorted(TABLES)}", "no_decay")
    assert tables, changed(f"{kind} has no positions by the names {sorted(TABLES)}", "tables_of (no_decay)")


def test_blocks_are_passed_with_and_without_a_mask():
    """transformers 5.17's DINOv2 knows no mask; some families of every release require one."""

    class Without(nn.Module):
        def forward(self, hidden_states):
            return hidden_states + 1

    class Required(nn.Module):
        def forward(self, hidden_states, attention_mask, **kwargs):
            assert attention_mask is None
            return hidden_states + 1

    for block in (Without(), Required()):
        assert pass_block(block, torch.zeros(1)) == 1


class Repeated(TorchDispatchMode):
    """How many products have one matrix for all of a batch, of which torch makes as many copies."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.bmm.default:
            self.count += any(len(x) > 1 and x.stride(0) == 0 for x in args)
        return operation(*args, **(kwargs or {}))


def test_a_pooling_head_that_does_not_learn_is_not_copied_for_each_position():
    net = net_of("siglip").requires_grad_(False)
    image_BCHW = torch.rand(2, 3, 16, 16)
    with Repeated() as plain:
        expected = net(image_BCHW)
    attends_quickly(net)
    with Repeated() as quick:
        found = net(image_BCHW)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    assert (plain.count, quick.count) == (1, 0), changed(
        "nn.MultiheadAttention multiplies frozen matrices in another way", "_positions_first (SigLIP's pooling head)"
    )
