"""A kept checkpoint, RUN/checkpoints/step-*: whether its files are still those that training wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sha256

TENSORS = ("task", "optimizer", "random")  # files that every checkpoint has


def refuse_damaged(checkpoint: Path, run: str | None) -> None:
    """UserError when a kept checkpoint, of which the weights are wanted, is damaged or of another run than `run`."""
    if problem := damage(checkpoint):
        raise UserError(f"{checkpoint} is damaged ({problem}): give another checkpoint, or the run folder")
    if run is not None and read_sealed(checkpoint / "state.json").get("run", run) != run:
        raise UserError(f"{checkpoint} is of another run than the one of its folder: put its own back")


def damage(checkpoint: Path, further: Callable[[], str | None] = lambda: None) -> str | None:
    """What is wrong with the checkpoint, whatever its checksums say; None if nothing is. `further` looks for more."""
    try:
        digests = read_sealed(checkpoint / "state.json").get("sha256")
        if not isinstance(digests, dict) or not {f"{name}.safetensors" for name in TENSORS} <= digests.keys():
            return "its state names no checksums"
        for name, digest in digests.items():
            if Path(name).name != name or sha256(checkpoint / name) != digest:
                return f"{name} has changed"
            with safe_open(checkpoint / name, "pt"):  # a stranger's may have the right checksum and no tensors
                pass
        return further()
    except PermissionError as error:  # nothing is wrong with what may not be read
        raise UserError(f"{error.filename or checkpoint}: {error.strerror}; make it readable") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
