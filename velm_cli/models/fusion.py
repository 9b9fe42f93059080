"""Fusions: (text_NTD, image) -> fused_NTD. Position t never sees text after t.

`memory(features)` does once an image what does not depend on the text; `forward(text, memory, state)`
serves the K captions or beams of each image from it (N = B * K, texts of an image adjacent). Both
memory and state are nested tuples of tensors, image or sequence first.
"""

from __future__ import annotations

from torch import Tensor, nn

from velm_cli.models.layers import Block, initialise
from velm_cli.models.vision import ImageFeatures
from velm_cli.schema import ConcatConfig, CrossModalConfig, FusionConfig, NoFusionConfig


class Fusion(nn.Module):
    """The interface of every fusion."""

    uses_image = True

    def memory(self, features: ImageFeatures | None) -> tuple:
        raise NotImplementedError

    def forward(self, text_NTD: Tensor, memory: tuple, state=None) -> tuple[Tensor, tuple]:
        raise NotImplementedError


class NoFusion(Fusion):
    """fused_t = text_t: a language model, or an image model beside it."""

    uses_image = False

    def memory(self, features: ImageFeatures | None) -> tuple:
        return ()

    def forward(self, text_NTD: Tensor, memory: tuple, state=None) -> tuple[Tensor, tuple]:
        return text_NTD, ()


class Concat(Fusion):
    """fused_t = W2 gelu(W1 [text_t ; pooled image] + b1) + b2 ("merge" of Tanti et al. 2018).

    W1 is applied to its two halves apart, so the image's half is computed once an image.
    """

    def __init__(self, config: ConcatConfig, image_width: int, width: int) -> None:
        super().__init__()
        self.text = nn.Linear(width, 2 * width)
        self.image = nn.Linear(image_width, 2 * width, bias=False)
        self.norm_image = nn.LayerNorm(image_width)
        self.out = nn.Sequential(nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        return (self.image(self.norm_image(features.pooled_BD)),)

    def forward(self, text_NTD: Tensor, memory: tuple, state=None) -> tuple[Tensor, tuple]:
        (image_BD,) = memory
        N, T, _ = text_NTD.shape
        B = image_BD.shape[0]
        hidden = self.text(text_NTD).view(B, N // B * T, -1) + image_BD[:, None]
        return self.norm(self.out(hidden).view(N, T, -1)), ()


class CrossModal(Fusion):
    """Transformer blocks in which the text attends to itself (causally) and to the image positions.

    x = x + SelfAttention(x);  x = x + CrossAttention(x, image);  x = x + MLP(x), pre-norm
    (the decoder of Vaswani et al. 2017; for captions Cornia et al. 2020 and others).
    """

    def __init__(self, config: CrossModalConfig, image_width: int, width: int) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(image_width)
        self.blocks: list[Block] = nn.ModuleList(  # type: ignore[assignment]  # nn.ModuleList is not generic
            Block(width, config.heads, config.dropout, image_width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        initialise(self, config.layers)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        image_BSD = self.norm_image(features.tokens_BSD)
        return tuple(block.image_memory(image_BSD) for block in self.blocks)

    def forward(self, text_NTD: Tensor, memory: tuple, state=None) -> tuple[Tensor, tuple]:
        x_NTD, caches = text_NTD, []
        for layer, block in enumerate(self.blocks):
            cache = None if state is None else state[layer]
            x_NTD, cache = block(x_NTD, causal=True, cache=cache, memory=memory[layer])
            caches.append(cache)
        return self.norm(x_NTD), tuple(caches)


def build_fusion(config: FusionConfig, image_width: int | None, width: int) -> Fusion:
    """The fusion that `config` describes, from image tokens of `image_width` to text states of `width`."""
    if isinstance(config, NoFusionConfig):
        return NoFusion()
    assert image_width is not None, "validate refuses a fusion without vision"
    match config:
        case ConcatConfig():
            return Concat(config, image_width, width)
        case CrossModalConfig():
            return CrossModal(config, image_width, width)
        case _:
            raise AssertionError(f"no fusion for {type(config).__name__}")
