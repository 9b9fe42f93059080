"""L_joint: images and their captions meet in one embedding space (contrastive), or are judged together (matching).

With several ranks a batch's pairs are those of all ranks together, and a rank's loss is the share of its own
captions: the shares add up to the loss of one process with the whole batch, gradients included.

Shapes: B images (G of all ranks together), K captions an image, E width of the shared space, D width of the fused
states.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.models.layers import at_least_float32
from velm_cli.models.text.interface import mean_of_text
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives.pooling import QueryPooling
from velm_cli.objectives.ranks import of_all_ranks, rank_and_ranks

LARGEST_SCALE = 100.0  # of cosines in the contrastive loss: a temperature of 0.01, as in CLIP


class _SharedSpace(nn.Module):
    """Cosines of images and captions in a learned space.

    Without `queries` an image is what its encoder calls pooled and a text the mean of its states, and both are mapped
    linearly. With them both are seen by so many learned queries too, see `QueryPooling`.
    """

    def __init__(
        self, image_width: int, text_width: int, width: int, *, queries: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.image = nn.Linear((1 + queries) * image_width, width, bias=False)
        self.text = nn.Linear((1 + queries) * text_width, width, bias=False)
        self.image_pooling = QueryPooling(image_width, queries, dropout) if queries else None
        self.text_pooling = QueryPooling(text_width, queries, dropout) if queries else None

    def pool_images(self, features: ImageFeatures) -> Tensor:
        """(B, D'): what `image` maps."""
        if self.image_pooling is None:
            return features.pooled_BD
        return self.image_pooling(  # type: ignore[no-any-return]
            features.pooled_BD, features.tokens_BSD, features.visible_BS
        )

    def pool_texts(self, states_NTD: Tensor, lengths_N: Tensor) -> Tensor:
        """(N, D'): what `text` maps; of a text of length 0 it is anything."""
        mean_ND = mean_of_text(states_NTD, lengths_N)
        if self.text_pooling is None:
            return mean_ND
        visible_NT = torch.arange(states_NTD.shape[1], device=states_NTD.device) < lengths_N[:, None]
        return self.text_pooling(mean_ND, states_NTD, visible_NT)  # type: ignore[no-any-return]

    def embed(self, image_BD: Tensor, text_BKD: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, E) and (B, K, E)."""
        return self.embed_images(image_BD), self.embed_texts(text_BKD)

    def embed_images(self, image_BD: Tensor) -> Tensor:
        """Unit vectors (B, E) of what `pool_images` returns."""
        return F.normalize(at_least_float32(self.image(image_BD)), dim=-1)

    def embed_texts(self, text_ND: Tensor) -> Tensor:
        """Unit vectors (..., E) of what `pool_texts` returns."""
        return F.normalize(at_least_float32(self.text(text_ND)), dim=-1)

    def cosines(self, image_BD: Tensor, text_BKD: Tensor) -> Tensor:
        """(K, B, B): caption slot, image b, caption of image c; this rank's only."""
        return _cosines(*self.embed(image_BD, text_BKD))


def _cosines(image_BE: Tensor, text_CKE: Tensor) -> Tensor:
    """In the vectors' own precision: bfloat16 would round a cosine times 100 to halves."""
    device = image_BE.device.type
    available = torch.amp.is_autocast_available(device)  # a dry run's meta device knows no autocast
    with torch.autocast(device, enabled=False) if available else contextlib.nullcontext():
        return torch.einsum("be,cke->kbc", image_BE, text_CKE)


class ContrastiveLoss(_SharedSpace):
    """Symmetric InfoNCE with learned temperature (CLIP; Radford et al. 2021), K captions an image.

    The batch's k-th captions and its images form one B x B problem for each k, so an image's own other
    captions are never its negatives. Captions of length 0 (empty slots) take no part.

    The scale 1 / temperature is kept below its limit after each step, not in forward: there it would lose its gradient.
    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        width: int,
        temperature: float,
        *,
        queries: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(image_width, text_width, width, queries=queries, dropout=dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, image_BD: Tensor, text_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """Sum over present captions of (image->text + text->image cross-entropy) / 2, nats."""
        scale = self.log_scale.exp()
        rank, ranks = rank_and_ranks()
        image_BE, text_BKE = self.embed(image_BD, text_BKD)
        images_KBG = scale * _cosines(image_BE, of_all_ranks(text_BKE))  # this rank's images with all captions
        texts_KGB = images_KBG if ranks == 1 else scale * _cosines(of_all_ranks(image_BE), text_BKE)
        present_KB, present_KG = present_BK.t(), of_all_ranks(present_BK).t()
        own_KB = images_KBG.diagonal(offset=rank * len(image_BD), dim1=1, dim2=2)
        text_to_image_KB = own_KB - texts_KGB.logsumexp(dim=1)
        choices = images_KBG.masked_fill(~present_KG[:, None, :], float("-inf"))
        image_to_text_KB = own_KB - choices.masked_fill(~present_KB[:, :, None], 0.0).logsumexp(dim=2)
        return -(0.5 * (text_to_image_KB + image_to_text_KB)).masked_fill(~present_KB, 0.0).sum()

    @torch.no_grad()
    def limit_scale(self) -> None:
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


class SigmoidLoss(_SharedSpace):
    """Every image-caption pair of a slot by itself: does it belong together (SigLIP; Zhai et al. 2023)?

    Scale and bias start at 10 and -10, as in the paper. Empty slots take no part.
    """

    def __init__(
        self, image_width: int, text_width: int, width: int, *, queries: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__(image_width, text_width, width, queries=queries, dropout=dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, image_BD: Tensor, text_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """Sum over present captions and all images of -log p(belongs or not), nats."""
        image_BE, text_BKE = self.embed(image_BD, text_BKD)
        image_GE = of_all_ranks(image_BE)
        logits_KGB = self.log_scale.exp() * _cosines(image_GE, text_BKE) + self.bias
        own_B = rank_and_ranks()[0] * len(image_BE) + torch.arange(len(image_BE), device=image_BE.device)
        sign_GB = 2.0 * (torch.arange(len(image_GE), device=image_BE.device)[:, None] == own_B) - 1
        return -F.logsigmoid(sign_GB * logits_KGB).masked_fill(~present_BK.t()[:, None, :], 0.0).sum()


class MatchingLoss(nn.Module):
    """Do this image and this caption belong together (ALBEF; Li et al. 2021)? From the fused state at its end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, 1)

    def forward(self, fused_XD: Tensor, match_X: Tensor, counts_X: Tensor) -> Tensor:
        """Sum of the binary cross-entropy over the pairs that count, nats."""
        loss_X = F.binary_cross_entropy_with_logits(self.logits(fused_XD), match_X, reduction="none")
        return loss_X.masked_fill(~counts_X, 0.0).sum()

    def logits(self, fused_XD: Tensor) -> Tensor:
        """(X,): the larger, the likelier do they belong together."""
        return at_least_float32(self.classifier(fused_XD))[:, 0]


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
