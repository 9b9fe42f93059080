"""Captions as summaries: of an image with several captions, all but one are the source, and that one is to be written.

It can be done with any data set of captions. In training each caption is left out once; in the other parts the last
one is, so that every image counts once.
"""

from __future__ import annotations

from velm_cli.data.examples import Corpus, Example, Examples
from velm_cli.errors import UserError

BETWEEN = " | "  # stands between the captions of a source
FEWEST = 3  # captions, or there would be nothing to summarise


def captions_into_one(corpus: Corpus) -> Corpus:
    """The corpus with these examples, in its order. UserError where its examples are no images with captions."""
    if not corpus.examples.captions_only:
        raise UserError("dataset.summarise=true takes images with several captions, and these examples have a source")
    found, few = Examples(), 0
    for example in corpus.examples:
        captions = [caption.replace(BETWEEN.strip(), " ") for caption in example.targets]
        if len(captions) < FEWEST:
            few += 1
            continue
        if example.split == "train":
            for place in range(len(captions)):
                found.append(_left_out(example, captions, place, f"{example.id}#{place + 1}"))
        else:
            found.append(_left_out(example, captions, len(captions) - 1, example.id))
    if few:
        corpus.notes.append(f"{few:,} images have fewer than {FEWEST} captions, and are left out")
    if not found:
        raise UserError(f"dataset.summarise=true: no image has {FEWEST} captions or more")
    corpus.examples = found
    return corpus


def _left_out(example: Example, captions: list[str], place: int, name: int | str) -> Example:
    source = BETWEEN.join(caption for other, caption in enumerate(captions) if other != place)
    return Example(name, example.split, example.images, source, (captions[place],), example.about)
