"""What an evaluation needs of whatever predicts: a run of velm, or a model that velm did not train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from velm_cli.data.store import Store
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.signals import StopRequest
from velm_cli.metrics.scores import Scores
from velm_cli.tasks import Task
from velm_cli.tasks.interface import ExampleId


class Predictor(Protocol):
    """Made from the command alone; UserError there where it cannot do the task. In the order in which it is asked."""

    task: Task[Any]
    name: str  # names its weights in the folders of evaluations
    weights: Path  # file or folder of them
    goes_on: bool  # whether an evaluation that was stopped goes on from what it has written
    images: int | None  # places of an example's images that it tells apart (`vision.images`); None: it sees none

    def data(self, store: Store) -> str:
        """Names the data in the folders of evaluations."""

    def refuse_unfit(self, store: Store, indices: np.ndarray) -> None:
        """UserError with a line for all that predictions of these examples would fail at."""

    def opened(self, store: Store) -> Iterator[str]:
        """For a dry run: lines about what lies in its files, and what may not be meant."""

    def digest(self, store: Store, ranks: Ranks) -> str:
        """SHA-256 of its weights, the same on all ranks."""

    def make_ready(self, store: Store) -> None:
        """UserError for what else its files lack, before the evaluation has a folder."""

    def predict(
        self, store: Store, indices: np.ndarray, path: Path, about: Mapping[str, str], ranks: Ranks, stop: StopRequest
    ) -> dict[ExampleId, Any]:
        """A prediction for every example on all ranks; fewer only when a stop is requested. `path`: the evaluation's
        folder; `about`: the digests of weights and data."""

    def trained_on(self, store: Store) -> bool:
        """Whether the store's training part is what it learned from."""

    def told(self) -> dict[str, str]:
        """What the signature of its scores says of it."""

    def report(
        self,
        path: Path,
        scores: Scores,
        store: Store,
        indices: np.ndarray,
        predicted: Mapping[ExampleId, Any],
        facts: Mapping[str, float | None],
    ) -> Path:
        """Write report.html of the evaluation in `path`."""
