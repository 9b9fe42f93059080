"""Text encoders: tokens_NT -> states_NTD, causal, with a state for going on token by token.

`forward(tokens, state)` takes any number of further tokens after those that made `state`; whole
sequences (state None) and one token at a time give the same states. Shapes: N sequences, T, D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from velm_cli.models.layers import Block, initialise, sinusoids
from velm_cli.schema import LSTMConfig, TextConfig, TransformerConfig


class TextEncoder(nn.Module):
    """The interface of every text encoder. `embedding` may be shared with the output layer."""

    width: int
    embedding: nn.Embedding

    def forward(self, tokens_NT: Tensor, state=None) -> tuple[Tensor, tuple]:
        raise NotImplementedError


class TransformerText(TextEncoder):
    """Causal pre-norm transformer (Vaswani et al. 2017) with sinusoidal positions."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.width = config.width
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        initialise(self, config.layers)

    def forward(self, tokens_NT: Tensor, state=None) -> tuple[Tensor, tuple]:
        past = 0 if state is None else state[0][0].shape[2]
        x_NTD = self.embedding(tokens_NT)
        # Embeddings are drawn at 0.02 for the shared output layer; scaled up here they weigh as much as
        # the positions.
        x_NTD = x_NTD * self.width**0.5 + sinusoids(past, tokens_NT.shape[1], self.width, x_NTD.device, x_NTD.dtype)
        x_NTD = self.dropout(x_NTD)
        caches = []
        for layer, block in enumerate(self.blocks):
            x_NTD, cache = block(x_NTD, causal=True, cache=None if state is None else state[layer])
            caches.append(cache)
        return self.norm(x_NTD), tuple(caches)


class LSTMText(TextEncoder):
    """LSTM (Hochreiter & Schmidhuber 1997); the state is (hidden_NLD, cell_NLD)."""

    def __init__(self, config: LSTMConfig, vocab_size: int) -> None:
        super().__init__()
        self.width = config.width
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.lstm = nn.LSTM(
            config.width,
            config.width,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        # The embedding is shared with the output layer, hence small; the input is scaled back up.
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens_NT: Tensor, state=None) -> tuple[Tensor, tuple]:
        x_NTD = self.dropout(self.embedding(tokens_NT) * self.width**0.5)
        if state is not None:
            state = tuple(part.transpose(0, 1).contiguous() for part in state)
        y_NTD, (hidden, cell) = self.lstm(x_NTD, state)
        return self.dropout(y_NTD), (hidden.transpose(0, 1), cell.transpose(0, 1))


def build_text(config: TextConfig, vocab_size: int) -> TextEncoder:
    """The encoder that `config` describes for a vocabulary of `vocab_size`, with its frozen parts."""
    encoder: TextEncoder
    match config:
        case TransformerConfig():
            encoder = TransformerText(config, vocab_size)
        case LSTMConfig():
            encoder = LSTMText(config, vocab_size)
        case _:
            raise AssertionError(f"no text encoder for {type(config).__name__}")
    if config.freeze == "all":
        encoder.requires_grad_(False)
    return encoder


def mean_of_text(states_NTD: Tensor, lengths_N: Tensor) -> Tensor:
    """Mean over the first `lengths` positions of each text (N, D); zeros where a length is 0."""
    positions = torch.arange(states_NTD.shape[1], device=states_NTD.device)
    mask_NT1 = (positions < lengths_N[:, None]).unsqueeze(-1).to(states_NTD.dtype)
    return (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1)
