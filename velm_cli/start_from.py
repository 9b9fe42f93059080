"""`velm train config=RUN_OR_YAML key=value`: options of an earlier run, or of a file, are the defaults of a new one.

What the command says wins, choices of groups included. A YAML file of one's own may hold some of the options only, the
others are as without it. It can choose nothing but options: it is read as a stranger's (`configs.read_config`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from velm_cli import compose, configs, schema
from velm_cli.as_typed import quote, unquoted
from velm_cli.errors import UserError, did_you_mean
from velm_cli.relocating import relocate, working_folder
from velm_cli.schema.paths import expand_home

STAGES = ("train", "finetune")
# Of the run that a config is from, and not of the one that starts from it.
NOT_TAKEN = ("stage", "name", "fresh", "dry_run", "config", "experiment", "debug")


def register(stage: str, args: Sequence[str]) -> list[str]:
    """`compose.register` for this command; its arguments, with those that `config=` stands for."""
    args = list(args)
    values = [arg.partition("=")[2] for arg in args if arg.startswith("config=")]
    given = [unquoted(value) for value in values]
    if not given or values[-1].lower() == "null" or stage not in compose.STAGES_FROM_CHECKPOINT + STAGES:
        compose.register(stage, args)
        return _task_of_score(args) if stage == "score" else args
    if stage not in STAGES:
        raise UserError(f"config: velm {stage} takes its options from checkpoint=; config= is for train and finetune")
    if any(arg.startswith("experiment=") for arg in args):
        raise UserError("config= and experiment= both say what to start from: give one of them")
    file = _file(given[-1])
    saved = configs.read_config(file)
    _refuse_unknown(file, saved, stage)
    checkpoint = saved.get("checkpoint")
    if stage == "finetune" and isinstance(checkpoint, str) and not any(arg.startswith("checkpoint=") for arg in args):
        args.append(f"checkpoint={quote(checkpoint)}")
    compose.register(stage, args)
    try:
        return [*args, *_choices(stage, file, saved, args)]  # flags stay in front
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {_said(error)}") from None


def _task_of_score(args: Sequence[str]) -> list[str]:
    """The arguments without `task=`, which becomes the default: to Hydra `task` is the group of what a run learns."""
    typed = [unquoted(arg.partition("=")[2]) for arg in args if arg.startswith("task=")]
    tasks = {task.value: task for task in schema.ScoredTask}
    if typed and typed[-1] not in tasks:
        near = did_you_mean(typed[-1], tasks) or f": expected {', '.join(tasks)}"
        raise UserError(f"task={typed[-1]}{near}")
    if typed:
        ConfigStore.instance().store(name="_score", node=schema.ScoreRoot(task=tasks[typed[-1]]))
    return [arg for arg in args if not arg.startswith("task=")]


def _file(config: str) -> Path:
    path = Path(expand_home(config))
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            run = next((above for above in path.parents if (above / "config.yaml").is_file()), None)
            hint = f"give {run}" if run else "a YAML file will do, too"
            raise UserError(f"config={config} is not a run folder (it has no config.yaml); {hint}")
        return path / "config.yaml"
    if not path.is_file():
        folder = path.parent
        near = did_you_mean(path.name, [other.name for other in folder.iterdir()]) if folder.is_dir() else ""
        raise UserError(f"config={config} does not exist{near or '; give a run folder or a YAML file of options'}")
    if not path.stat().st_size:
        raise UserError(f"config={config} is empty")
    if path.suffix in (".safetensors", ".npy"):
        raise UserError(f"config={config} holds no options; give a run folder or a YAML file of options")
    return path


def _refuse_unknown(file: Path, saved: DictConfig, stage: str) -> None:
    known = [field.name for field in fields(schema.FinetuneRoot)]
    of = saved.get("stage")
    for key, value in saved.items():
        if key not in known:
            group = str(key).partition(".")[0]
            within = f"; write it below {group}:" if group != key and group in known else ""
            raise UserError(f"{file}: no option {key!r}{within or did_you_mean(str(key), known)}")
        if (
            of is None
            and value not in (None, False)
            and key in (NOT_TAKEN, (*NOT_TAKEN, "checkpoint"))[stage == "train"]
        ):
            where = "is for velm finetune" if key == "checkpoint" else f"is for the command: velm {stage} {key}=..."
            raise UserError(f"{file}: {key} has no effect in a file, it {where}")
    if of not in (None, *STAGES):
        raise UserError(f"{file} is of velm {of}; give the config of a training, or of one's own")
    if of == "finetune" and stage == "train":
        raise UserError(
            f"{file} is of a finetuning, which began with the weights of {saved.get('checkpoint')}: say velm finetune "
            "config=..."
        )


def _said(error: OmegaConfBaseException) -> str:
    """What is wrong with an option of a file, in one line."""
    line, where = str(error).splitlines()[0], getattr(error, "full_key", None)
    if match := re.fullmatch(r"Key '(.+)' not in '(\w+)'", line):
        known = [field.name for field in fields(getattr(schema, match[2], schema.TrainRoot))]
        line = f"no such option{did_you_mean(match[1], known)}"
    return f"{where}: {line}" if where else line


def _choices(stage: str, file: Path, saved: DictConfig, args: list[str]) -> list[str]:
    """Registers what `saved` holds as the choice `_checkpoint` of its groups; the arguments that choose it."""
    taken = schema.ROOTS[stage]()
    root = schema.ROOTS[stage]()
    choices = {}
    for key, value in saved.items():
        group = str(key)
        if value is None or group in (*NOT_TAKEN, "checkpoint"):
            continue
        if group in (*schema.KINDS, *compose.PLAIN_GROUPS) and isinstance(value, str):
            choices[group] = value
            continue
        usual = _usual(group, stage, args, saved) if group in compose.PLAIN_GROUPS else None
        setattr(taken, group, _typed(file, group, value, usual))
        if group in (*schema.KINDS, *compose.PLAIN_GROUPS):
            choices[group] = "_checkpoint"
    if not isinstance(taken.dataset, str):  # MISSING
        taken.dataset = configs.without_pipes(taken.dataset)
    relocate(taken, working_folder(file.parent))
    store = ConfigStore.instance()
    for group, choice in choices.items():
        if choice == "_checkpoint":
            store.store(group=group, name="_checkpoint", node=getattr(taken, group))
    if choices.get("task") == "_checkpoint" and "loss" not in choices and stage == "train":  # whose loss is `${task}`
        store.store(group="loss", name="_checkpoint", node=compose.loss_named(taken.task.kind))
    for option in ("seed", "preprocess", "init"):  # which no file in conf/ chooses
        setattr(root, option, getattr(taken, option))
    store.store(name=f"_{stage}", node=root)
    chosen = {arg.partition("=")[0] for arg in args}
    return [f"{group}={choice}" for group, choice in choices.items() if group not in chosen]


def _typed(file: Path, group: str, value: Any, usual: DictConfig | None) -> Any:
    """The value of an option of the root as the schema has it; `usual`: what its own values change."""
    if group in schema.KINDS:
        kinds = schema.KINDS[group]
        kind = value.get("kind") if isinstance(value, DictConfig) else None
        if kind not in kinds:
            said = "names no kind" if kind is None else f"has no kind {kind!r}"
            raise UserError(f"{file}: {group} {said}: give {group}: {{kind: ...}}, one of {', '.join(kinds)}")
        usual = OmegaConf.create({group: OmegaConf.structured(kinds[str(kind)])})
    if usual is not None and not isinstance(value, DictConfig):
        raise UserError(f"{file}: {group}={value}: expected options, as in {group}: {{option: value}}")
    merged = OmegaConf.merge(usual or OmegaConf.structured(schema.TrainRoot), {group: value})[group]  # type: ignore
    return OmegaConf.to_object(merged) if OmegaConf.is_config(merged) else merged


def _usual(group: str, stage: str, args: list[str], saved: DictConfig) -> DictConfig:
    """The options of a group as a command without `config=` has them."""
    lines = yaml.safe_load((compose.conf_dir() / f"{stage}.yaml").read_text(encoding="utf-8"))["defaults"]
    choice = next(line[group] for line in lines if isinstance(line, dict) and group in line)
    if choice == "${task}":
        told = [arg.partition("=")[2] for arg in args if arg.startswith("task=")]
        of_file = saved.get("task", "caption")
        task = told[-1] if told else of_file if isinstance(of_file, str) else of_file.get("kind")
        return OmegaConf.create({group: OmegaConf.structured(compose.loss_named(task))})
    if choice == "_checkpoint":
        checkpoint = compose.checkpoint_argument(stage, args)
        known: Any = compose.PLAIN_GROUPS[group]
        if checkpoint is not None and configs.foreign_model(checkpoint) is None:
            known = getattr(configs.load_run_config(checkpoint), group)
        return OmegaConf.create({group: OmegaConf.structured(known)})
    values = OmegaConf.load(compose.conf_dir() / group / f"{choice}.yaml")
    return OmegaConf.create({group: OmegaConf.merge(OmegaConf.structured(compose.PLAIN_GROUPS[group]), values)})
