"""Hydra's and OmegaConf's complaints about a command, as one line that says what to type instead."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from velm_cli import schema
from velm_cli.errors import did_you_mean

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
    if match := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        group, choice = match[1], match[2]
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        names = [name for name in (options[1].split() if options else []) if not name.startswith("_")]
        return f"{group}={choice}: no such choice{did_you_mean(choice, names)} (choices: {', '.join(names)})"
    if match := re.search(r"Could not override '([^']+)'.*?Key '([^']+)' not in '(\w+)'", text, re.S):
        key, last, owner = match[1], match[2], match[3]
        parent = key.rpartition(".")[0]
        if "." in key and not key.endswith(last):  # an unknown parent: `optimm.lr`
            parent, key = "", last
        names = _options(owner)
        near = did_you_mean(last, names).replace(
            "did you mean '", f"did you mean '{parent}." if parent else "did you mean '"
        )
        where = f"{parent} has" if parent else f"{stage} has"
        return f"{key}: no such option{near or f'; {where}: ' + ', '.join(names)}"
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        near = did_you_mean(match[1], [*schema.KINDS, *_options(schema.ROOTS[stage].__name__)])
        return f"{match[1]}: no such group{near or '; see velm ' + stage + ' --help'}"
    if match := re.search(r"Error merging override ([^=\s]+)=(.*?)\n", text):
        return f"{match[1]}={match[2]}: {_expected(text)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, and put quotes around special characters"
    return re.sub(r"\s+", " ", text.partition("\nfull_key")[0]).strip()


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
    if match := re.search(r"expected one of \[([^\]]*)\]", text):
        names = [name.rpartition(".")[2].strip() for name in match[1].split(",")]
        return f"expected one of {', '.join(names)}"
    return re.sub(r"\s+", " ", text.split("\n", 2)[1]).strip()


def _options(owner: str) -> list[str]:
    node: Any = getattr(schema, owner, None)
    return [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
