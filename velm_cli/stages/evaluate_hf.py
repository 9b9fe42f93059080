"""A model of transformers that velm did not train, as an evaluation needs it (`checkpoint=hf:FOLDER`).

It is shown the images of the store, through its own processor, and writes by its own `generate`. What it has written is
kept batch by batch (`written-RANK.jsonl` in the evaluation's folder), so that the same command goes on after a kill.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from velm_cli import configs, exported, naming
from velm_cli.data.blind import shuffled
from velm_cli.data.images import read_rgb
from velm_cli.data.store import Store, store_path
from velm_cli.engine.device import PRODUCTS, drawing_from, pick_precision
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.signals import StopRequest
from velm_cli.engine.snapshot import seed_of
from velm_cli.errors import StageError, UserError, on_one_line
from velm_cli.files import write_bytes
from velm_cli.inference.journal import Journal, open_journal
from velm_cli.lineage import joined
from velm_cli.metrics.scores import Scores
from velm_cli.progress import progress_bar
from velm_cli.schema import Answer, Blind, EvaluateRoot, Precision, Source, VqaTaskConfig
from velm_cli.stages.blinding import MEANING
from velm_cli.stages.showing import write_report
from velm_cli.tasks import task_of
from velm_cli.tasks.interface import ExampleId
from velm_cli.tasks.judges import Answered

REFUSED = "refused.jsonl"  # examples that the model's processor could not take, and why
SHOWN = 3  # of these, that the console names


class HfModel:
    """A `Predictor` (which says what its members are): the transformers model that `checkpoint=hf:...` names."""

    goes_on = True
    images: int | None = 0

    def __init__(self, config: EvaluateRoot) -> None:
        from velm_cli.models.hf.opening import find
        from velm_cli.models.hf.prompts import asking

        self._config = config
        name = configs.foreign_model(config.checkpoint)
        assert name is not None
        _refuse_options(config)
        self._found = find(name)
        self.task: Any = task_of(config.task)
        of_velm = exported.noted(self._found.folder) is not None
        self._asking = asking(self._found, config.task.kind, getattr(config.task, "prompt", ""), of_velm=of_velm)
        self.name = naming.checkpoint_name(config.checkpoint)
        self.weights = self._found.folder

    def data(self, store: Store) -> str:
        kind, named = self._config.dataset.kind, naming.short_name(str(store_path(self._config.dataset)))
        return named if named.startswith(kind) else f"{kind}-{named}"

    def refuse_unfit(self, store: Store, indices: np.ndarray) -> None:
        if self.task.needs.talks:  # whose images stand where they are named, and may be none
            return
        most = store.images_of(indices)[1].shape[1]
        if not store.has_images or not most:
            raise UserError(f"{self._found.refers} writes about images, and {store.path} has none")
        if most > 1 and not self._asking.family.several:
            raise UserError(
                f"{self._found.refers} ({self._found.kind}) takes one image, and examples of split="
                f"{self._config.split} have up to {most}"
            )

    def opened(self, store: Store) -> Iterator[str]:
        found = self._found
        size = sum(path.stat().st_size for path in found.folder.glob("*.safetensors"))
        yield f"{found.maker.__name__} of {found.folder}: {size / 1e6:,.1f} MB of weights"
        yield f"prompt      {self._asking.told}"
        yield from self._notes(store)

    def digest(self, store: Store, ranks: Ranks) -> str:
        digests = ranks.of_all(self._found.digest())
        if len(set(digests)) > 1:
            raise StageError(f"{self.weights} changed while the processes read it; give the same command again")
        return digests[0]

    def make_ready(self, store: Store) -> None:
        self._seen = shuffled(store, self._config.split, self._config.seed) if self._blind is Blind.shuffled else store

    def predict(
        self, store: Store, indices: np.ndarray, path: Path, about: Mapping[str, str], ranks: Ranks, stop: StopRequest
    ) -> dict[ExampleId, Any]:
        from velm_cli.models.hf.opening import load
        from velm_cli.models.hf.writing import Writer

        precision = pick_precision(self._config.run.precision, ranks.device)
        model = load(self._found, ranks.device, PRODUCTS[precision])
        writer = Writer(self._found, model, self._asking, self._config.decode)
        begun = self._begun(about, precision)
        done = ranks.same(dict(_kept(path, begun)) if ranks.first else {})  # before any rank opens a journal
        if ranks.first:
            print(f"model       {self._found.maker.__name__}, {precision.value}\nprompt      {self._asking.told}")
            for line in (*self._notes(store), *writer.notes):
                print(line)
            if done:
                print(f"goes on     {len(done):,} of {len(indices):,} {self.task.unit}s are written")
        own: dict[str, tuple[str, str]] = {}
        with (
            open_journal(path / f"written-{ranks.rank}.jsonl", begun) as journal,
            progress_bar(what=self.task.doing, shown=ranks.first, total=len(indices), unit=self.task.unit) as bar,
        ):
            bar.update(sum(_key(store.example_id(int(index))) in done for index in indices))
            groups = self._groups(indices)
            for number in takewhile(lambda _: not stop, range(ranks.rank, len(groups), ranks.world)):
                left = [int(index) for index in groups[number] if _key(store.example_id(int(index))) not in done]
                if left:
                    with drawing_from(seed_of(self._config.seed, number), ranks.device):
                        own |= self._write(writer, store, left, journal)
                    bar.update(len(left) * ranks.world)
        for part in ranks.of_all(own):
            done |= part
        ids = [store.example_id(int(index)) for index in indices]
        stopped = ranks.any_stopped(stop)
        if ranks.first and not stopped:
            self._tell_of_refused(path, [(one, done[_key(one)][1]) for one in ids])
        return {one: self._predicted(done[_key(one)][0]) for one in ids if _key(one) in done}

    def trained_on(self, store: Store) -> bool:
        """Nobody knows. Floors of answers and replies come from the training part all the same."""
        return self.task.kind in ("vqa", "chat") and "train" in store.counts and store.counts["train"] > 0

    def told(self) -> dict[str, str]:
        import transformers

        blind = self._blind
        control = {} if blind is Blind.none else {"blind": MEANING[blind].format(seed=self._config.seed)}
        prompt = hashlib.sha256(self._asking.told.encode()).hexdigest()[:12]
        answers = {"answers": "first line, small letters, without a full stop at the end"}
        return control | {
            "model": f"{self._found.maker.__name__} by transformers {transformers.__version__}",
            "prompt": f"{self._asking.told} ({prompt})",
            **(answers if self.task.kind == "vqa" else {}),
        }

    def report(
        self,
        path: Path,
        scores: Scores,
        store: Store,
        indices: np.ndarray,
        predicted: Mapping[ExampleId, Any],
        facts: Mapping[str, float | None],
    ) -> Path:
        return write_report(path, scores, store, None, None, indices, predicted, attention=0, facts=facts)

    # ---------------------------------------------------------------------------------------- within

    @property
    def _blind(self) -> Blind:
        return self._config.eval.blind

    def _groups(self, indices: np.ndarray) -> list[np.ndarray]:
        size = self._config.decode.batch_size
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _notes(self, store: Store) -> Iterator[str]:
        wanted = _side(self._found.processor.image_processor)
        if wanted > store.image_size:
            yield (
                f"note: the model reads images of {wanted} pixels, and {store.path} keeps them at {store.image_size}: "
                f"velm preprocess dataset.image_size={wanted} dataset.store=... keeps what it could see"
            )

    def _begun(self, about: Mapping[str, str], precision: Precision) -> dict[str, Any]:
        """What the words depend on: rows that were written with anything else are written again."""
        config = self._config
        plain = json.loads(json.dumps(configs.flat(config), default=str, sort_keys=True))
        groups = ("task.", "decode.", "eval.blind", "seed", "split", "limit")
        options = {key: value for key, value in plain.items() if key.startswith(groups)}
        return {"model": joined([about["sha256"], about["data"]]), "precision": precision.value, "options": options}

    def _write(self, writer: Any, store: Store, indices: Sequence[int], journal: Journal) -> dict[str, tuple[str, str]]:
        """The text of each example, or why there is none; noted in the journal."""
        from velm_cli.models.hf.writing import Refused, Shown

        asks = self.task.needs.source
        shown = []
        for index in indices:
            source = None
            if asks:
                source = "" if self._blind is Blind.source else store.source(index) or ""
            talk = json.loads(store.source(index) or "[]") if self.task.needs.talks else None
            shown.append(Shown(self._pictures(index), source, talk))
        written: dict[str, tuple[str, str]] = {}
        for index, text in zip(indices, writer.write(shown), strict=True):
            refused = isinstance(text, Refused)
            written[_key(store.example_id(index))] = ("", text.reason) if refused else (text, "")
        if all(reason for _, reason in written.values()) and not journal.chunks:
            reason = next(iter(written.values()))[1]
            raise UserError(f"{self._found.refers}: its processor takes none of the first images: {reason}")
        journal.append([{"image": key, "text": text, "refused": why} for key, (text, why) in written.items()])
        return written

    def _pictures(self, index: int) -> list[Image.Image]:
        numbers_X, image_of_BI = self._seen.images_of(np.array([index]))
        images = [read_rgb(self._seen.image_bytes(int(numbers_X[row]))) for row in image_of_BI[0] if row >= 0]
        if self._blind is Blind.image:
            colour = _mean_colour(self._found.processor.image_processor)
            return [Image.new("RGB", image.size, colour) for image in images]
        return images

    def _predicted(self, text: str) -> Any:
        return Answered(text) if self.task.kind == "vqa" else text

    def _tell_of_refused(self, path: Path, told: Sequence[tuple[ExampleId, str]]) -> None:
        refused = [(one, why) for one, why in told if why]
        (path / REFUSED).unlink(missing_ok=True)
        if not refused:
            return
        lines = ((json.dumps({"id": one, "reason": why}) + "\n").encode() for one, why in refused)
        write_bytes(path / REFUSED, lines)
        some = "; ".join(f"{one}: {on_one_line(why)}" for one, why in refused[:SHOWN])
        print(
            f"note: {len(refused):,} {self.task.unit}s were refused by the model's processor and count as empty "
            f"({path / REFUSED}): {some}"
        )


def _refuse_options(config: EvaluateRoot) -> None:
    """UserError for what has no effect on a model that velm did not train."""
    from velm_cli.models.hf.writing import not_theirs

    lines = []
    for group in ("vision", "text"):
        if getattr(config, group).name is not None:
            lines.append(f"{group}.name is of velm's own runs: checkpoint={config.checkpoint} has no such part")
    task = config.task
    if isinstance(task, VqaTaskConfig) and task.answer is not Answer.generate:
        lines.append(f"task.answer={task.answer.value}: checkpoint={config.checkpoint} writes answers: leave it out")
    lines += not_theirs(config.decode)
    source = getattr(task, "source", Source.memory)
    if source is not Source.memory:
        lines.append(f"task.source={source.value} is of velm's own runs: {config.checkpoint} is asked by task.prompt")
    if config.eval.blind is Blind.source and not task_of(task).needs.source:
        lines.append(f"eval.blind=source: task={task.kind} has no source that could be left out")
    if lines:
        raise UserError("\n".join(lines))


def _key(example: ExampleId) -> str:
    """An example in a journal: 1 and "1" are two."""
    return json.dumps(example)


def _kept(path: Path, begun: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """What an evaluation that was stopped has written, on however many ranks; journals of other options are removed."""
    for file in sorted(path.glob("written-*.jsonl")):
        try:
            with open_journal(file, begun) as journal:
                rows = list(journal.rows())
        except UserError:
            with contextlib.suppress(OSError):
                file.unlink()
            continue
        yield from ((row["image"], (row["text"], row["refused"])) for row in rows)


def _side(image_processor: Any) -> int:
    """Pixels of the side that a model's images are brought to; 0 where it depends on the image."""
    for name in ("crop_size", "size"):
        size: Any = getattr(image_processor, name, None)
        sides = ("height", "width", "shortest_edge")
        values = [getattr(size, side, None) or (size.get(side) if hasattr(size, "get") else None) for side in sides]
        if known := [int(value) for value in values if isinstance(value, (int, float))]:
            return min(known)
    return 0


def _mean_colour(image_processor: Any) -> tuple[int, int, int]:
    mean = getattr(image_processor, "image_mean", None)
    if not isinstance(mean, (list, tuple)) or len(mean) != 3:
        return (128, 128, 128)
    red, green, blue = (round(255 * min(max(float(value), 0.0), 1.0)) for value in mean)
    return red, green, blue
