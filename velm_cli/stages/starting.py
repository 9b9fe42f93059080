"""What a run starts from: the tokenizer, weights and word vectors that it takes over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

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
from velm_cli.exported import noted
from velm_cli.files import write_bytes
from velm_cli.learners.interface import Learner
from velm_cli.lineage import sources_of, vocabulary_grows, vocabulary_source, weight_file
from velm_cli.loading import KEPT, read_weights, run_tokenizer, with_kept_models
from velm_cli.mixture import has_tasks
from velm_cli.models.hub import load_config, small_files
from velm_cli.models.lora import carried_over, scales
from velm_cli.models.quantized import is_packed, rounded
from velm_cli.models.text.scratch import EMBEDDING_STD
from velm_cli.models.text.vectors import load_vectors
from velm_cli.models.weights import fitted, refuse_not_finite, weights_follow, with_rows
from velm_cli.objectives.weights import term_weights
from velm_cli.relocating import store_path, working_folder
from velm_cli.schema import (
    CausalLMConfig,
    EvaluateRoot,
    LowRank,
    PretrainedTextConfig,
    ScratchTextConfig,
    TextConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainRoot,
    VisionConfig,
)
from velm_cli.tasks import task_of
from velm_cli.tasks.mix import own_spaces, weights_of_task
from velm_cli.tasks.spaces import Spaces, read_spaces


class HasTrainingTexts(Protocol):
    """A store, or several together."""

    def training_texts(self) -> Iterator[str]: ...


# Tensors of a learner that have a row for each word of the vocabulary, and for each label of a space.
WORDS = ("model.text.embedding.weight", "model.output_bias")
LABELS = {
    "answers": ("label_head.layers.4.weight", "label_head.layers.4.bias"),
    "labels": tuple(f"label_head.layers.{last}.{name}" for last in (2, 4) for name in ("weight", "bias")),
}


def inherited_tokenizer(config: TrainRoot, store: HasTrainingTexts, path: Path | None = None) -> Tokenizer | None:
    """The tokenizer that the text encoder brings: its own, or that of the run it is taken from; else None.

    Of a run of another task it is given the new words of `store`. `path`: the run that goes on, where it does.
    """
    if isinstance(config.text, PretrainedTextConfig):
        if (keeper := keepers(config, path).get("text")) is not None and not _is_there("text", config.text.name):
            return run_tokenizer(keeper)
        load_config("text", config.text.name)  # or its tokenizer would be missed first, under another option's name
        return Tokenizer.build(TokenizerConfig(kind=TokenizerKind.pretrained, name=config.text.name), [])
    source = vocabulary_source(config)
    if source is None:
        return None
    tokenizer = run_tokenizer(configs.run_folder_of(source))
    return tokenizer.grown(store.training_texts(), config.tokenizer) if vocabulary_grows(config) else tokenizer


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
    if isinstance(now, LowRank):
        same |= {"lora_rank": now.lora_rank, "lora_alpha": now.lora_alpha, "lora_targets": now.lora_targets}
    if isinstance(now, CausalLMConfig):
        same |= {"quantize": now.quantize}
    if isinstance(now, VisionConfig):
        same |= {"resize": now.resize, "output": now.output, "images": now.images, "tiles": now.tiles}
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
        if source is None or configs.foreign_model(source) or read_manifest(path) is not None:
            raise
        run = configs.run_folder_of(source)
        folder, then = working_folder(run), store_path(configs.load_run_config(source).dataset)
        if folder is None or then != path:
            raise
        raise UserError(f"{error} (or give dataset.store=: when {run} was trained, it was {folder / then})") from None


def initial_weights(
    config: TrainRoot, learner: Learner, spaces: Spaces, read: Callable[[Path], tuple[dict[str, Tensor], str]]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Take over weights as `checkpoint`, `init.vision` and `init.text` say. `read`: a file's tensors and SHA-256.

    A row of words and labels goes by their names: those that are new keep their own. Returns the file and SHA-256 of
    each, and lines about what is taken, what is new and what is left behind.
    """
    taken, notes = {}, []
    prefixes = {"checkpoint": "", "init.vision": "model.vision.", "init.text": "model.text."}
    own = learner.state_dict()
    for key, source in sources_of(config).items():
        file, prefix, then = weight_file(source), prefixes[key], configs.load_run_config(source)
        state, digest = read(file)
        if not has_tasks(config):  # of a mixture's run, what one task has of it
            state = weights_of_task(then, config.task.kind, state)
        state = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        if is_packed(then.text) and isinstance(config.text, CausalLMConfig):
            state = rounded(state, learner.model.text)
        state, of_updates = carried_over(
            state, learner.model, scales(then.vision, then.text), scales(config.vision, config.text)
        )
        moved, lines = _by_name(config, learner, spaces, source, state)
        fitting = fitted(state | moved, own, file)
        wanted = [name for name in own if name.startswith(prefix)]
        if not fitting:
            raise UserError(f"{key}={source}: none of its weights fit this model's {prefix or 'parts'}")
        learner.load_state_dict(fitting, strict=False)
        refuse_not_finite(learner, file)
        taken[key] = {"file": str(file), "sha256": digest}
        home = configs.run_folder_of(source)
        has_log = key == "checkpoint" and noted(home) is None  # an exported folder has none
        figure = best_figure(home) if has_log else None
        before = "" if figure is None else f"; best validation there: {_in_words(config, source, figure)}"
        notes.append(
            f"weights from {source}: {len(fitting)} of {len(wanted)} tensors{_left_out(wanted, fitting, state)}{before}"
        )
        notes += of_updates + lines
    return taken, notes + _of_another_task(config)


def _by_name(
    config: TrainRoot, learner: Learner, spaces: Spaces, source: str, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The learner's tensors with a row for each word or answer, with the rows that `state` of the run has of them.

    Also a line about each list that has changed.
    """
    own, run = learner.state_dict(), configs.run_folder_of(source)
    moved: dict[str, Tensor] = {}
    lines = []
    if source == vocabulary_source(config) and vocabulary_grows(config) and WORDS[0] in state:
        known, now = run_tokenizer(run).vocab_size, len(learner.model.output_bias)
        if now > known:
            lines.append(f"vocabulary  {known:,} -> {now:,} words")
            for name in WORDS:
                if name in state and name in own and state[name].shape == (known, *own[name].shape[1:]):
                    moved[name] = with_rows(own[name], state[name], range(known))
    known_there = read_spaces(run)
    known_there = own_spaces(known_there, config.task.kind) | known_there
    for space, labels_now in spaces.items():
        kind, _, name = space.rpartition("/")  # of a mixture
        names = [f"heads.{kind}.{row}" if kind else row for row in LABELS.get(name, ())]
        before, labels = known_there.get(space), list(labels_now)
        if not before or not labels or before == labels or not any(name in state for name in names):
            continue
        place = {label: number for number, label in enumerate(labels)}
        rows = [number for number, label in enumerate(before) if label in place]
        lines.append(f"{space:<11} {len(before):,} -> {len(labels):,}, {len(rows):,} of them known")
        for name in names:
            if name in state and name in own and state[name].shape == (len(before), *own[name].shape[1:]):
                moved[name] = with_rows(own[name], state[name][rows], [place[before[row]] for row in rows])
    return moved, lines


def _of_another_task(config: TrainRoot) -> list[str]:
    """A line about the options of task and loss that are others than the checkpoint's, where its task is another."""
    source = getattr(config, "checkpoint", None)
    if source is None or (trained := configs.load_run_config(source)).task == config.task:
        return []
    changed = []
    for group in ("task", "loss"):
        then, now = getattr(trained, group), getattr(config, group)
        for field in fields(now):
            before, after = (_shown(getattr(node, field.name, None)) for node in (then, now))
            unused = field.name in (*getattr(then, "unused", ()), *getattr(now, "unused", ()))
            if hasattr(then, field.name) and before != after and not unused:
                name = "" if field.name == "kind" else f"{group}.{field.name} "
                changed.append(f"{name}{before} -> {after}")
    return [f"task        {', '.join(changed)}"] if changed else []


def _shown(value: Any) -> Any:
    return getattr(value, "value", value)


def _in_words(config: TrainRoot, source: str, figure: float) -> str:
    """`best_figure` as a line has it: the task's score, or a loss with its sign changed."""
    score = task_of(configs.load_run_config(source).task).primary
    return f"{score} {figure:.4f}" if figure >= 0 else f"loss {-figure:.4f}"


def same_weights(file: Path, ranks: Ranks) -> tuple[dict[str, Tensor], str]:
    """The tensors and SHA-256 of a run's weights, the same ones on all ranks, which all ask."""
    state, digest = read_weights(file)
    if len(set(ranks.of_all(digest))) > 1:
        raise StageError(f"{file} changed while the processes read it; give the same command again")
    return state, digest


def word_vectors(config: TrainRoot, learner: Learner, tokenizer: Tokenizer) -> list[str]:
    """Start the embedding from text.vectors; a line about it. Call it before trained words take their places."""
    text = config.text
    if not isinstance(text, ScratchTextConfig) or text.vectors is None:
        return []
    known = 0
    if (source := vocabulary_source(config)) is not None:  # trained words come with its weights
        if not vocabulary_grows(config):
            return []
        known = run_tokenizer(configs.run_folder_of(source)).vocab_size
        if known == tokenizer.vocab_size:
            return []
        if not os.path.isfile(text.vectors):
            return [f"note: text.vectors={text.vectors} is not there: the new words start at random"]
    ids, vectors = load_vectors(text.vectors, tokenizer.word_ids, text.width)
    ids, vectors = ids[ids >= known], vectors[ids >= known]
    embedding = learner.model.text.get_submodule("embedding").weight
    assert isinstance(embedding, torch.Tensor)
    if not embedding.is_meta:
        with torch.no_grad():
            embedding[ids] = vectors * EMBEDDING_STD
    return [f"word vectors of {len(ids):,} of {tokenizer.vocab_size - known:,} tokens from {text.vectors}"]


def _left_out(wanted: list[str], fitting: dict[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What is new of the learner, and what of the file it has no place for."""
    new, left = ({_part(name) for name in names if name not in fitting} for names in (wanted, state))
    both = f" (from scratch: {', '.join(sorted(new))})" if new else ""
    return both + (f", left behind: {', '.join(sorted(left))}" if left else "")


def _part(name: str) -> str:
    """The part of the learner that a tensor belongs to."""
    return name.split(".")[1 if name.startswith("model.") else 0]
