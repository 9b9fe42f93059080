"""Several tasks at once: a model that their learners share, each batch of one part of a mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from velm_cli.data.batch import Batch
from velm_cli.learners.interface import Learner, Moment
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.terms import Term

HEADS = "heads"


class MixedLearner(Learner):
    """Hands each batch to the learner of its part's task. Terms are called PART/TERM.

    The model is registered once, as `model`; what else a learner has (heads, criteria) as `heads.TASK`. The learners
    themselves are not: they are the same modules under other names.
    """

    def __init__(self, model: VelmModel, learners: Mapping[str, Learner], parts: Mapping[str, str]) -> None:
        """`learners`: by task, all with this `model`. `parts`: the task of each part."""
        super().__init__()
        assert all(learner.model is model for learner in learners.values())
        self.model = model
        self.heads = nn.ModuleDict(
            {
                task: nn.ModuleDict({name: head for name, head in learner.named_children() if name != "model"})
                for task, learner in learners.items()
            }
        )
        self._learners = dict(learners)  # in a dict, where torch does not look for modules
        self._task_of = dict(parts)
        self.parts = tuple(parts)
        self.weights = {f"{part}/{term}": weight for part in parts for term, weight in self.of(part).weights.items()}
        self.log_variance = nn.ParameterDict()  # a mixture's weights are given: see validate

    def of(self, part: str) -> Learner:
        return self._learners[self._task_of[part]]

    def counts(self, batch: Batch) -> dict[str, int]:
        found = self.of(batch.part).counts(batch)
        own = {f"{batch.part}/{term}": count for term, count in found.items()}
        return {name: own.get(name, 0) for name in self.weights}

    def forward(self, batch: Batch, now: Moment) -> dict[str, Term]:
        mine = f"{batch.part}/"
        active = frozenset(name.removeprefix(mine) for name in now.active if name.startswith(mine))
        terms = self.of(batch.part)(batch, Moment(active, now.step, now.steps_per_epoch))
        return {mine + name: term for name, term in terms.items()}

    def shares(self, batches: Sequence[Batch]) -> dict[str, float]:
        turns = Counter(batch.part for batch in batches)
        return {name: turns[name.partition("/")[0]] / len(batches) for name in self.weights}

    def settled(self, steps_per_epoch: float) -> float:
        return max(learner.settled(steps_per_epoch) for learner in self._learners.values())

    def after_step(self) -> None:
        for learner in self._learners.values():
            learner.after_step()

    def train(self, mode: bool = True) -> MixedLearner:
        super().train(mode)
        for learner in self._learners.values():
            learner.training = mode  # of modules that they share, which have been told
        return self
