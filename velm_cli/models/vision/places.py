"""Several images of an example, told apart: two photos of a statement, the frames of a video.

Side by side in a row of tokens, or as their mean, images would be a bag: "left" and "before" could not be learned.

Shapes: X images, B examples of I images each, S positions of an image, D width, R width of a summary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.models.vision.interface import ImageFeatures

SUMMARY = 128  # most numbers that an image has in `pooled` for each place
SMALL = 0.3  # of the image's own scale, which is 1: with 0.1 attention takes twice the steps to tell left from right


class ImagePlaces(nn.Module):
    """tokens_bis = norm(tokens_s of image i) + e_i;  pooled_b = mean_i norm(pooled_i) + sum_i U_i V norm(pooled_i).

    e_i is a learned embedding of the place, as segments and frames have in LXMERT's heirs and ViViT (Arnab et al.
    2021). It could not tell pooled images apart, since a sum of p_i + e_i is the same in any order; U_i, a matrix of
    its own for each place, can. `norm` has no parameters: encoders differ a hundredfold in scale, and an embedding
    beside tokens of 50 would take an epoch to be seen.
    """

    no_decay = ("place_ID",)

    def __init__(self, images: int, width: int) -> None:
        """`images`: the most that an example has."""
        super().__init__()
        summary = min(width, SUMMARY)
        self.place_ID = nn.Parameter(SMALL * torch.randn(images, width))
        self.down = nn.Linear(width, summary, bias=False)
        self.up_IRD = nn.Parameter(torch.empty(images, summary, width))
        nn.init.normal_(self.down.weight, std=width**-0.5)
        nn.init.normal_(self.up_IRD, std=SMALL * (images * summary) ** -0.5)

    @property
    def images(self) -> int:
        return len(self.place_ID)

    def forward(self, features: ImageFeatures, image_of_BI: Tensor | None, *, padded: bool = True) -> ImageFeatures:
        """`features` of X images for B examples: row `image_of` of X for each, -1 for none; None: one image each.

        The positions of an absent image are not visible; of an example without any, one position of zeros is.
        `padded=False`, for fusions that take no padding: an absent image is as many positions of zeros, and every
        example has as many as the most.
        """
        tokens_XSD = _normalised(features.tokens_BSD)
        pooled_XD = _normalised(features.pooled_BD)
        if image_of_BI is None:
            image_of_BI = torch.arange(tokens_XSD.shape[0], device=tokens_XSD.device)[:, None]
        assert image_of_BI.shape[1] <= self.images, "fitting.py refuses examples with more images than vision.images"
        if not padded:
            image_of_BI = F.pad(image_of_BI, (0, self.images - image_of_BI.shape[1]), value=-1)
        B, images = image_of_BI.shape
        rows, there_BI = image_of_BI.clamp(min=0).flatten(), image_of_BI >= 0
        there_BI1 = there_BI[:, :, None].to(pooled_XD.dtype)
        pooled_BID = pooled_XD.index_select(0, rows).view(B, images, -1) * there_BI1
        mean_BD = pooled_BID.sum(1) / there_BI1.sum(1).clamp(min=1)
        mixed_BD = torch.einsum("bir,ird->bd", self.down(pooled_BID), self.up_IRD[:images])
        tokens_BISD = tokens_XSD.index_select(0, rows).view(B, images, *tokens_XSD.shape[1:])
        tokens_BISD = (tokens_BISD + self.place_ID[:images, None]) * there_BI1[..., None].to(tokens_BISD.dtype)
        visible_BS = None
        if padded:
            visible_BIS = there_BI[:, :, None].expand(-1, -1, tokens_XSD.shape[1])
            if features.visible_BS is not None:
                visible_BIS = visible_BIS & features.visible_BS.index_select(0, rows).view_as(visible_BIS)
            visible_BS = visible_BIS.flatten(1)
            nothing_B1 = ~visible_BS.any(dim=1, keepdim=True)
            visible_BS = torch.cat([visible_BS[:, :1] | nothing_B1, visible_BS[:, 1:]], dim=1)
        return ImageFeatures(tokens_BISD.flatten(1, 2), mean_BD + mixed_BD, visible_BS, images=images)

    def freeze_unused(self, *, tokens: bool, pooled: bool) -> None:
        """Freeze what only `tokens`, or only `pooled`, are made of where nothing takes them."""
        if not tokens:
            self.place_ID.requires_grad_(False)
        if not pooled:
            self.down.requires_grad_(False)
            self.up_IRD.requires_grad_(False)


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
