"""What a run starts from: the tokenizer, weights and word vectors that it takes over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from velm_cli import compose
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.sources import noted_identity, refuse_other_tokenizer, sources_of, weight_file
from velm_cli.errors import StageError, UserError
from velm_cli.models.hub import load_config
from velm_cli.models.text.scratch import EMBEDDING_STD
from velm_cli.models.text.vectors import load_vectors
from velm_cli.models.weights import fitted, read_state, refuse_not_finite
from velm_cli.schema import PretrainedTextConfig, ScratchTextConfig, TokenizerConfig, TokenizerKind, TrainRoot
from velm_cli.tasks.caption import CaptionTask


def inherited_tokenizer(config: TrainRoot) -> Tokenizer | None:
    """The tokenizer that the text encoder brings: its own, or that of the run it is taken from; else None."""
    if isinstance(config.text, PretrainedTextConfig):
        load_config("text", config.text.name)  # or its tokenizer would be missed first, under another option's name
        return Tokenizer.build(TokenizerConfig(kind=TokenizerKind.pretrained, name=config.text.name), [])
    source = config.init.text or getattr(config, "checkpoint", None)
    if source is None:
        return None
    return run_tokenizer(compose.run_folder_of(source))


def run_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run folder. UserError when it is not the one that the weights were trained with."""
    tokenizer = Tokenizer.load(run / "tokenizer")
    refuse_other_tokenizer(run, tokenizer.digest, "put back the one that the run has saved")
    return tokenizer


def initial_weights(
    config: TrainRoot, task: CaptionTask, read: Callable[[Path], tuple[dict[str, Tensor], str]]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Take over weights as `checkpoint`, `init.vision` and `init.text` say. `read`: a file's tensors and SHA-256.

    Returns the file and SHA-256 of each, and a line about each.
    """
    taken, notes = {}, []
    prefixes = {"checkpoint": "", "init.vision": "model.vision.", "init.text": "model.text."}
    own = task.state_dict()
    for key, source in sources_of(config).items():
        file, prefix = weight_file(source), prefixes[key]
        state, digest = read(file)
        fitting = fitted({name: tensor for name, tensor in state.items() if name.startswith(prefix)}, own, file)
        wanted = [name for name in own if name.startswith(prefix)]
        if not fitting:
            raise UserError(f"{key}={source}: none of its weights fit this model's {prefix or 'parts'}")
        task.load_state_dict(fitting, strict=False)
        refuse_not_finite(task, file)
        taken[key] = {"file": str(file), "sha256": digest}
        notes.append(f"weights from {source}: {len(fitting)} of {len(wanted)} tensors{_left_out(wanted, fitting)}")
    return taken, notes


def read_weights(file: Path, ranks: Ranks) -> tuple[dict[str, Tensor], str]:
    """The tensors and SHA-256 of a run's weights, the same ones on all ranks, which all ask."""
    state, digest = read_state(file, noted_identity(file.parent))
    if len(set(ranks.of_all(digest))) > 1:
        raise StageError(f"{file} changed while the processes read it; give the same command again")
    return state, digest


def word_vectors(config: TrainRoot, task: CaptionTask, tokenizer: Tokenizer) -> list[str]:
    """Start the embedding from text.vectors; a line about it."""
    text = config.text
    if not isinstance(text, ScratchTextConfig) or text.vectors is None:
        return []
    ids, vectors = load_vectors(text.vectors, tokenizer.word_ids, text.width)
    embedding = task.model.text.get_submodule("embedding").weight
    assert isinstance(embedding, torch.Tensor)
    with torch.no_grad():
        embedding[ids] = vectors * EMBEDDING_STD
    return [f"word vectors of {len(ids):,} of {tokenizer.vocab_size:,} tokens from {text.vectors}"]


def _left_out(wanted: list[str], fitting: dict) -> str:
    missing = sorted({name.split(".")[1 if name.startswith("model.") else 0] for name in wanted if name not in fitting})
    return f" (from scratch: {', '.join(missing)})" if missing else ""
