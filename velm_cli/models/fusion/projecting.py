"""How `fusion.mapper=tokens` makes positions of a language model from image tokens: fewer of them, then their width.

Shapes: S image positions, h x w of them in a grid, D width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.schema import PrefixConfig, Projector


def shuffled(tokens_BSD: Tensor, factor: int) -> Tensor:
    """(B, S', factor² D): each square of `factor` x `factor` positions of the grid as one, row by row (pixel shuffle).

    Space to depth of the features (Shi et al. 2016 backwards), as InternVL (Chen et al. 2024), Idefics3 (Laurençon et
    al. 2024) and nanoVLM use it: within a square its rows stand one behind the other. Tokens before the square grid (a
    class token, registers) have no place in it and are left out. UserError where the grid is no multiple of `factor`.
    """
    positions = tokens_BSD.shape[1]
    side = math.isqrt(positions)
    if side % factor:
        divisors = [str(n) for n in range(2, side + 1) if side % n == 0 and n <= 16]
        ways = [f"fusion.shuffle={'|'.join(divisors)}"] if divisors else []
        ways += [f"vision.grid={side // factor * factor}"] if side > factor else []
        raise UserError(
            f"fusion.shuffle={factor}: the grid of the image has {side} x {side} positions, no multiple of {factor}: "
            f"take {' or '.join([*ways, 'another vision.image_size'])}"
        )
    if factor == 1:
        return tokens_BSD
    grid_BhwD = tokens_BSD[:, positions - side * side :].unflatten(1, (side, side))
    squares = grid_BhwD.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # B, h/f, f, w/f, f, D
    return squares.transpose(2, 3).flatten(3).flatten(1, 2)


def projector(config: PrefixConfig, image_width: int, width: int) -> nn.Module:
    """From tokens of `image_width`, `config.shuffle`² of them side by side, to `width`.

    `mlp`: W2 gelu(W1 x), as LLaVA-1.5 (Liu et al. 2023). `linear`: W x, as Idefics3 and nanoVLM, which have no bias.
    """
    taken = image_width * config.shuffle**2
    if config.projector is Projector.linear:
        return nn.Linear(taken, width, bias=False)
    return nn.Sequential(nn.Linear(taken, width), nn.GELU(), nn.Linear(width, width))
