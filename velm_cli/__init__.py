"""velm: train vision-enhanced language models from one command line, report the field's numbers, use the models.

`velm_cli.load(RUN)` gives a trained model, `velm_cli.score(predictions, references)` the scores of anybody's
predictions. Both are imported when they are first asked for: `import velm_cli` alone loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velm_cli.errors import UserError as UserError
    from velm_cli.inference.model import Model as Model
    from velm_cli.inference.model import load as load
    from velm_cli.inference.scoring import score as score

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "__version__", "load", "score"]

_HOMES = {
    "load": "velm_cli.inference.model",
    "Model": "velm_cli.inference.model",
    "score": "velm_cli.inference.scoring",
    "UserError": "velm_cli.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
