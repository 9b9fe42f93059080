"""dry_run=true of a mixture: every part checked and costed as a run on it alone is, the time by their shares."""

from __future__ import annotations

import torch

from velm_cli.data.together import Together
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.engine.device import pick_device, pick_precision, prepare
from velm_cli.engine.meter import matrix_peak
from velm_cli.errors import UserError
from velm_cli.models.velm import count_parameters
from velm_cli.schema import FeatureCaching, TrainRoot
from velm_cli.stages.estimate import REACHED, duration, encoding, mean_length, one_step
from velm_cli.stages.estimate_memory import Memory, parameters_by_part
from velm_cli.stages.fitting import loader_of, notes, problems
from velm_cli.stages.headline import said_of_parts
from velm_cli.stages.opening import opened_files
from velm_cli.stages.parts import material_of
from velm_cli.stages.resuming import would_find
from velm_cli.stages.starting import built, keepers, new_learner


def estimate_mixture(config: TrainRoot, store: Together, tokenizer: Tokenizer | None) -> None:
    """Print parameters, what a batch of each part costs, and the time; train nothing."""
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    prepare(device, config.run.threads)
    data = material_of(config, store, tokenizer)
    faults = [part.says(line) for part in data.parts for line in problems(part.config, part.data)]
    said: list[str] = []
    try:
        with torch.device("meta"):
            keeper = keepers(config, None)
            learner = built(config, lambda config: new_learner(config, data.spaces, data.tokenizer), keeper).train()
        said += opened_files(config, learner, data.spaces, data.tokenizer)
        said += would_find(config, store, [part.data for part in data.parts])
    except UserError as error:
        faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    peak = REACHED * matrix_peak(device, precision)
    trainable, total = count_parameters(learner, trainable=True), count_parameters(learner)
    most = 0  # activations
    print("dry run: the config is valid; nothing was trained")
    print(f"{'parameters':<14}{total:,} ({trainable:,} trained)")
    for label, value in parameters_by_part(learner):
        print(f"{label:<14}{value}")
    weights = sum(part.weight for part in data.parts)
    seconds = 0.0
    noted: dict[str, list[str]] = {}
    for part in data.parts:
        own, unit = part.data, part.data.task.unit
        loader = loader_of(part.config, own)
        length = round(mean_length(own.store, own.texts))
        flops, activations = one_step(learner.of(part.name), part.config, own, loader.captions_per_image, length)
        share, most = part.weight / weights, max(most, activations)
        seconds += config.run.max_steps * config.run.accumulation * share * flops / peak
        if config.data.cache is not FeatureCaching.none:
            seconds += encoding(learner, part.config, own.store)[0] / peak
        print(
            f"{f'  {part.name}':<14}{own.task.kind}, {own.store.counts['train']:,} {unit}s, {share:.1%} of batches, "
            f"{part.config.run.batch_size} each, {flops / 1e9:,.1f} GFLOP, activations {activations / 2**20:,.0f} MiB"
        )
        noted[part.name] = list(notes(part.config, own, loader))
    for label, value in Memory.of(learner, config.run, precision, most).rows():
        print(f"{label:<14}{value}")
    print(f"{'time':<14}about {duration(seconds)} for {config.run.max_steps:,} steps on {device}, without validation")
    for line in [*said, *said_of_parts(noted)]:
        print(line)
