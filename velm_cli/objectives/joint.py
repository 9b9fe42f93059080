"""L_joint: images and their captions meet in one embedding space (contrastive)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ContrastiveLoss(nn.Module):
    """Symmetric InfoNCE with learned temperature (CLIP; Radford et al. 2021), K captions an image.

    The batch's k-th captions and its images form one B x B problem for each k, so an image's own other
    captions are never its negatives. Captions of length 0 (empty slots) take no part.
    """

    def __init__(self, image_width: int, text_width: int, width: int, temperature: float) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, width, bias=False)
        self.text = nn.Linear(text_width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, image_BD: Tensor, text_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """Sum over present captions of (image->text + text->image cross-entropy) / 2, nats."""
        image_BE = F.normalize(self.image(image_BD).float(), dim=-1)
        text_BKE = F.normalize(self.text(text_BKD).float(), dim=-1)
        scale = self.log_scale.clamp(max=math.log(100.0)).exp()
        # logits_KBC: caption slot, image b, caption of image c
        logits_KBC = scale * torch.einsum("be,cke->kbc", image_BE, text_BKE)
        present_KB = present_BK.t()
        own_KB = logits_KBC.diagonal(dim1=1, dim2=2)
        text_to_image_KC = own_KB - logits_KBC.logsumexp(dim=1)
        choices = logits_KBC.masked_fill(~present_KB[:, None, :], float("-inf"))
        image_to_text_KB = own_KB - choices.masked_fill(~present_KB[:, :, None], 0.0).logsumexp(dim=2)
        return -(0.5 * (text_to_image_KC + image_to_text_KB)).masked_fill(~present_KB, 0.0).sum()
