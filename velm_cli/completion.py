"""Tab completion: what may come next in `velm STAGE ...`, from the schema, `conf/` and the file system.

The shell's part is a few lines that `velm -sc install=bash` prints; it asks with `velm -sc query=bash`, the line in
COMP_LINE and, where `=` or `:` ends a word to the shell (bash: COMP_WORDBREAKS), what it completes in VELM_WORD.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from velm_cli import schema
from velm_cli.options import all_of, choice_groups, choices, groups_of, has_effect, kind_of, options_of

BASH = r"""_velm_completion() {
    local IFS=$'\n' current="${COMP_WORDS[COMP_CWORD]}" one
    case "$current" in =|:) current="" ;; esac
    COMPREPLY=()
    for one in $(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" VELM_WORD="$current" "${1:-velm}" -sc query=bash \
            2>/dev/null); do
        COMPREPLY+=("$one")
    done
}
complete -o nospace -F _velm_completion velm"""
ZSH = f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"
FISH = r"""function _velm_completion
    set -l line (commandline -cp)
    env COMP_LINE="$line" COMP_POINT=(string length -- "$line") velm -sc query=fish
end
complete -c velm -f -a '(_velm_completion)'"""
INSTALL = {"bash": BASH, "zsh": ZSH, "fish": FISH}
UNINSTALL = {
    "bash": "complete -r velm; unset -f _velm_completion",
    "zsh": "complete -r velm; unset -f _velm_completion",
    "fish": "complete -e -c velm; functions -e _velm_completion",
}
FLAGS = ("--help", "--cfg", "--info", "--config-dir", "-m", "--where", "--point", "--jobs")
MOST = 2000  # files of a folder that are offered


def answer(line: str, shell: str, current: str | None, stages: Sequence[str], aliases: dict[str, str]) -> list[str]:
    """What the shell may put in place of `current`, the end of the line's last word (None: all of that word)."""
    words = re.findall(r"(?:\\.|\S)+", line)
    typed = words.pop() if words and re.search(r"(?:\\.|\S)\Z", line) else ""
    words, word = [_plain(word) for word in words], _plain(typed)
    found = [offer for offer in _offers(words, word, stages, aliases) if offer != word]
    if shell != "fish":  # which escapes by itself
        found = [re.sub(r"([^\w./=,+@:%~\[\]-])", r"\\\1", offer) for offer in found]
    skipped = typed.removesuffix(current) if current is not None and typed.endswith(current) else ""
    return [offer[len(skipped) :] for offer in found if offer.startswith(skipped)]


def _plain(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word)


def _offers(words: list[str], word: str, stages: Sequence[str], aliases: dict[str, str]) -> Iterator[str]:
    """Whole words that the last word can become; those that go on end in `=`, `.` or `/`."""
    if not words:
        return
    if len(words) == 1 or words[1] == "help":
        yield from sorted(name for name in (*stages, *aliases) if name.startswith(word))
        return
    stage = aliases.get(words[1], words[1])
    if stage == "report":
        yield from _report(word)
    if stage not in schema.ROOTS:
        return
    key, equals, value = word.partition("=")
    plus = key[: len(key) - len(key.lstrip("+"))]
    if equals:
        yield from (f"{key}={offer}" for offer in _values(stage, key.lstrip("+"), value))
    elif word.startswith("-"):
        yield from (flag for flag in FLAGS if flag.startswith(word))
    else:
        yield from (plus + name for name in _keys(stage, words[2:]) if name.startswith(key.lstrip("+")))


def _keys(stage: str, words: list[str]) -> Iterator[str]:
    """Groups and options, those of the choices that the words make."""
    given = dict(word.lstrip("+").partition("=")[::2] for word in words if "=" in word)
    yield from (f"{name}=" for name in all_of(schema.ROOTS[stage]))
    yield from (f"{group}=" for group in choice_groups(stage))
    for group, nodes in groups_of(stage).items():
        choice = given.get(group, choice_groups(stage).get(group))
        kind = kind_of(group, choice) if choice and group in schema.KINDS else None
        chosen = [schema.KINDS[group][kind]] if kind else nodes
        found = dict.fromkeys(key for node in chosen for key in _of(node, group) if has_effect(stage, key))
        yield f"{group}."
        yield from (f"{key}=" for key in found)


def _of(node: type, group: str) -> list[str]:
    return [option.key for option in all_of(node, f"{group}.").values()]


def _values(stage: str, key: str, value: str) -> Iterator[str]:
    """Of a group or an option; in a sweep those after the last comma."""
    options = options_of(stage).get(key, [])
    if not options or options[0].is_list or options[0].values:
        before, comma, value = value.rpartition(",")
        head = before + comma
        if options and options[0].is_list:
            head, value = (head, value) if head or not value.startswith("[") else ("[", value[1:])
            names: list[str] = list(schema.METRIC_NAMES) if key.startswith("metrics.") else []
        else:
            names = choices(key) if key in choice_groups(stage) else [v for option in options for v in option.values]
        yield from (f"{head}{name}" for name in dict.fromkeys(names) if name.startswith(value))
        return
    option = options[0]
    if key in ("vision.weights", "text.weights", "metrics.df"):  # words besides the paths
        words = {"metrics.df": ("corpus", "coco")}.get(key, ("pretrained", "none"))
        yield from (word for word in words if word.startswith(value))
    if key == "split":
        yield from (name for name in ("train", "val", "test") if name.startswith(value))
    if option.is_path:
        yield from _files(value)


def _files(start: str) -> Iterator[str]:
    """Files and folders (with a slash) whose path begins so; `~` stays as it was typed."""
    shown, _, name = start.rpartition("/")
    shown += "/" if "/" in start else ""
    folder = Path(os.path.expanduser(shown or "."))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)[:MOST]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            yield f"{shown}{entry.name}{'/' if entry.is_dir() else ''}"


def _report(word: str) -> Iterator[str]:
    key, equals, value = word.partition("=")
    if equals and key == "out":
        yield from (f"out={file}" for file in _files(value))
    elif not equals:
        yield from (option for option in ("metric=", "out=") if option.startswith(word))
        yield from _files(word)
