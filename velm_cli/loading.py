"""A trained model from its run folder: learner, tokenizer and config. No store, no Hydra, no engine.

What evaluates a run and what uses it elsewhere (`inference/`) both begin here. Raises UserError for whatever the user
can mend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from velm_cli import configs, exported
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.learners.interface import Learner
from velm_cli.lineage import averaged, joined, noted_identity, refuse_other_tokenizer
from velm_cli.models.kept import refuse_damaged
from velm_cli.models.quantized import is_packed, rounded
from velm_cli.models.weights import Undrawn, fitted, read_state, refuse_not_finite
from velm_cli.objectives.weights import constant
from velm_cli.schema import PretrainedTextConfig, TrainRoot
from velm_cli.tasks import Task
from velm_cli.tasks.mix import learner_to_predict, own_spaces, weights_of_task
from velm_cli.tasks.spaces import FILE, read_spaces

KEPT = ("vision", "text")  # groups whose pretrained models a run folder keeps the small files of


def run_config(checkpoint: str | Path) -> TrainRoot:
    """The config that a run was trained with; its pretrained models where the run folder keeps their small files."""
    home = configs.run_folder_of(checkpoint)
    return with_kept_models(configs.load_run_config(checkpoint), dict.fromkeys(KEPT, home))


def with_kept_models(config: TrainRoot, keepers: Mapping[str, Path]) -> TrainRoot:
    """The config with its pretrained models in the run folders that keep them."""
    named = {}
    for group, run in keepers.items():
        node = getattr(config, group)
        if hasattr(node, "name") and (run / group / "config.json").is_file():
            named[group] = replace(node, name=str(run / group))
    return replace(config, **named)


def run_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run folder. UserError when it is not the one that the weights were trained with."""
    tokenizer = Tokenizer.load(run / "tokenizer")
    refuse_other_tokenizer(run, tokenizer.digest, "put back the one that the run has saved")
    return tokenizer


def run_spaces(run: Path, task: Task) -> dict[str, list[str]]:
    """The label spaces of a run folder. UserError where one is missing that the task predicts with."""
    spaces = read_spaces(run)
    spaces |= own_spaces(spaces, task.kind)  # of a mixture
    if missing := [name for name in task.predicted if name not in spaces]:
        raise UserError(f"{run / FILE} is missing, or has no {missing[0]}: put back the one that the run has saved")
    return spaces


def has_learned(task: Task, config: TrainRoot, home: Path) -> bool:
    """Whether the run in the folder `home`, or one that it was finetuned from, learned what the task predicts; True
    where those are gone. An exported folder says it itself."""
    seen: set[str] = set()
    kind = config.task.kind
    while not task.is_learned(config):
        if (learned := exported.learned_in(home)) is not None:
            return task.kind in learned
        source = getattr(config, "checkpoint", None)
        if source is None or source in seen or config.task.kind != kind:
            return False
        seen.add(source)
        try:
            config, home = configs.load_run_config(source), configs.run_folder_of(source)
        except UserError:
            return True
    return config.task.kind == kind  # what was learned for another task has other layers


def read_weights(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a run's weights and their SHA-256.

    Of a kept checkpoint those that best.safetensors would have: the averaged ones, where there is an average.
    """
    step = configs.step_folder_of(file)
    if step is None:
        return read_state(file, noted_identity(file.parent))
    refuse_damaged(step, noted_identity(step.parent.parent))
    state, digest = read_state(file)
    if (average := averaged(file)) is not None:
        more, of_average = read_state(average)
        state, digest = state | more, joined([digest, of_average])
    return state, digest


def trained_learner(
    config: TrainRoot,
    task: Task,
    tokenizer: Tokenizer,
    run: Path,
    file: Path,
    state: Mapping[str, Tensor],
    *,
    terms: frozenset[str] | None = None,
) -> Learner:
    """The learner with the weights `state`, which were read from `file` in the folder `run`; in evaluation mode.

    Of its objectives' own layers it has those of `terms`: if not given, those that the task predicts with. `config` is
    changed where it names weights that `state` replaces.
    """
    terms = task.predicts_with(config) if terms is None else terms
    if isinstance(config.text, PretrainedTextConfig):
        config.text.weights = "none"  # they are in the file
    with Undrawn():
        learner = learner_to_predict(config, task, run_spaces(run, task), tokenizer, constant(*terms))
    state = weights_of_task(config, task.kind, state)
    if is_packed(config.text):
        state = rounded(state, learner.model.text)
    if line := task.cannot_predict(learner, config, run):
        raise UserError(line)
    own = learner.state_dict()
    wanted = {name: tensor for name, tensor in state.items() if name.startswith("model.") or name in own}
    try:
        # What does not fit is left to torch, which says why.
        learner.load_state_dict(wanted | fitted(wanted, own, file), assign=True)
    except RuntimeError as error:
        raise UserError(f"{file} does not fit the config next to it: {str(error).splitlines()[1].strip()}") from error
    refuse_not_finite(learner, file)
    return learner.eval()
