"""Source text as memory: what a writer looks at is the image's tokens and those of a question, sentence or document.

The source has a bidirectional encoder of its own, whose states stand behind the image's tokens: fusions, decoding and
search take them as further positions of the image. Without vision the source is all there is to look at.

Shapes: B examples, L source positions, S image positions, E width of embeddings, D width of the memory.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.models.text import build_text
from velm_cli.models.text.interface import BeforeLayer, TextEncoder, mean_of_text
from velm_cli.models.text.scratch import RecurrentText, TransformerText
from velm_cli.models.vision.interface import ImageFeatures
from velm_cli.schema import BertConfig, CausalLMConfig, GRUConfig, LSTMConfig, TextConfig, TransformerConfig

HEAD_WIDTH = 64  # of the encoder's attention beside a causal language model


class SourceEncoder(nn.Module):
    """Image features and a source in, features of both out: tokens = [image ; source], each position visible or not.

    The encoder is of the kind of `text`: a transformer, or two recurrent nets, one of which reads from the end
    (Schuster & Paliwal 1997), of `layers` layers, on the embedding of the text encoder that writes, so a word is the
    same in question and answer; BERT with pretrained weights of its own; for a causal language model, which cannot
    read in both directions, a transformer of `layers` layers on the model's embedding.

    pooled = norm(image pooled) + norm(mean of the source): a learned sum, normalised since encoders differ a
    hundredfold in scale, and the larger would drown the other.
    """

    def __init__(
        self, config: TextConfig, text: TextEncoder, *, layers: int, vocab_size: int, image_width: int | None
    ) -> None:
        """`text`: the encoder that `config` describes. `image_width`: None without vision."""
        super().__init__()
        self.encoder: TextEncoder | None = None
        self.enter: nn.Module = nn.Identity()
        match config:
            case _ if not layers:
                pass
            case TransformerConfig():
                self.encoder = TransformerText(replace(config, layers=layers), None, causal=False)
            case LSTMConfig() | GRUConfig():
                self.encoder = BothWays(replace(config, layers=layers))
            case CausalLMConfig():
                width = text.embedding_width
                own = TransformerConfig(width=width, layers=layers, heads=_heads(width))
                self.encoder = TransformerText(own, None, causal=False)
                self.enter = nn.LayerNorm(width)  # a model's embeddings are of any scale, and positions are of 0.7
            case BertConfig():
                self.encoder = build_text(config, vocab_size, causal=False)
            case _:
                raise AssertionError(f"no encoder of the source for {type(config).__name__}")
        self.embeds = isinstance(config, BertConfig)  # itself, that is: not by the text encoder
        self.width = image_width or text.width
        self.project = nn.Linear((self.encoder or text).width, self.width)
        self.norm_source = nn.LayerNorm(self.width)
        self.norm_image = nn.LayerNorm(self.width) if image_width else None

    def forward(
        self,
        text: TextEncoder,
        features: ImageFeatures | None,
        source_BL: Tensor,
        lengths_B: Tensor,
        *,
        states_BLD: Tensor | None = None,
        multiple: int = 1,
    ) -> ImageFeatures:
        """Features of images (of B examples; None without vision) and sources together.

        `states`: of the sources, where they have no encoder of their own. L is made a multiple of `multiple`. A length
        of 0 is an example without source; where it has no image, either, one position of zeros is visible.
        """
        if self.encoder is not None:
            embedded_BLE = self.encoder.embed(source_BL) if self.embeds else self.enter(text.embed(source_BL))
            states_BLD, _ = self.encoder.run(embedded_BLE, lengths_N=lengths_B)
        assert states_BLD is not None, "nobody has read the source"
        position_L = torch.arange(source_BL.shape[1], device=source_BL.device)
        source_BLD = self.project(states_BLD).masked_fill((position_L >= lengths_B[:, None])[:, :, None], 0.0)
        mean_BD = self.norm_source(mean_of_text(source_BLD, lengths_B))
        source_BLD = F.pad(source_BLD, (0, 0, 0, -source_BL.shape[1] % multiple))
        position_L = torch.arange(source_BLD.shape[1], device=source_BL.device)
        if features is None:
            return ImageFeatures(source_BLD, mean_BD, position_L < lengths_B[:, None].clamp(min=1), of_image=0)
        assert self.norm_image is not None
        tokens_BSD, visible_BS = features.tokens_BSD, features.visible_BS
        if visible_BS is None:
            visible_BS = torch.ones(tokens_BSD.shape[:2], dtype=torch.bool, device=tokens_BSD.device)
        return ImageFeatures(
            torch.cat([tokens_BSD, source_BLD.to(tokens_BSD.dtype)], dim=1),
            self.norm_image(features.pooled_BD) + mean_BD,
            torch.cat([visible_BS, position_L < lengths_B[:, None]], dim=1),
            of_image=tokens_BSD.shape[1],
            images=features.images,
        )

    def freeze_unused(self, *, pooled: bool) -> None:
        """Freeze what only `pooled` is made of, unless a fusion takes it."""
        for norm in (self.norm_source, self.norm_image):
            if norm is not None and not pooled:
                norm.requires_grad_(False)


class BothWays(TextEncoder):
    """Two recurrent encoders, the second of which reads from the end of each text; the width is that of both."""

    causal = False

    def __init__(self, config: LSTMConfig | GRUConfig) -> None:
        super().__init__()
        self.forth, self.back = RecurrentText(config, None), RecurrentText(config, None)
        self.width = 2 * config.width

    def run(
        self,
        embedded_NTE: Tensor,
        state=None,
        *,
        before_layer: BeforeLayer | None = None,
        lengths_N: Tensor | None = None,
    ) -> tuple[Tensor, tuple]:
        """(N, T, D). What stands behind a text is read after it, so it changes none of its states."""
        assert lengths_N is not None and state is None and before_layer is None
        position_T = torch.arange(embedded_NTE.shape[1], device=embedded_NTE.device)
        from_end_NT = (lengths_N[:, None] - 1 - position_T).clamp(min=0)  # which undoes itself within a text
        forth_NTD, _ = self.forth.run(embedded_NTE)
        back_NTD, _ = self.back.run(_taken(embedded_NTE, from_end_NT))
        return torch.cat([forth_NTD, _taken(back_NTD, from_end_NT)], dim=-1), ()


def _taken(x_NTD: Tensor, position_NT: Tensor) -> Tensor:
    return x_NTD.gather(1, position_NT[:, :, None].expand_as(x_NTD))


def _heads(width: int) -> int:
    """As many as divide `width` into parts of HEAD_WIDTH or more."""
    return next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)
