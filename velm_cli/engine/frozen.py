"""Which parameters of a run never change, and the one file in its folder that has them (`models/frozen.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from velm_cli.engine.parallel import whole_tensors
from velm_cli.engine.ranks import Ranks
from velm_cli.errors import UserError
from velm_cli.files import sha256
from velm_cli.models.frozen import FILE, narrowed
from velm_cli.models.weights import save_state

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16}  # by safetensors' names


@dataclass(frozen=True, slots=True)
class Frozen:
    """The names of what lies in `frozen.safetensors`, the file's SHA-256 and its types; nothing in a run that trains
    all."""

    names: frozenset[str] = frozenset()
    digest: str | None = None
    types: Mapping[str, torch.dtype] = field(default_factory=dict)  # in which the file has each of them, exactly

    def left(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The others of these tensors."""
        return {name: tensor for name, tensor in state.items() if name not in self.names}


def keep_frozen(folder: Path, task: nn.Module, ranks: Ranks, run: str | None, *, known: str | None) -> Frozen:
    """Write what no step changes into the run folder, on rank 0; all ranks ask.

    `known`: the SHA-256 of the file that is there, if it belongs to the weights that `task` has. It is never written
    again: what was frozen when it was made and is now trained is left to the other files.
    Buffers are not in it: they are small, and statistics of norms may change in frozen networks, too.
    """
    frozen = {
        name: tensor
        for name, tensor in task.state_dict(keep_vars=True).items()
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    }
    file = folder / FILE
    if known is not None:
        held = ranks.same(_types_in(file) if ranks.first else {})
        return Frozen(frozenset(frozen.keys() & held.keys()), known, held)
    digest, types = None, {}
    if frozen:
        whole = whole_tensors({name: tensor.detach() for name, tensor in frozen.items()}, ranks)
        if ranks.first:
            save_state({name: narrowed(tensor.cpu()) for name, tensor in whole.items()}, file, run)
            digest, types = sha256(file), _types_in(file)
    elif ranks.first:
        file.unlink(missing_ok=True)  # of a run in this folder that began anew
    return Frozen(frozenset(frozen), *ranks.same((digest, types)))


def _types_in(file: Path) -> dict[str, torch.dtype]:
    with safe_open(file, "pt") as content:
        return {name: TYPES.get(content.get_slice(name).get_dtype(), torch.float32) for name in content.keys()}  # noqa: SIM118


def refuse_other_frozen(run: Path, checkpoint: Path, digest: str | None) -> None:
    """UserError where what the checkpoint leaves to another file is not there: no other checkpoint would help."""
    file = run / FILE
    if digest is None:
        return
    try:
        if sha256(file) == digest:
            return
        problem = "has changed, or is of another run"
    except OSError as error:
        problem = error.strerror or str(error)
    raise UserError(f"{file}: {problem}, and {checkpoint} needs it: put the run's own back, or give fresh=true")
