"""Every vision encoder x text encoder x fusion: what must hold of each cell, on tiny sizes.

By default a covering design: every pair (vision, text), (vision, fusion), (text, fusion) occurs.
`make test-all` runs the full product. `test_matrix_objectives` adds every objective on every fusion.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from one_batch import decode
from tiny_models import VOCAB, batch_of, folder
from torch import nn

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.models.weights import load_state, save_state
from velm_cli.objectives.weights import constant

BOS, EOS, PAD = 1, 2, 0


def _torchvision(net: str, layer: int = 0):
    return lambda: schema.TorchvisionConfig(net=net, image_size=32, weights="none", layer=layer)


def _transformers(kind: str):
    return lambda: schema.TransformersVisionConfig(name=folder(kind), image_size=24)  # other than its own 16


VISION = {
    "convnet": lambda: schema.ConvNetConfig(image_size=16, width=24, stages=2),
    "vit": lambda: schema.ViTConfig(image_size=16, patch_size=4, width=24, layers=2, heads=2),
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50", 3),
    "vgg16": _torchvision("vgg16", 10),
    "squeezenet1_1": _torchvision("squeezenet1_1", 6),
    "convnext_tiny": _torchvision("convnext_tiny", 3),
    "efficientnet_b0": _torchvision("efficientnet_b0", 5),
    "swin_t": _torchvision("swin_t", 3),
    "vit_b_16": _torchvision("vit_b_16", 1),
    "hf_vit": _transformers("vit"),
    "clip": _transformers("clip"),
    "dinov2": _transformers("dinov2"),
    "siglip": _transformers("siglip"),
    "rcnn": lambda: schema.RegionsConfig(image_size=48, weights="none", regions=3),
    "pooled": lambda: schema.ConvNetConfig(image_size=16, width=24, stages=2, output=schema.VisionOutput.pooled),
    "tiled": lambda: schema.ViTConfig(image_size=8, patch_size=4, width=24, layers=1, heads=2, tiles=2),
}
TEXT = {
    "transformer": lambda: schema.TransformerConfig(width=16, layers=2, heads=2),
    "lstm": lambda: schema.LSTMConfig(width=16, layers=2),
    "gru": lambda: schema.GRUConfig(width=16),
    "gpt2": lambda: schema.CausalLMConfig(name=folder("gpt2")),
    "causal_lm": lambda: schema.CausalLMConfig(name=folder("llama")),
    "causal_lm_frozen": lambda: schema.CausalLMConfig(name=folder("llama"), freeze="all"),
    "bert": lambda: schema.BertConfig(name=folder("bert")),
}
FUSION = {
    "concat": schema.ConcatConfig,
    "add": schema.AddConfig,
    "multiply": schema.MultiplyConfig,
    "weighted_sum": schema.WeightedSumConfig,
    "weighted_gate": lambda: schema.WeightedSumConfig(weights=schema.SumWeights.gate),
    "attention": lambda: schema.AttentionConfig(heads=2),
    "attention_additive": lambda: schema.AttentionConfig(score=schema.AttentionScore.additive, width=8),
    "cross_modal": lambda: schema.CrossModalConfig(layers=2, heads=2),
    "prefix": lambda: schema.PrefixConfig(length=3),
    "prefix_transformer": lambda: schema.PrefixConfig(
        mapper=schema.PrefixMapper.transformer, length=3, layers=1, heads=2
    ),
    "prefix_resampler": lambda: schema.PrefixConfig(mapper=schema.PrefixMapper.resampler, length=3, layers=2, heads=2),
    "prefix_tokens": lambda: schema.PrefixConfig(mapper=schema.PrefixMapper.tokens),
    "gated": lambda: schema.GatedConfig(heads=2),
}
VARIANTS = {
    "pooled", "tiled", "causal_lm_frozen", "weighted_gate", "attention_additive", "prefix_transformer",
    "prefix_resampler", "prefix_tokens",
}  # fmt: skip
REFUSED = {("lstm", "gated"), ("gru", "gated")}  # validate says why


def full_product() -> list[tuple[str, str, str]]:
    return [(v, t, f) for v, t, f in itertools.product(VISION, TEXT, FUSION) if (t, f) not in REFUSED]


def covering_design() -> list[tuple[str, str, str]]:
    """Cells in which every legal pair of two kinds occurs, chosen greedily; the same every time.

    The variants of a kind are only paired with each other and with a few plain kinds.
    """

    def pairs_of(v: str, t: str, f: str) -> set:
        pairs = {("vt", v, t), ("vf", v, f), ("tf", t, f)}
        common = VARIANTS | {"convnet", "transformer", "cross_modal", "prefix"}
        return {pair for pair in pairs if not VARIANTS & set(pair) or common >= set(pair[1:])}

    cells = full_product()
    pairs, chosen = set().union(*(pairs_of(*cell) for cell in cells)), []
    while pairs:
        best = max(cells, key=lambda cell: len(pairs_of(*cell) & pairs))
        chosen.append(best)
        pairs -= pairs_of(*best)
    return chosen


CHOSEN = set(covering_design())
CELLS = [
    pytest.param(*cell, id="-".join(cell), marks=() if cell in CHOSEN else pytest.mark.slow) for cell in full_product()
]


def build(vision: str, text: str, fusion: str) -> VelmModel:
    return VelmModel(vision=VISION[vision](), text=TEXT[text](), fusion=FUSION[fusion](), vocab_size=VOCAB)


def images(vision: str, count: int) -> torch.Tensor:
    side = VISION[vision]().side
    return torch.rand(count, 3, side, side)


def full_logits(model: VelmModel, tokens: torch.Tensor, features: ImageFeatures) -> torch.Tensor:
    fused, _ = model.fusion.read(model.text, tokens, model.memory(features))
    return model.logits(fused)


def open_gates(model: VelmModel) -> None:
    """Gated cross-attention starts shut, and then nothing of the image could matter."""
    with torch.no_grad():
        for name, parameter in model.fusion.named_parameters():
            if "gate_" in name:
                parameter.fill_(0.7)


@pytest.mark.parametrize(("vision", "text", "fusion"), CELLS)
def test_matrix_cell(vision, text, fusion, tmp_path):
    VISION[vision](), TEXT[text]()  # the first to ask for a tiny model makes it, by drawing numbers
    torch.manual_seed(0)
    model = build(vision, text, fusion)
    learner = copy.deepcopy(model)  # large nets take long to initialise
    open_gates(model)
    model.double().eval()
    image = images(vision, 2)
    with torch.no_grad():
        features, of_nothing = (model.encode_image(x.double()) for x in (image, torch.zeros_like(image)))
    check_states(model, features, of_nothing)
    check_decoding(model, features)
    check_round_trip(model, image.double(), features, tmp_path)
    check_learning(learner, image)


def check_states(model: VelmModel, features: ImageFeatures, of_nothing: ImageFeatures) -> None:
    tokens = torch.randint(3, VOCAB, (4, 7))
    with torch.no_grad():
        whole = full_logits(model, tokens, features)
        # The future changes nothing.
        changed = tokens.clone()
        changed[:, 5:] = 3 + (changed[:, 5:] - 3 + torch.randint(1, VOCAB - 3, (4, 2))) % (VOCAB - 3)
        other = full_logits(model, changed, features)
        torch.testing.assert_close(whole[:, :5], other[:, :5], rtol=1e-8, atol=1e-9)
        assert (whole[:, 5:] - other[:, 5:]).abs().max() > 1e-6
        # One token, then three at once, then one at a time: the state must not care.
        memory, state = model.memory(features), None
        for start, stop in [(0, 1), (1, 4), (4, 5), (5, 6), (6, 7)]:
            logits, state = model.step(tokens[:, start:stop], memory, state)
            torch.testing.assert_close(logits, whole[:, stop - 1], rtol=1e-6, atol=1e-7)
        # What serves few words says the same.
        logits, _ = model.step(tokens, model.fusion.memory_for(features, 1))
        torch.testing.assert_close(logits, whole[:, -1], rtol=1e-6, atol=1e-7)
        # The captions of an image share it, and not each other.
        for row in (0, 3):
            alone = full_logits(model, tokens[row : row + 1], features.select(torch.tensor([row // 2])))
            torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-6, atol=1e-7)
        # The image matters: far above rounding (1e-16), if little through an untrained net with small weights.
        assert (whole - full_logits(model, tokens, of_nothing)).abs().max() > 1e-10


def check_decoding(model: VelmModel, features: ImageFeatures) -> None:
    with torch.no_grad():
        memory = model.memory(features)
    config = schema.DecodeConfig(beams=3, max_length=5)
    captions = decode(model, memory, images=2, config=config, bos_id=BOS, eos_id=EOS, banned=[PAD, BOS])
    assert len(captions) == 2
    assert all(len(caption) <= 5 and not {PAD, BOS, EOS} & set(caption) for caption in captions)


def check_round_trip(model: VelmModel, image: torch.Tensor, features: ImageFeatures, folder) -> None:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in model.parameters()}), "a parameter would be saved under two names"
    save_state(model.state_dict(), folder / "model.safetensors")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():  # not what a file need not hold, such as frequencies of positions
            tensor.zero_()
    other.load_state_dict(load_state(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()  # a thousand cells of 100 MB and more fill a disk
    tokens = torch.randint(3, VOCAB, (2, 4))
    with torch.no_grad():
        assert torch.equal(full_logits(model, tokens, features), full_logits(other, tokens, other.encode_image(image)))


def check_learning(model: VelmModel, image: torch.Tensor) -> None:
    """A tiny step along the gradient lowers the loss by as much as the gradient says; frozen weights have none."""
    model.freeze_unused(text=True, pooled=False, states=False)
    model.double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics of two images curve too much for a step of this size
            module.eval()
    tokens = torch.randint(3, VOCAB, (4, 8))

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # the same dropout each time, so that only the weights make the difference
        logits = full_logits(model, tokens[:, :-1], model.encode_image(image.double()))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    loss().backward()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
    with torch.no_grad():
        drop = 1e-6  # a hundred times what float32 in pretrained layers rounds
        step = drop / float(sum((parameter.grad**2).sum() for parameter in learning))
        sides = []
        for steps in (1, -2):  # forth, and as far to the other side, so that curvature cancels
            for parameter in learning:
                parameter -= steps * step * parameter.grad
            sides.append(float(loss()))
        assert (sides[1] - sides[0]) / 2 == pytest.approx(drop, rel=0.05)


OBJECTIVES = {
    "text": ("text", schema.LossConfig(chunk=4)),
    "own_words": ("text", schema.LossConfig(scheduled_sampling="0.5")),
    "masked": ("text", schema.LossConfig(text=schema.TextLoss.masked)),
    "image": ("image", schema.LossConfig()),
    "patches": ("image", schema.LossConfig(image=schema.ImageLoss.masked_patches, patch_size=8)),
    "contrastive": ("joint", schema.LossConfig()),
    "sigmoid": ("joint", schema.LossConfig(joint=schema.JointLoss.sigmoid)),
    "matching": ("joint", schema.LossConfig(joint=schema.JointLoss.matching)),
    "all": ("text image joint", schema.LossConfig(joint=schema.JointLoss.matching)),
    "pretraining": (
        "text image joint",
        schema.LossConfig(
            text=schema.TextLoss.masked,
            image=schema.ImageLoss.masked_patches,
            patch_size=8,
            joint=schema.JointLoss.matching,
        ),
    ),
}
JUDGING = {"co_attention": lambda: schema.CoAttentionConfig(layers=2, heads=2)}  # generate nothing
WRITING = {"text", "own_words", "all"}  # objectives that need a fusion that generates


def learner(text: str, fusion: str, objective: str, vision: str = "convnet") -> VelmModel:
    causal = OBJECTIVES[objective][1].text is schema.TextLoss.next_token
    model = VelmModel(
        vision=VISION[vision](),
        text=TEXT[text](),
        fusion=(FUSION | JUDGING)[fusion](),
        vocab_size=VOCAB,
        causal=causal,
    )
    open_gates(model)
    return model


OBJECTIVE_CELLS = [
    *(("transformer", fusion, objective) for fusion in FUSION for objective in OBJECTIVES),
    *((text, fusion, objective) for text in TEXT for fusion in JUDGING for objective in ("matching", "contrastive")),
    *((text, fusion, "masked") for text in ("transformer", "bert") for fusion in (JUDGING | FUSION)),
]


@pytest.mark.parametrize(("text", "fusion", "objective"), sorted(set(OBJECTIVE_CELLS)))
def test_matrix_objectives(text, fusion, objective):
    torch.manual_seed(0)
    vision = "siglip" if objective == "image" else "dinov2" if objective == "pretraining" else "convnet"
    model = learner(text, fusion, objective, vision)
    active, loss = OBJECTIVES[objective]
    terms = frozenset(active.split())
    task = WritingLearner(model, loss, concepts=5, weights=constant(*terms)).train()
    batch = batch_of(images(vision, 3))
    optimizer = torch.optim.AdamW((p for p in task.parameters() if p.requires_grad), lr=3e-3)
    totals = []
    for _ in range(4):
        torch.manual_seed(1)
        found = task(batch, Moment(terms))
        assert set(found) == terms
        total = sum(term.sum / term.count for term in found.values())
        optimizer.zero_grad()
        total.backward()
        unreached = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
        assert not unreached, f"no gradient for {unreached}"
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("fusion", FUSION | JUDGING)
@pytest.mark.parametrize("text", ["transformer", "bert"])
def test_matrix_every_word_sees_the_whole_text_and_no_padding(text, fusion):
    """With causal=False, what stands after a caption's end, and in other captions, changes nothing."""
    torch.manual_seed(0)
    model = learner(text, fusion, "masked").double().eval()
    assert not model.generates
    image = images("convnet", 2).double()
    tokens, lengths = torch.randint(3, VOCAB, (4, 7)), torch.tensor([7, 4, 5, 1])

    def fused(rows: torch.Tensor, image: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        memory = model.memory(model.encode_image(image))
        return model.fusion.read(model.text, rows, memory, lengths_N=lengths)[0]

    with torch.no_grad():
        whole = fused(tokens, image, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = fused(tokens[row : row + 1, :length], image[row // 2 : row // 2 + 1], lengths[row : row + 1])
            torch.testing.assert_close(whole[row : row + 1, :length], alone, rtol=1e-8, atol=1e-9)
        changed = tokens.clone()
        changed[0, 6] = 3 + (changed[0, 6] - 2) % (VOCAB - 3)
        assert (whole[0, 0] - fused(changed, image, lengths)[0, 0]).abs().max() > 1e-9, "the first word sees the last"


def test_matrix_every_choice_is_in_it():
    """A new YAML needs a row here."""
    from velm_cli import compose

    def choices(group: str) -> set[str]:
        return {path.stem for path in (compose.conf_dir() / group).glob("*.yaml")} - {"none"}

    same_class = {"resnet34", "resnet101", "vgg19"}  # other depths of what is in it
    assert choices("vision") - same_class <= set(VISION)
    assert choices("text") <= set(TEXT)
    assert choices("fusion") - {"external"} <= set(FUSION | JUDGING)  # test_external.py


def test_matrix_what_is_refused_says_why(monkeypatch):
    from velm_cli.validate import _model

    for text, fusion in REFUSED:
        root = schema.TrainRoot(
            dataset=schema.ShapesConfig(), vision=VISION["convnet"](), text=TEXT[text](), fusion=FUSION[fusion](),
            task=schema.CaptionTaskConfig(),
        )  # fmt: skip
        assert list(_model(root)) == [
            f"fusion=gated goes between the layers of a transformer, and text={text} is recurrent"
        ]


def test_matrix_refused_objectives_say_why():
    from velm_cli.validate import validate

    def problems(
        loss: schema.LossConfig, *, text: str = "lstm", fusion: str = "add", vision="convnet", **vision_options
    ):
        root = schema.TrainRoot(
            dataset=schema.ShapesConfig(), vision=VISION[vision](), text=TEXT[text](),
            fusion=(FUSION | JUDGING)[fusion](), task=schema.CaptionTaskConfig(), loss=loss,
        )  # fmt: skip
        for name, value in vision_options.items():
            setattr(root.vision, name, value)
        with pytest.raises(UserError) as error:
            validate(root)
        return str(error.value)

    masked = schema.LossConfig(text=schema.TextLoss.masked)
    assert problems(masked) == "loss.text=masked: text=lstm reads in one direction only; use transformer or bert"
    assert "text=causal_lm reads in one direction only" in problems(masked, text="gpt2")
    assert problems(schema.LossConfig(), fusion="co_attention").startswith(
        "fusion=co_attention knows the whole caption"
    )
    patches = schema.LossConfig(beta="1", image=schema.ImageLoss.masked_patches)
    assert "regions are none" in problems(patches, vision="rcnn", freeze="none")
    assert "vision.freeze=all keeps from learning" in problems(patches, freeze="all")
    assert problems(schema.LossConfig(scheduled_sampling="1.5")) == (
        "loss.scheduled_sampling=1.5: a probability, so at most 1"
    )
    assert "loss.scheduled_sampling: 'x' is neither" in problems(schema.LossConfig(scheduled_sampling="x"))
    assert "loss.masked_words=1" in problems(schema.LossConfig(masked_words=1.0))


def test_a_name_that_is_no_folder_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"^text.name=nobody/nothing could not be fetched from the hub: give a local f"):
        VelmModel(
            vision=VISION["vit"](), text=schema.CausalLMConfig(name="nobody/nothing"), fusion=FUSION["add"](), vocab_size=9
        )  # fmt: skip
    with pytest.raises(UserError, match=r"^vision.name=.*nowhere does not exist$"):
        build_with_vision(schema.TransformersVisionConfig(name=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^vision.name=.*empty is not a folder of a transformers model: "):
        build_with_vision(schema.TransformersVisionConfig(name=str(tmp_path / "empty")))


def build_with_vision(vision) -> VelmModel:
    return VelmModel(vision=vision, text=TEXT["lstm"](), fusion=FUSION["add"](), vocab_size=9)
