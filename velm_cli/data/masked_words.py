"""Words of a source that are hidden from a model, so that only an image can say what they were.

Caglayan et al. 2019 mask colours and other visual words of the sentence to translate, in training and in evaluation, to
see whether a model looks at the image at all. The lists of English words here are velm's own, to be read and mended:
colours, and the nouns that descriptions of photos have most; other lists are files, a word a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.lines import Refused, text_lines

COLOURS = """
black white red blue green yellow orange brown gray grey pink purple tan beige gold golden silver blond blonde dark
light bright colored coloured colorful colourful multicolored maroon violet turquoise teal navy khaki cream crimson
reddish bluish greenish redheaded
"""
# Singular forms; `man/men` has a plural of its own.
NOUNS = """
man/men woman/women person/people child/children boy girl guy lady baby kid toddler adult teenager couple crowd group
family mother father dad mom son daughter brother sister friend player worker student team rider runner biker cyclist
skier snowboarder skateboarder surfer swimmer climber hiker dancer musician singer performer artist chef cook vendor
policeman/policemen police officer soldier fireman/firemen firefighter doctor nurse teacher bride groom clown cowboy
fisherman/fishermen goalie pitcher batter athlete gymnast wrestler boxer band
dog puppy cat kitten horse cow bull sheep/sheep goat bird duck chicken elephant monkey bear fish/fish animal
car truck bus van taxi train bike bicycle motorcycle scooter boat canoe kayak raft ship plane airplane wagon cart
tractor vehicle skateboard surfboard snowboard ski sled
shirt t-shirt tshirt jacket coat dress skirt pants/pants jeans/jeans shorts/shorts suit hat cap helmet glasses/glasses
sunglasses/sunglasses shoe boot glove scarf tie uniform costume vest sweater hoodie apron swimsuit bikini
goggles/goggles backpack bag purse jersey outfit hair beard face head hand arm leg foot/feet
ball baseball basketball football soccer tennis volleyball racket bat frisbee rope toy balloon kite guitar drum
microphone instrument camera phone laptop computer book newspaper magazine sign flag umbrella stick pole rod net ladder
knife/knives hammer shovel broom brush
table chair bench bed couch sofa desk counter stage window door wall fence floor roof stair step
street road sidewalk path trail track bridge tunnel building house home store shop restaurant kitchen room office market
church school park playground yard garden field court pool beach ocean sea lake river water wave sand shore pond stream
waterfall mountain hill cliff rock snow ice grass tree flower plant forest wood leaf/leaves bush sky sun cloud city town
station platform airport stadium arena construction site ramp rail
food meal cake pizza fruit vegetable apple banana bread meat fish coffee beer wine drink bottle cup glass plate bowl pot
pan grill fire smoke box bucket basket cone tent chair swing slide fountain statue painting picture
"""
LISTS = {"colours": COLOURS, "nouns": NOUNS}
MOST = 1_000_000  # words of a file


def words_to_mask(option: str) -> frozenset[str]:
    """The words that `data.mask_source` names, in lower case, plurals of the nouns included; none for `none`.

    UserError where a file cannot be read, or holds no word.
    """
    if option == "none":
        return frozenset()
    if option in LISTS:
        words = LISTS[option].split()
        return frozenset(form for word in words for form in (_forms(word) if option == "nouns" else [word]))
    path = Path(option).expanduser()
    if not path.is_file():
        raise UserError(f"data.mask_source={option}: neither {', '.join(LISTS)} nor none, and no such file")
    refused: Refused = []
    found = {line.strip().lower() for _, line in text_lines(path, refused)}
    if refused:
        raise UserError(f"data.mask_source={refused[0][0]}: {refused[0][1]}")
    if not 0 < len(found) <= MOST:
        raise UserError(f"data.mask_source={option}: it holds {len(found):,} words, one a line; from 1 to {MOST:,}")
    return frozenset(found)


def _forms(word: str) -> list[str]:
    """The word and its plural."""
    singular, _, plural = word.partition("/")
    if plural:
        return [singular, plural]
    if singular.endswith("y") and singular[-2] not in "aeiou":
        return [singular, f"{singular[:-1]}ies"]
    return [singular, singular + ("es" if singular.endswith(("s", "x", "ch", "sh")) else "s")]


class MaskedTexts:
    """Texts as `data.batch.Texts` wants them, in which each of the `words` is one token, the tokenizer's mask.

    Words are compared in lower case and as whole words. `hidden` is how many there were. Texts end at `limit` tokens.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, limit: int, words: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        longest_first = sorted(words, key=lambda word: (-len(word), word))
        # With the blank before it, as byte-level tokens have it; a hyphen is part of a word.
        pattern = re.compile(rf"\s*(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])", re.IGNORECASE)
        pieces = [pattern.split(texts[number]) for number in range(len(texts))]
        encoded = iter(tokenizer.encode_batch([piece for each in pieces for piece in each]))
        self.hidden = sum(len(each) - 1 for each in pieces)
        rows: list[list[int]] = []
        for each in pieces:
            row: list[int] = []
            for place in range(len(each)):
                row += ([tokenizer.mask_id] if place else []) + next(encoded)
            rows.append(row[:limit])
        self.ids = np.fromiter((token for row in rows for token in row), np.int64)
        self.offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
