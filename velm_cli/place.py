"""Which process of how many this one is, as torchrun or srun says it. Imports no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from velm_cli.errors import UserError


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those of one job: it is number `rank` of `world`, and number `local_rank` of its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place() -> Place:
    """This process's place: torchrun's word first, then that of the srun that started it."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return _place("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # SLURM_NTASKS would not do: sbatch sets it for the single process of its script, too.
    if _number("SLURM_STEP_NUM_TASKS", 1, default=1) > 1:
        return _place("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return Place()


def _place(rank: str, world: str, local_rank: str) -> Place:
    """From the environment variables of these names."""
    here = Place(_number(rank, 0), _number(world, 1), _number(local_rank, 0, default=0))
    if here.rank >= here.world:
        raise UserError(
            f"{rank}={here.rank} of {world}={here.world} processes: the first is 0, the last {here.world - 1}"
        )
    return here


def _number(name: str, least: int, most: int = 10**9, default: int | None = None) -> int:
    """The whole number that an environment variable holds; UserError when it holds none."""
    text = os.environ.get(name) or ("" if default is None else str(default))
    if re.fullmatch(r"[0-9]{1,10}", text) and least <= int(text) <= most:
        return int(text)
    found = f"{name}={text[:40]}" if text else f"{name} is not set"
    raise UserError(
        f"{found}: several processes need a whole number there from {least} to {most}; torchrun and srun set it"
    )


def meeting_point() -> tuple[str, int]:
    """Host and port where the processes of the job find each other: MASTER_ADDR and MASTER_PORT, or SLURM's first
    host and a port made of its job's number."""
    env = os.environ
    host = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1"
    number = 16 * _number("SLURM_JOB_ID", 0, default=0) + _number("SLURM_STEP_ID", 0, default=0)
    return host, _number("MASTER_PORT", 1, 65535, default=15000 + number % 15000)


def first_host(nodes: str) -> str:
    """The first of a SLURM node list: `gpu[07-09,12].site,cpu1` -> `gpu07.site`."""
    match = re.match(r"([^,\[]*)(?:\[([^],-]+)[^]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""
