"""A memory of decoding's own: what exists once an image, of images that leave and join.

Shapes: B images in dimension 0 of every tensor.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from velm_cli.models.state import Rows, alike, like


class Memory:
    """A nested memory of one's own, whose images leave and join without moving those that stay.

    What several layers share exists once, and stays shared.
    """

    def __init__(self, nested: Any, images: int) -> None:
        """A copy of `nested`, laid out as attention reads it fastest."""
        self.images = images
        self._parts: list[Tensor] = []
        self._outline = self._keep(nested, {})

    def _keep(self, nested: Any, known: dict[int, int]) -> Any:
        """`nested` with numbers of parts instead of tensors."""
        if isinstance(nested, Tensor):
            if id(nested) not in known:
                known[id(nested)] = len(self._parts)
                self._parts.append(nested.clone(memory_format=torch.contiguous_format))
            return known[id(nested)]
        return None if nested is None else like(nested, (self._keep(part, known) for part in nested))

    def nested(self) -> Any:
        """The tensors of the images that are there."""
        return self._filled(self._outline)

    def _filled(self, outline: Any) -> Any:
        if isinstance(outline, int):
            return self._parts[outline][: self.images]
        return None if outline is None else like(outline, map(self._filled, outline))

    def move(self, rows: Rows) -> None:
        """Only the images that go on are left."""
        for part in self._parts:
            rows.move(part)
        self.images = len(rows.source_BK)

    def images_of(self, start: int, stop: int) -> Memory:
        """Images `start` to `stop`: a view."""
        some = copy(self)
        some.images, some._parts = stop - start, [part[start:stop] for part in self._parts]
        return some

    def alike(self, other: Memory) -> bool:
        """Whether they differ in nothing but their images."""
        return self._outline == other._outline and alike(self._parts, other._parts)

    def join(self, other: Memory) -> None:
        """The images of another one behind its own."""
        before, self.images = self.images, self.images + other.images
        for number, (part, its_part) in enumerate(zip(self._parts, other._parts, strict=True)):
            if len(part) >= self.images:
                part[before : self.images] = its_part[: other.images]
            else:
                self._parts[number] = torch.cat([part[:before], its_part[: other.images]])
