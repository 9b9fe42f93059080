"""What velm asks of a tracker, and the three that there are. Their packages are extras, imported where used."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

# Option -> what it is called, and its modules with the packages that bring them.
PACKAGES = {
    "tensorboard": ("TensorBoard", {"tensorboard": "tensorboard"}),
    "wandb": ("Weights & Biases", {"wandb": "wandb"}),
    # mlflow-skinny comes without the two that its SQLite store needs.
    "mlflow": ("MLflow", {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"}),
}


class Tracker(Protocol):
    """One way to send figures. Whatever it raises ends it, and nothing else."""

    def begin(self, folder: Path, run: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        """Go on with `run`, or begin one where it is None or unknown. Returns its id, and where the figures are to be
        seen; files go into `folder`."""
        ...

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def finish(self, outcome: str) -> None:
        """`outcome`: done, stopped (by a signal: it may go on) or failed."""
        ...


class TensorBoard:
    """Event files: `tensorboard --logdir runs`."""

    def begin(self, folder: Path, run: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        from torch.utils.tensorboard import SummaryWriter

        # Without a note of what was sent, all is sent again and takes the place of what there may be.
        self.board = SummaryWriter(str(folder), purge_step=0 if run is None else None)
        return run or "events", str(folder)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self.board.add_scalar(key, value, step)

    def finish(self, outcome: str) -> None:
        self.board.close()


class Wandb:
    """A run of Weights & Biases: sent to its server where there is a login, else kept for `wandb sync`.

    WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE ... are honoured.
    """

    def begin(self, folder: Path, run: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False):  # it would ask the terminal, and fail without one
            mode = "offline"
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "velm",
            id=run or secrets.token_hex(4),
            name=folder.parent.name,
            dir=str(folder.parent),  # it makes a folder `wandb` in it
            config=dict(config),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",  # log.txt has it
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,  # the command line, which may hold credentials
                symlink=False,
                init_timeout=20,
                x_transaction_log_flush_interval=1.0,  # seconds of figures that a kill -9 loses
            ),
        )
        for link in Path(self.run.settings.sync_dir).rglob("*.log"):
            if link.is_symlink():  # to its log in ~/.cache, until it ends; velm refuses links that lead out of a run
                link.unlink()
        self.run.define_metric("*", step_metric="step")
        offline = f"{folder}/offline-run-*-{self.run.id} (wandb sync sends it)"
        return self.run.id, f"wandb: {self.run.url or offline}"

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log({**figures, "step": step})
        self.run.summary.update({key: value for key, value in figures.items() if key.startswith("scores/")})

    def finish(self, outcome: str) -> None:
        self.run.finish(exit_code=int(outcome == "failed"))


class Mlflow:
    """A run in the tracking server of MLFLOW_TRACKING_URI, else in a database in the run's folder.

    MLFLOW_EXPERIMENT_NAME and what it takes for a login are honoured.
    """

    def begin(self, folder: Path, run: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        # By default a server that is gone is asked for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it tells of each table that it makes
        uri, files = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            uri, files = f"sqlite:///{folder.resolve() / 'mlflow.db'}", str(folder.resolve() / "artifacts")
            os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", files)  # else it makes a folder ./mlruns
        self.client = MlflowClient(uri)
        known: Mapping[str, str] = {}
        if run is not None:
            try:
                known = self.client.get_run(run).data.params
                self.client.update_run(run, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                run = None  # of another server
        if run is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "velm"
            experiment = self.client.get_experiment_by_name(name)
            number = (
                experiment.experiment_id if experiment else self.client.create_experiment(name, artifact_location=files)
            )
            run = str(self.client.create_run(number, run_name=folder.parent.name).info.run_id)
        self.run = run
        self._parameters({key: str(value) for key, value in config.items()}, known)
        return run, f"mlflow: run {run} in {uri.rpartition('@')[2]}"

    def _parameters(self, now: Mapping[str, str], known: Mapping[str, str]) -> None:
        """MLflow never changes a parameter: what a resumed run does otherwise (run.max_steps) is a tag of that name."""
        from mlflow.entities import Param, RunTag

        new = [Param(key, value[:500]) for key, value in now.items() if key not in known]
        tags = [RunTag(key, now[key][:500]) for key in now if key in known and known[key] != now[key][:500]]
        for start in range(0, len(new), 100):  # at most that many at once
            self.client.log_batch(self.run, params=new[start : start + 100])
        self.client.log_batch(self.run, tags=tags[:100])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in figures.items()]
        self.client.log_batch(self.run, metrics=metrics, synchronous=True)

    def finish(self, outcome: str) -> None:
        status = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        self.client.set_terminated(self.run, status)


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
