"""The endpoints: what a request asks is checked, its image decoded in a small pool of threads, its place taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from velm_cli.data.images import ImageRefused
from velm_cli.data.processes import available_cores
from velm_cli.errors import UserError
from velm_cli.inference.arguments import idle_in_caption
from velm_cli.inference.pictures import Form
from velm_cli.schema import ServeConfig
from velm_cli.serving.asked import Answer, Attend, Caption, EmbedImages, EmbedTexts
from velm_cli.serving.batching import Batches, Full
from velm_cli.serving.bodies import Bodies, Gone, given_in
from velm_cli.serving.figures import Figures, resident_bytes
from velm_cli.serving.guard import Handler
from velm_cli.serving.openapi import document, listing
from velm_cli.serving.options import checked, options_of
from velm_cli.serving.page import Page
from velm_cli.serving.refusing import Refused

BUSY = "the server is busy"
PROMETHEUS = "text/plain; version=0.0.4"


class App:
    """`routes` of a model that can do `can` (of caption, answer, embed, attention)."""

    def __init__(
        self,
        *,
        can: Sequence[str],
        form: Form,
        about: Mapping[str, str],
        limits: ServeConfig,
        batches: Batches,
        figures: Figures,
        needs_token: bool,
        connections: Callable[[], int],
    ) -> None:
        self._form = form._replace(max_pixels=min(form.max_pixels, limits.max_pixels))
        self._limits, self._batches, self._figures = limits, batches, figures
        self._bodies = Bodies(limits)
        self._pool = ThreadPoolExecutor(available_cores(), "decode")
        self._options = {path: taken for path, taken in options_of(limits).items() if path[1:] in can}
        self._document = document(self._options, about, limits, needs_token=needs_token)
        self._listing = listing(self._document)
        self._page = Page(self._options, about, limits)
        self._connections = connections
        answers: dict[str, Handler] = {
            "/caption": self._caption,
            "/answer": self._answer,
            "/embed": self._embed,
            "/attention": self._attend,
        }
        self.routes: dict[tuple[str, str], Handler] = {
            ("GET", "/"): self._home,
            ("GET", "/docs"): self._docs,
            ("GET", "/openapi.json"): self._openapi,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        } | {("POST", path): answers[path] for path in self._options}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------------------- what the model does

    async def _caption(self, request: Request) -> Response:
        async with self._given(request) as given:
            image = given.pop("image")
            if given["n"] and given["best"]:
                raise Refused(422, "n draws captions, best takes those of the beams: give one of them")
            if given["best"] > given["beams"]:
                raise Refused(422, f"best={given['best']}: there are no more captions than beams={given['beams']}")
            if given["min_length"] > given["max_length"]:
                raise Refused(422, f"min_length={given['min_length']} is above max_length={given['max_length']}")
            if idle := idle_in_caption(given["n"], given):
                raise Refused(422, "; ".join(idle))
            if given["n"]:  # what drawing does not use is the same for all, so that batches are
                given["beams"], given["length_penalty"] = 1, 1.0
            else:
                given["top_p"], given["top_k"], given["temperature"], given["seed"] = 1.0, 0, 1.0, 0
            found = await self._asked(request, Caption(**given), await self._stored(image))
        return JSONResponse({"captions": found} if given["n"] or given["best"] else {"caption": found})

    async def _answer(self, request: Request) -> Response:
        async with self._given(request) as given:
            image, question = given.pop("image"), given.pop("question")
            if given["min_length"] > given["max_length"]:
                raise Refused(422, f"min_length={given['min_length']} is above max_length={given['max_length']}")
            found = await self._asked(request, Answer(**given), (await self._stored(image), question))
        if isinstance(found, dict):
            return JSONResponse({"answer": next(iter(found)), "probabilities": found})
        return JSONResponse({"answer": found})

    async def _embed(self, request: Request) -> Response:
        async with self._given(request) as given:
            images, texts = given["images"] or (), given["texts"] or ()
            if not images and not texts:
                raise Refused(422, "images, texts: give at least one")
            told: dict[str, Any] = {}
            if images:
                jpegs = tuple(await asyncio.gather(*map(self._stored, images)))
                told["images"] = (await self._asked(request, EmbedImages(), jpegs)).tolist()
            if texts:
                told["texts"] = (await self._asked(request, EmbedTexts(), texts)).tolist()
        return JSONResponse(told)

    async def _attend(self, request: Request) -> Response:
        async with self._given(request) as given:
            item = (await self._stored(given["image"]), given["text"])
            found = await self._asked(request, Attend(), item)
        if found is None:
            raise Refused(422, "text: no word of it is in this model's vocabulary")
        maps = [[[round(float(weight), 5) for weight in row] for row in each] for each in found.maps_THW]
        return JSONResponse({"words": list(found.words), "maps": maps, "box": [float(edge) for edge in found.box]})

    @contextlib.asynccontextmanager
    async def _given(self, request: Request) -> Any:
        """The options of a request, which has a place in the queue within the block."""
        if self._batches.full:  # known before anything is read
            raise _busy()
        async with self._bodies.read(request) as body:
            try:
                with self._batches.place():
                    yield checked(self._options[request.url.path], await given_in(request, body))
            except Full:
                raise _busy() from None
            except UserError as error:  # what the model says of these options
                raise Refused(422, str(error)) from None

    async def _stored(self, content: bytes) -> bytes:
        """The image in the form of the training store. Raises Refused (413, 422) with the reason."""
        with self._batches.preparing():
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._form.stored, content))
            except ImageRefused as error:
                line = str(error)
                if line.startswith("too many pixels"):
                    most = f"{self._form.max_pixels:,}"
                    raise Refused(413, f"the image has too many pixels: this server takes {most}") from None
                raise Refused(422, f"the image cannot be used: {line}") from None

    async def _asked(self, request: Request, key: Hashable, item: Any) -> Any:
        """What the model says. A client that goes away meanwhile frees its place."""
        answer = asyncio.wrap_future(self._batches.submit(key, item))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Gone
            return answer.result()
        finally:
            gone.cancel()
            answer.cancel()

    # ----------------------------------------------------------------------------------- what it tells

    async def _home(self, request: Request) -> Response:
        return Response(self._page.html, media_type="text/html", headers={"Content-Security-Policy": self._page.policy})

    async def _docs(self, request: Request) -> Response:
        return Response(self._listing, media_type="text/html")

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def _health(self, request: Request) -> Response:
        alive = self._batches.alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 500)

    async def _metrics(self, request: Request) -> Response:
        now: dict[str, float] = {
            "requests_admitted": self._batches.admitted,
            "body_bytes": self._bodies.held,
            "connections": self._connections(),
            "resident_bytes": resident_bytes(),
        }
        return PlainTextResponse(self._figures.text(now), media_type=PROMETHEUS)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _busy() -> Refused:
    return Refused(503, BUSY, {"Retry-After": "1"})
