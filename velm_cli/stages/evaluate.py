"""evaluate: caption a split with a trained model, score the captions, print one table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from velm_cli import configs, naming
from velm_cli.data.store import Store, store_path
from velm_cli.engine.device import pick_precision, prepare
from velm_cli.engine.folder import again, mark, open_run, run_path
from velm_cli.engine.ranks import Ranks, together
from velm_cli.engine.signals import Stopped, stop_on_signals
from velm_cli.errors import StageError, UserError
from velm_cli.files import read_sealed, sealed, sha256, write_json
from velm_cli.lineage import noted_store, weight_file
from velm_cli.loading import KEPT, run_tokenizer, trained_learner, with_kept_models
from velm_cli.metrics.scores import missing_scores, read_summary, scores_of_summary, table
from velm_cli.metrics.submission import COCO_SPLITS, pack_submission, split_of, submission_file, write_submission
from velm_cli.schema import EvaluateRoot, Submission, TrainRoot
from velm_cli.stages.encoding import cached_features
from velm_cli.stages.fitting import evaluation_notes, refuse_unfit_evaluation
from velm_cli.stages.opening import opened_judge, opened_run
from velm_cli.stages.predicting import predict_split, score_and_save
from velm_cli.stages.showing import write_report
from velm_cli.stages.starting import open_store, same_weights
from velm_cli.stages.task_data import TaskData
from velm_cli.tasks import Task, task_of
from velm_cli.tasks.interface import ExampleId
from velm_cli.tasks.spaces import read_spaces

OPTIONS_OF_AN_EVALUATION = ("split", "limit", "seed", "dataset", "decode", "metrics", "eval")


def run(config: EvaluateRoot) -> float | None:
    """Returns the CIDEr (None if it was not asked for)."""
    home = configs.run_folder_of(config.checkpoint)
    trained = _with_models(config, configs.load_run_config(config.checkpoint), home)
    task = task_of(trained.task)
    if not _is_learned(task, trained):
        raise UserError(task.why_not_learned(trained, home))
    weights = weight_file(config.checkpoint)
    store = open_store(config)
    indices = _indices(config, store)
    submission = _submission(config, len(indices))
    refuse_unfit_evaluation(config, store, indices)
    if config.name is None:
        config.name = _default_name(config, trained)
    if config.dry_run:
        folder = configs.run_folder_of(config.checkpoint)
        lines = [*opened_run(trained, folder, weights), *opened_judge(config.metrics.clip)]
        print(f"would {task.verb} {len(indices):,} {task.unit}s of {store.path} with {weights}")
        for line in (*lines, *evaluation_notes(config, store, indices)):
            print(line)
        return None
    then = noted_store(home)
    if then not in (None, store.hash) and store_path(config.dataset) == store_path(trained.dataset):
        print(f"note: {store.path} has other data now ({store.hash[:12]}) than when {home} was trained ({then[:12]})")
    with together(config.run.device) as ranks:
        state, digest = same_weights(weights, ranks)
        about = {"file": str(weights), "sha256": digest, "data": store.hash}
        if config.metrics.df not in ("corpus", "coco") and "cider" in config.metrics.names:
            about["df"] = sha256(Path(config.metrics.df))
        path = ranks.same(_result_path(config, about))
        if (path / "DONE").exists():
            return _report_again(path)
        return _evaluate(config, trained, task, store, indices, path, ranks, about, state, submission)


def _evaluate(
    config: EvaluateRoot,
    trained: TrainRoot,
    task: Task[Any],
    store: Store,
    indices: np.ndarray,
    path: Path,
    ranks: Ranks,
    about: dict[str, str],
    state: dict[str, Tensor],
    submission: tuple[str, Path] | None,
) -> float | None:
    """Predict on all ranks; score and write on the first."""
    device = ranks.device
    precision = pick_precision(config.run.precision, device)
    prepare(device, config.run.threads, deterministic=config.run.deterministic)
    print(f"weights     {about['file']}\ndata        {store.path}  {config.split}  {len(indices):,} {task.unit}s")
    with open_run(path, config, writes=ranks.first) as opened, stop_on_signals() as stop:
        if ranks.first:
            write_json(path / "weights.json", sealed(about))
        home, file = configs.run_folder_of(config.checkpoint), Path(about["file"])
        tokenizer = run_tokenizer(home)
        learner = trained_learner(trained, task, tokenizer, home, file, state).to(device)
        for note in learner.pixels.resizing.enlarges(store.image_size, learner.pixels.size) if learner.pixels else ():
            print(note)
        predicted: dict[ExampleId, Any] = {}
        features = None
        with contextlib.suppress(Stopped):
            features = cached_features(trained, store, indices, learner, device, precision, ranks, stop)
        if not ranks.any_stopped(stop):
            predicted = predict_split(
                TaskData.to_predict(trained, task, store, tokenizer, read_spaces(home)),
                learner,
                indices,
                decoding=config.decode,
                ranks=ranks,
                precision=precision,
                seed=config.seed,
                stop=stop,
                features=features,
            )
        stopped = ranks.any_stopped(stop)
        if not ranks.first:
            return None
        opened.refuse_if_gone()
        if stopped:
            signal = stop.signal_name or "a signal to another process"
            mark(path, "PREEMPTED", f"{signal} after {len(predicted)} {task.unit}s")
            print(f"stopped by {signal}; {again(config, path)} starts this evaluation again")
            return None
        if submission:
            _submit(config, submission, predicted)
        scores = score_and_save(
            task,
            predicted,
            store,
            indices,
            config.metrics,
            path,
            title=f"{config.checkpoint}  {config.split}",
            trained_on=_trained_on(store, trained, home),
            weights=about["sha256"],
        )
        facts = task.further(config, predicted, path)
        if config.report.page and scores:
            page = write_report(
                path,
                scores,
                store,
                learner,
                tokenizer,
                np.array([index for index in indices if store.example_id(int(index)) in scores.per_image]),
                predicted,
                attention=config.report.attention if task.kind == "caption" else 0,
                features=features,
                facts=facts,
            )
            print(f"report      {page}")
        opened.refuse_if_gone()
        mark(path, "DONE")
    print(f"done: {path}")
    if scores is None:
        return None
    if missing := missing_scores(scores, config.metrics.required):
        raise StageError(f"metrics.required: not computed: {missing}")
    return scores.headline


def _is_learned(task: Task[Any], config: TrainRoot) -> bool:
    """Whether the run, or one that it was finetuned from, learned what the task predicts; True where those are gone."""
    seen: set[str] = set()
    while not task.is_learned(config):
        source = getattr(config, "checkpoint", None)
        if source is None or source in seen:
            return False
        seen.add(source)
        try:
            config = configs.load_run_config(source)
        except UserError:
            return True
    return True


def _submission(config: EvaluateRoot, images: int) -> tuple[str, Path] | None:
    """The server's name of the split and the folder for its file; what cannot be submitted is refused here."""
    server = config.eval.submit
    if server is Submission.none:
        return None
    split = split_of(server.value, images)
    folder = Path(config.run.dir) / "submit" / configs.run_folder_of(config.checkpoint).name
    submission_file(folder, split, config.eval.system)
    return split, folder


def _submit(config: EvaluateRoot, submission: tuple[str, Path], captions: dict[ExampleId, str]) -> None:
    """Writes the file for the server; COCO's takes two, which are packed as soon as both are there."""
    split, folder = submission
    print(f"to submit   {write_submission(folder, split, config.eval.system, captions, None)}")
    if split in COCO_SPLITS:
        missing = [other for other in COCO_SPLITS if not submission_file(folder, other, config.eval.system).exists()]
        if missing:
            print(f"note: COCO's server takes both splits in one archive: caption {missing[0]} too")
        else:
            print(f"to submit   {pack_submission(folder, config.eval.system)}")


def _indices(config: EvaluateRoot, store: Store):
    counts = ", ".join(f"{name} {count:,}" for name, count in store.counts.items())
    if config.split not in store.counts:
        raise UserError(f"split={config.split}: the data set has {counts}")
    if not store.has_images:
        raise UserError(f"{store.path} holds captions only (dataset.images=false); nothing to caption")
    indices = store.split(config.split)
    if not len(indices):
        raise UserError(f"split={config.split} has no images; {store.path} has {counts}")
    return indices[: config.limit or None]


def _default_name(config: EvaluateRoot, trained: TrainRoot) -> str:
    dataset, decode = config.dataset, config.decode
    how = "greedy" if decode.beams == 1 else f"beam{decode.beams}"
    if decode.method.value == "nucleus":
        how = f"nucleus{decode.top_p:g}-seed{config.seed}"
    limit = f"-first{config.limit}" if config.limit else ""
    data = dataset.kind
    if dataset.store is not None and store_path(dataset) != store_path(trained.dataset):
        data += f"-{naming.short_name(dataset.store)}"
    return naming.slug(f"{naming.checkpoint_name(config.checkpoint)}-{data}-{config.split}{limit}-{how}")


def _with_models(config: EvaluateRoot, trained: TrainRoot, home: Path) -> TrainRoot:
    """The config of the run; its pretrained models where the command says, else where the run keeps their configs."""
    trained = with_kept_models(trained, dict.fromkeys(KEPT, home))
    for group in KEPT:
        if (name := getattr(config, group).name) is None:
            continue
        node = getattr(trained, group)
        if not hasattr(node, "name"):
            raise UserError(f"{group}.name={name} has no effect: {home} has {group}={node.kind}; leave it out")
        node.name = name
    return trained


def _trained_on(store: Store, trained: TrainRoot, home: Path) -> bool:
    """Whether this is the store that the run was trained on; where an older velm noted none, by its path."""
    then = noted_store(home)
    return store_path(trained.dataset) == store.path if then is None else then == store.hash


def _result_path(config: EvaluateRoot, about: dict[str, str]) -> Path:
    """The evaluation's folder; a new one where the old is of other weights, data or options: nothing is overwritten."""
    path = run_path(config)
    number = 2
    while (path / "DONE").exists() and _holds_another(path, config, about):
        path = path.with_name(f"{config.name}.{number}")
        number += 1
    return path


def _holds_another(path: Path, config: EvaluateRoot, about: dict[str, str]) -> bool:
    """Whether the finished evaluation in `path` is of other weights, data, decoding or metrics."""
    before = _read(path, lambda: read_sealed(path / "weights.json"))
    saved = configs.read_config(path / "config.yaml")
    differs = any(key in saved and _differs(saved[key], getattr(config, key)) for key in OPTIONS_OF_AN_EVALUATION)
    # An older velm's does not say of which data it is.
    other_data = any(before.get(key, about.get(key)) != about.get(key) for key in ("data", "df"))
    return before.get("sha256") != about["sha256"] or other_data or differs


def _differs(saved: Any, asked: Any) -> bool:
    """Whether the saved value of an option, or of a group of options, is another; what its velm did not have yet is
    as the default."""
    if not isinstance(saved, DictConfig):
        return bool(saved != asked)
    usual, plain = (OmegaConf.create(configs.to_yaml(value)) for value in (type(asked)(), asked))
    return bool(OmegaConf.merge(usual, saved) != plain)


def _report_again(path: Path) -> float | None:
    if not (path / "scores.json").exists():
        print(f"{path} is complete (fresh=true captions again): {path / 'predictions.json'}")
        return None
    saved = _read(path, lambda: read_summary(path))
    scores = scores_of_summary(saved)
    print(f"{path} is complete (fresh=true evaluates again)\n{table(scores)}")
    return scores.headline


def _read(path: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except PermissionError as error:  # nothing is wrong with what may not be read
        raise UserError(f"{error.filename}: {error.strerror}; make it readable") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); evaluate again with fresh=true") from error
