"""What losses, fusions and text encoders go with tasks that judge, or that write from a source: a line if not."""

import pytest

from velm_cli import schema
from velm_cli.schema.tasks import Answer, VqaTaskConfig
from velm_cli.validate import model_problems

LABEL, CLASSIFY = schema.JointLoss.label, VqaTaskConfig()
GENERATE, RANK = VqaTaskConfig(answer=Answer.generate), VqaTaskConfig(answer=Answer.rank)
BERT = schema.BertConfig(name="folder")
PREFIX = schema.PrefixConfig(mapper=schema.PrefixMapper.tokens)


def problems(task, *, vision=None, encoder=None, fusion=None, batch_size=32, dataset=None, **loss) -> list[str]:
    return list(
        model_problems(
            schema.TrainRoot(
                dataset=dataset or schema.ShapesConfig(images=not isinstance(vision, schema.NoVisionConfig)),
                vision=vision or schema.ConvNetConfig(),
                text=encoder or schema.TransformerConfig(),
                fusion=fusion or schema.CrossModalConfig(),
                task=task,
                loss=schema.LossConfig(**loss),
                run=schema.RunConfig(batch_size=batch_size),
            )
        )
    )


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (CLASSIFY, {"alpha": "0", "gamma": "1", "joint": LABEL}),
        (CLASSIFY, {"gamma": "1", "joint": LABEL, "batch_size": 1}),
        (CLASSIFY, {"gamma": "1", "joint": LABEL, "beta": "0.1"}),
        (CLASSIFY, {"alpha": "0", "gamma": "1", "joint": LABEL, "fusion": schema.CoAttentionConfig()}),
        (CLASSIFY, {"gamma": "1", "joint": LABEL, "fusion": PREFIX}),
        (
            CLASSIFY,
            {"gamma": "1", "joint": LABEL, "vision": schema.NoVisionConfig(), "fusion": schema.NoFusionConfig()},
        ),
        (GENERATE, {}),
        (RANK, {"vision": schema.NoVisionConfig()}),
        (VqaTaskConfig(answer=Answer.rank, source_layers=3), {"encoder": schema.LSTMConfig()}),
        (VqaTaskConfig(answer=Answer.generate, source_layers=0), {"encoder": BERT}),
        (schema.CaptionTaskConfig(), {"gamma": "1"}),
        (RANK, {"vision": schema.NoVisionConfig(), "dataset": schema.ShapesConfig()}),  # leaves the images alone
    ],
)
def test_what_goes_together(task, options):
    assert problems(task, **options) == []


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        (
            schema.CaptionTaskConfig(),
            {"gamma": "1", "joint": LABEL},
            "loss.joint=label learns one of a list of answers, and task=caption has no such list: choose task=vqa "
            "task.answer=classify, or loss.joint=contrastive",
        ),
        (
            RANK,
            {"gamma": "1", "joint": LABEL},
            "loss.joint=label learns one of a list of answers, and task=vqa task.answer=rank has no such list: choose "
            "task=vqa task.answer=classify, or loss.joint=contrastive",
        ),
        (
            CLASSIFY,
            {"gamma": "1", "joint": schema.JointLoss.matching},
            "task.answer=classify learns the answer by loss.joint=label; loss.joint=matching compares images with "
            "captions, which questions are not",
        ),
        (
            CLASSIFY,
            {"gamma": "1", "joint": LABEL, "fusion": schema.CoAttentionConfig()},
            "fusion=co_attention knows the whole question, so it cannot learn to predict its words: set loss.alpha=0, "
            "or loss.text=masked",
        ),
        (
            CLASSIFY,
            {"gamma": "1", "joint": LABEL, "scheduled_sampling": "0.2"},
            "loss.scheduled_sampling is of no use with task.answer=classify, which writes nothing: set it to 0",
        ),
        (
            CLASSIFY,
            {"gamma": "1", "joint": LABEL, "joint_width": 64},
            "loss.joint_width=64 has no effect with loss.joint=label: leave it at 128",
        ),
        (
            CLASSIFY,
            {"alpha": "0", "beta": "1", "vision": schema.NoVisionConfig(), "fusion": schema.NoFusionConfig()},
            "loss.beta needs images, and vision=none has none: set it to 0",
        ),
        (
            CLASSIFY,
            {"gamma": "1", "joint": LABEL, "vision": schema.NoVisionConfig()},
            "fusion=cross_modal needs images: choose a vision encoder, or fusion=none",
        ),
        (
            GENERATE,
            {"text": schema.TextLoss.masked},
            "loss.text=masked learns to write nothing, and task.answer=generate writes",
        ),
        (
            GENERATE,
            {"fusion": PREFIX},
            "fusion.mapper=tokens puts all positions before the text, and sources differ in length: with "
            "task.answer=generate use fusion.mapper=transformer",
        ),
        (
            RANK,
            {"fusion": schema.NoFusionConfig()},
            "fusion=none leaves image and question out, and task.answer=rank writes from them",
        ),
        (
            VqaTaskConfig(answer=Answer.rank, source_layers=3),
            {"encoder": BERT},
            "task.source_layers=3 has no effect with text=bert: leave it at 2",
        ),
        (
            schema.CaptionTaskConfig(),
            {"vision": schema.NoVisionConfig(), "fusion": schema.NoFusionConfig(), "dataset": schema.ShapesConfig()},
            "vision=none trains on text alone: say dataset.images=false too",
        ),
        (
            schema.CaptionTaskConfig(),
            {"vision": schema.ViTConfig(grid=2, output=schema.VisionOutput.pooled)},
            "vision.grid=2 averages tokens, and vision.output=pooled has one: set vision.output=grid",
        ),
        (
            schema.CaptionTaskConfig(),
            {"vision": schema.RegionsConfig(grid=2)},
            "vision.grid=2: regions are no grid; vision.regions says how many there are",
        ),
        (
            schema.CaptionTaskConfig(),
            {"vision": schema.TransformersVisionConfig(join=[1], freeze="first:2")},
            "vision.join reads blocks that vision.freeze=first:2 passes once: set vision.freeze=all or none",
        ),
        (
            GENERATE,
            {"dataset": schema.WebDatasetConfig()},
            "task=vqa needs a store of its examples, and dataset=webdataset streams images with captions: preprocess "
            "other data, or say task=caption",
        ),
    ],
)
def test_what_does_not_says_why(task, options, line):
    assert problems(task, **options) == [line]


UNUSED = {
    Answer.classify: ["source_layers=3", "candidates=9"],
    Answer.generate: ["label_loss=sigmoid", "dropout=0.2", "candidates=9"],
    Answer.rank: ["label_loss=sigmoid", "dropout=0.2"],
}


@pytest.mark.parametrize("answer", Answer)
def test_options_of_another_answer_are_refused_and_no_others(answer):
    other = VqaTaskConfig(
        answer=answer,
        answers=9,
        min_answers=2,
        label_loss=schema.tasks.LabelLoss.sigmoid,
        dropout=0.2,
        source_layers=3,
        candidates=9,
    )
    loss = {"alpha": "0", "gamma": "1", "joint": LABEL} if answer is Answer.classify else {}
    lines = problems(other, **loss)
    assert [line.split()[0] for line in lines] == [f"task.{option}" for option in UNUSED[answer]]
    assert all(f" has no effect with task.answer={answer.value}: leave it at " in line for line in lines)


def test_options_of_another_place_of_the_source_are_refused_for_that():
    writes = {"answer": Answer.generate}
    (line,) = problems(VqaTaskConfig(prompt="Q {source}", **writes))
    assert line.startswith("task.prompt=Q {source} has no effect with task.source=memory: leave it at")
    lines = problems(VqaTaskConfig(source=schema.tasks.Source.prompt, source_layers=1, **writes))
    assert "task.source_layers=1 has no effect with task.source=prompt: leave it at 2" in lines
