"""format=hf: a transformers model that computes what velm's does, where transformers has the architecture.

Of velm's combinations two have a twin in transformers: a vision encoder and a causal language model of transformers,
joined as LLaVA joins them (`fusion=prefix fusion.mapper=tokens fusion.norm=false`), are a
`LlavaForConditionalGeneration`; joined as Idefics3 joins them (`idefics.py`), one of that. Others normalise image
tokens before they use them, or average the words of a text, which no class of transformers does; an export would be
another model.

velm adds a bias to its logits, for which that class has no place: `generate` adds it (`sequence_bias` in
generation_config.json), plain logits lack it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm_cli.errors import UserError
from velm_cli.exporting.anonymous import model_name
from velm_cli.exporting.idefics import idefics3
from velm_cli.inference.abilities import Able
from velm_cli.models.lora import merge
from velm_cli.models.transformers_internals import positions_for
from velm_cli.schema import PrefixConfig, PrefixMapper, Projector, TrainRoot, VisionOutput

POSSIBLE = (
    "format=hf: transformers has no class that computes this model ({why}); possible is vision=clip (or another "
    "transformers encoder whose last hidden state is its output) text=gpt2 or causal_lm fusion=prefix "
    "fusion.mapper=tokens fusion.norm=false, which is LLaVA; vision=siglip with fusion.projector=linear too, which is "
    "Idefics3, with any fusion.shuffle"
)
IMAGE = "<image>"


def refusals(config: TrainRoot, able: Able) -> Iterator[str]:
    """Why the model has no twin."""
    fusion, vision = config.fusion, config.vision
    if "caption" not in able.can:
        yield f"task={config.task.kind}"
    if getattr(able.learner, "prompts", False):
        yield "a prompt before captions (task.prompt)"
    if vision.kind != "transformers":
        yield f"vision={vision.kind}"
    if config.text.kind != "causal_lm":
        yield f"text={config.text.kind}"
    if not isinstance(fusion, PrefixConfig):
        yield f"fusion={fusion.kind}"
    elif fusion.mapper is not PrefixMapper.tokens or fusion.norm:
        yield f"fusion.mapper={fusion.mapper.value} fusion.norm={str(fusion.norm).lower()}"
    elif fusion.projector is Projector.mlp and fusion.shuffle > 1:
        yield f"fusion.projector=mlp with fusion.shuffle={fusion.shuffle}"
    if vision.tiles > 1 or vision.images != 1:
        yield f"vision.tiles={vision.tiles} vision.images={vision.images}"
    if vision.output is VisionOutput.pooled or vision.grid or getattr(vision, "join", None):
        yield "vision.output=pooled, vision.grid or vision.join"


def write_hf(able: Able, config: TrainRoot, out: Path, tolerance: float) -> float:
    """Write the transformers model into `out`; the largest difference of logits. Changes the learner of `able`.

    UserError where there is no such model, or the difference is above the tolerance.
    """
    if why := next(refusals(config, able), None):
        raise UserError(POSSIBLE.format(why=why))
    import transformers

    learner: Any = able.learner
    model, text = learner.model, learner.model.text
    if (text.output_scale, text.output_cap) != (1.0, 0.0):
        raise UserError(POSSIBLE.format(why=f"the logits of {model_name(text.name)} are scaled or capped"))
    if any(getattr(part, "lora_rank", 0) for part in (config.vision, config.text)):
        merge(learner)
    try:
        twin = _twin(transformers, model, getattr(config.fusion, "projector", None) is Projector.linear)
        _settle_generation(able, twin)
        apart = _largest_difference(able, twin)
    except (RuntimeError, ValueError) as error:  # such as an image size that its encoder does not take
        raise UserError(POSSIBLE.format(why=" ".join(str(error).split())[:160])) from error
    if not apart <= tolerance:
        why = f"its logits would differ by {apart:.1e}, tolerance={tolerance:g}"
        raise UserError(POSSIBLE.format(why=why))
    _quietly(lambda: twin.save_pretrained(out))
    _write_processor(transformers, able, twin, out)
    return apart


def _twin(transformers: Any, model: Any, linear: bool) -> Any:
    vision, text = model.vision, model.text
    vocabulary, rows = len(model.output_bias), len(text.output_weight)
    of_text, of_vision = (type(net.config).from_dict(net.config.to_dict()) for net in (text.net, vision.net))
    of_vision.num_hidden_layers = len(vision.blocks)
    of_images = _for_size(vision.net, of_vision, model.image_size)
    of_text.vocab_size = max(rows, vocabulary + 1)  # the image's place in a text is a token behind all others
    of_text.tie_word_embeddings = False

    def fill(language_model: Any, head: Any) -> None:
        words = text.net.get_input_embeddings().weight
        embedding = language_model.get_input_embeddings().weight
        own = next(name for name, parameter in language_model.named_parameters() if parameter is embedding)
        given = {name: tensor for name, tensor in text.net.state_dict().items() if name != own}
        found = language_model.load_state_dict(given, strict=False)
        assert not found.unexpected_keys and all(own in name for name in found.missing_keys), found
        with torch.no_grad():
            embedding[: len(words)] = words
            head.weight[:rows] = text.output_weight

    if linear:
        if type(vision.net).__name__ != "SiglipVisionModel":
            raise UserError(POSSIBLE.format(why="fusion.projector=linear with another encoder than SigLIP"))
        return idefics3(transformers, model, of_vision, of_images, of_text, fill)
    config = transformers.LlavaConfig(
        vision_config=of_vision,
        text_config=of_text,
        image_token_index=vocabulary,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    twin = transformers.LlavaForConditionalGeneration(config).eval()
    inner = twin.model
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    found = inner.vision_tower.load_state_dict(of_images, strict=False)  # ViT's pooler is what velm does not use
    assert not found.unexpected_keys and all("pooler" in name for name in found.missing_keys), found
    fill(inner.language_model, twin.lm_head)
    with torch.no_grad():
        first, _, second = model.fusion.map
        for mine, its in (
            (first, inner.multi_modal_projector.linear_1),
            (second, inner.multi_modal_projector.linear_2),
        ):
            its.weight.copy_(mine.weight)
            its.bias.copy_(mine.bias)
    return twin


@torch.no_grad()
def _for_size(net: Any, config: Any, size: int) -> dict[str, Tensor]:
    """The encoder's weights with positions for images of this size, and so `config`: velm interpolates them in each
    pass. DINOv2 does so itself."""
    state = dict(net.state_dict())
    if net.config.image_size == size:
        return state
    for path, part in net.named_modules():
        positions = positions_for(part, size, net.config.image_size, net.config.patch_size)
        if positions is not None:
            config.image_size = size
            state[f"{path}.position_embedding.weight".lstrip(".")] = positions
    return state


def _settle_generation(able: Able, twin: Any) -> None:
    """Greedy words of `generate` are those of velm: its bias, and the tokens that it never writes."""
    learner: Any = able.learner
    bias, tokenizer = learner.model.output_bias.detach(), able.tokenizer
    never = {*tokenizer.never_written, *range(len(bias), twin.config.text_config.vocab_size)}
    settings = twin.generation_config
    settings.bos_token_id, settings.eos_token_id = tokenizer.bos_id, tokenizer.eos_id
    settings.pad_token_id = tokenizer.eos_id
    settings.suppress_tokens = sorted(never)
    if bias.any():
        settings.sequence_bias = [[[token], value] for token, value in enumerate(bias.tolist()) if value]


@torch.no_grad()
def _largest_difference(able: Able, twin: Any, *, images: int = 3, words: int = 8) -> float:
    learner: Any = able.learner
    model = learner.model
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, 3, model.image_size, model.image_size, generator=generator)
    tokens = torch.randint(len(model.output_bias), (images, words), generator=generator)
    features = model.encode_image(image)
    memory = model.memory(features)
    positions = memory[0].shape[1]
    fused, _ = model.fusion.read(model.text, tokens, memory, None)
    mine = model.logits(fused)
    places = torch.full((images, positions), len(model.output_bias))
    inputs = {"input_ids": torch.cat([places, tokens], dim=1), "pixel_values": image}
    if not _is_llava(twin):
        inputs["pixel_values"] = image[:, None]  # of any number of images each
    theirs = twin(**inputs).logits[:, positions:]
    return float((theirs[..., : mine.shape[-1]] + model.output_bias - mine).abs().max())


def _write_processor(transformers: Any, able: Able, twin: Any, out: Path) -> None:
    learner: Any = able.learner
    tokenizer, pixels = able.tokenizer, learner.pixels
    tokenizer.save(out / "velm")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(out / "velm/tokenizer.json"))
    names = {number: word for word, number in tokenizer.word_ids.items()}
    fast.add_special_tokens({"bos_token": names[tokenizer.bos_id], "eos_token": names[tokenizer.eos_id]})
    fast.add_tokens([transformers.AddedToken(IMAGE, special=True, normalized=False)])
    assert fast.convert_tokens_to_ids(IMAGE) == len(learner.model.output_bias)
    side, size, resizing = pixels.resizing.side(pixels.size), pixels.size, pixels.resizing
    images = transformers.CLIPImageProcessor(
        size={"height": side, "width": side} if resizing.whole else {"shortest_edge": side},
        crop_size={"height": size, "width": size},
        resample=resizing.resample,
        image_mean=list(pixels.mean),
        image_std=list(pixels.std),
    )
    patch = twin.config.vision_config.patch_size * learner.model.fusion.shuffle
    positions = learner.model.memory(learner.model.encode_image(torch.zeros(1, 3, size, size)))[0].shape[1]
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=patch,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        num_additional_image_tokens=positions - (size // patch) ** 2,
    )
    _quietly(lambda: processor.save_pretrained(out))
    for file in (out / "velm").iterdir():
        file.unlink()
    (out / "velm").rmdir()


def lines(able: Able) -> str:
    """Python that captions a photo with transformers alone."""
    names = {number: word for word, number in able.tokenizer.word_ids.items()}
    linear = able.config.fusion.projector is Projector.linear  # type: ignore[attr-defined]
    kind = "Idefics3ForConditionalGeneration" if linear else "LlavaForConditionalGeneration"
    several = 'inputs["pixel_values"] = inputs["pixel_values"][:, None]  # one image\n' if linear else ""
    return f"""import torch
from PIL import Image
from transformers import AutoProcessor, {kind}

processor = AutoProcessor.from_pretrained("THIS_FOLDER")
model = {kind}.from_pretrained("THIS_FOLDER")
inputs = processor(images=Image.open("photo.jpg"), text="{IMAGE}{names[able.tokenizer.bos_id]}", return_tensors="pt")
{several}tokens = model.generate(**inputs, max_new_tokens=30, do_sample=False)
print(processor.batch_decode(tokens[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])"""


def _is_llava(twin: Any) -> bool:
    return type(twin).__name__ == "LlavaForConditionalGeneration"


def _quietly(write: Any) -> None:
    """transformers tells of settings that it saves, which are meant."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        write()
    finally:
        logger.setLevel(before)
