"""Hydra learns here what there is to choose; what it has composed becomes a dataclass of `schema`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from velm_cli import schema
from velm_cli.as_typed import unquoted
from velm_cli.configs import foreign_model, load_run_config
from velm_cli.errors import UserError
from velm_cli.mixture import parts_of, settle
from velm_cli.options import conf_dir
from velm_cli.schema.paths import expand_home, expand_homes
from velm_cli.shared_configs import guard

# Groups with one dataclass for all their options.
PLAIN_GROUPS = {
    "tokenizer": schema.TokenizerConfig,
    "data": schema.DataConfig,
    "loss": schema.LossConfig,
    "optim": schema.OptimConfig,
    "run": schema.RunConfig,
    "decode": schema.DecodeConfig,
    "metrics": schema.MetricsConfig,
}
# Groups whose dataclass depends on the choice, by what their dataclasses have in common.
GROUP_TYPES = {
    "dataset": schema.DatasetConfig,
    "vision": schema.VisionConfig,
    "text": schema.TextConfig,
    "fusion": schema.FusionConfig,
    "task": schema.TaskConfig,
}
STAGES_FROM_CHECKPOINT = ("finetune", "evaluate")
# What finetune and evaluate take from the run folder unless the command says otherwise.
FROM_CHECKPOINT = ("dataset", "tokenizer", "data", "vision", "text", "fusion", "task", "loss")


def register(stage: str, args: Sequence[str] = ()) -> None:
    """Give Hydra the dataclasses that `stage` needs: its root as `_STAGE`, variants as `_kind/GROUP/KIND`.

    For `finetune` and `evaluate` the choices of the run that `checkpoint=` in `args` names become the option
    `_checkpoint` of their groups.
    """
    guard(conf_dir())
    hydra_store = ConfigStore.instance()
    hydra_store.store(name=f"_{stage}", node=schema.ROOTS[stage])
    for group, kinds in schema.KINDS.items():
        for kind, node in kinds.items():
            hydra_store.store(group=f"_kind/{group}", name=kind, node=node)
    for kind in schema.KINDS["task"]:
        if not _loss_file(kind).is_file():  # files there count before what is stored here
            hydra_store.store(group="loss", name=kind, node=schema.LossConfig)
    if stage not in STAGES_FROM_CHECKPOINT:
        return
    checkpoint = checkpoint_argument(stage, args)
    foreign = stage == "evaluate" and checkpoint is not None and foreign_model(checkpoint) is not None
    saved = load_run_config(checkpoint) if checkpoint and not foreign else None
    if saved is not None and stage == "evaluate":  # task= that of the run, said again, is as the run has it
        hydra_store.store(group="_kind/task", name=saved.task.kind, node=saved.task)
        for part in parts_of(saved):  # and so is that of a part of a mixture
            hydra_store.store(group="_kind/task", name=part.config.task.kind, node=part.config.task)
    if foreign:  # which writes its answers
        asks = schema.VqaTaskConfig(answer=schema.Answer.generate, prompt="")  # in the usual way of its family
        hydra_store.store(group="_kind/task", name="vqa", node=asks)
    for group in FROM_CHECKPOINT:
        choice: Any
        if saved is not None:
            choice = getattr(saved, group)
        elif foreign and group == "task":
            choice = schema.CaptionTaskConfig
        elif group in PLAIN_GROUPS:
            choice = PLAIN_GROUPS[group]
        else:  # nothing chosen yet: the group's common options
            choice = GROUP_TYPES[group]
        hydra_store.store(group=group, name="_checkpoint", node=choice)


def loss_named(choice: str) -> schema.LossConfig:
    """What `loss=CHOICE` stands for. Of a task without a file in conf/loss that is L_text alone."""
    file = _loss_file(choice)
    values: Any = OmegaConf.load(file) if file.is_file() else {}
    return OmegaConf.to_object(OmegaConf.merge(schema.LossConfig, values))  # type: ignore[return-value]


def _loss_file(choice: str) -> Path:
    return conf_dir() / "loss" / f"{choice}.yaml"


def checkpoint_argument(stage: str, args: Sequence[str]) -> str | None:
    """The value of `checkpoint=`, which decides what the other groups default to."""
    values = [unquoted(arg.partition("=")[2]) for arg in args if arg.startswith("checkpoint=")]
    if stage not in STAGES_FROM_CHECKPOINT or not values:
        return None
    if "," in values[-1] and not Path(values[-1]).exists():
        raise UserError("checkpoint: a sweep over checkpoints is not possible; call velm once for each")
    return str(expand_home(values[-1]))


def to_dataclass(config: DictConfig) -> Any:
    """The composed config as a dataclass of `schema.ROOTS`; nothing further in sees a DictConfig, or `~` in a path."""
    typed = OmegaConf.to_object(config)
    expand_homes(typed)
    if config.stage in ("preprocess", "train", "finetune"):
        settle(typed, loss_named)
    return typed
