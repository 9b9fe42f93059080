"""What a run learns of: one store as one task sees it, or the parts of a mixture, each with a config of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli import mixture
from velm_cli.data import opening
from velm_cli.data.features import FeatureCache
from velm_cli.data.loader import TrainLoader
from velm_cli.data.mixed import MixedLoader
from velm_cli.data.order import Share
from velm_cli.data.pixels import Pixels
from velm_cli.data.store import Store
from velm_cli.data.stream_store import StreamStore
from velm_cli.data.streaming import StreamLoader, training_loader
from velm_cli.data.together import Together
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.learners.interface import Learner
from velm_cli.schema import TrainRoot
from velm_cli.stages.starting import open_store
from velm_cli.stages.task_data import TaskData
from velm_cli.tasks import Task, task_of
from velm_cli.tasks.spaces import Spaces


@dataclass(slots=True)
class Part:
    """A store as one task sees it, and what the run would be if it learned of nothing else."""

    name: str  # "" where it does not
    weight: float
    config: TrainRoot
    data: TaskData
    views: Sequence[FeatureCache] = field(default_factory=tuple)  # of its images, where features are kept

    @property
    def features(self) -> FeatureCache | None:
        """Of its images as they are evaluated."""
        return self.views[0] if self.views else None

    def says(self, line: str) -> str:
        return f"part {self.name}: {line}" if self.name else line

    def loader(self, learner: Learner, share: Share, pixels: Pixels | None) -> TrainLoader | StreamLoader:
        """Its batches, as training makes them."""
        config = self.config
        return training_loader(
            self.data.store,
            self.data.to_learn(config.data.captions_per_image, learner.concepts),
            config.data,
            max_tokens=config.tokenizer.max_tokens,
            batch_size=config.run.batch_size,
            pixels=pixels,
            seed=config.seed,
            limit=config.run.overfit_images,
            features=self.views,
            share=share,
        )


@dataclass(frozen=True, slots=True)
class Material:
    """All that a run learns of."""

    task: Task[Any]
    parts: tuple[Part, ...]
    store: Store | Together
    tokenizer: Tokenizer

    @property
    def mixed(self) -> bool:
        return len(self.parts) > 1

    @property
    def only(self) -> TaskData:
        """Of a run that is no mixture."""
        assert not self.mixed
        return self.parts[0].data

    @property
    def spaces(self) -> Spaces:
        """The label spaces of its learner; those of several tasks as TASK/NAME."""
        first = self.parts[0].data
        if self.task.kind == first.task.kind:
            return first.spaces
        each = {part.data.task.kind: part.data.spaces for part in self.parts}
        return {f"{kind}/{name}": labels for kind, spaces in each.items() for name, labels in spaces.items()}

    @property
    def predicted(self) -> tuple[str, ...]:
        """The spaces whose labels are predictions."""
        first = self.parts[0].data
        if self.task.kind == first.task.kind:
            return self.task.predicted
        each = {part.data.task.kind: part.data.task.predicted for part in self.parts}
        return tuple(f"{kind}/{name}" for kind, names in each.items() for name in names)

    def loader(self, learner: Learner, rank: int, world: int) -> TrainLoader | StreamLoader | MixedLoader:
        """The batches of this process. All ranks learn of the same part at a time."""
        loaders = {}
        for part in self.parts:
            own = learner.of(part.name)
            even = "joint" in own.active  # it puts the ranks' rows together
            try:
                loaders[part.name] = part.loader(own, Share(rank, world, even), learner.pixels)
            except UserError as error:
                raise UserError(part.says(str(error))) from error
        if not self.mixed:
            return loaders[self.parts[0].name]
        return MixedLoader(loaders, {part.name: part.weight for part in self.parts})


def open_data(config: TrainRoot) -> Store | Together:
    """The store of the command, or those of its parts. UserError where one cannot be used."""
    if not mixture.is_mixture(config):
        return open_store(config)
    return Together(dict(_stores(config)))


def _stores(config: TrainRoot) -> Iterator[tuple[str, Store]]:
    for part in mixture.parts_of(config):
        path = Path(part.config.dataset.store or "")
        try:
            store = opening.open_store(path)
        except UserError as error:
            raise UserError(f"part {part.name}: {error}") from error
        if isinstance(store, StreamStore):
            raise UserError(
                f"part {part.name}: {path} is of shards that stream (dataset=webdataset), and a mixture takes stores "
                "of arrays: preprocess the data as another kind"
            )
        yield part.name, store


def material_of(config: TrainRoot, store: Store | Together, tokenizer: Tokenizer | None) -> Material:
    """`tokenizer`: one that exists already; None: its vocabulary is learned from the training texts of all parts."""
    task = task_of(config.task)
    if not isinstance(store, Together):
        data = TaskData.of(config, store, tokenizer)
        return Material(task, (Part("", 1.0, config, data),), store, data.tokenizer)
    if tokenizer is None:
        tokenizer = Tokenizer.build(config.tokenizer, store.training_texts())
    parts = []
    alone = mixture.parts_of(config)
    shared: dict[str, Spaces] = {}  # by task: parts that a learner has in common have their labels in common
    for name, weight, own in alone:
        kind = own.task.kind
        if kind not in shared:
            stores = {other.name: store.stores[other.name] for other in alone if other.config.task.kind == kind}
            together: Any = Together(stores) if len(stores) > 1 else store.stores[name]
            shared[kind] = task_of(own.task).spaces(own, together)
        try:
            data = TaskData.of(own, store.stores[name], tokenizer, shared[kind])
        except UserError as error:
            raise UserError(f"part {name}: {error}") from error
        parts.append(Part(name, weight, own, data))
    if talking := [part.data.tokenizer for part in parts if part.data.talks is not None]:
        tokenizer = talking[0]  # the same vocabulary, and the chat template that was chosen
    return Material(task, tuple(parts), store, tokenizer)
