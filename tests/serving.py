"""What the tests of `velm serve` share: tiny runs, a service in a thread of this process, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from velm import TINY, TINY_MODEL, call

import velm_cli
from velm_cli.schema import ServeConfig
from velm_cli.serving.server import listening
from velm_cli.serving.service import Service
from velm_cli.stages.serve import look

SHAPES = ["dataset=shapes", "dataset.questions=true", *TINY]
SHORT = [*TINY_MODEL, "run.max_steps=4", "run.checkpoint_every=4", "run.validate_every=0", "optim.lr=0.01"]
CAPTIONS = ["fusion=cross_modal", "loss.gamma=1", "loss.joint=contrastive"]


def tiny_runs(**options: list[str]) -> dict[str, Path]:
    """Trained in the working directory, by the names that are given."""
    assert call("preprocess", *SHAPES) == 0
    for name, words in options.items():
        assert call("train", *SHAPES, *SHORT, *words, f"name={name}") == 0
    return {name: Path("runs/train", name).resolve() for name in options}


def photo(seed: int = 0, form: str = "JPEG", size: tuple[int, int] = (96, 64)) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(out, form)
    return out.getvalue()


class Client:
    """Requests to a service on this machine; each answer is (status, what its JSON or text says, headers)."""

    def __init__(self, port: int) -> None:
        self.port, self.host = port, f"127.0.0.1:{port}"

    def ask(self, path: str, body: Any = None, kind: str = "image/jpeg", method: str | None = None, **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            told.setdefault("Content-Type", kind)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, told)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text.decode(), answer.headers

    def json(self, path: str, value: Any, **headers: str):
        return self.ask(path, json.dumps(value), "application/json", **headers)

    def form(self, path: str, *fields: tuple[str, str | bytes], **headers: str):
        parts = []
        for name, value in fields:
            file = "" if isinstance(value, str) else '; filename="x"'
            content = value.encode() if isinstance(value, str) else value
            parts.append(f'--B\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content)
        return self.ask(path, b"\r\n".join([*parts, b"--B--\r\n"]), "multipart/form-data; boundary=B", **headers)

    def raw(self, *parts: bytes) -> socket.socket:
        """A connection on which these bytes have been sent."""
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        for part in parts:
            opened.sendall(part)
        return opened


def received(opened: socket.socket) -> bytes:
    """All until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := opened.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def serving(model: Any, token: str | None = None, **limits: Any) -> Iterator[Client]:
    """A service of `model` (a Model, or the path of a run) in a thread, on a free port."""
    loaded = velm_cli.load(model, "cpu", precision="fp32") if isinstance(model, Path) else model
    service = Service(loaded, ServeConfig(port=0, **limits), token, look)
    at = listening("127.0.0.1", 0)
    said: list[str] = []
    thread = threading.Thread(target=service.run, args=(at, said.append))
    client = Client(at.getsockname()[1])
    thread.start()
    until(lambda: reachable(client.port))
    client.said = said
    try:
        yield client
    finally:
        service.stop()
        thread.join(30)
        assert not thread.is_alive()


def reachable(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def until(true: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never true"
        time.sleep(0.01)
