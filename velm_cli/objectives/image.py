"""L_image: which concepts (frequent content words of the captions) does the image show?"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConceptLoss(nn.Module):
    """Multi-label classification from the pooled image: binary cross-entropy summed over concepts.

    One linear layer; its bias starts at logit(0.02), since an image shows few of many concepts.
    """

    def __init__(self, image_width: int, concepts: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(image_width, concepts)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.constant_(self.classifier.bias, -3.9)

    def forward(self, pooled_BD: Tensor, concepts_BC: Tensor) -> Tensor:
        """Sum over images and concepts, nats."""
        logits_BC = self.classifier(pooled_BD).float()
        return F.binary_cross_entropy_with_logits(logits_BC, concepts_BC, reduction="sum")
