"""The output layer of a pretrained text: what it starts from, what of it learns, and what checkpoints say of it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from causal_families import family_folder
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, batch_of, folder

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models import transformers_internals as internals
from velm_cli.models.text import own_logits
from velm_cli.models.velm import VelmModel
from velm_cli.models.weights import Undrawn
from velm_cli.objectives.weights import constant


def build(name: str, *, fusion: schema.FusionConfig | None = None, vocab: int = VOCAB, **text) -> VelmModel:
    return VelmModel(
        vision=schema.ConvNetConfig(image_size=16, width=24, stages=2),
        text=schema.CausalLMConfig(name=name, **text),
        fusion=fusion or schema.AddConfig(dropout=0.0),
        vocab_size=vocab,
    )


@pytest.mark.parametrize("name", ["phi", "phi-tied", "ctrl"])
def test_velms_bias_starts_from_the_heads(name):
    own = transformers.AutoModelForCausalLM.from_pretrained(family_folder(name))
    model = build(family_folder(name))
    assert torch.equal(model.output_bias, own.get_output_embeddings().bias)
    assert not any(key.endswith("head.bias") for key in model.state_dict()), "and exists once"


def test_a_tokenizer_with_more_tokens_enlarges_bias_and_matrix():
    model = build(family_folder("phi"), vocab=VOCAB + 3)
    assert model.output_bias.shape == (VOCAB + 3,)
    assert model.output_weight.shape[0] == VOCAB + 3


@pytest.mark.parametrize("fusion", [schema.AddConfig(dropout=0.0), schema.PrefixConfig(length=2, dropout=0.0)])
@pytest.mark.parametrize("name", ["granite", "gemma2-window", "phi"])
@pytest.mark.parametrize("chunk", [0, 3])
def test_training_sees_the_scale_the_cap_and_the_bias_that_decoding_sees(name, fusion, chunk):
    model = build(family_folder(name), fusion=fusion).double().eval()
    task = WritingLearner(model, schema.LossConfig(chunk=chunk), concepts=5, weights=constant("text")).eval()
    batch = batch_of(torch.randn(3, 3, 16, 16).double())
    with torch.no_grad():
        found = task(batch, Moment(frozenset({"text"})))["text"].sum
        memory, wanted = model.memory(model.encode_image(batch.image_XCHW)), 0.0
        tokens, lengths = batch.tokens_BKT.flatten(0, 1), batch.lengths_BK.flatten()
        state = None
        for position in range(tokens.shape[1] - 1):
            logits, state = model.step(tokens[:, position : position + 1], memory, state)
            log_p = logits.log_softmax(-1).gather(1, tokens[:, position + 1 : position + 2])[:, 0]
            wanted -= float(log_p[position + 1 < lengths].sum())
    assert float(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "phi", "llama-tied"])
def test_lora_trains_no_weight_of_the_output_matrix(name):
    """Of the text's own weights none learns; velm's bias, which belongs to no part, does."""
    model = build(family_folder(name), lora_rank=2)
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in key for key in learning if key.startswith("text."))
    assert any("lora_" in key for key in learning)
    assert "output_bias" in learning


@pytest.mark.parametrize("name", ["granite", "gemma2-window", "phi"])
def test_checkpoints_from_before_scale_cap_and_bias_mean_what_they_meant(name):
    """They were trained without: their logits are W s + output_bias, and stay that when they are written again."""
    model = build(family_folder(name)).eval()
    old = {key: value for key, value in model.state_dict().items() if not key.endswith("scale_and_cap")}
    old["output_bias"] = torch.randn(VOCAB)
    if name == "phi":
        old["text.head.bias"] = torch.randn(VOCAB)
    states = torch.randn(5, 16)
    wanted = torch.nn.functional.linear(states, model.output_weight, old["output_bias"])
    assert name == "phi" or not torch.allclose(model.logits(states), wanted)
    model.load_state_dict(old)
    again = build(family_folder(name), weights="none").eval()
    again.load_state_dict(model.state_dict())
    for each in (model, again):
        torch.testing.assert_close(each.logits(states), wanted)


def test_weights_of_another_part_leave_scale_and_cap():
    model = build(family_folder("granite"))
    model.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith("vision.")}, strict=False)
    assert model.text.output_scale == 0.25


def test_a_family_that_computes_more_than_velm_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(internals.SCALES, "granite")
    with pytest.raises(UserError, match=r"^text\.name=.*granite: log p of velm and of the model itself differ by .* nats "
                                        r"\(0\.001 is allowed\): its family granite computes"):  # fmt: skip
        build(family_folder("granite"))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"].fill_(float("nan"))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="the model's logits are not finite: its weights or config are damaged"):
        build(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma2", {"num_hidden_layers": 3}),
        ("gemma2", {"final_logit_softcapping": "x"}),
        ("llama", {"num_attention_heads": 3}),
        ("mistral-window", {"sliding_window": "four"}),
        ("granite", {"logits_scaling": 0}),
        ("cohere", {"logit_scale": None}),
    ],
)
def test_a_config_that_is_no_models_is_refused_in_a_line(family, change, tmp_path):
    shutil.copytree(folder("llama") if family == "llama" else family_folder(family), tmp_path / "copy")
    file = tmp_path / "copy/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"^text\.name=.*copy") as refused:
        build(str(tmp_path / "copy"))
    assert "\n" not in str(refused.value)


def test_a_model_of_another_kind_is_called_that(tmp_path):
    config = transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a model of another kind than text needs"):
        build(str(tmp_path))


def test_a_model_is_compared_once_and_not_where_it_has_no_weights_yet(monkeypatch):
    calls = []
    monkeypatch.setattr(own_logits, "_by_steps", lambda text, tokens: calls.append(1) or 1 / 0)
    with torch.device("meta"):
        build(folder("llama"))
    with Undrawn():
        build(folder("llama"), weights="none")
    assert not calls
    with pytest.raises(UserError, match=r"family llama, by its config or by its kind \(ZeroDivisionError"):
        build(folder("llama"))
    assert len(calls) == 1


def test_a_prefix_starts_as_large_as_scaled_embeddings():
    """Gemma 3 scales what it looks up by the root of the width."""
    model = build(family_folder("gemma3-window"), fusion=schema.PrefixConfig(length=2))
    embedded = model.text.embed(torch.arange(VOCAB)).detach()
    assert model.text.embedding_scale == pytest.approx(float(embedded.square().mean().sqrt()), rel=1e-6)
