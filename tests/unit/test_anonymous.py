"""What names a machine is left out of what is given away."""

import pytest

from velm_cli import configs, schema
from velm_cli.exporting.anonymous import command_without_places, model_name, without_places


def test_paths_addresses_and_earlier_runs_are_left_out():
    config = schema.FinetuneRoot(
        checkpoint="/home/ada/runs/train/first",
        dataset=schema.WebDatasetConfig(root="/data/x", urls=["https://user:token@host/{0..9}.tar"], store="/data/s"),
        vision=schema.TransformersVisionConfig(name="/home/ada/models/dinov2_small", weights="/home/ada/w"),
        text=schema.CausalLMConfig(name="openai-community/gpt2"),
        fusion=schema.PrefixConfig(),
        task=schema.CaptionTaskConfig(),
        tokenizer=schema.TokenizerConfig(name="~/lm"),
        init=schema.InitConfig(vision="/home/ada/runs/v"),
        config="/home/ada/c.yaml",
    )
    config.run.dir = "/home/ada/runs"
    plain = without_places(config)
    text = configs.to_yaml(plain)
    assert not any(word in text for word in ("ada", "token@", "/data", "~"))
    assert plain.stage == "train" and not hasattr(plain, "checkpoint")
    assert plain.vision.name == "dinov2_small" and plain.vision.weights == "none"
    assert plain.text.name == "openai-community/gpt2"
    assert config.run.dir == "/home/ada/runs", "the run's own options stay as they are"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("/home/ada/.venv/bin/velm train dataset.root=/data/x name=a", "velm train dataset.root=.../x name=a"),
        (
            "velm train 'dataset.urls=s3://key@b/x.tar' vision.name=~/m/dino",
            "velm train dataset.urls=... vision.name=.../dino",
        ),
        ("velm train loss.alpha='step(0,1)' fusion=add", "velm train 'loss.alpha=step(0,1)' fusion=add"),
    ],
)
def test_a_command_without_paths(command, shown):
    assert command_without_places(command) == shown


def test_names_of_models(tmp_path):
    assert model_name("org/name") == "org/name"
    assert model_name(str(tmp_path / "gpt2")) == "gpt2" == model_name("./a/gpt2") == model_name("a/b/gpt2")
