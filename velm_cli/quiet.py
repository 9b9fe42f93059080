"""Libraries say a lot that is not for the users of velm: bars, reports, warnings to their own developers.

What matters of it becomes a line of velm's own where it happens (`models/hub.py`: weights that a file lacks).
VELM_TRACEBACK=1, which is for developers, shows all of it. Imports no library.
"""

from __future__ import annotations

import os
import sys
import warnings

LOUD = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "true",  # as it is; unset, it tells of every fork
}


def quiet() -> None:
    """Before libraries are imported: leave their chatter off the console. What the user has set stays."""
    for name, value in LOUD.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(peft|transformers|huggingface_hub)\.")
    if "transformers" in sys.modules:  # of a sweep's point before: it has read its variables
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
