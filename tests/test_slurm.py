"""scripts/*.sbatch on a real SLURM: preempted, requeued and finished to the same bits; a sweep as a job array.

Needs root, slurm-wlm and munge; without them the tests are skipped, or fail when VELM_REQUIRE_SLURM=1.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from velm import TINY, TINY_MODEL, call

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
REASON = slurm_cluster.why_not()
pytestmark = pytest.mark.skipif(
    REASON is not None and os.environ.get("VELM_REQUIRE_SLURM") != "1", reason=f"no SLURM here: {REASON}"
)
MODEL = [option for option in TINY_MODEL if not option.startswith(("fusion.layers", "fusion.heads"))]
COMMON = ["train", "dataset=shapes", *TINY, *MODEL, "metrics.names=[cider]"]
# Long enough to be interrupted twice: SLURM takes up to half a second from the command to the signal.
COMMAND = [*COMMON, "run.max_steps=300", "run.checkpoint_every=100", "run.validate_every=150"]


class Slurm:
    """The cluster's commands, run in `place`."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self.place = place
        path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        self.environment = {**os.environ, **environment, "PATH": path}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.place, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def states(self, job: str) -> dict[str, str]:
        """The states of a job, or of the tasks of an array, that SLURM has not yet forgotten."""
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        states = dict(line.split() for line in lines)
        return {name: state for name, state in states.items() if name == job or name.startswith(f"{job}_")}

    def start_again(self, job: str) -> None:
        """Once SLURM has queued it again: see `slurm_cluster` for when."""
        wait_for(lambda: self.states(job).get(job) == "PENDING", f"{job} is queued again", self.place)
        wait_for(lambda: self.states(job).get(job) == "RUNNING", f"{job} starts again", self.place)

    def finish(self, job: str) -> None:
        """Until the job, or all tasks of the array, have ended well."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
        wait_for(
            lambda: len(states := set(self.states(job).values())) > 0 and states <= ended, f"{job} ends", self.place
        )
        assert set(self.states(job).values()) == {"COMPLETED"}, output(self.place)


def output(place: Path) -> str:
    return "".join(f"== {path.name}\n{path.read_text()}" for path in sorted(place.glob("slurm-*.out")))


def wait_for(condition, what: str, place: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{output(place)}"
        time.sleep(0.2)


def last_step(folder: Path) -> int:
    try:
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError):
        return 0


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    assert REASON is None, REASON
    place = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch, slurm_cluster.cluster() as environment:
        patch.chdir(place)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield Slurm(place, environment)


def test_preempted_requeued_out_of_time_and_the_same_bits(slurm):
    straight = subprocess.Popen(
        [sys.executable, "-m", "velm_cli", *COMMAND, "name=straight"], cwd=slurm.place, stdout=subprocess.DEVNULL
    )
    submitted = slurm.run("sbatch", "--parsable", str(SCRIPTS / "slurm_train.sbatch"), *COMMAND, "name=slurm")
    job, folder = submitted.strip(), slurm.place / "runs/train/slurm"
    wait_for(lambda: last_step(folder) >= 5, "it trains", slurm.place)
    slurm.run("scontrol", "requeue", job)  # preempted: SLURM queues it again
    slurm.start_again(job)
    saved = int(re.fullmatch(r"SIGTERM at step (\d+)\n", (folder / "PREEMPTED").read_text())[1])
    assert saved < 300
    wait_for(lambda: last_step(folder) >= saved + 5 or (folder / "DONE").exists(), "it goes on", slurm.place)
    slurm.run("scancel", "--signal=TERM", job)  # what --signal=TERM@120 does when the time is nearly over
    slurm.start_again(job)
    assert "queued again" in output(slurm.place)
    slurm.finish(job)
    assert output(slurm.place).count("resumed at step") == 2

    assert straight.wait(timeout=240) == 0
    for file in ("model.safetensors", "best.safetensors", "predictions.json"):
        assert (folder / file).read_bytes() == (slurm.place / "runs/train/straight" / file).read_bytes(), file


def test_two_nodes_train_one_model(slurm):
    # Dropout is each rank's own; bfloat16, where the processor has it, rounds the halves of a batch otherwise.
    still = ["vision.dropout=0", "text.dropout=0", "fusion.dropout=0", "run.max_steps=10", "run.precision=fp32"]
    job = slurm.run(
        "sbatch", "--parsable", "--nodes=2", str(SCRIPTS / "slurm_train.sbatch"), *COMMON, *still, "name=two-nodes"
    ).strip()
    assert call(*COMMON, *still, "name=one-node") == 0
    slurm.finish(job)
    assert "2 processes" in output(slurm.place)
    one, two = (losses(slurm.place / "runs/train" / name) for name in ("one-node", "two-nodes"))
    assert len(one) == 10
    assert two == pytest.approx(one, rel=2e-5)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss_text"] for line in lines if line["kind"] == "train"]


def test_a_cancelled_job_saves_and_is_not_queued_again(slurm):
    command = [*COMMON, "run.max_steps=1000000", "name=cancelled"]
    job = slurm.run("sbatch", "--parsable", str(SCRIPTS / "slurm_train.sbatch"), *command).strip()
    folder = slurm.place / "runs/train/cancelled"
    wait_for(lambda: last_step(folder) >= 5, "it trains", slurm.place)
    slurm.run("scancel", job)
    wait_for(lambda: slurm.states(job) == {job: "CANCELLED"}, "it is cancelled", slurm.place)
    assert (folder / "PREEMPTED").exists()
    time.sleep(1)
    assert slurm.states(job) == {job: "CANCELLED"}


def test_a_sweep_is_a_job_array_and_becomes_one_table(slurm):
    sweep = [*COMMON, "run.max_steps=10", "seed=0,1", "fusion=concat,add,gated"]
    said = slurm.run(str(SCRIPTS / "sweep.sh"), "--throttle=2", *sweep)
    job = re.search(r"Submitted batch job (\d+)", said)[1]
    slurm.finish(job)
    assert len(slurm.states(job)) == 6
    table = slurm.run("bash", "-c", f'velm() {{ python -m velm_cli "$@"; }}\n{said.splitlines()[-1]}')
    rows = [line.split()[:2] for line in table.splitlines()]
    assert rows[0] == ["fusion", "runs"]
    assert sorted(rows[1:]) == [["add", "2"], ["concat", "2"], ["gated", "2"]]


def test_a_mistake_is_found_before_anything_is_queued(slurm):
    done = subprocess.run(
        [str(SCRIPTS / "sweep.sh"), "train", "optim.lrr=1,2"],
        cwd=slurm.place, env=slurm.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "velm: optim.lrr: no such option; did you mean 'optim.lr'?\n"
    assert done.stdout == ""
