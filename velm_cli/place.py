"""Which process of how many this one is, as torchrun or srun says it. Imports no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


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
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")))
    # SLURM_NTASKS would not do: sbatch sets it for the single process of its script, too.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return Place(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID", "0")))
    return Place()


def meeting_point() -> tuple[str, int]:
    """Host and port where the processes of the job find each other: MASTER_ADDR and MASTER_PORT, or SLURM's first
    host and a port made of its job's number."""
    env = os.environ
    host = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1"
    number = 16 * int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))
    return host, int(env.get("MASTER_PORT") or 15000 + number % 15000)


def first_host(nodes: str) -> str:
    """The first of a SLURM node list: `gpu[07-09,12].site,cpu1` -> `gpu07.site`."""
    match = re.match(r"([^,\[]*)(?:\[([^],-]+)[^]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""
