"""Text encoders that are trained from scratch: Transformer, LSTM, GRU.

The embedding is shared with the output layer, hence drawn small (0.02) and scaled up again where it is read.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from velm_cli.data.layout import Layout
from velm_cli.data.packing import Packing, spread
from velm_cli.models.layers import Block, Dropout, initialise, sinusoids, within
from velm_cli.models.rows import Seen
from velm_cli.models.state import Past
from velm_cli.models.text.interface import BeforeLayer, TextEncoder
from velm_cli.models.text.recurrent import packed_layer
from velm_cli.schema import GRUConfig, LSTMConfig, TransformerConfig

EMBEDDING_STD = 0.02


class _Scratch(TextEncoder):
    def __init__(self, width: int, vocab_size: int | None) -> None:
        """Without a vocabulary it runs on what another encoder has embedded."""
        super().__init__()
        self.width = self.embedding_width = width
        self.head = None
        if vocab_size is not None:
            self.embedding = nn.Embedding(vocab_size, width)
            nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)

    @property
    def embedding_scale(self) -> float:
        return EMBEDDING_STD * self.width**0.5

    @property
    def output_weight(self) -> Tensor:
        return self.embedding.weight

    def embed(self, tokens_NT: Tensor) -> Tensor:
        return self.embedding(tokens_NT) * self.width**0.5


class TransformerText(_Scratch):
    """Pre-norm transformer (Vaswani et al. 2017) with sinusoidal positions; causal unless told otherwise."""

    packs = hides_padding = True

    def __init__(self, config: TransformerConfig, vocab_size: int | None, *, causal: bool = True) -> None:
        super().__init__(config.width, vocab_size)
        self.causal = self.takes_layouts = causal
        self.num_layers = config.layers
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.dropout, mlp_width=config.mlp_width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        initialise(self, config.layers)

    def run(
        self,
        embedded_NTE: Tensor,
        state=None,
        *,
        before_layer: BeforeLayer | None = None,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, tuple]:
        assert packing is None or (self.causal and state is None and before_layer is None)
        N, T, _ = embedded_NTE.shape
        if layout is not None:
            assert self.causal and state is None and before_layer is None
            x_NTD = self.dropout(embedded_NTE + sinusoids(layout.position_M, self.width, embedded_NTE.dtype))
            seen = Seen.of(layout)
            for block in self.blocks:
                x_NTD, _ = block(x_NTD, causal=True, seen=seen)
            return self.norm(x_NTD), ()
        past, behind_N = (None, None) if state is None else state
        position_T = torch.arange(T, device=embedded_NTE.device)
        position = position_T if behind_N is None else behind_N[:, None] + position_T
        x_NTD = self.dropout(embedded_NTE + sinusoids(position, self.width, embedded_NTE.dtype))
        visible_NT = None if self.causal else within(lengths_N, T)
        if packing is not None:
            x_NTD = packing.pack(x_NTD)
        own, layers = [], repeat(None)
        if past is not None:
            past = past.grown(N, T)
            layers = past.layers()
        for number, (block, layer) in enumerate(zip(self.blocks, layers, strict=False)):
            if before_layer is not None:
                x_NTD = before_layer(number, x_NTD)
            x_NTD, key_value = block(x_NTD, causal=self.causal, past=layer, visible_NT=visible_NT, packing=packing)
            own.append(key_value)
        x_NTD = self.norm(x_NTD)
        if packing is not None:
            x_NTD = packing.pad(x_NTD)
        if past is None and own:
            past = Past.of(own)
        return x_NTD, (past, position_T.new_full((N,), T) if behind_N is None else behind_N + T)


class RecurrentText(_Scratch):
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014); the state is (hidden[, cell])_NLD."""

    num_layers = 0
    packs = True

    def __init__(self, config: LSTMConfig | GRUConfig, vocab_size: int | None) -> None:
        super().__init__(config.width, vocab_size)
        cell = nn.LSTM if isinstance(config, LSTMConfig) else nn.GRU
        between = config.dropout if config.layers > 1 else 0.0
        self.cells = cell(config.width, config.width, config.layers, batch_first=True, dropout=between)
        self.dropout = Dropout(config.dropout)

    def run(
        self,
        embedded_NTE: Tensor,
        state=None,
        *,
        before_layer: BeforeLayer | None = None,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, tuple]:
        """With `packing` no padding is computed on CPUs and by CUDA, and no state to go on from is returned."""
        assert before_layer is None, "validate refuses fusions that enter between a recurrent net's layers"
        if packing is not None and embedded_NTE.device.type in ("cpu", "cuda"):
            assert state is None
            x_MD = self.dropout(embedded_NTE.flatten(0, 1).index_select(0, packing.by_time_M))
            if embedded_NTE.device.type == "cpu":
                x_MD = self._on_cpu(x_MD, packing.sizes)
            else:
                x_MD = self._by_torch(PackedSequence(x_MD, packing.sizes))[0].data
            return spread(self.dropout(x_MD), packing.by_time_M, packing.texts, packing.length), ()
        x_NTD = self.dropout(embedded_NTE)
        if state is not None:  # torch wants the layer first
            state = tuple(part.transpose(0, 1).contiguous() for part in state)
            state = state if isinstance(self.cells, nn.LSTM) else state[0]
        y_NTD, state = self._by_torch(x_NTD, state)
        parts = state if isinstance(state, tuple) else (state,)
        return self.dropout(y_NTD), tuple(part.transpose(0, 1) for part in parts)

    def _on_cpu(self, x_MD: Tensor, sizes: Tensor) -> Tensor:
        """(M, D): the hidden states of texts in the order of time."""
        for layer in range(self.cells.num_layers):
            x_MD = packed_layer(self.dropout(x_MD) if layer else x_MD, self.cells, layer, sizes.tolist())
        return x_MD

    def _by_torch(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        """What torch's cells make of a tensor or a packed sequence: states of all positions, and behind the last.

        CUDA's autocast would run them in float16, whatever type it is set to, and small gradients would be lost.
        """
        if self.cells.weight_ih_l0.device.type == "cuda":
            with torch.autocast("cuda", enabled=False):
                return self.cells(x.float(), state)
        return self.cells(x, state)
