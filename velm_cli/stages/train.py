"""train and finetune: from a store to a run folder with weights, curves and scores."""

from __future__ import annotations

from pathlib import Path

import torch

from velm_cli import compose
from velm_cli.data.store import Store, Tokens, store_path
from velm_cli.data.streaming import training_loader
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.engine.checkpoint import Checkpoints, Progress, seed_of
from velm_cli.engine.compiling import as_written, compile_model
from velm_cli.engine.device import pick_precision, prepare
from velm_cli.engine.folder import keep_lines_until, mark, open_run, resize_of, run_path
from velm_cli.engine.loop import Run, fit, is_over
from velm_cli.engine.meter import Meter
from velm_cli.engine.optim import Ema, build_optimizer
from velm_cli.engine.parallel import Replica, load_whole, whole_tensors
from velm_cli.engine.profile import StepProfiler
from velm_cli.engine.ranks import Ranks, together
from velm_cli.engine.signals import Stopped, StopRequest, stop_on_signals
from velm_cli.errors import UserError
from velm_cli.models.hub import load_config
from velm_cli.models.text.scratch import EMBEDDING_STD
from velm_cli.models.text.vectors import load_vectors
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.models.weights import load_state, save_state
from velm_cli.objectives.self_critical import SelfCritical
from velm_cli.objectives.weights import Weight, parse_weight
from velm_cli.observe import Observer
from velm_cli.schema import PretrainedTextConfig, ScratchTextConfig, TextLoss, TokenizerConfig, TokenizerKind, TrainRoot
from velm_cli.stages.encoding import training_views
from velm_cli.stages.headline import headline
from velm_cli.stages.scoring import caption_split, score_and_save, validation_figures
from velm_cli.tasks.caption import CaptionTask


def run(config: TrainRoot) -> float | None:
    """Train, or go on training; returns the best validation CIDEr (None for text-only runs)."""
    store = Store.open(store_path(config.dataset), config.dataset)
    tokenizer = inherited_tokenizer(config)
    if config.dry_run:
        from velm_cli.stages.estimate import estimate

        estimate(config, store, tokenizer)
        return None
    with together(config.run.device) as ranks:
        with ranks.first_goes_first():
            tokens = (
                store.tokens(config.tokenizer)
                if tokenizer is None
                else store.encode(tokenizer, config.tokenizer.max_tokens)
            )
        path = ranks.same(run_path(config))
        config.vision.resize = ranks.same(resize_of(path, config))
        with open_run(path, config, writes=ranks.first), stop_on_signals() as stop:
            return _train(config, store, tokens, path, stop, ranks)


def _train(
    config: TrainRoot, store: Store, tokens: Tokens, path: Path, stop: StopRequest, ranks: Ranks
) -> float | None:
    device = ranks.device
    precision = pick_precision(config.run.precision, device)
    prepare(device, config.run.threads, deterministic=config.run.deterministic)
    torch.manual_seed(config.seed)
    weights = term_weights(config)
    task = build_task(config, store, tokens.tokenizer, weights)
    notes = [*word_vectors(config, task, tokens.tokenizer), *initial_weights(config, task)]
    task.to(device)
    if config.loss.text is TextLoss.self_critical:
        task.critic = critic(config, store, tokens, device)
    try:
        views = training_views(config, store, task, device, precision, ranks, stop)
    except Stopped:
        signal = stop.signal_name or "a signal to another process"
        if ranks.first:
            mark(path, "PREEMPTED", f"{signal} while features were computed")
        print(f"stopped by {signal}; the same command goes on with the next features")
        return None
    compile_model(task.model, config.run.compile, device)
    replica = Replica(task, ranks, config.run.parallel)
    if ranks.rank:  # the weights were the same everywhere; dropout is each rank's own
        torch.manual_seed(seed_of(config.seed, ranks.rank))
    loader = training_loader(
        store,
        tokens,
        config.data,
        max_tokens=config.tokenizer.max_tokens,
        batch_size=config.run.batch_size,
        image_size=config.vision.image_size if task.model.vision else None,
        mean=task.image_mean,
        std=task.image_std,
        resizing=task.image_resizing,
        num_concepts=task.concepts,
        seed=config.seed,
        limit=config.run.overfit_images,
        features=views,
        rank=ranks.rank,
        world=ranks.world,
        even="joint" in weights and not weights["joint"].always_zero,  # it puts the ranks' rows together
    )
    run = Run(
        config=config,
        folder=path,
        task=task,
        ranks=ranks,
        replica=replica,
        checkpoints=Checkpoints(
            path / "checkpoints",
            ranks,
            keep=config.run.keep_checkpoints,
            keep_every=config.run.keep_every,
            background=config.run.async_checkpoints,
        ),
        features=views[0] if views else None,
        optimizer=build_optimizer(task, config.optim),
        ema=Ema(task, config.run.ema_decay) if config.run.ema_decay else None,
        weights=weights,
        own_words=parse_weight("loss.scheduled_sampling", config.loss.scheduled_sampling),
        steps_per_epoch=loader.batches_per_epoch / config.run.accumulation,
        precision=precision,
        progress=Progress(),
        meter=Meter(device, precision),
        profiler=StepProfiler(path / "profile", device) if config.run.profile and ranks.first else None,
    )
    progress, damaged = run.checkpoints.load_newest(task, run.optimizer, run.ema)
    if progress is not None:
        run.progress = progress
        notes = [f"resumed at step {progress.step}"]
    if ranks.first:
        keep_lines_until(path / "metrics.jsonl", run.progress.step)
        tokens.tokenizer.save(path / "tokenizer")
    for line in [*headline(run, store, tokens, loader), *damaged, *notes]:
        print(line, flush=True)

    observer = Observer(
        path if ranks.first else None,
        max_steps=config.run.max_steps,
        step=run.progress.step,
        tensorboard=config.run.tensorboard,
        utilisation=lambda captions_per_s: run.meter.utilisation(captions_per_s / ranks.world),
    )
    if ranks.first and not (path / "metrics.jsonl").stat().st_size:
        sizes = {"parameters": count_parameters(task), "trained": count_parameters(task, trainable=True)}
        observer.record("start", 0, sizes)

    def validate(task: CaptionTask, step: int, stop: StopRequest) -> dict[str, float]:
        with as_written(config.run.compile):
            return validation_figures(run, task, store, tokens, step, stop)

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
            print(f"stopped by {signal} at step {run.progress.step}; the same command goes on from there")
        return run.progress.best
    with as_written(config.run.compile):
        _finish(run, store, tokens)
    return run.progress.best


def _finish(run: Run, store: Store, tokens: Tokens) -> None:
    """Last weights under their final name, the validation split scored with the best ones, DONE."""
    path, config, ranks = run.folder, run.config, run.ranks
    if run.ema is not None:
        run.ema.swap()
    weights = whole_tensors(run.task.state_dict(), ranks)
    if ranks.first:
        save_state(weights, path / "model.safetensors")
    if run.task.generates and store.has_images and len(store.split("val")):
        if (path / "best.safetensors").exists():
            load_whole(run.task, load_state(path / "best.safetensors"))
        run.task.eval()
        with run.replica.undivided() as task:
            captions = caption_split(
                task,
                store,
                tokens.tokenizer,
                store.split("val")[: config.run.validate_images or None],
                decoding=config.decode,
                image_size=config.vision.image_size,
                ranks=ranks,
                precision=run.precision,
                seed=config.seed,
                features=run.features,
            )
        if ranks.first:
            score_and_save(captions, store, config.metrics, path, title=f"{path}  val", trained_on=True)
    if ranks.first:
        mark(path, "DONE")
        print(f"done: {path}")


def term_weights(config: TrainRoot) -> dict[str, Weight]:
    """alpha, beta, gamma by the term that they weigh."""
    loss = config.loss
    return {
        "text": parse_weight("loss.alpha", loss.alpha),
        "image": parse_weight("loss.beta", loss.beta),
        "joint": parse_weight("loss.gamma", loss.gamma),
    }


def build_task(config: TrainRoot, store: Store, tokenizer: Tokenizer, weights: dict[str, Weight]) -> CaptionTask:
    """The model and the objectives that a weight asks for, initialised."""
    model = VelmModel(
        vision=config.vision,
        text=config.text,
        fusion=config.fusion,
        vocab_size=tokenizer.vocab_size,
        causal=config.loss.text is not TextLoss.masked,
    )
    active = frozenset(name for name, weight in weights.items() if not weight.always_zero)
    learned = frozenset(name for name, weight in weights.items() if weight.learned)
    return CaptionTask(
        model,
        config.loss,
        concepts=len(store.concept_names),
        active=active,
        learned=learned,
        mask_id=tokenizer.mask_id,
        never_written=tokenizer.never_written,
    )


def critic(config: TrainRoot, store: Store, tokens: Tokens, device: torch.device) -> SelfCritical:
    """What rewards the captions of training images: CIDEr-D against their own, document frequencies of all."""
    tokenizer = tokens.tokenizer
    ids = tokenizer.word_ids
    words = sorted(ids, key=ids.__getitem__)

    def spelled(caption: int) -> str:
        return " ".join(words[token] for token in tokens.caption(caption))

    records = [int(record) for record in store.split("train")]
    return SelfCritical(
        {record: [spelled(caption) for caption in range(*store.caption_range(record))] for record in records},
        words,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        banned=tokenizer.never_written,
        samples=config.loss.samples,
        max_length=config.decode.max_length,
        device=device,
    )


def inherited_tokenizer(config: TrainRoot) -> Tokenizer | None:
    """The tokenizer that the text encoder brings: its own, or that of the run it is taken from; else None."""
    if isinstance(config.text, PretrainedTextConfig):
        load_config("text", config.text.name)  # or its tokenizer would be missed first, under another option's name
        return Tokenizer.build(TokenizerConfig(kind=TokenizerKind.pretrained, name=config.text.name), [])
    source = config.init.text or getattr(config, "checkpoint", None)
    if source is None:
        return None
    return Tokenizer.load(compose.run_folder_of(source) / "tokenizer")


def initial_weights(config: TrainRoot, task: CaptionTask) -> list[str]:
    """Take over weights as `checkpoint`, `init.vision` and `init.text` say; a line about each."""
    notes = []
    checkpoint = getattr(config, "checkpoint", None)
    sources = [("checkpoint", checkpoint, ""), ("init.vision", config.init.vision, "model.vision.")]
    sources.append(("init.text", config.init.text, "model.text."))
    own = task.state_dict()
    for key, source, prefix in sources:
        if source is None:
            continue
        state = load_state(weight_file(source))
        fitting = {
            name: tensor
            for name, tensor in state.items()
            if name.startswith(prefix) and name in own and own[name].shape == tensor.shape
        }
        wanted = [name for name in own if name.startswith(prefix)]
        if not fitting:
            raise UserError(f"{key}={source}: none of its weights fit this model's {prefix or 'parts'}")
        task.load_state_dict(fitting, strict=False)
        notes.append(f"weights from {source}: {len(fitting)} of {len(wanted)} tensors{_left_out(wanted, fitting)}")
    return notes


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


def weight_file(source: str) -> Path:
    """The weights that a run folder stands for: the best if there are any, else the last."""
    path = Path(source)
    if path.suffix == ".safetensors":
        return path
    folder = compose.run_folder_of(source)
    for name in ("best.safetensors", "model.safetensors"):
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has no weights yet (neither best.safetensors nor model.safetensors)")


def _left_out(wanted: list[str], fitting: dict) -> str:
    missing = sorted({name.split(".")[1 if name.startswith("model.") else 0] for name in wanted if name not in fitting})
    return f" (from scratch: {', '.join(missing)})" if missing else ""
