"""Whether the model hub has a model, asked so that an offline machine learns it at once."""

from __future__ import annotations

import logging


def hub_has(name: str) -> bool:
    """False also where the hub cannot be reached; a download would retry for half a minute before it said so."""
    from huggingface_hub import HfApi

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # it would tell of each retry
    try:
        HfApi().model_info(name, timeout=10)
    except Exception:  # httpx, OSError and its own, by version
        return False
    finally:
        log.setLevel(level)
    return True
