"""What every text encoder is: tokens_NT -> states_NTD, causal, with a state for going on token by token.

With `causal=False` (masked words, two streams) every position sees the whole text, there is no going on, and
`lengths_N` says how many positions of each padded row are text. A causal encoder takes no notice of lengths:
what follows a position cannot change it.

Shapes: N sequences, T positions, E width of the embeddings, D width of the states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.data.layout import Layout
from velm_cli.data.packing import Packing

BeforeLayer = Callable[[int, Tensor], Tensor]  # (number of the layer, its input) -> what it gets instead


class TextEncoder(nn.Module):
    """Whole sequences (state None) and one token at a time give the same states."""

    width: int  # D
    embedding_width: int  # E
    num_layers: int  # places for `before_layer`; 0 where nothing can enter between layers
    causal: bool = True
    packs: bool = False  # whether `run` takes a `packing`
    takes_layouts: bool = False  # whether `run` takes a `layout`: a row (1, M, E) in, its states out, and no state
    branches: bool = False  # whether the texts of an image are read as branches of it, where nothing says otherwise
    keeps_state: bool = True  # False: passes that learn return nothing to go on from (engine/recomputing.py)
    hides_padding: bool = False  # whether positions can be hidden from later ones (`state.without_ends`)
    no_decay: tuple[str, ...] = ()  # its parts and parameters that are no matrices: positions, types of text
    head: nn.Linear | None  # the output layer, where it does not share the embedding's weights
    head_bias: Tensor | None = None  # (V or more): what the output layer's bias starts from; None is 0
    output_scale: float = 1.0  # of logits, before their bias
    output_cap: float = 0.0  # of `soft_capped` logits; 0 = not capped

    @property
    def layer_width(self) -> int:
        """Of what enters the layers."""
        return self.width

    @property
    def embedding_scale(self) -> float:
        """Root mean square of the embedded tokens that `run` gets."""
        raise NotImplementedError

    @property
    def output_weight(self) -> Tensor:
        """(V or more, D): the matrix of the output layer."""
        raise NotImplementedError

    def embed(self, tokens_NT: Tensor) -> Tensor:
        """(N, T) -> (N, T, E)"""
        raise NotImplementedError

    def run(
        self,
        embedded_NTE: Tensor,
        state=None,
        *,
        before_layer: BeforeLayer | None = None,
        lengths_N: Tensor | None = None,
    ) -> tuple[Tensor, tuple]:
        """States of further positions after those that made `state`, and the state that goes on from there."""
        raise NotImplementedError

    def run_row(self, embedded_1ME: Tensor, layout: Layout) -> Tensor:
        """(1, M, D): the states of sequences that share beginnings, or nothing. Encoders that take no layouts read each
        sequence by itself, and what several share as often as there are."""
        if self.takes_layouts:
            run: Any = self.run
            states_1MD: Tensor = run(embedded_1ME, layout=layout)[0]
            return states_1MD
        assert self.causal
        place_FT, at_M = (torch.from_numpy(places).to(embedded_1ME.device) for places in layout.sequences())
        embedded_FTE = embedded_1ME[0].index_select(0, place_FT.flatten().clamp(min=0)).view(*place_FT.shape, -1)
        states_FTD, _ = self.run(embedded_FTE, lengths_N=(place_FT >= 0).sum(1))
        return states_FTD.flatten(0, 1).index_select(0, at_M)[None]

    def forward(
        self, tokens_NT: Tensor, state=None, *, lengths_N: Tensor | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, tuple]:
        """With `packing` only the states of the positions that it has are of use, those of the others are anything."""
        more: dict[str, Any] = {"packing": packing} if self.packs and packing is not None else {}
        return self.run(self.embed(tokens_NT), state, lengths_N=lengths_N, **more)


def mean_of_text(states_NTD: Tensor, lengths_N: Tensor) -> Tensor:
    """Mean over the first `lengths` positions of each text (N, D); zeros where a length is 0."""
    positions = torch.arange(states_NTD.shape[1], device=states_NTD.device)
    mask_NT1 = (positions < lengths_N[:, None]).unsqueeze(-1).to(states_NTD.dtype)
    return (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1)
