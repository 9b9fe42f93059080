"""Every YAML file composes, is valid, and its model is built (without storage)."""

from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from tiny_models import folder

from velm_cli import compose, configs, schema
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.validate import validate

CONF = compose.conf_dir()
ROOTS = sorted(CONF.glob("*.yaml"))
OPTIONS = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "hydra")
BUILT_ELSEWHERE = {"fusion/external"}  # needs another package: test_external.py
OTHER_KINDS = ("task=", "dataset=mix", "vision=vit", "fusion=prefix")  # whose options an experiment sets
SEES = [  # a language model of transformers, and photos
    "dataset=flickr8k", "dataset.root={root}", "vision=dinov2", "vision.name={dinov2}", "text=causal_lm", "text.name={llama}",
    "tokenizer=pretrained", "tokenizer.name={llama}",
]  # fmt: skip
# Options that only make sense together with others.
NEEDS = {
    **{f"vision/{kind}": [f"vision.name={{{kind}}}"] for kind in ("clip", "dinov2", "siglip")},
    "vision/hf_vit": ["vision.name={vit}"],
    "text/gpt2": ["text.name={gpt2}"],
    "text/causal_lm": ["text.name={llama}"],
    "text/bert": ["text.name={bert}"],
    "vision/none": ["fusion=none", "dataset.images=false"],
    "fusion/co_attention": ["loss.alpha=0", "loss.gamma=1", "loss.joint=matching"],
    "experiment/flickr8k_retrieve": [
        "dataset=flickr8k",
        "dataset.root={root}",
        "vision=dinov2",
        "vision.name={dinov2}",
        "text=bert",
        "text.name={bert}",
        "fusion=none",
    ],
    "experiment/llm_captions": [*SEES, "fusion=cross_modal"],
    "experiment/llm_prefix_captions": [*SEES, "fusion=prefix"],
    "experiment/multi30k_translate": ["task=translate", "tokenizer=bpe"],
    "experiment/shapes_chat": ["task=chat", "fusion=prefix"],
    "experiment/shapes_mix": ["task=mix", "dataset=mix"],
    "experiment/shapes_motion": ["vision=vit"],
    "experiment/shapes_vqa_generate": ["task=vqa"],
    "experiment/vqa_few": [
        "task=vqa",
        "dataset=vqa",
        "dataset.root={root}",
        "vision=dinov2",
        "vision.name={dinov2}",
        "vision.grid=0",
        "text=bert",
        "text.name={bert}",
        "tokenizer=pretrained",
        "tokenizer.name={bert}",
        "fusion=attention",
    ],
    "experiment/vqa_frozen": [
        "task=vqa",
        "dataset=vqa",
        "dataset.root={root}",
        "vision=dinov2",
        "vision.name={dinov2}",
        "fusion.heads=4",  # of the tiny text encoder
        "vision.grid=0",
        "text=bert",
        "text.name={bert}",
        "tokenizer=pretrained",
        "tokenizer.name={bert}",
    ],
    "tokenizer/pretrained": ["tokenizer.name=somewhere"],
    "loss/vqa": ["task=vqa"],
    "loss/reason": ["task=reason"],
    "task/mix": ["dataset=mix", "dataset.parts=[{{store:a,task:caption}},{{store:b,task:vqa}}]"],
    "dataset/mix": ["dataset.parts=[{{store:a}},{{store:b}}]"],
    "loss/classify": ["task=classify"],
    "experiment/linear_probe": ["task=classify"],
    "experiment/finetune_labels": ["task=classify"],
    "text/none": ["task=classify", "loss=classify", "fusion=none"],
    "dataset/manifest": ["dataset.file={file}"],
    "dataset/chat": ["dataset.file={file}"],
    "task/chat": ["fusion=prefix"],
    "dataset/frames": ["dataset.file={file}"],
    "dataset/folder": ["dataset.root={root}"],
    "dataset/webdataset": ["dataset.urls={root}"],
    "dataset/coco": ["dataset.root={root}"],
    "dataset/flickr8k": ["dataset.root={root}"],
    "dataset/flickr30k": ["dataset.root={root}"],
}


class Places(dict):
    """What a name in NEEDS stands for; a folder of tiny_models if it is none of the dictionary's own."""

    def __missing__(self, kind: str) -> str:
        return folder(kind)


def composed(stage: str, overrides: list[str]):
    compose.register(stage)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose.to_dataclass(hydra_compose(stage, overrides))


@pytest.mark.parametrize("root", ROOTS, ids=lambda path: path.stem)
def test_every_stage_composes(root):
    compose.register(root.stem)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert hydra_compose(root.stem).stage == root.stem


@pytest.mark.parametrize(
    "option",
    [p for p in OPTIONS if f"{p.parent.name}/{p.stem}" not in BUILT_ELSEWHERE],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_option_composes_and_builds(option, tmp_path):
    group, choice = option.parent.name, option.stem
    (tmp_path / "captions.jsonl").write_text("")
    needs = [
        text.format_map(Places(root=tmp_path, file=tmp_path / "captions.jsonl"))
        for text in NEEDS.get(f"{group}/{choice}", [])
    ]
    config = composed("train", [f"{group}={choice}", *needs])
    config.dataset.root = config.dataset.root or str(tmp_path)
    if config.vision.weights == "pretrained":  # needs the network
        config.vision.weights = "none"
    validate(config)
    with torch.device("meta"):
        model = VelmModel(vision=config.vision, text=config.text, fusion=config.fusion, vocab_size=100)
    assert count_parameters(model) > 0


@pytest.mark.parametrize("file", [*ROOTS, *OPTIONS], ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_opens_with_the_command_that_uses_it(file):
    lines = file.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]  # Hydra wants that one first
    assert first.startswith("# velm "), first
    if file in OPTIONS and file.parent.name not in ("task", "data", "optim", "run"):
        assert file.stem.split("_")[0] in first, first


@pytest.mark.parametrize("group", ["experiment", "debug"])
def test_experiments_reach_the_options_they_name(group):
    for file in (CONF / group).glob("*.yaml"):
        wanted = OmegaConf.load(file)
        needs = [need for need in NEEDS.get(f"{group}/{file.stem}", ()) if need.startswith(OTHER_KINDS)]
        found = OmegaConf.structured(composed("train", [f"{group}={file.stem}", *needs]))
        for section, values in wanted.items():
            for key, value in values.items():
                assert reaches(value, found[section][key]), (file, section, key, found[section][key])


def reaches(wanted, reached) -> bool:
    """Whether `reached` is what an experiment wants; the parts of a mixture have all their other options, too."""
    if OmegaConf.is_list(wanted):
        return len(wanted) == len(reached) and all(map(reaches, wanted, reached))
    if OmegaConf.is_dict(wanted):
        return all(reaches(value, reached[key]) for key, value in wanted.items())
    return str(getattr(reached, "name", reached)) == str(wanted)


def test_a_saved_config_comes_back_as_it_was(tmp_path):
    config = composed("train", ["vision=resnet50", "text=lstm", "fusion=concat", "loss.beta='linear(0,1,5ep)'"])
    (tmp_path / "config.yaml").write_text(configs.to_yaml(config))
    loaded = configs.load_run_config(tmp_path)
    assert loaded == config
    assert isinstance(loaded.vision, schema.TorchvisionConfig)


def test_every_kind_has_a_choice():
    for group, kinds in schema.KINDS.items():
        for kind in kinds:
            files = (CONF / group).glob("*.yaml")
            assert any(f"/_kind/{group}/{kind}@" in file.read_text() for file in files), f"{group}: {kind}"


def test_the_reference_of_options_is_up_to_date():
    import subprocess
    import sys

    script = Path(__file__).resolve().parents[2] / "scripts" / "make_docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"])
    assert done.returncode == 0, "docs/config.md or docs/matrix.md is stale: run make docs"
