"""What a frozen text encoder has said of texts, so that it reads each of them once.

Shapes: N texts, T positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from velm_cli.models.layers import product_dtype
from velm_cli.models.text.interface import TextEncoder


class Remembered:
    """States of all texts read so far, by their tokens, on the CPU: T * D numbers a text.

    In autocast's type, where that is on: states are then made of products of that type.
    """

    def __init__(self, text: TextEncoder) -> None:
        self.text = text
        self.states: dict[bytes, Tensor] = {}  # (T, D) of each text, its own positions only

    @torch.no_grad()
    def __call__(self, tokens_NT: Tensor, lengths_N: Tensor) -> Tensor:
        """(N, T, D): what the encoder says of texts of these lengths; zeros behind them."""
        rows, lengths = tokens_NT.to("cpu", torch.int32).numpy(), lengths_N.tolist()
        keys = [rows[n, :length].tobytes() for n, length in enumerate(lengths)]
        new = [n for key, n in {key: n for n, key in enumerate(keys)}.items() if key not in self.states]
        if new:
            which_n = torch.tensor(new, device=tokens_NT.device)
            longest = max(lengths[n] for n in new)
            read_nTD, _ = self.text(tokens_NT[which_n, : max(longest, 1)], lengths_N=lengths_N[which_n])
            kept_nTD = read_nTD.to("cpu", product_dtype(read_nTD))
            for n, kept_TD in zip(new, kept_nTD, strict=True):
                self.states[keys[n]] = kept_TD[: lengths[n]].clone()
        out_NTD = torch.zeros((*tokens_NT.shape, self.text.width), dtype=self.states[keys[0]].dtype)
        for n, key in enumerate(keys):
            out_NTD[n, : lengths[n]] = self.states[key]
        return out_NTD.to(tokens_NT.device).float()
