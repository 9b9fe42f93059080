"""What people write into one cell or value of a table: a path, a caption, a list of captions, a conversation."""

from __future__ import annotations

import ast
import json
import re
from typing import Any
from urllib.parse import unquote

# Suffixes of formats that `data.images` decodes.
# fmt: off
IMAGE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".avif", ".avifs",
})
# fmt: on
ADDRESS = "the image is an address on the web, not a file: download the images first, for example with img2dataset"

_ADDRESS = re.compile(r"(?:https?|ftp|s3|gs|hdfs)://", re.I)
_ODD = re.compile(r"[\\#:\0]|//|^\./")
_NUMBERED = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(IMAGE_EXTENSIONS)))})#\d+$", re.I)
_TEXT = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_ITEM = re.compile(rf"\s*[rub]?({_TEXT}|None|null|nan|NaN)\s*(,?)", re.S)
_ASKS = re.compile(
    r"descri|caption|summar|expla|interpret|depict|narrat|portray|analy[sz]e|elaborate|"
    r"what(?:'s| is| are| do you see| can you see)?\b.*\b(?:image|photo|picture|scene|snapshot)",
    re.I | re.S,
)


def plain_path(text: str) -> str:
    """The path of an image in the form that all are compared in: slashes, no `file://`, no `./`, no `#0` at its end.

    ValueError, with the reason, for what is no path of a file.
    """
    path = text.strip()
    if len(path) < 60 and path and not _ODD.search(path):  # nearly all
        return path
    if _ADDRESS.match(path):
        raise ValueError(ADDRESS)
    if path[:7].lower() == "file://":
        path = unquote(path[7:])
        path = path[1:] if re.match(r"/[A-Za-z]:", path) else path
    if "\\" in path:
        path = path.replace("\\", "/")
    if "#" in path and _NUMBERED.search(path):
        path = path.rpartition("#")[0]
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if "//" in path:
        path = re.sub("/+", "/", path)
    if not path:
        raise ValueError("no image: its path is empty")
    if "\0" in path or len(path) > 4000 or any(len(name.encode(errors="replace")) > 255 for name in path.split("/")):
        raise ValueError(f"no image: no file can be called {path[:40]!r}...")
    return path


def looks_like_image(cell: str) -> bool:
    """Whether a cell is the name of an image file, or its address."""
    cell = cell.strip().strip('"')
    if _ADDRESS.match(cell):
        return True
    return (
        bool(cell)
        and ("." + _NUMBERED.sub(lambda end: end[0].split("#")[0], cell).rpartition(".")[2].lower()) in IMAGE_EXTENSIONS
    )


def captions_of(value: Any, *, numbers: bool = False) -> list[object]:
    """The captions of a cell or value: a text, a list, one that was written as text, Karpathy's or VizWiz's objects.

    `numbers`: a list that was written as text may hold some, as answers do.
    """
    if isinstance(value, str):
        if "]" not in value:  # nearly all
            return [value]
        listed = listed_texts(value, numbers=numbers)
        return [value] if listed is None else listed
    if isinstance(value, dict):
        return [_text_of(value)]
    if not isinstance(value, list):
        return [] if value is None else [value]
    return [_text_of(item) if isinstance(item, dict) else item for item in value]


def _text_of(item: dict[str, Any]) -> object:
    return next((item[key] for key in ("raw", "caption", "text", "sentence", "answer") if key in item), item)


def listed_texts(text: str, *, numbers: bool = False) -> list[object] | None:
    """The texts of a list as Python, JSON, pandas or numpy write it: `['a', "b"]`, `['a' 'b']`; else None.

    With `numbers`, `[2, 3]` is one too.
    """
    kinds = (str, int, float) if numbers else (str,)
    inner = text.strip()
    if inner.startswith("array(") and inner.endswith(")"):
        inner = re.sub(r",\s*dtype=\w+$", "", inner[6:-1].strip()).strip()
    if inner[:1] != "[" or inner[-1:] != "]":
        return None
    try:
        listed = json.loads(inner)
        return listed if all(item is None or isinstance(item, kinds) for item in listed) else None
    except (ValueError, RecursionError):
        pass
    found: list[object] = []
    inner, at = inner[1:-1].strip(), 0
    while at < len(inner):
        item = _ITEM.match(inner, at)
        if item is None:
            return None
        found.append(_unquoted(item[1]) if item[1][0] in "\"'" else None)
        at = item.end()
    return found


def _unquoted(literal: str) -> object:
    if "\\" not in literal:
        return literal[1:-1]
    try:  # only the escapes are left to Python, within one literal of text
        return ast.literal_eval(re.sub(r"\\([^\\'\"abfnrtvxuN0-7])", r"\\\\\1", literal).replace("\n", "\\n"))
    except (ValueError, SyntaxError):
        return literal[1:-1]


def conversation_caption(turns: Any) -> str:
    """LLaVA's conversations: the first answer, where the first question asks for a description or is the image alone.

    ValueError, with the reason, for others: an answer to another question is no caption.
    """
    said = [(_role(turn), _said(turn)) for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    question = next((text for role, text in said if role in ("human", "user")), "")
    answer = next((text for role, text in said if role in ("gpt", "assistant", "model")), None)
    if answer is None:
        raise ValueError("its conversation has no answer")
    asked = question.replace("<image>", "").strip()
    if asked and not _ASKS.search(asked):
        raise ValueError(f"no description: the first question is {' '.join(asked.split())[:60]}")
    return answer


def _role(turn: dict[str, Any]) -> object:
    return turn.get("from", turn.get("role"))


def _said(turn: dict[str, Any]) -> str:
    content = turn.get("value", turn.get("content"))
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
