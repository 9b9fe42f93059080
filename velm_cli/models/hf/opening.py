"""A transformers model that writes about images, from its folder: checked first, loaded when it is needed.

Only safetensors are read and no code of the folder is run. UserError with one line for whatever cannot be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from velm_cli.errors import UserError
from velm_cli.files import sha256
from velm_cli.hub import hub_has
from velm_cli.models.file_kinds import kind_of
from velm_cli.models.hub import ATTENTIONS, first_line
from velm_cli.models.transformers_internals import MAY_LACK
from velm_cli.models.weights import not_finite

JOINED_BY_NOBODY = "vision-encoder-decoder"
LOCAL = {"local_files_only": True, "trust_remote_code": False}
READ = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # of a repository; no pickle, no Python


@dataclass(frozen=True, slots=True)
class Found:
    """A model's folder, checked without reading its weights."""

    name: str  # as the user gave it, without hf:
    folder: Path
    config: Any
    maker: type  # its class in transformers
    processor: Any  # has a `tokenizer`, an `image_processor`, and is callable unless they are two things (`Pair`)

    @property
    def kind(self) -> str:
        """transformers' model_type, such as blip or qwen2_vl."""
        return str(self.config.model_type)

    @property
    def refers(self) -> str:
        """How lines name it."""
        return f"checkpoint=hf:{self.name}"

    def digest(self) -> str:
        """SHA-256 of all that its words depend on: weights, configs and tokenizer, each file by its own."""
        places = (self.folder, self.folder / "qformer_tokenizer")  # the latter of InstructBLIP
        files = sorted(path for place in places for pattern in READ for path in place.glob(pattern) if path.is_file())
        lines = (f"{path.relative_to(self.folder)} {sha256(path)}\n" for path in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class Pair(SimpleNamespace):
    """An image processor and a tokenizer that no class of transformers joins (VisionEncoderDecoder)."""


def find(name: str) -> Found:
    """The model in the folder `name`, or of that name on the hub, from where its files are then fetched."""
    folder = _folder(name)
    said = f"checkpoint=hf:{name}"
    if not (folder / "config.json").is_file():
        own = (folder / "config.yaml").is_file()
        hint = "it is a run of velm: leave out hf:" if own else "it has no config.json"
        raise UserError(f"{said} is not a folder of a transformers model: {hint}")
    config = _config(folder, said)
    maker = _maker(config, folder, said)
    _refuse_other_files(folder, said)
    return Found(name, folder, config, maker, _processor(folder, said, config.model_type))


def load(found: Found, device: torch.device, dtype: torch.dtype) -> Any:
    """Its model in evaluation mode. UserError where the weights cannot be read or are of another model."""
    try:
        model, report = found.maker.from_pretrained(  # type: ignore[attr-defined]
            found.folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are refused below, by their names
            **LOCAL,
        )
    except Exception as error:  # of safetensors, of torch, of a config with sizes that do not fit
        raise UserError(f"{found.refers} cannot be loaded: {first_line(error)}") from error
    lacking = sorted(key for key in report["missing_keys"] if not any(part in key for part in MAY_LACK))
    if lacking:
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise UserError(f"{found.refers}: its weights are of another model: {lacking[0]}{more} missing")
    if others := sorted(report["mismatched_keys"]):
        name, in_file, by_config = others[0]
        raise UserError(
            f"{found.refers}: its weights are of another model: {name} is {list(in_file)} in the file, and "
            f"{list(by_config)} by config.json"
        )
    if (name := not_finite(model)) is not None:
        raise UserError(f"{found.refers}: its weights are damaged: {name} holds what is not a number, or infinite")
    return model.to(device).eval()


def _folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"checkpoint=hf:{name} is a file: give the folder that save_pretrained wrote")
    if not name or path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise UserError(f"checkpoint=hf:{name}: there is no such folder (nor is OWNER/NAME of the hub meant)")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(READ), local_files_only=True))
    except Exception as error:  # not fetched before, or a name that no repository can have
        if not hub_has(name):
            raise UserError(
                f"checkpoint=hf:{name}: there is no such folder, and it could not be fetched from the hub: give a "
                "local folder (made by save_pretrained, or downloaded elsewhere)"
            ) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(READ)))
    except Exception as error:  # a repository that wants a licence accepted, a full disk, a broken connection
        raise UserError(f"checkpoint=hf:{name} could not be fetched from the hub: {first_line(error)}") from error


def _config(folder: Path, said: str) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
    except Exception as error:  # no JSON, an unknown model_type, values that its class refuses
        if _wants_code(folder):
            raise UserError(f"{said} brings code of its own (auto_map), and velm runs none: {_UNKNOWN}") from error
        raise UserError(f"{said} cannot be loaded: {first_line(error)}") from error
    for part in [config, *(part for part in vars(config).values() if hasattr(part, "_attn_implementation"))]:
        if (chosen := part._attn_implementation) is not None and chosen not in ATTENTIONS:
            raise UserError(
                f"{said}: its config asks for the attention {chosen!r}, code from elsewhere: remove "
                "attn_implementation from its config.json"
            )
    return config


_UNKNOWN = "take a model that transformers itself has"


def _wants_code(folder: Path) -> bool:
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _maker(config: Any, folder: Path, said: str) -> type:
    """The class that its config names, or the usual one of its kind; one that writes from images."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as USUAL

    architectures = config.architectures
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    usual = USUAL.get(config.model_type)
    if usual is None:
        code = ", and the code that it brings is not run" if _wants_code(folder) else ""
        raise UserError(
            f"{said} ({named or config.model_type}) writes no text about images{code}: give a model that captions or "
            "answers, such as BLIP, GIT, ViT-GPT2, LLaVA, SmolVLM or Qwen-VL"
        )
    maker: Any = getattr(transformers, str(named), None)
    if named == usual or named is None:
        maker = getattr(transformers, usual)
    if not (isinstance(maker, type) and issubclass(maker, transformers.PreTrainedModel) and hasattr(maker, "generate")):
        raise UserError(f"{said}: its config.json names {named}, which writes no text; {usual} does")
    return maker


def _refuse_other_files(folder: Path, said: str) -> None:
    """UserError where there are no safetensors, or something else under their name."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        others = [path.name for suffix in (".bin", ".h5", ".msgpack", ".pth") for path in folder.glob(f"*{suffix}")]
        if others:
            raise UserError(
                f"{said} has its weights in {others[0]}, which velm does not open (it may run code): save it anew by "
                "save_pretrained, which writes model.safetensors"
            )
        raise UserError(f"{said} has no weights (model.safetensors)")
    for path in weights:
        if (kind := kind_of(path)) is not None:
            raise UserError(f"{said}: its {path.name} {kind}")


def _processor(folder: Path, said: str, kind: str) -> Any:
    """What turns images and texts into the model's inputs."""
    import transformers

    cure = "put the files of the processor next to the weights (processor.save_pretrained)"
    if lacking := list(_lacking(folder)):  # or transformers makes up an empty tokenizer
        raise UserError(f"{said} has no {' and no '.join(lacking)}: {cure}")
    reason = ""
    for make in (_joined, _pair) if kind == JOINED_BY_NOBODY else (_joined,):
        try:
            processor = make(transformers, folder)
        except Exception as error:  # no JSON, or files of another kind
            reason = first_line(error)
            continue
        if processor is not None:
            return processor
    raise UserError(f"{said} has no usable processor ({reason}): {cure}")


def _joined(transformers: Any, folder: Path) -> Any:
    processor = transformers.AutoProcessor.from_pretrained(folder, **LOCAL)
    both = getattr(processor, "tokenizer", None) is not None and getattr(processor, "image_processor", None) is not None
    return processor if both else None


def _pair(transformers: Any, folder: Path) -> Pair:
    return Pair(
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder, **LOCAL),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder, **LOCAL),
        chat_template=None,
    )


def _lacking(folder: Path) -> Iterator[str]:
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        yield "preprocessor_config.json"
    words = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")
    if not any(any(folder.glob(name)) for name in words):
        yield "tokenizer.json"
