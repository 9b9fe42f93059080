"""Labels in prompts, in the space of images and captions: "a photo of a {}", one prompt or several averaged.

The vector of a label is the normalised mean of its prompts' vectors (Radford et al. 2021, section 3.1.4).

Shapes: B images, C labels, P prompts, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from velm_cli.data.batch import Batch
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.learners.matching import TEXTS_AT_ONCE, Matcher, embed_images, embed_texts
from velm_cli.objectives.joint import SigmoidLoss


@torch.no_grad()
def label_embeddings(
    learner: Matcher, tokenizer: Tokenizer, labels: Sequence[str], prompts: Sequence[str], device: torch.device
) -> Tensor:
    """Unit vectors (C, E), float32; each {} of a prompt becomes the label."""
    texts = [prompt.replace("{}", label) for label in labels for prompt in prompts]
    parts = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        rows = tokenizer.encode_batch(texts[start : start + TEXTS_AT_ONCE])
        tokens = [torch.tensor([tokenizer.bos_id, *row, tokenizer.eos_id]) for row in rows]
        padded_NT = pad_sequence(tokens, batch_first=True, padding_value=tokenizer.pad_id).to(device)
        lengths_N = torch.tensor([len(each) for each in tokens], device=device)
        parts.append(embed_texts(learner, padded_NT, lengths_N).float())
    vectors_CPE = torch.cat(parts).unflatten(0, (len(labels), len(prompts)))
    return functional.normalize(vectors_CPE.mean(dim=1), dim=-1)


@torch.no_grad()
def label_logits(learner: Matcher, batch: Batch, label_CE: Tensor) -> Tensor:
    """(B, C), float32: cosine / temperature, of which the loss takes the softmax; the sigmoid loss adds its bias."""
    features = learner.model.encode_image(batch.image_XCHW, batch.feature_XSD)
    assert features is not None and learner.joint_loss is not None
    image_BE = embed_images(learner, learner.model.of_examples(features, batch.image_of_BI)).float()
    joint = learner.joint_loss
    with torch.autocast(image_BE.device.type, enabled=False):  # bfloat16 would round cosines times 100 to halves
        logits_BC = joint.log_scale.exp().float() * (image_BE @ label_CE.t())
    return logits_BC + joint.bias.float() if isinstance(joint, SigmoidLoss) else logits_BC
