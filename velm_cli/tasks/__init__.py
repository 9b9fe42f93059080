"""Tasks: what of an example is predicted, how it is learned, scored and stored. One module a task."""

from __future__ import annotations

from velm_cli import schema
from velm_cli.tasks.caption import CaptionTask
from velm_cli.tasks.interface import Task as Task
from velm_cli.tasks.retrieve import RetrieveTask
from velm_cli.tasks.vqa import VqaTask


def task_of(options: schema.TaskConfig) -> Task:
    """The task that a config chooses."""
    match options:
        case schema.CaptionTaskConfig():
            return CaptionTask(options)
        case schema.VqaTaskConfig():
            return VqaTask(options)
        case schema.RetrieveTaskConfig():
            return RetrieveTask(options)
    raise AssertionError(f"no task for {type(options).__name__}")
