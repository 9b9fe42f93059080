"""What of an image a score depends on, for models that attend to nothing: by gradients, and by hiding parts of it.

Attribution is read off the model from outside: a `score` is any function of the encoder's features, such as the log
probability of each word. Shapes: B images, W scores of each, S image positions, D width, n cells a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from velm_cli.models.looking import has_grid, on_grid
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.models.vision.regions import Regions

Score = Callable[[ImageFeatures], Tensor]  # features of B images -> (B, W); an image's scores depend on it alone

CELLS = 8  # a side, of the squares that are hidden
WINDOW = 2  # cells a side, of one square
STAGES_BACK = 3  # of the encoder that are tried, from its end


def gradient_maps(model: VelmModel, image_BCHW: Tensor, score: Score) -> Tensor:
    """(B, W, h, w): by a first-order estimate, what each score loses where a position says the mean of all positions.

    gradient . (activation - mean activation), at the last grid of the encoder that the score depends on: gradients
    times activations (Selvaraju et al. 2017, position by position as Draelos & Carin 2020), counted from the mean
    instead of from 0. Negative where the score would rise. Where nothing in the encoder has a grid, of the pixels.
    """
    found_BWhw = None
    for leaf, features_of in _places(model, image_BCHW):
        leaf = leaf.detach().requires_grad_()
        with torch.enable_grad():
            score_BW = score(features_of(leaf))
            columns = [score_BW[:, w].sum() for w in range(score_BW.shape[1])]
            grads = [
                torch.autograd.grad(column, leaf, retain_graph=w + 1 < len(columns), allow_unused=True)[0]
                for w, column in enumerate(columns)
            ]
        leaf = leaf.detach()
        grad_BW = torch.stack([torch.zeros_like(leaf) if grad is None else grad for grad in grads], dim=1)
        if leaf.dim() == 4:  # pixels
            contrast = leaf - leaf.mean((2, 3), keepdim=True)
            return _in_cells((grad_BW * contrast[:, None]).sum(2))
        grid_BWSD = grad_BW if isinstance(model.vision, Regions) else _grid_part(grad_BW)
        x_BSD = leaf if isinstance(model.vision, Regions) else _grid_part(leaf)
        contrast_BSD = x_BSD - x_BSD.mean(1, keepdim=True)
        found_BWhw = on_grid(model, (grid_BWSD * contrast_BSD[:, None]).sum(-1), leaf)
        if found_BWhw.any():
            return found_BWhw
    assert found_BWhw is not None
    return found_BWhw


def occlusion_maps(model: VelmModel, image_BCHW: Tensor, score: Score) -> Tensor:
    """(B, W, n, n): what each score loses when a square of the image gets the image's mean colour.

    Squares of WINDOW cells a side are moved by one cell (Zeiler & Fergus 2014); a cell has the mean of the squares
    that cover it. Negative where the score rises.
    """
    with torch.no_grad():
        whole_BW = score(encoded(model, image_BCHW))
        sum_BWnn = whole_BW.new_zeros(*whole_BW.shape, CELLS, CELLS)
        count_nn = whole_BW.new_zeros(CELLS, CELLS)
        for row, column in squares():
            keep_nn = torch.ones(CELLS, CELLS, dtype=torch.bool, device=image_BCHW.device)
            keep_nn[row : row + WINDOW, column : column + WINDOW] = False
            loss_BW = whole_BW - score(encoded(model, hidden(image_BCHW, keep_nn[None])))
            sum_BWnn += torch.where(keep_nn, 0.0, loss_BW[:, :, None, None])
            count_nn += ~keep_nn
        return sum_BWnn / count_nn


def squares() -> Iterator[tuple[int, int]]:
    """The first row and column of cells of every square that is hidden."""
    places = range(CELLS - WINDOW + 1)
    return ((row, column) for row in places for column in places)


def hidden(image_BCHW: Tensor, keep_Bnn: Tensor, instead_BCHW: Tensor | None = None) -> Tensor:
    """The images with `instead` in the cells that are not to `keep`: their mean colour, unless another is given.

    `keep` is of each image or, with B = 1, of all.
    """
    H, W = image_BCHW.shape[-2:]
    row_H = torch.arange(H, device=image_BCHW.device) * keep_Bnn.shape[1] // H
    column_W = torch.arange(W, device=image_BCHW.device) * keep_Bnn.shape[2] // W
    keep_B1HW = keep_Bnn[:, row_H][:, :, column_W][:, None]
    instead = image_BCHW.mean((2, 3), keepdim=True) if instead_BCHW is None else instead_BCHW
    return torch.where(keep_B1HW, image_BCHW, instead)


def encoded(model: VelmModel, image_BCHW: Tensor) -> ImageFeatures:
    """As `encode_image`, of a model that has an encoder."""
    features = model.encode_image(image_BCHW)
    assert features is not None
    return features


def shares(maps_BWhw: Tensor) -> Tensor:
    """What speaks for a score, as shares of 1; a map with nothing above 0 stays 0."""
    positive = maps_BWhw.clamp(min=0)
    return positive / positive.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)


# ---------------------------------------------------------------------------------------- places


def _places(model: VelmModel, image_BCHW: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], ImageFeatures]]]:
    """(what the image is there, the features that the model makes of it), from the end of the encoder to the pixels.

    Class tokens know of the image only by the last block, so of those the grid before that one counts.
    """
    vision = model.vision
    assert vision is not None
    if isinstance(vision, Regions) or vision.joined:
        with torch.no_grad():
            features = vision(image_BCHW)
        pooled = isinstance(vision, Regions)  # the mean of its regions
        if has_grid(model, features.tokens_BSD.shape[1]):
            yield (
                features.tokens_BSD,
                lambda x_BSD: model.passed_on(ImageFeatures(x_BSD, x_BSD.mean(1) if pooled else features.pooled_BD)),
            )
    else:
        last = len(vision.stages())
        for stages in range(last, max(0, last - STAGES_BACK), -1):
            with torch.no_grad():
                x_BSD = vision.begin(image_BCHW, stages)
            if has_grid(model, x_BSD.shape[1]):
                yield x_BSD, lambda x_BSD, stages=stages: model.passed_on(vision.finish(x_BSD, stages))  # type: ignore[misc]
    yield image_BCHW, lambda x_BCHW: model.passed_on(vision(x_BCHW))


def _grid_part(x: Tensor) -> Tensor:
    """The positions of the grid, without what transformers put before them."""
    positions = x.shape[-2]
    side = int(positions**0.5 + 1e-9)
    return x[..., positions - side * side :, :]


def _in_cells(map_BWHW: Tensor) -> Tensor:
    """(B, W, n, n): sums over cells of pixels."""
    cells = min(CELLS * 2, *map_BWHW.shape[-2:])
    return torch.nn.functional.adaptive_avg_pool2d(map_BWHW, cells)
