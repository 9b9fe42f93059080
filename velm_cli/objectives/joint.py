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

    def forward(self, fused_XD: Tensor, match_X: Tensor, counts_X: Tensor) -> Tensor:
        """Sum of the binary cross-entropy over the pairs that count, nats."""
        logits_X = self.classifier(fused_XD).float()[:, 0]
        loss_X = F.binary_cross_entropy_with_logits(logits_X, match_X, reduction="none")
        return loss_X.masked_fill(~counts_X, 0.0).sum()


def hard_negatives(similarity_BC: Tensor, present_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (image, caption) that do not belong together, drawn the likelier the more similar (Li et al. 2021).

    One caption for each image, then one image for each caption; `present` says which captions exist. Returns
    image, caption and whether the pair counts (2B each): one without any choice does not. The number of pairs
    depends on no value, so a GPU need not be waited for.
    """
    diagonal = torch.eye(len(similarity_BC), dtype=torch.bool, device=similarity_BC.device)
    allowed_BC = present_C[None] & ~diagonal
    own = torch.arange(len(similarity_BC), device=similarity_BC.device)
    caption_B, image_C = _draw(similarity_BC, allowed_BC), _draw(similarity_BC.t(), allowed_BC.t())
    counts = torch.cat([allowed_BC.any(dim=1), allowed_BC.any(dim=0)])
    return torch.cat([own, image_C]), torch.cat([caption_B, own]), counts


def _draw(similarity_RC: Tensor, allowed_RC: Tensor) -> Tensor:
    """One allowed column for each row; column 0 where none is."""
    weights_RC = similarity_RC.detach().softmax(dim=1).clamp(min=1e-8).masked_fill(~allowed_RC, 0.0)
    weights_RC[:, 0] += (~allowed_RC.any(dim=1)).to(weights_RC.dtype)
    return torch.multinomial(weights_RC, 1)[:, 0]
