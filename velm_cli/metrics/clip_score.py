"""CLIPScore and RefCLIPScore: captions judged by a CLIP-like model that sees the image (Hessel et al. 2021).

CLIP-S = 2.5 * max(cos(caption, image), 0); RefCLIP-S is the harmonic mean of CLIP-S and of the caption's largest
cosine with a reference, max(0, .). Comparable only between scores of the same model, so its name and the hash of its
weights are part of the signature.

Shapes: I images, C captions, D width of the shared space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from velm_cli.data.images import ImageRefused, read_rgb
from velm_cli.errors import UserError
from velm_cli.metrics.scores import ImageId

WEIGHT = 2.5  # of the paper, which stretches cosines to about 0..1
PROMPT = "A photo depicts "
AT_ONCE = 64
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # None would ask on a terminal

ReadImage = Callable[[ImageId], bytes | Path | None]  # an image's file or its content; None where there is none


class ClipJudge:
    """A CLIP-like model of transformers (CLIP, SigLIP) in a local folder, with its processor."""

    def __init__(self, folder: str) -> None:
        """Raises UserError when `folder` holds no such model."""
        import torch
        import transformers

        try:
            self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, **LOCAL)
            model: Any = transformers.AutoModel.from_pretrained(folder, **LOCAL, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0][:160]
            raise UserError(
                f"metrics.clip={folder} is no folder of a CLIP-like model and its processor: {said}; it needs the "
                "weights, preprocessor_config.json and the tokenizer, as save_pretrained of both writes them"
            ) from error
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise UserError(
                f"metrics.clip={folder} is a {model.config.model_type}, which does not compare images and texts"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        try:
            self._images([Image.new("RGB", (64, 64))])
            self._texts(["a dog"])
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())[:160]
            raise UserError(
                f"metrics.clip={folder}: its processor and its model do not fit together: {said}"
            ) from error
        self.problems: dict[ImageId, str] = {}  # why images could not be seen
        weights = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("*.bin"))
        digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in weights)).hexdigest()
        self.signature = f"{model.config.model_type} {Path(folder).resolve().name} {digest[:16]}"

    def score(
        self,
        references: Mapping[ImageId, Sequence[str]],
        hypotheses: Mapping[ImageId, str],
        read_image: ReadImage,
        *,
        on_images: Callable[[int], object] = lambda count: None,
    ) -> tuple[list[float | None], list[float | None]]:
        """CLIP-S and RefCLIP-S of each image, from raw captions; None where there is no image that can be read."""
        ids = list(references)
        clip: list[float | None] = []
        with_references: list[float | None] = []
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            caption_ID = self._texts([hypotheses[image] for image in some])
            reference_CD = self._texts([caption for image in some for caption in references[image]])
            owner_C = np.repeat(np.arange(len(some)), [len(references[image]) for image in some])
            cosine_C = (reference_CD * caption_ID[owner_C]).sum(axis=1)
            nearest_I = np.zeros(len(some))
            np.maximum.at(nearest_I, owner_C, cosine_C)
            found = ((place, self._seen(image, read_image)) for place, image in enumerate(some))
            pictures = {place: picture for place, picture in found if picture is not None}
            seen_I = np.full(len(some), np.nan)
            if pictures:
                places = list(pictures)
                seen_I[places] = (self._images(list(pictures.values())) * caption_ID[places]).sum(axis=1)
            for seen, nearest in zip(seen_I.tolist(), nearest_I.tolist(), strict=True):
                own = None if np.isnan(seen) else WEIGHT * max(seen, 0.0)
                clip.append(own)
                with_references.append(None if own is None else _harmonic(own, nearest))
            on_images(len(some))
        return clip, with_references

    def _seen(self, image: ImageId, read_image: ReadImage) -> Any:
        """The picture; None, and a reason in `problems`, without one or when it is damaged."""
        source = read_image(image)
        if source is None:
            self.problems[image] = "no such file"
            return None
        try:
            return read_rgb(source)
        except ImageRefused as refusal:
            self.problems[image] = str(refusal).replace("dataset.max_pixels=", "at most ")
            return None

    def _texts(self, captions: Sequence[str]) -> np.ndarray:
        """(C, D) unit vectors; captions longer than the model's positions are cut."""
        limit = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained on padded texts; CLIP looks at the end of the text, wherever it is.
        padding = "max_length" if self.model.config.model_type.startswith("siglip") else True
        vectors = []
        for start in range(0, len(captions), 4 * AT_ONCE):
            texts = [PROMPT + caption for caption in captions[start : start + 4 * AT_ONCE]]
            tokens = self.processor.tokenizer(
                texts, padding=padding, truncation=True, max_length=limit, return_tensors="pt"
            )
            vectors.append(self._embed(self.model.get_text_features, tokens))
        return np.concatenate(vectors)

    def _images(self, pictures: Sequence[Any]) -> np.ndarray:
        return self._embed(
            self.model.get_image_features, self.processor.image_processor(images=pictures, return_tensors="pt")
        )

    def _embed(self, features: Callable[..., Any], inputs: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = features(**inputs.to(self.device))
            vectors = getattr(found, "pooler_output", found)  # transformers 5.0 gave the tensor itself
            return torch.nn.functional.normalize(vectors.double(), dim=-1).cpu().numpy()


def _harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first > 0 and second > 0 else 0.0
