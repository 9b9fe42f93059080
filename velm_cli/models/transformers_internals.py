"""What velm uses of transformers beyond its documented interface: all of it, so that a new release breaks one file.

tests/unit/test_transformers_internals.py has a test for each item, whose failure names what changed and who needs it.
Shapes: B images, C channels, H x W pixels, S image positions, D width.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

from torch import Tensor, nn

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


def pass_block(block: nn.Module, x_BSD: Tensor) -> Tensor:
    """`x` through a block; some families and releases require an attention mask, others know none."""
    options = {"attention_mask": None} if "attention_mask" in signature(block.forward).parameters else {}
    return block(x_BSD, **options)
