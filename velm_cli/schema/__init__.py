"""Every option of velm: its type, its default and its meaning in one line. Imports no torch.

YAML in `conf/` only holds values; these dataclasses are the config. Hydra validates each override
against them, `to_object` turns the composed config into them once, at the boundary, and everything
further in takes dataclasses. A component is chosen by its `kind`, never by a `_target_` string, so a
config from a stranger cannot run code. (No `from __future__ import annotations` here: annotations that are
strings would be compiled again at every start.)
"""

from velm_cli.schema.data import *  # noqa: F403
from velm_cli.schema.metric_names import METRIC_NAMES  # noqa: F401
from velm_cli.schema.model import *  # noqa: F403
from velm_cli.schema.roots import *  # noqa: F403
from velm_cli.schema.tasks import *  # noqa: F403
from velm_cli.schema.training import *  # noqa: F403
