"""The base of every configuration in the house: typed, frozen, and strict.

An unknown key is an error, never dropped: the reference implementation's shipped recipes lost whole sections to a
configuration class that ignored what it did not know.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from longspan.errors import LongspanError


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str | Path) -> Self:
        """Build from plain values (JSON, TOML, command line).

        Raises:
            LongspanError: an unknown key, a missing key or a wrong value; names the key, `where`, and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise LongspanError(
                _explain(error), where=where, remedy=_remedy(cls, error) or "correct the value and run again"
            ) from None

    def replace(self, changes: Mapping[str, Any], *, where: str | Path) -> Self:
        """A copy with dotted keys changed, e.g. `{"optim.lr": "1e-4"}`; strings are read as JSON where they are JSON.

        Raises:
            LongspanError: a key that does not exist, or a value of the wrong type.
        """
        values = self.model_dump(mode="json")
        for dotted, value in changes.items():
            node, *rest = [values, *dotted.split(".")]
            for key in rest[:-1]:
                node = node.get(key) if isinstance(node, dict) else None
            if not isinstance(node, dict) or rest[-1] not in node:
                raise LongspanError(
                    f"there is no setting {dotted!r}", where=where, remedy=_did_you_mean(dotted, _dotted_keys(values))
                )
            node[rest[-1]] = _from_text(value) if isinstance(value, str) else value
        return type(self).parse(values, where=where)


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "the configuration"
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}")
        elif item["type"] == "missing":
            problems.append(f"missing key {key!r}")
        else:
            problems.append(f"{key}: {item['msg']} (got {item['input']!r})")
    return "; ".join(problems)


def _remedy(cls: type[Config], error: ValidationError) -> str | None:
    unknown = [str(item["loc"][-1]) for item in error.errors() if item["type"] == "extra_forbidden"]
    if not unknown:
        return None
    return _did_you_mean(unknown[0], _schema_keys(cls))


def _schema_keys(cls: type[Config]) -> list[str]:
    schema = cls.model_json_schema()
    nested = [definition.get("properties", {}) for definition in schema.get("$defs", {}).values()]
    return sorted({key for properties in [schema.get("properties", {}), *nested] for key in properties})


def _did_you_mean(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "the keys are: " + ", ".join(known)


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        keys.append(prefix + key)
        if isinstance(value, Mapping):
            keys += _dotted_keys(value, f"{prefix}{key}.")
    return keys
