"""Captioning: images in, a sentence out; scored by BLEU, METEOR, ROUGE-L, CIDEr and SPICE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from velm_cli.data.written import all_texts
from velm_cli.files import write_json
from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import (
    CaptionTaskConfig,
    DecodeConfig,
    Drawn,
    EvaluateRoot,
    MetricsConfig,
    ShapesConfig,
    TextLoss,
    TrainRoot,
)
from velm_cli.tasks.interface import ExampleId, Predicted, Session, Shape, Task
from velm_cli.tasks.writers import writes, writing_learner

if TYPE_CHECKING:
    from velm_cli.data.batch import Batch
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.metrics.scores import Scores
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


class CaptionTask(Task[str]):
    """An example is an image; its targets are captions."""

    kind = "caption"
    primary = "CIDEr"
    verb, doing = "caption", "captions"

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        return writing_learner(config, spaces, tokenizer, weights)

    def shape(self, config: TrainRoot) -> Shape:
        return Shape(writes(config))

    def sharing(
        self,
        config: TrainRoot,
        spaces: Spaces,
        tokenizer: Tokenizer,
        weights: Mapping[str, Weight],
        model: VelmModel,
    ) -> Learner:
        return writing_learner(config, spaces, tokenizer, weights, model=model)

    def is_learned(self, config: TrainRoot) -> bool:
        if not isinstance(config.task, CaptionTaskConfig):
            return False
        return not parse_weight("loss.alpha", config.loss.alpha).always_zero and config.loss.text is not TextLoss.masked

    def why_not_learned(self, config: TrainRoot, run: Path) -> str:
        if not isinstance(config.task, CaptionTaskConfig):
            return super().why_not_learned(config, run)
        loss = config.loss
        forms = {"beta": f"L_image ({loss.image.value})", "gamma": f"L_joint ({loss.joint.value})"}
        learned = [
            form for name, form in forms.items() if not parse_weight(f"loss.{name}", getattr(loss, name)).always_zero
        ]
        return (
            f"checkpoint: {run} cannot write captions: it was trained with loss.alpha=0, on {' and '.join(learned)}; "
            f"for captions, train with init.vision={run}"
        )

    def cannot_predict(self, learner: Learner, config: TrainRoot, run: Path) -> str | None:
        if learner.model.generates:
            return None
        return (
            f"checkpoint: {run} cannot write captions: with loss.text={config.loss.text.value} and "
            f"fusion={config.fusion.kind} each word knows those that follow"
        )

    def predict(
        self,
        learner: Learner,
        batches: Iterable[Batch],
        spaces: Spaces,
        tokenizer: Tokenizer,
        how: DecodeConfig,
        session: Session,
    ) -> Iterator[tuple[ExampleId, str]]:
        from velm_cli.learners.writing import WritingLearner

        assert isinstance(learner, WritingLearner)
        return learner.describe(batches, tokenizer, how, device=session.device, seed=session.seed)

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[str]) -> dict[str, float]:
        from velm_cli.metrics.captions import fast_cider

        references = {store.example_id(int(number)): store.targets(int(number)) for number in numbers}
        return {"cider": fast_cider(references, predicted)}

    def of_one(self, score: float) -> float:
        """CIDEr has no highest value that models come near: 1 is half of the way."""
        return score / (1 + score)

    def score(
        self, store: Store, numbers: Iterable[int], predicted: Predicted[str], config: MetricsConfig, *, learned: bool
    ) -> Scores | None:
        from velm_cli.data.store import first_image
        from velm_cli.metrics.captions import score_captions

        record = {store.example_id(number): number for number in sorted(map(int, numbers))}
        references = {image: captions for image, number in record.items() if (captions := store.targets(number))}
        if not references:
            return None
        training = None
        if learned and len(train := store.split("train")):  # a store of streamed shards has none at hand
            training = [caption for number in train for caption in store.targets(int(number))]
        scores = score_captions(
            references,
            {image: str(predicted[image]) for image in references},
            config,
            training=training,
            read_image=lambda image: store.image_bytes(first_image(store, record[image])),
        )
        written = {image: all_texts(predicted[image]) for image in references}
        scores.about = {image: {"captions": list(texts)} for image, texts in written.items() if len(texts) > 1}
        return scores

    def further(self, config: EvaluateRoot, predicted: Predicted[str], folder: Path) -> dict[str, float | None]:
        """For the embedded data set the scenes are known, so what the captions assert can be checked."""
        from velm_cli.metrics.facts import facts_table, load_scenes, score_facts

        if isinstance(config.dataset, ShapesConfig) and config.dataset.drawn is Drawn.motion:
            return _motion_facts(Path(config.dataset.root or ""), predicted, folder)
        if not isinstance(config.dataset, ShapesConfig) or config.dataset.drawn is not Drawn.captions:
            return {}
        scenes = Path(config.dataset.root or "") / "scenes.json"
        if not scenes.exists():
            print(f"note: facts are not checked, since {scenes} is missing")
            return {}
        facts = score_facts(predicted, load_scenes(scenes))
        write_json(folder / "facts.json", facts)
        print(f"\nfacts that the captions assert, against the drawn scenes\n{facts_table(facts)}")
        return facts

    def shown(self, store: Store, numbers: Iterable[int], predicted: Predicted[str]) -> list[str]:
        return [predicted[store.example_id(int(number))] for number in numbers]

    def write_results(self, folder: Path, predicted: Predicted[str]) -> list[str]:
        write_json(
            folder / "predictions.json",
            [{"image_id": image_id, "caption": text} for image_id, text in predicted.items()],
        )
        if not any(len(all_texts(text)) > 1 for text in predicted.values()):
            return ["predictions.json"]
        several = [{"image_id": image_id, "captions": list(all_texts(text))} for image_id, text in predicted.items()]
        write_json(folder / "all_captions.json", several)
        return ["predictions.json", "all_captions.json"]


def _motion_facts(root: Path, predicted: Predicted[str], folder: Path) -> dict[str, float | None]:
    from velm_cli.data.shapes_motion import FOLDER
    from velm_cli.metrics.motion_facts import load_clips, score_motion

    file = root / FOLDER / "motion.json"
    if not file.exists():
        print(f"note: facts are not checked, since {file} is missing")
        return {}
    facts = score_motion({str(name): text for name, text in predicted.items()}, load_clips(file))
    write_json(folder / "facts.json", facts)
    shown = "  ".join(f"{name} {100 * (value or 0):.1f}" for name, value in facts.items() if name != "objects")
    print(f"\nof {facts['objects']:,.0f} moving objects, per cent that the captions have right: {shown}")
    return facts
