"""What each family of models is given beside the image: its chat template, a sentence that it was trained with, or no
text at all.

A family that is not listed is given the prompt of its chat template, or, where it has none, the image's token and the
prompt behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from velm_cli.errors import UserError
from velm_cli.models.hf.opening import Found

SOURCE = "{source}"  # in a prompt: where the question goes
DESCRIBE = "Describe the image in one short sentence."
SHORTLY = "{source}\nAnswer the question using a single word or phrase."  # LLaVA 1.5, for VQA v2


@dataclass(frozen=True, slots=True)
class Family:
    """How models of a kind are asked. A prompt of None: they are given no text."""

    caption: str | None = DESCRIBE
    answer: str | None = SHORTLY  # None: they answer no questions
    around: str = "{text}"  # the prompt with what surrounds it, where there is no chat template
    begins: bool = False  # a prompt of a caption is its beginning, and takes no other part
    pads: bool = True  # prompts of several lengths may stand in one batch
    several: bool = False  # examples may have several images


TURN = "USER: {images}\n{text} ASSISTANT:"
FAMILIES = {
    "blip": Family(None, SOURCE, begins=True, pads=False),  # sees padded words of a question (transformers 5)
    "blip-2": Family(None, "Question: {source} Answer:"),
    "instructblip": Family("A short image description:", "Question: {source} Short answer:"),
    "git": Family(None, SOURCE, begins=True, pads=False),  # learned positions that count the padding
    "vision-encoder-decoder": Family(None, None),
    "pix2struct": Family(None, None, begins=True),
    "kosmos-2": Family("An image of", "Question: {source} Answer:", begins=True),
    "florence2": Family("<CAPTION>", None),
    "paligemma": Family("caption en", "answer en {source}", around="{images}{text}"),
    "llava": Family(around=TURN),
    "vipllava": Family(around=TURN),
    "llava_next": Family(around=TURN),
    "fuyu": Family("Generate a coco-style caption.\n", "{source}\n"),
    "idefics2": Family(around="User:{images}{text}<end_of_utterance>\nAssistant:", several=True),
}
OTHER = Family(around="{images}\n{text}\n", several=True)


@dataclass(frozen=True, slots=True)
class Asking:
    """How one model is asked for one task."""

    family: Family
    prompt: str | None  # with SOURCE where the question goes; None: no text
    template: bool  # whether it stands in the model's own chat template
    image: str  # the image's token, where the text says where it is

    def given(self, source: str | None, images: int) -> str | None:
        """The text for an example; of one in a chat template, the user's words alone."""
        if self.prompt is None:
            return None
        text = self.prompt.replace(SOURCE, self.plain(source or ""))
        if self.template:
            return text
        return self.family.around.replace("{images}", self.image * images).replace("{text}", text)

    def plain(self, text: str) -> str:
        """What somebody said, without the image's token, which would be taken for an image."""
        return text.replace(self.image, " ") if self.image else text

    @property
    def told(self) -> str:
        """What a signature says of it."""
        if self.prompt is None:
            return "its chat template" if self.template else "none"
        return f"{self.prompt!r}" + (" in its chat template" if self.template else "")


def asking(found: Found, task: str, prompt: str, *, of_velm: bool = False) -> Asking:
    """How the model is asked; `prompt`: the user's, empty for the usual one. UserError where it cannot do the task.

    `of_velm`: velm export wrote it, of a captioner that has learned to go on from image and BOS alone.
    """
    family = FAMILIES.get(found.kind, OTHER)
    for line in _cannot(found, family, task, prompt):
        raise UserError(line)
    if of_velm and not prompt:
        start = found.processor.tokenizer.bos_token
        return Asking(Family(around=f"{{images}}{start}"), "", False, _image_token(found.processor))
    template = _has_template(found)
    if task == "chat":
        return Asking(family, None, True, _image_token(found.processor))
    usual = family.caption if task == "caption" else family.answer
    return Asking(family, prompt or usual, template, _image_token(found.processor))


# Published processors of these have no chat template; a tokenizer's would be that of another model.
PLAIN = ("blip", "git", "vision-encoder-decoder", "pix2struct", "kosmos-2", "florence2", "paligemma", "fuyu")


def _has_template(found: Found) -> bool:
    return getattr(found.processor, "chat_template", None) is not None and found.kind not in PLAIN


def _cannot(found: Found, family: Family, task: str, prompt: str) -> Iterator[str]:
    answers = found.maker.__name__.endswith("ForQuestionAnswering")
    if task not in ("caption", "vqa", "chat"):
        yield f"{found.refers}: models that velm did not train caption, answer and chat (task=caption, vqa, chat)"
    elif task == "chat" and not _has_template(found):
        yield f"{found.refers} has no chat template in its processor's files, and task=chat goes by one"
    elif task == "caption" and answers:
        yield f"{found.refers} is a {found.maker.__name__}: it answers (task=vqa) and writes no captions"
    elif task == "vqa" and found.kind == "blip" and not answers:
        yield f"{found.refers} is a {found.maker.__name__}: it captions; of BLIP, BlipForQuestionAnswering answers"
    elif task == "vqa" and family.answer is None and not (prompt and found.kind == "florence2"):
        yield f"{found.refers} ({found.kind}) answers no questions: it captions (task=caption)"
    elif prompt and found.kind == "vision-encoder-decoder":
        yield f"task.prompt={prompt!r} has no effect: {found.refers} (vision-encoder-decoder) is given no text"
    elif task == "vqa" and prompt and prompt.count(SOURCE) != 1:
        has = "several" if SOURCE in prompt else "no"
        yield f"task.prompt={prompt!r} has {has} {SOURCE}, the place of the question"
    elif task == "caption" and SOURCE in prompt:
        yield f"task.prompt={prompt!r}: task=caption has no source, so {SOURCE} can stand for none"


def _image_token(processor: Any) -> str:
    token = getattr(processor, "image_token", None) or getattr(processor.tokenizer, "image_token", None)
    return str(getattr(token, "content", token) or "")


def answer_of(text: str) -> str:
    """What a model wrote, as VQA's answers are: the first line, in small letters, without a full stop at its end."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return re.sub(r"\s+", " ", first).strip().removesuffix(".").strip().lower()


def caption_of(text: str) -> str:
    """What a model wrote, on one line."""
    return re.sub(r"\s+", " ", text).strip()
