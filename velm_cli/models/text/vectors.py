"""Word vectors in GloVe's text format: `word x1 x2 ... xD`, a line a word (Pennington et al. 2014)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velm_cli.errors import UserError
from velm_cli.models.file_kinds import kind_of

LARGEST = 1e6  # of a number in a vector; published ones are below 100


def load_vectors(path: str, ids: Mapping[str, int], width: int) -> tuple[Tensor, Tensor]:
    """(M token ids, M x width vectors) of the words in `ids` that the file knows, the first of each.

    The vectors are centred and scaled to a standard deviation of 1. Raises UserError for another width, a
    line that is not numbers, or a file that knows none of the words.
    """
    found: dict[int, list[float]] = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            word, *values = line.rstrip().split(" ")
            if number == 1 and len(values) == 1:  # word2vec's text format opens with its counts
                continue
            token = ids.get(word)
            if token is None or token in found:
                continue
            if len(values) != width:
                raise UserError(
                    f"text.vectors={path} has {len(values)} numbers in line {number}: say text.width={len(values)}"
                )
            try:
                found[token] = [float(value) for value in values]
                if not all(abs(value) < LARGEST for value in found[token]):  # NaN is not, either
                    raise ValueError
            except ValueError:
                raise UserError(f"text.vectors={path}: line {number} is not a word and {width} numbers") from None
    if not found:
        if (kind := kind_of(Path(path))) is not None:
            raise UserError(f"text.vectors={path} {kind}")
        raise UserError(f"text.vectors={path} knows none of the {len(ids):,} words of the vocabulary")
    vectors = torch.tensor(list(found.values()))
    return torch.tensor(list(found)), (vectors - vectors.mean()) / vectors.std().clamp(min=1e-8)
