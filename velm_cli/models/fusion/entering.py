"""Fusions in which the image enters the text encoder: before the text (prefix) or between its layers (gated).

Both leave a frozen language model as it is and teach only the way in. Shapes: B images, N = B * K texts,
T text and S image positions, P prefix positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from velm_cli.data.layout import Layout
from velm_cli.data.packing import Packing
from velm_cli.models.fusion.interface import Fusion
from velm_cli.models.fusion.projecting import projector, shuffled
from velm_cli.models.layers import Block, CrossAttention, Dropout, initialise, product_dtype
from velm_cli.models.state import ImageItself, ImageKeys
from velm_cli.models.text.interface import TextEncoder
from velm_cli.models.vision.interface import ImageFeatures
from velm_cli.models.vision.tiles import TileMarks
from velm_cli.schema import GatedConfig, PrefixConfig, PrefixMapper


class Prefix(Fusion):
    """fused = text encoder([m(image) ; embedded text]) at the text's positions.

    `mapper=mlp`: P positions from the pooled image by W2 tanh(W1 x) (ClipCap; Mokady et al. 2021);
    `mapper=transformer`: P learned queries and the image tokens in transformer blocks together (same paper);
    `mapper=resampler`: P learned queries attend to each other and to the image tokens, which stay as they are: less
    work where these are many (Perceiver; Jaegle et al. 2021. Flamingo; Alayrac et al. 2022. Q-Former; Li et al. 2023);
    `mapper=tokens`: every image token, or every square of `shuffle` x `shuffle`, through a projector (`projecting.py`).
    With `tiles` each view has a learned position before its own that says which it is.
    The positions start as large as the text's embeddings are; with `norm=False` they are as the map makes them.
    """

    after_text = False
    no_decay = ("queries",)
    words_attend = False

    def __init__(self, config: PrefixConfig, image_width: int, text: TextEncoder, *, tiles: int = 1) -> None:
        """`tiles`: a side, that images are cut into besides the whole."""
        super().__init__()
        width = text.embedding_width
        self.mapper, self.length, self.shuffle = config.mapper, config.length, config.shuffle
        self.takes_padding = config.mapper is not PrefixMapper.tokens
        self.uses = frozenset({"pooled" if config.mapper is PrefixMapper.mlp else "tokens"})
        self.norm_image = nn.LayerNorm(image_width) if config.norm else nn.Identity()
        self.map: nn.Module
        if config.mapper is PrefixMapper.mlp:
            inner = max(image_width, width * config.length // 2)
            self.map = nn.Sequential(nn.Linear(image_width, inner), nn.Tanh(), nn.Linear(inner, config.length * width))
        elif config.mapper is PrefixMapper.tokens:
            self.map = projector(config, image_width, width)
        else:
            resamples = config.mapper is PrefixMapper.resampler
            self.map = nn.Identity() if resamples else nn.Linear(image_width, width)
            self.queries = nn.Parameter(torch.randn(1, config.length, width))
            self.blocks: list[Block] = nn.ModuleList(  # type: ignore[assignment]
                Block(width, config.heads, config.dropout, image_width if resamples else None)
                for _ in range(config.layers)
            )
            initialise(self, config.layers)
        self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        self.scale = nn.Parameter(torch.tensor(text.embedding_scale)) if config.norm else 1.0
        self.marks_tiles = tiles > 1 and config.mapper is PrefixMapper.tokens
        if self.marks_tiles:
            self.marks = TileMarks(tiles, width, 1.0 if config.norm else text.embedding_scale)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        if self.mapper is PrefixMapper.mlp:
            x_BPD = self.map(self.norm_image(features.pooled_BD)).unflatten(-1, (self.length, -1))
        elif self.mapper is PrefixMapper.tokens:
            # Padding between the image and the text would count as positions.
            assert features.visible_BS is None, "objectives/rules.py refuses mapper=tokens of padded rows"
            x_BPD = self._of_tokens(self.norm_image(features.tokens_BSD), max(1, features.images))
        else:
            x_BPD = self._of_queries(self.map(self.norm_image(features.tokens_BSD)), features.visible_BS)
        return (self.scale * self.norm(x_BPD),)

    def _of_tokens(self, tokens_BSD: Tensor, images: int) -> Tensor:
        """(B, P, D) of so many images side by side."""
        views = images * self.marks.views if self.marks_tiles else images
        if views > 1 and self.shuffle > 1:  # each view is a grid by itself
            apart_RSD = shuffled(tokens_BSD.unflatten(1, (views, -1)).flatten(0, 1), self.shuffle)
            tokens_BSD = apart_RSD.unflatten(0, (-1, views)).flatten(1, 2)
        else:
            tokens_BSD = shuffled(tokens_BSD, self.shuffle)
        x_BPD: Tensor = self.map(tokens_BSD)
        return self.marks.before(x_BPD.unflatten(1, (views, -1))).flatten(1, 2) if self.marks_tiles else x_BPD

    def _of_queries(self, image_BSD: Tensor, visible_BS: Tensor | None) -> Tensor:
        """(B, P, D): the learned queries when they have read the image."""
        queries_BPD = self.queries.expand(image_BSD.shape[0], -1, -1)
        if self.mapper is PrefixMapper.resampler:
            for block in self.blocks:
                memory = block.image_memory(image_BSD, visible_BS)
                queries_BPD, _ = block(queries_BPD, causal=False, memory=memory)
            return queries_BPD
        x_BPD = torch.cat([queries_BPD, image_BSD], dim=1)
        visible_BP = _with_queries(visible_BS, self.length)
        for block in self.blocks:
            x_BPD, _ = block(x_BPD, causal=False, visible_NT=visible_BP)
        return x_BPD[:, : self.length]

    def read(
        self,
        text: TextEncoder,
        tokens_NT: Tensor,
        memory: tuple,
        state=None,
        *,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, tuple]:
        x_NTD = text.embed(tokens_NT)
        if state is None:
            prefix_BPD = memory[0]
            texts = tokens_NT.shape[0] // prefix_BPD.shape[0]  # torch.export takes len() for a constant
            prefix_NPD = prefix_BPD.repeat_interleave(texts, dim=0)
            x_NTD = torch.cat([prefix_NPD.to(x_NTD.dtype), x_NTD], dim=1)
            lengths_N = None if lengths_N is None else lengths_N + prefix_NPD.shape[1]
        y_NTD, state = text.run(x_NTD, state, lengths_N=lengths_N)
        return y_NTD[:, -tokens_NT.shape[1] :], state

    def read_row(self, text: TextEncoder, tokens_M: Tensor, prefix_RPD: Tensor | None, layout: Layout) -> Tensor:
        """(M, D): states of a row of tokens, the trees of whose layout begin with a row of the prefix each."""
        assert prefix_RPD is not None
        R, P, _ = prefix_RPD.shape
        x_1ME = text.embed(tokens_M[None])
        x_1ME = torch.cat([prefix_RPD.to(x_1ME.dtype).flatten(0, 1)[None], x_1ME], dim=1)
        return text.run_row(x_1ME, layout.after(P))[0, R * P :]


def _with_queries(visible_BS: Tensor | None, queries: int) -> Tensor | None:
    """(B, queries + S): the queries in front see each other."""
    return None if visible_BS is None else functional.pad(visible_BS, (queries, 0), value=True)


class Gated(Fusion):
    """Before each of the text encoder's layers:  x = x + tanh(a) CrossAttention(x, image);  x = x + tanh(b) MLP(x).

    The gates a and b start at 0, so a pretrained language model starts unchanged (Flamingo; Alayrac et al.
    2022). `every=n` puts them before every n-th layer only.
    """

    after_text = False
    uses = frozenset({"tokens"})

    def __init__(self, config: GatedConfig, image_width: int, text: TextEncoder) -> None:
        super().__init__()
        self.every = config.every
        self.norm_image = nn.LayerNorm(image_width)
        self.blocks: list[GatedBlock] = nn.ModuleList(  # type: ignore[assignment]
            GatedBlock(text.layer_width, image_width, config.heads, config.dropout)
            for _ in range(0, text.num_layers, config.every)
        )

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        image_BSD = self.norm_image(features.tokens_BSD)
        return tuple(block.cross.memory(image_BSD, features.visible_BS) for block in self.blocks)

    def memory_for(self, features: ImageFeatures | None, positions: int) -> tuple:
        assert features is not None
        image_BSD = self.norm_image(features.tokens_BSD)
        image_BSD = image_BSD.to(product_dtype(image_BSD))  # once, and not for each block and word
        return tuple(block.cross.memory_for(image_BSD, positions, features.visible_BS) for block in self.blocks)

    def read(
        self,
        text: TextEncoder,
        tokens_NT: Tensor,
        memory: tuple,
        state=None,
        *,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, tuple]:
        def before_layer(layer: int, x_NTD: Tensor) -> Tensor:
            number, rest = divmod(layer, self.every)
            return x_NTD if rest else self.blocks[number](x_NTD, memory[number])

        return text.run(text.embed(tokens_NT), state, before_layer=before_layer, lengths_N=lengths_N)


class GatedBlock(nn.Module):
    """x + tanh(a) CrossAttention(norm(x), image), then x + tanh(b) MLP(norm(x)); a = b = 0 at first."""

    def __init__(self, width: int, image_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_cross, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross = CrossAttention(width, image_width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = Dropout(dropout)
        self.gate_cross, self.gate_mlp = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x_NTD: Tensor, memory: ImageKeys | ImageItself) -> Tensor:
        x_NTD = x_NTD + self.gate_cross.tanh() * self.dropout(self.cross(self.norm_cross(x_NTD), memory))
        return x_NTD + self.gate_mlp.tanh() * self.dropout(self.mlp(self.norm_mlp(x_NTD)))
