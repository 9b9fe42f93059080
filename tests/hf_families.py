"""Captioners of transformers as tiny random models with real processors and tokenizers, in folders as users have them.

Their words are nonsense, and differ from image to image: every weight is disturbed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_models import _HOME

WORDS = [
    "a",
    "an",
    "the",
    "red",
    "green",
    "blue",
    "yellow",
    "big",
    "small",
    "circle",
    "square",
    "triangle",
    "left",
    "right",
    "of",
    "is",
    "are",
    "on",
    "in",
    "above",
    "below",
    "there",
    "what",
    "colour",
    "how",
    "many",
    "question",
    "answer",
    "short",
    "caption",
    "image",
    "en",
    "user",
    "assistant",
    ":",
    ".",
    "?",
    "one",
    "two",
    "three",
    "yes",
    "no",
    "describe",
    "sentence",
    "using",
    "single",
    "word",
    "or",
    "phrase",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIDE, PATCH = 32, 16
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
QFORMER = {
    "vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "encoder_hidden_size": 16, "cross_attention_frequency": 1,
}  # fmt: skip
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %} {{ c['text'] }}{% endif %}{% endfor %} <end_of_utterance> {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def words(*more: str, wrap: bool = False) -> Any:
    """A tokenizer of `WORDS` with special tokens `more`; `wrap`: texts get [CLS] and [SEP], as BERT's do."""
    import tokenizers as tk
    import transformers as t

    names = [*SPECIAL, *more, *WORDS]
    model = tk.Tokenizer(tk.models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    model.normalizer = tk.normalizers.Lowercase()
    model.pre_tokenizer = tk.pre_tokenizers.Sequence(
        [tk.pre_tokenizers.WhitespaceSplit(), tk.pre_tokenizers.Punctuation()]
    )
    if wrap:
        model.post_processor = tk.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    ends = {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", **ends, model_max_length=200
    )
    made.add_special_tokens({"additional_special_tokens": list(more)})
    return made


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer) + 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 300,
        "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
    } | more  # fmt: skip


def _blip(t: Any, maker: str) -> tuple[Any, Any]:
    tokenizer = words(wrap=True)
    text = _text(tokenizer, encoder_hidden_size=16, sep_token_id=3, is_decoder=True)
    model = getattr(t, maker)(t.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16))
    return model, t.BlipProcessor(t.BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)


def _git(t: Any) -> tuple[Any, Any]:
    tokenizer = words(wrap=True)
    model = t.GitForCausalLM(t.GitConfig(vision_config=VISION, **_text(tokenizer)))
    processor = t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return model, t.GitProcessor(processor, tokenizer)


def _vit_gpt2(t: Any) -> tuple[Any, Any]:
    tokenizer = words()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    decoder = t.GPT2Config(**sizes, bos_token_id=2, eos_token_id=3, is_decoder=True, add_cross_attention=True)
    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(t.ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model = t.VisionEncoderDecoderModel(config)
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(config, name))
    return model, [t.ViTImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer]


def _blip2(t: Any) -> tuple[Any, Any]:
    tokenizer = words("<image>")
    text = t.OPTConfig(**_text(tokenizer), ffn_dim=32, word_embed_proj_dim=16)
    config = t.Blip2Config(
        vision_config=VISION, qformer_config=QFORMER, text_config=text, num_query_tokens=3, image_token_index=4
    )
    processor = t.Blip2Processor(
        t.BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer, num_query_tokens=3
    )
    return t.Blip2ForConditionalGeneration(config), processor


def _clip_vision(t: Any) -> Any:
    return t.CLIPVisionConfig(**VISION)


def _llava(t: Any) -> tuple[Any, Any]:
    tokenizer = words("<image>", "<end_of_utterance>", "<s>")
    config = t.LlavaConfig(
        vision_config=_clip_vision(t), text_config=t.LlamaConfig(**_text(tokenizer)), image_token_index=4
    )
    image = t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    options = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return t.LlavaForConditionalGeneration(config), t.LlavaProcessor(image, tokenizer, **options)


def _llava_next(t: Any) -> tuple[Any, Any]:
    tokenizer = words("<image>", "<end_of_utterance>", "<s>")
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    config = t.LlavaNextConfig(
        vision_config=_clip_vision(t),
        text_config=t.LlamaConfig(**_text(tokenizer)),
        image_token_index=4,
        image_grid_pinpoints=pinpoints,
    )
    image = t.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints,
    )
    options = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = CHAT.replace("IMAGE", "<image>")
    processor = t.LlavaNextProcessor(image, tokenizer, chat_template=template, **options)
    return t.LlavaNextForConditionalGeneration(config), processor


def _idefics3(t: Any) -> tuple[Any, Any]:
    tokenizer = words("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<s>")
    config = t.Idefics3Config(
        vision_config=VISION, text_config=t.LlamaConfig(**_text(tokenizer)), image_token_id=4, scale_factor=2
    )
    image = t.Idefics3ImageProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    template = CHAT.replace("IMAGE", "<image>")
    processor = t.Idefics3Processor(image, tokenizer, image_seq_len=1, chat_template=template)
    return t.Idefics3ForConditionalGeneration(config), processor


def _qwen2_vl(t: Any) -> tuple[Any, Any]:
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<end_of_utterance>", "<s>")
    tokenizer = words(*marks)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    config = t.Qwen2VLConfig(
        text_config=_text(tokenizer, num_key_value_heads=1, rope_parameters=rope),
        vision_config=vision,
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    sizes = {"patch_size": 8, "min_pixels": 16 * 16, "max_pixels": 48 * 48}
    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = t.Qwen2VLProcessor(
        t.Qwen2VLImageProcessor(**sizes), tokenizer, t.Qwen2VLVideoProcessor(**sizes), chat_template=template
    )
    return t.Qwen2VLForConditionalGeneration(config), processor


def _paligemma(t: Any) -> tuple[Any, Any]:
    tokenizer = words("<image>")
    image = t.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    image.image_seq_length = (SIDE // PATCH) ** 2
    processor = t.PaliGemmaProcessor(image, tokenizer)
    text = _text(processor.tokenizer, head_dim=8, num_key_value_heads=1)
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**VISION),
        text_config=t.GemmaConfig(**text),
        image_token_index=processor.image_token_id,
        projection_dim=16,
        hidden_size=16,
    )
    return t.PaliGemmaForConditionalGeneration(config), processor


def _pix2struct(t: Any) -> tuple[Any, Any]:
    tokenizer = words()
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "patch_embed_hidden_size": 768, "d_kv": 8, "d_ff": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "seq_len": 64}  # fmt: skip
    model = t.Pix2StructForConditionalGeneration(t.Pix2StructConfig(text_config=text, vision_config=vision))
    processor = t.Pix2StructImageProcessor(max_patches=16, patch_size={"height": 16, "width": 16})
    return model, t.Pix2StructProcessor(processor, tokenizer)


MAKERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "blip": lambda t: _blip(t, "BlipForConditionalGeneration"),
    "blip-vqa": lambda t: _blip(t, "BlipForQuestionAnswering"),
    "blip-2": _blip2,
    "git": _git,
    "vit-gpt2": _vit_gpt2,
    "llava": _llava,
    "llava-next": _llava_next,
    "idefics3": _idefics3,
    "qwen2-vl": _qwen2_vl,
    "paligemma": _paligemma,
    "pix2struct": _pix2struct,
}


@functools.cache
def captioner(name: str) -> str:
    """The folder of the tiny model `name` of `MAKERS`, with its processor."""
    import transformers as t

    path = Path(os.environ.get("VELM_TINY_MODELS", _HOME.name)) / f"captioner-{name}"
    if path.exists():
        return str(path)
    torch.manual_seed(0)
    model, processor = MAKERS[name](t)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(path)
    for part in processor if isinstance(processor, list) else [processor]:
        part.save_pretrained(path)
    return str(path)


def pictures(count: int = 4, *, seed: int = 0) -> list[Image.Image]:
    """Random pictures of different sizes and colours."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        width, height = 40 + 9 * number, 56 - 7 * (number % 3)
        colour = rng.integers(0, 256, 3)
        noise = rng.integers(-60, 60, (height, width, 3))
        made.append(Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)))
    return made
