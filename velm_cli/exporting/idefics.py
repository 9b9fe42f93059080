"""format=hf of a model with pixel shuffle: SigLIP, squares of its tokens through one matrix, a language model.

`vision=siglip fusion=prefix fusion.mapper=tokens fusion.projector=linear fusion.norm=false`, with any `fusion.shuffle`,
is an `Idefics3ForConditionalGeneration` (Laurençon et al. 2024). Its own processor puts words around each image, which
velm's models have not seen, so the folder has that of LLaVA, which puts none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What configs of SigLIP and of Idefics3's encoder both have.
SHARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout",
)  # fmt: skip


def idefics3(
    transformers: Any,
    model: Any,
    of_vision: Any,
    of_images: dict[str, Tensor],
    of_text: Any,
    fill: Callable[[Any, Any], None],
) -> Any:
    """The twin of `model`. `of_vision`, `of_images`: config and weights of its encoder, for its image size.

    `fill`: gives the language model and the output layer their weights.
    """
    config = transformers.Idefics3Config(
        vision_config={name: getattr(of_vision, name) for name in SHARED},
        text_config=of_text,
        image_token_id=len(model.output_bias),
        scale_factor=model.fusion.shuffle,
        tie_word_embeddings=False,
    )
    twin = transformers.Idefics3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    inner = twin.model
    given = {name: tensor for name, tensor in of_images.items() if not name.startswith("head.")}  # pooled's
    found = inner.vision_model.load_state_dict(given, strict=False)
    assert not found.unexpected_keys and not found.missing_keys, found
    with torch.no_grad():
        inner.connector.modality_projection.proj.weight.copy_(model.fusion.map.weight)
    fill(inner.text_model, twin.lm_head)
    return twin
