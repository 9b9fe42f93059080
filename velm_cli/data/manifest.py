"""The manifest of a store, which is written last, and the command line that makes a store."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from velm_cli.data.building import MANIFEST
from velm_cli.errors import UserError
from velm_cli.files import SEAL, unsealed
from velm_cli.schema import KINDS, DatasetConfig, FlickrConfig, PreprocessConfig


def preprocess_command(dataset: DatasetConfig, preprocess: PreprocessConfig | None = None) -> str:
    """The command line that builds the store of `dataset`: every option that is not the default."""
    default = KINDS["dataset"][dataset.kind]()
    choice = dataset.kind
    if isinstance(dataset, FlickrConfig):  # the one kind with two files in conf/dataset
        choice = default.release = dataset.release
    words = [f"velm preprocess dataset={choice}"]
    for name in (option.name for option in fields(dataset)):
        value = getattr(dataset, name)
        if value != getattr(default, name):
            text = value.name if isinstance(value, Enum) else str(value)
            if isinstance(value, list | dict):
                words.append(f"'dataset.{name}={_in_hydra(value)}'")
                continue
            plain = re.fullmatch(r"[\w./:+-]+", text)
            words.append(f"dataset.{name}={text}" if plain else f"""'dataset.{name}="{text}"'""")
    for option in fields(preprocess) if preprocess else ():
        if option.name != "part" and (value := getattr(preprocess, option.name)) != option.default:
            words.append(f"preprocess.{option.name}={value}")
    return " ".join(words)


def _in_hydra(value: Any) -> str:
    """A list or an object of texts, in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_in_hydra(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_hydra, value)) + "]"
    return f'"{value}"'


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the store at `path`, None if it has none (yet).

    UserError if it is damaged, or somebody else's.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        manifest = None
    if not _is_manifest(manifest):
        raise UserError(
            f"{path} is not a store of velm, or its {MANIFEST} is damaged: name another folder with dataset.store=..., "
            "or preprocess again with fresh=true"
        )
    try:
        if "crc32_of" in manifest and SEAL not in manifest:
            raise ValueError("its own checksum is gone")
        return unsealed(manifest)
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); preprocess again with fresh=true") from error


def _is_manifest(value: Any) -> bool:
    """Whether a JSON value has what is read of every store's manifest, of the types that are expected."""
    try:
        stream = value.get("stream")
        shards = value["shards"] if stream is None else stream["shards"]
        of_shard = {"file": str, "bytes": int, "sha256": str} if stream is None else {
            "number": int, "url": str, "train": int, "first": int, "crc32": int,
        }  # fmt: skip
        counts = value["counts"]["splits"].values()
        return (
            all(isinstance(value[key], kind) for key, kind in (("format", int), ("hash", str), ("splits", list)))
            and all(isinstance(count["records"], int) and isinstance(count["captions"], int) for count in counts)
            and all(isinstance(shard[key], kind) for shard in shards for key, kind in of_shard.items())
            and isinstance(value["options"]["images"], bool)
            and isinstance(value["options"]["image_size"], int)
            and (stream is None or isinstance(stream["most_captions"], int))
        )
    except (KeyError, TypeError, AttributeError):
        return False
