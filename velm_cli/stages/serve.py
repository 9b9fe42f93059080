"""serve: a trained model over HTTP, until a signal ends it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from velm_cli.data.looked import Attention
from velm_cli.errors import UserError
from velm_cli.inference.model import Model
from velm_cli.schema import ServeConfig, ServeRoot
from velm_cli.stages import using

VARIABLE = "VELM_SERVE_TOKEN"
BACKLOG = 2048  # connections that the system keeps until they are taken
SHORTEST = 16  # characters of a token
NEEDS = ("uvicorn", "starlette", "python_multipart")


def run(config: ServeRoot) -> None:
    """Returns when the service has been stopped and has finished what it had begun."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f'velm serve needs {missing[0]}: pip install "velm-cli[serve]"')
    from velm_cli.serving import server
    from velm_cli.serving.service import Service

    limits = config.serve
    token = _token(limits)
    server.allow_files(2 * limits.connections + 256)
    at = server.listening(limits.host, limits.port)
    model = using.loaded(config.checkpoint, config.run)
    service = Service(model, limits, token, look)
    at.listen(BACKLOG)  # from here on nobody is turned away
    address = _address(at.getsockname())
    print(f"model       {config.checkpoint}  on {model.device}, {model.precision}")
    print(f"serving     {address}  ({', '.join(service.can)}; {address}docs lists the endpoints)")
    if token is None and not _is_loopback(at.getsockname()[0]):
        print(
            f"note        everybody who reaches {limits.host} can use it: set serve.token_file or {VARIABLE}, or leave "
            "serve.host=127.0.0.1"
        )
    stopped_by = service.run(at, lambda line: print(f"            {line}"))
    print(f"stopped     by {stopped_by}" if stopped_by else "stopped")


def look(model: Model, jpeg: bytes, text: str) -> Attention:
    """Where the model looked for each word of a caption."""
    return model.attention_of(jpeg, text)


def _token(limits: ServeConfig) -> str | None:
    """The secret of a file or of the environment, from which it is taken away: no child process gets it."""
    told = os.environ.pop(VARIABLE, None)
    source = VARIABLE
    if limits.token_file is not None:
        source = f"serve.token_file={limits.token_file}"
        try:
            told = Path(limits.token_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source}: {getattr(error, 'strerror', None) or 'not text'}") from None
        if os.name == "posix" and Path(limits.token_file).stat().st_mode & 0o077:
            print(f"note        others on this machine can read {limits.token_file}: chmod 600")
    if told is None:
        return None
    token = told.strip()
    if len(token) < SHORTEST or not token.isprintable() or " " in token or not token.isascii():
        raise UserError(
            f"{source}: a token has at least {SHORTEST} characters, printable ASCII without blanks; for example "
            "the output of: openssl rand -hex 24"
        )
    return token


def _is_loopback(address: str) -> bool:
    import ipaddress

    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _address(name: tuple[Any, ...]) -> str:
    host = "127.0.0.1" if name[0] == "0.0.0.0" else "::1" if name[0] == "::" else name[0]
    return f"http://[{host}]:{name[1]}/" if ":" in host else f"http://{host}:{name[1]}/"
