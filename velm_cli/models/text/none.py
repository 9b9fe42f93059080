"""No text encoder, where a task reads and writes no text: what a model asks of one, and nothing to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from velm_cli.models.text.interface import TextEncoder


class NoText(TextEncoder):
    """It has a width, for the parts of a model that are shaped by it, and neither parameters nor words."""

    width = embedding_width = 1
    num_layers = 0
    causal = False  # so that nothing tries to write with it
    head = None

    @property
    def output_weight(self) -> Tensor:
        return torch.empty(0, self.width)
