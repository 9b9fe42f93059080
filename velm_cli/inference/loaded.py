"""What the parts of a `Model` that have files of their own ask of it: its module imports them, and not they it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from tqdm import tqdm

from velm_cli.data.batch import Batch
from velm_cli.inference.abilities import Able
from velm_cli.inference.examples import Given
from velm_cli.inference.pictures import Picture


class Loaded(Protocol):
    """A `Model`; what each of these does stands there."""

    _able: Able

    @property
    def device(self) -> torch.device: ...

    def needs(self, kind: str) -> None: ...

    def stored(self, picture: Picture) -> bytes: ...

    def _batches(self, given: Given, batch_size: int) -> Iterator[Batch]: ...

    def _steps(self, many: bool) -> AbstractContextManager[Any]: ...

    def _autocast(self) -> AbstractContextManager[Any]: ...

    def _bar(self, pictures: Any, unit: str, progress: bool) -> tqdm: ...
