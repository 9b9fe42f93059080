"""Models of transformers that velm did not train: their words are those of `generate`, one image at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_families import captioner, pictures

from velm_cli.errors import UserError
from velm_cli.models.hf.opening import Found, Pair, find, load
from velm_cli.models.hf.prompts import Asking, answer_of, asking
from velm_cli.models.hf.writing import Shown, Writer
from velm_cli.schema import DecodeConfig, DecodeMethod

CAPTIONERS = (
    "blip", "blip-2", "git", "vit-gpt2", "llava", "llava-next", "idefics3", "qwen2-vl", "paligemma", "pix2struct",
)  # fmt: skip
ANSWERERS = ("blip-vqa", "blip-2", "git", "llava", "llava-next", "idefics3", "qwen2-vl", "paligemma")
QUESTIONS = ("what colour is the big circle?", "how many?", "is the small red triangle left of the blue square?", "")
LONGEST = 8


def opened(name: str, task: str, prompt: str = "") -> tuple[Found, Any, Asking]:
    found = find(captioner(name))
    return found, load(found, torch.device("cpu"), torch.float32), asking(found, task, prompt)


def directly(found: Found, model: Any, asked: Asking, picture: Any, question: str | None, beams: int = 1) -> str:
    """What a user of transformers would write: processor, `generate`, decode, of one image."""
    processor, tokenizer = found.processor, found.processor.tokenizer
    text = asked.given(question, 1)
    if asked.template:
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        inputs = processor(
            text=processor.apply_chat_template(said, add_generation_prompt=True), images=picture, return_tensors="pt"
        )
    elif isinstance(processor, Pair):
        inputs = processor.image_processor(picture, return_tensors="pt")
    elif text is None:
        inputs = processor(images=picture, return_tensors="pt")
    elif found.kind == "git":  # as in its documentation
        ids = tokenizer(text, add_special_tokens=False).input_ids
        inputs = processor(images=picture, return_tensors="pt")
        inputs["input_ids"] = torch.tensor([[tokenizer.cls_token_id, *ids]])
    else:
        inputs = processor(images=picture, text=text, return_tensors="pt")
    inputs.pop("labels", None)
    ids, echoed = inputs.get("input_ids"), 0
    if ids is not None and not model.config.is_encoder_decoder and "Answering" not in type(model).__name__:
        echoed = 0 if found.kind == "blip" else ids.shape[1]
    ends = [tokenizer.get_added_vocab().get(name) for name in ("<end_of_utterance>", "<end_of_turn>", "<|eot_id|>")]
    end = {"eos_token_id": [3, *filter(None, ends)]} if asked.template else {}
    out = model.generate(**inputs, max_new_tokens=LONGEST, num_beams=beams, do_sample=False, **end)
    words = tokenizer.decode(out[0, echoed:], skip_special_tokens=True)
    return " ".join(words.split()) if question is None else answer_of(words)


@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_are_those_of_generate(name):
    found, model, asked = opened(name, "caption")
    images = pictures()
    alone = [directly(found, model, asked, image, None) for image in images]
    writer = Writer(found, model, asked, DecodeConfig(max_length=LONGEST))
    assert writer.write([Shown([image]) for image in images]) == alone
    assert len(set(alone)) > 1 and any(alone), "the words say something of the image"


@pytest.mark.parametrize("name", ANSWERERS)
def test_answers_are_those_of_generate(name):
    """Questions of different lengths in one batch, one of them empty."""
    found, model, asked = opened(name, "vqa")
    shown = [Shown([image], question) for image, question in zip(pictures(), QUESTIONS, strict=True)]
    alone = [directly(found, model, asked, one.pictures[0], one.source) for one in shown]
    assert Writer(found, model, asked, DecodeConfig(max_length=LONGEST)).write(shown) == alone


@pytest.mark.parametrize("name", ["blip", "llava", "vit-gpt2"])
def test_beams_are_those_of_generate(name):
    found, model, asked = opened(name, "caption")
    images = pictures(3)
    alone = [directly(found, model, asked, image, None, beams=3) for image in images]
    writer = Writer(found, model, asked, DecodeConfig(max_length=LONGEST, beams=3))
    assert writer.write([Shown([image]) for image in images]) == alone


def test_drawn_captions_are_those_of_generate():
    found, model, asked = opened("blip", "caption")
    how = DecodeConfig(method=DecodeMethod.nucleus, top_p=0.8, temperature=1.5, max_length=LONGEST)
    torch.manual_seed(5)
    written = Writer(found, model, asked, how).write([Shown([pictures(1)[0]])])
    torch.manual_seed(5)
    inputs = found.processor(images=pictures(1)[0], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=True, top_p=0.8, temperature=1.5, top_k=0)
    assert written == [" ".join(found.processor.decode(out[0], skip_special_tokens=True).split())]


SEARCHES = [
    ({"min_length": 6}, {"min_new_tokens": 6}),
    ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
    ({"no_repeat_ngram": 2, "beams": 2, "length_penalty": 0.5},
     {"no_repeat_ngram_size": 2, "num_beams": 2, "length_penalty": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("how", "theirs"), SEARCHES)
def test_options_of_the_search_are_those_of_generate(how, theirs):
    found, model, asked = opened("vit-gpt2", "caption")
    images = pictures(3)
    written = Writer(found, model, asked, DecodeConfig(max_length=LONGEST, **how)).write(
        [Shown([one]) for one in images]
    )
    inputs = found.processor.image_processor(images, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, **theirs)
    said = found.processor.tokenizer.batch_decode(out, skip_special_tokens=True)
    assert written == [" ".join(text.split()) for text in said]


def test_options_of_the_search_change_words():
    """Of random weights, which each version of transformers draws in its own way, not every option has to."""
    found, model, asked = opened("vit-gpt2", "caption")
    shown = [Shown([one]) for one in pictures(3)]
    plain, *others = (
        Writer(found, model, asked, DecodeConfig(max_length=LONGEST, **how)).write(shown)
        for how in ({}, *(how for how, _ in SEARCHES))
    )
    assert sum(words != plain for words in others) >= 2


@pytest.mark.parametrize("name", ["blip", "git", "pix2struct"])
def test_a_prompt_is_where_captions_begin_and_is_not_among_their_words(name):
    found, model, asked = opened(name, "caption", "a big red")
    tokenizer, images = found.processor.tokenizer, pictures(2)
    begun = tokenizer("a big red", add_special_tokens=False).input_ids
    start = {"blip": [2], "git": [2], "pix2struct": [0]}[name]
    written = Writer(found, model, asked, DecodeConfig(max_length=LONGEST)).write([Shown([each]) for each in images])
    for image, text in zip(images, written, strict=True):
        inputs = found.processor(images=image, return_tensors="pt")
        words = torch.tensor([[*start, *begun, *([3] if name == "blip" else [])]])  # of which BLIP drops the last
        out = model.generate(
            **inputs,
            **{"decoder_input_ids" if name == "pix2struct" else "input_ids": words},
            max_new_tokens=LONGEST,
            do_sample=False,
        )
        assert out[0, : 1 + len(begun)].tolist() == [*start, *begun]
        assert text == " ".join(tokenizer.decode(out[0, 1 + len(begun) :], skip_special_tokens=True).split())


def test_what_generation_config_says_of_searching_is_put_aside_with_a_line():
    found, model, asked = opened("llava", "caption")
    images = pictures(2)
    plain = Writer(found, model, asked, DecodeConfig(max_length=LONGEST)).write([Shown([each]) for each in images])
    model.generation_config.update(num_beams=3, repetition_penalty=2.5, min_length=40, max_length=3)
    writer = Writer(found, model, asked, DecodeConfig(max_length=LONGEST))
    assert writer.write([Shown([each]) for each in images]) == plain
    assert "repetition_penalty=2.5" in writer.notes[0] and "decode.*" in writer.notes[0]


def test_an_image_that_the_processor_refuses_takes_no_other_with_it():
    """Qwen-VL takes no image that is 200 times as long as wide."""
    from PIL import Image

    found, model, asked = opened("qwen2-vl", "caption")
    good = pictures(2)
    thin = Image.new("RGB", (4, 1000))
    writer = Writer(found, model, asked, DecodeConfig(max_length=LONGEST))
    expected = writer.write([Shown([each]) for each in good])
    first, refused, last = writer.write([Shown([good[0]]), Shown([thin]), Shown([good[1]])])
    assert [first, last] == expected
    assert "aspect ratio" in refused.reason


def test_several_images_of_an_example_stand_in_one_turn():
    found, model, asked = opened("idefics3", "vqa")
    one, two = pictures(2)
    how = DecodeConfig(max_length=LONGEST)
    both, first = Writer(found, model, asked, how).write([Shown([one, two], "how many?"), Shown([one], "how many?")])
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": ""}]}]
    said[0]["content"][2]["text"] = asked.given("how many?", 2)
    text = found.processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = found.processor(text=text, images=[one, two], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=LONGEST, eos_token_id=[3, 6])
    assert both == answer_of(found.processor.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
    assert both != first


def test_a_question_that_names_the_token_of_the_image_is_words():
    found, model, asked = opened("llava", "vqa")
    how = DecodeConfig(max_length=LONGEST)
    shown = [Shown(pictures(1), "what <image> is it?"), Shown(pictures(1), "what   is it?")]
    odd, plain = Writer(found, model, asked, how).write(shown)
    assert odd == plain


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes.", "yes"), (" Two  dogs \nAnd more", "two dogs"), ("", ""), ("\n\n No", "no"), ("U.S.A.", "u.s.a")],
)
def test_answers_are_one_line_in_small_letters(text, answer):
    assert answer_of(text) == answer


# ------------------------------------------------------------------------------------ what is refused


def refusal(name: str) -> str:
    with pytest.raises(UserError) as error:
        find(name)
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"checkpoint=hf:{name}")
    return line


def copied(tmp_path: Path, name: str) -> Path:
    import shutil

    return Path(shutil.copytree(captioner(name), tmp_path / name))


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("velm_cli.models.hf.opening.hub_has", lambda name: False)
    assert "no such folder" in refusal(str(tmp_path / "nothing"))
    assert "could not be fetched from the hub" in refusal("owner/name")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(str(tmp_path / "file"))


def test_a_name_of_the_hub_is_fetched_without_pickles_and_code(monkeypatch):
    import huggingface_hub

    fetched = []

    def download(name, *, allow_patterns, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError(name)
        fetched.append((name, allow_patterns))
        return captioner("git")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("velm_cli.models.hf.opening.hub_has", lambda name: True)
    assert find("owner/git").folder == Path(captioner("git"))
    ((name, patterns),) = fetched
    assert name == "owner/git" and "*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in patterns)

    def refused(name, *, allow_patterns, local_files_only=False):
        raise OSError("403: accept the licence first\nat https://...")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    assert "could not be fetched from the hub: 403: accept the licence first" in refusal("owner/gated")


def test_a_folder_without_config_and_a_run_of_velm(tmp_path):
    assert "no config.json" in refusal(str(tmp_path))
    (tmp_path / "config.yaml").write_text("stage: train")
    assert "leave out hf:" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        b"", b"[]", b"{}", b"\xff\xfe", b"[" * 10_000, b'{"model_type": 5}', b'{"model_type": "git", "hidden_size": "x"}',
        b'{"model_type": "git", "architectures": {"a": 5}, "hidden_size": 4}', b'{"model_type": "git", "architectures": ["os"]}',
        b'{"model_type": "git", "architectures": ["GitModel"]}',
        b'{"model_type": "git", "hidden_size": 1000000000, "num_attention_heads": 7}',
    ],
)  # fmt: skip
def test_configs_that_are_none(tmp_path, config):
    folder = copied(tmp_path, "git")
    (folder / "config.json").write_bytes(config)
    with pytest.raises(UserError) as error:
        load(find(str(folder)), torch.device("cpu"), torch.float32)
    assert str(error.value).startswith(f"checkpoint=hf:{folder}") and "\n" not in str(error.value)


def test_weights_that_are_pickles_are_not_opened(tmp_path):
    folder = copied(tmp_path, "git")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "may run code" in refusal(str(folder))
    (folder / "pytorch_model.bin").unlink()
    assert "no weights" in refusal(str(folder))


def test_weights_that_are_something_else_or_of_another_model(tmp_path):
    from safetensors.torch import save_file

    folder = copied(tmp_path, "git")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git-lfs pointer" in refusal(str(folder))
    save_file({"other": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"weights are of another model: .* more missing"):
        load(find(str(folder)), torch.device("cpu"), torch.float32)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(UserError, match="checkpoint=hf:"):
        load(find(str(folder)), torch.device("cpu"), torch.float32)


def test_folders_without_a_processor(tmp_path):
    folder = copied(tmp_path, "git")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "no tokenizer.json" in refusal(str(folder))
    folder = copied(tmp_path, "vit-gpt2")
    (folder / "preprocessor_config.json").unlink()
    assert "no preprocessor_config.json" in refusal(str(folder))


def test_models_that_write_nothing_about_images():
    from tiny_models import folder

    assert "writes no text about images" in refusal(folder("gpt2"))
    assert "writes no text about images" in refusal(folder("clip"))


def test_code_of_a_repository_is_not_run(tmp_path):
    import json

    folder = copied(tmp_path, "git")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "own.py").write_text("open('ran', 'w')\nraise SystemExit\n")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": code}))
    assert "code of its own" in refusal(str(folder))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": code}))
    (folder / "processor_config.json").write_text(json.dumps(processor | {"auto_map": {"AutoProcessor": "own.P"}}))
    find(str(folder))  # a kind that transformers has is read by its own classes
    assert not Path("ran").exists() and not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "task", "prompt", "line"),
    [
        ("blip", "vqa", "", "BlipForQuestionAnswering answers"),
        ("blip-vqa", "caption", "", "writes no captions"),
        ("vit-gpt2", "vqa", "", "answers no questions"),
        ("vit-gpt2", "caption", "a photo of", "has no effect"),
        ("llava", "vqa", "what is it?", "has no {source}"),
        ("llava", "translate", "", "caption, answer and chat"),
        ("llava", "chat", "", "no chat template"),
    ],
)
def test_what_a_family_cannot_do(name, task, prompt, line):
    with pytest.raises(UserError) as error:
        asking(find(captioner(name)), task, prompt)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["llava-next", "qwen2-vl"])
def test_replies_are_those_of_generate(name):
    """Of conversations of several turns with images anywhere, or none, in one batch."""
    found, model, asked = opened(name, "chat")
    one, two = pictures(2)

    def said(role: str, *parts: str | int) -> dict[str, Any]:
        named = ({"type": "text", "text": part} if isinstance(part, str) else part for part in parts)
        return {"role": role, "content": [{"type": "image", "image": p} if isinstance(p, int) else p for p in named]}

    talks = [
        [said("user", "what is", 0, "and", 1, "?"), said("assistant", "a red circle"), said("user", "how many ?")],
        [said("user", 0, "what colour ?")],
        [said("user", "is the green circle big ?")],
    ]
    images = [[one, two], [two], []]
    shown = [Shown(seen, talk=talk) for seen, talk in zip(images, talks, strict=True)]
    replies = Writer(found, model, asked, DecodeConfig(max_length=LONGEST)).write(shown)
    ends = [3, found.processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")]
    for seen, talk, reply in zip(images, talks, replies, strict=True):
        text = found.processor.apply_chat_template(talk, add_generation_prompt=True)
        inputs = found.processor(text=text, images=seen or None, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, eos_token_id=ends)
        words = found.processor.tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        assert reply == words.strip()
    assert len(set(replies)) > 1
