"""L_joint: images and their captions meet in one embedding space (contrastive), or are judged together (matching).

Shapes: B images, K captions an image, E width of the shared space, D width of the fused states.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _SharedSpace(nn.Module):
    """Cosines of images and captions in a learned space."""

    def __init__(self, image_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, width, bias=False)
        self.text = nn.Linear(text_width, width, bias=False)

    def cosines(self, image_BD: Tensor, text_BKD: Tensor) -> Tensor:
        """(K, B, B): caption slot, image b, caption of image c."""
        image_BE = F.normalize(self.image(image_BD).float(), dim=-1)
        text_BKE = F.normalize(self.text(text_BKD).float(), dim=-1)
        return torch.einsum("be,cke->kbc", image_BE, text_BKE)


class ContrastiveLoss(_SharedSpace):
    """Symmetric InfoNCE with learned temperature (CLIP; Radford et al. 2021), K captions an image.

    The batch's k-th captions and its images form one B x B problem for each k, so an image's own other
    captions are never its negatives. Captions of length 0 (empty slots) take no part.
    """

    def __init__(self, image_width: int, text_width: int, width: int, temperature: float) -> None:
        super().__init__(image_width, text_width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, image_BD: Tensor, text_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """Sum over present captions of (image->text + text->image cross-entropy) / 2, nats."""
        scale = self.log_scale.clamp(max=math.log(100.0)).exp()
        logits_KBC = scale * self.cosines(image_BD, text_BKD)
        present_KB = present_BK.t()
        own_KB = logits_KBC.diagonal(dim1=1, dim2=2)
        text_to_image_KC = own_KB - logits_KBC.logsumexp(dim=1)
        choices = logits_KBC.masked_fill(~present_KB[:, None, :], float("-inf"))
        image_to_text_KB = own_KB - choices.masked_fill(~present_KB[:, :, None], 0.0).logsumexp(dim=2)
        return -(0.5 * (text_to_image_KC + image_to_text_KB)).masked_fill(~present_KB, 0.0).sum()


class SigmoidLoss(_SharedSpace):
    """Every image-caption pair of a slot by itself: does it belong together (SigLIP; Zhai et al. 2023)?

    Scale and bias start at 10 and -10, as in the paper. Empty slots take no part.
    """

    def __init__(self, image_width: int, text_width: int, width: int) -> None:
        super().__init__(image_width, text_width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, image_BD: Tensor, text_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """Sum over present captions and all images of -log p(belongs or not), nats."""
        logits_KBC = self.log_scale.exp() * self.cosines(image_BD, text_BKD) + self.bias
        sign_BC = 2 * torch.eye(len(image_BD), device=image_BD.device) - 1
        return -F.logsigmoid(sign_BC * logits_KBC).masked_fill(~present_BK.t()[:, None, :], 0.0).sum()


class MatchingLoss(nn.Module):
    """Do this image and this caption belong together (ALBEF; Li et al. 2021)? From the fused state at its end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, 1)

    def forward(self, fused_XD: Tensor, match_X: Tensor) -> Tensor:
        """Sum over pairs of the binary cross-entropy, nats."""
        logits_X = self.classifier(fused_XD).float()[:, 0]
        return F.binary_cross_entropy_with_logits(logits_X, match_X, reduction="sum")


def hard_negatives(similarity_BC: Tensor, possible_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (image, caption) that do not belong together, drawn the likelier the more similar (Li et al. 2021).

    One caption for each image and one image for each caption, off the diagonal and where `possible` says so;
    rows and columns without any choice are left out. Returns the indices of both (X each).
    """
    B = len(similarity_BC)
    diagonal = torch.eye(B, dtype=torch.bool, device=similarity_BC.device)
    allowed = possible_BC & ~diagonal
    weights = similarity_BC.detach().softmax(dim=1).clamp(min=1e-8).masked_fill(~allowed, 0.0)
    rows = allowed.any(dim=1).nonzero()[:, 0]
    columns = (allowed.any(dim=0) & possible_BC.diagonal()).nonzero()[:, 0]
    caption_of_row = torch.multinomial(weights[rows], 1)[:, 0] if len(rows) else rows
    weights = similarity_BC.detach().t().softmax(dim=1).clamp(min=1e-8).masked_fill(~allowed.t(), 0.0)
    image_of_column = torch.multinomial(weights[columns], 1)[:, 0] if len(columns) else columns
    return torch.cat([rows, image_of_column]), torch.cat([caption_of_row, columns])
