"""What velm relies on in transformers beyond its documented interface: a test per name, which says what changed.

The text side; test_transformers_internals_vision.py has the vision side. Run it after every update of transformers. A failure names the internal, and where in velm it is used.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers as t
from causal_families import family_folder, known
from tiny_models import folder

import velm_cli
from velm_cli.data.layout import Layout
from velm_cli.models import transformers_internals as internals
from velm_cli.models.rows import Rows, visible_in
from velm_cli.models.state import KeyValue, Past

FILE = "velm_cli/models/transformers_internals.py"


def changed(name: str, function: str) -> str:
    return f"transformers {t.__version__} changed {name}: see `{function}` in {FILE}"


NAMES = (
    r"cache_utils|masking_utils|DynamicCache|CacheLayerMixin|_supports_attention_backend|past_key_values|base_model\b"
    r"|interpolate_pos_encoding|pre_layrnorm|post_layernorm|mask_token"
)


def test_names_of_internals_stand_in_one_file():
    package = Path(velm_cli.__file__).parent
    found = {path.name for path in package.rglob("*.py") if re.search(NAMES, path.read_text("utf-8"))}
    assert found == {Path(FILE).name}


def text_model(name: str):
    return t.AutoModelForCausalLM.from_pretrained(
        folder(name) if name in ("llama", "gpt2") else family_folder(name)
    ).eval()


def known_families(families) -> list:
    return known(sorted(families), {family: family for family in families})


def states_of(net, inputs: torch.Tensor, **more) -> torch.Tensor:
    with torch.no_grad():
        return net(inputs_embeds=inputs, **more).last_hidden_state


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gpt2", "transformer"),
        ("llama", "model"),
        ("opt", "model"),
        ("gpt_neox", "gpt_neox"),
        ("llama4-chunks", "model"),
    ],
)
def test_text_base_model(name, body):
    model = text_model(name)
    assert internals.body_of(model) is getattr(model, body), changed("base_model", "body_of")


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "mpt", "gpt_neox"])
def test_text_lists_of_blocks(name):
    """Also that a block gets its input as the first argument, or as `hidden_states`."""
    net = internals.body_of(text_model(name))
    blocks = internals.layers_of(net)
    assert blocks is not None and len(blocks) == 2, changed("the place of a model's blocks", "layers_of")
    first = next(iter(inspect.signature(type(blocks[0]).forward).parameters.keys() - {"self"}), None)
    inputs = []
    hook = blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(args[0] if args else kwargs.get("hidden_states")), with_kwargs=True
    )
    states_of(net, torch.randn(1, 3, 16))
    hook.remove()
    assert inputs[0] is not None and inputs[0].shape == (1, 3, 16), changed(
        f"what a block takes ({first})", "PretrainedText._entering, velm_cli/models/text/pretrained.py, and not"
    )


def test_text_bert_keeps_its_blocks_in_encoder_layer():
    net = t.AutoModel.from_pretrained(folder("bert"))
    assert internals.layers_of(net) is not None, changed("BertModel.encoder.layer", "layers_of")


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_text_name_of_the_cache(name):
    net = internals.body_of(text_model(name))
    with torch.no_grad():
        out = net(inputs_embeds=torch.randn(1, 3, 16), use_cache=True)
    name = internals.cache_name(net)
    assert name in inspect.signature(net.forward).parameters and name in out, changed("the cache's name", "cache_name")


def test_text_dynamic_cache_takes_and_returns_keys_and_values():
    """Of all positions, also in layers with a window."""
    layers = [KeyValue(*torch.randn(2, 1, 2, 9, 8)) for _ in range(2)]
    cache = internals.cache_of(layers)
    for (keys, values, *_), layer in zip(cache, layers, strict=True):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values), changed("DynamicCache", "cache_of")
    net = internals.body_of(text_model("mistral-window"))
    with torch.no_grad():
        _, kept = internals.run_with_cache(net, internals.cache_of(()), inputs_embeds=torch.randn(1, 9, 16))
    assert [layer.keys.shape[2] for layer in kept] == [9, 9], changed("DynamicCache() without config", "cache_of")


def test_text_layers_of_a_cache():
    from transformers.cache_utils import CacheLayerMixin

    missing = [name for name in CacheLayerMixin.__abstractmethods__ if not hasattr(internals._slots_class(), name)]
    assert not missing, changed(f"CacheLayerMixin, which wants {missing}", "_slots_class")
    assert not internals._slots_class().__abstractmethods__, changed("CacheLayerMixin", "_slots_class")
    given = list(inspect.signature(CacheLayerMixin.update).parameters)[1:3]
    assert given == ["key_states", "value_states"], changed("CacheLayerMixin.update", "_slots_class")
    assert "layers" in inspect.signature(t.Cache.__init__).parameters, changed("Cache(layers=...)", "run_with_slots")


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2-window"])
def test_text_a_cache_of_slots_is_written_and_read(name):
    net = internals.body_of(text_model(name))
    inputs = torch.randn(1, 3, 16)
    with torch.no_grad():
        _, layers = internals.run_with_cache(net, internals.cache_of(()), inputs_embeds=inputs[:, :2])
        past = Past.of(layers).grown(1)
        mask = {"sliding_attention": torch.zeros(1, 1, 1, 3), "full_attention": torch.zeros(1, 1, 1, 3)}
        found = internals.run_with_slots(
            net, past, 1, inputs_embeds=inputs[:, 2:], position_ids=torch.tensor([[2]]),
            attention_mask=mask if "window" in name else mask["full_attention"],
        )  # fmt: skip
    wanted = states_of(net, inputs)[:, 2:]
    message = changed("how attention goes by a cache", "run_with_slots")
    torch.testing.assert_close(found, wanted, msg=lambda text: f"{message}\n{text}")


def test_text_attention_backend():
    assert internals.body_of(text_model("llama"))._supports_attention_backend is True, changed(
        "_supports_attention_backend of Llama, whose attention goes by its mask", "shares_slots"
    )
    assert internals.body_of(text_model("bloom"))._supports_attention_backend is False, changed(
        "_supports_attention_backend of Bloom, whose positions are its own", "shares_slots"
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_oss-window"])
def test_text_four_dimensional_masks_are_taken_as_they_are(name):
    """Added to the scores: what a mask hides is as if it were not there, given the positions of the others."""
    net = internals.body_of(text_model(name))
    inputs, position = torch.randn(1, 4, 16), torch.tensor([[0, 1, 2, 3]])
    mask = torch.full((4, 4), float("-inf")).triu(1)[None, None]
    mask[..., 2:, 1] = float("-inf")
    shown, kept = [0, 2, 3], mask[:, :, [0, 2, 3]][..., [0, 2, 3]]
    by_type = {"full_attention": mask, "sliding_attention": mask}, {"full_attention": kept, "sliding_attention": kept}
    masks = by_type if "window" in name else (mask, kept)
    whole = states_of(net, inputs, position_ids=position, attention_mask=masks[0])
    without = states_of(net, inputs[:, shown], position_ids=position[:, shown], attention_mask=masks[1])
    message = changed("attention_mask with four dimensions, or by layer type", "mask_of")
    torch.testing.assert_close(whole[:, shown], without, msg=lambda text: f"{message}\n{text}")


@pytest.mark.parametrize("family", known_families(internals.MASKED_BY_TYPE))
def test_text_windows_of_a_config(family):
    """Each family's own names: a window for all layers, or types of layers of which one slides."""
    config = t.AutoConfig.for_model(family)
    assert hasattr(config, "sliding_window"), changed(f"sliding_window of {family}", "windows_of")
    if getattr(config, "layer_types", None):
        assert set(config.layer_types) <= internals.ATTENTION, changed(f"layer_types of {family}", "windows_of")


@pytest.mark.parametrize("family", known_families(internals.SCALES))
def test_text_scale_of_a_config(family):
    assert internals.output_scale(t.AutoConfig.for_model(family)) > 0, changed(f"{family}'s config", "SCALES")


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "nanochat", "vaultgemma"])
def test_text_cap_of_a_config(family):
    config = t.AutoConfig.for_model(family)
    assert hasattr(config, "final_logit_softcapping"), changed(f"{family}'s config", "output_cap")


def test_text_recurrent_families_say_so():
    for family in ("mamba", "rwkv", "lfm2"):
        net = internals.body_of(t.AutoModelForCausalLM.from_pretrained(family_folder(family)))
        assert not internals.keeps_keys_and_values(net), changed(f"{family}'s layer_types", "keeps_keys_and_values")


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral-window", "opt"])
def test_text_attention_of_velms_own(name):
    """Its name, the mask that passes as it is, and the option that reaches every layer."""
    net = internals.body_of(text_model(name))
    inputs = torch.randn(1, 6, 16)
    wanted = torch.cat([states_of(net, part) for part in (inputs[:, :4], inputs[:, 4:])], 1)
    assert internals.attends_rows(net), changed("AttentionInterface or _attn_implementation", "attends_rows")
    message = changed("how attention functions are found", "_register_attention")
    torch.testing.assert_close(states_of(net, inputs[:, :4]), wanted[:, :4], msg=lambda text: f"{message}\n{text}")
    layout = Layout.of([4, 2])
    rows, windows = Rows.of(layout), internals.windows_of(net.config) or {"": 0}
    visible = {kind: visible_in(layout, rows, window) for kind, window in windows.items()}
    with torch.no_grad():
        found = internals.run_rows(net, rows, visible, inputs_embeds=inputs, position_ids=layout.position_M[None])
    message = changed("what reaches an attention function", "run_rows")
    torch.testing.assert_close(found, wanted, msg=lambda text: f"{message}\n{text}")


def test_text_attention_that_is_plain():
    """Of a family that caps scores, or whose attention has sinks, no row is made."""
    for name in ("gemma2", "gpt_oss-window"):
        assert not internals.attends_rows(internals.body_of(text_model(name)))
