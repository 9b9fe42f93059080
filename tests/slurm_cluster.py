"""A SLURM cluster of this one machine, from Debian's slurm-wlm and munge, that leaves nothing behind.

    python tests/slurm_cluster.py        (as root; prints the SLURM_CONF to use; ends with its standard input)

Two nodes of two CPUs each, both this machine; configuration, keys, sockets, state and logs lie in a temporary folder,
ports are free ones. Whatever happens to the process that started it, its end closes our standard input, and then
every daemon, and every process of a job, is killed.

A job that is queued again starts after `cred_expire` and a second: only then have the daemons forgotten the credential
of its former life (in the same second they take the new one for that, and the job fails).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NODES, CPUS = 2, 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
CONF = """
ClusterName=velm
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
JobRequeue=1
ReturnToService=2
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PlugStackConfig={folder}/plugstack.conf
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> str | None:
    """What keeps this machine from running a cluster; None if nothing does."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"SLURM is not installed (no {', '.join(missing)}); Debian has slurm-wlm and munge"
    return None if os.geteuid() == 0 else "SLURM's daemons are started as root here"


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Within the block: a cluster with idle nodes. Gives the environment for its commands."""
    keeper = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    try:
        line = keeper.stdout.readline()
        assert line.startswith("SLURM_CONF="), "the cluster did not start; its reason is on stderr"
        yield {"SLURM_CONF": line.strip().partition("=")[2], "PATH": _path()}
    finally:
        keeper.stdin.close()
        keeper.wait(timeout=60)


def main() -> None:
    """Start the cluster, say where it is, and keep it until standard input ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    # Not in the tests' own folder: munged wants every folder above its socket open to all.
    folder = Path(tempfile.mkdtemp(prefix="velm-slurm-"))
    folder.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    daemons: list[subprocess.Popen] = []
    try:
        _configure(folder)
        munged = [
            "munged", "--foreground", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        ]  # fmt: skip
        _start(munged, daemons, environment, folder)
        _wait_for(lambda: (folder / "munge.socket").exists(), "munged made no socket", folder)
        _start(["slurmctld", "-D", "-i"], daemons, environment, folder)
        for node in _node_names():
            _start(["slurmd", "-D", "-N", node], daemons, environment, folder)
        _wait_for(lambda: _idle_nodes(environment) == NODES, "the nodes did not become idle", folder)
        print(f"SLURM_CONF={environment['SLURM_CONF']}", flush=True)
        sys.stdin.read()
    finally:
        for daemon in daemons:
            daemon.kill()
        _kill_all_of(folder)
        for daemon in daemons:
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in _node_names())):
        (folder / name).mkdir()
    (folder / "plugstack.conf").touch()
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(128))
    with contextlib.ExitStack() as taken:  # all at once, so that they differ
        sockets = [taken.enter_context(socket.socket()) for _ in range(1 + NODES)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=1000 State=UNKNOWN"
        for node, port in zip(_node_names(), ports[1:], strict=True)
    )
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=ports, nodes=nodes))


def _node_names() -> list[str]:
    return [f"velm{number}" for number in range(NODES)]


def _start(command: list[str], daemons: list[subprocess.Popen], environment: dict[str, str], folder: Path) -> None:
    with open(folder / "output.log", "a") as log:
        daemons.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        )


def _idle_nodes(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=environment, capture_output=True, text=True
    )
    return len(done.stdout.split())


def _wait_for(condition, complaint: str, folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))
            sys.exit(f"{complaint} within {seconds:g} s\n{logs}")
        time.sleep(0.1)


def _kill_all_of(folder: Path) -> None:
    """Kill every process that names the cluster's configuration: SLURM hands it on to all steps of all jobs."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    for _ in range(3):  # what is being started at this moment is found the next time
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.1)


def _path() -> str:
    """With the folders of daemons, which an ordinary user's PATH lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


if __name__ == "__main__":
    main()
