"""Conversations about images: all that was said before in, the assistant's next reply out; scored as free text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import (
    ChatTaskConfig,
    DecodeConfig,
    MetricsConfig,
    NoFusionConfig,
    NoVisionConfig,
    PrefixConfig,
    TextLoss,
    TrainRoot,
)
from velm_cli.tasks.from_source import write_texts
from velm_cli.tasks.interface import ExampleId, Needs, Predicted, Session, Shape, Task

if TYPE_CHECKING:
    from velm_cli.data.batch import Batch
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.metrics.scores import Scores
    from velm_cli.metrics.targets import Target
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


class ChatTask(Task[str]):
    """An example is a conversation up to a reply; its target is that reply."""

    kind = "chat"
    unit = target = "conversation"
    verb, doing = "reply to", "replies"
    primary = "ROUGE-L"
    needs = Needs(talks=True)
    options: ChatTaskConfig
    template: str | None = None  # by which conversations are written, for the signature of scores; None: not known

    def problems(self, config: TrainRoot) -> Iterator[str]:
        sees = not isinstance(config.vision, NoVisionConfig)
        if sees and not isinstance(config.fusion, PrefixConfig):
            yield (
                f"fusion={config.fusion.kind}: task=chat puts images between the words of a conversation, which "
                "fusion=prefix does"
            )
        if not sees and not isinstance(config.fusion, NoFusionConfig):
            yield f"fusion={config.fusion.kind}: there are no images to fuse (vision=none): say fusion=none"
        if config.loss.text is not TextLoss.next_token:
            yield f"loss.text={config.loss.text.value}: task=chat predicts next words: say loss.text=next_token"
        for name, weight in (("beta", config.loss.beta), ("gamma", config.loss.gamma)):
            if not parse_weight(f"loss.{name}", weight).always_zero:
                yield f"loss.{name}={weight}: task=chat learns by the words of replies alone: set it to 0"
        if config.loss.scheduled_sampling != "0":
            yield "loss.scheduled_sampling is of captions: with task=chat set it to 0"
        if config.vision.images > 1:
            yield (
                f"vision.images={config.vision.images} tells images apart by their number, and in task=chat each "
                "stands at its own place: leave it out"
            )

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        from velm_cli.models.velm import VelmModel

        model = VelmModel(vision=config.vision, text=config.text, fusion=config.fusion, vocab_size=tokenizer.vocab_size)
        return self.sharing(config, spaces, tokenizer, weights, model)

    def shape(self, config: TrainRoot) -> Shape:
        return Shape(True)

    def sharing(
        self,
        config: TrainRoot,
        spaces: Spaces,
        tokenizer: Tokenizer,
        weights: Mapping[str, Weight],
        model: VelmModel,
    ) -> Learner:
        from velm_cli.data.chat_template import ChatFormat
        from velm_cli.learners.chatting import ChatLearner

        return ChatLearner(model, config.loss, weights=weights, end_id=ChatFormat(tokenizer).end_id)

    def is_learned(self, config: TrainRoot) -> bool:
        return config.task.kind == self.kind and not parse_weight("loss.alpha", config.loss.alpha).always_zero

    def predict(
        self,
        learner: Learner,
        batches: Iterable[Batch],
        spaces: Spaces,
        tokenizer: Tokenizer,
        how: DecodeConfig,
        session: Session,
    ) -> Iterator[tuple[ExampleId, str]]:
        from velm_cli.learners.chatting import ChatLearner

        assert isinstance(learner, ChatLearner)
        return learner.reply(batches, tokenizer, how, device=session.device, seed=session.seed)

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[str]) -> dict[str, float]:
        from velm_cli.metrics.chat_scores import quick_rouge_l

        chosen = [number for number in map(int, numbers) if store.targets(number)]
        references = [store.targets(number) for number in chosen]
        return {"rouge-l": quick_rouge_l(references, [predicted[store.example_id(number)] for number in chosen])}

    def score(
        self, store: Store, numbers: Iterable[int], predicted: Predicted[str], config: MetricsConfig, *, learned: bool
    ) -> Scores | None:
        from velm_cli.metrics.chat_scores import score_replies

        truth = {
            store.example_id(number): _target(store, number) for number in map(int, numbers) if store.targets(number)
        }
        if not truth:
            return None
        training = [_target(store, i) for i in map(int, store.split("train")) if store.targets(i)] if learned else None
        scores = score_replies(truth, {number: predicted[number] for number in truth}, config, training=training)
        scores.signature |= {"template": self.template} if self.template else {}
        return scores

    def shown(self, store: Store, numbers: Iterable[int], predicted: Predicted[str]) -> list[str]:
        from velm_cli.metrics.chat_scores import last_words

        return [
            f"{last_words(_target(store, number).source)}: {predicted[store.example_id(number)]}"
            for number in map(int, numbers)
        ]

    def write_results(self, folder: Path, predicted: Predicted[str]) -> list[str]:
        return write_texts(folder, predicted)


def _target(store: Store, number: int) -> Target:
    """What a reply is compared with, and the conversation before it to look at."""
    from velm_cli.data.conversations import shown
    from velm_cli.data.store import first_image
    from velm_cli.data.talk_tokens import conversation_of
    from velm_cli.metrics.targets import Target

    before, _ = conversation_of(store, number)
    image = first_image(store, number) if store.has_images else -1
    return Target(
        references=tuple(store.targets(number)),
        source=shown(before),
        image=None if image < 0 else store.image_name(image),
        kinds=store.about(number),
    )
