"""Ranks in blocks against sorting all pairs, with ties by brute force over their orders."""

import itertools

import numpy as np
import pytest
import torch

from velm_cli.metrics import retrieval
from velm_cli.metrics.retrieval import Ranks, figures, rank_both_ways


def drawn(images: int, captions: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    owner = torch.cat([torch.arange(images), torch.randint(images, (captions - images,))])
    unit = torch.nn.functional.normalize
    return unit(torch.randn(images, width), dim=1), unit(torch.randn(captions, width), dim=1), owner


@pytest.mark.parametrize("block", [1, 70, 1 << 24])
def test_ranks_are_those_of_a_sort(block, monkeypatch):
    monkeypatch.setattr(retrieval, "AT_ONCE", block)
    image, text, owner = drawn(23, 80)
    ranks = rank_both_ways(image, text, owner)
    similarity = (image.double() @ text.double().T).numpy()
    for caption in range(80):
        order = np.argsort(-similarity[:, caption])
        assert ranks.text_C[caption] == 1 + list(order).index(int(owner[caption]))
    for one in range(23):
        order = np.argsort(-similarity[one])
        assert ranks.image_I[one] == 1 + min(np.flatnonzero(owner.numpy()[order] == one))


def test_ties_have_the_mean_rank_of_all_their_orders():
    image = torch.eye(3)[[0, 0, 1]]
    text = torch.eye(3)[[0, 0, 0, 1, 2]]
    owner = torch.tensor([0, 0, 1, 2, 2])
    ranks = rank_both_ways(image, text, owner)
    similarity = (image @ text.T).numpy()

    def mean_rank(scores: np.ndarray, right: set[int]) -> float:
        found = []
        for shuffled in itertools.permutations(range(len(scores))):
            order = sorted(shuffled, key=lambda number: -scores[number])  # stable: ties stay as they were shuffled
            found.append(1 + min(order.index(number) for number in right))
        return float(np.mean(found))

    assert ranks.text_C == pytest.approx([mean_rank(similarity[:, c], {int(owner[c])}) for c in range(5)])
    own = [{c for c in range(5) if owner[c] == i} for i in range(3)]
    assert ranks.image_I == pytest.approx([mean_rank(similarity[i], own[i]) for i in range(3)])


def test_a_collapsed_model_is_at_chance():
    """Which other rules put at 0 or at 100 %."""
    image, text = torch.full((100, 4), 0.5), torch.full((500, 4), 0.5)
    ranks = rank_both_ways(image, text, torch.arange(500) // 5)
    assert set(ranks.text_C) == {50.5}
    assert ranks.image_I == pytest.approx(1 + 495 / 6)
    assert figures(ranks)["rsum"] == 0


def test_figures():
    ranks = Ranks(text_C=np.array([1, 2, 6, 11]), image_I=np.array([1.0, 1.5]))
    found = figures(ranks)
    assert [found[f"t2i_R@{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert [found[f"i2t_R@{k}"] for k in (1, 5, 10)] == [0.5, 1, 1]
    assert found["t2i_median_rank"] == 4 and found["i2t_median_rank"] == 1.25
    assert found["rsum"] == pytest.approx(400)


def test_an_image_without_caption_is_refused():
    image, text, _ = drawn(3, 3)
    with pytest.raises(ValueError, match="every image needs a caption"):
        rank_both_ways(image, text, torch.tensor([0, 0, 1]))
