"""Fusions in which text positions look at image positions: attention, cross_modal, and both ways co_attention.

Shapes: B images, N = B * K texts, T text and S image positions, A attention width, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from velm_cli.models.fusion.interface import Fusion
from velm_cli.models.layers import Block, CrossAttention, initialise, within
from velm_cli.models.text.interface import TextEncoder
from velm_cli.models.vision.interface import ImageFeatures
from velm_cli.schema import AttentionConfig, AttentionScore, CoAttentionConfig, CrossModalConfig


class Attention(Fusion):
    """fused_t = norm(text_t + W2 gelu(W1 [text_t ; c_t])), c_t = sum_i softmax_i(score(text_t, image_i)) W_v image_i.

    `score=additive`: u . tanh(W_q text_t + W_k image_i) (Bahdanau et al. 2015; Xu et al. 2015); its largest
    tensor has N * T * S * A numbers. `score=dot`: scaled dot product with heads (Vaswani et al. 2017).
    """

    uses = frozenset({"tokens"})

    def __init__(self, config: AttentionConfig, image_width: int, width: int) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(image_width)
        self.look: CrossAttention | AdditiveAttention
        if config.score is AttentionScore.additive:
            self.look = AdditiveAttention(width, image_width, config.width)
        else:
            self.look = CrossAttention(width, image_width, config.heads)
        self.join = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        return self.look.memory(self.norm_image(features.tokens_BSD))

    def forward(
        self, text_NTD: Tensor, memory: tuple, state=None, *, lengths_N: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        context_NTD = self.look(text_NTD, memory)
        return self.norm(text_NTD + self.join(torch.cat([text_NTD, context_NTD], dim=-1))), ()


class AdditiveAttention(nn.Module):
    """c = sum_i softmax_i(u . tanh(W_q q + W_k image_i)) W_v image_i (Bahdanau et al. 2015)."""

    def __init__(self, width: int, image_width: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(image_width, inner, bias=False)
        self.value = nn.Linear(image_width, width)
        self.score = nn.Linear(inner, 1, bias=False)

    def memory(self, image_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(image_BSD), self.value(image_BSD)

    def forward(self, x_NTD: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        return (self._weights(x_NTD, memory[0]) @ memory[1]).view(*x_NTD.shape[:2], -1)

    def weights(self, x_NTD: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """(N, T, S): the share of each image position in what a text position sees."""
        return self._weights(x_NTD, memory[0]).view(*x_NTD.shape[:2], -1)

    def _weights(self, x_NTD: Tensor, key_BSA: Tensor) -> Tensor:
        """(B, K * T, S)"""
        query_BXA = self.query(x_NTD).view(len(key_BSA), -1, key_BSA.shape[-1])  # X = K * T
        return self.score((query_BXA[:, :, None] + key_BSA[:, None]).tanh())[..., 0].softmax(-1)


class CrossModal(Fusion):
    """Transformer blocks in which the text attends to itself (causally) and to the image positions.

    x = x + SelfAttention(x);  x = x + CrossAttention(x, image);  x = x + MLP(x), pre-norm
    (the decoder of Vaswani et al. 2017; for captions Cornia et al. 2020 and others).
    """

    uses = frozenset({"tokens"})

    def __init__(self, config: CrossModalConfig, image_width: int, text: TextEncoder) -> None:
        super().__init__()
        width, self.causal = text.width, text.causal
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

    def forward(
        self, text_NTD: Tensor, memory: tuple, state=None, *, lengths_N: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        x_NTD, caches = text_NTD, []
        visible_NT = None if self.causal else within(lengths_N, text_NTD.shape[1])
        for layer, block in enumerate(self.blocks):
            cache = None if state is None else state[layer]
            x_NTD, cache = block(x_NTD, causal=self.causal, cache=cache, memory=memory[layer], visible_NT=visible_NT)
            caches.append(cache)
        return self.norm(x_NTD), tuple(caches)


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
        return (self.image(features.tokens_BSD),)

    def forward(
        self, text_NTD: Tensor, memory: tuple, state=None, *, lengths_N: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        x_NTD, (image_BSD,) = text_NTD, memory
        y_NSD = image_BSD.repeat_interleave(len(x_NTD) // len(image_BSD), dim=0)
        visible_NT = within(lengths_N, x_NTD.shape[1])
        for layer, look in enumerate(self.text_blocks):
            of_text = None
            if layer < len(self.image_blocks):
                of_text = self.image_blocks[layer].image_memory(x_NTD)
            x_NTD, _ = look(x_NTD, causal=False, memory=look.image_memory(y_NSD), visible_NT=visible_NT)
            if of_text is not None:
                y_NSD, _ = self.image_blocks[layer](y_NSD, causal=False, memory=of_text, visible_memory_BS=visible_NT)
        return self.norm(x_NTD), ()
