"""The file that a captioning server takes, written by the evaluation of a whole split (`eval.submit`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from velm_cli import configs, naming
from velm_cli.errors import UserError
from velm_cli.metrics.submission import COCO_SPLITS, pack_submission, split_of, submission_file, write_submission
from velm_cli.schema import Blind, EvaluateRoot, Submission
from velm_cli.tasks import Task
from velm_cli.tasks.interface import ExampleId


def submission(config: EvaluateRoot, task: Task, images: int) -> tuple[str, Path] | None:
    """The server's name of the split and the folder for its file; what cannot be submitted is refused here."""
    server = config.eval.submit
    if server is Submission.none:
        return None
    if task.kind != "caption":
        raise UserError(f"eval.submit={server.value} is a server of captions, and task={task.kind} writes none")
    if config.eval.blind is not Blind.none:
        raise UserError(f"eval.submit={server.value}: captions of eval.blind={config.eval.blind.value} are a control")
    split = split_of(server.value, images)
    folder = Path(config.run.dir) / "submit" / _home(config.checkpoint)
    submission_file(folder, split, config.eval.system)
    return split, folder


def submit(config: EvaluateRoot, place: tuple[str, Path], captions: Mapping[ExampleId, str]) -> None:
    """Writes the file for the server; COCO's takes two, which are packed as soon as both are there."""
    split, folder = place
    print(f"to submit   {write_submission(folder, split, config.eval.system, captions, None)}")
    if split in COCO_SPLITS:
        missing = [other for other in COCO_SPLITS if not submission_file(folder, other, config.eval.system).exists()]
        if missing:
            print(f"note: COCO's server takes both splits in one archive: caption {missing[0]} too")
        else:
            print(f"to submit   {pack_submission(folder, config.eval.system)}")


def _home(checkpoint: str) -> str:
    """The name of the folder of a model's submissions: one for all kept checkpoints of a run."""
    if configs.foreign_model(checkpoint) is not None:
        return naming.checkpoint_name(checkpoint)
    return configs.run_folder_of(checkpoint).name
