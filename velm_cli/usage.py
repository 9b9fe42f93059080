"""Hydra's and OmegaConf's complaints about a command, as one line that says what to type instead."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from velm_cli import schema
from velm_cli.as_typed import quote, unquoted
from velm_cli.errors import did_you_mean
from velm_cli.hints import instead_of
from velm_cli.options import HIDDEN, choice_groups, choices, kind_of, options_of
from velm_cli.stage_help import takes

OF_THE_RUN = ("vision", "text", "fusion")  # groups that an evaluation has of the run that it evaluates
LONGEST = 300  # characters of a message of Hydra's, or of a value in it

_EXPECTED = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
}


def explain(error: BaseException, stage: str) -> str | None:
    """One line for a mistake in the command; None when `error` is something else."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    text = _chain(error)
    if match := re.search(r"Could not find '((?:hydra/)?\w+)/([^']+)'", text):
        group, choice = match[1], match[2]
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        names = [name for name in (options[1].split() if options else []) if not name.startswith("_")]
        return f"{group}={choice}: no such choice{did_you_mean(choice, names)} (choices: {', '.join(names)})"
    if match := re.search(r"Could not override '([^']+)'.*?Key '([^']+)' not in '(\w+)'", text, re.S):
        key, last, owner = match[1], match[2], match[3]
        parent = key.rpartition(".")[0]
        if key.startswith(("hydra.", "hydra/")):
            return f"{key}: Hydra has no such option"
        if key.lower() != key and (better := instead_of(key, stage)):
            return f"{key}: no such option; {better}"
        if "." in key and not key.endswith(last):  # an unknown parent: `optimm.lr`
            parent, key = "", last
        if key.partition(".")[0] in OF_THE_RUN and stage == "evaluate":
            return f"{key}: no such option of velm {stage}: the model is the checkpoint's, with its own options"
        if better := _of_another_choice(key, stage):
            return f"{key}: no such option with this choice; {better}"
        if better := instead_of(key, stage):
            return f"{key}: no such option; {better}"
        if others := [other for other in schema.ROOTS if match[1] in options_of(other)]:
            return f"{match[1]}: no such option of velm {stage}; it is one of velm {', '.join(others)}"
        names = _options(owner)
        near = did_you_mean(last, names).replace(
            "did you mean '", f"did you mean '{parent}." if parent else "did you mean '"
        )
        where = f"{parent} has" if parent else f"{stage} has"
        return f"{key}: no such option{near or f'; {where}: ' + ', '.join(names)}"
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        if others := [other for other in schema.ROOTS if match[1] in choice_groups(other)]:
            return f"{match[1]}: no such option of velm {stage}; it is one of velm {', '.join(others)}"
        near = did_you_mean(match[1], [*schema.KINDS, *_options(schema.ROOTS[stage].__name__)])
        return f"{match[1]}: no such group{near or '; see velm ' + stage + ' --help'}"
    if match := re.search(r"Error merging override ([^=\s]+)=(.*?)\n", text, re.S):
        return f"{match[1]}={unquoted(match[2])[:LONGEST]}: {_expected(text)}"
    if match := re.search(r"Interpolation key '([^']*)' not found\s+full_key: ([\w.]+)", text):
        return f"{match[2]}: ${{{match[1]}}} is the value of another option, and there is no option {match[1]!r}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, stage)
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} is not set: give {error.full_key}=VALUE"
    line = re.sub(r"\s+", " ", re.split(r"\n\s*full_key", text)[0]).strip()
    key = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) and error.full_key else ""
    return f"{key}{line.partition(' Config search path')[0]}"[:LONGEST]


def _of_another_choice(key: str, stage: str) -> str:
    """Of an option that only other choices of its group have."""
    group = key.partition(".")[0]
    owners = [option.node for option in options_of(stage).get(key, [])]
    if group not in schema.KINDS or not owners:
        return ""
    with_it = [
        choice for choice in choices(group) if (k := kind_of(group, choice)) and schema.KINDS[group][k] in owners
    ]
    return f"it is one of {group}={' or '.join(with_it)}" if with_it else ""


def _unreadable(override: str, stage: str) -> str:
    """Brackets and the like, where an option takes none."""
    key, _, value = override.partition("=")
    as_text = f"{key}={quote(unquoted(value))}"
    options = options_of(stage).get(key.lstrip("+"), [])
    if options and not options[0].is_text:
        what = f"a number, {takes(options[0])}" if options[0].bounds else takes(options[0])
        return f"cannot read {override[:LONGEST]!r}: {key} takes {what}"
    return f"cannot read {override[:LONGEST]!r}: write key=value; as text it is {shlex.quote(as_text)[:LONGEST]}"


def _chain(error: BaseException) -> str:
    """The messages of an exception and its causes."""
    lines, seen = [], set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines.append(str(current))
        current = current.__cause__ or current.__context__
    return "\n".join(lines)


def _expected(text: str) -> str:
    if match := re.search(r"could not be converted to (\w+)", text):
        return f"expected {_EXPECTED.get(match[1], match[1])}"
    if "is not a valid bool" in text:
        return "expected true or false"
    if "is not Optional" in text:
        return "null is not possible here; leave it out for the default"
    if match := re.search(r"expected one of \[([^\]]*)\]", text):
        names = [name.rpartition(".")[2].strip() for name in match[1].split(",")]
        return f"expected one of {', '.join(names)}"
    return re.sub(r"\s+", " ", text.split("\n", 2)[1]).strip()[:LONGEST]


def _options(owner: str) -> list[str]:
    node: Any = getattr(schema, owner, None)
    return (
        [field.name for field in dataclasses.fields(node) if field.name not in HIDDEN]
        if dataclasses.is_dataclass(node)
        else []
    )
