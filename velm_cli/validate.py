"""Cross-field rules: what each option's type cannot say. All problems are reported at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from velm_cli import schema
from velm_cli.errors import UserError, did_you_mean, without_effect
from velm_cli.mixture import is_mixture, parts_of
from velm_cli.models.freezing import is_freeze
from velm_cli.models.rules import token_problems
from velm_cli.models.update_rules import update_problems
from velm_cli.objectives.rules import objective_problems
from velm_cli.objectives.weights import parse_weight
from velm_cli.place import place
from velm_cli.schema.bounds import out_of_bounds
from velm_cli.tasks import task_of
from velm_cli.trackers import missing

TORCHVISION_FAMILIES = ("resnet", "vgg", "squeezenet", "convnext", "efficientnet", "swin", "vit_")


def validate(config: Any) -> None:
    """Raise one UserError with a line for every problem of `config`: what is wrong and what to do."""
    beyond = list(out_of_bounds(config))
    problems: list[str] = []
    try:
        problems += _problems(config)
    except ArithmeticError:  # the rules reckon with numbers that are within their bounds
        if not beyond:
            raise
    if problems := list(dict.fromkeys([*problems, *beyond])):
        raise UserError("\n".join(problems))


def _problems(config: Any) -> Iterator[str]:
    if (world := place().world) > 1 and not isinstance(config, (schema.TrainRoot, schema.EvaluateRoot)):
        yield f"velm {config.stage} is one process, and {world} were started: start it without torchrun or srun"
    if isinstance(config, schema.DoctorRoot):
        if config.fix not in (None, "spice"):
            yield f"doctor fix={config.fix}: nothing known by that name; spice is"
        return
    if isinstance(config, (schema.SearchRoot, schema.ServeRoot)):
        return
    if isinstance(config, schema.UseRoot):
        yield from _decode(config.decode)
        if isinstance(config, schema.AnswerRoot) and config.decode.samples > 1:
            yield f"decode.samples={config.decode.samples}: a question gets one answer; probabilities=N shows more"
        return
    if isinstance(config, schema.ExportRoot):
        if config.dtype.value != "fp32" and config.format.value != "velm":
            yield f"dtype={config.dtype.value} is for format=velm: format={config.format.value} is written as fp32"
        return
    if isinstance(config, schema.ScoreRoot):
        yield from _metrics(config.metrics)
        if config.metrics.clip is not None and config.images is None:
            yield f"metrics.clip={config.metrics.clip} looks at the images: say where they are (images=FOLDER)"
        if config.images is not None and config.metrics.clip is None and config.out is None:
            yield f"images={config.images} is for the page in out=FOLDER and for metrics.clip=FOLDER: give one of them"
        return
    yield from _dataset(config.dataset)
    # Later stages work from the store alone, so that a run can be taken to a machine without the root.
    if type(config) in (schema.PreprocessRoot, schema.TrainRoot) and getattr(config, "config", None) is None:
        yield from _root(config.dataset)
    if isinstance(config, (schema.PreprocessRoot, schema.TrainRoot)):
        yield from _tokenizer(config.tokenizer)
    if isinstance(config, schema.PreprocessRoot):
        yield from _preprocess(config.preprocess, config.dataset)
        if config.preview and not config.dataset.images:
            yield "preview=true shows images, and dataset.images=false has none"
        return
    yield from _decode(config.decode)
    if config.decode.samples > 1 and isinstance(config.task, (schema.VqaTaskConfig, schema.ChatTaskConfig)):
        kind = config.task.kind
        yield f"decode.samples={config.decode.samples}: task={kind} gives one answer to a question; leave it out"
    yield from _metrics(config.metrics)
    yield from _threads(config.run)
    if isinstance(config, schema.TrainRoot):
        yield from model_problems(config)


def _root(dataset: schema.DatasetConfig) -> Iterator[str]:
    if dataset.root is not None and not isinstance(dataset, schema.ShapesConfig):
        from velm_cli.data.readers import check_root

        try:
            check_root(dataset)
        except UserError as error:
            yield str(error)


def _dataset(dataset: schema.DatasetConfig) -> Iterator[str]:
    if isinstance(dataset, schema.WebDatasetConfig) and not dataset.images:
        yield "dataset.images=false: dataset=webdataset streams images; text alone is trained from other data sets"
    if isinstance(dataset, schema.FlickrConfig) and dataset.release not in ("flickr8k", "flickr30k"):
        yield f"dataset.release={dataset.release}: flickr8k or flickr30k"
    if (
        isinstance(dataset, (schema.OwnDataConfig, schema.VgConfig, schema.ChatConfig))
        and not dataset.val_fraction + dataset.test_fraction < 1
    ):
        yield "dataset.val_fraction and dataset.test_fraction must together be below 1"


def _preprocess(preprocess: schema.PreprocessConfig, dataset: schema.DatasetConfig) -> Iterator[str]:
    if preprocess.part is not None and not dataset.images:
        yield f"preprocess.part={preprocess.part} is a share of the images, and dataset.images=false has none"
    if preprocess.part is not None and isinstance(dataset, schema.WebDatasetConfig):
        yield "preprocess.part shares out images to be packed, and dataset=webdataset leaves them where they are"
    from velm_cli.data.parts import parse_part

    try:
        parse_part(preprocess.part)
    except UserError as error:
        yield str(error)


def _stream(config: schema.TrainRoot) -> Iterator[str]:
    """What needs the training images at hand cannot be had from shards that pass by."""
    if not isinstance(config.dataset, schema.WebDatasetConfig):
        return
    if not isinstance(config.task, schema.CaptionTaskConfig):
        yield (
            f"task={config.task.kind} needs a store of its examples, and dataset=webdataset streams images with "
            "captions: preprocess other data, or say task=caption"
        )
    if config.data.cache is not schema.FeatureCaching.none:
        yield "data.cache keeps features of a store's images, and dataset=webdataset streams: set data.cache=none"
    if config.run.overfit_images:
        yield "run.overfit_images needs a store: dataset=webdataset only streams"
    if config.loss.text is schema.TextLoss.self_critical:
        yield "loss.text=self_critical needs all captions of an image at hand, and dataset=webdataset streams"


def _tokenizer(tokenizer: schema.TokenizerConfig) -> Iterator[str]:
    if tokenizer.kind is schema.TokenizerKind.pretrained and not tokenizer.name:
        yield "tokenizer=pretrained needs tokenizer.name=FOLDER (or a hub name)"


def _decode(decode: schema.DecodeConfig) -> Iterator[str]:
    nucleus = decode.method is schema.DecodeMethod.nucleus
    if nucleus and decode.beams > 1:
        yield f"decode.method=nucleus draws one sample an image: decode.beams={decode.beams} must be 1"
    of_the_other = schema.OF_BEAMS if nucleus else schema.OF_DRAWING
    if not nucleus and decode.samples > max(1, decode.beams):
        yield (
            f"decode.samples={decode.samples}: no more texts than beams: decode.beams={decode.samples}, or draw "
            "them: decode=nucleus"
        )
    if decode.min_length > max(1, decode.max_length):
        yield f"decode.min_length={decode.min_length} is above decode.max_length={decode.max_length}"
    if decode.allowed is not None and not os.path.isfile(decode.allowed):
        yield f"decode.allowed={decode.allowed}: no such file; it holds one text on each line"
    yield from without_effect("decode", decode, *of_the_other, chosen=f"decode.method={decode.method.value}")


def _metrics(metrics: schema.MetricsConfig) -> Iterator[str]:
    for name in [*metrics.names, *metrics.required]:
        if name == "clip":
            if metrics.clip is None:
                yield "metrics: CLIPScore needs a model: give metrics.clip=FOLDER"
        elif name not in schema.METRIC_NAMES:
            near = did_you_mean(name.lower(), schema.METRIC_NAMES)
            yield f"metrics: no metric {name!r}{near} (there are {', '.join(schema.METRIC_NAMES)})"
    for name in set(metrics.required) - {*metrics.names, "clip"}:
        yield f"metrics.required names {name}, which metrics.names does not"
    if metrics.df != "corpus" and "cider" not in metrics.names:
        yield f"metrics.df={metrics.df} weighs the words of CIDEr, and metrics.names has no cider"
    if metrics.clip is not None and not os.path.isdir(metrics.clip):
        yield f"metrics.clip={metrics.clip}: no such folder (of a CLIP-like model, as save_pretrained writes it)"


def model_problems(config: schema.TrainRoot) -> Iterator[str]:
    """What of vision, text, fusion and loss does not go together."""
    if is_mixture(config):
        yield from _mixture(config)
        return
    yield from _model(config)
    yield from _training(config)
    yield from task_of(config.task).problems(config)
    yield from _stream(config)


def _mixture(config: schema.TrainRoot) -> Iterator[str]:
    """What holds of a run holds of each part; a line that all parts have is of the run."""
    mixes = isinstance(config.task, schema.MixTaskConfig)
    found = {part.name: list(model_problems(part.config)) for part in parts_of(config)}
    of_all = [line for line in next(iter(found.values())) if all(line in lines for lines in found.values())]
    yield from of_all
    for name, lines in found.items():
        yield from (f"part {name}: {line}" for line in lines if line not in of_all)
    if mixes:
        yield from task_of(config.task).problems(config)
        options = [field.name for field in fields(config.loss)]
        yield from without_effect("loss", config.loss, *options, chosen="task=mix, whose parts have a loss each")
    for part in parts_of(config):
        for name in ("alpha", "beta", "gamma"):
            if getattr(part.config.loss, name).strip() == "learned":
                yield (
                    f"part {part.name}: loss.{name}=learned follows a loss of every step, and in a mixture a step has "
                    "those of its part: give a number or a schedule"
                )
    if config.loss.text is schema.TextLoss.self_critical:
        yield "loss.text=self_critical finetunes on one store: name it with dataset.store=, not a mixture"


def _model(config: schema.TrainRoot) -> Iterator[str]:
    vision, text, fusion = config.vision, config.text, config.fusion
    no_vision = isinstance(vision, schema.NoVisionConfig)
    yield from _text(text, follow=isinstance(config, schema.FinetuneRoot))
    for group, node in (("text", text), ("fusion", fusion)):
        heads = getattr(node, "heads", None)
        width = getattr(text, "width", None)
        if heads and width is not None and width % heads:
            yield f"text.width={width} is not divisible by {group}.heads={heads}"
    yield from update_problems(config)
    if isinstance(fusion, schema.ExternalFusionConfig):
        from velm_cli.models.fusion.external import problem

        if line := problem(fusion.name):
            yield line
    if isinstance(fusion, schema.GatedConfig) and isinstance(text, (schema.LSTMConfig, schema.GRUConfig)):
        yield f"fusion=gated goes between the layers of a transformer, and text={text.kind} is recurrent"
    if isinstance(text, schema.NoTextConfig) and config.task.reads_text:
        yield f"text=none: task={config.task.kind} reads or writes texts; choose text=transformer or another encoder"
    pretrained = isinstance(text, (schema.BertConfig, schema.CausalLMConfig))
    if not (is_freeze(text.freeze) if pretrained else text.freeze in ("none", "all")):
        others = ", all or first:n" if pretrained else " or all"
        yield f"text.freeze={text.freeze}: none{others}"
    if fusion.freeze not in ("none", "all"):
        yield f"fusion.freeze={fusion.freeze}: none or all"
    if fusion.freeze == "all" and not isinstance(config, schema.FinetuneRoot):
        yield "fusion.freeze=all keeps a fusion that a run has trained: velm finetune checkpoint=RUN fusion.freeze=all"
    if no_vision and not isinstance(fusion, schema.NoFusionConfig) and not config.task.source_is_memory:
        yield f"fusion={fusion.kind} needs images: choose a vision encoder, or fusion=none"
    if no_vision and config.dataset.images and not config.task.reads_source:  # whose images are then left alone
        yield "vision=none trains on text alone: say dataset.images=false too"
    if not no_vision and not config.dataset.images:
        yield "dataset.images=false: there are no images to encode; say vision=none fusion=none"
    if not no_vision:
        if not is_freeze(vision.freeze):
            yield f"vision.freeze={vision.freeze}: none, all or first:n"
        if vision.grid and vision.output is schema.VisionOutput.pooled:
            yield f"vision.grid={vision.grid} averages tokens, and vision.output=pooled has one: set vision.output=grid"
        if vision.grid and isinstance(vision, schema.RegionsConfig):
            yield f"vision.grid={vision.grid}: regions are no grid; vision.regions says how many there are"
        if getattr(vision, "join", None) and vision.freeze.startswith("first:"):
            why = f"blocks that vision.freeze={vision.freeze} passes once"
            yield f"vision.join reads {why}: set vision.freeze=all or none"
        is_there = os.path.isdir if isinstance(vision, schema.TransformersVisionConfig) else os.path.isfile
        follow = isinstance(config, schema.FinetuneRoot)  # those of the checkpoint take their place
        if vision.weights not in ("none", "pretrained") and not is_there(vision.weights) and not follow:
            kind = is_there.__name__[2:]
            what = f"not a {kind}; name a {kind}" if os.path.exists(vision.weights) else f"no such {kind}"
            yield f"vision.weights={vision.weights}: {what} (or none, pretrained)"
        elif vision.weights not in ("none", "pretrained") and config.init.vision is not None:
            yield (
                f"vision.weights={vision.weights} has no effect: init.vision={config.init.vision} brings the weights; "
                "leave one of them out"
            )
    if isinstance(vision, (schema.ConvNetConfig, schema.ViTConfig)) and vision.weights != "none":
        yield (
            f"vision={vision.kind} is trained from scratch: vision.weights must be none "
            "(init.vision takes a run's weights)"
        )
    if isinstance(vision, schema.ViTConfig):
        if vision.patch_size and vision.image_size % vision.patch_size:
            yield f"vision.image_size={vision.image_size} is not a multiple of vision.patch_size={vision.patch_size}"
        if vision.conv_stem and vision.patch_size & (vision.patch_size - 1):
            yield f"vision.patch_size={vision.patch_size}: with vision.conv_stem it must be a power of 2"
        if vision.heads and vision.width % vision.heads:
            yield f"vision.width={vision.width} is not divisible by vision.heads={vision.heads}"
    named = re.fullmatch(r"vit_[a-z]_(\d+)", getattr(vision, "net", ""))
    if named and vision.image_size % int(named[1]):
        yield f"vision.image_size={vision.image_size} is not a multiple of the {named[1]} pixels of a patch"
    if isinstance(vision, schema.ConvNetConfig) and vision.image_size < 1 << min(max(vision.stages, 0), 30):
        yield f"vision.image_size={vision.image_size}: vision.stages={vision.stages} cannot each halve it"
    if isinstance(vision, schema.TorchvisionConfig) and not vision.net.startswith(TORCHVISION_FAMILIES):
        yield f"vision.net={vision.net}: velm knows {', '.join(TORCHVISION_FAMILIES)}..."


def _text(text: schema.TextConfig, *, follow: bool) -> Iterator[str]:
    vectors = text.vectors if isinstance(text, schema.ScratchTextConfig) and not follow else None
    if vectors is not None and not os.path.isfile(vectors):
        yield f"text.vectors={vectors}: no such file"
    if isinstance(text, schema.PretrainedTextConfig) and not text.name:
        yield "text.name is not set: give the folder of a transformers model (or a hub name)"


def _training(config: schema.TrainRoot) -> Iterator[str]:
    weights = {}
    for name in ("alpha", "beta", "gamma"):
        try:
            weights[name] = parse_weight(f"loss.{name}", getattr(config.loss, name))
        except UserError as error:
            yield str(error)
    if len(weights) == 3 and all(weight.always_zero for weight in weights.values()):
        yield "loss.alpha, loss.beta and loss.gamma are all 0: nothing would be learned"
    if isinstance(config.vision, schema.NoVisionConfig):
        labels = config.loss.joint is schema.JointLoss.label  # which a question alone may tell, if not well
        for name in ("beta",) if labels else ("beta", "gamma"):
            if name in weights and not weights[name].always_zero:
                yield f"loss.{name} needs images, and vision=none has none: set it to 0"
    yield from objective_problems(config, weights)
    active = {name for name, weight in weights.items() if not weight.always_zero}
    yield from token_problems(config, active)
    yield from _cache(config, active)
    if config.data.mask_source != "none":
        yield from _masked_words(config)
    yield from missing(config.run)


def _masked_words(config: schema.TrainRoot) -> Iterator[str]:
    option = config.data.mask_source
    if not config.task.reads_source:
        yield f"data.mask_source={option} hides words of a source, and task={config.task.kind} has none: leave it out"
        return
    from velm_cli.data.masked_words import words_to_mask

    try:
        words_to_mask(option)
    except UserError as error:
        yield str(error)


def _threads(run: schema.RunConfig) -> Iterator[str]:
    cores = os.cpu_count() or 1
    if run.threads > cores:
        yield f"run.threads={run.threads}: this machine has {cores} cores; at most as many, or 0 (as torch decides)"


def _reads_texts_alone(config: schema.TrainRoot, active: set[str]) -> bool:
    """Whether a text encoder gives states that no image has entered; `active`: the losses with a weight."""
    after = not isinstance(config.fusion, (schema.PrefixConfig, schema.GatedConfig))
    given = config.loss.text not in (schema.TextLoss.masked, schema.TextLoss.self_critical)
    if config.task.judges:
        return after
    return "gamma" in active or (after and given and "alpha" in active)


def _cache(config: schema.TrainRoot, active: set[str]) -> Iterator[str]:
    data = config.data
    if data.cache_texts and (config.text.freeze != "all" or config.run.compile is not schema.Compile.off):
        yield "data.cache_texts keeps what a frozen text encoder says: set text.freeze=all and run.compile=off"
    if data.cache_texts and not _reads_texts_alone(config, active):
        yield (
            "data.cache_texts keeps texts that are read without an image, and none is: the image enters the text "
            "encoder (fusion=prefix, gated), or no given captions are learned from (loss.text); leave it out"
        )
    if data.cache is schema.FeatureCaching.none:
        if data.views > 1:
            yield f"data.views={data.views} are kept in a cache: say data.cache=bf16 too (without, every view is new)"
        return
    if config.vision.freeze in ("none", "first:0"):
        yield (
            f"data.cache={data.cache.value} keeps what frozen layers say: use it with vision.freeze=all, or with "
            "vision.freeze=first:n for those below the others"
        )
    elif config.vision.freeze != "all":
        if isinstance(config.vision, schema.RegionsConfig):
            yield f"data.cache={data.cache.value} keeps regions of a wholly frozen detector only: set vision.freeze=all"
        if config.loss.image is schema.ImageLoss.masked_patches:
            yield f"loss.image=masked_patches paints images, and data.cache={data.cache.value} keeps none: leave it out"
    augments = data.flip or data.crop_scale < 1 or data.colour_jitter
    if augments and data.views == 1:
        yield (
            f"data.cache={data.cache.value} sees each image in one way: keep several with data.views=4, or leave "
            "data.flip=false data.crop_scale=1 data.colour_jitter=0"
        )
    if data.views > 1 and not augments:
        yield f"data.views={data.views} would be alike: set data.crop_scale, data.flip or data.colour_jitter too"
