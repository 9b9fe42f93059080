"""Every option by its key: type, default, bounds and meaning, read from the schema. Imports neither torch nor Hydra.

One source for the help of a stage, docs/config.md, completion, hints, and for what must be quoted before Hydra sees it.
A meaning is the comment behind the option in the schema's source, so that it is written once, where the option is.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from velm_cli import schema
from velm_cli.schema.bounds import Bounds, bounds_of
from velm_cli.schema.paths import is_path

# What `velm eval` does with `run`; all else there is about training.
OF_AN_EVALUATION = ("dir", "device", "precision", "threads", "deterministic")
SCHEDULES = ("loss.alpha", "loss.beta", "loss.gamma", "loss.scheduled_sampling")  # numbers, or text like linear(0,1,9)
HIDDEN = ("stage", "kind")  # follow from the command's first word and from the choice of the group


@functools.cache
def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "conf"
    return packaged if packaged.is_dir() else here.parent / "conf"


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One option of one dataclass."""

    key: str  # dataset.root
    node: type  # the dataclass that has it
    type: Any  # its annotation
    default: str  # as it is typed: null, true, [bleu,cider]; `required` where there is none
    bounds: Bounds | None

    @property
    def meaning(self) -> str:
        """The comment behind it in the schema, of the class that says it last."""
        said = (_meanings(cls).get(self.name) for cls in self.node.__mro__ if dataclasses.is_dataclass(cls))
        return next((text for text in said if text is not None), "")

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def optional(self) -> bool:
        return type(None) in typing.get_args(self.type)

    @property
    def is_path(self) -> bool:
        return is_path(self.node, self.name)

    @property
    def is_text(self) -> bool:
        return self.key not in SCHEDULES and self.type in (str, str | None)

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.type) is list or list[str] in typing.get_args(self.type)

    @property
    def is_files(self) -> bool:
        """Whether it takes a path, a list of them, or one or several of each part: `{train: a.json, val: b.json}`."""
        return self.type is Any

    @property
    def values(self) -> list[str]:
        """The words that it takes, if these are all."""
        if isinstance(self.type, type) and issubclass(self.type, Enum):
            return list(self.type.__members__)
        return ["true", "false"] if self.type is bool else []


def own(node: type, prefix: str = "") -> list[Option]:
    """The options that a dataclass adds or gives another default; groups are left out."""
    found = []
    for name in inspect.get_annotations(node):
        field = node.__dataclass_fields__[name]  # type: ignore[attr-defined]
        kind = field.type
        if name in HIDDEN or dataclasses.is_dataclass(kind) or (kind is Any and not is_path(node, name)):
            continue
        found.append(Option(prefix + name, node, kind, _typed(field), bounds_of(node, name)))
    return found


def all_of(node: type, prefix: str = "") -> dict[str, Option]:
    """Those of a dataclass and of the classes below it, by name; the dataclass's own word counts."""
    found = [option for cls in reversed(node.__mro__) if dataclasses.is_dataclass(cls) for option in own(cls, prefix)]
    return {option.name: dataclasses.replace(option, node=node) for option in found}


def groups_of(stage: str) -> dict[str, list[type]]:
    """The groups of a stage: the dataclasses of their choices, or the one of all."""
    nodes = {field.name: field.type for field in dataclasses.fields(schema.ROOTS[stage])}
    return {
        name: list(schema.KINDS[name].values()) if name in schema.KINDS else [node]
        for name, node in nodes.items()
        if isinstance(node, type) and dataclasses.is_dataclass(node)
    }


@functools.cache
def options_of(stage: str) -> dict[str, list[Option]]:
    """Every key of a stage; several options where the choices of its group each have one."""
    found = {name: [option] for name, option in all_of(schema.ROOTS[stage]).items()}
    for group, nodes in groups_of(stage).items():
        for node in nodes:
            for option in all_of(node, f"{group}.").values():
                if has_effect(stage, option.key):
                    found.setdefault(option.key, []).append(option)
    return found


def has_effect(stage: str, key: str) -> bool:
    """Whether the stage uses the option, which lies in a group that others use, too."""
    group, _, name = key.partition(".")
    return stage != "evaluate" or group != "run" or name in OF_AN_EVALUATION


def choices(group: str) -> list[str]:
    """What a group can be, by the files in `conf/`; none for what is no group."""
    if group not in _groups():
        return []
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def choice_groups(stage: str) -> dict[str, str | None]:
    """Groups with a choice, and the stage's own choice; None where there is none, or the run of checkpoint= has it."""
    entries = _yaml(conf_dir() / f"{stage}.yaml").get("defaults", [])
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {group: None if choice == "_checkpoint" else choice for group, choice in pairs if " " not in group}


def kind_of(group: str, choice: str) -> str | None:
    """Which dataclass of the group a choice has."""
    entries = _yaml(conf_dir() / group / f"{choice}.yaml").get("defaults", [])
    kinds = [e.partition("@")[0].rpartition("/")[2] for e in entries if isinstance(e, str) and e.startswith("/_kind/")]
    return kinds[0] if kinds else None


def preset(group: str, choice: str | None) -> dict[str, str]:
    """The values that a choice sets, by name, as they are typed."""
    values = _yaml(conf_dir() / group / f"{choice}.yaml") if choice else {}
    return {name: _shown(value) for name, value in values.items() if name != "defaults" and not isinstance(value, dict)}


@functools.cache
def _groups() -> frozenset[str]:
    return frozenset(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")


@functools.cache
def _yaml(file: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError:
        return {}


def _typed(field: dataclasses.Field) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "required" if value == "???" else _shown(value)


def _shown(value: Any) -> str:
    """A value as it is typed in a command."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_shown, value))}]"
    return str(value) if value != "" else "''"


@functools.cache
def _meanings(node: type) -> dict[str, str]:
    """The comment behind each field, on whichever of its lines a formatter left it."""
    return _of_module(inspect.getsourcefile(node) or "").get(node.__name__, {})


@functools.cache
def _of_module(file: str) -> dict[str, dict[str, str]]:
    text = Path(file).read_text(encoding="utf-8")
    lines = text.splitlines()
    return {cls.name: dict(_comments(cls, lines)) for cls in ast.parse(text).body if isinstance(cls, ast.ClassDef)}


def _comments(cls: ast.ClassDef, lines: list[str]) -> Iterator[tuple[str, str]]:
    for field in cls.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            own_lines = lines[field.lineno - 1 : field.end_lineno]
            yield field.target.id, " ".join(c for line in own_lines if (c := line.partition("  # ")[2]))
