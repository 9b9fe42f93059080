"""Mixtures: the parts of `dataset=mix`, each as the config of a run that learns of it alone.

Whatever is known of one data set and one task (rules, readers, losses, scores) then holds of a part as it is. A part
names a store, a task and values of their options: nothing in it runs code. Imports neither torch nor Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from velm_cli import schema
from velm_cli.errors import UserError, did_you_mean, on_one_line
from velm_cli.schema.paths import expand_home

HEAVIEST = 1e6  # weight of a part
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # of a part: a folder, and the beginning of figures' names

LossNamed = Callable[[str], schema.LossConfig]


class Part(NamedTuple):
    """A part, and what the run would be if there were no other."""

    name: str
    weight: float
    config: schema.TrainRoot


def is_mixture(config: Any) -> bool:
    """Whether a run learns of several parts."""
    return isinstance(config.dataset, schema.MixConfig) and bool(config.dataset.parts)


def has_tasks(config: Any) -> bool:
    """Whether its parts have tasks of their own, which share the model."""
    return is_mixture(config) and any(part.task for part in config.dataset.parts)


def parts_of(config: schema.TrainRoot) -> list[Part]:
    """The parts of a settled config, in their order; none where it is of one data set."""
    if not is_mixture(config):
        return []
    assert isinstance(config.dataset, schema.MixConfig)
    return [Part(str(part.name), part.weight, _alone(config, part)) for part in config.dataset.parts]


def for_task(config: schema.TrainRoot, kind: str) -> schema.TrainRoot | None:
    """The run's config with the task `kind` as one of its parts has it; None where no part does. The parts stay, since
    the model is that of all."""
    for part in parts_of(config):
        if part.config.task.kind == kind:
            return replace(config, task=part.config.task, loss=part.config.loss)
    return None


def store_of(config: schema.TrainRoot, kind: str) -> str:
    """The store of the only part with the task `kind`. UserError where there are several."""
    own = [part.store for part in _parts(config) if part.task in (None, kind)]  # whatever else a store is evaluated on
    stores = list(dict.fromkeys(own))
    if len(stores) == 1:
        return stores[0]
    if not stores:
        raise UserError(f"no part of the mixture has task={kind}: say of which data, dataset=KIND or dataset.store=")
    named = " or ".join(f"dataset.store={store}" for store in stores)
    raise UserError(f"the run learned of a mixture of {len(stores)} stores: say of which one, {named}")


def settle(config: Any, loss_named: LossNamed) -> None:
    """Give the parts names, and all the options of their task and loss. UserError with a line for every mistake.

    `loss_named`: the loss that a task is usually learned by.
    """
    if not isinstance(config.dataset, schema.MixConfig):
        return
    if config.stage == "preprocess":
        raise UserError("dataset=mix has no store of its own: preprocess the data of each part, and name their stores")
    mixes = isinstance(config.task, schema.MixTaskConfig)
    if config.stage == "finetune" and not mixes and has_tasks(config):  # of a mixture, whose run goes on with one task
        config.dataset = replace(config.dataset, store=store_of(config, config.task.kind), parts=[])
    if config.dataset.store is not None and not config.dataset.parts:
        return
    lines = []
    for number, part in enumerate(config.dataset.parts, start=1):
        found = list(_faults(part, mixes))
        if not found:
            part.store = str(expand_home(part.store))
            part.name = part.name or (part.task if mixes else _folder_name(part.store))
            try:
                _complete(part, loss_named)
            except UserError as error:
                found = [str(error)]
        lines += [f"dataset.parts, number {number}: {line}" for line in found]
    if lines or not config.dataset.parts:
        raise UserError("\n".join(lines) or _nothing(config))
    if one_way := list(_apart(config.dataset.parts, mixes)):
        raise UserError("\n".join(one_way))


def _nothing(config: Any) -> str:
    task = ", task: caption" if isinstance(config.task, schema.MixTaskConfig) else ""
    return f"dataset=mix needs its parts: 'dataset.parts=[{{store: stores/a{task}}}, {{store: stores/b{task}}}]'"


def _faults(part: schema.MixPart, mixes: bool) -> Iterator[str]:
    kinds = sorted(set(schema.KINDS["task"]) - {"mix"})
    if OmegaConf.is_missing(OmegaConf.structured(part), "store") or not part.store:
        yield "store is not set: the folder of a preprocessed store"
    if mixes and part.task not in kinds:
        near = did_you_mean(part.task, kinds) if part.task else ""
        yield f"task={on_one_line(str(part.task))}: with task=mix each part has one of {', '.join(kinds)}{near}"
    if not mixes and (part.task or part.options or part.loss):
        yield "task, options and loss of a part are for task=mix: leave them out, or say task=mix"
    if not 0 < part.weight <= HEAVIEST:  # NaN is not, either
        yield f"weight={part.weight:g}: must be above 0, at most {HEAVIEST:g}"
    if not 0 <= part.batch_size <= 2**31:
        yield f"batch_size={part.batch_size}: must be at least 0 (0 = run.batch_size)"
    if part.name is not None and not NAME.fullmatch(part.name):
        yield f"name={on_one_line(part.name)[:60]}: up to 40 letters, digits, - and _, the first no sign"


def _apart(parts: list[schema.MixPart], mixes: bool) -> Iterator[str]:
    """What is wrong with the parts together."""
    if len(parts) < 2:
        yield "dataset.parts has one part: a mixture has two or more (dataset.store= names a single store)"
    seen: dict[str, int] = {}
    for number, part in enumerate(parts, start=1):
        if (before := seen.setdefault(str(part.name), number)) != number:
            yield f"dataset.parts: number {before} and {number} are both called {part.name}: give them a name each"
    of_task: dict[str, schema.MixPart] = {}
    for part in parts if mixes else ():
        first = of_task.setdefault(str(part.task), part)
        if (first.options, first.loss) != (part.options, part.loss):
            yield (
                f"dataset.parts: {first.name} and {part.name} have task={part.task} with other options: one model "
                "learns a task in one way, so give both the same options and loss"
            )


def _complete(part: schema.MixPart, loss_named: LossNamed) -> None:
    if part.task is None:
        return
    task = _typed(schema.KINDS["task"][part.task](), part.options, "options")
    part.options = _plain(task)
    part.loss = _plain(_typed(loss_named(task.usual_loss), part.loss, "loss"))


def _typed(usual: Any, values: Mapping[str, Any], called: str) -> Any:
    """The dataclass `usual` with these values. UserError where they are not of its options."""
    known = [field.name for field in fields(usual) if field.name != "kind"]
    for name in values:
        if name not in known:
            raise UserError(f"{called} has no {on_one_line(str(name))!r}{did_you_mean(str(name), known)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(usual), dict(values)))
    except OmegaConfBaseException as error:
        where = str(getattr(error, "full_key", "") or "")
        raise UserError(f"{called}: {where}: {str(error).splitlines()[0]}") from error


def _plain(typed: Any) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(OmegaConf.structured(typed), enum_to_str=True)
    return {name: value for name, value in values.items() if name != "kind"}


def _folder_name(store: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(store).name).strip("_-")
    return name[:40] or "part"


def _parts(config: schema.TrainRoot) -> list[schema.MixPart]:
    assert isinstance(config.dataset, schema.MixConfig)
    return config.dataset.parts


def _alone(config: schema.TrainRoot, part: schema.MixPart) -> schema.TrainRoot:
    """The config of a run that learns of this part alone."""
    assert isinstance(config.dataset, schema.MixConfig)
    changes: dict[str, Any] = {
        "dataset": replace(config.dataset, store=part.store, parts=[]),
        "run": replace(config.run, batch_size=part.batch_size or config.run.batch_size),
    }
    if part.task is not None:
        changes["task"] = _typed(schema.KINDS["task"][part.task](), part.options, "options")
        changes["loss"] = _typed(schema.LossConfig(), part.loss, "loss")
        if changes["task"].judges:  # which draws no captions, whatever the others do
            usual = schema.DataConfig().captions_per_image
            changes["data"] = replace(config.data, captions_per_image=usual)
    return replace(config, **changes)
