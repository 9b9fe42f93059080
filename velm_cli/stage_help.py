"""`velm STAGE --help`: what a stage takes, from the schema and `conf/` alone, so that it is there at once.

velm train --help                  groups with their choices; every option with default, values and meaning
velm train --help vision           one group; `vision=vit` one choice of it, `vision.width` or `width` one option
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from velm_cli import schema
from velm_cli.errors import UserError, did_you_mean
from velm_cli.options import (
    SCHEDULES,
    Option,
    all_of,
    choice_groups,
    choices,
    groups_of,
    has_effect,
    kind_of,
    own,
    preset,
)

WIDTH = 100
DEFAULT_WIDTH = 12  # of the column of defaults


def stage_help(stage: str, meaning: str, words: Sequence[str] = ()) -> str:
    """The page of a stage, or what `words` name of it: groups, choices, options. UserError for what it has not."""
    if words:
        return "\n".join(line for word in words for line in _narrowed(stage, word))
    own_options = list(all_of(schema.ROOTS[stage]).values())
    lines = [f"usage: velm {stage} [group=choice ...] [option=value ...]", "", *_filled(f"{meaning}.", "")]
    if choice_groups(stage):
        lines += ["", "Groups and their choices:", *_groups(stage)]
    lines += ["", f"Options of {stage}:", *_table(own_options, {})]
    for group in groups_of(stage):
        lines += _group(stage, group)
    lines += ["", *_filled(
        f"velm {stage} --help GROUP or OPTION prints a part of this, velm {stage} ... --cfg job the config of a "
        "command. Text is taken as it is typed (quote it for the shell only); key=null means none.", ""
    )]  # fmt: skip
    return "\n".join(lines)


def takes(option: Option) -> str:
    """What values an option takes, in a few words: `at least 1`, `auto | cpu`, `path`."""
    if option.values:
        return " | ".join(option.values)
    if option.key in SCHEDULES:
        return "number or schedule"
    if option.bounds is not None and str(option.bounds):
        return str(option.bounds)
    if option.type in (int, int | None, float, float | None):
        return "whole number" if option.type in (int, int | None) else "number"
    return "a list" if option.is_list else "path" if option.is_path else "text"


def _narrowed(stage: str, word: str) -> Iterator[str]:
    group, equals, choice = word.partition("=")
    roots, groups = all_of(schema.ROOTS[stage]), groups_of(stage)
    if group in choice_groups(stage) or group in groups:
        if equals and choice not in choices(group):
            raise UserError(
                f"{word}: no such choice{did_you_mean(choice, choices(group))} ({', '.join(choices(group))})"
            )
        if choices(group):
            yield from _groups(stage, group)
        if group in groups:
            yield from _group(stage, group, choice or None)
        return
    if group in roots:
        yield from _table([roots[group]], {})
        return
    found = False
    for name in groups:
        for title, options, presets in _sections(stage, name, None):
            if some := [option for option in options if group in (option.key, option.name)]:
                found = True
                yield from _filled(title, "")
                yield from _table(some, presets)
    if not found:
        names = [*roots, *groups, *(option.key for name in groups for node in groups[name]
                                    for option in all_of(node, f"{name}.").values())]  # fmt: skip
        raise UserError(f"velm {stage} --help {word}: no such group or option{did_you_mean(word, names)}")


def _groups(stage: str, *only: str) -> Iterator[str]:
    usual = choice_groups(stage)
    width = max(map(len, usual)) + 2
    for group in sorted(only or usual):
        default = usual.get(group)
        names = [f"{name}*" if name == default else name for name in choices(group)]
        yield from _filled(", ".join(names), f"  {group:<{width}}")
    if not only:
        told = "* the default" + (", or what the run of checkpoint= has" if stage in ("finetune", "evaluate") else "")
        yield f"  {'':<{width}}({told})"


def _group(stage: str, group: str, choice: str | None = None) -> Iterator[str]:
    for title, options, presets in _sections(stage, group, choice):
        yield ""
        yield from _filled(title, "")
        yield from _table(options, presets)


def _sections(stage: str, group: str, choice: str | None) -> Iterator[tuple[str, list[Option], dict[str, str]]]:
    """Titles with options: what all choices have, then what each adds."""
    nodes = groups_of(stage)[group]
    usual = choice or choice_groups(stage).get(group)
    if group not in schema.KINDS:
        used = [option for option in all_of(nodes[0], f"{group}.").values() if has_effect(stage, option.key)]
        yield (
            f"{group}{f' (defaults of {group}={usual})' if len(choices(group)) > 1 else ''}:",
            used,
            preset(group, usual),
        )
        return
    if choice:
        node = schema.KINDS[group][kind_of(group, choice) or ""]
        yield f"{group}={choice}:", list(all_of(node, f"{group}.").values()), preset(group, choice)
        return
    seen: set[type] = set()
    for kind, node in schema.KINDS[group].items():
        for cls in reversed(node.__mro__):
            options = own(cls, f"{group}.") if cls is not object else []
            if cls in seen or not options:
                continue
            seen.add(cls)
            names = [name for name in choices(group) if _is(cls, group, name)]
            every = len(names) == len(choices(group))
            title = f"{group}, any choice:" if every else f"{group}={' | '.join(names) or kind}:"
            yield title, options, preset(group, names[0]) if len(names) == 1 else {}


def _is(cls: type, group: str, choice: str) -> bool:
    kind = kind_of(group, choice)
    return kind is not None and issubclass(schema.KINDS[group][kind], cls)


def _table(options: Sequence[Option], presets: dict[str, str]) -> Iterator[str]:
    width = max((len(option.key) for option in options), default=0)
    for option in options:
        default = presets.get(option.name, option.default)
        words = takes(option)
        named = option.values and all(value in option.meaning for value in option.values)
        shown = "" if named or option.values == ["true", "false"] or words in ("text", "path") else f" ({words})"
        left = f"  {option.key:<{width}}  {default:<{DEFAULT_WIDTH}}  "
        indent = " " * (width + DEFAULT_WIDTH + 6)
        if len(default) > DEFAULT_WIDTH:
            yield left.rstrip()
            left = indent
        yield from _filled(f"{option.meaning}{shown}".strip(), left, indent)


def _filled(text: str, first: str, rest: str | None = None) -> list[str]:
    rest = " " * len(first) if rest is None else rest
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return lines or [first.rstrip()]
