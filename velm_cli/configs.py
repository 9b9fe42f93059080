"""The configs of run folders: written sealed, read back without running code, compared as experiments. No Hydra.

`finetune`, `evaluate` and whoever loads a model start from the `config.yaml` of a run folder.
"""

from __future__ import annotations

import copy
import functools
import re
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from velm_cli import schema
from velm_cli.errors import UserError, did_you_mean
from velm_cli.files import write_text
from velm_cli.relocating import relocate, working_folder
from velm_cli.schema.paths import expand_home

FOREIGN = "hf:"  # begins a checkpoint that is no run of velm
STEP = re.compile(r"step-[0-9]{8,}")  # a checkpoint's folder
DEEPEST = 16  # levels of a config.yaml; velm writes 3
HEAD, SEAL = "# sealed by the last line\n", "# crc32 "  # how a config.yaml, and the last line of it, begins

# Options that say how or how long to compute, not what: they neither name nor distinguish experiments.
HOUSEKEEPING = {
    "": "stage name seed fresh dry_run checkpoint config experiment debug metrics decode",
    "run.": "dir max_steps log_every checkpoint_every keep_checkpoints keep_every async_checkpoints validate_every "
    "validate_images patience device parallel threads deterministic tensorboard wandb mlflow "
    "compile profile checkpoint_activations frozen_dtype",
    "data.": "workers",
    "preprocess.": "workers shard_images part seconds_per_image memory_per_image",
    "dataset.": "root missing store urls val_urls retries damaged pipes",
}


def foreign_model(checkpoint: str | Path) -> str | None:
    """The folder or hub name behind `hf:`: a transformers model that velm did not train. None for anything else."""
    name = str(checkpoint)
    if name == FOREIGN:
        raise UserError(f"checkpoint={name} names no model: give the folder behind it, as in checkpoint=hf:models/blip")
    return str(expand_home(name.removeprefix(FOREIGN))) if name.startswith(FOREIGN) else None


def run_folder_of(checkpoint: str | Path) -> Path:
    """The run folder that `checkpoint` means: the folder itself, or that of a .safetensors file or checkpoint in it."""
    path = Path(checkpoint)
    if foreign_model(checkpoint) is not None:
        raise UserError(
            f"checkpoint={checkpoint}: models that velm did not train are for velm eval, caption and answer; give a "
            "run folder such as runs/train/NAME"
        )
    folder = path.parent if path.suffix == ".safetensors" else path
    if STEP.fullmatch(folder.name):
        folder = (folder if len(folder.parts) > 2 else folder.absolute()).parent.parent
    if not path.exists():
        nearest = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(
            f"checkpoint: {path} does not exist{nearest}"
            f"{'' if nearest else '; give a run folder such as runs/train/NAME'}"
        )
    if not (folder / "config.yaml").is_file():
        known = (folder.parent / "config.yaml").is_file()  # RUN/checkpoints, RUN/vision ...
        hint = f"; give {folder.parent}" + ("", f", or one of {folder}/step-*")[folder.name == "checkpoints"]
        if not known and (folder / "config.json").is_file():
            hint = f"; a model of transformers is named by checkpoint=hf:{folder}, in velm eval, caption and answer"
            known = True
        raise UserError(f"checkpoint: {folder} is not a run folder (it has no config.yaml){hint if known else ''}")
    return folder


def refuse_no_runs(init: schema.InitConfig) -> None:
    """UserError where `init.vision` or `init.text` names no run's weights."""
    for field in fields(init):
        try:
            source = getattr(init, field.name)
            if source is not None:
                run_folder_of(source)
        except UserError as error:
            other = "; weights of other programs are taken by vision.weights=FILE" if field.name == "vision" else ""
            what = str(error).removeprefix("checkpoint: ")
            raise UserError(f"init.{field.name}: {what}{other if Path(source).is_file() else ''}") from None


def step_folder_of(checkpoint: str | Path) -> Path | None:
    """The kept checkpoint RUN/checkpoints/step-* that `checkpoint`, or its weight file, is; None for anything else."""
    path = Path(checkpoint)
    folder = path.parent if path.suffix == ".safetensors" else path
    return folder if STEP.fullmatch(folder.name) else None


def load_run_config(checkpoint: str | Path) -> schema.TrainRoot:
    """The config with which the run of `checkpoint` was trained; its paths are found from here (`relocating`)."""
    file = run_folder_of(checkpoint) / "config.yaml"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    config = copy.deepcopy(_run_config(file, content))
    relocate(config, working_folder(file.parent))
    return config


@functools.lru_cache(maxsize=8)  # a command asks several times, and the types of all options take a while
def _run_config(file: Path, content: bytes) -> schema.TrainRoot:
    """The config in `file`, whose `content` tells whether it is still the same."""
    saved = read_config(file)
    try:
        if saved.get("stage") not in ("train", "finetune"):
            raise UserError(
                f"checkpoint: {file.parent} is a run of {saved.get('stage')!r}; give one of train or finetune"
            )
        typed = OmegaConf.structured(schema.ROOTS[saved.stage])
        for group, kinds in schema.KINDS.items():
            kind = saved[group].kind
            if kind not in kinds:
                raise UserError(f"{file}: {group}.kind={kind!r} is not known to this version of velm")
            typed[group] = OmegaConf.structured(kinds[kind])
        config: schema.TrainRoot = OmegaConf.to_object(OmegaConf.merge(typed, saved))  # type: ignore[assignment]
        config.dataset = without_pipes(config.dataset)
        return config
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{file} is not a config of this version of velm: {line}") from error


def load_dataset(folder: Path) -> schema.DatasetConfig:
    """The data set of a run folder of any stage."""
    file = folder / "config.yaml"
    saved = read_config(file)
    try:
        typed = OmegaConf.structured(schema.KINDS["dataset"][saved.dataset.kind])
        return without_pipes(OmegaConf.to_object(OmegaConf.merge(typed, saved.dataset)))  # type: ignore[arg-type]
    except (OmegaConfBaseException, AttributeError, KeyError) as error:
        raise UserError(f"{file} names no data set of this version of velm") from error


def without_pipes(dataset: schema.DatasetConfig) -> schema.DatasetConfig:
    """A run folder may come from a stranger: only the command line can allow commands to run."""
    if isinstance(dataset, schema.WebDatasetConfig):
        dataset.pipes = False
    return dataset


def write_config(path: Path, config: Any) -> None:
    """The dataclass as YAML under `path`, sealed."""
    write_text(path, sealed_yaml(config))


def sealed_yaml(config: Any) -> str:
    """The dataclass as YAML; its last line is a CRC-32 of the others, its first says so."""
    text = HEAD + to_yaml(config)
    return f"{text}{SEAL}{zlib.crc32(text.encode()):08x}\n"


def read_config(path: Path) -> DictConfig:
    """What `write_config` wrote, or any YAML mapping without such a last line. Runs no code, whatever is in it.

    UserError when it cannot be read or has changed since it was written.
    """
    try:
        content, seal, value = path.read_text(encoding="utf-8").rpartition(SEAL)
        cut = value.startswith(HEAD) or HEAD.startswith(value)  # behind its head, or within it
        whole = value == f"{zlib.crc32(content.encode()):08x}\n" if seal else not cut
        if not whole:
            raise UserError(
                f"{path} has changed since velm wrote it; if you changed it on purpose, remove its first and last line"
            )
        text = content if seal else value
        if "${" in text:
            raise UserError(f"{path} holds ${{...}}, which velm never writes and does not resolve for a stranger")
        _refuse_yaml_that_explodes(path, text)
        config = OmegaConf.create(text)
    except (OSError, ValueError, RecursionError, OmegaConfBaseException, yaml.YAMLError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {line[:200]}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} is not a config: it holds no options")
    vision = config.get("vision")
    if isinstance(vision, DictConfig) and "resize" not in vision:  # an older velm's, which cropped all images
        vision.resize = schema.Resize.crop.name
    return config


def _refuse_yaml_that_explodes(path: Path, text: str) -> None:
    """A few aliases of aliases fill the memory, and a few thousand brackets take PyYAML minutes."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            raise UserError(f"{path} holds YAML that velm never writes: an alias, or more than {DEEPEST} levels")


def to_yaml(config: Any) -> str:
    """The dataclass as YAML that `load_run_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def experiment_of(config: Any) -> dict[str, Any]:
    """What makes two runs the same experiment: every option but the HOUSEKEEPING, flat by key."""
    return {k: v for k, v in flat(config).items() if not is_housekeeping(k) or k in ("seed", "checkpoint")}


def flat(config: Any) -> dict[str, Any]:
    """Every option by its key: {"run.max_steps": 1000, ...}."""
    plain = config if isinstance(config, dict) else OmegaConf.create(to_yaml(config))
    return _flatten(plain if isinstance(plain, dict) else OmegaConf.to_container(plain))


def is_housekeeping(key: str) -> bool:
    head, dot, tail = key.partition(".")
    return head in HOUSEKEEPING[""].split() or tail in HOUSEKEEPING.get(head + dot, "").split()


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    out: dict[str, Any] = {}
    for key, value in node.items():
        out.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return out
