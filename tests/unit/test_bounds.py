"""Every number of the schema has bounds, which NaN does not pass; no default is out of them."""

import dataclasses
import math

import pytest

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.schema.bounds import LARGEST, Bounds, bounds_of, out_of_bounds
from velm_cli.validate import validate

CLASSES = sorted(
    {
        *schema.ROOTS.values(),
        *(node for kinds in schema.KINDS.values() for node in kinds.values()),
        *(node for name in dir(schema) if dataclasses.is_dataclass(node := getattr(schema, name))),
    },
    key=lambda node: node.__name__,
)
NUMBERS = [(node, field.name) for node in CLASSES for field in dataclasses.fields(node) if field.type in (int, float)]


@pytest.mark.parametrize(("node", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_every_number_has_bounds_that_its_default_keeps(node, name):
    bounds = bounds_of(node, name)
    assert bounds is not None, f"{node.__name__}.{name}: write within(...)"
    (default,) = (field.default for field in dataclasses.fields(node) if field.name == name)
    assert bounds.problem(default) is None
    for value in (math.nan, math.inf, -math.inf):
        assert bounds.problem(value)
    whole = next(field.type for field in dataclasses.fields(node) if field.name == name) is int
    assert not whole or bounds.problem(2**70)


def test_the_schema_has_numbers():
    assert len(NUMBERS) > 90


@pytest.mark.parametrize(
    ("bounds", "fine", "wrong"),
    [
        (Bounds(least=1), (1, 2, 1e300), {0: "must be at least 1", math.nan: "must be a number of at least 1"}),
        (Bounds(above=0, most=1), (1e-9, 1), {0: "must be above 0", 1.5: "must be at most 1"}),
        (Bounds(least=0, below=1), (0, 0.5), {-0.1: "must be at least 0", 1: "must be below 1"}),
        (Bounds(least=0, most=LARGEST), (LARGEST,), {LARGEST + 1: "must be at most 9007199254740992"}),
        (Bounds(), (-1e300, 0), {math.inf: "must be a number"}),
    ],
)
def test_what_is_wrong_is_said(bounds, fine, wrong):
    assert [bounds.problem(value) for value in fine] == [None] * len(fine)
    assert {value: bounds.problem(value) for value in wrong} == wrong


def test_groups_are_named_and_kinds_inherit():
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(image_size=2), vision=schema.ViTConfig(heads=0), text=schema.LSTMConfig(layers=0),
        fusion=schema.ConcatConfig(dropout=1.0), task=schema.CaptionTaskConfig(), seed=-1,
    )  # fmt: skip
    assert sorted(out_of_bounds(config)) == [
        "dataset.image_size=2: must be at least 8",
        "fusion.dropout=1: must be below 1",
        "seed=-1: must be at least 0",
        "text.layers=0: must be at least 1",
        "vision.heads=0: must be at least 1",
    ]


ROWS = [
    ("text", {"heads": 0}, "text.heads=0: must be at least 1"),
    ("text", {"heads": -2}, "text.heads=-2: must be at least 1"),
    ("text", {"dropout": math.nan}, "text.dropout=nan: must be a number of at least 0, below 1"),
    ("fusion", {"heads": 0}, "fusion.heads=0: must be at least 1"),
    ("fusion", {"layers": 0}, "fusion.layers=0: must be at least 1"),
    ("vision", {"heads": 0}, "vision.heads=0: must be at least 1"),
    ("vision", {"patch_size": 0}, "vision.patch_size=0: must be at least 1"),
    ("vision", {"patch_size": -8}, "vision.patch_size=-8: must be at least 1"),
    ("vision", {"dropout": 1.5}, "vision.dropout=1.5: must be below 1"),
    ("vision", {"layers": -1}, "vision.layers=-1: must be at least 0"),
    ("run", {"keep_every": -2}, "run.keep_every=-2: must be at least 0"),
    ("run", {"threads": 100_000}, "run.threads=100000: this machine has"),
    ("decode", {"length_penalty": math.nan}, "decode.length_penalty=nan: must be a number"),
    ("decode", {"length_penalty": 1e6, "beams": 2}, "decode.length_penalty=1e+06: must be at most 10"),
    ("optim", {"vision_lr_scale": -5.0}, "optim.vision_lr_scale=-5: must be at least 0"),
    ("optim", {"min_lr_ratio": math.inf}, "optim.min_lr_ratio=inf: must be a number"),
    ("optim", {"lr": math.nan}, "optim.lr=nan: must be a number of at least 0"),
    ("optim", {"eps": -1.0}, "optim.eps=-1: must be above 0"),
    ("loss", {"chunk": -5}, "loss.chunk=-5: must be at least 0"),
]


@pytest.mark.parametrize(("group", "options", "line"), ROWS, ids=lambda value: str(value)[:40])
def test_validate_refuses_what_a_layer_cannot_take(group, options, line):
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(), vision=schema.ViTConfig(), text=schema.TransformerConfig(),
        fusion=schema.CrossModalConfig(), task=schema.CaptionTaskConfig(),
    )  # fmt: skip
    validate(config)
    for name, value in options.items():
        setattr(getattr(config, group), name, value)
    with pytest.raises(UserError) as error:
        validate(config)
    assert any(said.startswith(line) for said in str(error.value).splitlines()), error.value


@pytest.mark.parametrize(
    ("vision", "line"),
    [
        (schema.ConvNetConfig(width=3), "vision.width=3: must be at least 16"),
        (schema.ConvNetConfig(stages=30), "vision.stages=30: must be at most 16"),
        (schema.ConvNetConfig(image_size=1), "vision.image_size=1: vision.stages=3 cannot each halve it"),
    ],
)
def test_a_convnet_has_something_to_halve(vision, line):
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(), vision=vision, text=schema.LSTMConfig(), fusion=schema.ConcatConfig(),
        task=schema.CaptionTaskConfig(),
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        validate(config)
    assert line in str(error.value).splitlines()


def test_numbers_out_of_bounds_are_said_where_rules_cannot_reckon_with_them():
    fusion = schema.PrefixConfig(mapper=schema.PrefixMapper.tokens, shuffle=0)
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(), vision=schema.ViTConfig(), fusion=fusion, text=schema.TransformerConfig(),
        task=schema.CaptionTaskConfig(),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^fusion.shuffle=0: must be at least 1$"):
        validate(config)
