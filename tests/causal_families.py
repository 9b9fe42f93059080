"""Families of causal language models as tiny random models: those that velm runs as they are, and those it refuses."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tiny_models import _HOME, POSITIONS, VOCAB

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "head_dim": 8, "max_position_embeddings": POSITIONS,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOW = 4
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1,
    "num_key_value_heads": 2, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
SLIDING = {"sliding_window": WINDOW}
MIXED = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}

# Name of a test: (family, what its config has beyond SIZES; None leaves out)
RIGHT: dict[str, tuple[str, dict]] = {
    "arcee": ("arcee", {}),
    "biogpt": ("biogpt", {}),
    "bitnet": ("bitnet", {}),
    "bloom": ("bloom", {}),
    "codegen": ("codegen", {"rotary_dim": 4, "num_attention_heads": 4}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere2-window": ("cohere2", MIXED | {"logit_scale": 0.5}),
    "ctrl": ("ctrl", {"dff": 32}),
    "cwm-window": ("cwm", MIXED),
    "deepseek_v2": ("deepseek_v2", LATENT | {"head_dim": None}),
    "deepseek_v3": ("deepseek_v3", LATENT | {"head_dim": None}),
    "diffllama": ("diffllama", {"num_key_value_heads": 2}),
    "dots1": (
        "dots1",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
    ),
    "ernie4_5": ("ernie4_5", {}),
    "exaone4-window": ("exaone4", MIXED),
    "falcon": ("falcon", {"head_dim": None}),
    "falcon-alibi": ("falcon", {"head_dim": None, "alibi": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma2-window": ("gemma2", MIXED | {"final_logit_softcapping": 3.0}),
    "gemma3-window": ("gemma3_text", MIXED),
    "gemma3-cap": ("gemma3_text", {"final_logit_softcapping": 3.0}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", UNTIED),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_neo-window": (
        "gpt_neo",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_oss-window": ("gpt_oss", MIXED | EXPERTS),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "granite": ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "granite-tied": ("granite", TIED | {"logits_scaling": 4.0}),
    "granite_swa-window": ("granite_swa", MIXED | {"logits_scaling": 4.0}),
    "granitemoe": ("granitemoe", EXPERTS | {"logits_scaling": 4.0}),
    "granitemoeshared": ("granitemoeshared", EXPERTS | {"logits_scaling": 4.0}),
    "helium": ("helium", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {}),
    "hyperclovax": ("hyperclovax", {"logits_scaling": 0.25}),
    "jetmoe": ("jetmoe", EXPERTS | {"num_attention_heads": None, "kv_channels": 8}),
    "llama": ("llama", UNTIED),
    "llama-tied": ("llama", TIED),
    "llama4-chunks": (
        "llama4_text",
        EXPERTS
        | {
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 32,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
        },
    ),
    "minicpm3": ("minicpm3", LATENT | {"head_dim": None, "dim_model_base": 8, "scale_emb": 1, "scale_depth": None}),
    "ministral-window": ("ministral", MIXED),
    "ministral3-window": ("ministral3", SLIDING),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", SLIDING),
    "mixtral-window": ("mixtral", SLIDING | EXPERTS),
    "mpt": ("mpt", {}),
    "nanochat": ("nanochat", {}),
    "nemotron": ("nemotron", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3-window": ("olmo3", MIXED),
    "olmoe": ("olmoe", EXPERTS),
    "opt": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "opt-projected": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "persimmon": ("persimmon", {}),
    "phi": ("phi", {}),
    "phi-tied": ("phi", TIED),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", SLIDING),
    "phimoe-window": ("phimoe", SLIDING | EXPERTS),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", MIXED | {"use_sliding_window": True}),
    "qwen2_moe-window": (
        "qwen2_moe",
        MIXED | EXPERTS | {"use_sliding_window": True, "shared_expert_intermediate_size": 8},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-window": ("qwen3", MIXED | {"use_sliding_window": True}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "qwen3_moe-window": ("qwen3_moe", SLIDING | EXPERTS | {"use_sliding_window": True}),
    "seed_oss": ("seed_oss", {}),
    "smollm3": ("smollm3", {}),
    "smollm3-window": ("smollm3", MIXED | {"use_sliding_window": True}),
    "stablelm": ("stablelm", {}),
    "starcoder2-window": ("starcoder2", SLIDING),
    "vaultgemma-window": ("vaultgemma", MIXED),
    "xglm": ("xglm", {"ffn_dim": 32, "d_model": 16, "attention_heads": 2}),
}
# Recurrent layers, layers that convolve, a head that is no matrix, inputs for each layer, no cache
REFUSED: dict[str, tuple[str, dict]] = {
    "bamba": ("bamba", {"mamba_n_heads": 2, "mamba_d_head": 16, "attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", {}),
    "falcon_mamba": ("falcon_mamba", {}),
    "gemma3n": ("gemma3n_text", {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [32, 32]}),
    "jamba": ("jamba", {}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {"num_heads": 4, "expand": 2, "n_groups": 1, "state_size": 8}),
    "minimax": ("minimax", {}),
    "openai-gpt": ("openai-gpt", {}),
    "qwen3_next": ("qwen3_next", {"num_experts": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}),
    "recurrent_gemma": ("recurrent_gemma", {}),
    "roformer": ("roformer", {"is_decoder": True}),
    "rwkv": ("rwkv", {}),
    "zamba2": ("zamba2", {"num_hidden_layers": 3, "layers_block_type": ["mamba", "mamba", "hybrid"], "n_mamba_heads": 2}),
}  # fmt: skip


def known(names: Iterable[str], families: dict[str, str]) -> list:
    """The names as parameters of a test, skipped where the installed transformers does not have their family."""
    import transformers as t

    missing = pytest.mark.skip(reason=f"transformers {t.__version__} does not have it")
    return [pytest.param(name, marks=() if families[name] in t.CONFIG_MAPPING else missing) for name in names]


FAMILIES = {name: family for name, (family, _) in (RIGHT | REFUSED).items()}


@functools.cache
def family_folder(name: str) -> str:
    """The folder of a tiny model whose every weight matters."""
    import transformers as t

    path = Path(os.environ.get("VELM_TINY_MODELS", _HOME.name)) / f"family-{name}"
    if path.exists():
        return str(path)
    family, changes = (RIGHT | REFUSED)[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {
            key: value for key, value in (SIZES | changes).items() if value is not None or key == "sliding_window"
        }
        model = t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(family, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return str(path)
