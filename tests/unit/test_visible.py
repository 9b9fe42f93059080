"""Rows with fewer image positions than others: what stands in the others' places changes nothing."""

import pytest
import torch
from one_batch import decode
from test_matrix import BOS, EOS, FUSION, JUDGING, PAD, TEXT, open_gates
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.models.fusion import build_fusion
from velm_cli.models.text import build_text
from velm_cli.models.vision import ImageFeatures

WIDTH, POSITIONS, SEEN = 24, 6, 4
TAKES_NONE = {"prefix_tokens"}  # validate refuses it: padding between image and text would count as positions


class Parts(torch.nn.Module):
    """A text encoder and a fusion, without an image encoder."""

    def __init__(self, fusion: str) -> None:
        super().__init__()
        self.text = build_text(TEXT["transformer"](), VOCAB, causal=fusion not in JUDGING)
        self.fusion = build_fusion((FUSION | JUDGING)[fusion](), WIDTH, self.text)
        self.head = torch.nn.Linear(self.text.width, VOCAB)

    def step(self, tokens, memory, state=None):
        fused, state = self.fusion.read(self.text, tokens, memory, state)
        return self.head(fused[:, -1]), state


def drawn(fusion: str) -> tuple[Parts, ImageFeatures, ImageFeatures]:
    """The parts; images of which the second has only its first positions; and that one by itself, without padding."""
    torch.manual_seed(0)
    parts = Parts(fusion).double().eval()
    open_gates(parts)
    tokens, pooled = torch.randn(2, POSITIONS, WIDTH).double(), torch.randn(2, WIDTH).double()
    visible = torch.ones(2, POSITIONS, dtype=torch.bool)
    visible[1, SEEN:] = False
    alone = ImageFeatures(tokens[1:, :SEEN], pooled[1:])
    return parts, ImageFeatures(tokens, pooled, visible), alone


@pytest.mark.parametrize("few", [False, True], ids=["memory", "memory_for"])
@pytest.mark.parametrize("fusion", sorted((FUSION.keys() | JUDGING.keys()) - TAKES_NONE))
def test_what_is_not_visible_changes_nothing(fusion, few):
    parts, features, alone = drawn(fusion)
    words = torch.randint(3, VOCAB, (4, 5))  # two texts an image

    def fused(features, words):
        memory = parts.fusion.memory_for(features, 1) if few else parts.fusion.memory(features)
        return parts.fusion.read(parts.text, words, memory)[0]

    expected = fused(alone, words[2:])
    features.tokens_BSD.requires_grad_()
    found = fused(features, words)[2:]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), features.tokens_BSD, allow_unused=True, materialize_grads=True)
    assert not gradient[1, SEEN:].any() and not gradient[0].any()
    with torch.no_grad():
        features.tokens_BSD[1, SEEN:] = 1e6
        torch.testing.assert_close(fused(features, words)[2:], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fusion", sorted(FUSION.keys() - TAKES_NONE))
def test_decoding_sees_what_training_saw(fusion):
    parts, features, alone = drawn(fusion)
    config = schema.DecodeConfig(beams=3, max_length=6)

    def captions(features, images):
        with torch.no_grad():
            memory = parts.fusion.memory_for(features, 9)
        return decode(parts, memory, images=images, config=config, bos_id=BOS, eos_id=EOS, banned=[PAD, BOS])

    assert captions(features, 2)[1] == captions(alone, 1)[0]


def test_a_fusion_that_cannot_says_so():
    parts, features, _ = drawn("prefix_tokens")
    assert not parts.fusion.takes_padding
    with pytest.raises(AssertionError, match="padded"):
        parts.fusion.memory(features)
