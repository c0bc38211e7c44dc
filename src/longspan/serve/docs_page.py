"""The API's documentation as a page of its own: from the OpenAPI document, without scripts from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from longspan.page import page, table


def docs_page(openapi: dict[str, Any], models: list[str]) -> str:
    """HTML: each route with its fields, an example to copy, and its answers."""
    operations = [
        (method, path, operation) for path, methods in openapi["paths"].items() for method, operation in methods.items()
    ]
    intro = f'<p>{escape(openapi["info"]["summary"])} The whole as <a href="openapi.json">OpenAPI</a>.</p>'
    return page("longspan", [intro, *(_operation(*operation, models[0]) for operation in operations)])


def _operation(method: str, path: str, operation: dict[str, Any], model: str) -> str:
    heading = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>"
    parts = [heading]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append(table(("field", "type", "meaning"), _fields(body), names=3))
        examples = [json.dumps(example).replace("MODEL", model) for example in body.get("examples", [])]
        parts += [f"<pre>{escape(_curl(path, example))}</pre>" for example in examples]
    answers = [(status, answer["description"]) for status, answer in operation["responses"].items()]
    parts.append(table(("status", "answer"), answers, names=2))
    return "\n".join(parts)


def _fields(body: dict[str, Any]) -> list[tuple[str, str, str]]:
    required = body.get("required", [])
    return [
        (name, _type(schema) + ("" if name in required else ", optional"), schema.get("description", ""))
        for name, schema in body["properties"].items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "value"))


def _curl(path: str, example: str) -> str:
    quoted = example.replace("'", "'\\''")
    return f"curl http://127.0.0.1:8080{path} -H 'content-type: application/json' -d '{quoted}'"
