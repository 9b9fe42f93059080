"""Tasks: what of an example is predicted, how it is learned, scored and stored. One module a task, of the same name."""

from __future__ import annotations

import importlib

from velm_cli import schema
from velm_cli.tasks.interface import Task as Task


def task_of(options: schema.TaskConfig) -> Task:
    """The task that a config chooses: the class of that kind in the module here that is named so."""
    kind = type(options).kind  # by the dataclass, not by what a stranger's config may say
    module = importlib.import_module(f"{__name__}.{kind}")
    classes = (each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Task))
    (task,) = (each for each in classes if getattr(each, "kind", None) == kind)
    return task(options)
