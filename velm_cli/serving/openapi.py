"""/openapi.json of what this model can do, and /docs: the same for people, a page without a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from velm_cli import __version__
from velm_cli.schema import ServeConfig
from velm_cli.serving.options import Option
from velm_cli.serving.refusing import phrase

SUMMARIES = {
    "/caption": "A caption of an image, or several",
    "/answer": "The answer to a question about an image",
    "/embed": "Unit vectors of images and texts; their products are cosines",
    "/attention": "Where the model looked for each word of a text",
}
ANSWERS: dict[str, dict[str, Any]] = {
    "/caption": {"caption": {"type": "string"}, "captions": {"type": "array", "items": {"type": "string"}}},
    "/answer": {
        "answer": {"type": "string"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
    },
    "/embed": {
        name: {"type": "array", "items": {"type": "array", "items": {"type": "number"}}} for name in ("images", "texts")
    },
    "/attention": {
        "words": {"type": "array", "items": {"type": "string"}},
        "maps": {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}},
        "box": {"type": "array", "items": {"type": "number"}, "description": "left, top, right, bottom, as fractions"},
    },
}
TYPES = {"image": "string", "text": "string", "whole": "integer", "number": "number"}
ERRORS = (401, 403, 408, 413, 415, 422, 503, 504)
TOLD = {
    "/health": ("200 while the model answers", "application/json"),
    "/metrics": ("Counts and gauges in Prometheus' text format", "text/plain"),
}


def document(
    options: Mapping[str, Sequence[Option]], about: Mapping[str, str], limits: ServeConfig, *, needs_token: bool
) -> dict[str, Any]:
    """OpenAPI 3.1, of the paths in `options`."""
    described = ", ".join(f"{name} {value}" for name, value in about.items())
    paths: dict[str, Any] = {path: {"post": _posted(path, taken)} for path, taken in options.items()}
    for path, (meaning, kind) in TOLD.items():
        paths[path] = {"get": {"summary": meaning, "responses": {"200": _content(meaning, {kind: {}})}}}
    told: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "velm",
            "version": __version__,
            "description": f"{described}. A request has at most {limits.body_mb:g} MB, an image at most "
            f"{limits.max_pixels:,} pixels.",
        },
        "paths": paths,
    }
    if needs_token:
        told["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        told["security"] = [{"token": []}]
    return told


def _posted(path: str, options: Sequence[Option]) -> dict[str, Any]:
    by_form = {option.name: _schema(option, in_json=False) for option in options}
    by_json = {option.name: _schema(option, in_json=True) for option in options}
    required = {"required": names} if (names := [option.name for option in options if option.required]) else {}
    rest = [option for option in options if option.kind != "image"]
    errors = {str(status): _content(phrase(status), {"application/json": {"schema": _error()}}) for status in ERRORS}
    return {
        "summary": SUMMARIES[path],
        "description": "The image as a file of a form, as base64 in JSON, or as the body itself with the other "
        "options in the query.",
        "parameters": [
            {"name": each.name, "in": "query", "required": False, "schema": _schema(each, in_json=True)}
            for each in rest
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": by_form, **required}},
                "application/json": {"schema": {"type": "object", "properties": by_json, **required}},
                "image/*": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": _content(
                SUMMARIES[path],
                {"application/json": {"schema": {"type": "object", "properties": ANSWERS[path]}}},
            ),
            **errors,
        },
    }


def _schema(option: Option, *, in_json: bool) -> dict[str, Any]:
    one: dict[str, Any] = {"type": TYPES[option.kind]}
    if option.kind == "image":
        one |= {"contentEncoding": "base64"} if in_json else {"format": "binary"}
    if option.bounds is not None:
        for word, value in (
            ("minimum", option.bounds.least),
            ("exclusiveMinimum", option.bounds.above),
            ("maximum", option.bounds.most),
            ("exclusiveMaximum", option.bounds.below),
        ):
            one |= {} if value is None else {word: value}
    schema = {"type": "array", "items": one, "maxItems": option.many} if option.many else one
    default = {} if option.default is None or option.required else {"default": option.default}
    return {**schema, **default, "description": option.meaning}


def _content(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": content}


def _error() -> dict[str, Any]:
    return {"type": "object", "properties": {"error": {"type": "string"}}}


def listing(document: Mapping[str, Any]) -> str:
    """The document as a plain page."""
    return "\n".join(_listed(document))


def _listed(document: Mapping[str, Any]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>velm: HTTP API</title>'
    yield '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
    yield f"<h1>velm: HTTP API</h1><p>{escape(document['info']['description'])}</p>"
    yield '<p>For programs: <a href="openapi.json">openapi.json</a>. For people: <a href="./">the web page</a>.</p>'
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            yield f"<h2><code>{method.upper()} {path}</code></h2><p>{escape(told['summary'])}.</p>"
            if "requestBody" not in told:
                continue
            yield f"<p>{escape(told['description'])}</p><table><tr><th>option<th>values<th>default<th>meaning</tr>"
            body = told["requestBody"]["content"]["application/json"]["schema"]
            for name, schema in body["properties"].items():
                default = "required" if name in body.get("required", ()) else str(schema.get("default", ""))
                cells = (
                    f"<code>{name}</code>",
                    escape(_values(schema)),
                    escape(default),
                    escape(schema["description"]),
                )
                yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
            answer = told["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
            yield f"</table><p>Returns JSON: {', '.join(f'<code>{escape(name)}</code>' for name in answer)}.</p>"
    yield "<h2>Errors</h2><p>JSON with one line, <code>error</code>: "
    yield ", ".join(f"{status} {escape(phrase(status))}" for status in ERRORS) + ".</p></html>"


def _values(schema: Mapping[str, Any]) -> str:
    if schema["type"] == "array":
        return f"a list: {_values(schema['items'])}"
    if "contentEncoding" in schema:
        return "a file, or base64"
    ends = [
        f"{word} {schema[key]:g}"
        for key, word in (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
        if key in schema and abs(schema[key]) < 2**53
    ]
    return " ".join([schema["type"], *ends])
