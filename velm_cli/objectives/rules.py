"""What the forms of L_text, L_image and L_joint ask of the model and of other options. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from velm_cli import schema
from velm_cli.errors import UserError, without_effect
from velm_cli.objectives.weights import Weight, parse_weight
from velm_cli.place import place
from velm_cli.schema.tasks import SOURCE, VqaTaskConfig

# Options of one form of a loss: its weight, the option that chooses the form, the forms that use them, themselves.
FORMS = (
    ("alpha", "text", {"masked"}, ("masked_words",)),
    ("alpha", "text", {"self_critical"}, ("samples",)),
    ("beta", "image", {"concepts"}, ("num_concepts", "image_reduction")),
    ("beta", "image", {"masked_patches"}, ("masked_patches", "patch_size")),
    ("gamma", "joint", {"contrastive", "matching"}, ("temperature",)),
    ("gamma", "joint", {"contrastive", "matching", "sigmoid"}, ("joint_width", "joint_queries", "joint_dropout")),
)


def reads_one_way(text: schema.TextConfig, loss: schema.LossConfig) -> bool:
    """`causal` of a judge's model: only where its kind can nothing else, or the source's next words are predicted.

    As `loss` of its training says, whatever terms the learner is built with: it has to read as it has learned to.
    """
    predicts = not parse_weight("loss.alpha", loss.alpha).always_zero and loss.text is not schema.TextLoss.masked
    return predicts or not isinstance(text, (schema.TransformerConfig, schema.BertConfig))


def objective_problems(config: schema.TrainRoot, weights: dict[str, Weight]) -> Iterator[str]:
    """A line for each; `weights` by their option, without those that could not be read."""
    loss, vision = config.loss, config.vision
    active = {name for name, weight in weights.items() if not weight.always_zero}
    writes = loss.text is not schema.TextLoss.masked
    one_way = (schema.LSTMConfig, schema.GRUConfig, schema.CausalLMConfig)
    if not writes and isinstance(config.text, one_way):
        yield f"loss.text=masked: text={config.text.kind} reads in one direction only; use transformer or bert"
    yield from _of_task(config, active)
    if isinstance(config.fusion, schema.CoAttentionConfig) and writes and "alpha" in active:
        yield (
            "fusion=co_attention knows the whole question, so it cannot learn to predict its words: set loss.alpha=0, "
            "or loss.text=masked"
            if config.task.judges
            else "fusion=co_attention knows the whole caption, so it cannot learn to write one: set loss.alpha=0 "
            "(with loss.gamma=1 loss.joint=matching), or loss.text=masked"
        )
    try:
        sampling = parse_weight("loss.scheduled_sampling", loss.scheduled_sampling)
    except UserError as error:
        yield str(error)
    else:
        if sampling.learned:
            yield "loss.scheduled_sampling=learned: only weights can be learned; give a number or a schedule"
        elif max(sampling.start, sampling.end) > 1:
            yield f"loss.scheduled_sampling={loss.scheduled_sampling}: a probability, so at most 1"
        elif not sampling.always_zero and not writes:
            yield "loss.scheduled_sampling is of no use with loss.text=masked: set it to 0"
    if loss.text is schema.TextLoss.self_critical:
        if config.run.parallel is schema.Parallel.fsdp and place().world > 1:
            yield "loss.text=self_critical draws captions with whole weights: use run.parallel=ddp"
        if (
            isinstance(config.text, schema.PretrainedTextConfig)
            or config.tokenizer.kind is not schema.TokenizerKind.word
        ):
            yield "loss.text=self_critical counts words: it needs tokenizer=word, and a text encoder from scratch"
        if isinstance(vision, schema.NoVisionConfig):
            yield "loss.text=self_critical rewards captions of images: it needs a vision encoder"
        if loss.scheduled_sampling != "0":
            yield "loss.scheduled_sampling is of no use with loss.text=self_critical: set it to 0"
        if "alpha" in weights and weights["alpha"].learned:
            yield (
                "loss.alpha=learned follows the size of a loss, and that of loss.text=self_critical is 0 on average: "
                "the weight would grow for ever; give a number or a schedule"
            )
        if "alpha" in active:
            yield from without_effect("loss", loss, "label_smoothing", chosen="loss.text=self_critical")
    compares = "gamma" in active and loss.joint is not schema.JointLoss.label
    if compares and config.run.batch_size == 1:
        yield "loss.gamma: L_joint compares the images of a batch, and run.batch_size=1 has nothing to compare with"
    matches = "gamma" in active and loss.joint is schema.JointLoss.matching
    if matches and isinstance(config.fusion, schema.NoFusionConfig):
        yield (
            "loss.joint=matching judges image and caption by the fused state, and fusion=none leaves the image out: "
            "choose a fusion, or loss.joint=contrastive"
        )
    if "gamma" in active and not loss.joint_queries:
        yield from without_effect("loss", loss, "joint_dropout", chosen="loss.joint_queries=0")
    if "gamma" in active and loss.joint_queries and vision.output is schema.VisionOutput.pooled:
        yield (
            f"loss.joint_queries={loss.joint_queries} look at image positions, and vision.output=pooled has one: "
            "set vision.output=grid"
        )
    paints = "beta" in active and loss.image is schema.ImageLoss.masked_patches
    if paints and isinstance(vision, schema.RegionsConfig):
        yield "loss.image=masked_patches needs a grid, and regions are none: choose another vision encoder"
    if paints and vision.freeze == "all":
        yield "loss.image=masked_patches teaches the vision encoder, which vision.freeze=all keeps from learning"
    if isinstance(config, schema.FinetuneRoot):  # it may have inherited options of another form from its checkpoint
        return
    for weight, chooser, users, options in FORMS:
        form = getattr(loss, chooser).value
        if weight in active and form not in users:
            yield from without_effect("loss", loss, *options, chosen=f"loss.{chooser}={form}")


def _of_task(config: schema.TrainRoot, active: set[str]) -> Iterator[str]:
    """What goes with a task that judges, or that writes from a source, and with no other."""
    loss, task = config.loss, config.task
    chosen = f"task.answer={task.answer.value}" if isinstance(task, VqaTaskConfig) else f"task={task.kind}"
    writes = task.source_is_memory or task.source_is_prompt
    for option in task.unused:
        by = (
            f"task.source={'prompt' if task.source_is_prompt else 'memory'}"
            if writes and option in ("prompt", "source_layers")
            else chosen
        )
        yield from without_effect("task", task, option, chosen=by)
    if "gamma" in active and (loss.joint is schema.JointLoss.label) is not task.judges:
        if task.judges:
            yield (
                f"{chosen} learns the answer by loss.joint=label; loss.joint={loss.joint.value} compares images with "
                f"captions, which {'questions' if task.reads_text else 'labels'} are not"
            )
        else:
            which = f"task={task.kind} {chosen}" if isinstance(task, VqaTaskConfig) else chosen
            yield (
                f"loss.joint=label learns one of a list of answers, and {which} has no such list: choose "
                "task=vqa task.answer=classify, or loss.joint=contrastive"
            )
    if task.judges:
        # A finetuning may have it from a captioner, and debug=overfit says it for every task.
        if not isinstance(config, schema.FinetuneRoot) and not config.run.overfit_images:
            yield from without_effect("data", config.data, "captions_per_image", chosen=chosen)
        if loss.text is schema.TextLoss.self_critical:
            yield f"loss.text=self_critical rewards texts that are written, and {chosen} writes none"
        if loss.scheduled_sampling != "0":
            yield f"loss.scheduled_sampling is of no use with {chosen}, which writes nothing: set it to 0"
    yield from _of_prompt(config, chosen)
    if task.source_is_memory:
        if loss.text is schema.TextLoss.masked:
            yield f"loss.text=masked learns to write nothing, and {chosen} writes"
        if isinstance(config.text, schema.BertConfig) and getattr(task, "source_layers", True):
            yield from without_effect("task", task, "source_layers", chosen="text=bert")
        fusion = config.fusion
        if isinstance(fusion, schema.NoFusionConfig):
            yield f"fusion=none leaves image and question out, and {chosen} writes from them"
        if isinstance(fusion, schema.PrefixConfig) and fusion.mapper is schema.PrefixMapper.tokens:
            yield (
                f"fusion.mapper=tokens puts all positions before the text, and sources differ in length: with "
                f"{chosen} use fusion.mapper=transformer"
            )


def _of_prompt(config: schema.TrainRoot, chosen: str) -> Iterator[str]:
    """What goes with a text before the one that is written."""
    task = config.task
    if task.source_is_prompt:
        prompt: str = getattr(task, "prompt", "")
        option = "task.source=prompt"
        if prompt.count(SOURCE) != 1:
            yield f"task.prompt={prompt!r}: {SOURCE} has to be in it once, where the source goes"
    elif isinstance(task, schema.CaptionTaskConfig) and task.prompt:
        option = f"task.prompt={task.prompt!r}"
        if SOURCE in task.prompt:
            yield f"{option}: {chosen} has no source, so {SOURCE} can stand for none"
    else:
        return
    if not isinstance(config.fusion, (schema.PrefixConfig, schema.NoFusionConfig)):
        yield (
            f"{option}: fusion={config.fusion.kind} has no place for it; fusion=prefix puts the image before both, and "
            "with fusion=none there is no image"
        )
    if config.loss.text is not schema.TextLoss.next_token:
        yield f"{option}: a text goes on from it, which loss.text={config.loss.text.value} does not: use next_token"
