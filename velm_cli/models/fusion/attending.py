"""Fusions in which text positions look at image positions: attention, cross_modal, and both ways co_attention.

Shapes: B images, N = B * K texts, T text and S image positions, D width.
"""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor, nn

from velm_cli.data.packing import Packing
from velm_cli.models.fusion.additive import AdditiveAttention
from velm_cli.models.fusion.interface import Fusion
from velm_cli.models.layers import Block, CrossAttention, Dropout, initialise, product_dtype, within
from velm_cli.models.state import Past
from velm_cli.models.text.interface import TextEncoder
from velm_cli.models.vision.interface import ImageFeatures
from velm_cli.schema import AttentionConfig, AttentionScore, CoAttentionConfig, CrossModalConfig


class Attention(Fusion):
    """fused_t = norm(text_t + W2 gelu(W1 [text_t ; c_t])), c_t = sum_i softmax_i(score(text_t, image_i)) W_v image_i.

    `score=additive`: u . tanh(W_q text_t + W_k image_i) (Bahdanau et al. 2015; Xu et al. 2015). `score=dot`: scaled
    dot product with heads (Vaswani et al. 2017).
    """

    uses = frozenset({"tokens"})
    packs = True

    def __init__(self, config: AttentionConfig, image_width: int, width: int) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(image_width)
        self.look: CrossAttention | AdditiveAttention
        if config.score is AttentionScore.additive:
            self.look = AdditiveAttention(width, image_width, config.width)
        else:
            self.look = CrossAttention(width, image_width, config.heads)
        self.join = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(), Dropout(config.dropout), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        return self.look.memory(self.norm_image(features.tokens_BSD), features.visible_BS)

    def memory_for(self, features: ImageFeatures | None, positions: int) -> tuple:
        assert features is not None
        image_BSD = self.norm_image(features.tokens_BSD)
        return self.look.memory_for(image_BSD.to(product_dtype(image_BSD)), positions, features.visible_BS)

    def forward(
        self,
        text_NTD: Tensor,
        memory: tuple,
        state=None,
        *,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, tuple]:
        if packing is not None:
            text_NTD = packing.pack(text_NTD)
            context_NTD = packing.pack_images(self.look(packing.by_image(text_NTD), memory))
        else:
            context_NTD = self.look(text_NTD, memory)
        fused_NTD = self.norm(text_NTD + self.join(torch.cat([text_NTD, context_NTD], dim=-1)))
        return fused_NTD if packing is None else packing.pad(fused_NTD), ()


class CrossModal(Fusion):
    """Transformer blocks in which the text attends to itself (causally) and to the image positions.

    x = x + SelfAttention(x);  x = x + CrossAttention(x, image);  x = x + MLP(x), pre-norm
    (the decoder of Vaswani et al. 2017; for captions Cornia et al. 2020 and others).
    """

    uses = frozenset({"tokens"})
    packs = True

    def __init__(self, config: CrossModalConfig, image_width: int, text: TextEncoder) -> None:
        super().__init__()
        width, self.causal = text.width, text.causal
        self.norm_image = nn.LayerNorm(image_width)
        self.dropout = Dropout(config.text_dropout)
        self.blocks: list[Block] = nn.ModuleList(  # type: ignore[assignment]  # nn.ModuleList is not generic
            Block(width, config.heads, config.dropout, image_width, mlp_width=config.mlp_width)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        initialise(self, config.layers)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        image_BSD = self.norm_image(features.tokens_BSD)
        return tuple(block.image_memory(image_BSD, features.visible_BS) for block in self.blocks)

    def memory_for(self, features: ImageFeatures | None, positions: int) -> tuple:
        assert features is not None
        image_BSD = self.norm_image(features.tokens_BSD)
        image_BSD = image_BSD.to(product_dtype(image_BSD))  # once, and not for each block and word
        return tuple(block.image_memory_for(image_BSD, positions, features.visible_BS) for block in self.blocks)

    def forward(
        self,
        text_NTD: Tensor,
        memory: tuple,
        state=None,
        *,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, tuple]:
        assert packing is None or (self.causal and state is None)
        x_NTD, own = self.dropout(text_NTD if packing is None else packing.pack(text_NTD)), []
        visible_NT = None if self.causal else within(lengths_N, text_NTD.shape[1])
        past = None if state is None else state[0].grown(*text_NTD.shape[:2])
        layers = repeat(None) if past is None else past.layers()
        for block, of_image, layer in zip(self.blocks, memory, layers, strict=False):
            x_NTD, key_value = block(
                x_NTD, causal=self.causal, past=layer, memory=of_image, visible_NT=visible_NT, packing=packing
            )
            own.append(key_value)
        x_NTD = self.norm(x_NTD)
        return x_NTD if packing is None else packing.pad(x_NTD), (past or Past.of(own),)


class CoAttention(Fusion):
    """Two streams of transformer blocks: the text attends to itself and to the image, the image to itself and to it.

    x = x + SelfAttention(x);  x = x + CrossAttention(x, y);  x = x + MLP(x), and the same for the image's
    stream y with x (ViLBERT; Lu et al. 2019). Through the image every word knows every other, so nothing can
    be generated: this is for judging whether image and text match, and for masked words.
    """

    uses = frozenset({"tokens"})
    generates = False

    def __init__(self, config: CoAttentionConfig, image_width: int, width: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, width))

        def stream(layers: int) -> list[Block]:
            blocks = (Block(width, config.heads, config.dropout, image_width=width) for _ in range(layers))
            return nn.ModuleList(blocks)  # type: ignore[return-value]  # nn.ModuleList is not generic

        self.text_blocks = stream(config.layers)
        self.image_blocks = stream(config.layers - 1)  # after the last layer nobody looks at the image again
        self.norm = nn.LayerNorm(width)
        initialise(self, config.layers)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        return (self.image(features.tokens_BSD), features.visible_BS)

    def forward(
        self, text_NTD: Tensor, memory: tuple, state=None, *, lengths_N: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        x_NTD, (image_BSD, visible_BS) = text_NTD, memory
        texts = len(x_NTD) // len(image_BSD)
        y_NSD = image_BSD.repeat_interleave(texts, dim=0)
        visible_NS = None if visible_BS is None else visible_BS.repeat_interleave(texts, dim=0)
        visible_NT = within(lengths_N, x_NTD.shape[1])
        for layer, look in enumerate(self.text_blocks):
            of_text = None
            if layer < len(self.image_blocks):
                of_text = self.image_blocks[layer].image_memory(x_NTD, visible_NT)
            x_NTD, _ = look(x_NTD, causal=False, memory=look.image_memory(y_NSD, visible_NS), visible_NT=visible_NT)
            if of_text is not None:
                y_NSD, _ = self.image_blocks[layer](y_NSD, causal=False, memory=of_text, visible_NT=visible_NS)
        return self.norm(x_NTD), ()
