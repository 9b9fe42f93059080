"""What every learner is: batches in, terms of a loss out. The engine imports nothing else of learners and tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from velm_cli.data.batch import Batch
from velm_cli.data.pixels import Pixels
from velm_cli.models.layers import layers_in
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.terms import Term
from velm_cli.objectives.weights import Weight


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of training, and the terms whose weight is not 0 in it. In validation: all that are ever active."""

    active: frozenset[str]
    step: int = 0
    steps_per_epoch: float = 1.0


class Learner(nn.Module):
    """A model with its objectives.

    The loop minimises sum_i weight_i * (sum of term i) / (global count of term i); what the terms are is the learner's
    own business, and so are the schedules of what else changes while it trains.
    """

    model: VelmModel
    weights: Mapping[str, Weight]  # alpha, beta, gamma by the name of their term
    log_variance: nn.ParameterDict  # s of each term whose weight exp(-s) is learned
    concepts: int = 0  # labels that L_image predicts
    parts: tuple[str, ...] = ()  # of a mixture whose tasks it learns, each batch of one

    @property
    def pixels(self) -> Pixels | None:
        """What it takes of an image; None where it looks at none."""
        vision = self.model.vision
        return Pixels(self.model.image_size, vision.mean, vision.std, vision.resizing) if vision else None

    @property
    def active(self) -> frozenset[str]:
        """The terms that have a weight at any step."""
        return frozenset(name for name, weight in self.weights.items() if not weight.always_zero)

    def counts(self, batch: Batch) -> dict[str, int]:
        """By term, the number of items that its sum runs over; known before any computing."""
        raise NotImplementedError

    def forward(self, batch: Batch, now: Moment) -> dict[str, Term]:
        """The terms that are active, and nothing computed that they do not need."""
        raise NotImplementedError

    def of(self, part: str) -> Learner:
        """What learns of this part of a mixture."""
        return self

    def shares(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Of terms that not all micro-batches of a step have: the share of those that do, by which it counts."""
        return {}

    def settled(self, steps_per_epoch: float) -> float:
        """The optimiser step from which on one and the same loss is minimised."""
        return max(weight.settled(steps_per_epoch) for weight in self.weights.values())

    def wrapped(self) -> Iterable[nn.Module]:
        """The layers of its encoders, which repeat: each is sharded (fsdp) by itself."""
        model = self.model
        layers = [*(model.vision.stages() if model.vision else ()), *layers_in(model.text)]
        return layers if model.source is None else [*layers, *layers_in(model.source)]

    def rates(self) -> Iterable[tuple[str, Iterable[nn.Parameter]]]:
        """Parts that may learn at a rate of their own, by the name of the option that scales it."""
        model = self.model
        return [
            ("vision_lr_scale", model.vision.parameters() if model.vision else ()),
            ("text_lr_scale", model.text.parameters()),
            ("fusion_lr_scale", model.fusion.parameters()),
        ]

    def after_step(self) -> None:
        """Bring parameters that have a limit back to it, after each step of the optimiser."""
