"""One short file a stage: build, run, return a number.

`run` is the boundary: a composed Hydra config comes in, dataclasses go further.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from velm_cli import compose, configs, console, naming, schema
from velm_cli.engine.folder import best_figure, is_complete, is_of, run_path
from velm_cli.errors import UserError
from velm_cli.lineage import refuse_other_sources, vocabulary_grows, vocabulary_source
from velm_cli.place import place
from velm_cli.quiet import quiet
from velm_cli.relocating import store_path
from velm_cli.schema import ScoredTask
from velm_cli.tasks import task_of
from velm_cli.validate import validate


def run(config: DictConfig) -> float | None:
    """Run the stage that `config` belongs to; its figure (for sweepers)."""
    stage = config.stage
    typed = settle(config, one_of_many=HydraConfig.get().mode == RunMode.MULTIRUN)
    validate(typed)
    overrides = list(HydraConfig.get().overrides.task)
    if stage in ("preprocess", "train", "finetune", "evaluate") and not typed.dry_run:
        console.work_is_in_files()
    if stage in ("train", "finetune") and not typed.dry_run and is_complete(path := run_path(typed), typed):
        refuse_other_sources(path, typed)
        print(f"complete    {path}  (fresh=true trains again)")
        return best_figure(path)
    if stage in ("train", "finetune", "evaluate"):
        from velm_cli.data.origin import refuse_other_origin

        refuse_other_origin(typed.dataset, _said_of_the_data(typed, overrides))
    # Threads that wait for each other spin before they sleep; on a machine that has anything else to do, the
    # default spins away the very core that the other thread needs (docs/log.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if place().world > 1:
        # Or each process is told once that the search for unused parameters (engine/parallel.py) is not free.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if os.environ.get("VELM_TRACEBACK", "") in ("", "0"):
        quiet()
    # Imported here, so that a command pays only for what it uses (torch takes seconds).
    from velm_cli.data.arrays import end_in_a_line_when_cut_short

    end_in_a_line_when_cut_short()
    name = "train" if stage == "finetune" else stage
    return importlib.import_module(f"velm_cli.stages.{name}").run(typed)


def settle(config: DictConfig, *, one_of_many: bool) -> Any:
    """The dataclass of a composed config; train and finetune get their name here, where the command is known.

    `one_of_many`: it is a point of a sweep, so a name that was given is only the beginning of its name.
    """
    stage = config.stage
    if stage in (*compose.STAGES_FROM_CHECKPOINT, "serve") and OmegaConf.is_missing(config, "checkpoint"):
        raise UserError(f"checkpoint is not set: velm {stage} checkpoint=runs/train/NAME")
    if (
        stage == "evaluate"
        and configs.foreign_model(config.checkpoint)
        and OmegaConf.is_missing(config.dataset, "kind")
    ):
        raise UserError(
            f"checkpoint={config.checkpoint} comes with no data: name them, as in dataset=coco dataset.root=FOLDER"
        )
    if issubclass(schema.ROOTS[stage], schema.UseRoot):
        for key in ("checkpoint", "images"):
            if OmegaConf.is_missing(config, key):
                if key == "images" and config.get("questions") is not None:  # which name their images
                    config.images = None
                    continue
                raise UserError(f"{key} is not set: velm {stage} checkpoint=runs/train/NAME images=FOLDER")
    if stage == "search" and OmegaConf.is_missing(config, "index"):
        raise UserError("index is not set: velm search index=FOLDER, with checkpoint=RUN images=FOLDER to make it")
    if stage == "export":
        for key in ("checkpoint", "out"):
            if OmegaConf.is_missing(config, key):
                raise UserError(f"{key} is not set: velm export checkpoint=runs/train/NAME out=FOLDER")
    if stage == "score":
        for key in ("predictions", "references"):
            if OmegaConf.is_missing(config, key):
                if key == "references" and config.task is ScoredTask.retrieve:
                    config.references = ""  # embeddings need none
                    continue
                task = "" if config.task is ScoredTask.caption else f"task={config.task.value} "
                raise UserError(f"{key} is not set: velm score {task}predictions=FILE references=FILE")
    typed = compose.to_dataclass(config)
    if stage in ("train", "finetune", "evaluate"):
        _refuse_metrics_of_captions(typed.task.kind, list(HydraConfig.get().overrides.task))
        _refuse_decoding(typed.task, list(HydraConfig.get().overrides.task))
    if getattr(typed, "name", None) is not None:
        naming.refuse_name(typed.name)
    if stage in ("train", "finetune"):
        if typed.name is None or one_of_many:
            typed.name = _name(typed)
        configs.refuse_no_runs(typed.init)
        overrides = list(HydraConfig.get().overrides.task)
        _settle_tokenizer(typed, overrides)
        _settle_task(typed, overrides)
        _settle_text(typed, overrides)
    return typed


def _refuse_metrics_of_captions(task: str, overrides: list[str]) -> None:
    """UserError for an option that chooses among the scores of captions, in the command of another task."""
    said = [f"metrics.{name}" for name in ("names", "required", "clip", "df") if f"metrics.{name}" in _given(overrides)]
    if said and task != "caption":
        raise UserError(f"{said[0]} is of the scores of captions: task={task} has all of its own; leave it out")


def _name(config: Any) -> str:
    """The run's name by its command; an older velm's where that names a run of this experiment, so that it goes on."""
    hydra = HydraConfig.get()
    overrides, choices = list(hydra.overrides.task), dict(hydra.runtime.choices)
    if not config.task.reads_text:
        choices |= {"text": None, "fusion": None}
    names = [naming.default_name(config, overrides, choices, older=older) for older in (False, True)]
    if config.name is not None:
        names = [naming.slug(f"{config.name}-{name}") for name in names]
    new, old = (Path(config.run.dir, config.stage, name) for name in names)
    if config.fresh or old == new or new.exists():
        return new.name
    return old.name if is_of(old, config) and _is_of_this_data(old, config.dataset) else new.name


def _refuse_decoding(options: schema.TaskConfig, overrides: list[str]) -> None:
    """UserError for an option of how texts are found, in the command of a task that judges or ranks."""
    said = [
        key for key in sorted(_given(overrides)) if key.partition(".")[0] == "decode" and key != "decode.batch_size"
    ]
    if said and task_of(options).manner:
        chosen = f"task.answer={options.answer.value}" if isinstance(options, schema.VqaTaskConfig) else ""
        raise UserError(f"{said[0]} has no effect: {chosen or f'task={options.kind}'} writes no text; leave it out")


def _is_of_this_data(run: Path, dataset: Any) -> bool:
    """Whether the run, which an older velm may have given a name without its data, is of this root and store."""
    try:
        saved = configs.load_dataset(run) if (run / "config.yaml").is_file() else None
    except UserError:
        return False
    return saved is not None and saved.root == dataset.root and store_path(saved) == store_path(dataset)


def _settle_tokenizer(typed: Any, overrides: list[str]) -> None:
    """Where a run's weights bring their vocabulary, the config says which one that is.

    UserError for an option that asks for another one: it would have no effect.
    """
    source = vocabulary_source(typed)
    if source is None:
        return
    of_run, given = configs.load_run_config(source).tokenizer, _given(overrides)
    own = {option: getattr(typed.tokenizer, option) for option in ("max_tokens", "max_source_tokens")}
    says = {"tokenizer.min_count" in given, "tokenizer=_checkpoint" in overrides, typed.stage == "finetune"}
    if vocabulary_grows(typed) and True in says:
        own["min_count"] = typed.tokenizer.min_count  # of the words that are new
    for option in ("kind", "name", "vocab_size", "min_count"):
        now, known = getattr(typed.tokenizer, option), getattr(of_run, option)
        said = {f"tokenizer.{option}", "tokenizer" if option == "kind" else ""} & given
        if now != known and (said or typed.stage == "finetune") and option not in own:
            raise UserError(
                f"tokenizer.{option}={getattr(now, 'value', now)} has no effect: the weights of {source} come with "
                f"their own vocabulary (tokenizer.{option}={getattr(known, 'value', known)}); leave it out"
            )
    typed.tokenizer = replace(of_run, **own)


def _settle_task(typed: Any, overrides: list[str]) -> None:
    """Options of the loss and the task that nobody has given become those that the task wants.

    Its `task.answer` may want another loss than the one that its name stands for; a checkpoint of another task, or
    with another way to answer, brings options that this one has no use for.
    """
    given, task = _given(overrides), typed.task
    trained = configs.load_run_config(typed.checkpoint) if typed.stage == "finetune" else None
    if trained is not None and trained.task.kind == task.kind:
        for name in task.unused:
            if f"task.{name}" not in given and getattr(task, name) == getattr(trained.task, name):
                setattr(task, name, getattr(type(task)(), name))
    if "loss" in given or "loss=_checkpoint" in overrides:  # the latter: a file of options has said it
        return
    if trained is None:
        if task.usual_loss == task.kind:
            return
        brought, wanted = compose.loss_named(task.kind), compose.loss_named(task.usual_loss)
    elif trained.task.kind == task.kind and trained.task.usual_loss == task.usual_loss:
        return
    else:
        brought, wanted = trained.loss, compose.loss_named(task.usual_loss)
    mine = {field.name for field in fields(wanted) if f"loss.{field.name}" not in given}
    changed = {name for name in mine if getattr(wanted, name) != getattr(brought, name)}
    unsaid = {name for name in changed if getattr(typed.loss, name) == getattr(brought, name)}
    if trained is None and unsaid != changed:  # an experiment has chosen a loss
        return
    typed.loss = replace(typed.loss, **{name: getattr(wanted, name) for name in unsaid})


def _settle_text(typed: Any, overrides: list[str]) -> None:
    """A task that reads no text has neither text encoder nor fusion; UserError for their options in its command."""
    if typed.task.reads_text:
        return
    for key in sorted(_given(overrides)):
        group = key.partition(".")[0]
        if group in ("text", "fusion") and (key != group or getattr(typed, group).kind != "none"):
            raise UserError(f"{key} has no effect: task={typed.task.kind} reads no text; leave it out")
    typed.text, typed.fusion = schema.NoTextConfig(), schema.NoFusionConfig()


def _said_of_the_data(typed: Any, overrides: list[str]) -> set[str]:
    """The options of the data set that the command, or a file of options, names; not those of the checkpoint's run."""
    given = _given(overrides)
    said = {key.removeprefix("dataset.") for key in given if key.startswith("dataset.")}
    said |= {"kind"} if "dataset" in given else set()
    usual = type(typed.dataset)()
    if typed.stage in compose.STAGES_FROM_CHECKPOINT and not configs.foreign_model(typed.checkpoint):
        of_run = configs.load_run_config(typed.checkpoint).dataset
        usual = of_run if type(of_run) is type(usual) else usual
    return said | {
        field.name for field in fields(usual) if getattr(typed.dataset, field.name) != getattr(usual, field.name)
    }


def _given(overrides: list[str]) -> set[str]:
    return {override.lstrip("+").partition("=")[0] for override in overrides if not override.endswith("=_checkpoint")}
