"""Several tasks at once from one model: the learner of a mixture. What is predicted and scored is each task's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from velm_cli.errors import UserError
from velm_cli.mixture import has_tasks, parts_of
from velm_cli.schema import MetricsConfig, MixTaskConfig, TextLoss, TrainRoot
from velm_cli.tasks import task_of
from velm_cli.tasks.interface import Predicted, Shape, Task

if TYPE_CHECKING:
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


class MixTask(Task[Any]):
    """A part of the mixture has examples, a task and a loss of its own."""

    kind = "mix"
    unit, target = "example", "target"
    verb, doing = "predict", "predictions"
    primary = "score"
    options: MixTaskConfig

    def problems(self, config: TrainRoot) -> Iterator[str]:
        parts = parts_of(config)
        if not has_tasks(config):
            yield "task=mix learns of several parts: say dataset=mix 'dataset.parts=[{store: stores/a, task: caption}]'"
            return
        if (name := self.options.primary) not in (None, *(part.name for part in parts)):
            yield f"task.primary={name}: no such part; there are {', '.join(part.name for part in parts)}"
        shapes: dict[str, Shape] = {}
        for part in parts:
            if (shape := task_of(part.config.task).shape(part.config)) is None:
                yield f"part {part.name}: task={part.config.task.kind} cannot share a model: train it alone"
            else:
                shapes[part.name] = shape
            if part.config.loss.text is TextLoss.self_critical:
                yield f"part {part.name}: loss.text=self_critical finetunes a captioner alone, not in a mixture"
        yield from _apart(shapes)

    def spaces(self, config: TrainRoot, store: Store) -> dict[str, list[str]]:
        raise AssertionError("each part has its own")

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        """`spaces` as TASK/NAME; `weights` are those of the parts."""
        from velm_cli.learners.mixed import MixedLearner
        from velm_cli.objectives.weights import term_weights

        model = shared_model(config, tokenizer)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        reached: set[Any] = set()
        learners: dict[str, Learner] = {}
        parts = parts_of(config)
        for part in parts:
            task = task_of(part.config.task)
            if task.kind in learners:
                continue
            for parameter in trainable:  # the learner of another task has frozen what that one does not reach
                parameter.requires_grad_(True)
            own = own_spaces(spaces, task.kind)
            learners[task.kind] = task.sharing(part.config, own, tokenizer, term_weights(part.config.loss), model)
            reached.update(parameter for parameter in trainable if parameter.requires_grad)
        for parameter in trainable:
            parameter.requires_grad_(parameter in reached)
        return MixedLearner(model, learners, {part.name: part.config.task.kind for part in parts})

    def is_learned(self, config: TrainRoot) -> bool:
        return isinstance(config.task, MixTaskConfig)

    def predict(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("each part has its own task")

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[Any]) -> NoReturn:
        raise AssertionError("each part has its own task")

    def score(
        self, store: Store, numbers: Iterable[int], predicted: Predicted[Any], config: MetricsConfig, *, learned: bool
    ) -> NoReturn:
        raise AssertionError("each part has its own task")

    def write_results(self, folder: Path, predicted: Predicted[Any]) -> NoReturn:
        raise AssertionError("each part has its own task")


def shared_model(config: TrainRoot, tokenizer: Tokenizer) -> VelmModel:
    """The model of a mixture: it reads forwards only as soon as one of its tasks has to."""
    from velm_cli.models.velm import VelmModel

    shapes = {part.name: task_of(part.config.task).shape(part.config) for part in parts_of(config)}
    known = [shape for shape in shapes.values() if shape is not None]
    sources = [shape.source for shape in known if shape.source is not None]
    return VelmModel(
        vision=config.vision,
        text=config.text,
        fusion=config.fusion,
        vocab_size=tokenizer.vocab_size,
        causal=any(shape.one_way for shape in known),
        source=sources[0] if sources else None,
    )


def own_spaces(spaces: Spaces, kind: str) -> dict[str, list[str]]:
    """The label spaces of one task, by their names there, of those of a mixture."""
    return {
        name.removeprefix(f"{kind}/"): list(labels) for name, labels in spaces.items() if name.startswith(f"{kind}/")
    }


def learner_to_predict(
    config: TrainRoot, task: Task[Any], spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
) -> Learner:
    """The task's learner, as `config` has it: of a run of its own, or of a mixture whose parts stand in the config."""
    if not has_tasks(config):
        return task.learner(config, spaces, tokenizer, weights)
    if isinstance(config.task, MixTaskConfig):
        kinds = " and ".join(kinds_of(config))
        raise UserError(
            f"the run learned several tasks ({kinds}): velm eval task= evaluates one, and velm finetune task= makes a "
            "run of it that is loaded as any other"
        )
    return task.sharing(config, spaces, tokenizer, weights, shared_model(config, tokenizer))


def weights_of_task(config: TrainRoot, kind: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a mixture's run as a run of this task alone names them; those of another run as they are."""
    if not has_tasks(config):
        return dict(state)
    mine = f"heads.{kind}."
    return {name.removeprefix(mine): tensor for name, tensor in state.items() if name.startswith(("model.", mine))}


def kinds_of(config: TrainRoot) -> list[str]:
    """The tasks of a mixture, each once."""
    return list(dict.fromkeys(part.config.task.kind for part in parts_of(config)))


def _apart(shapes: Mapping[str, Shape]) -> Iterator[str]:
    """A line where the parts want models that no one model is."""
    one_way = [name for name, shape in shapes.items() if shape.one_way]
    both = [name for name, shape in shapes.items() if shape.one_way is False]
    if one_way and both:
        yield (
            f"parts {one_way[0]} and {both[0]}: the first reads texts forwards only, and loss.text=masked reads both "
            "ways; one model does one of them"
        )
    sources = {name: shape.source for name, shape in shapes.items() if shape.source is not None}
    if len(set(sources.values())) > 1:
        said = ", ".join(f"{name} {layers}" for name, layers in sources.items())
        yield f"source_layers differ ({said}): one model has one encoder of sources, so give all parts the same"
