"""A list of texts of which one is written: what may come next after each beginning (a trie), as tensors.

Shapes: N texts that are being written, V vocabulary, E edges of the trie, M edges that leave the N places.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


class AllowedTexts:
    """Places 0 (nothing written yet), 1, 2 ... in the trie; the last one is behind every text, where only ends follow.

    What `prefix_allowed_tokens_fn` is to transformers' `generate`, without a call of Python for each text and step.
    """

    def __init__(
        self, texts: Sequence[Sequence[int]], ends: Collection[int], vocab_size: int, device: torch.device | str
    ) -> None:
        """`texts`: their tokens; behind each, any of `ends` ends it."""
        children: list[dict[int, int]] = [{}]
        complete = set()
        for text in texts:
            place = 0
            for token in text:
                if token not in children[place]:
                    children[place][token] = len(children)
                    children.append({})
                place = children[place][token]
            complete.add(place)
        last = len(children)
        children.append({})
        for place in (*complete, last):
            children[place] |= dict.fromkeys(ends, last)
        edges = [
            (place * vocab_size + token, token, to)
            for place, following in enumerate(children)
            for token, to in following.items()
        ]
        edges.sort()
        counts = torch.tensor([len(each) for each in children])
        self.vocab_size, self.last = vocab_size, last
        self.count_P = counts.to(device)  # P: places
        self.first_P = (counts.cumsum(0) - counts).to(device)
        self.key_E, self.token_E, self.to_E = (torch.tensor(each, device=device) for each in zip(*edges, strict=True))

    def of(self, score_NV: Tensor, place_N: Tensor) -> Tensor:
        """The scores of tokens that may follow; minus infinity for the others."""
        count_N = self.count_P[place_N]
        row_M = torch.arange(len(place_N), device=place_N.device).repeat_interleave(count_N)
        within_M = torch.arange(len(row_M), device=place_N.device) - (count_N.cumsum(0) - count_N)[row_M]
        token_M = self.token_E[self.first_P[place_N][row_M] + within_M]
        found_NV = torch.full_like(score_NV, -torch.inf)
        found_NV[row_M, token_M] = score_NV[row_M, token_M]
        return found_NV

    def after(self, place_BK: Tensor, token_BK: Tensor) -> Tensor:
        """The places behind these tokens; behind one that may not follow, the last place."""
        key_BK = place_BK * self.vocab_size + token_BK
        edge_BK = torch.searchsorted(self.key_E, key_BK).clamp(max=len(self.key_E) - 1)
        return torch.where(self.key_E[edge_BK] == key_BK, self.to_E[edge_BK], self.last)
