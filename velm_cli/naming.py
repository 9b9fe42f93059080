"""The name of a run's folder: a pure function of its command, so that the same command finds it again.

Names need no quoting in a shell, say whose option a number is, and differ where the data does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from velm_cli.as_typed import unquoted
from velm_cli.configs import foreign_model, is_housekeeping, run_folder_of, step_folder_of
from velm_cli.errors import UserError, on_one_line

LONGEST_NAME = 200  # bytes: a folder's name may have 255, and a log's has an ending


def checkpoint_name(checkpoint: str | Path) -> str:
    """What names the weights of `checkpoint` in other runs' names: RUN, or RUN-stepN; hf-NAME of a foreign model."""
    if (foreign := foreign_model(checkpoint)) is not None:
        folder = os.path.isdir(foreign)
        return f"hf-{os.path.basename(os.path.abspath(foreign)) if folder else foreign.replace('/', '-')}"
    step = step_folder_of(checkpoint)
    name = os.path.basename(os.path.abspath(run_folder_of(checkpoint)))  # also where that is . or ..
    return name + ("" if step is None else f"-step{int(step.name.removeprefix('step-'))}")


def default_name(config: Any, overrides: Sequence[str], choices: dict[str, Any], *, older: bool = False) -> str:
    """A run's name from what was asked for: the choices, the data, the seed, then every other override.

    A pure function of the command, so the same command finds the same folder again. An option's name stands with its
    group where two groups have it (`text.width_64`). `older`: as velm named runs before it did that, and without data.
    """
    shown = {group: choices.get(group) for group in ("dataset", "vision", "text", "fusion")}
    if not older and (data := data_name(config.dataset, overrides)):
        shown["dataset"] = "-".join(filter(None, [_chosen(shown["dataset"]), data]))
    parts = [choice for choice in map(_chosen, shown.values()) if choice is not None]
    if config.stage == "finetune":
        parts.insert(0, checkpoint_name(config.checkpoint))
    if getattr(config, "config", None):
        parts.insert(0, source_name(config.config))
    if getattr(config, "seed", 0):
        parts.append(f"seed{config.seed}")
    for key in ("experiment", "debug"):
        if choices.get(key):
            parts.append(str(choices[key]))
    covered = {"dataset", "vision", "text", "fusion", "experiment", "debug"}
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key not in covered and value != "_checkpoint" and not is_housekeeping(key):
            last = key.rpartition(".")[2]
            groups = [
                name
                for name, group in vars(config).items()
                if hasattr(group, last) and not is_housekeeping(f"{name}.{last}")
            ]
            parts.append(f"{last}_{value}" if older else f"{key if len(groups) > 1 else last}_{unquoted(value)}")
    if getattr(config, "config", None) and len(parts) == 1:  # never the run itself whose options are taken
        parts.append("again")
    return slug("-".join(parts))


def refuse_name(name: str) -> None:
    """UserError for a name that is no folder below that of all runs, or that a terminal or a disk cannot take."""
    parts, problem = name.split("/"), ""
    if not name.isprintable():
        problem = "holds characters that cannot be shown"
    elif name.startswith(("/", "~")):
        problem = "leads elsewhere: a name is a folder below runs/STAGE (run.dir= is the folder of all runs)"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "is no folder of its own below runs/STAGE: leave out . and .. and slashes at the end"
    elif any(len(part.encode()) > LONGEST_NAME for part in parts):
        problem = f"is longer than {LONGEST_NAME} bytes"
    if problem:
        shown = name if len(name) <= 80 else f"{name[:60]}..."
        raise UserError(f"name={on_one_line(shown)} {problem}")


def _chosen(choice: Any) -> str | None:
    return None if choice in (None, "_checkpoint") else str(choice)


def data_name(dataset: Any, overrides: Sequence[str]) -> str:
    """What distinguishes the data that the command names from the default of its kind; "" where it names none.

    The last part of the store's path, or of the root's; where there is more to the path, also four digits of it.
    """
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    for option in ("store", "root"):
        value = getattr(dataset, option, None)
        if value is not None and f"dataset.{option}" in given:
            return short_name(str(value))
    return ""


def short_name(path: str) -> str:
    """The last part of a path as a piece of a run's name; four digits of the whole keep it apart from its likes."""
    import hashlib

    spelled = os.path.normpath(os.path.expanduser(path))
    if os.path.isabs(spelled) and not (near := os.path.relpath(spelled)).startswith(".."):
        spelled = near
    last = os.path.basename(spelled)
    if slug(last) == last and spelled in (last, f"stores/{last}"):
        return last
    return "-".join(filter(None, [slug(last)[:40], hashlib.sha256(os.fsencode(spelled)).hexdigest()[:4]]))


def source_name(config: str) -> str:
    """What names the run or file whose options a run starts from."""
    path = Path(config)
    return path.parent.name if path.name == "config.yaml" else path.name.removesuffix(".yaml").removesuffix(".yml")


def slug(text: str) -> str:
    """`text` as a folder name that needs no quoting in a shell or in a Hydra override."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_.")
    if len(text) <= 100:
        return text
    import hashlib

    return f"{text[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
