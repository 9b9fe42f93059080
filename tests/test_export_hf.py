"""format=hf: plain transformers loads the folder, and gives the same logits and words; other models are refused."""

from pathlib import Path

import pytest
import torch
from tiny_models import folder, language_model
from velm import TINY, call

import velm_cli
from velm_cli.inference.examples import Given

SHORT = [
    "run.batch_size=4",
    "run.log_every=20",
    "run.validate_images=4",
    "optim.warmup_steps=5",
    "optim.lr=0.01",
    "metrics.names=[bleu,cider]",
]
LLAVA = [
    "fusion=prefix",
    "fusion.mapper=tokens",
    "fusion.norm=false",
    "text=gpt2",
    "text.name=lm",
    "vision.image_size=32",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)  # of the language model's weights
    language_model(where / "lm", ["a red circle above two blue stars", "there is one green ring"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        for name, more in {
            "llava": ["vision=clip", f"vision.name={folder('clip')}"],
            "lora": ["vision=clip", f"vision.name={folder('clip')}", "text.lora_rank=2", "vision.layer=1"],
            "dino": ["vision=dinov2", f"vision.name={folder('dinov2')}"],
            "idefics": [
                "vision=siglip", f"vision.name={folder('siglip')}", "fusion.projector=linear", "fusion.shuffle=2",
            ],
            "shuffled": ["vision=clip", f"vision.name={folder('clip')}", "fusion.shuffle=2"],
            "normed": ["vision=clip", f"vision.name={folder('clip')}", "fusion.norm=true"],
        }.items():  # fmt: skip
            assert (
                call("train", "dataset=shapes", *TINY, *LLAVA, *more, *SHORT, "run.max_steps=60", f"name={name}") == 0
            )
        yield where


@pytest.mark.parametrize("run", ["llava", "lora", "idefics"])
def test_transformers_alone_writes_the_same_words(run, place, capsys):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    capsys.readouterr()
    assert call("export", f"checkpoint=runs/train/{run}", f"out={run}", "format=hf") == 0
    assert "checked     largest difference of logits" in capsys.readouterr().out
    images = sorted(map(str, Path("data/shapes").rglob("*.jpg")))[:6]
    model = velm_cli.load(f"runs/train/{run}", "cpu", precision="fp32")
    (batch,) = model._batches(Given([model.stored(image) for image in images]), len(images))
    twin = AutoModelForImageTextToText.from_pretrained(run)
    processor = AutoProcessor.from_pretrained(run)
    size = model._able.learner.model.image_size
    blank = torch.zeros(size, size, 3, dtype=torch.uint8).numpy()
    start = model._able.tokenizer.bos_id
    prompt = processor(images=blank, text="<image><|endoftext|>", return_tensors="pt")["input_ids"]
    place_of_image = twin.config.image_token_id if run == "idefics" else twin.config.image_token_index
    assert prompt[0, -1] == start and (prompt[0, :-1] == place_of_image).all()
    shown = batch.image_XCHW[:, None] if run == "idefics" else batch.image_XCHW
    tokens = twin.generate(
        input_ids=prompt.expand(len(images), -1), pixel_values=shown, max_new_tokens=10, do_sample=False
    )
    written = [processor.tokenizer.decode(row, skip_special_tokens=True) for row in tokens[:, prompt.shape[1] :]]
    told = model.caption(images, beams=1, max_length=10)
    assert [text.split() for text in written] == [text.split() for text in told]
    assert len(set(told)) >= 1 and any(told)


def test_what_transformers_does_not_have_is_refused_in_one_line(place, capsys):
    assert call("export", "checkpoint=runs/train/normed", "out=no", "format=hf") == 2
    said = capsys.readouterr().err
    assert "(fusion.mapper=tokens fusion.norm=true); possible is vision=clip" in said and said.count("\n") == 1
    assert call("export", "checkpoint=runs/train/shuffled", "out=no", "format=hf") == 2
    assert "(fusion.projector=mlp with fusion.shuffle=2); possible is" in capsys.readouterr().err
    assert call("export", "checkpoint=runs/train/dino", "out=no", "format=hf") == 2  # whose last norm LLaVA leaves out
    assert "its logits would differ by" in capsys.readouterr().err
    assert not Path("no").exists()


@pytest.mark.parametrize("run", ["llava", "idefics"])
def test_velm_evaluates_what_it_has_exported_to_the_same_words(run, place):
    """By the processor's own resizing, so a caption may differ where two words are as likely."""
    import json

    shapes = ["dataset=shapes", *[option for option in TINY if option.startswith("dataset.")]]
    short = [
        "run.precision=fp32",
        "metrics.names=[cider]",
        "decode=greedy",
        "decode.max_length=10",
        "report.page=false",
    ]
    short += ["split=train", "limit=12", "decode.no_repeat_ngram=1"]  # or they write nothing but blanks
    folder, names = f"twin-{run}", (f"own-{run}", f"twin-{run}")
    assert call("export", f"checkpoint=runs/train/{run}", f"out={folder}", "format=hf") == 0
    assert call("eval", f"checkpoint=runs/train/{run}", *short, f"name={names[0]}") == 0
    assert call("eval", f"checkpoint=hf:{folder}", *shapes, *short, f"name={names[1]}") == 0
    own, twin = (json.loads(Path(f"runs/evaluate/{name}/predictions.json").read_text()) for name in names)
    same = [ours["caption"].split() == theirs["caption"].split() for ours, theirs in zip(own, twin, strict=True)]
    assert len(same) == 12 and sum(same) >= 11
    assert all(line["caption"].strip() for line in own)
