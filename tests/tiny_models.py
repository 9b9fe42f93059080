"""Tiny transformers models with random weights in local folders, as users keep real ones."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import torch

from velm_cli.data.batch import Batch

VOCAB = 23
POSITIONS = 96  # of the text models: room for 64 image tokens and a caption
_HOME = tempfile.TemporaryDirectory(prefix="velm-tiny-models-")  # gone when the tests end


@functools.cache
def folder(kind: str) -> str:
    """The folder of a tiny model: vit clip dinov2 siglip (vision), gpt2 llama bert bloom (text)."""
    import transformers as t

    path = Path(os.environ.get("VELM_TINY_MODELS", _HOME.name)) / kind  # a parent process may have made it
    if path.exists():
        return str(path)
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    text = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    match kind:
        case "vit":
            model = t.ViTModel(t.ViTConfig(**vision))
        case "clip":  # the whole of CLIP, as published ones are
            config = t.CLIPConfig(
                vision_config=vision | {"projection_dim": 8}, text_config=text | {"projection_dim": 8}
            )
            model = t.CLIPModel(config)
        case "dinov2":
            model = t.Dinov2Model(t.Dinov2Config(**vision))
        case "siglip":
            model = t.SiglipVisionModel(t.SiglipVisionConfig(**vision))
        case "gpt2":
            sizes = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
            model = t.GPT2LMHeadModel(t.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
        case "llama":
            options = {"num_key_value_heads": 1, "max_position_embeddings": POSITIONS, "tie_word_embeddings": False}
            model = t.LlamaForCausalLM(t.LlamaConfig(**text, **options))
        case "bloom":  # whose attention goes by more than its mask
            sizes = {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 2}
            model = t.BloomForCausalLM(t.BloomConfig(**sizes, bos_token_id=1, eos_token_id=2))
        case "bert":
            model = t.BertModel(t.BertConfig(**text, max_position_embeddings=POSITIONS))
        case _:
            raise ValueError(kind)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, so that none is forgotten unnoticed
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return str(path)


def language_model(path: Path, captions: list[str]) -> Path:
    """A tiny GPT-2 with a tokenizer of its own, learned from `captions`, in the folder `path`."""
    import tokenizers as tk
    import transformers as t

    model = tk.Tokenizer(tk.models.BPE())
    model.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tk.decoders.ByteLevel()
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    trainer = tk.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    model.train_from_iterator(captions, trainer)
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=model, **end)
    tokenizer.save_pretrained(path)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
    t.GPT2LMHeadModel(t.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(path)
    return path


def batch_of(image_BCHW: torch.Tensor) -> Batch:
    """Three images with two captions each, of random words (torch's own generator) and different lengths."""
    B, K, T = 3, 2, 6
    lengths_BK = torch.tensor([[6, 4], [5, 6], [3, 6]])
    return Batch.of(
        torch.randint(3, VOCAB, (B, K, T)),
        lengths_BK,
        ids=["a", "b", "c"],
        image_XCHW=image_BCHW,
        labels={"concepts": torch.randint(0, 2, (B, 5)).float()},
    )
