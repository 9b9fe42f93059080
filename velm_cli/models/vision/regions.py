"""`vision=rcnn`: regions of torchvision's Faster R-CNN as visual tokens (Anderson et al. 2018).

Shapes: B images, R regions, F width of a region's features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.models.vision.interface import ImageFeatures, VisionEncoder
from velm_cli.models.vision.torchvision_nets import load_weights, taken_by
from velm_cli.schema import RegionsConfig

# Whose published weights torchvision (`overwrite_eps`) runs without an eps in the norms.
NO_EPS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn")
GEOMETRY = 5  # x0, y0, x1, y1 as shares of the image, and the share of its area
CANDIDATES = 4  # proposals that are classified for each region that is kept


class Regions(VisionEncoder):
    """tokens = [RoI features ; box geometry] of the `regions` boxes most surely of some class; pooled = their mean.

    The proposals themselves are taken as given: no gradient reaches the region proposal network or the
    detector's own classifier. Fewer proposals than regions are filled up with the whole image. With weights the net is
    the one that torchvision makes for weights, whose norms keep the statistics they have; without, its norms learn.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the detector normalises its images itself

    def __init__(self, config: RegionsConfig) -> None:
        super().__init__()
        import torchvision

        size = config.image_size
        self.net: Any = torchvision.models.get_model(
            config.net, weights=None, weights_backbone=None, min_size=size, max_size=size
        )
        if config.weights != "none":
            _keep_statistics(self.net.backbone, config.net)
        self.notes = taken_by(self.net, load_weights(config), config, ())
        self.net.rpn.requires_grad_(False)
        self.net.roi_heads.box_predictor.requires_grad_(False)
        self.regions = config.regions
        (*_, last) = (part for part in self.net.roi_heads.box_head.modules() if isinstance(part, nn.Linear))
        self.width = last.out_features + GEOMETRY

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        B, _, H, W = image_BCHW.shape
        if image_BCHW.is_meta:  # sizes only: boxes depend on pixels
            return ImageFeatures(image_BCHW.new_empty(B, self.regions, self.width), image_BCHW.new_empty(B, self.width))
        images, _ = self.net.transform(list(image_BCHW))
        maps = self.net.backbone(images.tensors)
        boxes = self._boxes(images, maps)
        features_BRF = self._features(maps, boxes, images.image_sizes)
        corners_BR4 = torch.stack(boxes) / images.tensors.new_tensor([W, H, W, H])
        area_BR1 = ((corners_BR4[..., 2:] - corners_BR4[..., :2]).prod(-1, keepdim=True)).clamp(min=0)
        tokens_BRD = torch.cat([features_BRF, corners_BR4, area_BR1], dim=-1)
        return ImageFeatures(tokens_BRD, tokens_BRD.mean(dim=1))

    @torch.no_grad()
    def _boxes(self, images: Any, maps: dict[str, Tensor]) -> list[Tensor]:
        """R boxes (x0, y0, x1, y1 in pixels) an image, the surest first."""
        self.net.rpn.eval()
        proposals, _ = self.net.rpn(images, maps)
        chosen = []
        candidates = []
        for boxes, (height, width) in zip(proposals, images.image_sizes, strict=True):
            boxes = boxes[: CANDIDATES * self.regions]
            whole = boxes.new_tensor([[0.0, 0.0, width, height]]).expand(max(0, self.regions - len(boxes)), 4)
            candidates.append(torch.cat([boxes, whole]))
        heads = self.net.roi_heads
        pooled = heads.box_head(heads.box_roi_pool(maps, candidates, images.image_sizes))
        logits, _ = heads.box_predictor(pooled)
        surest = logits.softmax(-1)[:, 1:].amax(-1).split([len(boxes) for boxes in candidates])
        for boxes, score in zip(candidates, surest, strict=True):
            chosen.append(boxes[score.topk(self.regions).indices])
        return chosen

    def _features(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        heads = self.net.roi_heads
        return heads.box_head(heads.box_roi_pool(maps, boxes, sizes)).unflatten(0, (len(boxes), self.regions))

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        raise AssertionError("boxes and maps of several sizes are no rows; validate refuses to cache them")

    def stages(self) -> list[nn.Module]:
        return [self.net.backbone, self.net.roi_heads.box_head]


def _keep_statistics(backbone: nn.Module, name: str) -> None:
    """Replace batch normalisation as torchvision's builders of trained detectors do; those of `_v2` leave it."""
    if name.endswith("_v2"):
        return
    from torchvision.ops import FrozenBatchNorm2d

    options = {"eps": 0.0} if name in NO_EPS else {}
    for parent in list(backbone.modules()):
        for child, part in list(parent.named_children()):
            if isinstance(part, nn.BatchNorm2d):
                setattr(parent, child, FrozenBatchNorm2d(part.num_features, **options))
