"""What every fusion is: text tokens and an image in, fused states out, position t blind to text after t.

Shapes: B images, N = B * K texts (the K texts of an image adjacent), T text and S image positions, D width.
Memory and state are nested tuples of tensors, image or text first (or of a `Past`), so that decoding can drop, reorder
and join rows without knowing what is inside. States whose tensors grow join none: their batches wait for each other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from velm_cli.data.layout import Layout
from velm_cli.data.packing import Packing
from velm_cli.models.text.interface import TextEncoder
from velm_cli.models.vision.interface import ImageFeatures


class Fusion(nn.Module):
    """fused_NTD = f(text, image).

    `memory(features)` does once an image what does not depend on the text. Most fusions take the states of
    the finished text encoder (`forward`); those that put the image before or into it override `read`.
    """

    uses: frozenset[str] = frozenset()  # of {"tokens", "pooled"}: what it takes of the image
    after_text = True  # whether the text passes its encoder without the image
    takes_padding = True  # whether rows of images may have fewer positions than others: `ImageFeatures.visible_BS`
    packs = False  # whether `forward` takes a `packing`: `read` then gets one, too
    no_decay: tuple[str, ...] = ()  # its parts and parameters that weight decay leaves alone: positions, queries
    generates = True  # False: fused states of a position know later words
    words_attend = True  # whether what attends to the image in it is the text's positions
    marks_tiles = False  # whether it says itself which tile of an image a token is of

    def memory(self, features: ImageFeatures | None) -> tuple:
        raise NotImplementedError

    def memory_for(self, features: ImageFeatures | None, positions: int) -> tuple:
        """`memory` for decoding about `positions` tokens an image, of all its texts together, in steps of one each."""
        return self.memory(features)

    def forward(
        self, text_NTD: Tensor, memory: tuple, state=None, *, lengths_N: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        """From text states to fused states; `state` goes on from earlier positions, `lengths` as in TextEncoder."""
        raise NotImplementedError

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
        """From tokens to fused states (N, T, D), the text encoder included.

        With `packing` only the states of the positions that it has are of use, those of the others are anything.
        """
        text_state, own_state = (None, None) if state is None else state
        text_NTD, text_state = text(tokens_NT, text_state, lengths_N=lengths_N, packing=packing)
        more: dict[str, Any] = {} if packing is None else {"packing": packing}
        fused_NTD, own_state = self(text_NTD, memory, own_state, lengths_N=lengths_N, **more)
        return fused_NTD, (text_state, own_state)


class NoFusion(Fusion):
    """fused_t = text_t: a language model, or an image model beside it."""

    packs = True

    def memory(self, features: ImageFeatures | None) -> tuple:
        return ()

    def forward(
        self,
        text_NTD: Tensor,
        memory: tuple,
        state=None,
        *,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, tuple]:
        return text_NTD, ()

    def read_row(self, text: TextEncoder, tokens_M: Tensor, prefix_RPD: Tensor | None, layout: Layout) -> Tensor:
        """(M, D): states of a row of tokens. Nothing stands before the trees of its layout."""
        return text.run_row(text.embed(tokens_M[None]), layout)[0]
