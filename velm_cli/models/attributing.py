"""What of an image a score depends on, for models that attend to nothing: by gradients, and by hiding parts of it.

Attribution is read off the model from outside: a `score` is any function of the encoder's features, such as the log
probability of each word. Shapes: B images, W scores of each, S image positions, D width, n cells a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from velm_cli.models.looking import has_grid, on_grid
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.models.vision.regions import Regions

Score = Callable[[ImageFeatures], Tensor]  # features of B images -> (B, W); an image's scores depend on it alone

CELLS = 8  # a side, of the squares that are hidden
WINDOW = 2  # cells a side, of one square
STEPS = 8  # from the mean position to the image's own, at which gradients are taken
STAGES_BACK = 3  # of the encoder that are tried, from its end


def gradient_maps(model: VelmModel, image_BCHW: Tensor, score: Score) -> Tensor:
    """(B, W, h, w): what each score gains where a position of the image says what it does, not what all say on average.

    Integrated gradients (Sundararajan et al. 2017) of STEPS steps, at the last grid of the encoder that the score
    depends on (as Grad-CAM; Selvaraju et al. 2017): all positions go from their mean to what they are, and
    sum_d gradient . (activation - mean) of a position is its part of what the score gains by that. Negative where the
    score would be higher without. Where nothing in the encoder has a grid, of the pixels.
    """
    for whole in _places(model, image_BCHW):
        grid_B = whole.grid
        mean = grid_B.mean(dim=whole.over, keepdim=True)
        total = None
        for step in range(STEPS):
            along = torch.lerp(mean.expand_as(grid_B), grid_B, (step + 0.5) / STEPS).requires_grad_()
            with torch.enable_grad():
                score_BW = score(whole.features(along))
                columns = score_BW.sum(0).unbind()
                grads = [
                    torch.autograd.grad(column, along, retain_graph=w + 1 < len(columns), allow_unused=True)[0]
                    for w, column in enumerate(columns)
                ]
            each = torch.stack([torch.zeros_like(along) if grad is None else grad for grad in grads], dim=1)
            total = each if total is None else total + each
        assert total is not None
        map_BWhw = whole.map(total * (grid_B - mean)[:, None] / STEPS)
        if map_BWhw.any():
            break
    return map_BWhw


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


class _Place(NamedTuple):
    """Somewhere on the way from the image to its features."""

    grid: Tensor  # what the image's positions say there, (B, S, D) or pixels; tokens before the grid stay as they are
    over: tuple[int, ...]  # the dimensions of positions
    features: Callable[[Tensor], ImageFeatures]  # of such a grid
    map: Callable[[Tensor], Tensor]  # from (B, W, ...) of such a grid to (B, W, h, w)


@torch.no_grad()
def _place(model: VelmModel, tokens_BSD: Tensor, after: Callable[[Tensor], ImageFeatures]) -> _Place:
    """`after`: from tokens to the encoder's features."""
    positions = tokens_BSD.shape[1]
    several = isinstance(model.vision, Regions) or model.tiles > 1  # no grid, or those of several views
    before = 0 if several else positions - math.isqrt(positions) ** 2
    first_BSD, grid_BSD = tokens_BSD.detach().split((before, positions - before), dim=1)
    return _Place(
        grid_BSD,
        (1,),
        lambda x_BSD: model.passed_on(after(torch.cat([first_BSD, x_BSD], dim=1))),
        lambda x_BWSD: on_grid(model, x_BWSD.sum(-1), grid_BSD),
    )


def _places(model: VelmModel, image_BCHW: Tensor) -> Iterator[_Place]:
    """From the end of the encoder to the pixels.

    A class token knows nothing of the last block's grid; where the score depends on it alone, the grid before counts.
    """
    vision = model.encoder
    assert model.vision is not None
    if isinstance(model.vision, Regions) or model.vision.joined:
        with torch.no_grad():
            said = vision(image_BCHW)
        of_tokens = isinstance(model.vision, Regions)  # pooled is their mean; else of class tokens
        if has_grid(model, said.tokens_BSD.shape[1]):
            yield _place(
                model,
                said.tokens_BSD,
                lambda x_BSD: ImageFeatures(x_BSD, x_BSD.mean(1) if of_tokens else said.pooled_BD),
            )
    else:
        last = len(vision.stages())
        for stages in range(last, max(0, last - STAGES_BACK), -1):
            with torch.no_grad():
                hidden_BSD = vision.begin(image_BCHW, stages)
            if has_grid(model, hidden_BSD.shape[1]):
                yield _place(model, hidden_BSD, partial(vision.finish, stages=stages))
    yield _Place(image_BCHW, (2, 3), lambda x_BCHW: model.passed_on(vision(x_BCHW)), _in_cells)


def _in_cells(x_BWCHW: Tensor) -> Tensor:
    """(B, W, n, n): sums over the pixels of cells of pixels."""
    map_BWHW = x_BWCHW.sum(2)
    cells = min(2 * CELLS, *map_BWHW.shape[-2:])
    return functional.adaptive_avg_pool2d(map_BWHW, cells)
