"""train and finetune: from a store to a run folder with weights, curves and scores."""

from __future__ import annotations

import torch

from velm_cli.configs import flat
from velm_cli.data.store import Store, Tokens
from velm_cli.data.together import Together
from velm_cli.engine.checkpoint import Checkpoints
from velm_cli.engine.compiling import as_written, compile_model
from velm_cli.engine.device import PRODUCTS, pick_precision, prepare
from velm_cli.engine.folder import (
    OpenRun,
    again,
    keep_lines_until,
    mark,
    open_run,
    resize_of,
    run_path,
)
from velm_cli.engine.loop import Run, Validation, fit, is_over
from velm_cli.engine.meter import Meter
from velm_cli.engine.narrowing import narrow_frozen
from velm_cli.engine.optim import Ema, build_optimizer
from velm_cli.engine.parallel import Replica, load_whole
from velm_cli.engine.profile import StepProfiler
from velm_cli.engine.progress import Progress
from velm_cli.engine.ranks import Ranks, together
from velm_cli.engine.recomputing import checkpoint_activations
from velm_cli.engine.signals import Stopped, StopRequest, stop_on_signals
from velm_cli.engine.snapshot import seed_of
from velm_cli.learners.interface import Learner
from velm_cli.learners.writing import WritingLearner
from velm_cli.lineage import (
    complete_sources,
    identity_of,
    write_sources,
)
from velm_cli.models.quantized import is_packed, pack_frozen
from velm_cli.models.velm import count_parameters
from velm_cli.models.weights import read_state
from velm_cli.objectives.self_critical import SelfCritical
from velm_cli.observe import Observer
from velm_cli.schema import FrozenDtype, Precision, TextLoss, TrainRoot
from velm_cli.stages.blinding import masked
from velm_cli.stages.encoding import training_views
from velm_cli.stages.fitting import refuse_unfit
from velm_cli.stages.headline import headline
from velm_cli.stages.parts import Material, Part, material_of, open_data
from velm_cli.stages.predicting import predict_split, predicts, score_and_save, validated
from velm_cli.stages.resuming import checked_to_go_on
from velm_cli.stages.starting import (
    built,
    inherited_tokenizer,
    initial_weights,
    keep_models,
    keepers,
    new_learner,
    same_weights,
    word_vectors,
)
from velm_cli.stages.task_data import made_of
from velm_cli.tasks.spaces import write_spaces
from velm_cli.trackers import Trackers

PARTS = "parts"  # in a mixture's run folder: what each part scored


def run(config: TrainRoot) -> float | None:
    """Train, or go on training; returns the best validation CIDEr (None for text-only runs)."""
    store = open_data(config)
    tokenizer = inherited_tokenizer(config, store, run_path(config))
    if config.dry_run:
        if isinstance(store, Together):
            from velm_cli.stages.estimate_mixture import estimate_mixture

            estimate_mixture(config, store, tokenizer)
            return None
        from velm_cli.stages.estimate import estimate

        estimate(config, store, tokenizer)
        return None
    with together(config.run.device) as ranks:
        with ranks.first_goes_first():
            data = material_of(config, store, tokenizer)
        refuse_unfit(data)
        path = ranks.same(run_path(config))
        config.vision.resize = ranks.same(resize_of(path, config))
        checkpoints = Checkpoints(
            path / "checkpoints",
            ranks,
            keep=config.run.keep_checkpoints,
            keep_every=config.run.keep_every,
            background=config.run.async_checkpoints,
            run=ranks.same(identity_of(path, config)),
            made_of=made_of(store.hash, [part.data for part in data.parts]),
        )
        notes: list[str] = []

        def check() -> None:
            notes.extend(checked_to_go_on(path, config, store, checkpoints))

        with (
            open_run(path, config, writes=ranks.first, check=check) as opened,
            stop_on_signals() as stop,
            Trackers() as trackers,
        ):
            return _train(config, data, opened, checkpoints, stop, ranks, notes, trackers)


def _train(
    config: TrainRoot,
    data: Material,
    opened: OpenRun,
    checkpoints: Checkpoints,
    stop: StopRequest,
    ranks: Ranks,
    of_resuming: list[str],
    trackers: Trackers,
) -> float | None:
    """`of_resuming`: lines about how the run goes on, if it does."""
    device, path = ranks.device, opened.path
    precision = pick_precision(config.run.precision, device)
    prepare(device, config.run.threads, deterministic=config.run.deterministic)
    torch.manual_seed(config.seed)
    task, store, tokenizer = data.task, data.store, data.tokenizer
    keeper = keepers(config, path if ranks.same(checkpoints.found) else None)
    learner = built(config, lambda config: new_learner(config, data.spaces, tokenizer), keeper)
    notes = word_vectors(config, learner, tokenizer)
    sources, lines = initial_weights(config, learner, data.spaces, lambda file: same_weights(file, ranks))
    notes += lines
    learner.to(device)
    if config.loss.text is TextLoss.self_critical:
        assert isinstance(learner, WritingLearner)
        learner.critic = critic(config, data.only.store, data.only.texts, device)
    try:
        for part in data.parts:
            part.views = training_views(part.config, part.data.store, learner, device, precision, ranks, stop)
    except Stopped:
        signal = stop.signal_name or "a signal to another process"
        if ranks.first:
            mark(path, "PREEMPTED", f"{signal} while features were computed")
        print(f"stopped by {signal}; {again(config, path)} goes on with the next features")
        return None
    kept = checkpoints.keep_frozen(learner)
    if config.run.frozen_dtype is FrozenDtype.auto and precision is not Precision.fp32:
        narrow_frozen(learner.model, kept, PRODUCTS[precision])
    if config.run.checkpoint_activations:
        checkpoint_activations(learner.model)
    compile_model(learner.model, config.run.compile, device)
    replica = Replica(learner, ranks, config.run.parallel)
    if ranks.rank:  # the weights were the same everywhere; dropout is each rank's own
        torch.manual_seed(seed_of(config.seed, ranks.rank))
    loader = data.loader(learner, ranks.rank, ranks.world)
    run = Run(
        config=config,
        opened=opened,
        learner=learner,
        ranks=ranks,
        replica=replica,
        checkpoints=checkpoints,
        optimizer=build_optimizer(learner, config.optim),
        ema=Ema(learner, config.run.ema_decay) if config.run.ema_decay else None,
        steps_per_epoch=loader.batches_per_epoch / config.run.accumulation,
        precision=precision,
        progress=Progress(),
        meter=Meter(device, precision),
        profiler=StepProfiler(path / "profile", device) if config.run.profile and ranks.first else None,
    )
    progress, damaged = run.checkpoints.load_newest(learner, run.optimizer, run.ema)
    if progress is not None:
        run.progress = progress
        notes = [f"resumed at step {progress.step}", *of_resuming]
    if ranks.first:
        note = write_sources if progress is None else complete_sources
        note(path, sources, store.hash, tokenizer.digest, checkpoints.run or "")
        keep_models(config, path, keeper)
        keep_lines_until(path / "metrics.jsonl", run.progress.step)
        tokenizer.save(path / "tokenizer")
        write_spaces(path, {name: data.spaces[name] for name in data.predicted})
    for line in [*headline(run, data, loader), *damaged, *notes]:
        print(line, flush=True)
    if ranks.first:
        trackers.begin(path, config.run, flat(config), lambda line: print(line, flush=True))

    observer = Observer(
        path if ranks.first else None,
        max_steps=config.run.max_steps,
        step=run.progress.step,
        utilisation=lambda captions_per_s: run.meter.utilisation(captions_per_s / ranks.world),
        target=task.target,
        trackers=trackers,
    )
    if ranks.first and not (path / "metrics.jsonl").stat().st_size:
        sizes = {"parameters": count_parameters(learner), "trained": count_parameters(learner, trainable=True)}
        observer.record("start", 0, sizes)

    if is_packed(config.text):
        pack_frozen(learner.model.text)  # behind all that reads the weights as they are

    def validate(learner: Learner, step: int, stop: StopRequest) -> Validation:
        with as_written(config.run.compile):
            return validated(run, data, learner, step, stop)

    batches = loader.batches(start=run.progress.step * config.run.accumulation)
    try:
        fit(
            run,
            batches,
            validate=validate,
            observer=observer,
            stop=stop,
        )
    finally:
        batches.close()
        if run.profiler is not None:
            run.profiler.finish()
            print(f"profile     {run.profiler.outcome}")
        observer.close()
    if not is_over(run):
        if ranks.first:
            signal = stop.signal_name or "a signal to another process"
            mark(path, "PREEMPTED", f"{signal} at step {run.progress.step}")
            print(f"stopped by {signal} at step {run.progress.step}; {again(config, path)} goes on from there")
        return run.progress.best
    with as_written(config.run.compile):
        _finish(run, data, trackers)
    return run.progress.best


def _finish(run: Run, data: Material, trackers: Trackers) -> None:
    """Last weights under their final name, the validation split scored with the best ones, DONE."""
    path, ranks = run.folder, run.ranks
    run.opened.refuse_if_gone()
    if run.ema is not None:
        run.ema.swap()
    run.checkpoints.save_weights(run.learner, path / "model.safetensors")
    scored = [part for part in data.parts if _is_scored(run, part)]
    if scored:
        if (path / "best.safetensors").exists():
            best, _ = read_state(path / "best.safetensors", run.checkpoints.run)
            own = run.learner.state_dict()  # without what lies in 4 bits
            load_whole(run.learner, {name: tensor for name, tensor in best.items() if name in own})
        run.learner.eval()
    for part in scored:
        _score(run, part, trackers)
    if ranks.first:
        run.opened.refuse_if_gone()
        mark(path, "DONE")
        trackers.outcome = "done"
        print(f"done: {path}")


def _is_scored(run: Run, part: Part) -> bool:
    """Whether there are validation examples of it, and something to predict of them."""
    store = part.data.store
    able = predicts(part.data.task, part.config, run.learner.of(part.name))
    return able and (store.has_images or part.data.task.needs.source) and len(store.split("val")) > 0


def _score(run: Run, part: Part, trackers: Trackers) -> None:
    """Predictions and scores of its validation examples; those of a mixture in a folder of the part."""
    config, store = part.config, part.data.store
    indices = store.split("val")[: config.run.validate_images or None]
    with run.replica.undivided() as learner:
        predicted = predict_split(
            part.data,
            learner.of(part.name),
            indices,
            decoding=config.decode,
            ranks=run.ranks,
            precision=run.precision,
            seed=config.seed,
            features=part.features,
        )
    if not run.ranks.first:
        return
    folder = run.folder / PARTS / part.name if part.name else run.folder
    title = f"{run.folder}  {f'{part.name} ' if part.name else ''}val"
    scores = score_and_save(
        part.data.task,
        predicted,
        store,
        indices,
        config.metrics,
        folder,
        title=title,
        trained_on=True,
        told=masked(config),
    )
    if scores is not None:
        found = {f"{part.name}/{name}" if part.name else name: value for name, value in scores.corpus.items()}
        trackers.log("scores", run.progress.step, found)


def critic(config: TrainRoot, store: Store, tokens: Tokens, device: torch.device) -> SelfCritical:
    """What rewards the captions of training images: CIDEr-D against their own, document frequencies of all."""
    tokenizer = tokens.tokenizer
    ids = tokenizer.word_ids
    words = sorted(ids, key=ids.__getitem__)

    def spelled(caption: int) -> str:
        return " ".join(words[token] for token in tokens.caption(caption))

    records = [int(record) for record in store.split("train")]
    return SelfCritical(
        {record: [spelled(caption) for caption in range(*store.target_range(record))] for record in records},
        words,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        banned=tokenizer.never_written,
        samples=config.loss.samples,
        max_length=config.decode.max_length,
        device=device,
    )
