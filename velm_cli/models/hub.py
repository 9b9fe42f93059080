"""Models of transformers by hub name or from a local folder, with one clear line where neither can be had.

Only safetensors (or weights that torch reads as plain tensors) are loaded and no code from a repository is
run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from velm_cli.errors import UserError
from velm_cli.hub import hub_has
from velm_cli.models.file_kinds import kind_of
from velm_cli.models.transformers_internals import MAY_LACK
from velm_cli.models.weights import unfilled, unread

# Files of weights as save_pretrained writes them, or parts of them that are listed in an index.
CACHED_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")  # transformers' own

SMALL = ("config.json", "preprocessor_config.json", "processor_config.json")


def load_pretrained(
    group: str, name: str, weights: str, auto_class: str, *, changes: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """`transformers.AUTO_CLASS` for the model `name`, float32, on torch's current device.

    `weights`: pretrained (those of `name`), none (drawn anew from its config) or the path of a folder.
    `changes` are made to its config, `options` go to its constructor. Raises UserError naming `group`.name.
    """
    import transformers

    config = load_config(group, name)
    if not auto_class.startswith("Auto") and hasattr(config, "vision_config"):
        config = config.vision_config
    maker = getattr(transformers, auto_class)
    try:
        for key, value in (changes or {}).items():
            setattr(config, key, value)
        source = name if weights == "pretrained" else weights
        if weights != "none" and not unread(group):
            _refuse_other_files(Path(source))
        if weights == "none" or unfilled(group):
            if auto_class.startswith("Auto"):  # which would take the config's dtype: bfloat16 of most published models
                return maker.from_config(config, dtype=torch.float32, **options)
            return maker(config, **options)
        try:
            model, found = maker.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
            _refuse_random(found["missing_keys"])
            _tell_of_missing(group, source, found)
            return model
        except (OSError, ValueError):
            raise
        except Exception as error:  # of pickle (which torch was told not to obey), of safetensors, of torch
            raise ValueError(f"its weights cannot be read ({type(error).__name__}: {first_line(error)})") from error
    except Exception as error:  # a config with values of other types or sizes may fail anywhere in transformers
        raise UserError(_line(group, name if weights in ("pretrained", "none") else weights, error)) from error


def _refuse_other_files(folder: Path) -> None:
    """ValueError where a local folder has no weights, or files in their place that are something else."""
    if not folder.is_dir():  # a hub name
        return
    found = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not found:
        others = [
            path.name for path in folder.iterdir() if path.suffix in (".h5", ".msgpack", ".gguf", ".onnx", ".pth")
        ]
        raise ValueError(f"it has no weights ({CACHED_WEIGHTS[0]})" + (f", but {others[0]}" if others else ""))
    for path in sorted(found):
        if (kind := kind_of(path)) is not None:
            raise ValueError(f"its {path.name} {kind}")


def _refuse_random(missing: Collection[str]) -> None:
    """ValueError where weights of the model are in no file: transformers draws them, and only tells of it."""
    lacking = sorted(name for name in missing if not any(part in name for part in MAY_LACK))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(f"its weights are of another model: {lacking[0]}{more} missing")


def load_config(group: str, name: str) -> Any:
    """The config of the transformers model `name`. Raises UserError naming `group`.name."""
    import transformers

    if not name:
        raise UserError(f"{group}.name is not set: give the folder of a transformers model (or a hub name)")
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a file that is no JSON, an unknown model_type, values that its class refuses
        if os.path.exists(name) or not hub_has(name):
            raise UserError(_line(group, name, error)) from error
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    _refuse_kernels(group, name, config)
    return config


def small_files(group: str, name: str) -> dict[str, bytes]:
    """What of the folder of the model `name` is read beside its weights and tokenizer, by file name.

    Of a model of the hub only its config, since velm reads nothing else of those.
    """
    if os.path.isdir(name):
        there = [Path(name) / file for file in SMALL]
        return {file.name: file.read_bytes() for file in there if file.is_file()}
    return {SMALL[0]: load_config(group, name).to_json_string(use_diff=False).encode()}


def _refuse_kernels(group: str, name: str, config: Any) -> None:
    """UserError where a model's config names attention code that transformers would fetch from the hub and run."""
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "_attn_implementation"))]
    for part in parts:
        if (chosen := part._attn_implementation) is not None and chosen not in ATTENTIONS:
            raise UserError(
                f"{group}.name={name}: its config asks for the attention {chosen!r}, code from elsewhere: remove "
                "attn_implementation from its config.json"
            )


def _tell_of_missing(group: str, source: str, found: Mapping[str, Any]) -> None:
    """A line where weights were drawn anew because the file has none of their name: it may be of another model."""
    if missing := sorted(found.get("missing_keys") or ()):
        others = f"; {len(unused)} of the file's are not used" if (unused := found.get("unexpected_keys")) else ""
        print(
            f"note: {group}.name={source}: {len(missing)} weights are not in its files and are drawn anew "
            f"({', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}){others}"
        )


def first_line(error: Exception) -> str:
    """The error's first line that is not empty, without its end; its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Of what validates configs the first line names the class, the second what is wrong.
    return (" ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [type(error).__name__])[0])[:160]


def _line(group: str, name: str, error: Exception) -> str:
    if os.path.isfile(os.path.join(name, "config.json")):
        if "Unrecognized configuration class" in str(error):
            return f"{group}.name={name} is a model of another kind than {group} needs: {first_line(error)}"
        return f"{group}.name={name} cannot be loaded: {first_line(error)}"
    if os.path.isdir(name):
        return f"{group}.name={name} is not a folder of a transformers model: {first_line(error)}"
    if Path(name).is_absolute() or name.startswith("."):
        return f"{group}.name={name} does not exist"
    return (
        f"{group}.name={name} could not be fetched from the hub: give a local folder with {group}.name=FOLDER "
        "(made by save_pretrained, or downloaded elsewhere)"
    )
