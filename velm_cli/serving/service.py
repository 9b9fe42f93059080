"""A model, its thread, its endpoints and its server, put together; started and stopped as one."""

from __future__ import annotations

import asyncio
import socket
import warnings
from collections.abc import Callable
from io import BytesIO

from PIL import Image

from velm_cli.inference.model import Model
from velm_cli.schema import ServeConfig
from velm_cli.serving.app import App
from velm_cli.serving.asked import Look, work
from velm_cli.serving.batching import Batches
from velm_cli.serving.figures import Figures
from velm_cli.serving.guard import Guard
from velm_cli.serving.server import Server, run

LAST_SECONDS = 5.0  # for a batch that is being computed when the server has ended


class Service:
    """`can`: what it offers. `run` serves until `stop` or a signal."""

    def __init__(self, model: Model, limits: ServeConfig, token: str | None, look: Look) -> None:
        attends = "caption" in model.can and look(model, _grey(model), _word(model)) is not None
        self.can = (*model.can, *(["attention"] if attends else []))
        # Pillow's bound is one for the process; set once, threads that decode side by side find it as it is.
        Image.MAX_IMAGE_PIXELS = limits.max_pixels
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        figures = Figures()
        batches = Batches(
            work(model, look),
            batch_size=limits.batch_size,
            wait=limits.wait_ms / 1000,
            queue=limits.queue,
            longest=limits.request_seconds / 4,
            ready=model.ready,
            noted=figures.batch,
        )
        self._app = App(
            can=self.can,
            form=model.form,
            about=_about(model),
            limits=limits,
            batches=batches,
            figures=figures,
            needs_token=token is not None,
            connections=lambda: self._server.connections,
        )
        why_not = {path: why for path, why in WHY_NOT.items() if path[1:] not in self.can}
        guard = Guard(self._app.routes, limits, token, figures, why_not)
        self._server = Server(guard, limits)
        self._batches, self._figures = batches, figures

    def run(self, at: socket.socket, said: Callable[[str], None]) -> str | None:
        """The name of the signal that ended it."""
        self._batches.start()
        try:
            asyncio.run(run(self._server, at, self._figures, said))
        finally:
            self._app.close()
            self._batches.stop(LAST_SECONDS)
        return self._server.signal_name

    def stop(self) -> None:
        """From any thread."""
        self._server.stop()


# Path -> why a model may have no such endpoint. Not the model's own lines: they name folders of the server.
WHY_NOT = {
    "/caption": "this model writes no captions: it was trained for another task",
    "/answer": "this model answers no questions: it was trained for another task",
    "/embed": "this model embeds nothing: its training compared no images with texts",
    "/attention": "this model attends to no grid of the image: there is nothing to show",
}


def _about(model: Model) -> dict[str, str]:
    config = model.config
    parts = f"{config.vision.kind} + {config.text.kind} + {config.fusion.kind}"
    return {"model": parts, "task": config.task.kind, "trained on": config.dataset.kind, "weights": model.sha256[:12]}


def _grey(model: Model) -> bytes:
    out = BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(out, "PNG")
    return model.stored(out.getvalue())


def _word(model: Model) -> str:
    """Some word that the model knows: what it says of a grey image."""
    from velm_cli.schema import DecodeConfig

    return model.captions_of([_grey(model)], DecodeConfig(beams=1, max_length=3))[0] or "a"
