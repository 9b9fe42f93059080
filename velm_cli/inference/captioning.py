"""Captions of images by a trained model: one of each, the best few of the beams, or several that are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, overload

from velm_cli.data.processes import available_cores
from velm_cli.data.written import all_texts
from velm_cli.errors import UserError
from velm_cli.inference.arguments import (
    Decoding,
    decoding,
    idle_in_caption,
    in_chunks,
    is_one,
    several,
    text_of,
    texts_of,
    whole,
)
from velm_cli.inference.examples import Given
from velm_cli.inference.loaded import Loaded
from velm_cli.inference.pictures import Picture, content_of
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.decoding import decoded_together
from velm_cli.schema import DecodeConfig, DecodeMethod

if TYPE_CHECKING:
    from typing_extensions import Unpack

TOGETHER = 256  # images that are read together, where it is not known how many there are


class Captions:
    """What a `Model` does that has learned to write captions."""

    @overload
    def caption(self, images: Picture, *, n: None = None, best: None = None, **options: Unpack[Decoding]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def caption(self, images: Picture, *, n: int, **options: Unpack[Decoding]) -> list[str]: ...  # type: ignore[overload-overlap]
    @overload
    def caption(self, images: Picture, *, best: int, **options: Unpack[Decoding]) -> list[str]: ...  # type: ignore[overload-overlap]
    @overload
    def caption(
        self, images: Iterable[Picture], *, n: None = None, best: None = None, **options: Unpack[Decoding]
    ) -> list[str]: ...
    @overload
    def caption(self, images: Iterable[Picture], *, n: int, **options: Unpack[Decoding]) -> list[list[str]]: ...
    @overload
    def caption(self, images: Iterable[Picture], *, best: int, **options: Unpack[Decoding]) -> list[list[str]]: ...

    def caption(
        self,
        images: Picture | Iterable[Picture],
        *,
        beams: int = 5,
        n: int | None = None,
        best: int | None = None,
        prompt: str = "",
        max_length: int = 30,
        min_length: int = 0,
        length_penalty: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        allowed: Sequence[str] | None = None,
        seed: int = 0,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Any:
        """A caption of each image; with `n` a list of n captions of each, drawn by nucleus sampling, with `best` one of
        the best of the beams, which are fewer where there are no more.

        `beams`: 1 is greedy. `prompt`: what each caption begins with. `allowed`: the texts that may be written behind
        it. `top_p`, `top_k`, `temperature` and `seed` are of drawn captions, which depend on the seed and the image
        alone. `max_length` and `min_length` count tokens behind the prompt. `repetition_penalty` and `no_repeat_ngram`
        are those of docs/config.md (`decode`).
        """
        model = cast(Loaded, self)
        model.needs("caption")
        if n is not None and best is not None:
            raise UserError("n draws captions, best takes those of the beams: give one of them")
        several_of_each = n if n is not None else best
        how = decoding(
            method=DecodeMethod.beam if n is None else DecodeMethod.nucleus,
            beams=beams if n is None else 1,
            samples=1 if several_of_each is None else whole("best" if n is None else "n", several_of_each),
            max_length=max_length,
            min_length=min_length,
            length_penalty=length_penalty,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            batch_size=batch_size,
        )
        drawing = {"top_p": top_p, "top_k": top_k, "temperature": temperature, "length_penalty": length_penalty}
        if idle := idle_in_caption(n, drawing):
            raise UserError("\n".join(idle))
        if best is not None and best > beams:
            raise UserError(f"best={best}: there are no more captions than beams={beams}")
        whole("seed", seed, least=0), text_of("prompt", prompt)
        texts_of("allowed", allowed)
        alone = is_one(images)
        pictures: Any = [images] if alone else several(images)
        found: list[Any] = []
        with model._bar(pictures, "image", progress) as bar, ThreadPoolExecutor(available_cores()) as pool:
            together = decoded_together(len(pictures), how.batch_size) if isinstance(pictures, Sized) else TOGETHER
            for some in in_chunks(pictures, together):
                jpegs = list(pool.map(model.stored, some))
                texts = self.captions_of(jpegs, how, seed=seed, prompt=prompt, allowed=allowed)
                found += texts if several_of_each is None else [list(all_texts(text)) for text in texts]
                bar.update(len(jpegs))
        return found[0] if alone else found

    def captions_of(
        self,
        jpegs: Sequence[bytes],
        how: DecodeConfig,
        *,
        seed: int = 0,
        prompt: str = "",
        allowed: Sequence[str] | None = None,
    ) -> list[str]:
        """Captions of images that are in the form of the store already (`stored`); where `how.samples` are several,
        the first of each, from which `all_texts` takes all."""
        model = cast(Loaded, self)
        learner: Any = model._able.learner
        assert isinstance(learner, WritingLearner)
        given = Given(jpegs)
        wanted: Sequence[int | str] = given.ids
        if how.method is DecodeMethod.nucleus:  # what is drawn depends on the image's content alone
            how = replace(how, batch_size=max(1, how.batch_size // how.samples))
            contents = [content_of(jpeg) for jpeg in jpegs]
            different = dict(zip(contents, jpegs, strict=True))
            first = "-0" if how.samples == 1 else ""  # a single draw is the first of several
            given = Given(list(different.values()), names=[f"{content}{first}" for content in different])
            wanted = [f"{content}{first}" for content in contents]
        with model._steps(len(given) > how.batch_size), model._autocast():
            batches = model._batches(given, how.batch_size)
            told = learner.describe(
                batches, model._able.tokenizer, how, device=model.device, seed=seed, prompt=prompt, allowed=allowed
            )
            texts = dict(told)
        return [texts[name] for name in wanted]
