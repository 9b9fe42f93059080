"""The processes that train or evaluate together, and what they tell each other.

Every rank runs the same program on its share of the data; rank 0 alone writes files and speaks. What is counted and
agreed upon goes through a gloo group of its own, between the machines' processors: a GPU never waits for it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import distributed

from velm_cli.engine.device import pick_device
from velm_cli.engine.signals import StopRequest
from velm_cli.errors import StageError, UserError
from velm_cli.place import Place, meeting_point, place
from velm_cli.schema import Device

# A rank that dies is noticed at once, by its closed connection; one that is busy may take its time: rank 0 tokenises or
# scores while the others wait.
PATIENCE = datetime.timedelta(days=1)
MEETING = 600  # seconds that rank 0 waits for the others to start

T = TypeVar("T")


class Ranks:
    """The processes of this job and their small talk; a process by itself talks to nobody and waits for nothing.

    What is said here is said by all ranks, in the same order.
    """

    def __init__(self, here: Place, device: torch.device, control: Any = None) -> None:
        self.rank, self.world, self.device = here.rank, here.world, device
        self.first = self.rank == 0
        self._control = control
        self._stop_agreed = False

    @contextlib.contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Rank 0 runs the block, and then the others: it makes what they only find."""
        if not self.first:
            self._wait()
        yield
        if self.first:
            self._wait()

    def _wait(self) -> None:
        if self.world > 1:
            distributed.barrier(group=self._control)

    def same(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def of_all(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value, group=self._control)
        return values

    def added_up(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Each figure summed over the ranks, which all have the same ones."""
        if self.world == 1:
            return dict(figures)
        row = torch.tensor(list(figures.values()), dtype=torch.float64)
        distributed.all_reduce(row, group=self._control)
        return dict(zip(figures, row.tolist(), strict=True))

    def counted(self, counts: Mapping[str, int], stop: StopRequest) -> dict[str, int]:
        """`added_up`, and whether any rank was asked to stop: one question a step, for `stopping`."""
        told = self.added_up({**counts, "": float(bool(stop))})
        self._stop_agreed = told.pop("") > 0
        return {name: int(count) for name, count in told.items()}

    def stopping(self, stop: StopRequest) -> bool:
        """Whether to stop now: the same on all ranks, so the signal of one stops all at the same step."""
        return bool(stop) if self.world == 1 else self._stop_agreed

    def any_stopped(self, stop: StopRequest) -> bool:
        """Asks all ranks at once whether one of them was told to stop."""
        self._stop_agreed = any(self.of_all(bool(stop)))
        return self._stop_agreed


@contextlib.contextmanager
def together(device: Device) -> Iterator[Ranks]:
    """This process among those that torchrun or srun started, its device chosen; without them, by itself."""
    here, chosen = place(), pick_device(device)
    if here.world == 1:
        yield Ranks(here, chosen)
        return
    if chosen.type == "mps":
        raise UserError("several processes cannot share one Metal device: start velm without torchrun")
    if chosen.type == "cuda":
        if here.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {here.local_rank} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}: start at most as many processes per machine (--nproc-per-node)"
            )
        chosen = torch.device("cuda", here.local_rank)
        torch.cuda.set_device(chosen)
    host, port = meeting_point()
    os.environ.setdefault("MASTER_ADDR", host)
    os.environ.setdefault("MASTER_PORT", str(port))
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    try:
        store = _store(here)
    except distributed.DistError as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"the processes cannot meet at {host}:{port} (MASTER_ADDR, MASTER_PORT): {said}") from error
    distributed.init_process_group(backend, store=store, rank=here.rank, world_size=here.world)
    control: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
    with contextlib.ExitStack() as stack:
        if here.rank > 0:  # what every rank would say, one says
            quiet = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        yield Ranks(here, chosen, control)
        sys.stdout.flush()
    # Not where the block raised: a rank that leaves then does not wait for others that wait for it.
    distributed.barrier(group=control)  # rank 0 may still be scoring; srun ends a job soon after its first task ends
    distributed.destroy_process_group()


def _store(here: Place) -> Any:
    """Where the processes leave word for each other when they meet.

    torchrun keeps one store over restarts, and in it the addresses of the dead. So rank 0 thinks of a name for this
    meeting and tells it to those who are alive: who has heard it says so.
    """
    store, _, _ = next(iter(distributed.rendezvous("env://", here.rank, here.world)))
    me = uuid.uuid4().hex
    if here.rank > 0:
        store.set(f"here/{here.rank}", me)
        name = store.get(f"for/{me}").decode()  # waits for it
        store.set(f"heard/{name}/{here.rank}", "")
        return distributed.PrefixStore(name, store)
    missing = list(range(1, here.world))
    began = time.monotonic()
    while missing:
        for rank in missing:
            if store.check([f"here/{rank}"]):  # perhaps still by the dead: asked again until it is by the living
                store.set(f"for/{store.get(f'here/{rank}').decode()}", me)
        missing = [rank for rank in missing if not store.check([f"heard/{me}/{rank}"])]
        if time.monotonic() - began > MEETING:
            raise StageError(f"{len(missing)} of {here.world} processes did not appear within {MEETING // 60} minutes")
        time.sleep(0.02)
    return distributed.PrefixStore(me, store)
