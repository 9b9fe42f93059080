"""L_image: which concepts (frequent content words of the captions) does the image show, or what was hidden of it?

Shapes: B images, S image positions, D width, C concepts (in image_BCHW: channels), H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.models.layers import at_least_float32
from velm_cli.schema import Reduction


class ConceptLoss(nn.Module):
    """Multi-label classification from the pooled image: binary cross-entropy, summed over concepts or their mean.

    One linear layer; its bias starts at logit(0.02), since an image shows few of many concepts.
    """

    def __init__(self, image_width: int, concepts: int, reduction: Reduction = Reduction.sum) -> None:
        super().__init__()
        self.divisor = concepts if reduction is Reduction.mean else 1
        self.classifier = nn.Linear(image_width, concepts)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.constant_(self.classifier.bias, -3.9)

    def forward(self, pooled_BD: Tensor, concepts_BC: Tensor) -> Tensor:
        """Sum over images of the sum or mean over concepts, nats."""
        logits_BC = at_least_float32(self.classifier(pooled_BD))
        return F.binary_cross_entropy_with_logits(logits_BC, concepts_BC, reduction="sum") / self.divisor


class MaskedPatchLoss(nn.Module):
    """Paint hidden squares in: mean absolute error of their pixels (SimMIM; Xie et al. 2022).

    The pixels of a `share` of the squares become 0, which is the mean colour once an image is normalised, so
    any encoder with a grid can be trained; one linear layer turns each position of the grid into the pixels
    that it stands for. Tokens that are no grid (a class token) come first and are left out.
    """

    def __init__(self, image_width: int, positions: int, image_size: int, *, patch_size: int, share: float) -> None:
        """`positions`: tokens of an image. Raises ValueError when squares or grid do not divide the image."""
        super().__init__()
        self.grid = math.isqrt(positions)
        if image_size % self.grid or image_size % patch_size:
            raise ValueError(
                f"an image of {image_size} pixels is not divided evenly by a grid of {self.grid} x {self.grid} "
                f"positions and squares of {patch_size} pixels"
            )
        self.patch_size, self.share = patch_size, share
        self.paint = nn.Linear(image_width, 3 * (image_size // self.grid) ** 2)
        nn.init.normal_(self.paint.weight, std=0.02)
        nn.init.zeros_(self.paint.bias)

    def hide(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The images with squares hidden, and where (B, 1, H, W; True where hidden)."""
        B, _, H, W = image_BCHW.shape
        squares = (H // self.patch_size) * (W // self.patch_size)
        order = torch.rand(B, squares, dtype=torch.float32, device=image_BCHW.device).argsort(dim=1).argsort(dim=1)
        hidden = (order < max(1, round(self.share * squares))).view(B, 1, H // self.patch_size, -1)
        hidden = hidden.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)
        return image_BCHW.masked_fill(hidden, 0.0), hidden

    def forward(self, tokens_BSD: Tensor, image_BCHW: Tensor, hidden_B1HW: Tensor) -> Tensor:
        """Sum over images of the mean absolute error of their hidden pixels (normalised colours)."""
        grid_BDhw = self.paint(tokens_BSD[:, -(self.grid**2) :]).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        painted_BCHW = F.pixel_shuffle(at_least_float32(grid_BDhw), image_BCHW.shape[2] // self.grid)
        error_BCHW = (painted_BCHW - image_BCHW).abs() * hidden_B1HW
        return (error_BCHW.sum((1, 2, 3)) / (3 * hidden_B1HW.sum((1, 2, 3)))).sum()
