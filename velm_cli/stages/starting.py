"""What a run starts from: the tokenizer, weights and word vectors that it takes over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm_cli import configs
from velm_cli.data import opening
from velm_cli.data.manifest import read_manifest
from velm_cli.data.store import Store
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.engine.folder import best_figure
from velm_cli.engine.ranks import Ranks
from velm_cli.errors import StageError, UserError
from velm_cli.files import write_bytes
from velm_cli.learners.interface import Learner
from velm_cli.lineage import sources_of, weight_file
from velm_cli.loading import KEPT, read_weights, run_tokenizer, with_kept_models
from velm_cli.models.hub import load_config, small_files
from velm_cli.models.text.scratch import EMBEDDING_STD
from velm_cli.models.text.vectors import load_vectors
from velm_cli.models.weights import fitted, refuse_not_finite, weights_follow
from velm_cli.objectives.weights import term_weights
from velm_cli.relocating import store_path, working_folder
from velm_cli.schema import (
    EvaluateRoot,
    PretrainedTextConfig,
    ScratchTextConfig,
    TextConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainRoot,
    VisionConfig,
)
from velm_cli.tasks import task_of
from velm_cli.tasks.spaces import Spaces


def inherited_tokenizer(config: TrainRoot, path: Path | None = None) -> Tokenizer | None:
    """The tokenizer that the text encoder brings: its own, or that of the run it is taken from; else None.

    `path`: the run that goes on, where it does.
    """
    source = config.init.text or getattr(config, "checkpoint", None)
    if isinstance(config.text, PretrainedTextConfig):
        if (keeper := keepers(config, path).get("text")) is not None and not _is_there("text", config.text.name):
            return run_tokenizer(keeper)
        load_config("text", config.text.name)  # or its tokenizer would be missed first, under another option's name
        return Tokenizer.build(TokenizerConfig(kind=TokenizerKind.pretrained, name=config.text.name), [])
    if source is None:
        return None
    return run_tokenizer(configs.run_folder_of(source))


def keepers(config: TrainRoot, path: Path | None) -> dict[str, Path]:
    """Of the groups vision and text: the run folder that keeps the small files of their pretrained model, and whose
    weights replace all of it. That is the run in `path` when it goes on, or the one that `checkpoint` names."""
    found: dict[str, Path] = {}
    source = getattr(config, "checkpoint", None)
    if source is not None:
        folder = configs.run_folder_of(source)
        trained = configs.load_run_config(source)
        found = {group: folder for group in KEPT if _is_same(getattr(trained, group), getattr(config, group))}
    if path is not None and any(path.glob("checkpoints/step-*")):
        found = dict.fromkeys(KEPT, path)
    return found


def _is_same(trained: VisionConfig | TextConfig, now: VisionConfig | TextConfig) -> bool:
    """Whether the model is the same, tensor by tensor; what is frozen and how images are resized may differ."""
    same: dict[str, Any] = {"freeze": now.freeze}
    if isinstance(now, VisionConfig):
        same |= {"resize": now.resize, "output": now.output}
    return type(trained) is type(now) and replace(trained, **same) == now


def new_learner(config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer) -> Learner:
    """The learner of the config's task, initialised."""
    return task_of(config.task).learner(config, spaces, tokenizer, term_weights(config.loss))


def built(config: TrainRoot, build: Callable[[TrainRoot], Learner], keeper: Mapping[str, Path]) -> Learner:
    """`build(config)`; where a pretrained model is gone, with what its `keeper` has, whose weights then follow."""
    try:
        return build(config)
    except UserError as error:
        if not keeper:
            raise
        torch.manual_seed(config.seed)
        with contextlib.suppress(UserError), weights_follow(keeper):
            return build(with_kept_models(config, keeper))
        raise error


def keep_models(config: TrainRoot, run: Path, keeper: Mapping[str, Path]) -> None:
    """Put what is read of pretrained models beside their weights into the run folder, which then needs them no more."""
    for group in KEPT:
        name = getattr(getattr(config, group), "name", None)
        if name is None or (run / group / "config.json").exists():
            continue
        if _is_there(group, name):
            files = small_files(group, name)
        else:
            files = {file.name: file.read_bytes() for file in (keeper[group] / group).iterdir() if file.is_file()}
        (run / group).mkdir(exist_ok=True)
        for file, content in sorted(files.items(), key=lambda item: item[0] == "config.json"):  # config.json last
            write_bytes(run / group / file, [content])


def _is_there(group: str, name: str) -> bool:
    if os.path.isdir(name):
        return True
    try:
        load_config(group, name)
    except UserError:
        return False
    return True


def open_store(config: TrainRoot | EvaluateRoot) -> Store:
    """The store of the command; where there is none, UserError also says where it was when the run was trained."""
    path = store_path(config.dataset)
    try:
        return opening.open_store(path, config.dataset)
    except UserError as error:
        source = getattr(config, "checkpoint", None)
        if source is None or read_manifest(path) is not None:
            raise
        run = configs.run_folder_of(source)
        folder, then = working_folder(run), store_path(configs.load_run_config(source).dataset)
        if folder is None or then != path:
            raise
        raise UserError(f"{error} (or give dataset.store=: when {run} was trained, it was {folder / then})") from None


def initial_weights(
    config: TrainRoot, learner: Learner, read: Callable[[Path], tuple[dict[str, Tensor], str]]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Take over weights as `checkpoint`, `init.vision` and `init.text` say. `read`: a file's tensors and SHA-256.

    Returns the file and SHA-256 of each, and a line about each.
    """
    taken, notes = {}, []
    prefixes = {"checkpoint": "", "init.vision": "model.vision.", "init.text": "model.text."}
    own = learner.state_dict()
    for key, source in sources_of(config).items():
        file, prefix = weight_file(source), prefixes[key]
        state, digest = read(file)
        fitting = fitted({name: tensor for name, tensor in state.items() if name.startswith(prefix)}, own, file)
        wanted = [name for name in own if name.startswith(prefix)]
        if not fitting:
            raise UserError(f"{key}={source}: none of its weights fit this model's {prefix or 'parts'}")
        learner.load_state_dict(fitting, strict=False)
        refuse_not_finite(learner, file)
        taken[key] = {"file": str(file), "sha256": digest}
        figure = best_figure(configs.run_folder_of(source)) if key == "checkpoint" else None
        before = "" if figure is None else f"; best validation there: {_in_words(figure)}"
        notes.append(
            f"weights from {source}: {len(fitting)} of {len(wanted)} tensors{_left_out(wanted, fitting)}{before}"
        )
    return taken, notes


def _in_words(figure: float) -> str:
    """`best_figure` as a line has it: a CIDEr, or a loss with its sign changed."""
    return f"CIDEr {figure:.4f}" if figure >= 0 else f"loss {-figure:.4f}"


def same_weights(file: Path, ranks: Ranks) -> tuple[dict[str, Tensor], str]:
    """The tensors and SHA-256 of a run's weights, the same ones on all ranks, which all ask."""
    state, digest = read_weights(file)
    if len(set(ranks.of_all(digest))) > 1:
        raise StageError(f"{file} changed while the processes read it; give the same command again")
    return state, digest


def word_vectors(config: TrainRoot, learner: Learner, tokenizer: Tokenizer) -> list[str]:
    """Start the embedding from text.vectors; a line about it."""
    text = config.text
    taken = config.init.text or getattr(config, "checkpoint", None)  # trained ones come with these weights
    if not isinstance(text, ScratchTextConfig) or text.vectors is None or taken is not None:
        return []
    ids, vectors = load_vectors(text.vectors, tokenizer.word_ids, text.width)
    embedding = learner.model.text.get_submodule("embedding").weight
    assert isinstance(embedding, torch.Tensor)
    with torch.no_grad():
        embedding[ids] = vectors * EMBEDDING_STD
    return [f"word vectors of {len(ids):,} of {tokenizer.vocab_size:,} tokens from {text.vectors}"]


def _left_out(wanted: list[str], fitting: dict) -> str:
    missing = sorted({name.split(".")[1 if name.startswith("model.") else 0] for name in wanted if name not in fitting})
    return f" (from scratch: {', '.join(missing)})" if missing else ""
