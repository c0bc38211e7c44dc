"""The base of every configuration in the house: typed, frozen, and strict.

An unknown key is an error, never dropped: the reference implementation's shipped recipes lost whole sections to a
configuration class that ignored what it did not know.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from longspan.errors import LongspanError


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys, infinite numbers, and true or false where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_as_number(cls, values: Any) -> Any:
        # pydantic reads true as 1, which no one who writes batch_size=true can mean.
        for key, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{key} cannot be {str(value).lower()}")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str | Path) -> Self:
        """Build from plain values (JSON, TOML, command line).

        Raises:
            LongspanError: an unknown key, a missing key or a wrong value; names the key, `where`, and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explained(error, cls, values, where=where) from None

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
    except (ValueError, RecursionError):
        return text


def explained(error: ValidationError, cls: type[Config], values: Any = None, *, where: str | Path) -> LongspanError:
    """A validation error in words: each key that is wrong, and what may stand there.

    Args:
        values: what was validated.
    """
    items = [item for item in error.errors() if not _is_consequence(item, error)]
    unknown = [str(item["loc"][-1]) for item in items if item["type"] == "extra_forbidden"]
    remedy = _did_you_mean(unknown[0], _schema_keys(cls)) if unknown else "correct the value and run again"
    return LongspanError("; ".join(_problem(item, values) for item in items), where=where, remedy=remedy)


def _is_consequence(item: Any, error: ValidationError) -> bool:
    # pydantic calls a list too short whose items are wrong.
    length = len(item["loc"])
    return item["type"] == "too_short" and any(
        other["loc"][:length] == item["loc"] and len(other["loc"]) > length for other in error.errors()
    )


def _problem(item: Any, values: Any) -> str:
    key = _key(item["loc"], values)
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    if item["type"] == "missing":
        return f"missing key {key!r}"
    message = item["msg"].removeprefix("Value error, ")
    what = f"{key}: {message}" if key else message
    # A whole table would bury the message.
    return what if isinstance(item["input"], Mapping | list | tuple) else f"{what} (got {item['input']!r:.80})"


def _key(location: Sequence[int | str], values: Any) -> str:
    """The dotted key as it was written: pydantic's location also holds the kind of a table that has several."""
    parts: list[str] = []
    node, kind_seen = values, False
    for part in location:
        if isinstance(node, Mapping) and node.get("kind") == part and not kind_seen:
            kind_seen = True
            continue
        parts.append(str(part))
        node, kind_seen = _inside(node, part), False
    return ".".join(parts)


def _inside(node: Any, part: int | str) -> Any:
    if isinstance(node, Mapping):
        return node.get(part)
    if isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


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
