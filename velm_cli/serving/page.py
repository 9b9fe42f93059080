"""The web page: one file of our own, put together once. It loads nothing but itself, from nowhere else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from velm_cli.schema import ServeConfig
from velm_cli.serving.options import Option

WEB = Path(__file__).with_name("web")
SCRIPTS = ("elements.js", "heat.js", "page.js")


class Page:
    """`html`, and the Content-Security-Policy that permits its own script and style only, named by their hashes."""

    def __init__(self, options: Mapping[str, Sequence[Option]], about: Mapping[str, str], limits: ServeConfig) -> None:
        style = (WEB / "page.css").read_text("utf-8")
        script = "\n".join((WEB / name).read_text("utf-8") for name in SCRIPTS)
        filling = {"STYLE": style, "SCRIPT": script, "DATA": _block(_data(options, about, limits))}
        parts = re.split("%([A-Z]+)%", (WEB / "page.html").read_text("utf-8"))
        self.html = "".join(filling[part] if number % 2 else part for number, part in enumerate(parts)).encode()
        self.policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
            "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )


def _data(options: Mapping[str, Sequence[Option]], about: Mapping[str, str], limits: ServeConfig) -> Mapping[str, Any]:
    """What the page knows of this server; its addresses are relative, so that it also works below a path."""
    return {
        "can": [path[1:] for path in options],
        "about": dict(about),
        "bytes": int(limits.body_mb * 1e6),
        "beams": limits.max_beams,
        "captions": limits.max_captions,
    }


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _block(value: Any) -> str:
    """JSON in which no text can end the element that holds it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
