"""Checkpoints: a folder of safetensors and JSON a step, whole or absent, that brings a run back exactly.

    checkpoints/step-00000200/  task.safetensors  optimizer.safetensors  ema.safetensors
                                random.safetensors  state.json

`state.json` is written last and carries the SHA-256 of the other files, so a torn or damaged checkpoint
is recognised and the one before it is used. Nothing is pickled, and nothing says how many processes wrote it:
tensors are whole and named by parameter, and any number of processes, ddp or fsdp, reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from velm_cli.engine.optim import Ema
from velm_cli.engine.parallel import load_whole, slice_like, whole_tensors
from velm_cli.engine.ranks import Ranks
from velm_cli.errors import StageError
from velm_cli.files import read_sealed, sealed
from velm_cli.models.weights import save_state

Files = dict[str, dict[str, Tensor]]  # file name -> its tensors


@dataclass(slots=True)
class Progress:
    """What the loop knows besides tensors. The sampler's cursor follows from `step`."""

    step: int = 0  # optimiser steps done
    best: float | None = None  # best validation CIDEr so far; the newest while schedules move
    best_step: int | None = None
    bad_validations: int = 0  # validations since the best one
    validated_step: int = 0  # the last step whose validation was completed
    seconds: float = 0.0  # training time so far, over all sessions
    stopped_early: bool = False


class Checkpoints:
    """The checkpoints of a run: written by rank 0, read by all."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int, keep_every: int = 0, background: bool = False) -> None:
        """The newest `keep` stay, and those of steps that `keep_every` divides. In the `background`, writing goes on
        beside training, from a copy in main memory."""
        self.folder, self.ranks = folder, ranks
        self.keep, self.keep_every = keep, keep_every
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="velm-checkpoint") if background else None
        self._writing: Future | None = None

    def save(self, task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, progress: Progress) -> None:
        """A checkpoint of this very moment; StageError when it cannot be written."""
        self.finish()
        tensors = {"task": task.state_dict(), "optimizer": _optimizer_tensors(task, optimizer)}
        if ema is not None:
            tensors["ema"] = ema.average
        files = {f"{name}.safetensors": whole_tensors(group, self.ranks) for name, group in tensors.items()}
        files["random.safetensors"] = _random_states(self.ranks)
        if not self.ranks.first:
            return
        if self._writer is None:
            self._write(files, progress)
            return
        copies = {name: {key: _copy(tensor) for key, tensor in group.items()} for name, group in files.items()}
        self._writing = self._writer.submit(self._write, copies, Progress(**asdict(progress)))

    def finish(self) -> None:
        """Wait for what is being written; raises what writing it raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def load_newest(
        self, task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
    ) -> tuple[Progress | None, list[str]]:
        """Restore the newest whole checkpoint; None if there is none. Also lines about damaged ones."""
        name, notes = self.ranks.same(self._newest())  # one reads and checks them all
        if name is None:
            return None, notes
        checkpoint = self.folder / name
        load_whole(task, load_file(checkpoint / "task.safetensors"))
        _restore_optimizer(task, optimizer, load_file(checkpoint / "optimizer.safetensors"))
        if ema is not None:
            ema.load(load_file(checkpoint / "ema.safetensors"))
        progress = Progress(**read_sealed(checkpoint / "state.json")["progress"])
        _restore_random_state(load_file(checkpoint / "random.safetensors"), self.ranks, progress.step)
        return progress, notes

    def _newest(self) -> tuple[str | None, list[str]]:
        notes: list[str] = []
        for checkpoint in reversed(_steps(self.folder)):
            problem = _damage(checkpoint)
            if problem is None:
                return checkpoint.name, notes
            notes.append(f"checkpoint {checkpoint.name} is damaged ({problem}); using the one before it")
        return None, notes

    def _write(self, files: Files, progress: Progress) -> None:
        final = self.folder / f"step-{progress.step:08d}"
        part = self.folder / f".part-{progress.step:08d}"
        try:
            for left_by_a_kill in self.folder.glob(".part-*"):
                shutil.rmtree(left_by_a_kill)
            part.mkdir(parents=True)
            for name, tensors in files.items():
                save_state(tensors, part / name)
            state = {"progress": asdict(progress), "sha256": {f.name: _sha256(f) for f in sorted(part.iterdir())}}
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
            if not self.keep_every or _step(old) % self.keep_every:
                shutil.rmtree(old, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _damage(checkpoint: Path) -> str | None:
    try:
        state = read_sealed(checkpoint / "state.json")
        for name, digest in state["sha256"].items():
            if _sha256(checkpoint / name) != digest:
                return f"{name} has changed"
            with safe_open(checkpoint / name, "pt"):  # a stranger's may have the right checksum and no tensors
                pass
        Progress(**state["progress"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _optimizer_tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: `model.text.embedding.weight/exp_avg` and so on."""
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _restore_optimizer(task: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters, buffers = dict(task.named_parameters()), {name for name, _ in task.named_buffers()}
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name in buffers:  # gains of a detector's norms, which an older velm trained
            continue
        own = parameters[name]
        # Beside moments, shaped as their parameter, there is the number of steps.
        optimizer.state[own][key] = slice_like(own, tensor) if tensor.shape == own.shape else tensor.to(own.device)


def _random_states(ranks: Ranks) -> dict[str, Tensor]:
    """The states of all ranks' generators: `cpu` and `cuda`, from the second rank on with its number."""
    own = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state()
    states = ranks.of_all({name: state.numpy() for name, state in own.items()})
    return {
        f"{name}.{rank}" if rank else name: torch.from_numpy(state)
        for rank, of_rank in enumerate(states)
        for name, state in of_rank.items()
    }


def _restore_random_state(states: dict[str, Tensor], ranks: Ranks, step: int) -> None:
    """Go on with this rank's random numbers; a rank that there was not begins with its own."""
    own = {kind: states.get(f"{kind}.{ranks.rank}" if ranks.rank else kind) for kind in ("cpu", "cuda")}
    if own["cpu"] is None:
        torch.manual_seed(seed_of(step, ranks.rank))
        return
    torch.set_rng_state(own["cpu"])
    if own["cuda"] is not None and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"])


def seed_of(*numbers: int) -> int:
    """A seed for what the numbers name."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
