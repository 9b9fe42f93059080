"""Which parameters of a run never change, and the one file in its folder that has them (`models/frozen.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from velm_cli.engine.parallel import whole_tensors
from velm_cli.engine.ranks import Ranks
from velm_cli.errors import UserError
from velm_cli.files import sha256
from velm_cli.models.frozen import FILE, narrowed
from velm_cli.models.weights import save_state


@dataclass(frozen=True, slots=True)
class Frozen:
    """The names of what lies in `frozen.safetensors`, and the file's SHA-256; nothing in a run that trains all."""

    names: frozenset[str] = frozenset()
    digest: str | None = None

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
        held: set[str] = set()
        if ranks.first:
            with safe_open(file, "pt") as content:
                held = set(content.keys())
        return Frozen(frozenset(frozen.keys() & ranks.same(held)), known)
    digest = None
    if frozen:
        whole = whole_tensors({name: tensor.detach() for name, tensor in frozen.items()}, ranks)
        if ranks.first:
            save_state({name: narrowed(tensor.cpu()) for name, tensor in whole.items()}, file, run)
            digest = sha256(file)
    elif ranks.first:
        file.unlink(missing_ok=True)  # of a run in this folder that began anew
    return Frozen(frozenset(frozen), ranks.same(digest))


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
