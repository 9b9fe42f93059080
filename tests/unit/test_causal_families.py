"""Families of causal language models: velm's log p, greedy captions and beams are those of transformers' own model."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest
import torch
import transformers
from causal_families import FAMILIES, REFUSED, RIGHT, family_folder, known
from packaging.version import Version
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.models import decoding
from velm_cli.models import transformers_internals as internals
from velm_cli.models.decoding import decode_stream
from velm_cli.models.velm import VelmModel

BOS, EOS = 1, 2
SIZES = [4, 3, 4]  # images of a batch; there are places for four
NEWEST = Version("5.24")  # of which docs/language-models.md speaks: older ones let fewer families share slots
PREFIX, LENGTH = 3, 9  # positions of an image and of a caption, far beyond the window
SINGLE = {"mpt", "xglm"}  # whose own code overflows in float64, in some versions
FROM_TOKENS = {"ctrl"}  # whose own `generate` takes no embeddings


@functools.cache
def own_and_velm(name: str):
    """transformers' own model, and velm's of the same folder behind a prefix."""
    folder = family_folder(name)
    torch.manual_seed(1)
    model = VelmModel(
        vision=schema.ViTConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2),
        text=schema.CausalLMConfig(name=folder),
        fusion=schema.PrefixConfig(length=PREFIX, dropout=0.0),
        vocab_size=VOCAB,
    )
    own = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for net in (own, model.text.net):
        net.set_experts_implementation("eager")  # torch's grouped products know no float64
    return own.eval(), model.eval()


def generated(own, memory: torch.Tensor, embed, beams: int) -> list[list[int]]:
    """Captions of transformers' `generate`."""
    embedded = torch.cat([memory, embed(torch.full((len(memory), 1), BOS))], dim=1)
    rows = own.generate(
        inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2]), num_beams=beams, max_new_tokens=LENGTH,
        do_sample=False, eos_token_id=EOS, pad_token_id=EOS, length_penalty=0.7, early_stopping="never",
    ).tolist()  # fmt: skip
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


@pytest.mark.parametrize("name", known(RIGHT, FAMILIES))
def test_log_p_is_the_models_own(name):
    """Of whole texts, and of texts that are read a few words at a time."""
    own, model = own_and_velm(name)
    tokens = torch.randint(3, VOCAB, (4, 12))
    for dtype, limit in ((torch.float32, 2e-4), (torch.float64, 1e-5)):  # many families round to float32 within
        if dtype is torch.float64 and name in SINGLE:
            continue
        with torch.no_grad():
            wanted = own.to(dtype)(input_ids=tokens).logits.log_softmax(-1)
            found = model.to(dtype).logits(model.text(tokens)[0]).log_softmax(-1)
            by_steps, state = [], None
            for some in tokens.split([2, 5, 1, 4], dim=1):
                states, state = model.text(some, state)
                by_steps.append(model.logits(states).log_softmax(-1))
        assert wanted.std() > 0.1, "differences would show"
        assert (found - wanted).abs().max() < limit
        assert (torch.cat(by_steps, dim=1) - wanted).abs().max() < limit


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", known(sorted(RIGHT.keys() - FROM_TOKENS), FAMILIES))
def test_captions_are_those_of_generate(name, beams, monkeypatch):
    """Images join others that are under way, as on GPUs; the window is shorter than what is written."""
    monkeypatch.setattr(decoding, "_open", lambda live, places: live.images < places)
    own, model = own_and_velm(name)
    dtype = torch.float32 if name in SINGLE else torch.float64
    own, model = own.to(dtype), model.to(dtype)
    with torch.no_grad():
        for draw in range(60):
            scale = 2.0 ** (draw % 5) * model.text.embedding_scale
            prefix = scale * torch.randn(sum(SIZES), PREFIX, model.text.embedding_width, dtype=dtype)
            wanted = generated(own, prefix, model.text.embed, beams)
            if len(set(map(tuple, wanted))) > 2:
                break
        else:
            raise AssertionError("no images that differ")
        starts = itertools.pairwise([0, *itertools.accumulate(SIZES)])
        parts = [((prefix[start:stop],), stop - start) for start, stop in starts]
        config = schema.DecodeConfig(beams=beams, max_length=LENGTH, length_penalty=0.7)
        captions = dict(decode_stream(model, parts, config=config, bos_id=BOS, eos_id=EOS))
    assert [captions[image] for image in range(sum(SIZES))] == wanted


@pytest.mark.parametrize("name", known(REFUSED, FAMILIES))
def test_what_velm_cannot_run_is_refused_in_one_line(name):
    with pytest.raises(UserError) as error:
        VelmModel(
            vision=schema.ViTConfig(), text=schema.CausalLMConfig(name=family_folder(name)),
            fusion=schema.NoFusionConfig(), vocab_size=VOCAB,
        )  # fmt: skip
    assert "\n" not in str(error.value)
    assert "docs/language-models.md" in str(error.value)


def test_the_page_of_families_is_this_list():
    """docs/language-models.md: which families run, and how their beams go on."""
    page = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\S+)` \| (yes|no) \| (\w*) ?\| ?(.*) \|$", page, re.MULTILINE)
    assert {family for family, runs, _, _ in rows if runs == "yes"} == {family for family, _ in RIGHT.values()}
    assert {family for family, runs, _, why in rows if runs == "no" and why} == {
        family for family, _ in REFUSED.values()
    }
    assert len(rows) == len({family for family, *_ in rows}) == page.count("\n| `")
    beams = {family: beams for family, _, beams, _ in rows}
    for name, (family, _) in RIGHT.items():
        if Version(transformers.__version__) >= NEWEST:
            assert beams[family] == ("shared" if own_and_velm(name)[1].text.shares_slots else "copied"), name


def test_families_that_velm_names_are_tried():
    assert {family for name, (family, _) in RIGHT.items() if "-window" in name} >= internals.MASKED_BY_TYPE
    assert {family for family, _ in RIGHT.values()} >= internals.SCALES.keys()
