"""Who a process is, by the environments that torchrun and srun make."""

import pytest

from velm_cli.place import Place, first_host, meeting_point, place

VARIABLES = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS",
             "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID"]  # fmt: skip
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08].site", "SLURM_JOB_ID": "123", "SLURM_STEP_ID": "2"}  # fmt: skip
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29501"}


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def put(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_by_itself(environment):
    assert place() == Place(0, 1, 0)
    environment({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})  # the one process of an sbatch script
    assert place() == Place(0, 1, 0)


def test_torchrun_has_the_word_even_within_srun(environment):
    environment(SRUN | TORCHRUN)
    assert place() == Place(5, 8, 1)
    assert meeting_point() == ("10.0.0.7", 29501)


def test_srun_alone(environment):
    environment(SRUN)
    assert place() == Place(3, 4, 1)
    host, port = meeting_point()
    assert host == "gpu07.site" and 15000 <= port < 30000
    environment({"SLURM_STEP_ID": "3"})
    assert meeting_point()[1] != port


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("cpu1", "cpu1"), ("cpu1,cpu2", "cpu1"), ("gpu[07-09,12].site,cpu1", "gpu07.site"), ("n[3,5-6]", "n3"), ("", "")],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first
