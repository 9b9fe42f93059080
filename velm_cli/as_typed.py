"""What was typed, as Hydra's grammar wants it: every value arrives as its user typed it.

To Hydra `photos (1)` is a mistake, `O'Brien` an open quote, `1e3` a number, `a,b` a sweep, and `+run.epochs=3` passes
whatever the schema says. The schema knows better: values are quoted by the type of their option, `+` and `++` mean
nothing, a single value of a list is a list of one. What a user has quoted for Hydra (`'...'`, `"..."`) stays as it is,
and so do interpolations and, in a sweep, commas and Hydra's functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from velm_cli import schema
from velm_cli.errors import UserError, did_you_mean
from velm_cli.hints import instead_of
from velm_cli.options import (
    OF_AN_EVALUATION,
    SCHEDULES,
    Option,
    all_of,
    choice_groups,
    choices,
    has_effect,
    options_of,
)

FLAGS = ("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun", "--where")
WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-cd", "--config-dir", "--point", "--jobs")
OF_CONFIGS = ("-cp", "--config-path", "-cn", "--config-name")
TAKES = {"--cfg": ("job", "hydra", "all")}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

PLAIN = r"[A-Za-z0-9_./@+:-]+"  # Hydra reads it as itself
WITH_INTERPOLATION = r"(?:[A-Za-z0-9_./@+:-]|\$\{[^{}]+\})+"
A_NUMBER = r"(?i)[+-]?(?:[\d_.]+(?:e[+-]?[\d_]+)?|inf|nan)|true|false|null"  # or another thing than text to Hydra
QUOTED = r"""(?s)'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
SCHEDULE = r"(?:linear|cosine|step)\(.*\)"
SWEEP = r"(?s)(?:choice|range|interval|glob|shuffle|sort|tag)\(.*\)"  # functions that make or order choices


def for_hydra(stage: str, args: Sequence[str], note: Callable[[str], None]) -> list[str]:
    """The arguments of a stage for Hydra: its flags first, then `key=value` for each word. `note` is told what a user
    may not expect; UserError for what cannot be meant."""
    flags, words = _flags(stage, args)
    sweeping = "-m" in flags
    folders = [Path(flag.partition("=")[2]) for flag in flags if flag.startswith("--config-dir=")]
    folders += [Path(flags[place + 1]) for place, flag in enumerate(flags) if flag in ("-cd", "--config-dir")]
    found: dict[str, str] = {}
    several: dict[str, list[str]] = {}  # of dataset.urls: a shell makes a word for each shard of {00..99}
    for word in words:
        key, value = _key_and_value(stage, word, folders)
        if key in ("experiment", "debug") and value.strip().lower() == "null":  # as without the word
            found.pop(key, None)
            continue
        if key in ("dataset.urls", "dataset.val_urls"):
            several.setdefault(key, []).append(value)
            value = _urls(several[key])
        else:
            if key in found:
                note(f"{key} is given more than once; the last counts: {word}")
            value = _value(stage, key, value, sweeping)
        found[key] = value
    return [*flags, *(f"{key}={value}" for key, value in found.items())]


def quote(text: str) -> str:
    """`text` as a quoted value of Hydra's grammar, which gives exactly it."""
    mark = "'" if '"' in text else '"'  # a shell's line with the first looks worse
    return mark + re.sub(rf"(\\*)({mark}|\Z)", lambda m: m[1] * 2 + (f"\\{mark}" if m[2] else ""), text) + mark


def unquoted(value: str) -> str:
    """The text that a value of Hydra's grammar means."""
    if not re.fullmatch(QUOTED, value):
        return value
    mark = value[0]
    return re.sub(rf"(\\+)({mark}|\Z)", lambda m: m[1][: len(m[1]) // 2] + m[2], value[1:-1])


def split(value: str) -> list[str]:
    """At the commas outside of quotes and brackets; an apostrophe within a word opens no quote."""
    pieces, depth, mark, start = [], 0, "", 0
    for place, char in enumerate(value):
        if mark:
            if char == mark and value[place - 1] != "\\":
                mark = ""
        elif char in "'\"" and not value[start:place].strip():
            mark = char if re.match(QUOTED, value[place:]) else ""
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth = max(0, depth - 1)
        elif char == "," and not depth:
            pieces.append(value[start:place])
            start = place + 1
    return [*pieces, value[start:]]


def _flags(stage: str, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and the words. Hydra takes no word between flags, so these come first."""
    flags, words = [], []
    waiting = list(reversed(args))
    while waiting:
        arg = waiting.pop()
        flag, equals, value = arg.partition("=")
        if not arg.startswith("-"):
            words.append(arg)
        elif flag in OF_CONFIGS:
            raise UserError(
                f"{flag}: velm's configs have their own place; config=RUN_OR_YAML starts from a run or a file of "
                "options, and experiment=NAME --config-dir=FOLDER takes FOLDER/experiment/NAME.yaml"
            )
        elif flag in ("-i", "--info"):
            if equals and value not in INFO:
                raise UserError(f"{arg}: expected one of {', '.join(INFO)}")
            flags.append(arg)
            if not equals and waiting and waiting[-1] in INFO:
                flags.append(waiting.pop())
        elif flag in WITH_VALUE:
            if not equals and (not waiting or waiting[-1].startswith("-") or "=" in waiting[-1]):
                raise UserError(f"{flag} needs a value{_of(flag)}")
            flags += [arg] if equals else [arg, waiting.pop()]
            value = value if equals else flags[-1]
            if (taken := TAKES.get({"-c": "--cfg"}.get(flag, flag))) and value not in taken:
                raise UserError(f"{flag}={value}: expected {', '.join(taken[:-1])} or {taken[-1]}")
        elif arg in FLAGS:
            if arg != "--multirun" or "-m" not in flags:
                flags.append("-m" if arg == "--multirun" else arg)
        else:
            key = flag.lstrip("-").replace("-", "_")
            if key in ("help", "h"):
                raise UserError(f"{arg}: write velm {stage} --help {value}")
            known = key in options_of(stage) or key in choice_groups(stage)
            near = did_you_mean(flag, ["--help", "--version", *FLAGS, *WITH_VALUE]).removeprefix("; ")
            better = instead_of(key, stage) or (
                f"write {key}={value or 'VALUE'}" if known else near or "write key=value"
            )
            raise UserError(f"{flag}: no such flag; options are written key=value, without dashes: {better}")
    if "--resolve" in flags and not any(flag.partition("=")[0] in ("-c", "--cfg") for flag in flags):
        raise UserError("--resolve goes with --cfg job: velm STAGE --cfg job --resolve")
    return ["-m", *(flag for flag in flags if flag != "-m")] if "-m" in flags else flags, words


def _of(flag: str) -> str:
    return {"-c": ": --cfg job", "--cfg": ": --cfg job", "--point": ": --point=2", "--jobs": ": --jobs=2"}.get(flag, "")


def _key_and_value(stage: str, word: str, folders: Sequence[Path]) -> tuple[str, str]:
    head, equals, value = word.partition("=")
    if word.startswith("~"):
        raise UserError(f"{word}: no option can be removed; give another value, such as key=null or fusion=none")
    key = head.strip()
    if not equals or not key:
        raise UserError(_not_an_option(stage, word))
    if head != head.rstrip():  # "key = value"
        value = value.strip()
    plain = key.lstrip("+")
    if re.match(r"hydra[./]", plain):
        return key, value
    if not re.fullmatch(r"[\w-]+(?:[./][\w-]+)*", plain):
        raise UserError(f"cannot read {word[:200]!r}: {head[:80]!r} is no name of an option; write key=value")
    if plain == "stage" or (plain.endswith(".kind") and plain[:-5] in schema.KINDS):
        raise UserError(f"{plain} is not an option: it follows from {_what_decides(plain, stage)}")
    if not has_effect(stage, plain) and plain[4:] in all_of(schema.RunConfig):
        raise UserError(f"{plain} has no effect on velm {stage}: leave it out (run has {', '.join(OF_AN_EVALUATION)})")
    if not value.strip():
        optional = plain in ("experiment", "debug") or any(o.optional for o in options_of(stage).get(plain, []))
        instead = f"{plain}=null means none" if optional else "leave it out for the default"
        raise UserError(f"{plain}= is empty: is a shell variable unset? ({instead})")
    if (owner := plain.rpartition(".")[0]) in options_of(stage) and not plain.startswith("fusion.options."):
        raise UserError(f"{plain}: no such option; did you mean {owner!r}?")
    if plain.startswith("fusion.options"):  # of another package: velm does not know which there are
        return f"++{plain}", value
    of_a_folder = "." not in plain and plain not in choice_groups(stage) and any((f / plain).is_dir() for f in folders)
    return key if of_a_folder else plain, value


def _what_decides(key: str, stage: str) -> str:
    return f"the first word, velm {stage}" if key == "stage" else f"the choice, {key.removesuffix('.kind')}=NAME"


def _not_an_option(stage: str, word: str) -> str:
    if word[:1] in "–—−‐‑" and word:  # what a text processor makes of a dash
        return f"{word}: begins with a long dash, which is no flag; options are written key=value"
    known = word in options_of(stage) or word in choice_groups(stage)
    if not known and (better := instead_of(word.lstrip("+").strip(), stage, "VALUE")):
        return f"{word!r} has no value: {better}"
    if known or word.strip() in ("=", ""):
        return f"{word!r} has no value: write {word if known else 'key'}=value, without spaces around the ="
    return f"cannot read {word[:200]!r}: write key=value"


def _value(stage: str, key: str, value: str, sweeping: bool) -> str:
    if re.match(r"\+*hydra[./]", key) or key.startswith("++fusion.options"):
        return value
    options = options_of(stage).get(key, [])
    group = choices(key) if not options else []
    if group and value[0] in "[{":
        raise UserError(f"{key}={value[:80]}: one choice is expected, such as {key}={group[0]}")
    if options and all(option.is_list for option in options):
        return _list(value, sweeping)
    pieces = split(value)
    is_text = _is_files(options, value) or (bool(options) and all(option.is_text for option in options))
    if not sweeping:
        if len(pieces) > 1 and not is_text and value[0] not in "[{" and (options or group):
            raise UserError(f"{key}={value[:80]}: one value is expected; a sweep over several is velm {stage} -m ...")
        pieces = [value]
    elif re.fullmatch(SWEEP, value.strip()):
        return value
    elif not all(piece.strip() for piece in pieces):
        raise UserError(f"{key}={value[:80]}: a value is missing next to a comma")
    if group and (wrong := [piece for piece in pieces if not _is_a_choice(piece.strip())]):
        raise UserError(f"{key}={wrong[0][:80]}: no such choice (choices: {', '.join(group)})")
    return ",".join(_element(piece, options, bool(group), sweeping) for piece in pieces)


def _is_a_choice(text: str) -> bool:
    """Whether it can be the name of a file of a group; one in a folder of it, too."""
    return text.lower() != "null" and not any(part in ("", ".", "..") for part in text.split("/"))


def _element(piece: str, options: Sequence[Option], is_group: bool, sweeping: bool) -> str:
    """One value; by its option's type it is text, or what Hydra reads best."""
    bare = piece.strip()
    piece = bare if sweeping else piece
    if re.fullmatch(QUOTED, bare) or (sweeping and re.fullmatch(SWEEP, bare)):
        return bare
    if bare.lower() == "null":
        return bare
    if "${" in piece:
        if re.fullmatch(WITH_INTERPOLATION, bare):
            return bare
        return quote(piece)
    if _is_files(options, bare):
        return _files(piece)
    if options and all(option.is_text for option in options):
        return piece if re.fullmatch(PLAIN, piece) and not re.fullmatch(A_NUMBER, piece) else quote(piece)
    if options and options[0].key in SCHEDULES and re.fullmatch(SCHEDULE, bare):
        return f"'{bare}'"
    if is_group and re.fullmatch(A_NUMBER, bare):
        return quote(bare)
    if re.fullmatch(PLAIN, bare) or (not options and not is_group and bare[:1] in ("[", "{")):
        return bare
    return quote(bare)


def _is_files(options: Sequence[Option], value: str) -> bool:
    """Whether it is for the choice that takes files: dataset.questions of `shapes` is true or false."""
    return any(option.is_files for option in options) and value.strip().lower() not in ("true", "false")


def _files(value: str) -> str:
    """A file, `[a.json, b.json]` or `{train: a.json, val: [b.json]}`; every name is as it was typed."""
    bare, inner = value.strip(), split(value.strip()[1:-1])
    if bare[:1] == "[" and bare[-1:] == "]":
        return f"[{','.join(_files(piece) for piece in inner if piece.strip())}]"
    if bare[:1] == "{" and bare[-1:] == "}":
        pairs = (piece.partition(":") for piece in inner if piece.strip())
        return f"{{{','.join(f'{part.strip()}:{_files(file)}' for part, _, file in pairs)}}}"
    return bare if re.fullmatch(QUOTED, bare) or bare.lower() == "null" else quote(bare)


def _list(value: str, sweeping: bool) -> str:
    """A list as Hydra writes it; without brackets its elements, or in a sweep lists of one element each."""
    bare = value.strip()
    if bare[:1] == "[" or bare.lower() == "null" or "${" in bare or (sweeping and re.fullmatch(SWEEP, bare)):
        return bare
    pieces = [
        piece if re.fullmatch(f"{QUOTED}|{PLAIN}", piece) else quote(piece) for piece in map(str.strip, split(bare))
    ]
    return ",".join(p if p[0] == "[" else f"[{p}]" for p in pieces) if sweeping else f"[{','.join(pieces)}]"


def _urls(values: Sequence[str]) -> str:
    """Shards as a shell leaves them: `dataset.urls=shards/{00..99}.tar`, quoted or not, is one value to Hydra."""
    if len(values) == 1 and (values[0][0] in "['\"" or values[0] == "null"):
        return values[0]
    plain = [quote(unquoted(value)) for value in values]
    return plain[0] if len(plain) == 1 else f"[{','.join(plain)}]"
