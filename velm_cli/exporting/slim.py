"""format=velm: a run folder of only what using the model needs; it loads where a run folder does, from anywhere.

config.yaml sources.json tokenizer/ vision/ text/ labels.json    as in the run, without paths
model.safetensors                                                all weights in one file, in the type asked for
README.md LICENSE.md export.json                                 model card, whose weights they are, velm's seal
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from velm_cli import configs
from velm_cli.errors import UserError
from velm_cli.exporting.anonymous import without_places
from velm_cli.files import sealed, write_bytes, write_json
from velm_cli.inference.abilities import Able
from velm_cli.lineage import FILE as SOURCES
from velm_cli.lineage import noted_identity, noted_store
from velm_cli.loading import KEPT, read_weights
from velm_cli.models import int8
from velm_cli.models.lora import merge
from velm_cli.models.quantized import is_packed
from velm_cli.models.weights import save_state
from velm_cli.schema import CausalLMConfig, ExportDtype, LowRank, Quantize, TrainRoot
from velm_cli.tasks.spaces import FILE as SPACES

WEIGHTS = "model.safetensors"
SMALLER = {ExportDtype.bf16: torch.bfloat16, ExportDtype.fp16: torch.float16}
OF_A_MACHINE = ("_name_or_path", "name_or_path")  # keys of transformers' config files that may hold a path


def write_slim(able: Able, config: TrainRoot, home: Path, out: Path, dtype: ExportDtype) -> dict[str, Tensor]:
    """Write the folder `out`, which is there and empty; the tensors before they were made smaller.

    `config` is the run's own, since loading changes that of `able`. May change the learner of `able` (LoRA is merged).
    """
    plain, state = without_places(config), _state(able)
    for part in (plain.vision, plain.text):
        if isinstance(part, LowRank):
            part.lora_rank, part.lora_alpha, part.lora_targets = 0, 0, []
    if isinstance(plain.text, CausalLMConfig):
        plain.text.quantize = Quantize.none
    configs.write_config(out / "config.yaml", plain)
    identity = noted_identity(home)
    known = {"store": noted_store(home), "tokenizer": able.tokenizer.digest, "run": identity}
    write_json(out / SOURCES, sealed({key: value for key, value in known.items() if value is not None}))
    able.tokenizer.save(out / "tokenizer")
    for group in KEPT:
        for file in sorted((home / group).glob("*.json")):
            (out / group).mkdir(exist_ok=True)
            write_bytes(out / group / file.name, [_placeless(file)])
        if hasattr(getattr(plain, group), "name") and not (out / group / "config.json").is_file():
            raise UserError(f"{home} was trained by an older velm that kept no {group}/config.json: train it again")
    if (home / SPACES).is_file():
        write_bytes(out / SPACES, [(home / SPACES).read_bytes()])
    save_state(smaller(state, dtype), out / WEIGHTS, identity)
    return state


def smaller(state: dict[str, Tensor], dtype: ExportDtype) -> dict[str, Tensor]:
    """The tensors in the type asked for. UserError where a value is too large for it."""
    if dtype is ExportDtype.fp32:
        return state
    if dtype is ExportDtype.int8:
        return int8.packed(state)
    out = {name: t.to(SMALLER[dtype]) if t.is_floating_point() else t for name, t in state.items()}
    for name, tensor in out.items():
        if tensor.is_floating_point() and not torch.equal(tensor.isinf(), state[name].isinf()):
            raise UserError(f"dtype={dtype.value}: {name} has values beyond its range; take bf16")
    return out


def _state(able: Able) -> dict[str, Tensor]:
    config = able.config
    state, _ = read_weights(able.file)
    updated = any(isinstance(part, LowRank) and part.lora_rank for part in (config.vision, config.text))
    if updated or is_packed(config.text):  # whose weights the learner has as training had them
        if updated:
            merge(able.learner)
        others = {name: tensor for name, tensor in state.items() if not name.startswith("model.")}
        state = others | able.learner.state_dict()
    return {name: state[name] for name in sorted(state)}


def _placeless(file: Path) -> bytes:
    """The small JSON file of a pretrained model without the folder that it came from."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): put back the one that the run has saved") from error
    if isinstance(content, dict) and any(key in content for key in OF_A_MACHINE):
        content = {key: value for key, value in content.items() if key not in OF_A_MACHINE}
        return (json.dumps(content, indent=2) + "\n").encode()
    return file.read_bytes()
