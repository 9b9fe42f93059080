"""run.compile: torch.compile for what a training step spends its time in.

Compiling fuses what lies between matrix products (activations, norms, dropout, casts). It costs up to minutes at the
first steps and needs a C++ compiler, on GPUs Triton; whether it pays is said in docs/performance.md. Decoding and
validation run as written: their shapes change with every word.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn

from velm_cli.errors import UserError
from velm_cli.models.layers import layers_in
from velm_cli.models.velm import VelmModel
from velm_cli.schema import Compile
from velm_cli.surroundings import private_folder


def compile_model(model: VelmModel, how: Compile, device: torch.device) -> None:
    """Compile, in place, the three parts of the model (`model`) or the blocks that repeat in them (`block`)."""
    if how is Compile.off:
        return
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError(
            f"run.compile={how.value} needs a C++ compiler (g++ or clang++): install one, or run.compile=off"
        )
    _keep_compiled_code_private()
    parts = [model.vision, model.text, model.fusion]
    for module in blocks_of(model) if how is Compile.block else filter(None, parts):
        module.compile()


def _keep_compiled_code_private() -> None:
    """torch loads what it has compiled from a folder by name, pickles among it: never from one of another user.

    Its own choice is a folder of /tmp that anybody may have made first.
    """
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):  # the user's own choice
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder("compiled"))


def blocks_of(model: VelmModel) -> Iterator[nn.Module]:
    """The repeated parts: stages of the vision encoder, and layers of the text encoder and the fusion."""
    return chain(model.vision.stages() if model.vision else (), layers_in(model.text), layers_in(model.fusion))


@contextlib.contextmanager
def as_written(how: Compile) -> Iterator[None]:
    """Within it nothing is compiled, and what was compiled runs as it was written."""
    if how is Compile.off:  # or torch's compiler would be imported, which takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
