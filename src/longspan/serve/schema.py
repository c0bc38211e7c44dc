"""Bodies of requests and answers, as OpenAI and text-embeddings-inference define them, and what we add to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from longspan.serve.refusal import Refusal

LARGEST_ID = 2**31 - 1

_STRING = {"type": "string", "minLength": 1}
_STRINGS = {"type": "array", "items": _STRING, "minItems": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_ID}, "minItems": 1}
_LISTS_OF_IDS = {"type": "array", "items": _IDS, "minItems": 1}
_KINDS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"


def _one_kind(value: str | list[Any]) -> str | list[Any]:
    # By hand: pydantic tries every member of a union on every item, and keeps an error for each.
    if isinstance(value, str) or (value and (_strings(value) or _ids(value) or all(map(_nonempty_ids, value)))):
        return value
    raise ValueError(f"must be {_KINDS}, and not empty")


def _strings(value: list[Any]) -> bool:
    return all(type(item) is str for item in value)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= LARGEST_ID for item in value)


def _nonempty_ids(value: Any) -> bool:
    return bool(value) and _ids(value)


_SCHEMA = {"anyOf": [_STRING, _STRINGS, _IDS, _LISTS_OF_IDS], "description": f"The texts: {_KINDS}."}
Inputs = Annotated[str | list[Any], AfterValidator(_one_kind), WithJsonSchema(_SCHEMA)]


def body_config(*examples: dict[str, Any]) -> ConfigDict:
    """The settings of a body, and examples of it for the documentation."""
    return ConfigDict(
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": list(examples)},
    )


class Body(BaseModel):
    """The body of a request: strict types, and no field that does not exist."""

    model_config = body_config()


class _Embedding(Body):
    dimensions: int | None = Field(default=None, ge=1, le=LARGEST_ID)
    """Keep this many coordinates (Matryoshka) and normalise again."""
    task: str | None = None
    """What the texts are for: one of the model's tasks (`/info` names them), as `search_query`."""
    prompt_name: str | None = None
    """The same as `task`, by the name that sentence-transformers and text-embeddings-inference use."""
    truncate: bool = False
    """Cut texts that are too long instead of refusing them. The answer says how many were cut."""


class OpenAIRequest(_Embedding):
    """The body of `/v1/embeddings`."""

    model_config = body_config(
        {"model": "MODEL", "input": "how do I sort a list?", "task": "search_query"},
        {
            "model": "MODEL:search_document",
            "input": ["sorted() returns a new list.", "list.sort() sorts in place."],
            "dimensions": 256,
            "encoding_format": "base64",
        },
    )

    input: Inputs
    model: str
    """The name of a model, or `NAME:TASK`."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or the base64 of little-endian float32."""
    user: str | None = None
    """Accepted, and neither used nor kept."""


class EmbedRequest(_Embedding):
    """The body of `/embed`."""

    model_config = body_config({"inputs": ["how do I sort a list?"], "prompt_name": "search_query", "truncate": True})

    inputs: Inputs
    model: str | None = None
    """The name of a model, or `NAME:TASK`; the first one if it is left out."""
    normalize: bool | None = None
    """Scale vectors to length 1 or do not; as the model says if it is left out."""
    truncation_direction: Literal["right", "Right"] = "right"
    """The end that `truncate` cuts: only the right one."""


class TokenizeRequest(Body):
    """The body of `/tokenize`."""

    model_config = body_config({"inputs": "how do I sort a list?"})

    inputs: Annotated[
        str | list[str], WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    ]
    model: str | None = None
    """The name of a model; the first one if it is left out."""
    add_special_tokens: bool = True
    """Whether [CLS] and [SEP] stand around each text."""
    task: str | None = None
    """Put the prefix of this task before each text."""
    prompt_name: str | None = None
    """The same as `task`."""


class OpenAIEmbedding(BaseModel):
    """A vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model read, prefixes and special tokens included."""

    prompt_tokens: int
    total_tokens: int


class OpenAIResponse(BaseModel):
    """The answer of `/v1/embeddings`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage
    truncated: list[int] = []
    """Numbers of the texts that were cut. There only if `truncate` was asked for."""


class OpenAIModel(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class OpenAIModels(BaseModel):
    """The answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error as OpenAI tells it."""

    error: OpenAIErrorDetail


class TEIError(BaseModel):
    """An error as text-embeddings-inference tells it."""

    error: str
    error_type: str


class Token(BaseModel):
    """A token, and the characters that it stands for."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(BaseModel):
    """The answer of `/info`: text-embeddings-inference's fields, then ours."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    model_id: str
    model_sha: str
    """The fingerprint of everything that a vector depends on: weights, arithmetic, tokenizer, pooling, prefixes."""
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int
    max_input_length: int
    """Longest text in tokens, prefix and special tokens included."""
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    """Texts in one request."""
    auto_truncate: bool = False
    """Texts are cut only on request."""
    tokenization_workers: int
    version: str
    models: list[str]
    """All models that are served here."""
    tasks: dict[str, str]
    """Tasks and the prefixes that stand for them; empty for a model without prefixes."""
    default_task: str | None
    """The task of a request that names none. If there are tasks and this is null, every request must name one."""
    dimensions: int
    normalized: bool
    """Whether vectors have length 1 unless a request says otherwise."""
    max_body_bytes: int
    max_queue_tokens: int
    timeout: float
    """Seconds that a request may take."""
    token_ids: bool
    """Whether token ids are accepted instead of texts."""


_B = TypeVar("_B", bound=Body)


def parse(body: bytes, kind: type[_B]) -> _B:
    """A request from the bytes of its body.

    Raises:
        Refusal: 400, it is not JSON, or not what `kind` says; names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        problem = first["msg"].removeprefix("Value error, ")
        message = f"{param[:80]}: {problem}" if param else f"the body is not right: {problem}"
        if first["type"] == "extra_forbidden":
            message = f"there is no field {param!r:.80}; there are: {', '.join(sorted(kind.model_fields))}"
        raise Refusal(400, message, param=param) from None


def texts_of(inputs: str | list[Any]) -> list[str] | list[np.ndarray]:
    """The texts of a request, each a string or an array of token ids."""
    if isinstance(inputs, str):
        return [inputs]
    if type(inputs[0]) is str:
        return inputs
    if type(inputs[0]) is int:
        inputs = [inputs]
    return [np.array(ids, dtype=np.int32) for ids in inputs]
