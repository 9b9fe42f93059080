"""The model: a vision encoder, a text encoder, a fusion and the output layer, whatever they are.

Shapes: B images, N = B * K texts (the K texts of an image adjacent), T positions, D width, V vocabulary. Where examples
share images: X images, B examples of I images each, L positions of their source.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.models.context import SourceEncoder
from velm_cli.models.freezing import count_frozen
from velm_cli.models.fusion import build_fusion
from velm_cli.models.layers import soft_capped
from velm_cli.models.state import gathered, without_ends
from velm_cli.models.text import build_text
from velm_cli.models.vision import ImageFeatures, VisionEncoder, build_vision
from velm_cli.models.vision.interface import averaged
from velm_cli.models.vision.places import SMALL, ImagePlaces
from velm_cli.models.vision.tiles import Tiled, TileMarks, each_view, views_of
from velm_cli.schema import DecodeConfig, DecodeMethod, FusionConfig, TextConfig, VisionConfig, VisionOutput


class VelmModel(nn.Module):
    """p(next token | image, source, tokens so far)."""

    def __init__(
        self,
        *,
        vision: VisionConfig,
        text: TextConfig,
        fusion: FusionConfig,
        vocab_size: int,
        causal: bool = True,
        source: int | None = None,
    ) -> None:
        """`causal=False`: every word sees the whole text, for objectives that generate nothing.

        `source`: layers of the encoder of the source that the text is written from, 0 where text encoder and fusion
        read it; None: there is no source.
        """
        super().__init__()
        self.vision = build_vision(vision)
        self.text = build_text(text, vocab_size, causal=causal)
        width = self.vision.width if self.vision else None
        self.places = ImagePlaces(vision.images, width) if width and vision.images > 1 else None
        self.source: SourceEncoder | None = None
        if source is not None:
            self.source = SourceEncoder(text, self.text, layers=source, vocab_size=vocab_size, image_width=width)
            width = self.source.width
        self.tiles = vision.tiles if self.vision else 1
        self.fusion = build_fusion(fusion, width, self.text, tiles=self.tiles)
        self.image_size = vision.side
        self.one_token, self.grid = vision.output is VisionOutput.pooled, vision.grid
        self.frozen_stages = count_frozen(vision.freeze)
        self.tile_marks: TileMarks | None = None  # of a fusion that attends to tokens in any order
        if self.vision is not None and self.tiles > 1 and not self.fusion.marks_tiles:
            self.tile_marks = TileMarks(self.tiles, self.vision.width, SMALL)
        start_V = torch.zeros(vocab_size) if self.text.head_bias is None else self.text.head_bias[:vocab_size].clone()
        self.output_bias = nn.Parameter(start_V)

    @property
    def encoder(self) -> VisionEncoder | Tiled:
        """`vision` as images pass it: whole, or cut into tiles."""
        assert self.vision is not None
        return Tiled(self.vision, self.tiles) if self.tiles > 1 else self.vision

    def encode_image(self, image_BCHW: Tensor | None, feature_BSD: Tensor | None = None) -> ImageFeatures | None:
        """What the encoder says of the images, or of those that `kept` these features; None without vision."""
        if feature_BSD is not None and not self.frozen_stages:
            return self._marked(ImageFeatures.unpacked(feature_BSD.float()))
        if self.vision is None:
            return None
        # A frozen encoder needs no graph; torch then keeps no activations either.
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trainable(self.vision)):
            if feature_BSD is not None:
                features = self.encoder.finish(feature_BSD.float(), self.frozen_stages)
            else:
                features = self._encoded(image_BCHW)
        return self.passed_on(features)

    def passed_on(self, features: ImageFeatures) -> ImageFeatures:
        """What goes on to text and fusion of all that the encoder says: all of it, pooled alone, or a coarser grid."""
        return self._marked(self._selected(features))

    def _encoded(self, image_BCHW: Tensor | None) -> ImageFeatures:
        encode = self.encoder
        return ImageFeatures.joined([encode(part_BCHW) for part_BCHW in self._parts(image_BCHW)])

    def _selected(self, features: ImageFeatures) -> ImageFeatures:
        if self.one_token:
            return ImageFeatures(features.pooled_BD[:, None], features.pooled_BD)
        if not self.grid:
            return features
        if self.tiles > 1:
            return each_view(features, self.tiles, lambda view: averaged(view, self.grid))
        return averaged(features, self.grid)

    def _marked(self, features: ImageFeatures) -> ImageFeatures:
        return features if self.tile_marks is None else self.tile_marks.beside(features)

    def of_examples(self, features: ImageFeatures, image_of_BI: Tensor | None) -> ImageFeatures:
        """From X images to B examples, row `image_of` of X for each: told apart where examples have several.

        None: every example has an image of its own.
        """
        if self.places is not None:
            return self.places(features, image_of_BI, padded=self.fusion.takes_padding)
        return features if image_of_BI is None else features.of_examples(image_of_BI)

    @torch.no_grad()
    def kept(self, image_BCHW: Tensor) -> Tensor:
        """(B, S, D): what a cache keeps of images, which training does not change: all that a frozen encoder says,
        or what comes out of the stages that are frozen."""
        assert self.vision is not None
        if self.frozen_stages:
            return torch.cat([self.encoder.begin(part, self.frozen_stages) for part in self._parts(image_BCHW)])
        return self._selected(self._encoded(image_BCHW)).packed()

    def _parts(self, image_BCHW: Tensor | None) -> list[Tensor]:
        """Without gradients a CPU takes few images at once: what they need in between is then still in its memory."""
        assert self.vision is not None and image_BCHW is not None
        if torch.is_grad_enabled() or image_BCHW.device.type != "cpu" or self.vision.training:
            return [image_BCHW]
        return list(image_BCHW.split(max(1, self.vision.images_at_once // views_of(self.tiles))))

    def logits(self, fused: Tensor) -> Tensor:
        """(..., D) -> (..., V); the text's own output matrix, mostly that of its embedding (Press & Wolf 2017)."""
        logits = F.linear(self.scaled(fused), self.output_weight, self.output_bias)
        return soft_capped(logits, self.text.output_cap)

    def scaled(self, fused: Tensor) -> Tensor:
        """Fused states as the output matrix gets them, by the text's `output_scale`."""
        return fused if self.text.output_scale == 1 else fused * self.text.output_scale

    @property
    def output_weight(self) -> Tensor:
        """(V, D)"""
        weight = self.text.output_weight
        # A slice of all of it would be whole in forward, but written anew in backward.
        return weight if len(weight) == len(self.output_bias) else weight[: len(self.output_bias)]

    def context(
        self,
        features: ImageFeatures | None,
        image_of_BI: Tensor | None = None,
        source_BL: Tensor | None = None,
        source_lengths_B: Tensor | None = None,
        *,
        multiple: int = 1,
    ) -> ImageFeatures | None:
        """What the texts of examples are written from: `features` of X images, given to B examples, and their sources.

        `multiple`: L is made a multiple of it, so that batches whose sources differ in length can be decoded together.
        Without a source, and where every example has an image of its own (`image_of` is None), that is `features`.
        """
        of_images = features
        if features is not None:
            features = self.of_examples(features, image_of_BI)
        if self.source is None or source_BL is None:  # a task that has none may share the model
            return features
        assert source_lengths_B is not None
        states_BLD = None
        if self.source.encoder is None and of_images is not None:
            memory = self.memory(of_images, image_of_BI)
            states_BLD, _ = self.fusion.read(self.text, source_BL, memory, lengths_N=source_lengths_B)
        elif self.source.encoder is None:
            states_BLD, _ = self.text(source_BL, lengths_N=source_lengths_B)
        return self.source(self.text, features, source_BL, source_lengths_B, states_BLD=states_BLD, multiple=multiple)

    def memory(self, features: ImageFeatures | None, image_of_BI: Tensor | None = None) -> tuple:
        """What decoding needs of the images, image first; computed once.

        With `image_of`: of B examples. It is made per image where examples share them: copying keys and values takes
        less time than making them, but more than copying features.
        """
        if features is not None and self.places is not None and not features.images:
            return self.fusion.memory(self.of_examples(features, image_of_BI))
        if features is None or image_of_BI is None:
            return self.fusion.memory(features)
        if image_of_BI.shape[1] > 1 or len(image_of_BI) <= len(features.pooled_BD):
            return self.fusion.memory(features.of_examples(image_of_BI))
        memory: tuple = gathered(self.fusion.memory(features), image_of_BI[:, 0])
        return memory

    def memory_for(self, features: ImageFeatures | None, config: DecodeConfig) -> tuple:
        """The same for captions that are decoded as `config` says, made as is least work for so many of their words."""
        texts = config.beams if config.method is DecodeMethod.beam else config.samples
        return self.fusion.memory_for(features, texts * config.max_length // 2)  # captions end before they have to

    def step(self, tokens_NT: Tensor, memory: tuple, state=None, last_N: Tensor | None = None) -> tuple[Tensor, tuple]:
        """Logits (N, V) after the last of further tokens, and the state that goes on from there.

        `last_N`: at the beginning, the place of each row's last token, behind which is padding (`hides_padding`).
        """
        fused_NTD, state = self.fusion.read(self.text, tokens_NT, memory, state)
        if last_N is None:
            return self.logits(fused_NTD[:, -1]), state
        fused_ND = fused_NTD[torch.arange(len(last_N), device=last_N.device), last_N]
        return self.logits(fused_ND), without_ends(state, tokens_NT.shape[1] - 1 - last_N)

    @property
    def hides_padding(self) -> bool:
        """Whether texts of different lengths can begin in one batch, padded behind their ends."""
        return self.text.hides_padding

    @property
    def generates(self) -> bool:
        """Whether captions can be decoded: no state knows later words."""
        return self.text.causal and self.fusion.generates

    def freeze_unused(
        self,
        *,
        text: bool,
        pooled: bool,
        states: bool,
        fused: bool = False,
        tokens: bool = False,
        patches: bool = False,
    ) -> None:
        """Freeze what no objective reaches.

        `text`: words are predicted; `fused`: fused states are judged; `pooled` images and text `states` are
        compared, as are the image's `tokens`; `patches` of each image are predicted from its tokens.
        """
        fused = fused or text
        if self.places is not None:
            uses = self.fusion.uses if fused else frozenset()
            self.places.freeze_unused(tokens=tokens or "tokens" in uses, pooled=pooled or "pooled" in uses)
        tokens = tokens or patches
        pooled = pooled or (fused and (self.one_token or "pooled" in self.fusion.uses))
        tokens = tokens or (fused and not self.one_token and "tokens" in self.fusion.uses)
        if self.tile_marks is not None and not tokens:
            self.tile_marks.requires_grad_(False)
        if not text:
            self.output_bias.requires_grad_(False)
            if self.text.head is not None:
                self.text.head.requires_grad_(False)
        if not fused:
            self.fusion.requires_grad_(False)
        if not (fused or states):
            self.text.requires_grad_(False)
        if self.source is not None:
            self.source.freeze_unused(pooled="pooled" in self.fusion.uses)
            if not (fused and self.fusion.uses):
                self.source.requires_grad_(False)
        if self.vision is None:
            return
        if not (tokens or pooled):
            self.vision.requires_grad_(False)
        for used, names in ((tokens, self.vision.tokens_only), (pooled, self.vision.pooled_only)):
            for name, parameter in self.vision.named_parameters():
                if not used and any(name == part or name.startswith(f"{part}.") for part in names):
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> VelmModel:
        """Training mode, except for frozen parts: their dropout and batch statistics stay still."""
        super().train(mode)
        if mode:
            for module in self.modules():
                if next(module.parameters(), None) is not None and not _trainable(module):
                    module.eval()
        return self


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def count_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
