"""Where the installed pycocoevalcap lies: velm runs its jars. 104 MB that training and most scores do without."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

from velm_cli.metrics.java import JavaError

SPICE_JAR = Path("spice") / "spice-1.0.jar"


@functools.cache
def pycocoevalcap() -> Path:
    """Its folder. Raises JavaError, whose line says what to install, where it is not installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise JavaError("its jar is in the package pycocoevalcap, which is not installed: pip install pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations)))


def version() -> str | None:
    """The version that is installed; None where none is."""
    try:
        return importlib.metadata.version("pycocoevalcap")
    except importlib.metadata.PackageNotFoundError:
        return None
