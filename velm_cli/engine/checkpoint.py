"""Checkpoints: a folder of safetensors and JSON a step, whole or absent, that brings a run back exactly.

    checkpoints/step-00000200/  task.safetensors  optimizer.safetensors  ema.safetensors
                                random.safetensors  state.json

What no step changes lies in the run folder once, and a checkpoint names it (`models/frozen.py`).
`state.json` is written last and carries the SHA-256 of the other files, so a torn or damaged checkpoint
is recognised and the one before it is used. Nothing is pickled, and nothing says how many processes wrote it:
tensors are whole and named by parameter, and any number of processes, ddp or fsdp, reads them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from velm_cli.engine.frozen import Frozen, keep_frozen, refuse_other_frozen
from velm_cli.engine.optim import Ema
from velm_cli.engine.parallel import load_whole, whole_tensors
from velm_cli.engine.progress import Progress, read_progress
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.snapshot import (
    Files,
    misfit,
    optimizer_tensors,
    random_states,
    restore_optimizer,
    restore_random_state,
)
from velm_cli.errors import StageError, UserError
from velm_cli.files import read_sealed, sealed, sha256
from velm_cli.models.frozen import put_together
from velm_cli.models.kept import TENSORS, damage
from velm_cli.models.weights import first_nan, save_state

NAME = re.compile(r"step-[0-9]{8,}")


class Checkpoints:
    """The checkpoints of a run: written by rank 0, read by all."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        keep: int,
        keep_every: int = 0,
        background: bool = False,
        run: str | None = None,
        made_of: Mapping[str, str] | None = None,
    ) -> None:
        """The newest `keep` stay, and those of steps that `keep_every` divides. In the `background`, writing goes on
        beside training, from a copy in main memory. `run`: what they say that they are of (`sources.identity_of`).
        `made_of`: the digests of the `store` and `tokenizer` that they are trained with, which they carry too."""
        self.made_of = dict(made_of or {})
        self.folder, self.ranks, self.run = folder, ranks, run
        self.keep, self.keep_every = keep, keep_every
        self.frozen = Frozen()
        self._has_kept = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="velm-checkpoint") if background else None
        self._writing: Future | None = None
        # By `find`: a checkpoint's name, and lines for the user.
        self._found: tuple[str | None, list[str]] | None = None

    def save(self, task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, progress: Progress) -> None:
        """A checkpoint of this very moment; StageError when it cannot be written."""
        self.finish()
        tensors = {"task": self.frozen.left(task.state_dict()), "optimizer": optimizer_tensors(task, optimizer)}
        if ema is not None:
            tensors["ema"] = ema.average
        files = {f"{name}.safetensors": whole_tensors(group, self.ranks) for name, group in tensors.items()}
        files["random.safetensors"] = random_states(self.ranks)
        if not self.ranks.first:
            return
        if self._writer is None:
            self._write(files, progress)
            return
        copies = {name: {key: _copy(tensor) for key, tensor in group.items()} for name, group in files.items()}
        self._writing = self._writer.submit(self._write, copies, replace(progress))

    def save_weights(self, task: nn.Module, file: Path) -> None:
        """The weights under `file`, which lies in the run folder; all ranks ask."""
        weights = whole_tensors(self.frozen.left(task.state_dict()), self.ranks)
        if self.ranks.first:
            save_state(weights, file, self.run, self.frozen.digest)

    def finish(self) -> None:
        """Wait for what is being written; raises what writing it raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def find(self, *, only_look: bool = False) -> str | None:
        """Rank 0, before the run changes anything: the name of the newest whole checkpoint, which `load_newest` takes.

        Damaged ones are moved aside (not where it may `only_look`): what is written from now on is the newest.
        """
        damaged = []
        found: str | None = None
        for checkpoint in reversed(_steps(self.folder)):
            problem = _damage(checkpoint, finite=True)
            if problem is None:
                state = read_sealed(checkpoint / "state.json")
                if self.run is not None and state.get("run", self.run) != self.run:
                    raise UserError(f"{checkpoint} is of another run: put the run's own back, or give fresh=true")
                for key, now in self.made_of.items():  # an older velm's checkpoint does not say
                    if (then := state.get(key, now)) != now:
                        raise UserError(
                            f"{checkpoint} was trained with another {key} ({str(then)[:12]}) than this one "
                            f"({now[:12]}): give another name=, or fresh=true"
                        )
                refuse_other_frozen(self.folder.parent, checkpoint, state.get("frozen"))
                found = checkpoint.name
                break
            aside = checkpoint if only_look else _move_aside(checkpoint)
            damaged.append((checkpoint.name, problem, aside.name))
        then = "using the one before it" if found else "no whole one is left, so training begins anew"
        notes = [f"checkpoint {name} is damaged ({why}), kept as {aside}; {then}" for name, why, aside in damaged]
        self._found = (found, notes)
        return found

    @property
    def found(self) -> str | None:
        """Rank 0: the name of the checkpoint that `find` has found."""
        return self._found[0] if self._found else None

    @property
    def step(self) -> int:
        """Rank 0: the steps that were done when it was written; 0 without one."""
        return 0 if self.found is None else _step(self.folder / self.found)

    @property
    def notes(self) -> list[str]:
        """Of what `find` has found: a line about each that was moved aside."""
        return self._found[1] if self._found else []

    def keep_frozen(self, task: nn.Module) -> Mapping[str, torch.dtype]:
        """Put what no step changes into the run folder, if it is not there, from weights of full precision.

        All ranks ask, before the weights are divided. The names of those in the folder, and the types that hold them
        exactly; none where an older velm's checkpoint has them, which is read first.
        """
        if self.ranks.first and self._found is None:
            self.find()
        name = self.ranks.same(self.found)
        known = None if name is None else read_sealed(self.folder / name / "state.json").get("frozen")
        if name is not None and known is None:
            return {}
        self.frozen = keep_frozen(self.folder.parent, task, self.ranks, self.run, known=known)
        self._has_kept = True
        return {name: self.frozen.types[name] for name in self.frozen.names}

    def load_newest(
        self, task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
    ) -> tuple[Progress | None, list[str]]:
        """Restore the newest whole checkpoint; None if there is none. Also lines about damaged ones.

        UserError when it is of another model than `task`: nothing of it is used then.
        """
        if self.ranks.first and self._found is None:  # one reads and checks them all
            self.find()
        name, notes = self.ranks.same(self._found or (None, []))
        self._found = None
        if name is None:
            if not self._has_kept:
                self.frozen = keep_frozen(self.folder.parent, task, self.ranks, self.run, known=None)
            return None, notes
        checkpoint = self.folder / name
        names = (*TENSORS, "ema") if ema is not None else TENSORS
        try:
            tensors = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
            progress = _progress_in(checkpoint)
            state = read_sealed(checkpoint / "state.json")
            moments, frozen = state.get("moments"), state.get("frozen")
            if frozen is not None:
                tensors["task"] = put_together(checkpoint / "task.safetensors", tensors["task"], frozen)
        except (OSError, ValueError, SafetensorError) as error:
            raise StageError(
                f"{checkpoint} changed while it was read ({error}); give the same command again"
            ) from error
        if problem := misfit(tensors, moments, task, ema):
            raise UserError(
                f"{checkpoint} is of another model or version ({problem}): move it elsewhere to go on from the one "
                "before it, or train anew with fresh=true"
            )
        load_whole(task, tensors["task"])
        restore_optimizer(task, optimizer, tensors["optimizer"])
        if ema is not None:
            ema.load(tensors["ema"])
        if not self._has_kept:
            self.frozen = keep_frozen(self.folder.parent, task, self.ranks, self.run, known=frozen)
        restore_random_state(tensors["random"], self.ranks, progress.step)
        return progress, notes

    def _write(self, files: Files, progress: Progress) -> None:
        final = self.folder / f"step-{progress.step:08d}"
        part = self.folder / f".part-{progress.step:08d}"
        try:
            for left_by_a_kill in self.folder.glob(".part-*"):
                shutil.rmtree(left_by_a_kill)
            self.folder.mkdir(exist_ok=True)  # no more than that: a run folder that is gone is not made again
            part.mkdir()
            for name, tensors in files.items():
                save_state(tensors, part / name, None, self.frozen.digest if name == "task.safetensors" else None)
            digests = {file.name: sha256(file) for file in sorted(part.iterdir())}
            moments = len(files["optimizer.safetensors"])
            state = {"progress": asdict(progress), "moments": moments, "sha256": digests}
            state |= self.made_of | ({} if self.run is None else {"run": self.run})
            state |= {} if self.frozen.digest is None else {"frozen": self.frozen.digest}
            with open(part / "state.json", "w", encoding="utf-8") as file:
                json.dump(sealed(state), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            if final.exists():  # the same step again, after a resume: the two are equal
                shutil.rmtree(final)
            os.replace(part, final)
            _fsync_folder(self.folder)
            problem = _damage(final)  # before an older one goes
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            problem = getattr(error, "strerror", None) or str(error)
        if problem is not None:
            last = _steps(self.folder)
            left = f"{last[-1].name} is the last good one" if last else "there is none before it"
            raise StageError(
                f"cannot write the checkpoint {final}: {problem}; {left}. The same command goes on from there"
            )
        for old in _steps(self.folder)[: -self.keep]:
            if old != final and not (self.keep_every and _step(old) % self.keep_every == 0):
                shutil.rmtree(old, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """The folders with names that `_write` gives; a user's copy of one is called otherwise."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _move_aside(checkpoint: Path) -> Path:
    aside, number = checkpoint.with_name(f"damaged-{checkpoint.name}"), 2
    while aside.exists():
        aside, number = checkpoint.with_name(f"damaged-{checkpoint.name}.{number}"), number + 1
    return checkpoint.rename(aside)


def _damage(checkpoint: Path, *, finite: bool = False) -> str | None:
    """What is wrong with the checkpoint, whatever its checksums say; None if nothing is.

    `finite`: weights that are NaN count as damage (an older velm wrote them).
    """

    def further() -> str | None:
        _progress_in(checkpoint)
        name = first_nan(load_file(checkpoint / "task.safetensors")) if finite else None
        return f"{name} is not a number" if name else None

    return damage(checkpoint, further)


def _progress_in(checkpoint: Path) -> Progress:
    return read_progress(read_sealed(checkpoint / "state.json").get("progress"), _step(checkpoint))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
