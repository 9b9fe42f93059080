"""What velm uses of transformers beyond its documented interface, all of it in this file.

tests/unit/test_transformers_internals*.py have a test per name; after an update of transformers they say what changed.
transformers is imported where it is first needed: a model from scratch does without.

Shapes: B images, C channels, H x W pixels, S image positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from velm_cli.models.attention import added_to_scores, attend, by_products
from velm_cli.models.layers import product_dtype
from velm_cli.models.rows import Rows, attend_rows
from velm_cli.models.state import KeyValue, Layer, Past

# --- text

LAYER_LISTS = ("layers", "h", "encoder.layer", "decoder.layers", "blocks")  # where the blocks are, by family
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # layer types that keep keys and values only

# Families that scale their logits, and by what.
SCALES = {
    "cohere": lambda config: config.logit_scale,
    "cohere2": lambda config: config.logit_scale,
    "granite": lambda config: 1 / config.logits_scaling,
    "granite_swa": lambda config: 1 / config.logits_scaling,
    "granitemoe": lambda config: 1 / config.logits_scaling,
    "granitemoeshared": lambda config: 1 / config.logits_scaling,
    "hyperclovax": lambda config: config.logits_scaling,
    "minicpm3": lambda config: 1 / config.logits_scaling,
}
# Families with sliding windows whose layers see what the mask of their type says, and nothing else.
MASKED_BY_TYPE = {
    "cohere2", "cwm", "exaone4", "gemma2", "gemma3_text", "gpt_oss", "granite_swa", "ministral", "ministral3",
    "mistral", "mixtral", "olmo3", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3",
    "starcoder2", "vaultgemma",
}  # fmt: skip
# Families whose attention is softmax(scale * q . k) of what the mask shows, and gets the options of their forward.
PLAIN_ATTENTION = {
    "arcee", "bitnet", "codegen", "cohere", "cohere2", "cwm", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5",
    "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite",
    "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hyperclovax", "jetmoe", "llama", "minicpm3",
    "ministral", "ministral3", "mistral", "mixtral", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt",
    "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "starcoder2",
}  # fmt: skip
ATTENTION_NAME = "velm_rows"  # of velm's attention, among transformers' own


def family_of(net: Any) -> str:
    return str(net.config.model_type)


def body_of(model: Any) -> Any:
    """A language model without its head."""
    body = model.base_model
    return model.model if body is model else body  # Llama 4 names itself


def layers_of(net: nn.Module) -> list[nn.Module] | None:
    """The layers of a model without its head; None where they are in no place that is known."""
    for path in LAYER_LISTS:
        try:
            layers = net.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            return list(layers)
    return None


def keeps_keys_and_values(net: Any) -> bool:
    """Whether keys and values are all that its layers keep of earlier positions, by what the model declares."""
    types = set(getattr(net.config, "layer_types", None) or ())
    return types <= ATTENTION and cache_name(net) in signature(net.forward).parameters


def cache_name(net: Any) -> str:
    """What its forward, and what that returns, call the cache; the second name is to go in transformers 5.40."""
    return "cache" if "cache" in signature(net.forward).parameters else "past_key_values"


def output_scale(config: Any) -> float:
    """What the family multiplies its logits with."""
    return float(SCALES.get(config.model_type, lambda _: 1.0)(config))


def output_cap(config: Any) -> float:
    """c, where the family's logits are c * tanh(z / c); 0 without."""
    return float(getattr(config, "final_logit_softcapping", None) or 0.0)


def windows_of(config: Any) -> dict[str, int]:
    """By type of layer, how many positions back it sees, its own counted; 0 is all of them. Without types: ""."""
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None)
    windows = {kind: window if kind == "sliding_attention" else 0 for kind in types} if types else {"": window}
    return windows if any(windows.values()) else {}


def shares_slots(net: Any) -> bool:
    """Whether attention goes by the mask and the positions that the model is given, and by nothing else."""
    config = net.config
    return (
        net._supports_attention_backend
        and "position_ids" in signature(net.forward).parameters
        and "chunked_attention" not in (getattr(config, "layer_types", None) or ())
        and (not windows_of(config) or config.model_type in MASKED_BY_TYPE)
    )


def mask_of(masks: dict[str, Tensor]) -> Any:
    """`attention_mask`, by type of layer, as the forward of a family with windows takes it."""
    return masks.get("", masks)


def cache_of(layers: Sequence[KeyValue]) -> Any:
    """A cache with the keys and values of earlier positions, all of which it keeps: windows are the masks' business."""
    from transformers import DynamicCache

    return DynamicCache([tuple(layer) for layer in layers] or None)


def run_with_cache(net: Any, cache: Any, **inputs: Any) -> tuple[Tensor, tuple[KeyValue, ...]]:
    """States of further positions, and the keys and values of all, by layer."""
    name = cache_name(net)
    out = net(**inputs, **{name: cache}, use_cache=True)
    return out.last_hidden_state, tuple(KeyValue(keys, values) for keys, values, *_ in out[name])


def run_with_slots(net: Any, past: Past, new: int, **inputs: Any) -> Tensor:
    """States of further positions, after a past that has grown by `new` slots an image, which the model writes."""
    from transformers import Cache

    slots = Cache(layers=[_slots_class()(layer, new) for layer in past.layers()])
    states: Tensor = net(**inputs, **{cache_name(net): slots}, use_cache=True).last_hidden_state
    return states


@cache
def _slots_class() -> type:
    from transformers.cache_utils import CacheLayerMixin

    class Slots(CacheLayerMixin):
        is_sliding = False

        def __init__(self, layer: Layer, new: int) -> None:
            super().__init__()
            self._layer, self._new, self.is_initialized = layer, new, True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return self._layer.write(key_states, value_states)

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """The past has its memory."""

        def get_seq_length(self) -> int:
            return self._layer.past.slots - self._new

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self._layer.past.slots, 0

        def get_max_length(self) -> int:
            return -1

        get_max_cache_shape = get_max_length  # its name before 5.15

    return Slots


def attends_rows(net: Any) -> bool:
    """Whether its layers can run on a row of a `Layout`; if so, its attention is velm's from now on, which is torch's
    where it gets no rows."""
    plain = shares_slots(net) and family_of(net) in PLAIN_ATTENTION and net.config._attn_implementation == "sdpa"
    if plain:
        _register_attention()
        net.set_attn_implementation(ATTENTION_NAME)
    return plain


def attends_quickly(net: Any) -> None:
    """Give an encoder of images velm's attention, whose backward is faster in bfloat16 on a CPU, and its pooling head
    (SigLIP's) what that multiplies in one go."""
    if net.config._attn_implementation == "sdpa":
        _register_attention()
        net.set_attn_implementation(ATTENTION_NAME)
    for module in net.modules():
        if isinstance(module, nn.MultiheadAttention) and module.batch_first:
            module.register_forward_pre_hook(_positions_first)


def _positions_first(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same (N, S, D), in memory as (S, N, D).

    nn.MultiheadAttention turns its inputs round without copying them. If the matrix does not learn, torch then copies
    it for each position: 360 ms instead of 10 for the pooling head of SigLIP-B/16 and 8 images (2 cores, bfloat16).
    """
    turned = {id(x): x.transpose(0, 1).contiguous().transpose(0, 1) for x in given if isinstance(x, Tensor)}
    return tuple(turned.get(id(x), x) for x in given)


@cache
def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    torchs: Any = AttentionInterface()["sdpa"]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        rows = options.pop(ATTENTION_NAME, None)
        if rows is None and attention_mask is None and not getattr(module, "is_causal", True):
            q, k, v = (x.to(product_dtype(x)) for x in (query, key, value))
            if not options.get("dropout") and by_products(q, k, v):
                return attend(q, k, v, scale=options.get("scaling")).transpose(1, 2).contiguous(), None
        if rows is None:
            result: tuple[Tensor, Any] = torchs(module, query, key, value, attention_mask, **options)
            return result
        # Some families turn queries and keys in float32 under autocast.
        q, k, v = (x.to(product_dtype(x)) for x in (query, key, value))
        dropout, scale = options.get("dropout", 0.0), options.get("scaling")
        return attend_rows(q, k, v, attention_mask.flatten(), rows, scale=scale, dropout=dropout), None

    AttentionInterface.register(ATTENTION_NAME, attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def run_rows(net: Any, rows: Rows, visible: dict[str, Tensor], **inputs: Any) -> Tensor:
    """States (1, M, D) of a row; `visible` (Z) by type of layer."""
    # A mask of four dimensions is passed on as it is. Some families cut the last two to the number of keys.
    masks = {kind: visible_Z[None, :, None, None] for kind, visible_Z in visible.items()}
    states: Tensor = net(
        **inputs, attention_mask=mask_of(masks), use_cache=False, **{ATTENTION_NAME: rows}
    ).last_hidden_state
    return states


def run_masked(net: Any, visible: dict[str, Tensor], **inputs: Any) -> Tensor:
    """States (G, Y, D) of padded rows; `visible` (G, 1, Y, Y) by type of layer."""
    masks = {kind: added_to_scores(shown, inputs["inputs_embeds"].dtype) for kind, shown in visible.items()}
    states: Tensor = net(**inputs, attention_mask=mask_of(masks), use_cache=False).last_hidden_state
    return states


# --- vision


class Family(NamedTuple):
    """The image half of a model_type: its class, and the names of its parts next to embeddings and blocks: a norm
    before the blocks, one after them, what makes the pooled output."""

    class_name: str
    before: str | None = None
    after: str | None = "layernorm"
    pooled: str | None = None


CLIP = Family("CLIPVisionModel", "pre_layrnorm", None, "post_layernorm")
SIGLIP = Family("SiglipVisionModel", None, "post_layernorm", "head")
FAMILIES = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": Family("Dinov2Model"),
    "vit": Family("ViTModel"),
}
MASK_TOKEN = "mask_token"  # of pretraining: no image passes it
MAY_LACK = ("pooler", MASK_TOKEN, "position_ids")  # parts of names of weights that files may lack: velm does without
# Names of what is no matrix of a product: positions, class tokens, the query of SigLIP's attention pooling.
TABLES = frozenset({"position_embedding", "position_embeddings", "cls_token", "class_embedding", "probe", MASK_TOKEN})


def parts_of(net: nn.Module, family: Family) -> dict[str, str]:
    """The paths in `net` of its embeddings and of the parts that `family` names, by name; those that there are."""
    paths = [path for path, _ in net.named_modules()]
    found = {path.rpartition(".")[2]: path for path in reversed(paths)}  # of several of a name the first
    return {name: found[name] for name in ("embeddings", *family[1:]) if name is not None and name in found}


def blocks_of(net: nn.Module) -> nn.ModuleList:
    """The transformer's blocks: the longest list of modules that there is."""
    return max((module for module in net.modules() if isinstance(module, nn.ModuleList)), key=len)


def tables_of(net: nn.Module) -> list[str]:
    """The paths of the modules and parameters that TABLES names."""
    paths = [path for path, _ in (*net.named_modules(), *net.named_parameters())]
    return [path for path in paths if path.rpartition(".")[2] in TABLES]


def embed(embeddings: nn.Module, image_BCHW: Tensor) -> Tensor:
    """(B, S, D): patches with a class token, where there is one, and positions for images of this size."""
    return embeddings(image_BCHW, **any_size(embeddings))


def any_size(module: nn.Module) -> dict[str, Any]:
    """The option with which a net or its embeddings take images of other sizes than their own; DINOv2's need none."""
    option = "interpolate_pos_encoding"
    return {option: True} if option in signature(module.forward).parameters else {}


def positions_for(part: nn.Module, size: int, own_size: int, patch_size: int) -> Tensor | None:
    """(S, D): the table of positions of CLIP's or SigLIP's embeddings for images of `size`, which they interpolate in
    each pass; None of other modules. DINOv2 does so by itself."""
    table: Any = getattr(part, "position_embedding", None)
    if not isinstance(table, nn.Embedding) or not hasattr(part, "interpolate_pos_encoding"):
        return None
    side, new = own_size // patch_size, size // patch_size
    blank = torch.zeros(1, len(table.weight) - side**2 + new**2, table.embedding_dim)
    interpolate: Any = part.interpolate_pos_encoding
    positions: Tensor = interpolate(blank, size, size)[0]
    return positions


def pass_block(block: nn.Module, x_BSD: Tensor) -> Tensor:
    """`x` through a block; some families and releases require an attention mask, others know none."""
    options = {"attention_mask": None} if "attention_mask" in signature(block.forward).parameters else {}
    return block(x_BSD, **options)
