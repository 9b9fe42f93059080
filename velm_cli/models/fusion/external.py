"""Fusions of other packages, found by entry point: a config can only name what its user has installed.

See docs/extending.md. Imports no torch until a fusion is built.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from velm_cli.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from velm_cli.models.fusion.interface import Fusion
    from velm_cli.models.text.interface import TextEncoder
    from velm_cli.schema import ExternalFusionConfig

GROUP = "velm.fusions"


def problem(name: str) -> str | None:
    """One line that says why there is no fusion `name`; None when there is one."""
    names = sorted(point.name for point in entry_points(group=GROUP))
    if name in names:
        return None
    there_is = f"installed are {', '.join(names)}" if names else f"no installed package has an entry point {GROUP}"
    return f"fusion.name={name}: no such fusion{did_you_mean(name, names)}; {there_is} (docs/extending.md)"


def load_external(config: ExternalFusionConfig, image_width: int, text: TextEncoder) -> Fusion:
    """CLASS(options, image_width, text) of the entry point `config.name`. Raises UserError when that fails."""
    if line := problem(config.name):
        raise UserError(line)
    from velm_cli.models.fusion.interface import Fusion

    (point, *_) = entry_points(group=GROUP, name=config.name)
    try:
        fusion = point.load()(dict(config.options), image_width, text)
    except (ImportError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"fusion.name={config.name} ({point.value}) could not be made: {error}") from error
    if not isinstance(fusion, Fusion):
        raise UserError(f"fusion.name={config.name} ({point.value}) is not a velm_cli.models.fusion.interface.Fusion")
    return fusion
